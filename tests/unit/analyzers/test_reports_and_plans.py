"""Reports against scipy and statsmodels; plans against simulation; learned margins by what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from analyzers import (
    Counts,
    Effect,
    Histogram,
    Margins,
    Monitor,
    MonitorConfig,
    Stable,
    Window,
    learn_margins,
    plan,
    pseudo_canaries,
    recommend,
)
from analyzers.margins import needed, scaled
from analyzers.planning import LADDER, floor
from analyzers.reports import drift, mann_whitney, proportions, quantile_ratio
from tests.calibration.pod_streams import PodLaw, pod_windows
from tests.calibration.streams import CLASSES, Law, windows
from tests.calibration.test_promise import first_crossing

CANARY, STABLE = np.array([3, 10, 20, 9, 4]), np.array([40, 120, 160, 50, 12])


def test_a_plan_plays_on_until_nearly_all_rollouts_have_found_the_effect() -> None:
    sure = plan(
        Effect(slower=1.3), weight_percent=10, requests_per_minute=600, config=MonitorConfig(planned_windows=60)
    )
    assert sure.found > 0.99


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


SERVICE = Stable.log_normal(classes=tuple(CLASSES))
PLANNED = MonitorConfig(planned_windows=120, margins=Margins.none())


@pytest.mark.parametrize(
    ("effect", "law"),
    [
        (Effect(slower=1.1), Law(slower=1.1)),
        (Effect(slower=1.05), Law(slower=1.05)),
        (Effect(slower=1.1, onset=30), Law(slower=1.1, onset=30)),
        (Effect(errors=0.005), Law(canary_errors=0.005)),
        (Effect(moved=0.05), Law(class_move=0.05)),
    ],
    ids=["x1.1", "x1.05", "x1.1 later", "errors .1 to .5 %", "5-point class move"],
)
def test_a_plan_is_within_15_percent_of_the_simulated_median(effect: Effect, law: Law) -> None:
    found = first_crossing(law, rollouts=400, length=120, seed=3, margins=Margins.none())
    planned = plan(effect, weight_percent=10, requests_per_minute=600, stable=SERVICE, config=PLANNED)
    assert planned.minutes is not None
    # Two medians of 400 each carry some 5 % themselves; a minute is the resolution.
    assert planned.minutes == pytest.approx(np.median(found) - law.onset, rel=0.15, abs=1.0)


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (Effect(slower=1.04), "x1.05 is tolerated"),
        (Effect(errors=0.0011), "1.2 times the odds"),
        (Effect(moved=0.1), "no classes"),
    ],
)
def test_an_effect_within_the_limit_cannot_be_found_and_the_plan_says_so(effect: Effect, words: str) -> None:
    planned = plan(effect, weight_percent=10, requests_per_minute=600)
    assert planned.minutes is None
    assert words in planned.reason


def test_what_pods_make_impossible_is_said_with_the_pods_it_takes() -> None:
    two = Stable.log_normal(pods=(2, 18), pod_spread=0.03)
    planned = plan(Effect(slower=1.06), weight_percent=10, requests_per_minute=600, stable=two, config=PLANNED)
    assert planned.minutes is None
    assert "it needs 6 canary pods" in planned.reason
    # With that many the floor lies below the effect; with one less above it.
    six, five = (floor(Stable(pods=(k, 18), pod_spread=0.03), 120) for k in (6, 5))
    assert six <= np.log(1.06) < five


def test_too_little_traffic_is_said_with_the_share_that_is_found() -> None:
    planned = plan(Effect(slower=1.1), weight_percent=1, requests_per_minute=60, config=PLANNED)
    assert planned.minutes is None
    assert planned.found < 0.5
    assert "higher weight or more time" in planned.reason


def test_the_recommended_weight_is_the_smallest_that_is_fast_enough() -> None:
    effects = [Effect(slower=1.2), Effect(errors=0.01)]
    weight, reason = recommend(effects, bake_minutes=60, requests_per_minute=600)
    assert weight is not None
    assert f"{weight} %" in reason
    slower = LADDER[LADDER.index(weight) - 1]
    config = MonitorConfig(planned_windows=60)
    plans = [plan(e, weight_percent=slower, requests_per_minute=600, config=config) for e in effects]
    assert any(p.minutes is None or p.minutes > 60 for p in plans)
    assert recommend(effects, bake_minutes=5, requests_per_minute=6)[0] is None


@pytest.mark.parametrize("bad", [{}, {"slower": 1.1, "errors": 0.1}])
def test_an_effect_names_exactly_one_thing(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Effect(**bad)  # type: ignore[arg-type]


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


def test_stable_pods_that_play_the_canary_teach_margins_too() -> None:
    config = MonitorConfig(false_rollback=0.05, planned_windows=20)

    def learned(spread: float) -> float:
        day = list(pod_windows(PodLaw(pod_spread=spread), 1, 20, seed=8))
        return learn_margins(pseudo_canaries(day, 2, 30, seed=1), config).latency

    assert learned(0.06) > learned(0.0)
    with pytest.raises(ValueError, match="more than 18 stable pods"):
        pseudo_canaries(list(pod_windows(PodLaw(), 1, 1, seed=8)), 18, 1)


@pytest.mark.parametrize("scale", [1.0, 4.0, 8.0, 12.0, 16.0])
def test_a_release_far_within_its_margins_gathers_no_evidence_against_it(scale: float) -> None:
    # Once looked like one that fails in bursts, each lull harm; and like more slow requests than a tolerated slow-down
    # leaves in a sparse bucket.
    config = MonitorConfig(planned_windows=30, margins=scaled(Margins(), scale))
    fine, coarse = Monitor(config, 50), Monitor(config, 50)
    summed = map(without_pods, pod_windows(PodLaw(), 50, 30, seed=4))
    for one, two in zip(windows(Law(errors=0.02), 50, 30, seed=3), summed, strict=True):
        verdicts = fine.observe(one), coarse.observe(two)
    assert max(float(np.median(v.log_evidence)) for v in verdicts) < -1.0
    assert not any(v.rollback.any() for v in verdicts)


def without_pods(window: Window) -> Window:
    """The same counts by arm."""
    assert window.latency
    assert window.errors
    latency, four = window.latency, (getattr(window.errors, n) for n in Counts.__slots__)
    return Window(
        Histogram(latency.edges, *(np.asarray(x).sum(1) for x in (latency.canary, latency.stable))),
        Counts(*(np.asarray(x).sum(1) for x in four)),
    )


def test_streams_of_one_seed_are_equal() -> None:
    one, two = (list(windows(Law(), 2, 3, 1)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert a.latency is not None
        assert b.latency is not None
        np.testing.assert_array_equal(np.asarray(a.latency.canary), np.asarray(b.latency.canary))


def test_margins_are_not_learned_from_counts_by_pod_nor_from_nothing() -> None:
    stream = pod_windows(PodLaw(), 1, 2, seed=1)
    with pytest.raises(ValueError, match="pods have no margins"):
        learn_margins([list(stream)] * 99, MonitorConfig())
    with pytest.raises(ValueError, match="past rollout 0 holds no window"):
        learn_margins([[]] * 99, MonitorConfig())


@pytest.mark.parametrize(
    "bad", [{"slower": 0.8}, {"slower": float("nan")}, {"errors": 1.0}, {"moved": -0.1}, {"moved": 5.0}]
)
def test_an_effect_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="found"):
        Effect(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"errors": 0.0}, {"pods": (0, 9)}, {"pods": (2, 1)}, {"pod_noise": (0.05, 1.0)}, {"pod_spread": -3.0}]
)
def test_a_service_that_cannot_be_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="found"):
        Stable(**bad)  # type: ignore[arg-type]


def test_what_is_said_to_be_impossible_with_these_pods_is_hardly_ever_found_when_played() -> None:
    stable = Stable.log_normal(pods=(2, 18), pod_spread=0.11)
    told = plan(
        Effect(slower=1.2), weight_percent=10, requests_per_minute=600, stable=stable,
        config=MonitorConfig(planned_windows=60),
    )  # fmt: skip
    assert "cannot be found at any traffic" in told.reason
