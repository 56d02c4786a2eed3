"""Log lines from a log store that speaks Loki's documented API: what is counted, and what is never taken for zero."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from service.app import doctor
from service.app.clock import SystemClock
from service.lab.loki_api import LokiApi
from service.model.lines import LogSeries, PatternSet
from service.model.names import RolloutId
from service.model.observation import Availability, LineCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.model.target import Target
from service.ring.ports import Refused, Unavailable
from service.sources.loki import LokiSource
from tests.stories import place

SET = PatternSet.model_validate(
    yaml.safe_load((Path(__file__).parents[3] / "config" / "logs" / "tensorflow.yaml").read_text())
)


def preset(**changes: Any) -> MetricsPreset:
    """TensorFlow's patterns, looked for in the window alone unless told otherwise."""
    series = LogSeries.model_validate({"sets": ["tensorflow"], "lookback": 0} | changes)
    return MetricsPreset(name="tf", metrics={"logs": series.with_sets({"tensorflow": SET})})


PRESET = preset()
NOW = 1_000_000.0
DELAY_S = 10.0
MISSING = "Op type not registered '{}' in binary running on pod. Make sure the Op and Kernel are registered."
NONE = LineCounts((), (), (), ())


@pytest.fixture
async def loki() -> AsyncIterator[LokiApi]:
    async with LokiApi() as api:
        yield api


@asynccontextmanager
async def reader(loki: LokiApi, of: MetricsPreset = PRESET, **changes: Any) -> AsyncIterator[LokiSource]:
    given: dict[str, Any] = {"clock": SystemClock(), "timeout_s": 5.0, "delay_s": DELAY_S, "heard_within_s": 86400.0}
    async with aiohttp.ClientSession() as session:
        yield LokiSource(session, loki.url, {"tf": of}, **(given | changes))


def window(end: float = NOW, service: str = "ranker", **changes: Any) -> WindowQuery:
    where = place(
        metrics="tf",
        stable_log_labels={"app": service, "version": "v1"},
        canary_log_labels={"app": service, "version": "v2"},
        **changes,
    )
    return WindowQuery(RolloutId(f"r-{service}"), "default", where, ("logs",), end - 60, end)


async def read(loki: LokiApi, *queries: WindowQuery, **changes: Any) -> list[Reading]:
    async with reader(loki, **changes) as source:
        return [reading for readings in await source.collect(queries or (window(),)) for reading in readings]


def alive(loki: LokiApi, service: str = "ranker", at_s: float = NOW - 3000) -> None:
    """Both arms wrote something once."""
    for version in ("v1", "v2"):
        loki.write("Running gRPC ModelServer at 0.0.0.0:8500", at_s=at_s, app=service, version=version)


async def test_a_missing_op_on_the_canary_is_counted_with_its_name_and_a_line_to_read(loki: LokiApi) -> None:
    alive(loki)
    loki.write(MISSING.format("FancyOp"), at_s=NOW - 30, app="ranker", version="v2", pod="a")
    loki.write(MISSING.format("FancyOp"), at_s=NOW - 20, app="ranker", version="v2", pod="b")
    (reading,) = await read(loki)
    assert reading.availability is Availability.ENOUGH
    assert reading.counts == LineCounts(("missing-opkernel FancyOp",), (2,), (0,), (0,))
    assert reading.detail.startswith('missing-opkernel FancyOp: 2 of the canary, none of stable for 1 h; "Op type not')


async def test_a_line_is_not_shown_where_the_preset_forbids_it(loki: LokiApi) -> None:
    alive(loki)
    loki.write(MISSING.format("FancyOp") + " secret", at_s=NOW - 30, app="ranker", version="v2")
    (reading,) = await read(loki, of=preset(quoted=False))
    assert reading.detail == "missing-opkernel FancyOp: 1 of the canary, none of stable for 1 h"
    assert not any(path.endswith("query_range") for path, _ in loki.asked)


async def test_the_same_line_of_stable_is_known_in_the_window_and_before_it(loki: LokiApi) -> None:
    alive(loki)
    for version, op, at_s in (
        ("v2", "A", -30),
        ("v2", "B", -30),
        ("v2", "C", -30),
        ("v1", "A", -20),
        ("v1", "B", -1800),
    ):
        loki.write(MISSING.format(op), at_s=NOW + at_s, app="ranker", version=version)
    loki.write(MISSING.format("C"), at_s=NOW - 4000, app="ranker", version="v1")  # longer ago than is looked
    (reading,) = await read(loki)
    assert isinstance(reading.counts, LineCounts)
    found = {
        name: row for name, *row in zip(*(getattr(reading.counts, f) for f in reading.counts.__slots__), strict=True)
    }
    assert found == {
        "missing-opkernel A": [1, 1, 0],
        "missing-opkernel B": [1, 0, 1],
        "missing-opkernel C": [1, 0, 0],
    }
    assert dict(zip(reading.counts.names, reading.counts.only_on_canary(), strict=True))["missing-opkernel C"] == 1
    assert sum(reading.counts.only_on_canary()) == 1


async def test_what_was_written_before_the_first_window_counts_for_a_while(loki: LokiApi) -> None:
    alive(loki)
    loki.write(MISSING.format("A"), at_s=NOW - 300, app="ranker", version="v2")
    loki.write(MISSING.format("B"), at_s=NOW - 400, app="ranker", version="v2")
    (reading,) = await read(loki)
    assert reading.counts == NONE
    (reading,) = await read(loki, of=preset(lookback="5m"))
    assert isinstance(reading.counts, LineCounts)
    assert reading.counts.names == ("missing-opkernel A",)


async def test_a_healthy_store_without_such_lines_is_zero(loki: LokiApi) -> None:
    alive(loki, at_s=NOW - 30)
    loki.write(MISSING.format("A"), at_s=NOW - 30, app="ranker", version="v1")
    (reading,) = await read(loki)
    assert (reading.availability, reading.counts) == (Availability.ENOUGH, NONE)


async def test_an_arm_that_wrote_nothing_in_the_window_but_before_is_zero_too(loki: LokiApi) -> None:
    alive(loki, at_s=NOW - 20_000)
    (reading,) = await read(loki)
    assert (reading.availability, reading.counts) == (Availability.ENOUGH, NONE)


@pytest.mark.parametrize(("version", "arm"), [("v1", "stable"), ("v2", "canary")])
async def test_an_arm_that_was_never_heard_of_is_no_zero(loki: LokiApi, version: str, arm: str) -> None:
    other = {"v1": "v2", "v2": "v1"}[version]
    loki.write(MISSING.format("A"), at_s=NOW - 30, app="ranker", version=other)
    loki.write("an old line", at_s=NOW - 90_000, app="ranker", version=version)
    (reading,) = await read(loki)
    assert (reading.availability, reading.counts) == (Availability.NO_SERIES, None)
    assert f"no line of the {arm}" in reading.detail
    assert "for 24 h" in reading.detail


async def test_a_store_that_is_away_is_away_and_one_that_warns_is_degraded(loki: LokiApi) -> None:
    alive(loki, at_s=NOW - 30)
    loki.warnings = ["1 of 3 ingesters did not answer"]
    (reading,) = await read(loki)
    assert (reading.availability, reading.counts) == (Availability.DEGRADED, None)
    loki.away = True
    (reading,) = await read(loki)
    assert (reading.availability, reading.counts) == (Availability.AWAY, None)
    assert "the log store" in reading.detail
    async with reader(loki) as source:
        with pytest.raises(Unavailable, match="log store"):
            await source.labels()


async def test_a_window_is_counted_further_back_by_the_delay_and_no_line_twice(loki: LokiApi) -> None:
    alive(loki)
    loki.write(MISSING.format("A"), at_s=NOW - 5, app="ranker", version="v2")
    loki.write(MISSING.format("B"), at_s=NOW - DELAY_S, app="ranker", version="v2")
    first, second = await read(loki, window(NOW), window(NOW + 60))
    assert isinstance(first.counts, LineCounts)
    assert isinstance(second.counts, LineCounts)
    assert first.counts.names == ("missing-opkernel B",)
    assert second.counts.names == ("missing-opkernel A",)


async def test_the_tenant_goes_along_and_without_it_the_store_refuses(loki: LokiApi) -> None:
    alive(loki, at_s=NOW - 30)
    loki.tenant = "ml"
    (reading,) = await read(loki, tenant="ml")
    assert reading.counts == NONE
    async with reader(loki, tenant="ml") as source:
        assert await source.labels() == {"app", "version"}
    (reading,) = await read(loki)
    assert reading.availability is Availability.AWAY
    assert "refuses the credentials (401)" in reading.detail
    async with reader(loki) as source:
        with pytest.raises(Refused, match="tenant"):
            await source.labels()


async def test_the_doctor_says_which_labels_no_stream_has(loki: LokiApi) -> None:
    loki.write("up", namespace="ml-serving", pod="ranker-0", app="ranker")
    given: dict[str, Any] = {
        "namespace": "ml-serving",
        "service": "*",
        "route": {"virtual_service": "r", "stable": {"host": "h"}, "canary": {"host": "h"}},
        "labels": {"job": "serving"},
        "stable_labels": {"version": "v1"},
        "canary_labels": {"version": "v2"},
        "policy": "p",
    }
    of_metrics = Target.model_validate(given)
    logs = {"labels": {"namespace": "ml-serving"}, "stable_labels": {"pod": "a"}, "canary_labels": {"pod": "b"}}
    async with reader(loki) as source:
        assert await doctor.streams_of(source, []) == "answers; its streams have 3 labels"
        assert await doctor.streams_of(source, [Target.model_validate(given | {"logs": logs})])
        with pytest.raises(Refused, match=r"no stream has the label job, version; .*there are: app, namespace, pod"):
            await doctor.streams_of(source, [of_metrics])
        loki.away = True
        with pytest.raises(Unavailable):
            await doctor.streams_of(source, [])


async def test_windows_of_many_services_share_two_questions(loki: LokiApi) -> None:
    services = [f"s{i}" for i in range(25)]
    for service in services:
        alive(loki, service, at_s=NOW - 30)
    loki.write(MISSING.format("A"), at_s=NOW - 30, app="s7", version="v2")
    readings = await read(loki, *(window(service=service) for service in services))
    # 25 services have 50 arms. One canary has a line, which is asked about: three times by kind, once for the line.
    assert len(loki.asked) == 2 + 4
    assert [reading.counts != NONE for reading in readings] == [service == "s7" for service in services]


async def test_outside_names_stay_data(loki: LokiApi) -> None:
    evil = 'x"} |~ ".*'
    loki.write("fine", at_s=NOW - 30, app=evil, version="v1")
    loki.write("fine", at_s=NOW - 30, app=evil, version="v2")
    loki.write(MISSING.format("A"), at_s=NOW - 30, app="x", version="v2")
    readings = await read(loki, window(service=evil), window(service="a\nb"), window(service="\x00"))
    assert readings[0].counts == NONE
    assert [reading.availability for reading in readings[1:]] == [Availability.AWAY] * 2
    assert all("control characters" in reading.detail for reading in readings[1:])


async def test_ops_named_by_a_stranger_in_masses_are_counted_together(loki: LokiApi) -> None:
    alive(loki)
    for i in range(600):
        loki.write(MISSING.format(f"Op{i}"), at_s=NOW - 30, app="ranker", version="v2")
    loki.write(MISSING.format("Op1"), at_s=NOW - 30, app="ranker", version="v1")
    (reading,) = await read(loki)
    # The store refuses more than 500 series, so neither arm is told apart: what stable has is not the canary's alone.
    assert reading.counts == LineCounts(("(others)",), (600,), (1,), (0,))


async def test_what_is_shown_of_a_line_is_plain_text(loki: LokiApi) -> None:
    alive(loki)
    loki.write("\x1b[31mFailed to start server. Error:\u202e" + "x" * 5000, at_s=NOW - 30, app="ranker", version="v2")
    (reading,) = await read(loki)
    assert reading.detail.isprintable()
    assert len(reading.detail) <= 300


async def test_own_patterns_come_before_the_sets_and_a_container_narrows(loki: LokiApi) -> None:
    own = {"name": "panic", "any_of": [r"(?i)panic in \"(?P<subject>[a-z\\]+)\""]}
    for version in ("v1", "v2"):
        loki.write("up", at_s=NOW - 30, app="ranker", version=version, container="serving")
    loki.write('PANIC in "a\\b"', at_s=NOW - 30, app="ranker", version="v2", container="serving")
    loki.write('PANIC in "proxy"', at_s=NOW - 30, app="ranker", version="v2", container="istio-proxy")
    (reading,) = await read(loki, of=preset(patterns=[own], container="serving"))
    assert reading.counts == LineCounts(("panic a\\b",), (1,), (0,), (0,))


async def test_a_question_that_a_store_does_not_take_blinds_only_its_own_rollout(loki: LokiApi) -> None:
    alive(loki, at_s=NOW - 30)
    bad = window()
    bad = WindowQuery(
        bad.rollout,
        bad.cluster,
        place(
            metrics="tf", stable_log_labels={"no label": "a", "x": "1"}, canary_log_labels={"no label": "a", "x": "2"}
        ),
        bad.metrics,
        bad.start_s,
        bad.end_s,
    )
    good, refused = await read(loki, window(), bad)
    assert good.counts == NONE
    assert refused.counts is None
    assert "no label name" in refused.detail
