"""Pods judged beside the monitor: its own row, its own part of the promise, and words that say what was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.analysis.judging import Judged, judge_windows, monitor_config
from service.analysis.resources import RESOURCE_SHARE
from service.analysis.rows import EMPTY, Layout, begun, pack, resources_in, unpack
from service.model.observation import Availability, FailureCounts, HistogramCounts, PodValue, PodValues, Reading
from service.model.policy import Policy
from service.model.rollout import RolloutState
from service.telling.words import metric_clause
from tests.stories import Story, policy

METRICS = [
    {"name": "latency", "kind": "latency"},
    {"name": "memory", "kind": "resource", "required": False},
    {"name": "restarts", "kind": "resource", "required": False},
]
RNG = np.random.default_rng(8)


def watched(**changes: object) -> Policy:
    return policy(**({"metrics": METRICS, "guards": []} | changes))


def state(window: int = 0, **changes: object) -> RolloutState:
    return Story(policy=watched(**changes)).progressing().state.model_copy(update={"window": window})


def requests() -> Reading:
    return Reading("latency", Availability.ENOUGH, HistogramCounts((0.1,), (50, 10), (450, 90)))


def pods(
    metric: str, canary: list[float | None], stable: list[float | None], *, measures: str = "memory", **one: float
) -> Reading:
    arms = [
        tuple(PodValue(f"ml/{arm}-{i}", value, **one) for i, value in enumerate(values))
        for arm, values in (("v2", canary), ("v1", stable))
    ]
    return Reading(metric, Availability.ENOUGH, PodValues(measures, "MiB", *arms))


def events(canary: list[float | None], stable: list[float | None]) -> Reading:
    return pods("restarts", canary, stable, measures="events")


def near(level: float, n: int) -> list[float | None]:
    return list(level * np.exp(0.02 * RNG.normal(size=n)))


def run(n: int, canary: float, *, restarts: float = 0.0, per_window: int = 1, **changes: object) -> list[Judged]:
    """``n`` windows of a rollout whose two canary pods use ``canary`` where eight stable pods use 100."""
    out, row = [], b""
    for window in range(n):
        listed = [
            requests(),
            pods("memory", near(canary, 2), near(100.0, 8), age_s=3600.0, limit=200.0),
            events([restarts] * 2, [0.0] * 8),
        ]
        (one,) = judge_windows([(state(window, **changes), row, listed)])
        row = one.monitor or b""
        out.append(one)
    return out


def test_canary_pods_that_use_more_are_harm_and_those_that_do_not_are_none() -> None:
    good, bad = run(20, 100.0), run(20, 200.0)
    assert not any(one.harmful for one in good)
    found = next(i for i, one in enumerate(bad) if one.harmful)
    memory = bad[found].evidence[1]
    assert memory.effect == pytest.approx(2.0, rel=0.1)
    assert bad[found].log_evidence >= (bad[found].log_rollback or 0.0)
    rule = state().policy.metrics[1]
    assert metric_clause(memory, rule) == "memory 2.0 times stable's, limit 1.10; 2 canary pods against 8 stable pods"
    assert good[-1].evidence[1].safe
    assert not bad[-1].evidence[1].safe


def test_restarts_on_canary_pods_alone_are_harm_and_are_counted_by_arm() -> None:
    judged = run(8, 100.0, restarts=1.0)
    assert judged[-1].harmful
    restarts = judged[-1].evidence[2]
    assert (restarts.events_canary, restarts.events_stable) == (16, 0)
    rule = state().policy.metrics[2]
    assert metric_clause(restarts, rule) == "restarts 16 on 2 canary pods, 0 on 8 stable pods"


def test_the_monitor_and_the_resources_share_the_promised_rate() -> None:
    layout = Layout((0.1,), None, False)
    with_resources = monitor_config(watched(), layout)
    assert with_resources.false_rollback == pytest.approx((1 - RESOURCE_SHARE) * 0.01)
    assert monitor_config(policy(), layout).false_rollback == 0.01


def test_a_pod_without_a_value_is_blind_and_not_empty() -> None:
    row, listed = b"", [requests(), events([0.0] * 2, [0.0] * 8)]
    for window in range(12):
        memory = pods("memory", [None, None], near(100.0, 8))
        given = [*listed, memory if window > 8 else pods("memory", near(100.0, 2), near(100.0, 8), age_s=3600.0)]
        (one,) = judge_windows([(state(window), row, given)])
        row = one.monitor or b""
    assert not one.evidence[1].safe
    assert not one.harmful


def test_a_blind_resource_says_why_and_keeps_its_place() -> None:
    kept = run(3, 100.0)[-1].monitor or b""
    why = "DCGM_FI_DEV_FB_USED says of the canary's pods that it is not supported"
    blind = Reading("memory", Availability.NO_SERIES, None, why)
    (one,) = judge_windows([(state(3), kept, [requests(), blind, events([0.0] * 2, [0.0] * 8)])])
    assert one.evidence[1].availability is Availability.NO_SERIES
    assert why in metric_clause(one.evidence[1], state().policy.metrics[1])
    assert one.evidence[1].resource == run(3, 100.0)[-1].evidence[1].resource.model_copy(  # type: ignore[union-attr]
        update={"pods_canary": 0, "pods_stable": 0, "unit": ""}
    )


def test_resources_are_watched_before_the_arms_can_be_compared() -> None:
    blind = Reading("latency", Availability.NO_SERIES, None, "none")
    (one,) = judge_windows([(state(), b"", [blind, events([0.0] * 2, [0.0] * 8)])])
    assert one.monitor
    assert not begun(one.monitor)
    assert unpack(one.monitor) == (EMPTY, None)
    (two,) = judge_windows([(state(1), one.monitor, [requests(), events([0.0] * 2, [0.0] * 8)])])
    assert begun(two.monitor or b"")


def test_a_batch_gives_each_rollout_what_it_gets_alone() -> None:
    rows = [b"", b""]
    for window in range(12):
        readings = [
            [requests(), pods("memory", near(x, 2), near(100.0, 8), age_s=3600.0), events([0.0] * 2, [0.0] * 8)]
            for x in (100.0, 150.0)
        ]
        together = judge_windows([(state(window), row, read) for row, read in zip(rows, readings, strict=True)])
        (alone,) = judge_windows([(state(window), rows[1], readings[1])])
        assert together[1] == alone
        rows = [one.monitor or b"" for one in together]


def test_a_pod_that_takes_anothers_place_is_known_as_new() -> None:
    row = b""
    for window in range(30):
        memory = pods("memory", near(100.0, 2), near(100.0, 12))
        assert isinstance(memory.counts, PodValues)
        if window >= 15:
            # A canary pod is replaced. No age is told, so it is young from when it was first seen.
            young = PodValue("ml/v2-new", 600.0)
            memory = replace(memory, counts=replace(memory.counts, canary=(memory.counts.canary[0], young)))
        (one,) = judge_windows([(state(window), row, [requests(), memory, events([0.0] * 2, [0.0] * 8)])])
        row = one.monitor or b""
        if window < 24:
            assert not one.harmful
    assert one.harmful


def test_a_step_of_the_weight_is_no_jump_of_what_pods_use() -> None:
    metrics = [METRICS[0], {"name": "gpu", "kind": "resource", "required": False}]
    rows = {30: b"", 5: b""}
    for window in range(32):
        # With three times the requests a pod needs a third more.
        gpu = pods("gpu", near(100.0 if window < 28 else 133.0, 2), near(100.0, 9), measures="device-memory", age_s=1e4)
        for weight in rows:
            now = state(window, metrics=metrics).model_copy(update={"weight_seen": weight if window >= 28 else 5})
            (one,) = judge_windows([(now, rows[weight], [requests(), gpu])])
            rows[weight] = one.monitor or b""
            jumped = one.evidence[1].resource is not None and one.evidence[1].resource.by == "jump"
            assert not (one.harmful and weight == 30 and jumped)
    assert one.harmful  # the one whose weight stayed


def test_a_row_that_cannot_be_read_blinds_its_metric_only() -> None:
    kept = run(3, 100.0)[-1].monitor or b""
    layout, numbers = unpack(kept)
    broken = pack(layout, numbers, resources_in(kept)[:-8])
    (one,) = judge_windows([(state(3), broken, [requests(), events([0.0] * 2, [0.0] * 8)])])
    assert one.evidence[0].availability is Availability.ENOUGH
    assert "cannot be compared" in one.evidence[2].detail


def test_a_row_that_cannot_be_read_at_all_is_left_as_it_is() -> None:
    broken = b"\x02\x00\x00\x00{}"
    (one,) = judge_windows([(state(3), broken, [requests(), events([0.0] * 2, [0.0] * 8)])])
    assert one.monitor is None


def test_a_margin_that_its_pods_cannot_have_is_told() -> None:
    metrics = [METRICS[0], {**METRICS[1], "margin": 0.5}]
    (one,) = judge_windows([(state(metrics=metrics), b"", [requests(), pods("memory", [1.0], [1.0])])])
    assert "margin of 'memory' must be at least 1" in one.evidence[1].detail
    metrics[1]["margin"] = 1.5
    (two,) = judge_windows([(state(metrics=metrics), b"", [requests(), pods("memory", [1.0], [1.0])])])
    assert two.evidence[1].limit == 1.5


def test_nothing_is_compared_while_warming_up() -> None:
    judged = run(8, 300.0, restarts=1.0, warmup_windows=8)
    assert not any(one.harmful for one in judged)
    assert judged[-1].evidence[1].value_canary == pytest.approx(300.0, rel=0.1)


def test_a_guard_holds_the_mean_of_canary_pods_against_its_limit() -> None:
    guard = {"name": "full", "metric": "memory", "above": 150.0, "windows": 2}
    (one,) = judge_windows([(state(guards=[guard]), b"", [pods("memory", [200.0, 160.0], [100.0])])])
    assert one.guards[0].breach
    assert one.guards[0].value == 180.0


def test_use_is_compared_at_the_load_of_each_arm() -> None:
    metrics = [{"name": "errors", "kind": "errors"}, {"name": "cpu", "kind": "resource", "required": False}]
    rows = {"as load": b"", "more": b""}
    for window in range(25):
        # A canary pod serves three times as many requests as a stable pod, and uses three times as much.
        load = Reading("errors", Availability.ENOUGH, FailureCounts(0, 600, 0, 800))
        for name, use in (("as load", 3.0), ("more", 9.0)):
            cpu = pods("cpu", near(use, 2), near(1.0, 8), measures="load", age_s=3600.0)
            (one,) = judge_windows([(state(window, metrics=metrics), rows[name], [load, cpu])])
            rows[name] = one.monitor or b""
            assert not (one.harmful and name == "as load")
    assert one.harmful


def test_a_row_of_the_release_before_is_read_and_one_without_resources_is_as_it_was() -> None:
    layout, numbers = Layout((0.1, 0.5), ("a", "b"), True), np.array([1.5, -2.0])
    before = pack(layout, numbers)
    head = b'[[0.1, 0.5], ["a", "b"], true]'
    assert before == len(head).to_bytes(4, "little") + head + numbers.tobytes()
    assert resources_in(before) == b""
    packed = pack(layout, numbers, b"pods")
    back, row = unpack(packed)
    assert back == layout
    np.testing.assert_array_equal(row, numbers)
    assert resources_in(packed) == b"pods"
    assert begun(packed)


def test_requests_are_shared_by_all_serving_pods_and_not_only_by_those_that_are_listed() -> None:
    listed = tuple(PodValue(f"p{n}", 1.0 if n < 30 else None, None, None) for n in range(32))
    one = PodValues("load", "s", (PodValue("c", 1.0, None, None),), listed, canary_n=1, stable_n=96)
    assert one.serving_n == (1.0, 90.0)
