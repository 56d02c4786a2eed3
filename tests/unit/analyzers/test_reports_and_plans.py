"""Reports against scipy and statsmodels; plans against simulation; learned margins by what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from analyzers import Counts, Effect, Margins, MonitorConfig, Window, learn_margins, plan, recommend
from analyzers.margins import needed, scaled
from analyzers.reports import drift, mann_whitney, proportions, quantile_ratio
from tests.calibration.streams import Law, windows
from tests.calibration.test_promise import first_crossing

CANARY, STABLE = np.array([3, 10, 20, 9, 4]), np.array([40, 120, 160, 50, 12])


def test_mann_whitney_on_buckets_is_scipys_on_the_requests() -> None:
    places = np.arange(5)
    theirs = stats.mannwhitneyu(
        np.repeat(places, CANARY), np.repeat(places, STABLE), use_continuity=False, method="asymptotic"
    )
    ours = mann_whitney(CANARY, STABLE)
    assert ours.u == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert ours.low < ours.slower_probability < ours.high


def test_distances_are_scipys() -> None:
    p, q = (x + 0.5 for x in (CANARY, STABLE))
    ours = drift(CANARY, STABLE)
    assert ours.kl == pytest.approx(stats.entropy(p, q))
    assert ours.psi == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p))
    assert ours.jensen_shannon == pytest.approx(jensenshannon(p, q) ** 2)


def test_the_difference_of_proportions_is_newcombes_published_example() -> None:
    # Newcombe (1998), Statistics in Medicine 17:873-890, table II, (a): 56/70 - 48/80, method 10.
    difference, low, high = proportions(56, 70, 48, 80)
    assert (difference, low, high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_a_quantile_is_given_with_the_bucket_that_holds_it() -> None:
    report = quantile_ratio([0.1, 0.2, 0.4, 0.8], CANARY, STABLE, 0.5)
    assert report.canary[1] <= report.canary[0] <= report.canary[2]
    assert report.ratio_low <= report.ratio <= report.ratio_high


@pytest.mark.parametrize("bad", [lambda: mann_whitney([0], [1]), lambda: proportions(0, 0, 1, 2)])
def test_reports_of_nothing_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="needs requests in both arms"):
        bad()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("effect", "law"),
    [
        (Effect(slower=1.1), Law(slower=1.1)),
        (Effect(slower=1.05), Law(slower=1.05)),
        (Effect(errors=(0.005, 0.02)), Law(errors=0.005, canary_errors=0.02)),
    ],
    ids=["x1.1", "x1.05", "errors .5 to 2 %"],
)
def test_a_plan_is_near_the_simulated_median(effect: Effect, law: Law) -> None:
    found = first_crossing(law, rollouts=200, length=120, seed=3, margins=Margins.none())
    planned = plan(effect, weight_percent=10, requests_per_minute=600, planned_windows=120, margins=Margins.none())
    assert planned.minutes is not None
    assert planned.minutes == pytest.approx(np.median(found), rel=0.4, abs=2.0)


def test_an_effect_within_the_limit_cannot_be_found_and_the_plan_says_so() -> None:
    planned = plan(Effect(slower=1.04), weight_percent=10, requests_per_minute=600)
    assert planned.canary_requests is None
    assert "within the limit" in planned.reason


def test_the_recommended_weight_is_the_smallest_that_is_fast_enough() -> None:
    effects = [Effect(slower=1.2), Effect(errors=(0.001, 0.01))]
    weight, reason = recommend(effects, bake_minutes=120, requests_per_minute=600)
    assert weight is not None
    assert f"{weight} %" in reason
    assert recommend(effects, bake_minutes=0.5, requests_per_minute=6)[0] is None
    more = recommend(effects, bake_minutes=30, requests_per_minute=600)[0]
    assert more is None or more >= weight


def test_too_little_history_keeps_the_margins_and_says_what_it_takes() -> None:
    config = MonitorConfig(false_rollback=0.05, planned_windows=20)
    learned = learn_margins([], config)
    assert (learned.enough, learned.errors, learned.latency) == (False, config.margins.errors, config.margins.latency)
    assert "needs 19" in learned.reason
    assert needed(0.01) == 99


def test_learned_margins_grow_with_what_past_good_rollouts_showed() -> None:
    config = MonitorConfig(false_rollback=0.05, planned_windows=20)
    rng = np.random.default_rng(3)

    def past(spread: float) -> list[list[Window]]:
        out = []
        for _ in range(25):
            rate = 0.02 * np.exp(spread * rng.standard_normal())
            rows = [
                Window(errors=Counts([rng.binomial(200, min(rate, 1))], [200], [rng.binomial(1800, 0.02)], [1800]))
                for _ in range(20)
            ]
            out.append(rows)
        return out

    calm, wild = learn_margins(past(0.0), config), learn_margins(past(0.6), config)
    assert calm.enough
    assert wild.errors > calm.errors
    assert scaled(Margins(), 1.0) == Margins()


def test_streams_of_one_seed_are_equal() -> None:
    one, two = (list(windows(Law(), 2, 3, 1)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert a.latency is not None
        assert b.latency is not None
        np.testing.assert_array_equal(np.asarray(a.latency.canary), np.asarray(b.latency.canary))
