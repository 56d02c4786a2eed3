"""Serinus itself: one monitor over all rollouts, all three metrics on, no margins (as the other tools have none).

Twice: as it meets a service for the first time, and with ten past good releases, from which it learns how failures
burst.
"""

from __future__ import annotations

import numpy as np

from analyzers import Margins, Monitor, MonitorConfig, Prior
from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.stream import Stream
from tests.calibration.measuring import Cell, priors

PAST = 10
PAST_SEED = 40_000_000
"""Far above the seeds of all streams."""


def first_release(stream: Stream) -> Scores:
    """Log evidence above the boundary of 1 %, (R, T) in nats; nothing is known of the service."""
    return _scores(stream, None)


def later_release(stream: Stream) -> Scores:
    """The same with ``PAST`` past releases of the same law, drawn for each rollout."""
    rollouts, length = stream.shape
    return _scores(stream, priors(Cell("", stream.law.without_fault(), length, past=PAST), rollouts, PAST_SEED))


def _scores(stream: Stream, prior: list[Prior] | None) -> Scores:
    rollouts, length = stream.shape
    monitor = Monitor(MonitorConfig(planned_windows=length, margins=Margins.none()), rollouts, prior=prior)
    said = [monitor.observe(window) for window in stream.windows]
    return {"all metrics": np.stack([v.log_evidence - v.log_threshold_rollback for v in said], axis=1)}


_DEFAULT = {"as shipped, 1 %": {"all metrics": 0.0}}
_SEES = frozenset({"latency", "tail", "errors", "classes"})
FIRST_RELEASE = Tool("Serinus", first_release, _DEFAULT, _SEES)
LATER_RELEASE = Tool(f"Serinus, {PAST} past releases", later_release, _DEFAULT, _SEES)
