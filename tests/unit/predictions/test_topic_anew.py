"""A topic that is deleted and made anew: what was lost is told, nothing counts twice, and counting goes on."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.model.names import RolloutId
from service.model.observation import Availability, CategoryCounts, Reading, WindowQuery
from service.predictions.source import RecordsSource
from service.predictions.tally import slot_of
from service.ring.predictions import GONE
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.unit.predictions.kafka import START_S, TOPIC, Client, Clock, Topic
from tests.unit.predictions.test_exactly_once import PLACE, PRESET, done_n, kept, live

END_S = START_S - START_S % 10
"""A window's edge just before the story begins."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield SqlPredictions(opened)
    await opened.close()


class Story:
    """A topic, a consumer of it, and what its windows say."""

    def __init__(self, store: SqlPredictions) -> None:
        self.store, self.clock, self.topic = store, Clock(), Topic(3)
        self.client = Client(self.topic, self.clock, range(3))
        self.source = RecordsSource(store, {"p": PRESET}, topic=TOPIC, clock=self.clock)
        self.sent: Counter[tuple[str, int, str | int]] = Counter()

    def send(self, partitions: range | list[int], n: int = 4) -> None:
        for partition in partitions:
            for place in range(n):
                version = f"v{1 + place % 2}"
                self.topic.put(partition, self.clock.now_s, version=version, **{"class": "a"})
                self.sent[version, slot_of(self.clock.now_s), "a"] += 1

    async def until_done(self, n: int) -> None:
        while await done_n(self.store) < n and not self.task.done():
            await asyncio.sleep(0)

    async def until_s(self, at_s: float, *, send: range | list[int] = range(0)) -> None:
        """Let time pass; ``send``: to these partitions, a little again and again."""
        while self.clock.now_s < at_s and not self.task.done():
            self.send(send, 2)
            now_s = self.clock.now_s
            while self.clock.now_s < now_s + 1 and not self.task.done():
                await asyncio.sleep(0)

    def rebalanced(self, mine: range) -> None:
        """As aiokafka does it once it sees another number of partitions."""
        self.client.listener.on_partitions_revoked(self.client.assignment())
        self.client.mine = set(mine)
        self.client.at = dict.fromkeys(mine, 0)
        self.client.listener.on_partitions_assigned(self.client.assignment())

    @asynccontextmanager
    async def counting(self, **more: Any) -> AsyncIterator[None]:
        stopping = Stopping()
        life = live(
            self.store, self.clock, self.client, stopping=stopping, **{"lateness_s": 2.0, "commit_s": 5.0, **more}
        )
        self.task = asyncio.ensure_future(life)
        try:
            yield
        finally:
            stopping.ask()
            await self.task

    async def window(self, end_s: float) -> Reading:
        query = WindowQuery(RolloutId("r-1"), "default", PLACE, ("predictions",), end_s - 10, end_s)
        return (await self.source.collect([query]))[0][0]


async def test_a_topic_made_anew_with_fewer_partitions_is_counted_on_and_its_gone_partition_is_waited_for_no_more(
    store: SqlPredictions, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(store)
    async with story.counting():
        story.send(range(3))
        await story.until_done(12)
        await story.until_s(START_S + 30)
        broken_s = story.clock.now_s
        story.topic.made_anew(2)
        story.rebalanced(range(2))
        await story.until_s(broken_s + 40, send=[0, 1])
        while_waiting = await story.window(END_S + 50)
        await story.until_s(broken_s + 200, send=[0, 1])
        around, after = await story.window(END_S + 50), await story.window(END_S + 210)
    assert (while_waiting.availability, "partition 2" in while_waiting.detail) == (Availability.STALE, True)
    assert around.availability is Availability.DEGRADED
    assert after.availability is Availability.ENOUGH
    assert isinstance(after.counts, CategoryCounts)
    assert (sum(after.counts.canary), sum(after.counts.stable)) == (20, 20)
    assert (await store.partitions(TOPIC))[2].next_offset == GONE
    counted = await kept(store)
    assert all(n <= story.sent[key] for key, n in counted.items())
    told = [record.action for record in caplog.records if record.levelno == logging.ERROR]  # type: ignore[attr-defined]
    assert sorted(told) == ["predictions_anew", "predictions_anew", "predictions_gone"]


async def test_a_topic_made_anew_with_as_many_partitions_is_noticed_by_where_the_client_reads(
    store: SqlPredictions, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(store)
    async with story.counting():
        story.send(range(3), 40)
        await story.until_done(120)
        story.topic.made_anew(3)
        anew_s = story.clock.now_s
        # Partition 0 has records at once, the others none yet: both begin at the start.
        await story.until_s(anew_s + 10, send=[0])
        await story.until_s(anew_s + 120, send=range(3))
        around, after = await story.window(END_S + 20), await story.window(END_S + 110)
    assert around.availability is Availability.DEGRADED
    assert after.availability is Availability.ENOUGH
    assert isinstance(after.counts, CategoryCounts)
    assert (sum(after.counts.canary), sum(after.counts.stable)) == (30, 30)
    assert "partition 0 of predictions was made anew" in caplog.text
    assert all(one.next_offset == len(story.topic.logs[one.partition]) for one in await store.partitions(TOPIC))


async def test_records_that_were_copied_into_the_new_topic_do_not_count_a_second_time(store: SqlPredictions) -> None:
    story = Story(store)
    async with story.counting(lateness_s=3600.0):
        story.send([0, 1, 2], 40)
        await story.until_done(120)
        once = await kept(store)
        logs = story.topic.logs
        story.topic.made_anew(3)
        for partition in range(3):
            story.topic.logs[partition] = logs[partition][:30]
        await story.until_done(120 + 90)
    assert await kept(store) == once == story.sent
    assert [one.late_n for one in await store.partitions(TOPIC)] == [30, 30, 30]


async def test_a_partition_that_comes_back_is_read_from_its_start(store: SqlPredictions) -> None:
    story = Story(store)
    async with story.counting():
        story.send(range(3), 40)
        await story.until_done(120)
        story.topic.made_anew(2)
        story.rebalanced(range(2))
        await story.until_s(START_S + 150, send=[0, 1])
        assert (await store.partitions(TOPIC))[2].next_offset == GONE
        story.topic.logs[2], story.topic.first[2] = [], 0
        story.rebalanced(range(3))
        await story.until_s(START_S + 300, send=range(3))
        found = await story.window(END_S + 280)
    assert isinstance(found.counts, CategoryCounts)
    assert (found.availability, sum(found.counts.canary)) == (Availability.ENOUGH, 30)


async def test_a_topic_that_is_away_as_a_whole_loses_no_partition(store: SqlPredictions) -> None:
    story = Story(store)
    async with story.counting():
        story.send(range(3))
        await story.until_done(12)
        names = story.client.partitions_for_topic
        story.client.partitions_for_topic = lambda _: set()  # type: ignore[method-assign]
        story.rebalanced(range(0))
        await story.until_s(START_S + 200)
        assert (await story.window(END_S + 100)).availability is Availability.AWAY
        story.client.partitions_for_topic = names  # type: ignore[method-assign]
        story.rebalanced(range(3))
        await story.until_s(START_S + 230)
    assert [one.next_offset for one in await store.partitions(TOPIC)] == [4, 4, 4]
    assert (await kept(store)) == story.sent


async def test_a_partition_that_another_consumer_has_just_written_is_not_taken_for_gone(
    store: SqlPredictions, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    story, other = Story(store), Topic(4)
    other.put(3, START_S)
    async with story.counting():
        await story.until_s(START_S + 30)
        story.client.partitions_for_topic = lambda _: {0, 1, 2}  # type: ignore[method-assign]
        stopping = Stopping()
        ahead = asyncio.ensure_future(live(store, story.clock, Client(other, story.clock, [3]), stopping=stopping))
        await story.until_s(START_S + 200)
        assert (await store.partitions(TOPIC))[3].next_offset == 1
        stopping.ask()
        await ahead
    assert "gone" not in caplog.text, "nor was it tried, and stopped by the other's writing"
