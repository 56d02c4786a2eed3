"""Exactly once, under consumers that die at seeded points, writes whose answer is lost, and partitions that two
consumers take for theirs. The database is the real one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.model.names import RolloutId, ServiceKey
from service.model.observation import Availability, CategoryCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.model.target import Destination, Finish, Place
from service.predictions.consumer import PredictionConsumer
from service.predictions.counting import Counting
from service.predictions.source import RecordsSource
from service.predictions.tally import from_bytes, slot_of
from service.ring.predictions import PredictionStore
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.unit.predictions.kafka import START_S, TOPIC, Client, Clock, Killed, Topic, Trouble

SERVICE = ServiceKey(cluster="default", namespace="ml", name="tf-model")
PRESET = MetricsPreset.model_validate({"name": "p", "metrics": {"predictions": {"kind": "prediction_records"}}})
PLACE = Place(
    virtual_service="r",
    namespace="ml",
    http_route=None,
    stable=Destination(host="s"),
    canary=Destination(host="s"),
    finish=Finish.CANARY_KEEPS_ALL,
    readiness=None,
    metrics="p",
    stable_labels={"service": "tf-model", "version": "v1"},
    canary_labels={"service": "tf-model", "version": "v2"},
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    # A file: what reads and writes at once must not share one connection, as it would in memory.
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield SqlPredictions(opened)
    await opened.close()


def consumer(store: PredictionStore, clock: Clock, client: Client, **more: Any) -> PredictionConsumer:
    own = {name: more.pop(name) for name in ("commit_s", "seen", "stopping") if name in more}
    counting = Counting(store, clock, topic=TOPIC, cluster="default", **{"lateness_s": 1e6, **more})
    return PredictionConsumer(
        {}, topic=TOPIC, group="g", counting=counting, store=store, clock=clock,
        client=lambda *names, **arguments: client, **{"commit_s": 1.0, **own},
    )  # fmt: skip


async def kept(store: PredictionStore) -> Counter[tuple[str, int, str | int]]:
    """All that is counted: (version, slot, category) -> n."""
    out: Counter[tuple[str, int, str | int]] = Counter()
    for body in (await store.counts(TOPIC, [SERVICE], 0, 1e12, limit=10**6)).get(SERVICE, ()):
        for _, version, _, _, slot, counts in from_bytes(body):
            for category, n in counts.items():
                out[version, slot, category] += n
    return out


async def done_n(store: PredictionStore) -> int:
    return sum(one.counted_n + one.late_n + one.poison_n for one in await store.partitions(TOPIC))


async def live(store: PredictionStore, clock: Clock, client: Client, **more: Any) -> None:
    """One life of a consumer, until it is killed or asked to stop."""
    with contextlib.suppress(Killed):
        await consumer(store, clock, client, **more).run()


@pytest.mark.parametrize("seed", range(12))
async def test_every_record_is_counted_once_whatever_dies_and_whoever_takes_a_partition_for_his(
    store: SqlPredictions, seed: int
) -> None:
    chance, clock, topic = random.Random(seed), Clock(), Topic()
    wanted: Counter[tuple[str, int, str | int]] = Counter()
    for n in range(600):
        at_s, version, label = START_S - chance.uniform(0, 30), chance.choice(("v1", "v2")), chance.choice("abc")
        topic.put(n % 3, at_s, version=version, **{"class": label})
        wanted[version, slot_of(at_s), label] += 1
    trouble = Trouble(store, chance)

    def poll() -> None:
        if chance.random() < 0.1:
            trouble.seen.add("killed in poll")
            raise Killed

    for life in range(400):
        if await done_n(store) == 600:
            break
        trouble.rate = 0.3 if life < 60 else 0.0
        stopping = Stopping()
        lives = [
            asyncio.ensure_future(
                live(
                    trouble,
                    clock,
                    Client(topic, clock, chance.sample(range(3), chance.randint(1, 3)), most=20, before_poll=poll),
                    stopping=stopping,
                )
            )
            for _ in range(chance.randint(1, 2))
        ]
        for _ in range(chance.randint(1, 400)):
            await asyncio.sleep(0)
        stopping.ask()
        await asyncio.gather(*lives)
    assert await kept(store) == wanted
    assert len(trouble.seen) > 2


@pytest.mark.parametrize("how", ["killed", "away"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("advance_n", [1, 2, 4])
async def test_a_batch_counts_once_when_its_transaction_or_the_answer_to_it_is_lost(
    store: SqlPredictions, how: str, after: bool, advance_n: int
) -> None:
    clock, topic = Clock(), Topic(2)
    for n in range(120):
        topic.put(n % 2, START_S - 1)
    trouble = Trouble(store, random.Random(1))
    trouble.rate, trouble.forced = 0.0, {("advance", advance_n): (how, after)}
    for _ in range(2):
        stopping = Stopping()
        client = Client(topic, clock, [0, 1], most=10)
        task = asyncio.ensure_future(live(trouble, clock, client, stopping=stopping, commit_s=0.4))
        while await done_n(store) < 120 and not task.done():
            await asyncio.sleep(0)
        stopping.ask()
        await task
    assert trouble.seen == {f"{how} {'after' if after else 'before'} advance"}
    assert await kept(store) == {("v1", slot_of(START_S - 1), "a"): 120}


@pytest.mark.parametrize("seed", range(3))
async def test_a_window_that_was_read_once_says_the_same_ever_after(store: SqlPredictions, seed: int) -> None:
    chance, clock, topic = random.Random(100 + seed), Clock(), Topic()
    trouble = Trouble(store, chance)
    source = RecordsSource(store, {"p": PRESET}, topic=TOPIC, clock=clock)
    ends = [START_S - START_S % 10 + 10.0 * n for n in range(1, 8)]
    queries = [WindowQuery(RolloutId("r-1"), "default", PLACE, ("predictions",), end - 10, end) for end in ends]
    read: dict[float, Reading] = {}
    sent_n = 0
    while len(read) < len(ends):
        for _ in range(chance.randint(0, 30)):
            # Some are late by more than is waited for.
            at_s = clock.now_s - chance.choice((0.0, 1.0, 3.0, 15.0)) * chance.random()
            topic.put(chance.randrange(3), at_s, version=chance.choice(("v1", "v2")), **{"class": chance.choice("abc")})
            sent_n += 1
        stopping = Stopping()
        client = Client(topic, clock, range(3), most=7)
        life = asyncio.ensure_future(live(trouble, clock, client, stopping=stopping, lateness_s=4.0))
        for _ in range(chance.randint(1, 12)):
            for _ in range(8):
                await asyncio.sleep(0)
            for end, (found,) in zip(ends, await source.collect(queries), strict=True):
                if found.availability.usable:
                    assert read.setdefault(end, found) == found
                else:
                    assert end not in read or found == read[end]
        stopping.ask()
        await life
    trouble.rate = 0.0
    stopping = Stopping()
    life = asyncio.ensure_future(
        live(trouble, clock, Client(topic, clock, range(3)), stopping=stopping, lateness_s=4.0)
    )
    while await done_n(store) < sent_n:
        await asyncio.sleep(0)
    stopping.ask()
    await life
    assert [found for (found,) in await source.collect(queries)] == [read[end] for end in ends]
    assert any(isinstance(one.counts, CategoryCounts) and sum(one.counts.canary) for one in read.values())


async def test_a_partition_without_records_is_complete_once_it_was_seen_drained(store: SqlPredictions) -> None:
    clock, topic, stopping = Clock(), Topic(), Stopping()
    topic.put(0, START_S - 5)
    task = asyncio.ensure_future(live(store, clock, Client(topic, clock, range(3)), stopping=stopping, lateness_s=4.0))
    while clock.now_s < START_S + 20:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    states = await store.partitions(TOPIC)
    assert all(START_S + 14 <= one.watermark_s <= clock.now_s - 4 for one in states)


async def test_a_partition_that_nobody_reads_keeps_windows_from_being_complete(store: SqlPredictions) -> None:
    clock, topic, stopping = Clock(), Topic(), Stopping()
    task = asyncio.ensure_future(live(store, clock, Client(topic, clock, [0, 2]), stopping=stopping, lateness_s=1.0))
    while clock.now_s < START_S + 30:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    end = START_S - START_S % 10 + 10
    source = RecordsSource(store, {"p": PRESET}, topic=TOPIC, clock=clock)
    query = WindowQuery(RolloutId("r-1"), "default", PLACE, ("predictions",), end - 10, end)
    ((found,),) = await source.collect([query])
    assert found.availability is Availability.AWAY
    assert "partition 1 of topic predictions has not been read yet" in found.detail


async def test_records_deleted_before_they_were_read_degrade_the_windows_of_their_time(store: SqlPredictions) -> None:
    clock, topic = Clock(), Topic(1)
    for deleted in (0, 30):
        for _ in range(20):
            topic.put(0, clock.now_s)
        topic.first[0] = deleted
        stopping = Stopping()
        task = asyncio.ensure_future(live(store, clock, Client(topic, clock, [0]), stopping=stopping, lateness_s=1.0))
        while (await store.begin(TOPIC, [0]))[0].next_offset < len(topic.logs[0]):
            await asyncio.sleep(0)
        stopping.ask()
        await task
    (state,) = await store.partitions(TOPIC)
    assert state.counted_n == 20 + 10
    assert START_S - 1 <= state.lost_from_s < state.lost_until_s <= clock.now_s


async def test_a_service_named_with_a_line_break_is_poison_and_the_rest_is_counted(store: SqlPredictions) -> None:
    clock, topic, stopping = Clock(), Topic(1), Stopping()
    for name in ("tf-model", "tf-model\n", "tf-model"):
        topic.put(0, START_S, service=name, **{"class": "a"})
    task = asyncio.ensure_future(live(store, clock, Client(topic, clock, [0]), stopping=stopping))
    while not task.done() and await done_n(store) < 3:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    (state,) = await store.partitions(TOPIC)
    assert (state.counted_n, state.poison_n) == (2, 1)


async def test_services_beyond_the_bound_are_not_counted_and_a_silent_one_gives_its_place(
    store: SqlPredictions,
) -> None:
    clock, topic, stopping = Clock(), Topic(1), Stopping()
    for n in range(5):
        topic.put(0, START_S, service=f"s{n}", **{"class": "a"})
    client = Client(topic, clock, [0])
    task = asyncio.ensure_future(live(store, clock, client, stopping=stopping, services_n=2))
    while await done_n(store) < 2:
        await asyncio.sleep(0)
    (state,) = await store.partitions(TOPIC)
    assert (state.counted_n, state.refused_n) == (2, 3)
    clock.now_s += 3700
    topic.put(0, clock.now_s, service="s4", **{"class": "a"})
    while await done_n(store) < 3:
        await asyncio.sleep(0)
    stopping.ask()
    await task


@pytest.mark.parametrize("name", ["version", "model"])
async def test_versions_and_models_beyond_the_bound_are_not_counted_and_a_silent_one_gives_its_place(
    store: SqlPredictions, name: str
) -> None:
    """Each takes rows of its own in every slot, so whoever writes to the topic could fill memory and database."""
    clock, topic, stopping = Clock(), Topic(1), Stopping()
    for n in range(5):
        said = {"version": "v1", "outputs": {"a": {"class": "x"}, "b": {"class": "x"}}, name: f"v{n}"}
        topic.put(0, START_S, **said)
    task = asyncio.ensure_future(live(store, clock, Client(topic, clock, [0]), stopping=stopping, series_n=4))
    while await done_n(store) < 2:
        await asyncio.sleep(0)
    (state,) = await store.partitions(TOPIC)
    assert (state.counted_n, state.refused_n) == (2, 3)
    clock.now_s += 3700
    topic.put(0, clock.now_s, **{"version": "v1", "class": "x", name: "v9"})
    while await done_n(store) < 3:
        await asyncio.sleep(0)
    stopping.ask()
    await task


async def test_after_a_rebalance_partitions_that_stayed_are_read_on_from_where_the_store_stands(
    store: SqlPredictions,
) -> None:
    clock, topic, stopping = Clock(), Topic(), Stopping()
    for n in range(3000):
        topic.put(n % 3, START_S - 20)
    polls_n, seen_n = 0, 0

    def poll() -> None:
        nonlocal polls_n, seen_n
        polls_n += 1
        seen_n = max(seen_n, sum(client.at.values()))
        if polls_n == 40:
            # As aiokafka does it: the assignment stays as it was, and where it read is forgotten.
            client.at = dict.fromkeys(topic.logs, 0)
            client.listener.on_partitions_assigned(client.assignment())
        if polls_n == 42:
            assert sum(client.at.values()) > 2000, "the whole topic is read again"
        if polls_n == 200:
            stopping.ask()

    client = Client(topic, clock, {0, 1, 2}, before_poll=poll)
    await live(store, clock, client, stopping=stopping)
    assert await done_n(store) == 3000
    assert sum((await kept(store)).values()) == 3000
