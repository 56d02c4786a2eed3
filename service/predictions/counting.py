"""Counting: records of one partition into its batch, each offset once, late ones and poison apart."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from aiokafka import ConsumerRecord

from service.predictions.centroids import Centroids, Embedding
from service.predictions.decode import Poison, Prediction, View, decode
from service.predictions.pairing import Joiner
from service.predictions.tally import SLOT_S, Key, Service, Tally, slot_of
from service.ring.ports import Clock
from service.ring.predictions import Advance, PartitionState, PredictionStore

logger = logging.getLogger(__name__)

COUNTED_AT_ONCE: Final = 200
"""Records counted before other tasks get a turn, about 3 ms."""

LATENESS_S: Final = 10.0
"""How far records of one partition may come out of order."""

SERVICES_N: Final = 2_000
"""Services counted at most; one that was silent for an hour gives its place to another."""

SERIES_N: Final = 500
"""Outputs of models' versions that are counted apart for one service; each takes rows of its own in every slot. One
that was silent for an hour gives its place to another."""

ALL_SERIES_N: Final = 50_000
"""The same of all services together, which bounds what is remembered of them to some 20 MB."""

SERVICE_SILENT_S: Final = 3600.0
FULL_S: Final = 10.0
"""Once all places are taken, so long nobody looks whether one is free again, which costs a look at each."""

TELL_S: Final = 60.0


@dataclass(slots=True)
class Part:
    """One partition that is ours: what the store holds, and what has been gathered since."""

    state: PartitionState
    """As the store holds it."""
    start: PartitionState
    """The same with what was found out when it was begun: where to read on, and what was lost."""
    next_offset: int
    watermark_s: float
    tally: Tally = field(default_factory=Tally)
    counted_n: int = 0
    late_n: int = 0
    poison: Counter[str] = field(default_factory=Counter)
    """Records that could not be counted, by code."""
    refused_n: int = 0
    answered_ms: int = 0
    """The client's mark of the brokers' last answer for it."""

    @property
    def outcomes_n(self) -> Mapping[str, int]:
        """Records of the batch by what came of them."""
        return {
            "counted": self.counted_n,
            "late": self.late_n,
            "poison": self.poison.total(),
            "refused": self.refused_n,
        }

    @property
    def records_n(self) -> int:
        """Records of the batch."""
        return sum(self.outcomes_n.values())

    def step(self, now_s: float) -> Advance:
        """The batch as one step of the store."""
        was, start = self.state, self.start
        now = replace(
            start,
            revision=was.revision + 1,
            next_offset=self.next_offset,
            watermark_s=self.watermark_s,
            seen_at_s=now_s,
            counted_n=was.counted_n + self.counted_n,
            late_n=was.late_n + self.late_n,
            poison_n=was.poison_n + self.poison.total(),
            refused_n=was.refused_n + self.refused_n,
        )
        return Advance(was, now)

    def written(self, now: PartitionState) -> None:
        """The batch is in the store; the next begins."""
        self.state = self.start = now
        self.tally = Tally()
        self.poison = Counter()
        self.counted_n = self.late_n = self.refused_n = 0


class Counting:
    """Counts records of all partitions that are ours.

    cluster : where records ran that name no cluster. services_n : services counted at most. series_n : outputs of
    models' versions counted at most for one of them. waiting_n : answers to mirrored requests that may wait for the
    other version's; 0: no pairs are joined. samples : whether some embeddings are kept whole, for ``learned``.
    """

    def __init__(
        self,
        store: PredictionStore,
        clock: Clock,
        *,
        topic: str,
        cluster: str,
        lateness_s: float = LATENESS_S,
        services_n: int = SERVICES_N,
        series_n: int = SERIES_N,
        waiting_n: int = 0,
        samples: bool = False,
    ) -> None:
        self._clock = clock
        self._topic = topic
        self._cluster = cluster
        self.lateness_s = lateness_s
        self._services_n = services_n
        self._most_series_n = series_n
        self._samples = samples
        self._joiner = Joiner(waiting_n) if waiting_n else None
        self._centroids = Centroids(store)
        self._services: dict[Service, float] = {}
        self._full_until_s = 0.0
        self._series: dict[tuple[Service, str, str, str], float] = {}
        """When each (service, model, version, output) was counted last."""
        self._series_n: Counter[Service] = Counter()
        self._series_full_until_s = 0.0
        self._told_s = -TELL_S

    async def count(self, part: Part, records: Sequence[ConsumerRecord]) -> None:
        """Take records into the batch, each offset once."""
        for first in range(0, len(records), COUNTED_AT_ONCE):
            embeddings: list[tuple[Embedding, Key]] = []
            now_s = self._clock.now().timestamp()
            for record in records[first : first + COUNTED_AT_ONCE]:
                if record.offset >= part.next_offset:
                    part.next_offset = record.offset + 1
                    said = decode(record.value, now_s=now_s)
                    if isinstance(said, Prediction):
                        self._add(part, said, now_s, embeddings)
                    else:
                        self._poison(part, said, record)
            if embeddings:
                cells = await self._centroids.cells([one for one, _ in embeddings], now_s)
                for (one, key), cell in zip(embeddings, cells, strict=True):
                    if cell is not None:
                        part.tally.add(one.service, key, cell)
            await asyncio.sleep(0)

    def _add(self, part: Part, said: Prediction, now_s: float, embeddings: list[tuple[Embedding, Key]]) -> None:
        slot = slot_of(said.time_s)
        if slot * SLOT_S <= part.watermark_s:
            part.late_n += 1
            return
        part.watermark_s = max(part.watermark_s, min(said.time_s, now_s) - self.lateness_s)
        service = (said.cluster or self._cluster, said.namespace, said.service)
        if not (self._admitted(service, now_s) and self._told_apart(service, said, now_s)):
            part.refused_n += 1
            return
        part.counted_n += 1
        for output, view, category in said.counted:
            part.tally.add(service, (said.model, said.version, output, view, slot), category)
        if self._joiner is not None and said.request_id:
            classes = tuple((output, str(category)) for output, view, category in said.counted if view is View.CLASS)
            for pair in self._joiner.add(service, said.model, said.request_id, said.version, said.time_s, classes):
                key = (said.model, pair.versions, pair.output, View.PAIR.value, slot)
                part.tally.add(service, key, pair.classes)
        for output, numbers in said.embeddings:
            if self._samples:
                part.tally.sample(service, (said.model, said.version, output, View.SAMPLE.value, slot), numbers)
            key = (said.model, said.version, output, View.DISTANCE.value, slot)
            embeddings.append((Embedding(service, output, said.version, numbers), key))

    def _admitted(self, service: Service, now_s: float) -> bool:
        """Whether this service is among those that are counted."""
        if service not in self._services and len(self._services) >= self._services_n:
            if now_s < self._full_until_s:
                return False
            silent = [one for one, at in self._services.items() if now_s - at > SERVICE_SILENT_S]
            for one in silent:
                del self._services[one]
            if not silent:
                self._full_until_s = now_s + FULL_S
                self._tell(now_s, f"more than {self._services_n} services send predictions; the rest is not counted")
                return False
        self._services[service] = now_s
        return True

    def _told_apart(self, service: Service, said: Prediction, now_s: float) -> bool:
        """Whether this record's outputs are among those that are counted, of this model and version."""
        outputs = [output for output, _, _ in said.counted]
        if said.embeddings:
            outputs += [output for output, _ in said.embeddings]
        fresh: dict[tuple[Service, str, str, str], float] = {}
        before = None
        for output in outputs:
            # The views of one output follow each other; this runs for every record.
            if output != before:
                before = output
                name = (service, said.model, said.version, output)
                if name in self._series:
                    self._series[name] = now_s
                else:
                    fresh[name] = now_s
        if not fresh:
            return True
        if not self._room(service, len(fresh)):
            if now_s < self._series_full_until_s:
                return False
            for silent in [name for name, at in self._series.items() if now_s - at > SERVICE_SILENT_S]:
                del self._series[silent]
                self._series_n[silent[0]] -= 1
            self._series_n = +self._series_n
            if not self._room(service, len(fresh)):
                self._series_full_until_s = now_s + FULL_S
                self._tell(
                    now_s,
                    f"service {'/'.join(service)} sends more than {self._most_series_n} outputs of models and "
                    "versions; the rest is not counted",
                )
                return False
        self._series_n[service] += len(fresh)
        self._series |= fresh
        return True

    def _room(self, service: Service, more_n: int) -> bool:
        return self._series_n[service] + more_n <= self._most_series_n and len(self._series) + more_n <= ALL_SERIES_N

    def _poison(self, part: Part, said: Poison, record: ConsumerRecord) -> None:
        part.poison[said.code] += 1
        where = f"partition {record.partition} offset {record.offset} of {self._topic}"
        self._tell(self._clock.now().timestamp(), f"{where} cannot be counted: {said.reason}")

    def _tell(self, now_s: float, what: str) -> None:
        """Say it, but a thing like it at most once a minute."""
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            logger.warning("predictions: %s", what, extra={"action": "prediction_refused"})
