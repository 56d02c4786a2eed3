"""Traces by OpenTelemetry, where they are switched on; without the extra ``otel`` this module imports all the same.

A release is one trace: its event is the root (or continues the sender's trace), and everything that was owed because
of it carries the same traceparent. Chunks of windows are of many releases and have traces of their own. Spans leave in
batches by a thread with a bounded queue: what does not fit is dropped, and the ring never waits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, cast

from structlog.contextvars import bound_contextvars

from service.model.trace import is_made, trace_id_of
from service.ring.seen import ANYTHING, About
from service.settings import SettingsError, TracingSettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger(__name__)

QUEUE_SPANS = 4096
BATCH_SPANS = 512
EXPORT_S = 5.0
"""How long one export may take; what the collector has not taken by then is dropped."""

_root_ids: ContextVar[tuple[int, int] | None] = ContextVar("root_ids", default=None)
"""(trace id, span id) that the next root span gets."""


class Tracer(Protocol):
    """Opens spans."""

    def span(self, name: str, about: About) -> AbstractContextManager[None]:
        """A span that is the current one inside; a child of the current span, or of the release that it is about."""

    def part(self, name: str) -> AbstractContextManager[None]:
        """A child of the current span; nothing where there is none, so that idle looks leave no traces."""

    def close(self, within_s: float) -> None:
        """Send what is left, for at most so long."""


class Untraced:
    """No traces. Implements ``Tracer``."""

    def span(self, name: str, about: About) -> AbstractContextManager[None]:
        """See ``Tracer.span``."""
        return nullcontext()

    def part(self, name: str) -> AbstractContextManager[None]:
        """See ``Tracer.part``."""
        return nullcontext()

    def close(self, within_s: float) -> None:
        """See ``Tracer.close``."""


UNTRACED: Tracer = Untraced()


def open_tracer(settings: TracingSettings, version: str, exporter: SpanExporter | None = None) -> Tracer:
    """The tracer that the settings ask for. ``exporter`` takes the place of OTLP over HTTP.

    Raises SettingsError where tracing is switched on and the extra is not installed.
    """
    if not settings.endpoint and exporter is None:
        return UNTRACED
    try:
        return _Otel(settings, version, exporter)
    except ImportError as error:
        raise SettingsError(
            f"tracing.endpoint is set, but {error.name} is missing: pip install 'serinus[otel]'"
        ) from error


class _Telling:
    """An exporter that says once that its collector takes no spans, and once that it does again; the library says it
    several times every few seconds."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._exporter = exporter
        self._where = where
        self._fails = False
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        fails = result.name != "SUCCESS"
        if fails and not self._fails:
            logger.warning("%s takes no spans; they are dropped", self._where, extra={"action": "spans_dropped"})
        elif self._fails and not fails:
            logger.info("%s takes spans again", self._where, extra={"action": "spans_taken"})
        self._fails = fails
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Otel:
    """Implements ``Tracer``."""

    def __init__(self, settings: TracingSettings, version: str, exporter: SpanExporter | None) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased

        class Ids(RandomIdGenerator):
            def generate_trace_id(self) -> int:
                given = _root_ids.get()
                return given[0] if given else super().generate_trace_id()

            def generate_span_id(self) -> int:
                given = _root_ids.get()
                return given[1] if given else super().generate_span_id()

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=settings.endpoint, timeout=EXPORT_S)
        # By the trace id alone, every replica decides the same for all spans of a release; a sender who samples its
        # trace gets ours as well.
        ours = TraceIdRatioBased(settings.sample_ratio)
        self._provider = TracerProvider(
            sampler=ParentBased(ours, remote_parent_sampled=ALWAYS_ON, remote_parent_not_sampled=ours),
            resource=Resource({"service.name": "serinus", "service.version": version}),
            id_generator=Ids(),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                cast("SpanExporter", _Telling(exporter, settings.endpoint or "the exporter")),
                max_queue_size=QUEUE_SPANS,
                max_export_batch_size=BATCH_SPANS,
                schedule_delay_millis=2_000,
                export_timeout_millis=EXPORT_S * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("serinus", version)
        self._trace = trace

    @contextmanager
    def span(self, name: str, about: About) -> Iterator[None]:
        """See ``Tracer.span``."""
        attributes = {f"serinus.{key}": value for key, value in about.keys().items() if key != "trace_id"}
        parent, ids = self._parent(name, about)
        given = _root_ids.set(ids)
        try:
            span = self._tracer.start_span(name, context=parent, attributes=attributes)
        finally:
            _root_ids.reset(given)
        context = span.get_span_context()
        with (
            self._trace.use_span(span, end_on_exit=True),
            bound_contextvars(trace_id=f"{context.trace_id:032x}", span_id=f"{context.span_id:016x}"),
        ):
            yield

    def part(self, name: str) -> AbstractContextManager[None]:
        """See ``Tracer.part``."""
        return self.span(name, ANYTHING) if self._trace.get_current_span().is_recording() else nullcontext()

    def _parent(self, name: str, about: About) -> tuple[Context | None, tuple[int, int] | None]:
        """The context to start in (None: the current one), and the ids of a root."""
        if not about.traceparent:
            return None, None
        trace_id, span_id = int(trace_id_of(about.traceparent), 16), int(about.traceparent[36:52], 16)
        if self._trace.get_current_span().get_span_context().trace_id == trace_id:
            return None, None
        if name == "event" and is_made(about.traceparent):
            return self._trace.set_span_in_context(self._trace.INVALID_SPAN), (trace_id, span_id)
        flags = self._trace.TraceFlags(int(about.traceparent[53:], 16))
        remote = self._trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(remote)), None

    def close(self, within_s: float) -> None:
        """See ``Tracer.close``. A collector that is away must not hold up the end, so a thread of its own tries."""
        flushing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flushing.start()
        flushing.join(within_s)
        if flushing.is_alive():
            logger.warning("the last spans were not sent within %s s", within_s, extra={"action": "spans_lost"})
