"""The event bus's contract: on the embedded broker, and on a real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from service.app.clock import SystemClock
from service.events.connection import Connection
from service.events.consumer import EventConsumer
from service.events.publisher import KafkaBus, Producer
from service.events.sending import message
from service.lab.broker import EmbeddedBroker
from service.model.instruction import Publish
from service.model.stimulus import DeploymentEvent
from service.ring.ports import Refused, Unavailable
from service.ring.seen import Unseen
from service.ring.stopping import Stopping
from tests.conformance import conformance
from tests.stories import SERVICE, START, Story, lean

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


PRODUCE, TOO_LARGE = 0, 10
"""The protocol's numbers of a request and of an error."""


class Broker:
    """A broker on which topics can be made."""

    def __init__(self, bootstrap: str, embedded: EmbeddedBroker | None) -> None:
        self.bootstrap = bootstrap
        self.embedded = embedded
        self.n = 0

    async def topics(self, dead_bytes: int | None = None) -> tuple[str, str]:
        """A fresh topic with its dead-letter topic, which takes records of ``dead_bytes``; the embedded broker knows no
        such limit, so it refuses the next record instead."""
        self.n += 1
        names = (f"events-{self.n}", f"dead-{self.n}")
        if self.embedded is not None:
            for name in names:
                self.embedded.create_topic(name)
            if dead_bytes is not None:
                self.embedded.answer_next(PRODUCE, TOO_LARGE)
            return names
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        limits = {} if dead_bytes is None else {"max.message.bytes": str(dead_bytes)}
        await admin.create_topics([NewTopic(names[0], 1, 1), NewTopic(names[1], 1, 1, topic_configs=limits)])
        await admin.close()
        return names


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


class Reader:
    """A consumer shell whose handler the test owns."""

    def __init__(
        self, broker: Broker, topics: tuple[str, str], producer: Producer, fail_n: int = 0, **more: Any
    ) -> None:
        self.events: list[DeploymentEvent] = []
        self.fail_n = fail_n
        self.seen = asyncio.Event()
        self.consumer = EventConsumer(
            Connection(broker.bootstrap),
            topic=topics[0],
            group="serinus-test",
            dead_letter_topic=topics[1],
            producer=producer,
            handle=self.handle,
            **{"clock": SystemClock(), **more},
        )

    async def handle(self, events: Sequence[DeploymentEvent]) -> None:
        if events and self.fail_n > 0:
            self.fail_n -= 1
            raise Unavailable("as told")
        self.events += events
        self.seen.set()

    async def until(self, n: int) -> None:
        async with asyncio.timeout(30):
            while len(self.events) < n:
                self.seen.clear()
                await self.seen.wait()


@contextlib.asynccontextmanager
async def reading(broker: Broker, topics: tuple[str, str], **given: Any) -> AsyncIterator[Reader]:
    producer = Producer(Connection(broker.bootstrap))
    reader = Reader(broker, topics, producer, **given)
    task = asyncio.create_task(reader.consumer.run())
    yield reader
    # One more poll, so that what was handed over is committed.
    await asyncio.sleep(1.2)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await producer.stop()


async def send(broker: Broker, topic: str, *events: bytes | str | None) -> None:
    producer = Producer(Connection(broker.bootstrap))
    for event in events:
        if isinstance(event, str):
            sent = message(
                kind="upgraded", namespace="ml", service="x", at=datetime.now(UTC), version=event, event_id=event
            )
            await producer.send(topic, key=sent.key, value=sent.value, headers=list(sent.headers))
        else:
            await producer.send(topic, key=b"k", value=event, headers=[("h", b"1")])
    await producer.stop()


async def read_all(broker: Broker, topic: str, n: int) -> list[Any]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    out: list[Any] = []
    async with asyncio.timeout(30):
        while len(out) < n:
            out += [r for rows in (await consumer.getmany(timeout_ms=500)).values() for r in rows]
    await consumer.stop()
    return out


async def test_events_arrive_in_order_and_only_once_over_a_restart(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], "1", "2", "3")
    async with reading(broker, topics) as reader:
        await reader.until(3)
    assert [e.version for e in reader.events] == ["1", "2", "3"]
    await send(broker, topics[0], "4")
    async with reading(broker, topics) as again:
        await again.until(1)
    assert [e.version for e in again.events] == ["4"]


async def test_a_handler_that_fails_gets_the_same_events_again(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], "1", "2")
    async with reading(broker, topics, fail_n=2) as reader:
        await reader.until(2)
    assert [e.version for e in reader.events] == ["1", "2"]


async def test_a_crash_before_the_commit_brings_the_events_again(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], "1")
    producer = Producer(Connection(broker.bootstrap))
    reader = Reader(broker, topics, producer, fail_n=1_000_000)
    task = asyncio.create_task(reader.consumer.run())
    async with asyncio.timeout(30):
        while reader.fail_n == 1_000_000:
            await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await producer.stop()
    async with reading(broker, topics) as again:
        await again.until(1)
    assert [e.version for e in again.events] == ["1"]


class Backlog(Unseen):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.records_n: list[int] = []
        self.outcomes: list[str] = []
        self.turns = 0

    def turned(self, loop: str) -> None:
        self.turns += 1

    def behind(self, records_n: int) -> None:
        self.records_n.append(records_n)

    def event(self, outcome: str, lag_s: float) -> None:
        assert 0 <= lag_s < 60
        self.outcomes.append(outcome)


async def test_what_waits_on_the_bus_is_told_and_a_loop_that_retries_still_goes_round(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], "1", "2", b"[]")
    seen = Backlog()
    async with reading(broker, topics, fail_n=3, seen=seen) as reader:
        await reader.until(2)
    assert max(seen.records_n) == 3
    assert seen.records_n[-1] == 0
    assert sorted(seen.outcomes) == ["dead_letter", "taken", "taken"]
    assert seen.turns > 4


async def test_a_stop_leaves_what_was_not_taken_on_the_topic_and_leaves_the_group(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], "1")
    stopping = Stopping()
    producer = Producer(Connection(broker.bootstrap))
    reader = Reader(broker, topics, producer, fail_n=1_000_000, stopping=stopping)
    task = asyncio.create_task(reader.consumer.run())
    async with asyncio.timeout(30):
        while reader.fail_n == 1_000_000:
            await asyncio.sleep(0.05)
        assert "as told" in reader.consumer.waits_for
        stopping.ask()
        await task
    assert reader.events == []
    async with reading(broker, topics) as again:
        await again.until(1)
    await producer.stop()
    assert [e.version for e in again.events] == ["1"]


async def test_a_standby_without_partitions_hears_of_the_brokers(broker: Broker) -> None:
    if broker.embedded:
        pytest.skip("the embedded broker's groups have one member")
    topics = await broker.topics()
    async with reading(broker, topics) as one, reading(broker, topics) as other, asyncio.timeout(60):
        while one.consumer.assigned_n + other.consumer.assigned_n != 1 or not all(
            reader.consumer.last_heard_at for reader in (one, other)
        ):
            await asyncio.sleep(0.1)


async def test_what_cannot_be_read_is_buried_with_reason_and_origin_and_stops_nothing(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], b"{", None, "5", b"[]")
    async with reading(broker, topics) as reader:
        await reader.until(1)
    letters = await read_all(broker, topics[1], 3)
    headers = [dict(letter.headers) for letter in letters]
    assert [h["x-error-type"] for h in headers] == [b"bad-json", b"tombstone", b"bad-json"]
    assert [h["x-original-offset"] for h in headers] == [b"0", b"1", b"3"]
    assert all(h["x-original-topic"] == topics[0].encode() and h["x-error-message"] for h in headers)
    assert letters[0].value == b"{"
    assert headers[0]["h"] == b"1"


async def test_after_a_record_that_the_broker_refused_the_next_ones_on_its_partition_are_taken(broker: Broker) -> None:
    _, topic = await broker.topics(dead_bytes=100_000)
    producer = Producer(Connection(broker.bootstrap))
    with pytest.raises(Refused, match=f"the broker takes no record of 400.* bytes for {topic}"):
        await producer.send(topic, key=b"k", value=bytes(400_000), headers=[])
    for n in range(3):
        await producer.send(topic, key=b"k", value=b"%d" % n, headers=[])
    # Known by now, it does not even go there.
    with pytest.raises(Refused, match=f"not sent to {topic}: the broker refused one of 400001 bytes"):
        await producer.send(topic, key=b"k", value=bytes(400_001), headers=[])
    await producer.stop()
    assert [record.value for record in await read_all(broker, topic, 3)] == [b"0", b"1", b"2"]


async def test_a_dead_letter_that_is_too_large_for_its_topic_is_kept_with_reason_and_origin_and_less_of_its_value(
    broker: Broker,
) -> None:
    topics = await broker.topics()
    poison = b"{" + bytes(400_000)
    await send(broker, topics[0], poison, "after")
    topics = (topics[0], (await broker.topics(dead_bytes=100_000))[1])
    async with reading(broker, topics) as reader:
        await reader.until(1)
    (letter,) = await read_all(broker, topics[1], 1)
    headers = dict(letter.headers)
    assert poison.startswith(letter.value)
    assert letter.value
    assert headers["x-error-type"] == b"bad-json"
    assert headers["x-error-message"]
    assert (headers["x-original-topic"], headers["x-original-offset"]) == (topics[0].encode(), b"0")


async def test_a_record_with_neither_key_nor_value_is_buried_too(broker: Broker) -> None:
    topics = await broker.topics()
    sender = AIOKafkaProducer(bootstrap_servers=broker.bootstrap)
    await sender.start()
    batch = sender.create_batch()
    batch.append(key=None, value=None, timestamp=None)
    await (await sender.send_batch(batch, topics[0], partition=0))
    await sender.stop()
    await send(broker, topics[0], "after")
    async with reading(broker, topics) as reader:
        await reader.until(1)
    (letter,) = await read_all(broker, topics[1], 1)
    assert dict(letter.headers)["x-error-type"] == b"tombstone"


class Hurried(SystemClock):
    """Waits a hundredth of what is asked."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 100)


async def test_an_event_whose_handling_fails_is_buried_alone_and_its_batch_mates_are_taken(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], *(str(n) for n in range(40)))
    tried: list[int] = []
    async with reading(broker, topics, clock=Hurried()) as reader:
        take = reader.handle

        async def handle(events: Sequence[DeploymentEvent]) -> None:
            if any(event.version == "17" for event in events):
                tried.append(len(events))
                raise ValueError("nobody foresaw this")
            await take(events)

        reader.consumer._handle = handle
        await reader.until(39)
    assert sorted(int(e.version or "") for e in reader.events) == [n for n in range(40) if n != 17]
    assert tried.count(1) == 3, "it must be tried again alone, and not for ever"
    (letter,) = await read_all(broker, topics[1], 1)
    headers = dict(letter.headers)
    assert headers["x-error-type"] == b"unhandled"
    assert b"ValueError: nobody foresaw this" in headers["x-error-message"]
    assert headers["x-original-offset"] == b"17"
    assert b'"version":"17"' in letter.value


async def test_when_every_event_fails_the_fault_is_ours_and_the_rest_waits(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], *(str(n) for n in range(30)))
    broken = True
    async with reading(broker, topics, clock=Hurried()) as reader:
        take = reader.handle

        async def handle(events: Sequence[DeploymentEvent]) -> None:
            if broken:
                raise RuntimeError("the database driver has a bug")
            await take(events)

        reader.consumer._handle = handle
        letters = await read_all(broker, topics[1], 10)
        await asyncio.sleep(0.5)
        assert "the database driver has a bug" in reader.consumer.waits_for
        broken = False
        await reader.until(20)
    assert len(letters) == 10
    assert len(reader.events) == 20


async def test_a_group_that_rebalances_again_and_again_loses_no_event(broker: Broker) -> None:
    topics = await broker.topics()
    await send(broker, topics[0], *(str(n) for n in range(300)))
    taken: set[str] = set()
    for turn in range(2):
        async with contextlib.AsyncExitStack() as stack:
            # The embedded broker's groups have one member, so there each turn is a member that comes anew.
            members = [
                await stack.enter_async_context(reading(broker, topics)) for _ in range(2 - bool(broker.embedded))
            ]
            async with asyncio.timeout(30):
                while not any(member.events for member in members):
                    await asyncio.sleep(0.05)
        taken |= {event.id for member in members for event in member.events}
        await send(broker, topics[0], *(f"{turn}-{n}" for n in range(20)))
    async with reading(broker, topics) as last, asyncio.timeout(30):
        while len(taken | {e.id for e in last.events}) < 300 + 2 * 20:
            await asyncio.sleep(0.1)


async def test_decisions_are_cloudevents_that_other_tools_can_read(broker: Broker) -> None:
    topic, _ = await broker.topics()
    story = Story(at=START).progressing().window(harmful=True, **lean(200)).written()
    orders = [o for step in story.steps for o in step.orders if isinstance(o, Publish)]
    producer = Producer(Connection(broker.bootstrap))
    bus = KafkaBus(producer, topic)
    for order in orders:
        await bus.publish(order)
    await producer.stop()
    records = await read_all(broker, topic, len(orders) + 1)
    assert {r.key for r in records} == {SERVICE.bus_key.encode()}
    bodies = [json.loads(r.value) for r in records]
    assert [b["data"]["subject"]["content"].get("decision") for b in bodies][-2:] == ["rollback", None]
    assert bodies[-1]["type"] == "dev.cdevents.service.rolledback.0.3.0"
    schema = json.loads((conformance("cdevents/schemas") / "servicerolledback.json").read_text())
    folder: Path = conformance("cdevents/schemas")
    links = {f"{f.stem}": json.loads(f.read_text()) for f in (folder / "links").glob("*.json")}
    schema["properties"]["context"]["properties"].pop("links", None)
    assert links
    jsonschema.validate(bodies[-1]["data"], schema)
