"""When the producer is made anew, and when it is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from service.events import publisher
from service.events.connection import Connection
from service.events.publisher import BATCH_BYTES, Producer
from service.ring.ports import Refused, Unavailable

TOPIC = "cd.events.serinus"


class Client:
    """A Kafka client that numbers the records of its one partition: after one that failed it takes no more."""

    def __init__(self, brokers: Brokers) -> None:
        self.brokers = brokers
        self.gap = self.stuck = self.stopped = self.closed = False
        self.client = self._sender = self
        self.sender_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.brokers.check_ended()
        self.sender_task = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]

    async def send(self, topic: str, *, value: bytes, **_: Any) -> asyncio.Future[None]:
        if self.brokers.before is not None:
            raise self.brokers.before
        self.brokers.asked_n += 1
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._answer, sent, value)
        return sent

    def _answer(self, sent: asyncio.Future[None], value: bytes) -> None:
        failure = OutOfOrderSequenceNumber() if self.gap else self.brokers.failure(value)
        if failure is not None:
            self.gap = True
            sent.set_exception(failure)
        elif self.brokers.silent:
            self.stuck = True
        else:
            self.brokers.taken.append(value)
            sent.set_result(None)

    async def stop(self) -> None:
        self.stopped = True
        if self.stuck:
            await asyncio.Event().wait()
        self.end()

    async def close(self) -> None:
        self.closed = True

    def end(self) -> None:
        if self.sender_task is not None:
            self.sender_task.cancel()


class Brokers:
    """What the clients reach."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.taken: list[bytes] = []
        self.asked_n = 0
        self.before: KafkaError | None = None
        self.failure: Callable[[bytes], KafkaError | None] = lambda value: None
        self.silent = False

    def client(self, **_: Any) -> Any:
        self.clients.append(Client(self))
        return self.clients[-1]

    def check_ended(self) -> None:
        """A client may start once the one before sends nothing any more."""
        for one in self.clients[:-1]:
            assert one.sender_task is not None
            assert one.sender_task.cancelled() or one.sender_task.cancelling()

    def fail(self, value: bytes, error: KafkaError) -> None:
        self.failure = lambda given: error if given == value else None


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


@pytest.fixture
def producer(brokers: Brokers) -> Producer:
    return Producer(Connection("nowhere:9092"), client=brokers.client)


async def put(producer: Producer, value: bytes) -> None:
    await producer.send(TOPIC, key=b"k", value=value, headers=[])


@pytest.mark.parametrize("error", [LeaderNotAvailableError(), TopicAuthorizationFailedError(TOPIC)])
async def test_after_a_record_that_the_client_gave_up_the_next_send_goes_by_a_new_one(
    brokers: Brokers, producer: Producer, error: KafkaError
) -> None:
    await put(producer, b"1")
    brokers.fail(b"2", error)
    with pytest.raises(Unavailable, match=f"cannot publish to {TOPIC} on nowhere:9092"):
        await put(producer, b"2")
    for value in (b"3", b"4"):
        await put(producer, value)
    assert brokers.taken == [b"1", b"3", b"4"]
    assert [one.stopped for one in brokers.clients] == [True, False]
    await producer.stop()


async def test_of_many_that_fail_with_one_client_none_tears_down_the_new_one(
    brokers: Brokers, producer: Producer
) -> None:
    await put(producer, b"1")
    brokers.fail(b"bad", TopicAuthorizationFailedError(TOPIC))

    async def until_taken(value: bytes) -> None:
        while True:
            try:
                return await put(producer, value)
            except Unavailable:
                pass

    values = [b"%d" % n for n in range(20)]
    told = await asyncio.gather(put(producer, b"bad"), *map(until_taken, values), return_exceptions=True)
    assert [type(one) for one in told if one is not None] == [Unavailable]
    assert sorted(brokers.taken) == sorted([b"1", *values])
    assert len(brokers.clients) == 2
    await producer.stop()


async def test_a_topic_that_is_not_known_yet_leaves_the_client_alone(brokers: Brokers, producer: Producer) -> None:
    brokers.before = UnknownTopicOrPartitionError()
    with pytest.raises(Unavailable):
        await put(producer, b"1")
    brokers.before = None
    await put(producer, b"2")
    assert (brokers.taken, len(brokers.clients)) == ([b"2"], 1)
    await producer.stop()


async def test_a_record_that_the_client_itself_refuses_leaves_it_alone(brokers: Brokers, producer: Producer) -> None:
    brokers.before = MessageSizeTooLargeError("larger than max_request_size")
    with pytest.raises(Refused, match="the client takes no record of 2000001 bytes"):
        await put(producer, bytes(2_000_000))
    brokers.before = None
    await put(producer, b"2")
    assert len(brokers.clients) == 1
    await producer.stop()


async def test_a_size_that_a_topic_refused_is_not_offered_to_it_again_until_its_limit_may_have_been_raised(
    brokers: Brokers, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    brokers.failure = lambda value: MessageSizeTooLargeError() if len(value) > 1000 else None
    with pytest.raises(Refused, match="the broker takes no record"):
        await put(producer, bytes(BATCH_BYTES))
    for _ in range(3):
        with pytest.raises(Refused, match=r"raise max\.message\.bytes of the topic"):
            await put(producer, bytes(BATCH_BYTES))
    assert brokers.asked_n == 1
    # Small ones are sent together, so that it is not known which of them was too large.
    for _ in range(2):
        with pytest.raises(Refused, match="the broker takes no record"):
            await put(producer, bytes(1001))
    brokers.failure = lambda value: None
    loop = asyncio.get_running_loop()
    now_s = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now_s + publisher.REFUSED_S + 1)
    await put(producer, bytes(BATCH_BYTES))
    assert len(brokers.taken) == 1
    monkeypatch.undo()
    await producer.stop()


async def test_what_the_brokers_never_take_is_given_up_with_the_client_and_cut_off(
    brokers: Brokers, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "SEND_S", 0.01)
    monkeypatch.setattr(publisher, "STOP_S", 0.01)
    brokers.silent = True
    with pytest.raises(Unavailable):
        await put(producer, b"1")
    brokers.silent = False
    await put(producer, b"2")
    (first, second) = brokers.clients
    assert first.closed
    assert first.sender_task is not None
    assert first.sender_task.cancelled()
    assert (second.stopped, brokers.taken) == (False, [b"2"])
    await producer.stop()


async def test_who_is_cut_off_while_the_old_client_leaves_does_not_keep_it_running(
    brokers: Brokers, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "STOP_S", 0.05)
    await put(producer, b"1")
    brokers.clients[0].stuck = True
    brokers.fail(b"2", LeaderNotAvailableError())
    with pytest.raises(Unavailable):
        await put(producer, b"2")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await put(producer, b"3")
    await put(producer, b"4")
    assert brokers.clients[0].closed
    assert brokers.taken == [b"1", b"4"]
    await producer.stop()
