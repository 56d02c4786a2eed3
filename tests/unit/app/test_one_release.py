"""One release followed from its event to its effects: by one id in the logs, as one trace, and in the metrics."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.analysis.tick import Tick
from service.app import logs
from service.app.metrics import OwnMetrics
from service.app.observed_store import observed
from service.app.tracing import Tracer, open_tracer
from service.dispatch.dispatcher import Dispatcher
from service.events.connection import Connection
from service.events.consumer import EventConsumer
from service.events.publisher import events_of
from service.events.sending import message
from service.model.instruction import Lane
from service.model.names import ServiceKey
from service.model.observation import Availability, FailureCounts, HistogramCounts, Reading, WindowQuery
from service.model.trace import made_traceparent, trace_id_of
from service.ring.door import Door
from service.ring.store import Store
from service.settings import LogSettings, TracingSettings
from service.storage.opening import open_store
from tests.stories import START, catalog
from tests.unit.dispatch.test_dispatcher import Outside

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
GRACE_S = 30.0


class World(Outside):
    """Everything outside, with a metric store."""

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        latency = HistogramCounts((0.1, 0.2), (30, 20, 10), (270, 180, 90))
        one = {
            "latency": Reading("latency", Availability.ENOUGH, latency),
            "errors": Reading("errors", Availability.ENOUGH, FailureCounts(0, 60, 3, 540)),
        }
        return [[one[m] for m in q.metrics] for q in queries]


@dataclass
class Ring:
    """The whole ring on one store, seen."""

    store: Store
    tracer: Tracer
    own: OwnMetrics
    outside: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.store = observed(self.store, self.own, self.outside, grace_s=GRACE_S)
        self.door = Door(self.store, catalog(max_first_weight_percent=20), self.outside)
        ports: dict[str, Any] = {
            "meshes": {"default": self.outside},
            "gates": self.outside,
            "pager": self.outside,
            "bus": self.outside,
        }
        self.dispatcher = Dispatcher(self.store, self.door, self.outside, **ports, seen=self.own)
        self.consumer = EventConsumer(
            Connection("nowhere:9092"),
            topic="cd.events",
            group="g",
            dead_letter_topic="letters",
            producer=None,  # type: ignore[arg-type]
            handle=self.door.events,
            clock=self.outside,
            seen=self.own,
        )

    async def play(self, traceparent: str = "", event_ids: Sequence[str] = ("e-1",)) -> None:
        """The event, what is owed for it, and its first window."""
        records = [record(event_id, traceparent) for event_id in event_ids]
        self.outside.moment = START + timedelta(seconds=2)
        await self.consumer._hand_over(await self.consumer._read(records))
        for lane in (Lane.READINESS, Lane.WEIGHTS, Lane.PAGES, Lane.NOTES, Lane.PUBLISH):
            await self.dispatcher.turn(lane)
        self.outside.moment = START + timedelta(minutes=4)
        tick = Tick(self.store, self.door, self.outside, self.outside, grace_s=GRACE_S, seen=self.own)
        await tick.turn()

    def value(self, name: str, **labels: str) -> float:
        return self.own.registry.get_sample_value(f"serinus_{name}", labels) or 0.0


def record(event_id: str, traceparent: str = "") -> ConsumerRecord[Any, Any]:
    sent = message(
        kind="upgraded", namespace="ml-serving", service=f"s-{event_id}", at=START, version="2", stable_version="1",
        event_id=event_id, source="/ci",
    )  # fmt: skip
    value = json.dumps(json.loads(sent.value) | ({"traceparent": traceparent} if traceparent else {})).encode()
    return ConsumerRecord(
        "cd.events", 0, 0, START.timestamp() * 1000, 0, sent.key, value, None, 0, len(value), sent.headers
    )


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def ring(tmp_path: Path, spans: InMemorySpanExporter) -> AsyncIterator[Ring]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    tracer = open_tracer(TracingSettings(), "1", exporter=spans)
    yield Ring(opened, tracer, OwnMetrics("1", tracer=tracer))
    tracer.close(5)
    await opened.close()


@pytest.fixture
def lines() -> Iterator[Any]:
    """What is logged, line by line."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("service").level)
    stream = io.StringIO()
    logs.set_up(LogSettings(level="debug"), stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("service").setLevel(before[2])


async def test_every_line_of_a_release_carries_its_trace_its_event_and_its_rollout(ring: Ring, lines: Any) -> None:
    await ring.play(GIVEN)
    mine = [line for line in lines() if line.get("trace_id") == trace_id_of(GIVEN)]
    told = [(line["action"], line["event"]) for line in mine if line["action"] in ("event_taken", "tried", "journal")]
    assert [event for action, event in told if action == "tried"] == [
        "set_weights: done", "page: done", "publish: done", "publish: done",
    ]  # fmt: skip
    assert ("event_taken", "event taken in") in told
    assert next(event for action, event in told if action == "journal").startswith("Release 1 -> 2 starts")
    assert len(told) == len(lines())
    assert {line["event_id"] for line in mine} == {"e-1"}
    (rollout,) = {line["rollout"] for line in mine if line["action"] != "event_taken"}
    assert all(line["service"] == "s-e-1" for line in mine if line.get("rollout") == rollout)
    # The id of the fact that led to a row is the id of the write that was owed.
    assert any(line.get("stimulus", "").startswith(f"{rollout}/f") for line in mine)


async def test_an_event_without_a_trace_gets_one_that_follows_from_its_id(ring: Ring, lines: Any) -> None:
    await ring.play()
    assert {line["trace_id"] for line in lines()} == {trace_id_of(made_traceparent("/ci", "e-1"))}


def by_name(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    return next(span for span in spans.get_finished_spans() if span.name == name)


async def test_a_release_is_one_trace_that_continues_its_senders(ring: Ring, spans: InMemorySpanExporter) -> None:
    await ring.play(GIVEN)
    ring.tracer.close(5)
    release = [s for s in spans.get_finished_spans() if f"{s.context.trace_id:032x}" == trace_id_of(GIVEN)]
    assert [s.name for s in release if s.name != "commit"] == ["event", "set_weights", "page", "publish", "publish"]
    event = by_name(spans, "event")
    assert event.parent is not None
    assert f"{event.parent.span_id:016x}" == GIVEN[36:52]
    assert by_name(spans, "commit").parent == event.context
    assert by_name(spans, "set_weights").attributes["serinus.event_id"] == "e-1"  # type: ignore[index]


async def test_without_a_sender_the_event_is_the_root_of_the_releases_trace(
    ring: Ring, spans: InMemorySpanExporter
) -> None:
    await ring.play()
    ring.tracer.close(5)
    event, write = by_name(spans, "event"), by_name(spans, "set_weights")
    assert event.parent is None
    assert write.parent is not None
    assert (write.parent.trace_id, write.parent.span_id) == (event.context.trace_id, event.context.span_id)


async def test_a_chunk_of_windows_is_a_trace_with_its_phases(ring: Ring, spans: InMemorySpanExporter) -> None:
    await ring.play()
    ring.tracer.close(5)
    windows = by_name(spans, "windows")
    assert windows.parent is None
    phases = [s.name for s in spans.get_finished_spans() if s.parent == windows.context]
    assert phases == ["collect", "judge", "commit"]


async def test_events_of_one_batch_keep_their_own_traces_and_lines(ring: Ring, lines: Any) -> None:
    await ring.play(event_ids=("e-1", "e-2", "e-3"))
    taken = {line["event_id"]: line["trace_id"] for line in lines() if line["action"] == "event_taken"}
    assert taken == {e: trace_id_of(made_traceparent("/ci", e)) for e in ("e-1", "e-2", "e-3")}
    for line in lines():
        if "event_id" in line:
            assert line["trace_id"] == taken[line["event_id"]]


async def test_events_of_one_batch_are_each_the_root_of_their_releases_trace(
    ring: Ring, spans: InMemorySpanExporter
) -> None:
    await ring.play(event_ids=("e-1", "e-2", "e-3"))
    ring.tracer.close(5)
    finished = spans.get_finished_spans()
    roots = {s.context.trace_id: s.context.span_id for s in finished if s.name == "event" and s.parent is None}
    assert {f"{trace_id:032x}" for trace_id in roots} == {
        trace_id_of(made_traceparent("/ci", e)) for e in ("e-1", "e-2", "e-3")
    }
    writes = [s for s in finished if s.name == "set_weights"]
    assert len(writes) == 3
    assert all(s.parent is not None and s.parent.span_id == roots[s.context.trace_id] for s in writes)


async def test_decisions_are_published_with_the_senders_trace_and_with_no_made_one(ring: Ring) -> None:
    await ring.play(GIVEN, event_ids=("e-1",))
    await ring.play("", event_ids=("e-2",))
    carried = {order.trigger_id: events_of(order, "/s")[0].get("traceparent") for order in ring.outside.published}
    assert carried == {"e-1": GIVEN, "e-2": None}


async def test_the_four_questions_of_an_operator_have_numbers(ring: Ring) -> None:
    await ring.play()
    assert ring.value("events_total", outcome="taken") == 1
    assert ring.value("event_lag_seconds_sum") == pytest.approx(2.0)
    assert ring.value("window_lag_seconds_count") == 1
    state = (await ring.store.active([ServiceKey(cluster="default", namespace="ml-serving", name="s-e-1")])).popitem()[
        1
    ]
    assert state.windows_from is not None
    ended_s = (START + timedelta(minutes=4) - state.windows_from).total_seconds() - 60
    assert ring.value("window_lag_seconds_sum") == pytest.approx(ended_s - GRACE_S)
    assert ring.value("instructions_total", type="set_weights", outcome="done") == 1
    assert ring.value("decisions_total", decision="continue", mode="enforce") >= 1
    assert all(ring.value("tick_phase_seconds_count", phase=p) == 1 for p in ("claim", "collect", "judge", "commit"))
    assert ring.value("store_seconds_count", call="commit") >= 4
    assert ring.value("store_errors_total", call="commit", reason="unavailable") == 0


async def test_no_label_is_the_name_of_a_rollout_a_service_or_an_event(ring: Ring) -> None:
    await ring.play()
    values = {v for family in ring.own.registry.collect() for s in family.samples for v in s.labels.values()}
    assert not {v for v in values if "e-1" in v or v.startswith("r-")}
