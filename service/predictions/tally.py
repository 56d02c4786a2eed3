"""Counts of one batch: in memory while it is gathered, and as bytes in the store.

Counted by service and then by (model, version, output, view, slot). A slot is ``SLOT_S`` long and belongs to the
moments ``(end - SLOT_S, end]``, as windows do, so that any window whose edges are ends of slots is an exact sum.
"""

from __future__ import annotations

import array
import base64
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from service.predictions.binning import OTHER, Category
from service.predictions.decode import View

SLOT_S: Final = 0.5
"""Edges of a 60 s window are multiples of 5 s, of a 30 s window of 2.5 s."""

MOST_CLASSES: Final = 1000
"""Classes kept of one view of a service in a batch, the most frequent of both arms together; others as one."""

MOST_SAMPLES: Final = 32
"""Embeddings kept whole of one version's output in a batch of one partition: some 400 a minute."""

MOST_SAMPLED_NUMBERS: Final = 1024
"""Longer embeddings are not kept whole."""

Service: TypeAlias = tuple[str, str, str]
"""(cluster, namespace, service)."""

Key: TypeAlias = tuple[str, str, str, str, int]
"""(model, version, output, view, slot)."""

_BODY: Final = msgspec.msgpack.Decoder(list[tuple[str, str, str, str, int, dict[str | int, int]]])
_ENCODER: Final = msgspec.msgpack.Encoder()


def slot_of(time_s: float) -> int:
    """The number of the slot that a moment lies in."""
    return math.ceil(time_s / SLOT_S)


def slots_of(start_s: float, end_s: float) -> range | None:
    """The slots that make up ``(start_s, end_s]``; None where its edges lie within slots."""
    first, last = start_s / SLOT_S, end_s / SLOT_S
    if abs(first - round(first)) > 1e-6 or abs(last - round(last)) > 1e-6:
        return None
    return range(round(first) + 1, round(last) + 1)


@dataclass(slots=True)
class Tally:
    """What a batch has counted so far."""

    by_service: dict[Service, dict[Key, dict[Category, int]]] = field(default_factory=dict)
    cells_n: int = 0
    """Different (key, category) that are held."""
    _samples_n: Counter[tuple[Service, str, str, str]] = field(default_factory=Counter)

    def add(self, service: Service, key: Key, category: Category) -> None:
        """Count one record in one view."""
        of = self.by_service.get(service)
        if of is None:
            of = self.by_service[service] = {}
        counts = of.get(key)
        if counts is None:
            counts = of[key] = {}
        if category in counts:
            counts[category] += 1
        else:
            counts[category] = 1
            self.cells_n += 1

    def sample(self, service: Service, key: Key, numbers: Sequence[float]) -> None:
        """Keep an embedding as it is, unless there are enough of its version and output in this batch. The first ones
        are as good as any: what an embedding holds has no part in it."""
        place = (service, key[0], key[1], key[2])
        if self._samples_n[place] < MOST_SAMPLES and len(numbers) <= MOST_SAMPLED_NUMBERS:
            self._samples_n[place] += 1
            self.add(service, key, base64.b85encode(array.array("f", numbers).tobytes()).decode())

    def take(self, other: Tally) -> None:
        """Add what another has counted."""
        for service, of in other.by_service.items():
            mine = self.by_service.setdefault(service, {})
            for key, counts in of.items():
                held = mine.setdefault(key, {})
                for category, n in counts.items():
                    self.cells_n += category not in held
                    held[category] = held.get(category, 0) + n

    def bodies(self) -> Iterator[tuple[Service, int, int, bytes]]:
        """(service, first slot, last slot, bytes) of each service."""
        for service, of in self.by_service.items():
            slots = [key[4] for key in of]
            yield service, min(slots), max(slots), to_bytes(_bounded(of))


def to_bytes(of: dict[Key, dict[Category, int]]) -> bytes:
    """One service's counts as they are kept."""
    return _ENCODER.encode([(*key, counts) for key, counts in of.items()])


def from_bytes(body: bytes) -> list[tuple[str, str, str, str, int, dict[str | int, int]]]:
    """(model, version, output, view, slot, counts) of what ``to_bytes`` gave; ValueError for anything else."""
    try:
        return _BODY.decode(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"kept counts are not readable: {error}") from error


def _bounded(of: dict[Key, dict[Category, int]]) -> dict[Key, dict[Category, int]]:
    """The same with rare classes as one, chosen over all versions and slots together so that no arm is favoured."""
    totals: dict[tuple[str, str], Counter[Category]] = defaultdict(Counter)
    for (_, _, output, view, _), counts in of.items():
        if view in (View.CLASS, View.TOP, View.PAIR):
            totals[output, view].update(counts)
    crowded = {name: _largest(seen) for name, seen in totals.items() if len(seen) > MOST_CLASSES}
    if not crowded:
        return of
    out: dict[Key, dict[Category, int]] = {}
    for key, counts in of.items():
        kept = crowded.get((key[2], key[3]))
        out[key] = counts if kept is None else lumped(counts.items(), kept)
    return out


def _largest(seen: Counter[Category]) -> frozenset[Category]:
    ranked = sorted(seen.items(), key=lambda one: (-one[1], str(one[0])))
    return frozenset(category for category, _ in ranked[:MOST_CLASSES])


def lumped(counts: Iterable[tuple[Category, int]], kept: frozenset[Category]) -> dict[Category, int]:
    """Counts with all categories but ``kept`` as one."""
    out: dict[Category, int] = defaultdict(int)
    for category, n in counts:
        out[category if category in kept else OTHER] += n
    return dict(out)
