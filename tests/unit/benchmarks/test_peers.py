"""The parts of the peer benchmark say what their sources say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.benchmarks.peers import bands, growthbook, mann_whitney, measuring, oracle
from tests.benchmarks.peers.contest import first_reached, found, highest, reached_share, tuned
from tests.benchmarks.peers.scenarios import FAULTS, Scenario
from tests.benchmarks.peers.stream import BOUNDS_S, MEAN_S, SQUARE_S2, Stream, gather, quantile
from tests.calibration.streams import Law


@pytest.fixture(scope="module")
def stream() -> Stream:
    return gather(Law(ramp=True, errors=0.02), 30, 12, 5)


def test_the_baseline_is_as_large_as_the_canary_and_a_part_of_stable(stream: Stream) -> None:
    base, stable = stream.baseline, stream.stable
    np.testing.assert_array_equal(base.total, np.minimum(stream.canary.total, stable.total))
    for counts, whole in ((base.latency, stable.latency), (base.classes, stable.classes)):
        np.testing.assert_array_equal(counts.sum(-1), base.total)
        assert (counts <= whole).all()
    assert (base.failed <= np.minimum(stable.failed, base.total)).all()
    share = base.failed.sum() / base.total.sum()
    assert share == pytest.approx(stable.failed.sum() / stable.total.sum(), rel=0.2)


def test_quantiles_and_moments_are_those_of_requests_log_uniform_in_their_bucket() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4000, 20)
    low, high = BOUNDS_S[:-1].repeat(counts), BOUNDS_S[1:].repeat(counts)
    raw = low * (high / low) ** rng.random(counts.sum())
    for q in (0.02, 0.5, 0.99):
        assert quantile(counts, q) == pytest.approx(np.quantile(raw, q), rel=0.01)
    assert counts @ MEAN_S == pytest.approx(raw.sum(), rel=0.01)
    assert counts @ SQUARE_S2 == pytest.approx((raw**2).sum(), rel=0.02)
    assert np.isnan(quantile(np.zeros(20, int), 0.5))


def test_rank_share_and_class_tests_agree_with_scipy() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 9, 20), rng.integers(0, 60, 20)
    places = np.arange(20)
    p = stats.mannwhitneyu(
        places.repeat(a), places.repeat(b), alternative="greater", method="asymptotic", use_continuity=False
    ).pvalue
    assert stats.norm.sf(mann_whitney.rank_z(a, b)) == pytest.approx(p, rel=1e-9)
    z = mann_whitney.proportion_z(*(np.array(x) for x in (9, 300, 20, 2000)))
    chi2 = stats.chi2_contingency([[9, 291], [20, 1980]], correction=False).statistic
    assert z**2 == pytest.approx(chi2, rel=1e-9)
    g = stats.chi2_contingency([a + 1, b + 1], lambda_="log-likelihood").pvalue
    assert mann_whitney.g_log_p(a + 1, b + 1) == pytest.approx(np.log(g), rel=1e-9)


@pytest.mark.parametrize(("level", "constant"), [(0.05, 8.12), (0.01, 9.28), (0.005, 9.78)])
def test_the_bands_have_the_published_constants(level: float, constant: float) -> None:
    assert bands.band_constant(level) == pytest.approx(constant, abs=0.005)


def test_the_band_score_is_the_constant_at_which_the_bands_just_part(stream: Stream) -> None:
    a, b = (np.cumsum(np.cumsum(arm.latency, 1), 2)[:, -1] for arm in (stream.canary, stream.stable))
    gap = (b / b[:, -1:] - a / a[:, -1:]).max(1)
    constant = bands.scores(stream)["latency"][:, -1]
    first = 600 * 0.05
    radius = sum(
        0.85 * np.sqrt((np.log(1 + np.log(n / least)) + constant) / n)
        for n, least in ((a[:, -1], first / 2), (b[:, -1], (600 - first) / 2))
    )
    touched = constant > 1e-6
    assert touched.any()
    np.testing.assert_allclose(radius[touched], gap[touched], rtol=1e-6)


def test_growthbook_needs_a_failure_in_both_arms() -> None:
    sums = {"n": np.array([[100.0]]), "sum": np.array([[5.0]]), "squares": np.array([[1.0]])}
    none, some = {**sums, "failed": np.array([[0.0]])}, {**sums, "failed": np.array([[9.0]])}
    assert np.isnan(growthbook.relative(some, none)["errors"][1]).all()
    assert np.isnan(growthbook.relative(none, some)["errors"][1]).all()
    assert np.isfinite(growthbook.relative(some, some)["errors"][1]).all()


def test_tuned_thresholds_keep_the_rate_and_nearly_use_it_up() -> None:
    rng = np.random.default_rng(3)
    tops = {"smooth": rng.normal(size=5000), "whole": rng.poisson(2.0, 5000).astype(float)}
    assert 0.005 < reached_share(tops, tuned(tops)) <= 0.01
    alone = {"smooth": tops["smooth"]}
    assert reached_share(alone, tuned(alone)) == 0.01


def test_delays_count_from_the_onset_and_misses_are_infinite() -> None:
    score = np.full((4, 6), -1.0)
    score[0, 1], score[1, 2], score[2, 5] = 1, 1, 2
    rollback = first_reached({"s": score}, {"s": 1.0})
    assert rollback.tolist() == [1, 2, 5, np.inf]
    assert highest({"s": score})["s"].tolist() == [1, 1, 2, -1]
    got = found(rollback, np.full((4, 6), 10), onset=2)
    assert (got.early, got.median, got.p90, got.requests) == (0.25, 4, np.inf, 40)
    assert got.share == pytest.approx(2 / 3)


def test_the_cusum_is_the_best_log_likelihood_ratio_over_all_onsets() -> None:
    llr = np.random.default_rng(4).normal(size=(5, 9))
    best = [[max(row[s : t + 1].sum() for s in range(t + 1)) for t in range(9)] for row in llr]
    np.testing.assert_allclose(oracle.cusum(llr), best)


@pytest.mark.parametrize("scenario", FAULTS, ids=lambda s: s.name)
def test_the_oracle_gains_under_its_fault_and_loses_without_it(scenario: Scenario) -> None:
    onset = scenario.law.onset
    bad, good = (gather(law, 60, 60, 6) for law in (scenario.law, scenario.law.without_fault()))
    with_fault, without = (oracle.oracle(scenario, s)[scenario.touches] for s in (bad, good))
    assert with_fault[:, -1].mean() > without[:, -1].mean() + 1
    if onset:
        np.testing.assert_array_equal(with_fault[:, :onset], without[:, :onset])


def test_the_threshold_for_every_kind_is_the_highest_of_any_law_for_each_signal() -> None:
    kept = measuring.highest_levels([{"a": 1.0, "b": 5.0}, {"a": 3.0, "b": -np.inf}])
    assert kept == {"a": 3.0, "b": 5.0}
