"""The layout of a state row: which numbers of which metric lie where.

A row begins with its own layout (buckets, classes, edges), so that a saved row can be read without anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from analyzers import errors, latency, pods, predictions, share
from analyzers.config import output_name

Array = NDArray[np.float64]

FORMAT = 4.0
HEADER = ("format", "buckets", "classes", "errors", "canary_pods", "stable_pods", "planned", "t", "hit")
"""Common numbers of a row: its format, K, C, whether errors are compared, pod slots, planned windows
(0: none), windows so far, rolled back. Where several outputs are compared, classes is minus their number, and the
classes of each stand behind the edges."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Buckets K (0: no latency), classes C (0: no predictions), errors or not, bucket edges, length and pod slots.

    outputs : classes of further outputs.
    planned : windows, None where no length is planned: the grids follow it. pods : (canary, stable) slots where pods
    are the units; (0, 0) where the arms are.
    """

    buckets: int
    classes: int
    errors: bool
    edges: tuple[float, ...]
    planned: int | None
    pods: tuple[int, int] = (0, 0)
    outputs: tuple[int, ...] = ()

    @property
    def by_output(self) -> tuple[int, ...]:
        """Classes of every output."""
        return (self.classes, *self.outputs) if self.classes else ()

    @property
    def head_n(self) -> int:
        """Numbers at the row's beginning that are no state."""
        return len(HEADER) + len(self.edges) + (len(self.by_output) if self.outputs else 0)

    @property
    def by_pod(self) -> bool:
        """Whether pods are the units of the comparison."""
        return self.pods[0] > 0

    def fields(self) -> dict[str, dict[str, Shape]]:
        """part of the row -> field -> shape; () is one number. Parts are the metrics, and what the pods share."""
        out: dict[str, dict[str, Shape]] = {}
        if self.by_pod:
            out["pods"] = pods.fields_of_members(self.pods)
        if self.buckets:
            out["latency"] = latency.fields(self.buckets, None if self.by_pod else self.planned, bets=not self.by_pod)
            for name in pods.OF_LATENCY if self.by_pod else ():
                out[name] = {"judged": (), **pods.fields(name, self.pods[1])}
        if self.errors:
            out["errors"] = errors.fields(bets=not self.by_pod)
            if self.by_pod:
                out["failures"] = {"judged": (), **pods.fields("errors", self.pods[1])}
        for place, classes in enumerate(self.by_output):
            out[output_name(place)] = predictions.fields(classes)
        out["share"] = share.fields()
        return out

    def places(self) -> tuple[dict[str, dict[str, tuple[slice, Shape]]], int]:
        """part -> field -> (slice of the row, shape), and the row's length D."""
        return _places(self)

    def header(self) -> Array:
        """The row's beginning, before the first window."""
        classes, further = (-len(self.by_output), self.by_output) if self.outputs else (self.classes, ())
        known = (FORMAT, self.buckets, classes, self.errors, *self.pods, self.planned or 0)
        return np.array([*known, 0.0, 0.0, *self.edges, *further], dtype=np.float64)


@lru_cache(maxsize=256)
def _places(layout: Layout) -> tuple[dict[str, dict[str, tuple[slice, Shape]]], int]:
    at = layout.head_n
    out: dict[str, dict[str, tuple[slice, Shape]]] = {}
    for part, fields in layout.fields().items():
        out[part] = {}
        for name, shape in fields.items():
            size = math.prod(shape)
            out[part][name] = (slice(at, at + size), shape)
            at += size
    return out, at


def read_layout(row: Array) -> Layout:
    """The layout that a row begins with; ValueError for anything else."""
    if row.ndim != 1 or len(row) < len(HEADER) or row[0] != FORMAT:
        raise ValueError("state is not a row that this version of the monitor wrote")
    buckets, classes = int(row[1]), int(row[2])
    after = len(HEADER) + max(buckets - 1, 0)
    edges = tuple(float(x) for x in row[len(HEADER) : after])
    outputs = tuple(int(x) for x in row[after : after - classes]) if classes < 0 else (classes,)
    if classes < 0 and (len(outputs) != -classes or min(outputs) < 2):
        raise ValueError("state is not a row that this version of the monitor wrote")
    layout = Layout(
        buckets, outputs[0], bool(row[3]), edges, int(row[6]) or None, (int(row[4]), int(row[5])), outputs[1:]
    )
    size = layout.places()[1]
    if len(row) != size:
        raise ValueError(f"a row of this layout has {size} numbers, found {len(row)}")
    return layout
