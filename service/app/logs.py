"""Logs to standard output: JSON for machines, coloured lines for people. One place, so that no room sets up its own."""

from __future__ import annotations

import logging
import sys

import structlog

from service.settings import LogSettings


def set_up(settings: LogSettings) -> None:
    """Send every logger's records through structlog; ``extra`` fields become keys."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # While a broker is away aiokafka repeats the same line every 100 ms; the service says it once itself.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
