"""How much of a backlog is gathered before it is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from aiokafka import ConsumerRecord, TopicPartition

from service.events.connection import Connection
from service.events.consumer import BACKLOG_N, EventConsumer
from service.events.sending import message
from tests.stories import START
from tests.unit.dispatch.test_dispatcher import Outside

ONE = TopicPartition("cd.events", 0)


class Polls:
    """A client that brings so many records a poll, and after that one by one for ever."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = list(sizes)
        self.polls_n = self.offset = 0

    def assignment(self) -> set[TopicPartition]:
        return {ONE}

    def last_poll_timestamp(self, _: TopicPartition) -> int:
        return self.polls_n

    def highwater(self, _: TopicPartition) -> int:
        return self.offset

    async def getmany(self, **_: Any) -> dict[TopicPartition, Sequence[ConsumerRecord]]:
        size = self.sizes[self.polls_n] if self.polls_n < len(self.sizes) else 1
        self.polls_n += 1
        sent = message(kind="deployed", namespace="ml", service="s", at=datetime.now(UTC), version="2")
        records = [
            ConsumerRecord(
                ONE.topic, 0, self.offset + n, 0, 0, sent.key, sent.value, None, 0, len(sent.value), sent.headers
            )
            for n in range(size)
        ]
        self.offset += size
        return {ONE: records}


async def gathered_n(polls: Polls) -> int:
    outside = Outside()
    outside.moment = START
    consumer = EventConsumer(
        Connection("nowhere:9092"), topic="cd.events", group="g", dead_letter_topic="letters",
        producer=None, handle=None, clock=outside,  # type: ignore[arg-type]
    )  # fmt: skip
    return (await consumer._gather(polls)).records_n  # type: ignore[arg-type]


async def test_a_backlog_is_gathered_until_it_is_drained() -> None:
    assert await gathered_n(Polls(BACKLOG_N, 300, 300, 3)) == BACKLOG_N + 603


async def test_events_that_come_one_by_one_do_not_keep_a_backlog_from_being_handed_over() -> None:
    polls = Polls(BACKLOG_N)
    assert await gathered_n(polls) == BACKLOG_N + 1
    assert polls.polls_n == 2


async def test_without_a_backlog_one_poll_is_handed_over() -> None:
    polls = Polls(3, 3)
    assert await gathered_n(polls) == 3
