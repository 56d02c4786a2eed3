"""The layout of a state row: which numbers of which metric lie where.

A row begins with its own layout (buckets, classes, edges), so that a saved row can be read without anything else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzers import errors, latency, predictions

Array = NDArray[np.float64]

FORMAT = 1.0
HEADER = ("format", "buckets", "classes", "errors", "t", "hit")
"""Common numbers of a row: its format, K, C, whether errors are compared, windows so far, rolled back (sticky)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Buckets K (0: no latency), classes C (0: no predictions), errors or not, and the bucket edges."""

    buckets: int
    classes: int
    errors: bool
    edges: tuple[float, ...]

    def fields(self, planned: int | None) -> dict[str, dict[str, int]]:
        """metric -> field -> how many numbers."""
        out: dict[str, dict[str, int]] = {}
        if self.buckets:
            grid = len(latency.rank_grid(planned)[0])
            out["latency"] = {
                **dict.fromkeys(("judged", "v", "w_raw", "pairs", "n_a", "n_b", "safe", "tail_spent"), 1),
                "hist": self.buckets,
                "rank": grid,
                "rank_spent": grid,
                "tail": len(latency.TAILS),
            }
        if self.errors:
            out["errors"] = {
                **dict.fromkeys(("judged", "x_a", "n_a", "x_b", "n_b", "safe", "spent", "cusum"), 1),
                "bets": len(errors.PSI),
                "log_lik": len(errors.GRID),
            }
        if self.classes:
            g = predictions.groups(self.classes)
            strengths = len(predictions.NEEDED)
            out["predictions"] = {
                **dict.fromkeys(("judged", "flow"), 1),
                "pool": g,
                "own": g,
                "score": g,
                "spent": strengths,
                "pair": strengths * g * g,
                "rest": strengths * 2 * g,
                "group": self.classes if self.classes > predictions.MOST_CLASSES else 0,
            }
        return out

    def places(self, planned: int | None) -> tuple[dict[str, dict[str, slice]], int]:
        """metric -> field -> slice of the row, and the row's length D."""
        at = len(HEADER) + len(self.edges)
        out: dict[str, dict[str, slice]] = {}
        for metric, fields in self.fields(planned).items():
            out[metric] = {}
            for name, size in fields.items():
                out[metric][name] = slice(at, at + size)
                at += size
        return out, at

    def header(self) -> Array:
        """The row's beginning, before the first window."""
        return np.array([FORMAT, self.buckets, self.classes, float(self.errors), 0.0, 0.0, *self.edges])


def read_layout(row: Array) -> Layout:
    """The layout that a row begins with; ValueError for anything else."""
    if row.ndim != 1 or len(row) < len(HEADER) or row[0] != FORMAT:
        raise ValueError("state is not a row that this version of the monitor wrote")
    buckets, classes = int(row[1]), int(row[2])
    edges = tuple(float(x) for x in row[len(HEADER) : len(HEADER) + max(buckets - 1, 0)])
    return Layout(buckets, classes, bool(row[3]), edges)
