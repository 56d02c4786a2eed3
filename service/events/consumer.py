"""Events in: polls the topic, decodes, hands events to the door, and only then commits the offsets.

A failing door is retried while the consumer stays in its group; nothing is skipped. The client may be stuck after a
broker restart without saying so (aiokafka issue 1154), so a consumer that hears nothing of its group is made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaConnectionError, KafkaError

from service.events.connection import Connection
from service.events.decode import DeadLetter, Ignored, Record, decode
from service.events.publisher import Producer
from service.model.stimulus import DeploymentEvent
from service.ring.ports import Clock, Refused, Unavailable
from service.ring.seen import UNSEEN, About, Observer
from service.ring.stopping import Stopping

logger = logging.getLogger(__name__)

POLL_S = 1.0
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
BATCH = 500
LOOP = "events"
ASK_EVERY_S = 10.0
SILENT_S = 60.0
"""A client that hears nothing of its brokers for so long is made anew."""

LARGEST_FETCH_BYTES = 16 * 1024 * 1024
LETTER_VALUE_BYTES = 512 * 1024
"""A dead letter keeps this much of its value; the original stays on its topic."""


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
        self._next_offset: dict[TopicPartition, int] = {}
        self.assigned_n = 0
        """Partitions that are ours now."""

    async def run(self) -> None:
        """Consume until a stop is asked, then leave the group. A lost broker is tried again and again."""
        tries = 0
        while not self._stopping.asked:
            self._seen.turned(LOOP)
            consumer = self._client(
                self._topic,
                **self._connection.arguments(),
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                max_partition_fetch_bytes=LARGEST_FETCH_BYTES,
                fetch_max_bytes=LARGEST_FETCH_BYTES,
                max_poll_interval_ms=600_000,
                session_timeout_ms=10_000,
                heartbeat_interval_ms=1_000,
                metadata_max_age_ms=10_000,
            )
            try:
                await consumer.start()
                tries = 0
                await self._consume(consumer)
            except (KafkaError, OSError) as error:
                pause_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
                tries += 1
                logger.warning(
                    "event bus %s: %r; trying again in %s s",
                    self._connection.bootstrap_servers,
                    error,
                    pause_s,
                    extra={"action": "bus_away"},
                )
                await self._clock.sleep(pause_s)
            finally:
                self.assigned_n = 0
                self._next_offset = {}
                self._seen.behind(0)
                await _stopped(consumer)

    async def _consume(self, consumer: AIOKafkaConsumer) -> None:
        since = self._clock.now()
        while not self._stopping.asked:
            self._seen.turned(LOOP)
            batch: Mapping[TopicPartition, list[ConsumerRecord]] = await consumer.getmany(
                timeout_ms=int(POLL_S * 1000), max_records=BATCH
            )
            records = [record for listed in batch.values() for record in listed]
            await self._listen(consumer)
            if not records:
                now = self._clock.now()
                if _older(since, now, SILENT_S) and _older(self.last_heard_at, now, SILENT_S):
                    raise KafkaConnectionError(f"nothing heard of the brokers for {SILENT_S:g} s; connecting anew")
                continue
            self._next_offset |= {partition: listed[0].offset for partition, listed in batch.items() if listed}
            self._tell_backlog(consumer)
            if not await self._taken(records):
                return
            offsets = {partition: listed[-1].offset + 1 for partition, listed in batch.items() if listed}
            self._next_offset |= offsets
            self._tell_backlog(consumer)
            try:
                await consumer.commit(offsets)
                self.last_heard_at = self._clock.now()
            except (CommitFailedError, IllegalStateError) as error:
                # The partition has moved to another replica; it will read these events again and find them seen.
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
        elif not mine and _older(self.last_heard_at, now, ASK_EVERY_S):
            await consumer.topics()
            self.last_heard_at = now

    def _tell_backlog(self, consumer: AIOKafkaConsumer) -> None:
        """Records of our partitions whose effect is not committed yet, as far as the brokers have told."""
        mine = consumer.assignment()
        self._next_offset = {one: at for one, at in self._next_offset.items() if one in mine}
        tops = {one: consumer.highwater(one) or 0 for one in mine}
        self._seen.behind(sum(max(0, tops[one] - at) for one, at in self._next_offset.items()))

    async def _taken(self, records: Sequence[ConsumerRecord]) -> bool:
        """Decode and hand over, again and again until it worked: an event is never skipped. False when a stop was
        asked before it did; the offsets are then not committed and the events are read again."""
        tries = 0
        events: list[DeploymentEvent] = []
        outcomes: list[tuple[str, ConsumerRecord]] = []
        letters: list[tuple[ConsumerRecord, DeadLetter]] = []
        for record in records:
            match decode(Record(record.value, record.headers, record.timestamp)):
                case DeploymentEvent() as event:
                    events.append(event)
                    outcomes.append(("taken", record))
                case DeadLetter() as letter:
                    letters.append((record, letter))
                    outcomes.append(("dead_letter", record))
                case Ignored():
                    outcomes.append(("ignored", record))
        while True:
            self._seen.turned(LOOP)
            try:
                while letters:
                    await self._bury(*letters[0])
                    letters.pop(0)
                await self._hand_over(events)
                now_s = self._clock.now().timestamp()
                for outcome, record in outcomes:
                    self._seen.event(outcome, now_s - record.timestamp / 1000)
                self.waits_for = ""
                return True
            except Unavailable as error:
                pause_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
                tries += 1
                self.waits_for = str(error)
                logger.warning("events wait: %s", error, extra={"action": "events_postponed"})
                if self._stopping.asked:
                    return False
                await self._clock.sleep(pause_s)

    async def _hand_over(self, events: Sequence[DeploymentEvent]) -> None:
        """Have the events taken in. Many together are one piece of work, and still one story each."""
        if len(events) == 1:
            with self._seen.handling("event", About.event(events[0])):
                await self._handle(events)
                _log_taken(events[0])
            return
        with self._seen.handling("events"):
            await self._handle(events)
        for event in events:
            with self._seen.handling("event", About.event(event)):
                _log_taken(event)

    async def _bury(self, record: ConsumerRecord, letter: DeadLetter) -> None:
        """Keep what cannot be read, with the reason and where it came from."""
        logger.warning(
            "dead letter: %s",
            letter.reason,
            extra={"action": "dead_letter", "partition": record.partition, "offset": record.offset},
        )
        headers = [
            ("x-error-type", letter.code.encode()),
            ("x-error-message", letter.reason.encode()),
            ("x-original-topic", record.topic.encode()),
            ("x-original-partition", str(record.partition).encode()),
            ("x-original-offset", str(record.offset).encode()),
        ]
        kept = [(name[:256], (value or b"")[:4096]) for name, value in list(record.headers)[:50]]
        value = record.value if record.value is None else record.value[:LETTER_VALUE_BYTES]
        try:
            await self._producer.send(self._dead_letter_topic, key=record.key, value=value, headers=[*headers, *kept])
        except Refused:
            # Too large even when cut: the reason and the origin are worth more than the value.
            await self._producer.send(self._dead_letter_topic, key=None, value=None, headers=headers)


def _older(at: datetime | None, now: datetime, seconds: float) -> bool:
    return at is None or (now - at).total_seconds() > seconds


async def _stopped(consumer: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(5):
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        logger.info("consumer did not leave its group: %r", error, extra={"action": "leave_failed"})


def _log_taken(event: DeploymentEvent) -> None:
    # Not louder: what came of it is told by its journal row, or by why it changed nothing.
    logger.debug("event taken in", extra={"action": "event_taken", "event_source": event.source})
