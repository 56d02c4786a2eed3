"""Tracing: off unless asked for, one decision a release, and never in the way."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app.tracing import QUEUE_SPANS, UNTRACED, open_tracer
from service.model.trace import made_traceparent
from service.ring.seen import ANYTHING, About
from service.settings import SettingsError, TracingSettings


def test_without_an_endpoint_nothing_is_traced() -> None:
    assert open_tracer(TracingSettings(), "1") is UNTRACED


def test_with_an_endpoint_and_without_the_extra_the_start_up_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"serinus\[otel\]"):
        open_tracer(TracingSettings(endpoint="http://localhost:4318/v1/traces"), "1")


def releases(n: int, flags: str | None = None) -> list[About]:
    made = [made_traceparent("/ci", f"e-{i}") for i in range(n)]
    return [
        About(rollout=f"r-{i}", traceparent=one if flags is None else one[:-2] + flags) for i, one in enumerate(made)
    ]


def test_all_spans_of_a_release_are_sampled_or_none_whoever_opens_them() -> None:
    sampled = []
    for _ in range(2):  # two replicas
        spans = InMemorySpanExporter()
        tracer = open_tracer(TracingSettings(sample_ratio=0.3), "1", exporter=spans)
        for about in releases(200):
            for name in ("event", "set_weights", "page"):
                with tracer.span(name, about):
                    pass
        tracer.close(5)
        found = spans.get_finished_spans()
        by_release = {span.attributes["serinus.rollout"]: 0 for span in found if span.attributes}
        for span in found:
            assert span.attributes is not None
            by_release[span.attributes["serinus.rollout"]] += 1
        assert set(by_release.values()) == {3}
        sampled.append(set(by_release))
    assert sampled[0] == sampled[1]
    assert 30 < len(sampled[0]) < 90


def test_a_sender_who_samples_gets_our_spans_whatever_our_ratio_is() -> None:
    spans = InMemorySpanExporter()
    tracer = open_tracer(TracingSettings(sample_ratio=0.0), "1", exporter=spans)
    for about in (*releases(5, "01"), *releases(5, "00")):
        with tracer.span("set_weights", about):
            pass
    tracer.close(5)
    assert len(spans.get_finished_spans()) == 5


def test_a_part_of_nothing_leaves_no_span() -> None:
    spans = InMemorySpanExporter()
    tracer = open_tracer(TracingSettings(), "1", exporter=spans)
    with tracer.part("claim"):
        pass
    with tracer.span("windows", ANYTHING), tracer.part("judge"):
        pass
    tracer.close(5)
    assert [span.name for span in spans.get_finished_spans()] == ["judge", "windows"]


class Stuck(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.free.wait(20)
        return SpanExportResult.FAILURE


def test_a_collector_that_hangs_holds_up_neither_the_ring_nor_the_end() -> None:
    stuck = Stuck()
    tracer = open_tracer(TracingSettings(), "1", exporter=stuck)
    for _ in range(3 * QUEUE_SPANS):  # more than the queue holds: this loop would never end if anything waited
        with tracer.span("windows", ANYTHING):
            pass
    tracer.close(0.05)
    stuck.free.set()
