"""Each metric goes to the reader of its kind, and no reader holds up another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.model.names import RolloutId
from service.model.observation import ArmValues, Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.sources.routed import RoutedSource
from tests.stories import place

PRESET = MetricsPreset.model_validate(
    {
        "name": "mixed",
        "metrics": {
            "latency": {"kind": "latency", "buckets": "latency_bucket"},
            "errors": {"kind": "errors", "requests": "requests_total", "failed": [{"code": "5.."}]},
            "load": {"kind": "value", "promql": "sum(load{$matchers})"},
        },
    }
)


class _Reader:
    """Gives every metric its own name, after a while or never."""

    def __init__(self, name: str, *, hangs: bool = False, raises: Exception | None = None) -> None:
        self.name = name
        self.asked: list[list[tuple[str, tuple[str, ...]]]] = []
        self._hangs = hangs
        self._raises = raises

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        self.asked.append([(str(query.rollout), query.metrics) for query in queries])
        if self._raises is not None:
            raise self._raises
        if self._hangs:
            await asyncio.Event().wait()
        return [
            [
                Reading(m, Availability.ENOUGH, ArmValues(1.0, 1.0), f"{self.name} of {query.rollout}")
                for m in query.metrics
            ]
            for query in queries
        ]


def _query(rollout: str, *metrics: str) -> WindowQuery:
    where = place().model_copy(update={"metrics": "mixed"})
    return WindowQuery(RolloutId(rollout), "local", where, metrics, 0.0, 60.0)


def _said(readings: Sequence[Sequence[Reading]]) -> list[list[tuple[str, str]]]:
    return [[(one.metric, one.detail) for one in window] for window in readings]


async def test_readings_come_back_in_the_order_of_each_windows_metrics() -> None:
    store, values, errors = _Reader("store"), _Reader("values"), _Reader("errors")
    source = RoutedSource({"mixed": PRESET}, store, {"value": values, "errors": errors}, deadline_s=1.0)
    found = await source.collect(
        [_query("r-a", "load", "latency", "errors"), _query("r-b", "errors", "load"), _query("r-c")]
    )
    assert _said(found) == [
        [("load", "values of r-a"), ("latency", "store of r-a"), ("errors", "errors of r-a")],
        [("errors", "errors of r-b"), ("load", "values of r-b")],
        [],
    ]


async def test_each_reader_is_asked_once_for_all_windows_and_only_for_what_is_its_own() -> None:
    store, values = _Reader("store"), _Reader("values")
    source = RoutedSource({"mixed": PRESET}, store, {"value": values}, deadline_s=1.0)
    await source.collect([_query("r-a", "load", "latency", "errors"), _query("r-b", "errors")])
    assert store.asked == [[("r-a", ("latency", "errors")), ("r-b", ("errors",))]]
    assert values.asked == [[("r-a", ("load",))]]


async def test_a_reader_that_hangs_is_away_with_a_reason_and_the_others_are_there() -> None:
    store, values = _Reader("store"), _Reader("values", hangs=True)
    source = RoutedSource({"mixed": PRESET}, store, {"value": values}, deadline_s=0.01)
    [[load, latency]] = await source.collect([_query("r-a", "load", "latency")])
    assert latency.availability is Availability.ENOUGH
    assert (load.availability, load.counts) == (Availability.AWAY, None)
    assert load.detail == "the reader of value gave nothing within 0.01 s, the time for one collection"


async def test_a_metric_that_the_preset_lacks_goes_to_the_store_which_says_so() -> None:
    store, values = _Reader("store"), _Reader("values")
    source = RoutedSource({"mixed": PRESET}, store, {"value": values}, deadline_s=1.0)
    [[reading]] = await source.collect([_query("r-a", "queue")])
    assert reading.detail == "store of r-a"


async def test_what_nobody_foresaw_in_a_reader_is_raised_so_that_the_tick_can_find_the_rollout() -> None:
    source = RoutedSource(
        {"mixed": PRESET}, _Reader("store"), {"value": _Reader("v", raises=ZeroDivisionError())}, deadline_s=1.0
    )
    with pytest.raises(ExceptionGroup) as raised:
        await source.collect([_query("r-a", "load", "latency")])
    assert raised.group_contains(ZeroDivisionError)
