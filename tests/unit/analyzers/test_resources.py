"""Pods as units: what is harm, what is not, what is blind, and that a stored row goes on exactly."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers.resources import (
    BLOCK,
    CANARY_PODS,
    LAST,
    LEAK,
    LONGEST_BLOCK,
    PODS,
    RECENT,
    PodWindow,
    ResourceConfig,
    ResourceMonitor,
    ResourceVerdict,
    row_length,
    theil_sen,
)
from tests.calibration.resource_streams import ResourceLaw, resource_windows

RATE = 0.001


def monitor(measures: str, rows: int = 1, planned: int | None = 240, **changes: object) -> ResourceMonitor:
    return ResourceMonitor(ResourceConfig(measures, RATE, planned_windows=planned, **changes), rows)  # type: ignore[arg-type]


def watch(law: ResourceLaw, length: int, rows: int = 20, seed: int = 3) -> tuple[np.ndarray, ResourceVerdict]:
    """(first harmful window of each row, the last verdict)."""
    watching, first = monitor(law.measures, rows, length), np.full(rows, np.inf)
    for t, window in enumerate(resource_windows(law, rows, length, seed), start=1):
        verdict = watching.observe(window)
        first[np.isinf(first) & verdict.harmful] = t
    return first, verdict


def slots(canary: list[float], stable: list[float]) -> np.ndarray:
    """(1, PODS), the pods of each arm in its first slots."""
    out = np.full((1, PODS), np.nan)
    out[0, : len(canary)] = canary
    out[0, CANARY_PODS : CANARY_PODS + len(stable)] = stable
    return out


def one_window(canary: list[float], stable: list[float], age_s: float = np.inf, **changes: object) -> PodWindow:
    values = slots(canary, stable)
    given = {"values": values, "age_s": np.full_like(values, age_s), "new": np.zeros_like(values)}
    return PodWindow(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("measures", ["load", "share", "memory", "device-memory", "events", "ready"])
def test_a_stored_row_goes_on_exactly(measures: str) -> None:
    law = ResourceLaw(measures=measures, warm_up=0.3, replaced=True, happening=0.02)  # type: ignore[arg-type]
    whole, parts = monitor(measures, 3), monitor(measures, 3)
    for window in resource_windows(law, 3, 120, seed=1):
        one = whole.observe(window)
        two = parts.observe(window)
        parts = ResourceMonitor.restore(parts.config, parts.state())
        for name in ResourceVerdict.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_array_equal(whole.state(), parts.state())


def test_rows_side_by_side_give_what_each_gives_alone() -> None:
    law = ResourceLaw(measures="device-memory", saw=0.1)
    together = monitor("device-memory", 4)
    alone = [monitor("device-memory") for _ in range(4)]
    for window in resource_windows(law, 4, 130, seed=2):
        together.observe(window)
        for r, one in enumerate(alone):
            fields = ("values", "age_s", "new", "load", "limit")
            one.observe(PodWindow(*(np.asarray(getattr(window, f))[r : r + 1] for f in fields)))
    np.testing.assert_allclose(together.state(), np.concatenate([one.state() for one in alone]), rtol=1e-9)


def test_the_median_slope_is_scipys_and_holds_out_against_a_third_of_outliers() -> None:
    from scipy.stats import theilslopes

    rng = np.random.default_rng(4)
    points = 0.3 * np.arange(24) + rng.normal(size=24)
    assert theil_sen(points) == pytest.approx(theilslopes(points)[0])
    points[::4] += 100.0
    points[5] = np.nan
    assert theil_sen(points) == pytest.approx(0.3, abs=0.15)
    assert np.isnan(theil_sen(np.full(4, np.nan)))


def test_twice_the_use_is_found_when_pods_have_settled_and_not_before() -> None:
    first, verdict = watch(ResourceLaw(more=2.0), 60)
    assert (first > 10).all()
    assert np.median(first) <= 15
    assert verdict.effect == pytest.approx(2.0, rel=0.2)


def test_a_late_fault_is_found_by_the_last_windows() -> None:
    first, verdict = watch(ResourceLaw(more=2.0, onset=120), 150)
    assert (first <= 130).all()
    assert (verdict.by == RECENT).all()


def test_pods_that_start_together_are_compared_at_once() -> None:
    watching = monitor("load")
    for t in range(10):
        age_s = 60.0 * t + 30.0
        verdict = watching.observe(one_window([9.0, 9.1], [1.0, 1.1, 0.9, 1.0], age_s, load=np.array([[1.0, 1.0]])))
    assert verdict.harmful


def test_a_young_canary_waits_for_its_age_where_stable_pods_are_old() -> None:
    watching = monitor("memory")
    values, age_s = slots([9.0, 9.1], [1.0, 1.1, 0.9, 1.0]), slots([60.0, 60.0], [np.inf] * 4)
    for _ in range(20):
        verdict = watching.observe(PodWindow(values, age_s, np.zeros_like(values)))
    assert verdict.waiting
    assert not verdict.harmful
    assert not verdict.safe


@pytest.mark.parametrize("times", [0.5, 3.0])
def test_what_load_explains_is_no_harm(times: float) -> None:
    law = ResourceLaw(canary_load=times, idle=0.1, swing=0.3)
    first, _ = watch(law, 120)
    assert np.isinf(first).all()


def test_twice_the_use_at_half_the_load_is_found_once_loads_part_is_known() -> None:
    first, _ = watch(ResourceLaw(canary_load=0.5, swing=0.4, more=2.0, onset=180), 240)
    assert np.isfinite(first).all()


def test_use_without_known_load_is_not_compared() -> None:
    watching = monitor("load")
    for _ in range(20):
        verdict = watching.observe(one_window([9.0, 9.0], [1.0, 1.0, 1.1]))
    assert verdict.waiting
    assert not verdict.harmful


def test_a_leak_is_found_with_its_time_to_the_limit() -> None:
    first, verdict = watch(ResourceLaw(measures="memory", leak=0.02, noise=0.01, saw=0.1), 480, rows=6)
    assert np.isfinite(first).all()
    assert (verdict.by == LEAK).all()
    # From one half at 2 % an hour for 8 hours; the floor of the saw teeth lies a tenth lower.
    assert verdict.to_limit_s / 3600 == pytest.approx(18.0, rel=0.35)
    assert (verdict.slope_per_hour > 0.02).all()


def test_pods_that_fill_up_and_stay_are_no_leak() -> None:
    law = ResourceLaw(measures="memory", warm_up=-0.6, half_life=30.0, noise=0.01)
    first, _ = watch(law, 360, rows=30)
    assert np.isinf(first).all()


def test_blocks_grow_with_the_rollout_and_the_ring_stays() -> None:
    watching = monitor("memory", planned=None)
    sizes = set()
    for t in range(1200):
        watching.observe(one_window([1.0], [1.0, 1.0]))
        if t % 50 == 0:
            sizes.add(float(watching._view()["length"][0]))
    assert sizes == {BLOCK, 2 * BLOCK, 4 * BLOCK, LONGEST_BLOCK}
    assert watching.state().shape == (1, row_length(watching.config))


def test_a_step_of_gpu_memory_is_found_within_three_windows() -> None:
    first, verdict = watch(ResourceLaw(measures="device-memory", jump=0.2, onset=60, noise=0.005), 61)
    assert (first == 61).all()
    assert (verdict.by == LAST).all()
    assert verdict.effect == pytest.approx(1.2, abs=0.05)


def test_a_step_of_all_pods_together_is_none_of_the_canarys() -> None:
    watching = monitor("device-memory")
    rng = np.random.default_rng(5)
    for t in range(80):
        level = 1.0 if t < 60 else 1.3
        canary, stable = (list(level * np.exp(0.005 * rng.normal(size=n))) for n in (2, 9))
        verdict = watching.observe(one_window(canary, stable))
    assert not verdict.harmful


def test_restarts_of_canary_pods_alone_are_harm_after_a_few() -> None:
    watching = monitor("events")
    needed = 0
    for t in range(60):
        happened = 1.0 if t % 6 == 5 else 0.0
        verdict = watching.observe(one_window([happened, 0.0], [0.0] * 16))
        needed += int(happened) * int(not verdict.harmful)
    assert verdict.harmful
    assert 2 <= needed <= 6
    assert (verdict.events_canary[0], verdict.events_stable[0]) == (10.0, 0.0)


def test_restarts_of_both_arms_are_no_harm() -> None:
    watching = monitor("events")
    for t in range(60):
        verdict = watching.observe(one_window([float(t % 6 == 5), 0.0], [float(t % 6 == 5)] * 8 + [0.0] * 8))
    assert not verdict.harmful


def test_a_crash_loop_is_one_event_a_window() -> None:
    watching = monitor("events")
    verdict = watching.observe(one_window([40.0, 0.0], [0.0] * 16))
    assert verdict.events_canary[0] == 1.0


def test_a_pod_that_becomes_unready_again_and_again_is_harm_and_one_that_starts_is_none() -> None:
    settled, young = monitor("ready"), monitor("ready")
    for t in range(120):
        ready = float(t % 4 != 0)
        told = settled.observe(one_window([ready, 1.0], [1.0] * 16))
        starting = young.observe(one_window([0.0, 0.0], [1.0] * 16, age_s=60.0 * min(t, 9)))
    assert told.harmful
    assert not starting.harmful


def test_a_share_is_compared_as_a_difference() -> None:
    first, verdict = watch(ResourceLaw(measures="share", level=0.05, more=6.0, onset=0), 60)
    assert np.isfinite(first).all()
    assert verdict.effect == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("measures", ["load", "memory", "device-memory", "share", "events"])
def test_a_missing_exporter_is_blind_and_never_zero(measures: str) -> None:
    watching = monitor(measures)
    for canary, stable in (([np.nan, np.nan], [1.0] * 4), ([1.0, 1.0], [np.nan] * 4), ([np.inf], [1.0] * 4)):
        for _ in range(30):
            verdict = watching.observe(one_window(canary, stable, load=np.array([[1.0, 1.0]])))
            assert verdict.blind
            assert not verdict.safe
            assert not verdict.harmful


def test_pods_without_a_known_age_are_never_compared() -> None:
    watching = monitor("memory")
    for _ in range(30):
        verdict = watching.observe(one_window([9.0], [1.0, 1.1, 0.9], age_s=np.nan))
    assert not verdict.harmful
    assert verdict.compared[0] == 0


def test_a_replaced_pod_is_forgotten() -> None:
    watching = monitor("memory")
    old = slots([2.0], [1.0] * 9)
    for _ in range(4):
        watching.observe(one_window([2.0], [1.0] * 9))
    new = np.zeros((1, PODS))
    new[0, 0] = 1.0
    watching.observe(PodWindow(old, np.full_like(old, np.inf), new))
    assert watching._view()["n"][0, 0] == 1.0


def test_what_can_be_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="measures must be one of load"):
        ResourceConfig("speed", 0.01)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin of 'memory' must be at least 1"):
        ResourceConfig("memory", 0.01, 0.9)
    with pytest.raises(ValueError, match="false_alarm must lie"):
        ResourceConfig("memory", 0.9)
    with pytest.raises(ValueError, match="values must have shape"):
        monitor("load").observe(PodWindow(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros((1, 3))))
    with pytest.raises(ValueError, match="never below 0"):
        monitor("load").observe(one_window([-1.0], [1.0]))
    with pytest.raises(ValueError, match="state does not hold rows"):
        ResourceMonitor.restore(ResourceConfig("load", 0.01), monitor("memory").state())
