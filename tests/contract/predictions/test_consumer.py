"""Prediction records from the topic to windows: on the embedded broker, and on a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.app.clock import SystemClock
from service.events.connection import Connection
from service.events.sending import Message
from service.lab.broker import EmbeddedBroker
from service.model.names import RolloutId, ServiceKey
from service.model.observation import Availability, CategoryCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.model.target import Destination, Finish, Place
from service.predictions.consumer import PredictionConsumer
from service.predictions.counting import Counting
from service.predictions.source import RecordsSource
from service.predictions.tally import from_bytes
from service.ring.predictions import GONE, Advance, PredictionStore
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.embedded import produce

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

SERVICE = ServiceKey(cluster="default", namespace="ml-serving", name="tf-model-service")
PLACE = Place(
    virtual_service="r",
    namespace="ml-serving",
    http_route=None,
    stable=Destination(host="s"),
    canary=Destination(host="s"),
    finish=Finish.CANARY_KEEPS_ALL,
    readiness=None,
    metrics="records",
    stable_labels={"service": "tf-model-service", "version": "v1"},
    canary_labels={"service": "tf-model-service", "version": "v2"},
)


def preset(**series: Any) -> MetricsPreset:
    return MetricsPreset.model_validate(
        {"name": "records", "metrics": {"predictions": {"kind": "prediction_records", **series}}}
    )


def record(n: int, at_s: float, version: str = "v1", **said: Any) -> Message:
    body = {
        "service": "tf-model-service", "namespace": "ml-serving", "version": version, "request_id": n, "time": at_s,
        **(said or {"class": f"c{n % 3}"}),
    }  # fmt: skip
    return Message(key=str(n).encode(), value=json.dumps(body).encode(), headers=())


class Broker:
    """A broker on which topics can be made."""

    def __init__(self, bootstrap: str, embedded: EmbeddedBroker | None) -> None:
        self.bootstrap = bootstrap
        self.embedded = embedded
        self.n = 0

    async def topic(self, partitions: int = 3) -> str:
        self.n += 1
        name = f"predictions-{self.n}"
        if self.embedded is not None:
            self.embedded.create_topic(name, partitions)
            return name
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(name, partitions, 1)])
        await admin.close()
        return name

    async def made_anew(self, name: str, partitions: int) -> None:
        """Delete a topic and make it again; of a real broker."""
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        await admin.delete_topics([name])
        async with asyncio.timeout(30):
            while name in await admin.list_topics():
                await asyncio.sleep(0.1)
        await admin.create_topics([NewTopic(name, partitions, 1)])
        await admin.close()

    async def send(self, topic: str, messages: Sequence[Message]) -> None:
        await asyncio.to_thread(produce, self.bootstrap, topic, messages)


@pytest_asyncio.fixture(
    params=["embedded", pytest.param("real", marks=pytest.mark.real)], scope="module", loop_scope="module"
)
async def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    if request.param == "embedded":
        with EmbeddedBroker() as embedded:
            yield Broker(embedded.bootstrap, embedded)
        return
    from tests.real.parts.building import kafka_jars
    from tests.real.parts.kafka import KafkaBroker

    with KafkaBroker(kafka_jars(), tmp_path_factory.mktemp("kafka")) as real:
        yield Broker(real.bootstrap, None)


@pytest_asyncio.fixture(loop_scope="module")
async def store(tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    opened = await open_store(f"sqlite:///{tmp_path / 'serinus.db'}")
    yield SqlPredictions(opened)
    await opened.close()


def consumer(broker: Broker, topic: str, store: PredictionStore, **more: Any) -> PredictionConsumer:
    # A group of its own each: the offsets are in the database, and the embedded broker's groups take seconds to join.
    broker.n += 1
    own = {name: more.pop(name) for name in ("commit_s", "group", "stopping") if name in more}
    clock = SystemClock()
    return PredictionConsumer(
        Connection(broker.bootstrap).arguments(),
        topic=topic,
        counting=Counting(store, clock, topic=topic, cluster="default", **{"lateness_s": 1.0, **more}),
        store=store,
        clock=clock,
        **{"commit_s": 0.3, "group": f"serinus-{broker.n}", **own},
    )


@contextlib.asynccontextmanager
async def counting(
    broker: Broker, topic: str, store: PredictionStore, **more: Any
) -> AsyncIterator[PredictionConsumer]:
    """A consumer at work, which has partitions when this begins and is cut off without a word when it ends."""
    one = consumer(broker, topic, store, **more)
    task = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(60):
            while not one._parts:
                await asyncio.sleep(0.02)
        yield one
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(store: PredictionStore, topic: str, records_n: int) -> None:
    """Wait until so many records of the topic are done with, one way or another."""
    async with asyncio.timeout(60):
        while True:
            states = await store.partitions(topic)
            if sum(one.counted_n + one.late_n + one.poison_n + one.refused_n for one in states) >= records_n:
                return
            await asyncio.sleep(0.05)


async def kept(store: PredictionStore, topic: str) -> Counter[tuple[str, str | int]]:
    """All that is counted of the service: (version, category) -> n."""
    bodies = await store.counts(topic, [SERVICE], 0, time.time() + 3600, limit=100_000)
    out: Counter[tuple[str, str | int]] = Counter()
    for body in bodies.get(SERVICE, ()):
        for _, version, _, _, _, counts in from_bytes(body):
            for category, n in counts.items():
                out[version, category] += n
    return out


async def window(source: RecordsSource, end_s: float, *, rollout: str = "r-1", length_s: float = 60.0) -> Reading:
    query = WindowQuery(RolloutId(rollout), "default", PLACE, ("predictions",), end_s - length_s, end_s)
    return (await source.collect([query]))[0][0]


async def read_when_complete(source: RecordsSource, end_s: float, **more: Any) -> Reading:
    async with asyncio.timeout(60):
        while True:
            found = await window(source, end_s, **more)
            if found.availability not in (Availability.STALE, Availability.AWAY):
                return found
            await asyncio.sleep(0.1)


async def test_a_window_counts_each_record_of_its_time_once_over_all_partitions(
    broker: Broker, store: SqlPredictions
) -> None:
    topic = await broker.topic()
    end_s = float(int(time.time()) - 20)
    inside = [record(n, end_s - 60 + 0.25 + n % 60, "v2" if n % 5 == 0 else "v1") for n in range(600)]
    edges = [record(1000, end_s - 60), record(1001, end_s), record(1002, end_s + 0.001)]
    broken = Message(key=b"k", value=b"{not json", headers=())
    await broker.send(topic, [*inside[:300], broken, *inside[300:], *edges])
    async with counting(broker, topic, store, lateness_s=90.0):
        await until(store, topic, 604)
        assert sum(state.poison_n for state in await store.partitions(topic)) == 1
        source = RecordsSource(store, {"records": preset()}, topic=topic, clock=SystemClock())
        assert (await window(source, end_s)).availability is Availability.STALE
    async with counting(broker, topic, store):
        found = await read_when_complete(source, end_s)
    assert found.availability is Availability.ENOUGH
    assert isinstance(found.counts, CategoryCounts)
    assert dict(zip(found.counts.names, found.counts.canary, strict=True)) == {"c0": 40, "c1": 40, "c2": 40}
    # (start, end]: the record at the window's start is the one before's, the one at its end is in.
    assert sum(found.counts.stable) == 480 + 1
    assert (await window(source, end_s)) == found


async def test_consumers_that_are_cut_off_again_and_again_count_every_record_once(
    broker: Broker, store: SqlPredictions
) -> None:
    topic, chance = await broker.topic(), random.Random(5)
    sent = [record(n, time.time() - 5, "v2" if n % 7 == 0 else "v1") for n in range(4000)]
    for first in range(0, 4000, 400):
        await broker.send(topic, sent[first : first + 400])
        async with counting(broker, topic, store, commit_s=0.05, lateness_s=60.0):
            await asyncio.sleep(chance.uniform(0.0, 0.4))
    async with counting(broker, topic, store, lateness_s=60.0):
        await until(store, topic, 4000)
    wanted = Counter(("v2" if n % 7 == 0 else "v1", f"c{n % 3}") for n in range(4000))
    assert await kept(store, topic) == wanted


async def test_two_consumers_that_both_take_all_partitions_for_theirs_count_every_record_once(
    broker: Broker, store: SqlPredictions
) -> None:
    topic = await broker.topic(4)
    sent = [record(n, time.time() - 5) for n in range(2000)]
    async with (
        counting(broker, topic, store, commit_s=0.05, lateness_s=60.0),
        counting(broker, topic, store, commit_s=0.07, lateness_s=60.0),
    ):
        for first in range(0, 2000, 500):
            await broker.send(topic, sent[first : first + 500])
            await until(store, topic, first + 500)
    assert await kept(store, topic) == Counter(("v1", f"c{n % 3}") for n in range(2000))


# The embedded broker's groups have one member.
@pytest.mark.parametrize("broker", [pytest.param("real", marks=pytest.mark.real)], indirect=True)
async def test_a_group_shares_a_topic_and_goes_on_when_a_member_leaves(broker: Broker, store: SqlPredictions) -> None:
    topic = await broker.topic(4)
    sent = [record(n, time.time() - 5) for n in range(2000)]
    async with counting(broker, topic, store, commit_s=0.05, lateness_s=60.0, group="shared"):
        await broker.send(topic, sent[:1000])
        async with counting(broker, topic, store, commit_s=0.05, lateness_s=60.0, group="shared"):
            await broker.send(topic, sent[1000:1500])
            await until(store, topic, 1500)
        await broker.send(topic, sent[1500:])
        await until(store, topic, 2000)
    assert await kept(store, topic) == Counter(("v1", f"c{n % 3}") for n in range(2000))


async def test_a_stop_writes_what_was_gathered(broker: Broker, store: SqlPredictions) -> None:
    topic, stopping = await broker.topic(1), Stopping()
    await broker.send(topic, [record(n, time.time()) for n in range(50)])
    one = consumer(broker, topic, store, commit_s=600.0, stopping=stopping)
    task = asyncio.create_task(one.run())
    async with asyncio.timeout(30):
        while not any(part.counted_n for part in one._parts.values()):
            await asyncio.sleep(0.05)
    assert not await kept(store, topic)
    stopping.ask()
    await task
    assert sum((await kept(store, topic)).values()) == 50


async def test_late_records_are_counted_as_late_and_change_no_window(broker: Broker, store: SqlPredictions) -> None:
    topic = await broker.topic(1)
    now_s = time.time()
    in_time, late = record(1, now_s - 9), record(2, now_s - 50)
    await broker.send(topic, [record(0, now_s), in_time, late])
    async with counting(broker, topic, store, lateness_s=20.0):
        await until(store, topic, 3)
    (state,) = await store.partitions(topic)
    assert (state.counted_n, state.late_n) == (2, 1)
    assert sum((await kept(store, topic)).values()) == 2


async def test_scores_are_compared_in_bins_that_are_frozen_at_the_first_window(
    broker: Broker, store: SqlPredictions
) -> None:
    topic, chance = await broker.topic(2), random.Random(3)
    end_s = float(int(time.time()) - 170)
    first = [record(n, end_s - chance.uniform(0.1, 59), "v1", score=chance.random()) for n in range(500)]
    first += [record(n, end_s - chance.uniform(0.1, 59), "v2", score=chance.random() ** 2) for n in range(100)]
    second = [record(n, end_s + chance.uniform(0.1, 59), f"v{1 + n % 2}", score=0.999) for n in range(100)]
    await broker.send(topic, first + second)
    async with counting(broker, topic, store, lateness_s=100.0):
        await until(store, topic, 700)
        source = RecordsSource(store, {"records": preset(view="score")}, topic=topic, clock=SystemClock())
        one = await read_when_complete(source, end_s)
        other = await read_when_complete(source, end_s + 60)
    assert isinstance(one.counts, CategoryCounts)
    assert isinstance(other.counts, CategoryCounts)
    assert one.counts.names == other.counts.names
    assert len(one.counts.names) == 15
    assert (sum(one.counts.canary), sum(one.counts.stable)) == (100, 500)
    # The deciles of stable hold a tenth each, to one cell; of a canary whose scores are squared, the low ones more.
    assert all(35 <= n <= 65 for n in one.counts.stable[3:11])
    assert sum(one.counts.canary[:4]) > 35
    assert (other.counts.canary[13], other.counts.stable[13]) == (50, 50)


async def test_embeddings_are_compared_by_their_distance_to_a_centroid_that_outlives_the_consumer(
    broker: Broker, store: SqlPredictions
) -> None:
    topic, chance = await broker.topic(1), random.Random(9)
    end_s = float(int(time.time()) - 70)

    def near(middle: float) -> list[float]:
        return [chance.gauss(middle, 1.0) for _ in range(8)]

    learning = [record(n, end_s - 59, "v1", embedding=near(5.0)) for n in range(256)]
    await broker.send(topic, learning)
    async with counting(broker, topic, store, lateness_s=200.0):
        await until(store, topic, 256)
    judged = [record(n, end_s - 30, "v1", embedding=near(5.0)) for n in range(200)]
    judged += [record(n, end_s - 30, "v2", embedding=near(7.0)) for n in range(100)]
    judged.append(record(1, end_s - 30, "v2", embedding=[1.0, 2.0]))
    await broker.send(topic, judged)
    async with counting(broker, topic, store, lateness_s=60.0):
        await until(store, topic, 557)
        source = RecordsSource(store, {"records": preset(view="distance")}, topic=topic, clock=SystemClock())
        found = await read_when_complete(source, end_s)
    assert isinstance(found.counts, CategoryCounts)
    assert sum(found.counts.stable) == 200
    assert found.counts.canary[-1] == 1
    assert found.counts.canary[-2] > 70


async def test_what_is_missing_has_a_name_of_its_own(broker: Broker, store: SqlPredictions) -> None:
    topic = await broker.topic(1)
    source = RecordsSource(store, {"records": preset()}, topic=topic, clock=SystemClock())
    end_s = float(int(time.time()) - 20)
    assert (await window(source, end_s)).availability is Availability.AWAY
    await broker.send(topic, [record(n, end_s - 90, f"v{1 + n % 2}") for n in range(4)])
    await broker.send(topic, [record(4, end_s - 30, "v1")])
    async with counting(broker, topic, store):
        quiet = await read_when_complete(source, end_s)
        assert (await window(source, end_s + 3600)).availability is Availability.STALE
        before_all = await window(source, end_s - 7200)
    assert (quiet.availability, quiet.detail) == (Availability.FEW, "no predictions of canary in this window")
    assert before_all.availability is Availability.DEGRADED
    other = RecordsSource(store, {"records": preset(output="label")}, topic=topic, clock=SystemClock())
    assert (await window(other, end_s)).availability is Availability.NO_SERIES
    unaligned = await window(source, end_s + 0.25)
    assert (unaligned.availability, "multiples of 0.5 s" in unaligned.detail) == (Availability.NO_SERIES, True)


async def test_a_topic_that_was_made_anew_is_read_from_its_start_and_the_gap_is_told(
    broker: Broker, store: SqlPredictions
) -> None:
    topic = await broker.topic(1)
    begun = (await store.begin(topic, [0]))[0]
    now_s = time.time()
    ahead = replace(begun, revision=1, next_offset=9_000, watermark_s=now_s - 300)
    await store.advance([Advance(begun, ahead)], [])
    await broker.send(topic, [record(n, now_s - 2, f"v{1 + n % 2}") for n in range(10)])
    async with counting(broker, topic, store):
        await until(store, topic, 10)
    (state,) = await store.partitions(topic)
    assert (state.next_offset, state.lost_from_s) == (10, now_s - 300)
    source = RecordsSource(store, {"records": preset()}, topic=topic, clock=SystemClock())
    assert (await window(source, float(int(now_s) - 100))).availability is Availability.DEGRADED


# Topics of the embedded broker cannot be deleted; tests/unit/predictions/test_topic_anew.py tells the whole story.
@pytest.mark.parametrize("broker", [pytest.param("real", marks=pytest.mark.real)], indirect=True)
@pytest.mark.parametrize("partitions_n", [3, 2])
async def test_a_topic_made_anew_under_a_consumer_is_counted_on_and_its_windows_are_told_to_be_partial(
    broker: Broker, store: SqlPredictions, monkeypatch: pytest.MonkeyPatch, partitions_n: int
) -> None:
    monkeypatch.setattr("service.predictions.consumer.GONE_AFTER_S", 3.0)
    monkeypatch.setattr("service.predictions.consumer.LOOK_S", 1.0)
    monkeypatch.setattr("service.predictions.consumer.AHEAD_S", 0.0)
    topic = await broker.topic(3)
    await broker.send(topic, [record(n, time.time()) for n in range(300)])
    async with counting(broker, topic, store, lateness_s=1.0):
        await until(store, topic, 300)
        broken_s = time.time()
        await broker.made_anew(topic, partitions_n)
        await broker.send(topic, [record(n, time.time()) for n in range(90)])

        async def settled() -> bool:
            states = await store.partitions(topic)
            return all(one.lost_until_s > broken_s for one in states) and (
                sum(one.next_offset for one in states if one.next_offset != GONE) == 90
            )

        async with asyncio.timeout(60):
            while not await settled():
                await asyncio.sleep(0.1)
        since_s = float(int(max(one.lost_until_s for one in await store.partitions(topic))) + 1)
        await asyncio.sleep(max(0.0, since_s + 1 - time.time()))
        await broker.send(topic, [record(n, since_s + 0.5, f"v{1 + n % 2}") for n in range(60)])
        source = RecordsSource(store, {"records": preset()}, topic=topic, clock=SystemClock())
        after = await read_when_complete(source, since_s + 5, length_s=5.0)
        around = await read_when_complete(source, float(int(broken_s) + 1), length_s=5.0)
    assert [one.next_offset == GONE for one in await store.partitions(topic)] == [False, False, partitions_n == 2]
    assert around.availability is Availability.DEGRADED
    assert isinstance(after.counts, CategoryCounts)
    assert (sum(after.counts.canary), sum(after.counts.stable)) == (30, 30)
