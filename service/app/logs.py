"""Logs to standard output: JSON for machines, coloured lines for people. One place, so that no room sets up its own.

The keys ``ts level event logger trace_id span_id cluster namespace service rollout event_id`` always mean the same and
come first; a key that does not apply is left out. They come from what is being handled (``ring.seen.About``), so one
release can be followed through all rooms by its rollout, its event or its trace.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from service.settings import LogSettings

KEYS = (
    "ts", "level", "event", "logger", "trace_id", "span_id", "cluster", "namespace", "service", "rollout", "event_id",
)  # fmt: skip

_CONTROLS = {
    code: f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Characters that a terminal obeys: controls, line ends, and those that turn the direction of reading."""


def set_up(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every logger's records through structlog to ``stream`` (standard output); ``extra`` fields become keys."""
    out = stream or sys.stdout
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.contextvars.merge_contextvars,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
    ]
    renderers: list[structlog.typing.Processor] = (
        [_in_order, structlog.processors.JSONRenderer(default=str)]
        if settings.format == "json"
        else [_printable, structlog.dev.ConsoleRenderer(colors=out.isatty(), timestamp_key="ts")]
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries' debug lines hold whole statements and answers; only our own are meant by `level: debug`.
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("service").setLevel(level)
    # While a broker is away aiokafka repeats the same line every 100 ms; the service says it once itself.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _in_order(
    _: structlog.typing.WrappedLogger, __: str, given: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {key: given[key] for key in KEYS if key in given} | dict(given)


def _printable(
    _: structlog.typing.WrappedLogger, __: str, given: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Control characters shown, not obeyed: a name from outside cannot colour, move or break a terminal's line."""
    return {
        key: value.translate(_CONTROLS) if isinstance(value, str) and key != "exception" else value
        for key, value in given.items()
    }
