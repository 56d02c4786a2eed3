"""The statistics' row of a rollout as the store keeps it: its layout, frozen at the first comparison, and its numbers.

The layout is frozen because evidence only adds up over windows that are counted in the same buckets and classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.observation import CategoryCounts, HistogramCounts, Reading

OTHER = "(other)"
"""Where classes go that were not there when the comparison began."""

MAX_CLASSES = 200
"""Of a model with more, the most frequent ones of the first window, both arms together, are told apart."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Buckets and classes of a rollout. None: that metric is not compared in this rollout.

    outputs : (metric, classes) where predictions of several outputs are compared, each as a metric; classes is then
    None.
    """

    edges_s: tuple[float, ...] | None
    classes: tuple[str, ...] | None
    errors: bool
    outputs: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def empty(self) -> bool:
        """True when there is nothing to compare yet."""
        return self.edges_s is None and not self.by_output and not self.errors

    @property
    def by_output(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(metric, classes) of everything that is compared as predictions, in the order of the statistics' row."""
        return self.outputs if self.classes is None else (("predictions", self.classes),)


EMPTY = Layout(None, None, False)


def layout_of(readings: dict[str, Reading], compared: frozenset[str], required: frozenset[str]) -> Layout:
    """The layout that these first readings give; EMPTY until every required metric has shown itself.

    An optional metric that is not there by then is left out of this rollout's comparison.
    """
    shown = {name for name in compared if name in readings and readings[name].counts is not None}
    if not (required & compared) <= shown or not shown:
        return EMPTY
    edges: tuple[float, ...] | None = None
    outputs: dict[str, tuple[str, ...]] = {}
    for name in sorted(shown):
        counts = readings[name].counts
        if isinstance(counts, HistogramCounts):
            edges = counts.edges_s
        elif isinstance(counts, CategoryCounts):
            outputs[name] = (*_largest(counts), OTHER)
    if set(outputs) <= {"predictions"}:
        return Layout(edges, outputs.get("predictions"), "errors" in shown)
    return Layout(edges, None, "errors" in shown, tuple(outputs.items()))


def _largest(counts: CategoryCounts) -> list[str]:
    """The names that are told apart, in order of the alphabet."""
    by_name = dict.fromkeys(counts.names, 0)
    for name, canary, stable in zip(counts.names, counts.canary, counts.stable, strict=True):
        by_name[name] += canary + stable
    by_name.pop(OTHER, None)
    return sorted(sorted(by_name, key=lambda name: (-by_name[name], name))[:MAX_CLASSES])


def pack(layout: Layout, numbers: NDArray[np.float64] | None, resources: bytes = b"") -> bytes:
    """One rollout's layout and its (D,) row as bytes, and behind them what ``analysis.resources`` keeps.

    numbers : None where the arms have not been compared yet
    """
    # Without resources it is what a release before them wrote, and reads.
    head = json.dumps(
        [
            layout.edges_s,
            dict(layout.outputs) or layout.classes,
            layout.errors,
            *([len(resources)] if resources else []),
        ]
    ).encode()
    row = b"" if numbers is None else np.ascontiguousarray(numbers, dtype="<f8").tobytes()
    return len(head).to_bytes(4, "little") + head + row + resources


def unpack(packed: bytes) -> tuple[Layout, NDArray[np.float64] | None]:
    """The layout and row that ``pack`` was given; (EMPTY, None) for a rollout that has not been compared yet."""
    if not packed:
        return EMPTY, None
    (edges, classes, errors), row, _ = _parts(packed)
    outputs = tuple((name, tuple(of)) for name, of in classes.items()) if isinstance(classes, dict) else ()
    alone = None if classes is None or outputs else tuple(classes)
    layout = Layout(None if edges is None else tuple(edges), alone, bool(errors), outputs)
    return layout, np.frombuffer(row, dtype="<f8").astype(np.float64) if row else None


def resources_in(packed: bytes) -> bytes:
    """What ``analysis.resources`` keeps; empty where there is nothing."""
    return _parts(packed)[2] if packed else b""


def begun(packed: bytes) -> bool:
    """Whether the arms have been compared."""
    return bool(packed) and bool(_parts(packed)[1])


def _parts(packed: bytes) -> tuple[list[Any], bytes, bytes]:
    """(layout, row, resources)."""
    size = 4 + int.from_bytes(packed[:4], "little")
    *head, last = json.loads(packed[4:size])
    if len(head) < 3:  # without resources the head ends with the layout
        return [*head, last], packed[size:], b""
    end = len(packed) - int(last)
    return head, packed[size:end], packed[end:]
