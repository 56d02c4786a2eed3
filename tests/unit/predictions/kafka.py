"""A topic and its clients in memory, on a clock that only polls and pauses move. What is assigned to whom, and who
dies where, the test says."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from service.model.names import ServiceKey
from service.model.value import from_epoch_s
from service.ring.ports import Unavailable
from service.ring.predictions import Advance, PartitionState, PredictionStore, Reference, ServiceCounts

START_S = 1_764_131_307.0
TOPIC = "predictions"


class Killed(Exception):
    """The process ends here, and with it all that it held in memory."""


class Clock:
    """Time that passes by waiting."""

    def __init__(self) -> None:
        self.now_s = START_S

    def now(self) -> datetime:
        return from_epoch_s(self.now_s)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


@dataclass
class Topic:
    """Records by partition; those before ``first`` are deleted."""

    partitions_n: int = 3
    logs: dict[int, list[bytes]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.logs = {partition: [] for partition in range(self.partitions_n)}
        self.first = dict.fromkeys(self.logs, 0)

    def made_anew(self, partitions_n: int) -> None:
        """Deleted, and made again without records."""
        self.logs = {partition: [] for partition in range(partitions_n)}
        self.first = dict.fromkeys(self.logs, 0)

    def put(self, partition: int, at_s: float, **said: Any) -> None:
        body = {"service": "tf-model", "namespace": "ml", "version": "v1", "time": at_s, **(said or {"class": "a"})}
        self.logs[partition].append(json.dumps(body).encode())


class Client:
    """What the consumer uses of aiokafka's consumer."""

    def __init__(self, topic: Topic, clock: Clock, mine: Collection[int], **more: Any) -> None:
        self.topic = topic
        self.clock = clock
        self.mine = set(mine)
        self.at: dict[int, int] = {}
        self.answered_ms = 0
        self.most = more.get("most", 50)
        self.before_poll: Callable[[], None] = more.get("before_poll", lambda: None)

    def subscribe(self, topics: Sequence[str], listener: Any) -> None:
        self.listener = listener

    async def start(self) -> None:
        self.at = dict.fromkeys(self.topic.logs, 0)

    async def stop(self) -> None:
        pass

    async def topics(self) -> set[str]:
        return {TOPIC}

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(TOPIC, one) for one in self.mine}

    def partitions_for_topic(self, _: str) -> set[int]:
        return set(self.topic.logs)

    async def beginning_offsets(self, of: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: self.topic.first[one.partition] for one in of}

    async def end_offsets(self, of: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: len(self.topic.logs[one.partition]) for one in of}

    async def offsets_for_times(self, of: Mapping[TopicPartition, int]) -> dict[TopicPartition, None]:
        return dict.fromkeys(of)

    def seek(self, one: TopicPartition, offset: int) -> None:
        self.at[one.partition] = offset

    async def position(self, one: TopicPartition) -> int:
        return self.at[one.partition]

    def highwater(self, one: TopicPartition) -> int:
        return len(self.topic.logs[one.partition])

    def last_poll_timestamp(self, _: TopicPartition) -> int:
        return self.answered_ms

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        self.before_poll()
        self.answered_ms += 1
        out = {}
        for partition in sorted(self.mine & set(self.topic.logs)):
            if self.at[partition] > len(self.topic.logs[partition]):
                self.at[partition] = self.topic.first[partition]  # out of range: as aiokafka does it by itself
            first = max(self.at[partition], self.topic.first[partition])
            values = self.topic.logs[partition][first : first + min(self.most, max_records)]
            if values:
                out[TopicPartition(TOPIC, partition)] = [
                    ConsumerRecord(TOPIC, partition, first + n, 0, 0, None, value, None, 0, len(value), ())
                    for n, value in enumerate(values)
                ]
                self.at[partition] = first + len(values)
        await self.clock.sleep(timeout_ms / 1000)
        return out


class Trouble:
    """A store before which and behind which things go wrong, as the seed has it."""

    def __init__(self, store: PredictionStore, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.rate = 0.3
        self.seen: set[str] = set()
        self.forced: dict[tuple[str, int], tuple[str, bool]] = {}
        """(method, its n-th call) -> (how, after) of trouble that is sure to come."""
        self.calls_n: Counter[str] = Counter()

    async def _through(self, name: str, call: Callable[[], Any]) -> Any:
        bad = self.chance.random() < self.rate
        how = self.chance.choice(("killed", "away")) if bad else ""
        after = self.chance.random() < 0.5
        self.calls_n[name] += 1
        if (name, self.calls_n[name]) in self.forced:
            bad, (how, after) = True, self.forced[name, self.calls_n[name]]
        if bad:
            self.seen.add(f"{how} {'after' if after else 'before'} {name}")
        if bad and not after:
            raise self._error(how)
        await asyncio.sleep(0)
        out = await call()
        if bad:
            raise self._error(how)
        return out

    @staticmethod
    def _error(how: str) -> Exception:
        return Killed() if how == "killed" else Unavailable("as the seed has it")

    async def begin(self, topic: str, partitions: Collection[int]) -> Mapping[int, PartitionState]:
        return await self._through("begin", lambda: self.store.begin(topic, partitions))  # type: ignore[no-any-return]

    async def advance(self, steps: Sequence[Advance], counts: Sequence[ServiceCounts]) -> None:
        await self._through("advance", lambda: self.store.advance(steps, counts))

    async def partitions(self, topic: str) -> Sequence[PartitionState]:
        return await self.store.partitions(topic)

    async def counts(
        self, topic: str, services: Collection[ServiceKey], from_s: float, until_s: float, *, limit: int
    ) -> Mapping[ServiceKey, Sequence[bytes]]:
        return await self.store.counts(topic, services, from_s, until_s, limit=limit)

    async def references(self, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], bytes]:
        return await self._through("references", lambda: self.store.references(keys))  # type: ignore[no-any-return]

    async def freeze(self, references: Sequence[Reference], at_s: float) -> Mapping[tuple[str, str], bytes]:
        return await self._through("freeze", lambda: self.store.freeze(references, at_s))  # type: ignore[no-any-return]

    async def replace(self, reference: Reference, was: bytes | None, at_s: float) -> None:
        await self._through("replace", lambda: self.store.replace(reference, was, at_s))

    async def prune(self, before_s: float, *, limit: int) -> int:
        return await self._through("prune", lambda: self.store.prune(before_s, limit=limit))  # type: ignore[no-any-return]
