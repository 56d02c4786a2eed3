"""Judging many rollouts at once: each gets what it would get alone."""

from __future__ import annotations

import numpy as np
import pytest

from service.analysis.judging import Judged, judge_windows, learned
from service.analysis.rows import EMPTY, MAX_CLASSES, OTHER, Layout, layout_of, pack, unpack
from service.model.observation import (
    ArmValues,
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    LineCounts,
    Reading,
)
from service.model.rollout import RolloutState
from service.model.stimulus import GuardReading
from tests.stories import Story, policy

EDGES = (0.1, 0.2, 0.5)


def state(**changes: object) -> RolloutState:
    return Story(policy=policy(**changes)).progressing().state


def latency(canary: tuple[int, ...], stable: tuple[int, ...], edges: tuple[float, ...] = EDGES) -> Reading:
    return Reading("latency", Availability.ENOUGH, HistogramCounts(edges, canary, stable))


def errors(x: int, n: int, y: int, m: int) -> Reading:
    return Reading("errors", Availability.ENOUGH, FailureCounts(x, n, y, m))


GOOD = (latency((30, 20, 8, 2), (270, 180, 72, 18)), errors(0, 60, 3, 540))
BAD = (latency((5, 10, 25, 20), (270, 180, 72, 18)), errors(20, 60, 3, 540))


def judge(states: list[RolloutState], readings: list[tuple[Reading, ...]], packed: list[bytes]) -> list[Judged]:
    return judge_windows(list(zip(states, packed, readings, strict=True)))


def test_a_batch_gives_each_rollout_what_it_gets_alone() -> None:
    s = state()
    rows = [b"", b"", b""]
    for _ in range(4):
        together = judge([s, s, s], [GOOD, BAD, GOOD], rows)
        alone = judge([s], [BAD], [rows[1]])[0]
        assert together[1] == alone
        rows = [one.monitor or b"" for one in together]
    assert together[1].harmful
    assert not together[0].harmful


def test_rollouts_of_different_layouts_share_a_tick() -> None:
    s = state()
    other = (latency((30, 30), (270, 270), edges=(1.0,)), GOOD[1])
    assert [len(j.evidence) for j in judge([s, s], [GOOD, other], [b"", b""])] == [2, 2]


def test_nothing_is_compared_until_every_required_metric_has_shown_itself() -> None:
    s = state()
    blind = Reading("errors", Availability.NO_SERIES, None, "none")
    (one,) = judge([s], [(GOOD[0], blind)], [b""])
    assert one.monitor is None
    assert one.evidence[1].availability is Availability.NO_SERIES
    (two,) = judge([s], [GOOD], [b""])
    assert two.monitor is not None


def test_another_share_than_the_mesh_holds_is_noted_and_is_no_evidence() -> None:
    s = state()
    asked = s.weight_seen
    assert asked is not None
    n = round(600 * asked / 100)
    as_asked = (errors(0, n, 3, 600 - n), latency((n, 0, 0, 0), (600 - n, 0, 0, 0)))
    double = (errors(0, 3 * n, 3, 600 - 3 * n), latency((3 * n, 0, 0, 0), (600 - 3 * n, 0, 0, 0)))
    rows, other = [b"", b""], s.model_copy(update={"weight_seen": None})
    for _ in range(8):
        one, two, unknown = judge([s, s, other], [as_asked, double, double], [*rows, rows[1]])
        rows = [one.monitor or b"", two.monitor or b""]
    assert not any("second route" in note for note in one.notes)
    assert any("second route" in note for note in two.notes)
    assert not two.harmful
    assert any("one latency bucket" in note for note in one.notes)
    assert unknown.log_evidence == two.log_evidence


def test_a_blind_window_leaves_the_evidence_as_it_was() -> None:
    s = state()
    (one,) = judge([s], [GOOD], [b""])
    away = tuple(Reading(m, Availability.AWAY, None, "away") for m in ("latency", "errors"))
    (two,) = judge([s], [away], [one.monitor or b""])
    assert two.log_evidence == one.log_evidence
    assert {e.availability for e in two.evidence} == {Availability.AWAY}
    assert (two.n_canary, two.n_stable) == (0, 0)


def test_buckets_that_change_are_said_and_not_added() -> None:
    s = state()
    (one,) = judge([s], [GOOD], [b""])
    changed = (latency((30, 30), (270, 270), edges=(1.0,)), GOOD[1])
    (two,) = judge([s], [changed], [one.monitor or b""])
    assert two.evidence[0].availability is Availability.NO_SERIES
    assert "buckets changed" in two.evidence[0].detail


def test_classes_that_appear_later_are_counted_as_other() -> None:
    metrics = [{"name": "predictions", "kind": "predictions"}]
    s = state(metrics=metrics, guards=[])

    def read(names: tuple[str, ...], canary: tuple[int, ...], stable: tuple[int, ...]) -> tuple[Reading, ...]:
        return (Reading("predictions", Availability.ENOUGH, CategoryCounts(names, canary, stable)),)

    (one,) = judge([s], [read(("a", "b"), (30, 30), (270, 270))], [b""])
    assert unpack(one.monitor or b"")[0].classes == ("a", "b", OTHER)
    row = one.monitor or b""
    for _ in range(6):
        (two,) = judge([s], [read(("a", "b", "new"), (20, 20, 60), (270, 270, 0))], [row])
        row = two.monitor or b""
    assert two.harmful


def test_each_output_of_a_model_is_a_metric_with_evidence_of_its_own() -> None:
    metrics = [{"name": f"predictions-{name}", "kind": "predictions"} for name in ("label", "topic")]
    s = state(metrics=metrics, guards=[])

    def read(canary: tuple[int, ...]) -> tuple[Reading, ...]:
        return (
            Reading("predictions-topic", Availability.ENOUGH, CategoryCounts(("x", "y"), (30, 30), (270, 270))),
            Reading("predictions-label", Availability.ENOUGH, CategoryCounts(("a", "b"), canary, (270, 270))),
        )

    row = b""
    for _ in range(12):
        (one,) = judge([s], [read((10, 50))], [row])
        row = one.monitor or b""
    layout, _ = unpack(row)
    assert layout.by_output == (("predictions-label", ("a", "b", OTHER)), ("predictions-topic", ("x", "y", OTHER)))
    label, topic = one.evidence
    assert one.harmful
    assert (label.log_e or 0) > 4.6 > (topic.log_e or 0)
    assert (label.n_canary, topic.n_canary) == (12 * 60, 12 * 60)


def test_of_more_classes_than_are_told_apart_the_most_frequent_ones_are() -> None:
    names = tuple(f"c{n:04d}" for n in range(1000))
    canary = tuple(50 if n == 999 else 1 for n in range(1000))
    read = {"predictions": Reading("predictions", Availability.ENOUGH, CategoryCounts(names, canary, (9,) * 1000))}
    layout = layout_of(read, frozenset({"predictions"}), frozenset({"predictions"}))
    assert layout.classes is not None
    assert len(layout.classes) == MAX_CLASSES + 1
    assert layout.classes[-2:] == ("c0999", OTHER)


def test_at_all_traffic_the_comparison_stands_still_and_guards_watch() -> None:
    s = state().model_copy(update={"weight_asked": 100})
    (one,) = judge([s], [(GOOD[0], errors(30, 600, 0, 0))], [b""])
    assert one.monitor is None
    assert one.guards[0].breach is True


def test_guards_cannot_be_judged_on_too_few_requests_or_none() -> None:
    guards = [{"name": "g", "metric": "errors", "above": 0.01, "windows": 1, "min_requests": 20}]
    s = state(guards=guards)
    assert judge([s], [(GOOD[0], errors(5, 19, 0, 100))], [b""])[0].guards[0].breach is None
    assert judge([s], [(GOOD[0], errors(5, 20, 0, 100))], [b""])[0].guards[0].breach is True
    away = Reading("errors", Availability.AWAY, None, "away")
    assert judge([s], [(GOOD[0], away)], [b""])[0].guards[0].breach is None


def test_a_custom_value_is_judged_by_its_guard_absolutely_or_against_stable() -> None:
    metrics = [*policy().model_dump(by_alias=True)["metrics"], {"name": "gpu", "kind": "value", "required": False}]
    guards = [
        {"name": "high", "metric": "gpu", "above": 90},
        {"name": "low", "metric": "gpu", "below": 10},
        {"name": "twice", "metric": "gpu", "times_stable_above": 2},
    ]
    s = state(metrics=metrics, guards=guards)
    for canary, stable, breaches in (
        (95.0, 80.0, [True, False, False]),
        (5.0, 4.0, [False, True, False]),
        (50.0, 20.0, [False, False, True]),
        (50.0, None, [False, False, None]),
    ):
        value = Reading("gpu", Availability.ENOUGH, ArmValues(canary, stable))
        (one,) = judge([s], [(*GOOD, value)], [b""])
        assert [g.breach for g in one.guards] == breaches


LINES = {"name": "logs", "kind": "value", "required": False}
ALONE = {"name": "new-lines", "metric": "logs", "only_on_canary": True, "windows": 1, "on_breach": "rollback"}


@pytest.mark.parametrize(
    ("counts", "breach", "value"),
    [
        (LineCounts((), (), (), ()), False, 0.0),
        (LineCounts(("op A",), (1,), (0,), (0,)), True, 1.0),
        (LineCounts(("op A",), (9,), (1,), (0,)), False, 0.0),
        (LineCounts(("op A",), (9,), (0,), (1,)), False, 0.0),
        (LineCounts(("op A", "op B"), (9, 2), (5, 0), (0, 0)), True, 2.0),
        (ArmValues(1.0, 0.0), True, 1.0),
        (ArmValues(1.0, 1.0), False, 1.0),
        (ArmValues(0.0, 0.0), False, 0.0),
        (ArmValues(1.0, None), None, None),
    ],
)
def test_what_only_the_canary_has_is_a_breach_and_what_both_have_is_none(
    counts: LineCounts | ArmValues, breach: bool | None, value: float | None
) -> None:
    s = state(metrics=[*policy().model_dump(by_alias=True)["metrics"], LINES], guards=[ALONE])
    (one,) = judge([s], [(*GOOD, Reading("logs", Availability.ENOUGH, counts, "said"))], [b""])
    assert one.guards == (GuardReading(guard="new-lines", breach=breach, value=value),)
    assert one.n_canary == 60  # lines are no requests
    for unknown in (Availability.NO_SERIES, Availability.AWAY, Availability.DEGRADED):
        (one,) = judge([s], [(*GOOD, Reading("logs", unknown, None, "said"))], [b""])
        assert one.guards[0].breach is None


def test_lines_can_be_limited_by_number_too() -> None:
    guards = [
        {"name": "many", "metric": "logs", "above": 10},
        {"name": "more", "metric": "logs", "times_stable_above": 2},
    ]
    s = state(metrics=[*policy().model_dump(by_alias=True)["metrics"], LINES], guards=guards)
    counts = LineCounts(("a", "b"), (8, 5), (4, 2), (100, 100))
    (one,) = judge([s], [(*GOOD, Reading("logs", Availability.ENOUGH, counts))], [b""])
    assert [guard.breach for guard in one.guards] == [True, True]
    assert (one.evidence[2].value_canary, one.evidence[2].value_stable) == (13.0, 6.0)


def test_a_row_that_cannot_be_continued_blinds_its_rollout_and_no_other() -> None:
    s = state()
    (one,) = judge([s], [GOOD], [b""])
    layout, row = unpack(one.monitor or b"")
    assert row is not None
    broken = pack(layout, row[:-3])
    good, bad = judge([s, s], [GOOD, GOOD], [b"", broken])
    assert {e.availability for e in good.evidence} == {Availability.ENOUGH}
    assert {e.availability for e in bad.evidence} == {Availability.NO_SERIES}
    assert "cannot be compared" in bad.evidence[0].detail
    assert bad.monitor is None


def test_a_row_survives_packing() -> None:
    layout = Layout((0.1, 0.2), ("a", OTHER), True)
    numbers = np.array([1.0, -2.5, 1e200])
    back, row = unpack(pack(layout, numbers))
    assert back == layout
    assert row is not None
    np.testing.assert_array_equal(row, numbers)
    assert unpack(b"") == (EMPTY, None)


def test_a_service_whose_past_releases_burst_is_judged_by_that() -> None:
    s = state()
    quiet, burst, of_stable = errors(0, 60, 1, 540), errors(4, 60, 1, 540), errors(0, 60, 20, 540)
    rows = []
    for _ in range(10):
        row = b""
        for t in range(30):
            (one,) = judge([s], [(GOOD[0], of_stable if t % 10 == 3 else quiet)], [row])
            row = one.monitor or b""
        rows.append(row)
    evidence = {}
    for name, past in (("first", {}), ("tenth", {s.service: rows})):
        row = b""
        for reading in (quiet, burst):
            (one,) = judge_windows([(s, row, (GOOD[0], reading))], past)
            row = one.monitor or b""
        evidence[name] = one.evidence[1].log_e or 0.0
    assert evidence["tenth"] < evidence["first"] - 0.2
    assert learned(rows).rollouts == 10


def test_past_rows_that_cannot_be_read_are_left_out() -> None:
    (one,) = judge([state()], [GOOD], [b""])
    assert one.monitor is not None
    layout, row = unpack(one.monitor)
    assert row is not None
    other_version = pack(layout, row + 1)
    assert learned([other_version, b"", one.monitor]).rollouts == 1
    assert learned([]).rollouts == 0


def test_a_row_or_a_count_that_cannot_be_read_blinds_its_own_rollout_alone() -> None:
    s = state()
    (before,) = judge([s], [GOOD], [b""])
    assert before.monitor is not None
    layout, row = unpack(before.monitor)
    assert row is not None
    row[0] += 1
    broken = {"other version": pack(layout, row), "cut short": before.monitor[:-3]}
    for packed in broken.values():
        bad, good = judge([s, s], [GOOD, GOOD], [packed, before.monitor])
        assert all(one.availability is Availability.NO_SERIES for one in bad.evidence)
        assert bad.monitor is None
        assert good == judge([s], [GOOD], [before.monitor])[0]
    huge = (GOOD[0], errors(0, 60, 3, 10**19))
    bad, good = judge([s, s], [huge, GOOD], [before.monitor, before.monitor])
    assert (bad.monitor, good.harmful) == (None, False)
    assert good.monitor is not None
