"""One source in front of several readers: each metric goes to the reader of its series' kind, all at the same time.

Counters lie in a metric store, lines in a log store or with the kubelet, single predictions on a topic. The tick knows
none of this: it asks for a window's metrics and gets their readings in order. What one reader cannot give in time is
AWAY for its own metrics; the others' readings do not wait for it beyond the deadline.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from service.model.observation import Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.ring.ports import Source


@dataclass(slots=True)
class _Part:
    """What one reader is asked."""

    kinds: set[str] = field(default_factory=set)
    queries: list[WindowQuery] = field(default_factory=list)
    slots: list[list[tuple[int, int]]] = field(default_factory=list)
    """For each query where its readings go: place of the window, place of the metric in it."""


class Unread:
    """Implements ``ring.ports.Source`` for a kind that nothing is set for: every metric of it is blind, and says so."""

    def __init__(self, why: str) -> None:
        self._why = why

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        return [[Reading(m, Availability.NO_SERIES, None, self._why) for m in query.metrics] for query in queries]


class RoutedSource:
    """Implements ``ring.ports.Source`` over the readers of one cluster. Safe to repeat and to cancel."""

    def __init__(
        self,
        presets: Mapping[str, MetricsPreset],
        store: Source,
        readers: Mapping[str, Source],
        *,
        deadline_s: float,
    ) -> None:
        """``readers`` by the kind of series that they read; ``store`` reads every other kind.

        deadline_s : for one collection. Above what the readers allow themselves, so that their own words are heard
        """
        self._presets = presets
        self._store = store
        self._readers = readers
        self._deadline_s = deadline_s

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``. What nobody foresaw in a reader is raised, as it is for a single source."""
        parts = self._parts(queries)
        found: list[list[Reading | None]] = [[None] * len(query.metrics) for query in queries]

        async def read(reader: Source, part: _Part) -> None:
            for slots, readings in zip(part.slots, await self._read(reader, part), strict=True):
                for (place, at), reading in zip(slots, readings, strict=True):
                    found[place][at] = reading

        async with asyncio.TaskGroup() as group:
            for reader, part in parts:
                group.create_task(read(reader, part), name=f"reader of {'/'.join(sorted(part.kinds))}")
        return [[reading for reading in readings if reading is not None] for readings in found]

    def _parts(self, queries: Sequence[WindowQuery]) -> list[tuple[Source, _Part]]:
        """Each reader with the part of every window that is its own."""
        parts: dict[int, tuple[Source, _Part]] = {}
        for place, query in enumerate(queries):
            mine: dict[int, list[int]] = defaultdict(list)
            for at, metric in enumerate(query.metrics):
                kind = self._kind(query, metric)
                reader = self._readers.get(kind, self._store)
                parts.setdefault(id(reader), (reader, _Part()))[1].kinds.add(kind)
                mine[id(reader)].append(at)
            for key, places in mine.items():
                part = parts[key][1]
                part.queries.append(replace(query, metrics=tuple(query.metrics[at] for at in places)))
                part.slots.append([(place, at) for at in places])
        return list(parts.values())

    def _kind(self, query: WindowQuery, metric: str) -> str:
        """The kind of a metric's series; empty for one that the preset lacks, of which the store's reader speaks."""
        preset = self._presets.get(query.place.metrics)
        series = preset.metrics.get(metric) if preset else None
        return series.kind if series else ""

    async def _read(self, reader: Source, part: _Part) -> Sequence[Sequence[Reading]]:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await reader.collect(part.queries)
        except TimeoutError:
            kinds = " and ".join(sorted(part.kinds))
            why = f"the reader of {kinds} gave nothing within {self._deadline_s:g} s, the time for one collection"
            return [[Reading(m, Availability.AWAY, None, why) for m in query.metrics] for query in part.queries]
