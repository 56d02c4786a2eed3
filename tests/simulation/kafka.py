"""The events' topic: partitions, one consumer group with rebalances, and a client with aiokafka's interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaConnectionError

from tests.simulation.process import Line, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

TOPIC = "deployments"
PARTITIONS = 3
SESSION_S = 10.0
"""A member that is not heard of for so long loses its partitions."""

BROKERS = "the events' brokers"


class Topic:
    """The log and its one group."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = world.dice("kafka")
        self.log: list[list[ConsumerRecord]] = [[] for _ in range(PARTITIONS)]
        self.committed = [0] * PARTITIONS
        self.members: dict[Client, set[int]] = {}
        self.generation = 0
        self.on_commit: Callable[[int, int], None] = lambda partition, offset: None
        """Called with a partition and its new committed offset, before it is in force."""

    def append(self, partition: int, *, key: bytes, value: bytes, headers: tuple[tuple[str, bytes], ...]) -> None:
        """A producer's record."""
        listed = self.log[partition]
        sizes = (len(key), len(value))
        record: Any = ConsumerRecord(
            TOPIC, partition, len(listed), 0, 0, key, value, None, *sizes, headers=headers
        )  # fmt: skip
        listed.append(record)

    def share_out(self) -> None:
        """A rebalance: everybody gives up everything and begins anew at the committed offsets."""
        self.generation += 1
        members = list(self.members)
        self._dice.shuffle(members)
        for member in members:
            self.members[member] = set()
        for partition in range(PARTITIONS):
            if members:
                self.members[members[partition % len(members)]].add(partition)
        for member in members:
            member.moved(self.members[member])

    def lose(self, process: Process) -> None:
        """The group has not heard of a process for its session time."""
        gone = [member for member in self.members if member.process is process]
        for member in gone:
            del self.members[member]
            member.moved(set())
        if gone:
            self.share_out()

    @property
    def consumed(self) -> bool:
        """Whether every record's offset is committed."""
        return all(len(listed) == at for listed, at in zip(self.log, self.committed, strict=True))


class Client:
    """What EventConsumer asks of AIOKafkaConsumer."""

    def __init__(self, topic: Topic, process: Process) -> None:
        self.process = process
        self._world = process.world
        self._topic = topic
        self._line = Line(process, "kafka", BROKERS)
        self._positions: dict[int, int] = {}
        self._generation = -1
        self._heard_ms: int | None = None

    def moved(self, partitions: set[int]) -> None:
        """The group has given us these partitions, and no others."""
        self._positions = {p: self._topic.committed[p] for p in partitions}
        self._generation = self._topic.generation

    def assignment(self) -> set[TopicPartition]:
        """The partitions that are ours."""
        return {TopicPartition(TOPIC, p) for p in self._positions}

    def last_poll_timestamp(self, partition: TopicPartition) -> int | None:
        """When the brokers last answered for a partition, in milliseconds; None: not yet."""
        return self._heard_ms if partition.partition in self._positions else None

    def highwater(self, partition: TopicPartition) -> int:
        """The next offset of a partition."""
        return len(self._topic.log[partition.partition])

    async def topics(self) -> set[str]:
        """Ask a broker for the topics."""

        async def act() -> set[str]:
            return {TOPIC}

        found: set[str] = await self._call("ask for the topics", act, risk=0.01)
        return found

    async def start(self) -> None:
        """Join the group."""
        await self._call("join the group", self._join, risk=0.02)

    async def stop(self) -> None:
        """Leave it."""
        self.process.gate()
        if self in self._topic.members:
            del self._topic.members[self]
            self._topic.share_out()

    async def getmany(self, *_: Any, timeout_ms: int = 0, max_records: int | None = None) -> Any:
        """The next records of our partitions; waits up to ``timeout_ms`` for some."""
        records = await self._call("poll", lambda: self._fetch(max_records or 500), risk=0.01)
        if not records:
            await self.process.sleep(timeout_ms / 1000)
            records = await self._call("poll", lambda: self._fetch(max_records or 500), risk=0.01)
        return records

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit, unless the group has been shared out anew since."""
        generation = self._generation
        await self._call("commit offsets", lambda: self._commit(generation, offsets), risk=0.05, lost=True)

    async def _join(self) -> None:
        self._topic.members[self] = set()
        self._topic.share_out()

    async def _fetch(self, most: int) -> dict[TopicPartition, list[ConsumerRecord]]:
        if self not in self._topic.members:
            await self._join()
        out = {}
        self._heard_ms = round(self._world.loop.time() * 1000) + 1
        for partition, position in self._positions.items():
            records = self._topic.log[partition][position : position + most]
            if records:
                self._positions[partition] = position + len(records)
                out[TopicPartition(TOPIC, partition)] = records
        return out

    async def _commit(self, generation: int, offsets: Mapping[TopicPartition, int]) -> None:
        if self not in self._topic.members or generation != self._topic.generation:
            raise CommitFailedError("the group has been shared out anew")
        for partition, offset in offsets.items():
            if partition.partition not in self._positions:
                raise CommitFailedError(f"partition {partition.partition} is not ours")
            self._topic.on_commit(partition.partition, offset)
            self._topic.committed[partition.partition] = offset

    async def _call(self, what: str, act: Callable[[], Any], *, risk: float, lost: bool = False) -> Any:
        fates = ("error", "lost") if lost else ("error",)
        return await self._line.call(what, act, away=KafkaConnectionError, timeout_s=20.0, risk=risk, fates=fates)


class Letters:
    """The dead letters' producer."""

    def __init__(self) -> None:
        self.origins: set[tuple[int, int]] = set()
        """(partition, offset) of each record that was put aside."""

    async def send(self, topic: str, *, key: Any, value: Any, headers: list[tuple[str, bytes]]) -> None:
        """Keep it."""
        given = dict(headers)
        self.origins.add((int(given["x-original-partition"]), int(given["x-original-offset"])))
        await asyncio.sleep(0)
