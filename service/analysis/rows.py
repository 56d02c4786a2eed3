"""The statistics' row of a rollout as the store keeps it: its layout, frozen at the first comparison, and its numbers.

The layout is frozen because evidence only adds up over windows that are counted in the same buckets and classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.model.observation import CategoryCounts, HistogramCounts, Reading

OTHER = "(other)"
"""Where classes go that were not there when the comparison began."""

MAX_CLASSES = 200
"""Of a model with more, the most frequent ones of the first window, both arms together, are told apart."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Buckets and classes of a rollout. None: that metric is not compared in this rollout."""

    edges_s: tuple[float, ...] | None
    classes: tuple[str, ...] | None
    errors: bool

    @property
    def empty(self) -> bool:
        """True when there is nothing to compare yet."""
        return self.edges_s is None and self.classes is None and not self.errors


EMPTY = Layout(None, None, False)


def layout_of(readings: dict[str, Reading], compared: frozenset[str], required: frozenset[str]) -> Layout:
    """The layout that these first readings give; EMPTY until every required metric has shown itself.

    An optional metric that is not there by then is left out of this rollout's comparison.
    """
    shown = {name for name in compared if name in readings and readings[name].counts is not None}
    if not (required & compared) <= shown or not shown:
        return EMPTY
    edges: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    for name in shown:
        counts = readings[name].counts
        if isinstance(counts, HistogramCounts):
            edges = counts.edges_s
        elif isinstance(counts, CategoryCounts):
            classes = (*_largest(counts), OTHER)
    return Layout(edges, classes, "errors" in shown)


def _largest(counts: CategoryCounts) -> list[str]:
    """The names that are told apart, in order of the alphabet."""
    by_name = dict.fromkeys(counts.names, 0)
    for name, canary, stable in zip(counts.names, counts.canary, counts.stable, strict=True):
        by_name[name] += canary + stable
    by_name.pop(OTHER, None)
    return sorted(sorted(by_name, key=lambda name: (-by_name[name], name))[:MAX_CLASSES])


def pack(layout: Layout, numbers: NDArray[np.float64]) -> bytes:
    """One rollout's layout and its (D,) row as bytes."""
    head = json.dumps([layout.edges_s, layout.classes, layout.errors]).encode()
    return len(head).to_bytes(4, "little") + head + np.ascontiguousarray(numbers, dtype="<f8").tobytes()


def unpack(packed: bytes) -> tuple[Layout, NDArray[np.float64] | None]:
    """What ``pack`` wrote; (EMPTY, None) for a rollout that has not been compared yet."""
    if not packed:
        return EMPTY, None
    size = int.from_bytes(packed[:4], "little")
    edges, classes, errors = json.loads(packed[4 : 4 + size])
    layout = Layout(None if edges is None else tuple(edges), None if classes is None else tuple(classes), bool(errors))
    return layout, np.frombuffer(packed, dtype="<f8", offset=4 + size).astype(np.float64)
