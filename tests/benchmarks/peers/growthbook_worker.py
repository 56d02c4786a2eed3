"""Runs in the environment of gbstats, not of Serinus: reads sums of two arms, writes gbstats' answers.

python growthbook_worker.py ASKED.npz TOLD.npz. Asked: alpha, tuned_for, and (n,) a_n, a_sum, a_squares, a_failed and
the same of b. Told: (n,) latency_low, latency_p, errors_low, errors_p, of the two-sided sequential test of b relative
to a.
"""

import sys

import numpy as np
from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
from gbstats.models.statistics import ProportionStatistic, SampleMeanStatistic


def main(asked_at: str, told_at: str) -> None:
    """One test a row and metric."""
    asked = np.load(asked_at)
    config = SequentialConfig(alpha=float(asked["alpha"]), sequential_tuning_parameter=float(asked["tuned_for"]))
    told = {}
    for metric in ("latency", "errors"):
        results = []
        for i in range(len(asked["a_n"])):
            arms = []
            for arm in ("a", "b"):
                n, failed = int(asked[arm + "_n"][i]), float(asked[arm + "_failed"][i])
                total, squares = float(asked[arm + "_sum"][i]), float(asked[arm + "_squares"][i])
                arms.append(
                    ProportionStatistic(n=n, sum=failed)
                    if metric == "errors"
                    else SampleMeanStatistic(n=n, sum=total, sum_squares=squares)
                )
            results.append(SequentialTwoSidedTTest(arms[0], arms[1], config).compute_result())
        told[metric + "_low"] = np.array([result.ci[0] for result in results])
        told[metric + "_p"] = np.array([result.p_value for result in results])
    np.savez(told_at, **told)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
