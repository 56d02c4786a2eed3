"""Pairs: the answers of both versions to one mirrored request, joined by the request's id in bounded memory.

The first answer waits until the other comes, at most ``WITHIN_S`` and among at most so many. A pair is counted at most
once: with the record that completes it, in that record's batch. Halves that wait are held in memory alone, so a
consumer that dies costs the pairs that it had half; that says nothing of either version, so it tilts nothing.

Both answers must come to one consumer, so mirrored services key their records by request id or by service.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeAlias

from service.predictions.tally import Service

WITHIN_S: Final = 60.0
SEPARATOR: Final = "\x1f"
"""Between the two versions, and the two classes, of a pair; no version holds it, and classes that do make no pair."""

Classes: TypeAlias = tuple[tuple[str, str], ...]
"""(output, class)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one request about one output, in the order of the versions' names."""

    output: str
    versions: str
    classes: str


@dataclass(frozen=True, slots=True)
class _Half:
    version: str
    time_s: float
    classes: Classes


class Joiner:
    """Joins answers. most : halves that wait at once; beyond it the oldest is given up."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[tuple[Service, str, str], _Half] = OrderedDict()
        self.unpaired_n = 0
        """Halves that were given up."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, service: Service, model: str, request_id: str, version: str, time_s: float, classes: Classes
    ) -> list[Pair]:
        """The pairs that this answer completes."""
        key = (service, model, request_id)
        half = self._waiting.get(key)
        if half is not None and half.version == version and time_s - half.time_s <= WITHIN_S:
            return []  # the same answer again, after a retry or a rebalance
        if half is not None:
            del self._waiting[key]
            if abs(time_s - half.time_s) <= WITHIN_S and half.version != version:
                return _pairs(half, _Half(version, time_s, classes))
            self.unpaired_n += 1
        self._waiting[key] = _Half(version, time_s, classes)
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if len(self._waiting) <= self._most and time_s - oldest.time_s <= WITHIN_S:
                break
            self._waiting.popitem(last=False)
            self.unpaired_n += 1
        return []


def _pairs(one: _Half, other: _Half) -> list[Pair]:
    if other.version < one.version:
        one, other = other, one
    theirs = dict(other.classes)
    return [
        Pair(output, one.version + SEPARATOR + other.version, its_class + SEPARATOR + theirs[output])
        for output, its_class in one.classes
        if output in theirs and SEPARATOR not in its_class and SEPARATOR not in theirs[output]
    ]
