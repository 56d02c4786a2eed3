"""Records in: polls the topic, counts each record once, and keeps counts and offset in one transaction.

Offsets live in the database and not at the broker. A consumer seeks to what the database says, gathers a batch in
memory, and writes the batch with the offset behind it if the partition's row is as it was read. So whatever ends it,
wherever, a batch is counted wholly or will be read again; a rebalance that gives a partition to two consumers for a
while lets one of them write. After a write whose outcome is unknown the row tells which.

Watermarks: a partition's watermark trails the newest time of its records, or the moment at which it was seen drained,
by ``lateness_s``. A record whose slot lies wholly before it is late and only counted as such, so a window that was
read once stays as it was read.

A topic that is deleted and made anew begins at offset 0 again, perhaps with fewer partitions. What was not read of the
old one is lost: windows of the time from the old watermark to the moment at which this is noticed are told to be
partial, no record of that time is counted any more, and partitions that are gone are not waited for. The client has no
ids of topics, so a topic that was made anew while nobody read, and holds more records than the old one did, is not told
from it.

What cannot be read is counted as poison, logged at most once a minute, and never stops the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError

from service.kafka import ASK_EVERY_S, MEMBER, SILENT_S, older, pause_s, stay
from service.model.names import ServiceKey
from service.predictions.counting import Counting, Part
from service.predictions.decode import AHEAD_S
from service.predictions.tally import SLOT_S, Service, Tally
from service.ring.ports import Clock, PortError, Unavailable
from service.ring.predictions import GONE, NOT_BEGUN, Advance, PartitionState, PredictionStore, ServiceCounts
from service.ring.seen import UNSEEN, Observer
from service.ring.stopping import Stopping
from service.ring.store import Conflict

logger = logging.getLogger(__name__)

LOOP = "predictions"
POLL_S: Final = 0.5
POLL_N: Final = 5_000
COMMIT_S: Final = 5.0
"""A batch is written so often at least, and the watermark with it: windows are complete that much later."""

COMMIT_N: Final = 100_000
"""A batch is written when it holds so many records ..."""

COMMIT_CELLS: Final = 100_000
"""... or so many different counts, which bounds its memory to some 20 MB."""

FIRST_LOOKBACK_S: Final = 3600.0
"""A partition that is met for the first time is read from so long ago."""

FIRST_RECORDS_N: Final = 100_000
LOSSES_APART_S: Final = 1800.0
"""A partition keeps one time of loss. One that comes sooner after another is told as one with it; a later one takes its
place, by when windows of the first are judged unless their stores were away."""

KEPT_S: Final = 7 * 3600.0
"""Counts are kept for longer than windows are judged late (six hours)."""

GONE_AFTER_S: Final = 60.0
"""A partition that the brokers did not name for so long, and of which nobody wrote, is gone: what the client knows of
the topic is renewed every 10 s, so another consumer's partition that is new is not taken for one that is gone."""

POSITION_S: Final = 5.0
"""The client may look for its position so long."""

LOOK_S: Final = 15.0
"""Between two looks at whether partitions are gone."""

PRUNE_S: Final = 60.0
PRUNE_N: Final = 500
PRUNES_N: Final = 20
"""Rows deleted in one transaction, and transactions after one batch: 2,000 rows a second, five times what comes of as
many services as are counted at most."""

PARTITION_FETCH_BYTES: Final = 4 * 1024 * 1024
FETCH_BYTES: Final = 16 * 1024 * 1024


class _Moves(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no stubs
    """Notes that the group was shared out anew."""

    def __init__(self) -> None:
        self.shared_out = False
        self.moving = False
        """The client may read where it chose to itself, until we begin the partitions anew."""

    def on_partitions_revoked(self, revoked: object) -> None:
        """What is not written is read again."""
        self.moving = True

    def on_partitions_assigned(self, assigned: object) -> None:
        """From here on the client has no positions of its own."""
        self.moving = self.shared_out = True


class PredictionConsumer:
    """Counts the records of one topic for ever. Safe to stop, kill and repeat at any point."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        topic: str,
        group: str,
        counting: Counting,
        store: PredictionStore,
        clock: Clock,
        commit_s: float = COMMIT_S,
        seen: Observer = UNSEEN,
        stopping: Stopping | None = None,
        client: Callable[..., AIOKafkaConsumer] = AIOKafkaConsumer,
    ) -> None:
        """``arguments`` reach the brokers (``events.connection``)."""
        self._arguments = arguments
        self._topic = topic
        self._group = group
        self._counting = counting
        self._store = store
        self._clock = clock
        self._commit_s = commit_s
        self._seen = seen
        self._stopping = stopping or Stopping()
        self._client = client
        self._moves = _Moves()
        self._parts: dict[int, Part] = {}
        self._last_commit_s = 0.0
        self._looked_s = 0.0
        self._last_prune_s = 0.0
        self._anew: set[int] = set()
        """Partitions whose offsets begin at the start again."""
        self._missing_since_s: dict[int, float] = {}
        self._last_look_s = 0.0
        self.last_heard_at: datetime | None = None
        """When the brokers last answered."""

    async def run(self) -> None:
        """Count until a stop is asked, then write what is gathered and leave the group."""
        await stay(
            self._made,
            self._consume,
            ended=self._ended,
            turned=partial(self._seen.turned, LOOP),
            what=f"predictions of {self._topic} wait",
            action="predictions_away",
            clock=self._clock,
            stopping=self._stopping,
            survives=(KafkaError, OSError, PortError),
        )

    def _made(self) -> AIOKafkaConsumer:
        consumer = self._client(
            self._topic,
            **self._arguments,
            **MEMBER,
            group_id=self._group,
            isolation_level="read_committed",
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            fetch_max_bytes=FETCH_BYTES,
        )
        consumer.subscribe([self._topic], listener=self._moves)
        return consumer

    def _ended(self) -> None:
        # What was not written is read again: by whoever has the partition then.
        self._parts, self._anew = {}, set()

    async def _consume(self, consumer: AIOKafkaConsumer) -> None:
        since_s = self._last_commit_s = self._looked_s = self._now_s()
        while not self._stopping.asked:
            self._seen.turned(LOOP)
            await self._take(consumer)
            batch: Mapping[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
                timeout_ms=int(POLL_S * 1000), max_records=POLL_N
            )
            if self._moves.shared_out:
                continue  # what the poll brought may lie anywhere; all is read again from where the store stands
            for one, records in batch.items():
                # Records of a partition that was given to us during the poll are read again from where it is begun.
                part = self._parts.get(one.partition)
                if part is not None and not self._went_back(one, part, records[0].offset):
                    await self._counting.count(part, records)
            await self._listen(consumer)
            if self._anew:
                await self._commit()
                for partition in self._anew:
                    self._parts.pop(partition, None)
            heard_s = since_s if self.last_heard_at is None else self.last_heard_at.timestamp()
            if self._now_s() - max(heard_s, since_s) > SILENT_S:
                raise KafkaConnectionError(f"nothing heard of the brokers for {SILENT_S:g} s; connecting anew")
            if self._due():
                await self._commit()
                await self._let_go(consumer)
                await self._prune()
        await self._commit()

    def _now_s(self) -> float:
        return self._clock.now().timestamp()

    def _due(self) -> bool:
        """Whether the batch is to be written now."""
        parts = self._parts.values()
        return (
            self._now_s() - self._last_commit_s >= self._commit_s
            or sum(part.records_n for part in parts) >= COMMIT_N
            or sum(part.tally.cells_n for part in parts) >= COMMIT_CELLS
        )

    # --- partitions -------------------------------------------------------------------------------------------------

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        """Begin partitions that became ours where the store says, and let go of those that are not ours any more."""
        if self._moves.shared_out:
            # The client forgot where it read, also of the partitions that stayed ours; what was not written goes too.
            self._moves.shared_out = self._moves.moving = False
            self._parts, self._anew = {}, set()
        mine = {one.partition for one in consumer.assignment()}
        for partition in set(self._parts) - mine:
            del self._parts[partition]
        fresh = sorted(mine - set(self._parts))
        if not fresh:
            return
        # All partitions are made known, so that no window is taken for complete while one of them was never read.
        everything = set(consumer.partitions_for_topic(self._topic) or ()) | mine
        states = await self._store.begin(self._topic, everything)
        listed = [TopicPartition(self._topic, partition) for partition in fresh]
        first = await consumer.beginning_offsets(listed)
        last = await consumer.end_offsets(listed)
        now_s = self._now_s()
        for one in listed:
            state = states[one.partition]
            if state.next_offset == NOT_BEGUN:
                at_s = now_s - FIRST_LOOKBACK_S
                found = (await consumer.offsets_for_times({one: int(at_s * 1000)})).get(one)
                # Without an answer all is older, or the broker keeps no times: a little is read to be sure.
                at = found.offset if found else max(first[one], last[one] - FIRST_RECORDS_N)
                start = replace(state, next_offset=at, lost_until_s=at_s)
            elif state.next_offset == GONE or one.partition in self._anew or state.next_offset > last[one]:
                logger.error(
                    "partition %d of %s was made anew and is read from its start: was read up to %d, now it holds %d "
                    "to %d; windows of the time between are partial",
                    one.partition, self._topic, state.next_offset, first[one], last[one],
                    extra={"action": "predictions_anew"},
                )  # fmt: skip
                # What was counted of the old topic may stand in the new one too, if somebody copied it.
                since_s = now_s + AHEAD_S
                start = replace(_lost(state, since_s), next_offset=first[one], watermark_s=since_s)
            elif state.next_offset < first[one]:
                logger.error(
                    "the brokers deleted records of partition %d of %s before they were read: to be read from %d, it "
                    "holds %d to %d",
                    one.partition, self._topic, state.next_offset, first[one], last[one],
                    extra={"action": "predictions_lost"},
                )  # fmt: skip
                start = replace(_lost(state, now_s), next_offset=first[one])
            else:
                start = state
            if one in consumer.assignment():
                consumer.seek(one, start.next_offset)
                answered_ms = consumer.last_poll_timestamp(one) or 0
                self._parts[one.partition] = Part(
                    state, start, start.next_offset, start.watermark_s, answered_ms=answered_ms
                )
        self._anew -= set(fresh)

    def _went_back(self, one: TopicPartition, part: Part, offset: int) -> bool:
        """Whether the client reads at an offset that is behind us, as it does by itself where the brokers tell it that
        ours is out of range; the partition is then begun anew."""
        if offset >= part.next_offset or self._moves.moving:
            return False
        self._anew.add(one.partition)
        return True

    async def _let_go(self, consumer: AIOKafkaConsumer) -> None:
        """Wait no more for partitions that the topic does not have any longer, or their windows would never be whole.
        A topic that is not there at all is waited for."""
        now_s = self._now_s()
        there = consumer.partitions_for_topic(self._topic)
        if not there or now_s - self._last_look_s < LOOK_S:
            return
        self._last_look_s = now_s
        try:
            states = await self._store.partitions(self._topic)
            missing = [one for one in states if one.partition not in there and one.next_offset != GONE]
            since_s = {one.partition: self._missing_since_s.get(one.partition, now_s) for one in missing}
            self._missing_since_s = since_s
            for was in missing:
                if now_s - max(was.seen_at_s, since_s[was.partition]) < GONE_AFTER_S:
                    continue
                gone = replace(_lost(was, now_s), revision=was.revision + 1, next_offset=GONE, seen_at_s=now_s)
                await self._store.advance([Advance(was, gone)], [])
                logger.error(
                    "partition %d of %s is gone, so the topic was made anew with %d partitions; it is waited for no "
                    "more, and windows since its last records are partial",
                    was.partition, self._topic, len(there), extra={"action": "predictions_gone"},
                )  # fmt: skip
        except Conflict as error:
            logger.info("%s", error, extra={"action": "predictions_conflict"})
        except PortError as error:
            logger.info("partitions that are gone stay for now: %s", error, extra={"action": "predictions_postponed"})

    async def _listen(self, consumer: AIOKafkaConsumer) -> None:
        """Note the brokers' answers since the last look. A partition that is read to its end by such an answer is
        complete up to the last look, however long ago its last record was."""
        looked_s, answered, parts = self._looked_s, False, self._parts.values()
        for partition, part in self._parts.items():
            one = TopicPartition(self._topic, partition)
            if one not in consumer.assignment():
                continue
            # Only whether it has changed is asked of the client's time: its clock may be set, ours never jumps.
            answered_ms = consumer.last_poll_timestamp(one)
            if answered_ms is None or answered_ms == part.answered_ms:
                continue
            part.answered_ms, answered = answered_ms, True
            top = consumer.highwater(one)
            position = await self._position(consumer, one, part)
            if not self._went_back(one, part, position) and top is not None and position >= top:
                part.watermark_s = max(part.watermark_s, looked_s - self._counting.lateness_s)
        now = self._clock.now()
        if not consumer.assignment() and older(self.last_heard_at, now, ASK_EVERY_S):
            await consumer.topics()
            answered = True
        if answered:
            self.last_heard_at = now
        self._looked_s = now.timestamp()
        # A partition that was just begun has no watermark yet; what lies before it is lost and not read.
        read_s = [max(one.watermark_s + self._counting.lateness_s, one.start.lost_until_s) for one in parts]
        self._seen.predictions_read(self._topic, min(read_s, default=None))

    async def _position(self, consumer: AIOKafkaConsumer, one: TopicPartition, part: Part) -> int:
        """Where the client reads on: behind our last record, and behind marks that are no records."""
        try:
            # While the client looks for a start that brokers do not tell, it waits for ever.
            async with asyncio.timeout(POSITION_S):
                position = int(await consumer.position(one))
        except (IllegalStateError, TimeoutError):
            return part.next_offset  # it moved away just now, or nobody knows
        return max(part.next_offset, position) if self._moves.moving else position

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        """Write the batch. Partitions that somebody else has gone on with are begun anew from what the store holds."""
        now_s = self._now_s()
        steps = {partition: part.step(now_s) for partition, part in self._parts.items()}
        if steps:
            try:
                await self._until_available(steps)
                conflicts: set[int] = set()
            except Conflict:
                conflicts = await self._one_by_one(steps)
            for partition, step in steps.items():
                if partition in conflicts:
                    del self._parts[partition]
                else:
                    self._tell(self._parts[partition])
                    self._parts[partition].written(step.now)
        self._last_commit_s = now_s

    def _tell(self, part: Part) -> None:
        """Tell what came of a batch that is in the store."""
        for outcome, records_n in part.outcomes_n.items():
            if records_n:
                self._seen.predictions(self._topic, outcome, records_n)
        for code, records_n in part.poison.items():
            self._seen.poison(self._topic, code, records_n)

    async def _one_by_one(self, steps: Mapping[int, Advance]) -> set[int]:
        """Write each partition by itself; those that could not be."""
        conflicts = set()
        for partition, step in steps.items():
            try:
                await self._until_available({partition: step})
            except Conflict as error:
                logger.info("%s", error, extra={"action": "predictions_conflict"})
                conflicts.add(partition)
        return conflicts

    async def _until_available(self, steps: Mapping[int, Advance]) -> None:
        """Write, again and again while the store is away; nothing more is polled meanwhile. A try whose answer was
        lost shows as a Conflict of the next one. Raises Unavailable when a stop is asked meanwhile."""
        whole = Tally()
        for partition in steps:
            whole.take(self._parts[partition].tally)
        counts = [
            ServiceCounts(_key(service), (first - 1) * SLOT_S, last * SLOT_S, body)
            for service, first, last, body in whole.bodies()
        ]
        tries = 0
        while True:
            self._seen.turned(LOOP)
            try:
                await self._store.advance(list(steps.values()), counts)
                return
            except Unavailable as error:
                if self._stopping.asked:
                    raise
                wait_s = pause_s(tries)
                tries += 1
                logger.warning("predictions wait: %s", error, extra={"action": "predictions_postponed"})
                await self._clock.sleep(wait_s)

    async def _prune(self) -> None:
        """Delete counts that nobody reads any more, a little at once."""
        now_s = self._now_s()
        if now_s - self._last_prune_s < PRUNE_S:
            return
        try:
            for _ in range(PRUNES_N):
                if await self._store.prune(now_s - KEPT_S, limit=PRUNE_N) < PRUNE_N:
                    self._last_prune_s = now_s
                    return
        except PortError as error:
            logger.info("old counts stay for now: %s", error, extra={"action": "predictions_postponed"})


def _lost(state: PartitionState, until_s: float) -> PartitionState:
    """The state with records lost since its watermark."""
    from_s = state.watermark_s
    if state.lost_until_s > from_s - LOSSES_APART_S:
        from_s = min(from_s, state.lost_from_s)
    return replace(state, lost_from_s=from_s, lost_until_s=until_s)


def _key(service: Service) -> ServiceKey:
    return ServiceKey(cluster=service[0], namespace=service[1], name=service[2])
