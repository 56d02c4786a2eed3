"""Tracing: off unless asked for, one decision a release, and never in the way."""

from __future__ import annotations

import gzip
import logging
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app.tracing import QUEUE_SPANS, UNTRACED, _Telling, open_tracer
from service.model.trace import made_traceparent, trace_id_of
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


def test_spans_leave_by_otlp_over_http_with_the_service_and_the_releases_ids() -> None:
    taken: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            taken.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = TracingSettings(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces")
        tracer = open_tracer(settings, "1.2")
        (about,) = releases(1)
        with tracer.span("event", about), tracer.part("commit"):
            pass
        tracer.close(10)
        server.shutdown()
    (resource,) = [one for request in taken for one in request.resource_spans]
    said = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert said == {"service.name": "serinus", "service.version": "1.2"}
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert {span.trace_id.hex() for span in spans.values()} == {trace_id_of(about.traceparent)}
    assert spans["commit"].parent_span_id == spans["event"].span_id


def test_a_collector_that_is_away_is_told_once_and_not_every_few_seconds(caplog: pytest.LogCaptureFixture) -> None:
    results = [SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2

    class Away(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return results.pop(0)

    telling = _Telling(Away(), "http://collector")
    with caplog.at_level(logging.INFO):
        while results:
            telling.export([])
    assert [record.message for record in caplog.records] == [
        "http://collector takes no spans; they are dropped",
        "http://collector takes spans again",
    ]


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
