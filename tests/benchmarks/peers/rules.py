"""Rules on the canary alone: a success rate, a p99, and a count of bad checks. No statistics, no control arm.

Flagger (built-in metrics): each minute success rate below 99 % or p99 above 500 ms is one failed check; the count is
never reset by a good check, and a missing value is a failed check; rollback at `threshold` (1; the docs' examples use
5). Argo Rollouts (the docs' example): success rate below 95 % in one measurement, failureLimit 0.
"""

from __future__ import annotations

import numpy as np

from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.stream import Stream

LEAST_SUCCESS = 0.99
MOST_P99_S = 0.5
ARGO_LEAST_SUCCESS = 0.95


def flagger(stream: Stream) -> Scores:
    """Failed checks so far, (R, T)."""
    canary = stream.canary
    good = (1 - canary.error_rate >= LEAST_SUCCESS) & (canary.quantile(0.99) <= MOST_P99_S)
    return {"failed checks": np.cumsum(~good, axis=1).astype(float)}


def argo(stream: Stream) -> Scores:
    """Failed share of each window, (R, T); no requests are no measurement."""
    return {"failed share": np.nan_to_num(stream.canary.error_rate, nan=-np.inf)}


FLAGGER = Tool(
    "Flagger rules",
    flagger,
    {"threshold 1": {"failed checks": 1.0}, "threshold 5": {"failed checks": 5.0}},
    frozenset({"latency", "tail", "errors"}),
)
ARGO = Tool(
    "Argo Rollouts rule",
    argo,
    {"failureLimit 0": {"failed share": float(np.nextafter(1 - ARGO_LEAST_SUCCESS, 1))}},
    frozenset({"errors"}),
)
