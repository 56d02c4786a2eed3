"""Serinus itself: one monitor over all rollouts, all three metrics on, no margins (as the other tools have none)."""

from __future__ import annotations

import numpy as np

from analyzers import Margins, Monitor, MonitorConfig
from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.stream import Stream


def scores(stream: Stream) -> Scores:
    """Log evidence above the boundary of 1 %, (R, T) in nats."""
    rollouts, length = stream.shape
    monitor = Monitor(MonitorConfig(planned_windows=length, margins=Margins.none()), rollouts)
    said = [monitor.observe(window) for window in stream.windows]
    return {"all metrics": np.stack([v.log_evidence - v.log_threshold_rollback for v in said], axis=1)}


TOOL = Tool(
    "Serinus",
    scores,
    {"as shipped, 1 %": {"all metrics": 0.0}},
    frozenset({"latency", "tail", "errors", "classes"}),
)
