"""Events in: polls the topic, decodes, hands events to the door, and only then commits the offsets.

A failing door is retried while the consumer stays in its group; nothing is skipped. An event whose handling fails in a
way that nobody foresaw is found by halving its batch, tried again, and then buried alone, with the reason. The client
may be stuck after a broker restart without saying so (aiokafka issue 1154), so a consumer that hears nothing of its
group is made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaConnectionError

from service.events.connection import Connection
from service.events.decode import DeadLetter, Ignored, Record, decode
from service.events.publisher import Producer
from service.kafka import ASK_EVERY_S, MEMBER, SILENT_S, older, pause_s, stay
from service.model.stimulus import DeploymentEvent
from service.ring.ports import Clock, Refused, Unavailable
from service.ring.seen import UNSEEN, About, Observer
from service.ring.stopping import Stopping

logger = logging.getLogger(__name__)

POLL_S = 1.0
LOOP = "events"

POLL_N = 2_000
"""Records of one poll, decoded before the next."""

BACKLOG_N = 500
"""A poll that brings so many shows a backlog: more is then gathered before anything is handed over, because what
comes together is merged by service, and of many versions of one only the newest is begun."""

GATHER_N = 50_000
GATHER_BYTES = 64 * 1024 * 1024
"""What is gathered at most. The events made of it take about 2 kB each; the records themselves are let go."""

GATHER_S = 5.0
GATHER_WAIT_S = 0.1
DRAINED_N = 20
"""Gathering ends with a poll that brings fewer than these within ``GATHER_WAIT_S``, and at the latest after
``GATHER_S``. Events that come one by one while a backlog is read must not keep it from being handed over: a process
that dies again and again within seconds would never get on."""

DECODED_AT_ONCE = 100
"""Records decoded before other tasks get a turn, about 3 ms."""

HANDED_OVER_N = 5_000
SERVICES_HANDED_OVER_N = 500
"""Events handed over at once, which are committed in one transaction, and the services that they are of."""

PARTITION_FETCH_BYTES = 1024 * 1024
"""Prefetched per partition: what the buffers can hold is this times the partitions, unless one record is larger."""

FETCH_BYTES = 8 * 1024 * 1024
POISON_TRIES = 3
"""Tries of an event whose handling raises what nobody foresaw, alone, before it is buried."""

POISONS_IN_A_ROW = 10
"""So many buried with none handled between them are no poison events but a fault of ours: the rest waits."""

LETTER_VALUE_BYTES = 512 * 1024
"""A dead letter keeps this much of its value; the original stays on its topic."""

LEAST_VALUE_BYTES = 1024
"""And this much where the dead letters' topic takes no record of that size."""

LETTER_REASON_CHARS = 2000


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a record came from, without the record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class _Read:
    origin: _Origin
    event: DeploymentEvent


@dataclass(slots=True)
class _Gathered:
    """What is handed over before the offsets are committed."""

    events: list[_Read] = field(default_factory=list)
    next_offsets: dict[TopicPartition, int] = field(default_factory=dict)
    records_n: int = 0
    records_bytes: int = 0


class _StopAsked(Exception):
    """While something was away. The offsets are then not committed, and the events are read again."""


class EventConsumer:
    """Feeds deployment events to ``handle``, which returns when their effect is committed."""

    def __init__(
        self,
        connection: Connection,
        *,
        topic: str,
        group: str,
        dead_letter_topic: str,
        producer: Producer,
        handle: Callable[[Sequence[DeploymentEvent]], Awaitable[None]],
        clock: Clock,
        seen: Observer = UNSEEN,
        stopping: Stopping | None = None,
        client: Callable[..., AIOKafkaConsumer] = AIOKafkaConsumer,
    ) -> None:
        self._client = client
        self._connection = connection
        self._topic = topic
        self._group = group
        self._dead_letter_topic = dead_letter_topic
        self._producer = producer
        self._handle = handle
        self._clock = clock
        self._seen = seen
        self._stopping = stopping or Stopping()
        self.last_heard_at: datetime | None = None
        """When the brokers last answered."""
        self.waits_for = ""
        """Why the events in hand cannot be taken in yet; empty when they can."""
        self._answered_ms = 0
        self._buried_in_a_row = 0
        self._next_offset: dict[TopicPartition, int] = {}
        self.assigned_n = 0
        """Partitions that are ours now."""

    async def run(self) -> None:
        """Consume until a stop is asked, then leave the group. A lost broker is tried again and again."""
        await stay(
            self._made,
            self._consume,
            ended=self._ended,
            turned=partial(self._seen.turned, LOOP),
            what=f"event bus {self._connection.bootstrap_servers}",
            action="bus_away",
            clock=self._clock,
            stopping=self._stopping,
        )

    def _made(self) -> AIOKafkaConsumer:
        return self._client(
            self._topic,
            **self._connection.arguments(),
            **MEMBER,
            group_id=self._group,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            fetch_max_bytes=FETCH_BYTES,
        )

    def _ended(self) -> None:
        self.assigned_n = 0
        self._next_offset = {}
        self._seen.behind(0)

    async def _consume(self, consumer: AIOKafkaConsumer) -> None:
        since = self._clock.now()
        while not self._stopping.asked:
            try:
                gathered = await self._gather(consumer)
                if not gathered.records_n:
                    now = self._clock.now()
                    if older(since, now, SILENT_S) and older(self.last_heard_at, now, SILENT_S):
                        raise KafkaConnectionError(f"nothing heard of the brokers for {SILENT_S:g} s; connecting anew")
                    continue
                for part in _parts(gathered.events):
                    await self._hand_over(part)
            except _StopAsked:
                return
            self._next_offset |= gathered.next_offsets
            self._tell_backlog(consumer)
            await self._commit(consumer, gathered.next_offsets)

    async def _gather(self, consumer: AIOKafkaConsumer) -> _Gathered:
        """One poll, or as many as a backlog needs until it is drained or as much as may be held."""
        out = _Gathered()
        wait_s, least_n = POLL_S, BACKLOG_N
        until = self._clock.now() + timedelta(seconds=GATHER_S)
        while out.records_n < GATHER_N and out.records_bytes < GATHER_BYTES and self._clock.now() <= until:
            self._seen.turned(LOOP)
            batch: Mapping[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
                timeout_ms=int(wait_s * 1000), max_records=POLL_N
            )
            records = [record for listed in batch.values() for record in listed]
            await self._listen(consumer)
            for partition, listed in batch.items():
                if partition not in out.next_offsets:
                    self._next_offset[partition] = listed[0].offset
                out.next_offsets[partition] = listed[-1].offset + 1
            self._tell_backlog(consumer)
            out.events += await self._read(records)
            out.records_n += len(records)
            out.records_bytes += sum(len(record.value or b"") for record in records)
            if len(records) < least_n:
                break
            wait_s, least_n = GATHER_WAIT_S, DRAINED_N
        return out

    async def _commit(self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        """Of the partitions that are ours still: one that moved away must not keep the others from advancing."""
        ours = {partition: offset for partition, offset in offsets.items() if partition in consumer.assignment()}
        try:
            if ours:
                await consumer.commit(ours)
                self.last_heard_at = self._clock.now()
        except (CommitFailedError, IllegalStateError) as error:
            # The group has another generation; whoever has the partition reads these events again and finds them seen.
            logger.info("offsets not committed: %r", error, extra={"action": "commit_failed"})

    async def _listen(self, consumer: AIOKafkaConsumer) -> None:
        """Note when the brokers were last heard of: by their answers for our partitions, or by asking a broker where
        none is ours (a standby of the group)."""
        now = self._clock.now()
        mine = consumer.assignment()
        self.assigned_n = len(mine)
        # Only whether it has changed is asked of the client's time: its clock may be set, ours never jumps.
        answered_ms = max((at for at in map(consumer.last_poll_timestamp, mine) if at is not None), default=0)
        if answered_ms not in (0, self._answered_ms):
            self._answered_ms = answered_ms
            self.last_heard_at = now
        elif not mine and older(self.last_heard_at, now, ASK_EVERY_S):
            await consumer.topics()
            self.last_heard_at = now

    def _tell_backlog(self, consumer: AIOKafkaConsumer) -> None:
        """Records of our partitions whose effect is not committed yet, as far as the brokers have told."""
        mine = consumer.assignment()
        self._next_offset = {one: at for one, at in self._next_offset.items() if one in mine}
        tops = {one: consumer.highwater(one) or 0 for one in mine}
        self._seen.behind(sum(max(0, tops[one] - at) for one, at in self._next_offset.items()))

    async def _read(self, records: Sequence[ConsumerRecord]) -> Sequence[_Read]:
        """The events that the records hold. What cannot be read is buried; what starts nothing is left out."""
        events: list[_Read] = []
        for n, record in enumerate(records):
            if n % DECODED_AT_ONCE == DECODED_AT_ONCE - 1:
                await asyncio.sleep(0)
            origin = _Origin(record.topic, record.partition, record.offset, record.key, record.timestamp)
            match decode(Record(record.value, record.headers, record.timestamp)):
                case DeploymentEvent() as event:
                    events.append(_Read(origin, event))
                case DeadLetter() as letter:
                    await self._until_available(partial(self._bury, origin, letter, record.value, record.headers))
                case Ignored():
                    self._done("ignored", [origin])
        return events

    async def _hand_over(self, events: Sequence[_Read]) -> None:
        """Give events to the door. When that raises the unforeseen, halves are tried, to find the one that does it."""
        tries = 0
        while True:
            try:
                await self._until_available(partial(self._take_in, [one.event for one in events]))
                self._buried_in_a_row = 0
                self._done("taken", [one.origin for one in events])
                return
            except _StopAsked:
                raise
            except Exception as error:
                # Whatever one event brings about must not stop the topic.
                logger.exception("handling of %s event(s) failed", len(events), extra={"action": "handling_failed"})
                why = f"handling failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            if len(events) > 1:
                half = len(events) // 2
                await self._hand_over(events[:half])
                await self._hand_over(events[half:])
                return
            tries += 1
            self.waits_for = why
            if tries >= POISON_TRIES and self._buried_in_a_row < POISONS_IN_A_ROW:
                value = events[0].event.to_json().encode()
                await self._until_available(partial(self._bury, events[0].origin, DeadLetter("unhandled", why), value))
                self._buried_in_a_row += 1
                return
            if self._stopping.asked:
                raise _StopAsked
            self._seen.turned(LOOP)
            await self._clock.sleep(pause_s(tries))

    async def _until_available(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Again and again until what it needs is there: an event is never skipped because something is away. Raises
        _StopAsked when a stop is asked meanwhile."""
        tries = 0
        while True:
            self._seen.turned(LOOP)
            try:
                await attempt()
                self.waits_for = ""
                return
            except Unavailable as error:
                wait_s = pause_s(tries)
                tries += 1
                self.waits_for = str(error)
                logger.warning("events wait: %s", error, extra={"action": "events_postponed"})
                if self._stopping.asked:
                    raise _StopAsked from error
                await self._clock.sleep(wait_s)

    async def _take_in(self, events: Sequence[DeploymentEvent]) -> None:
        """Have the events taken in. Many together are one piece of work, and still one story each; of a backlog that
        would be thousands of stories in a second, which nobody reads."""
        if len(events) == 1:
            with self._seen.handling("event", About.event(events[0])):
                await self._handle(events)
                _log_taken(events[0])
            return
        with self._seen.handling("events"):
            await self._handle(events)
        for event in events if len(events) < BACKLOG_N else ():
            with self._seen.handling("event", About.event(event)):
                _log_taken(event)

    def _done(self, outcome: str, origins: Iterable[_Origin]) -> None:
        now_s = self._clock.now().timestamp()
        for origin in origins:
            self._seen.event(outcome, now_s - origin.timestamp_ms / 1000)

    async def _bury(
        self, origin: _Origin, letter: DeadLetter, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Keep what cannot be read or handled, with the reason and where it came from."""
        logger.warning(
            "dead letter: %s",
            letter.reason,
            extra={"action": "dead_letter", "partition": origin.partition, "offset": origin.offset},
        )
        told = [
            ("x-error-type", letter.code.encode()),
            ("x-error-message", letter.reason[:LETTER_REASON_CHARS].encode(errors="replace")),
            ("x-original-topic", origin.topic.encode()),
            ("x-original-partition", str(origin.partition).encode()),
            ("x-original-offset", str(origin.offset).encode()),
        ]
        kept = [(name[:256], (content or b"")[:4096]) for name, content in list(headers)[:50]]
        # Never none: without a key, the client takes no such record.
        cut = (value or b"")[:LETTER_VALUE_BYTES]
        try:
            await self._producer.send(self._dead_letter_topic, key=origin.key, value=cut, headers=[*told, *kept])
        except Refused:
            # Too large even when cut: the reason and the origin are worth more than the value.
            try:
                await self._producer.send(
                    self._dead_letter_topic, key=None, value=cut[:LEAST_VALUE_BYTES], headers=told
                )
            except Refused as error:
                # A topic that takes nothing is a person's to mend; until then nothing is skipped.
                raise Unavailable(f"the dead letter cannot be kept: {error}") from error
        self._done("dead_letter", [origin])


def _parts(events: Sequence[_Read]) -> Iterable[Sequence[_Read]]:
    """The events of whole services together, in the order of their coming, until they are enough for a transaction."""
    by_service: dict[tuple[str, str, str], list[_Read]] = {}
    for one in events:
        by_service.setdefault((one.event.environment, one.event.namespace, one.event.service), []).append(one)
    part: list[_Read] = []
    services_n = 0
    for listed in by_service.values():
        if part and (services_n == SERVICES_HANDED_OVER_N or len(part) + len(listed) > HANDED_OVER_N):
            yield part
            part, services_n = [], 0
        part += listed
        services_n += 1
    if part:
        yield part


def _log_taken(event: DeploymentEvent) -> None:
    # Not louder: what came of it is told by its journal row, or by why it changed nothing.
    logger.debug("event taken in", extra={"action": "event_taken", "event_source": event.source})
