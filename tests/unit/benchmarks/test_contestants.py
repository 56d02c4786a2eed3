"""Contestants are scored by what they would do: their own verdicts, their own counts, the true likelihoods."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analyzers import Margins, Monitor, MonitorConfig
from tests.benchmarks.peers import kayenta, kayenta_judge, oracle, rules, serinus
from tests.benchmarks.peers.contest import first_reached, tuned
from tests.benchmarks.peers.scenarios import FAULTS, Scenario
from tests.benchmarks.peers.stream import Stream, drawn, gather
from tests.calibration.streams import CLASSES, MEDIAN_S, Law, bucket_shares

LENGTH = 20


@pytest.fixture(scope="module")
def bad() -> Stream:
    """A fault that most tools find, on few rollouts."""
    return gather(Law(slower=1.3, canary_errors=0.03, onset=8), 40, LENGTH, 20261125)


def test_counts_are_tuned_to_the_smallest_number_within_the_rate() -> None:
    tops = {"failed checks": np.repeat([3.0, 4.0, 5.0], [950, 41, 9])}
    assert 4.0 < tuned(tops, 0.01)["failed checks"] <= 5.0


def test_the_oracle_adds_up_the_true_log_likelihood_ratio() -> None:
    by_kind = {s.touches: s for s in FAULTS if s.law.onset == 0}
    assert set(by_kind) == {"latency", "tail", "errors", "classes"}
    for kind, scenario in by_kind.items():
        stream = gather(scenario.law, 3, LENGTH, 5)
        first = oracle.oracle(scenario, stream)[kind][:, 0]
        for r in range(3):
            assert first[r] == pytest.approx(_llr(scenario, stream, r), abs=1e-8)


def test_serinus_is_scored_by_its_own_verdict(bad: Stream) -> None:
    monitor = Monitor(MonitorConfig(planned_windows=LENGTH, margins=Margins.none()), bad.shape[0])
    rolled_back = np.stack([monitor.observe(window).rollback for window in bad.windows], axis=1)
    (setting,) = serinus.FIRST_RELEASE.defaults.values()
    first = first_reached(serinus.first_release(bad), setting)
    assert np.array_equal(first, np.where(rolled_back.any(1), rolled_back.argmax(1), np.inf))
    assert np.isfinite(first).any()


def test_kayenta_stops_where_the_score_of_the_whole_judge_is_at_or_below_marginal(bad: Stream) -> None:
    (setting,) = kayenta.TOOL.defaults.values()
    first = first_reached(kayenta.scores(bad), setting)
    canary, baseline = kayenta.series(bad.canary), kayenta.series(bad.baseline)
    metric = kayenta_judge.Metric(direction="increase")
    for r in range(bad.shape[0]):
        stopped = np.inf
        for t in kayenta.looks(LENGTH):
            pairs = [(metric, baseline[m][r, : t + 1], canary[m][r, : t + 1]) for m in canary]
            if kayenta_judge.judge(pairs, weights={"all": 100.0}).score <= 75.0:
                stopped = min(stopped, t)
        assert first[r] == stopped
    assert len(np.unique(first)) > 1


def test_failed_checks_are_never_forgiven(bad: Stream) -> None:
    checks = rules.flagger(bad)["failed checks"]
    assert (np.diff(checks, axis=1) >= 0).all()
    missing = (bad.canary.quantile(0.99) > 0.5) | (bad.canary.error_rate > 0.01)
    assert np.array_equal(checks[:, -1], missing.sum(1))


def test_the_baseline_is_drawn_from_stable_without_replacement(bad: Stream) -> None:
    assert np.array_equal(bad.baseline.latency.sum(-1), bad.canary.total)
    assert (bad.baseline.latency <= bad.stable.latency).all()
    counts = np.array([[5, 0, 95]])
    many = np.array([drawn(np.random.default_rng(i), counts, np.array([20]))[0] for i in range(2000)])
    assert many.mean(0) == pytest.approx([1.0, 0.0, 19.0], abs=0.06)


def _llr(scenario: Scenario, stream: Stream, r: int) -> float:
    """Of the canary's counts in the first window, from the distributions themselves."""
    law, canary = scenario.law, stream.canary
    if scenario.touches == "errors":
        x, n = canary.failed[r, 0], canary.total[r, 0]
        assert law.canary_errors
        return float(stats.binom.logpmf(x, n, law.canary_errors) - stats.binom.logpmf(x, n, law.errors))
    if scenario.touches == "classes":
        x, good = canary.classes[r, 0], CLASSES
        moved = good + law.class_move * np.array([-1.0, 1.0] + [0.0] * 8)
    else:
        x, good = canary.latency[r, 0], bucket_shares(np.array([MEDIAN_S]))[0]
        moved = bucket_shares(np.array([MEDIAN_S * law.slower]), law.tail_share, 8.0 * law.tail_slower)[0]
    return float(stats.multinomial.logpmf(x, x.sum(), moved) - stats.multinomial.logpmf(x, x.sum(), good))
