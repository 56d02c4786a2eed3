"""Decisions out: CloudEvents with a CDEvents body on one topic, keyed by service so that their order holds."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from service.events.connection import Connection
from service.model.instruction import Publish
from service.model.trace import is_made
from service.ring.ports import Refused, Unavailable

DECIDED = "dev.cdeventsx.serinus-analysis.decided.0.1.0"
ROLLED_BACK = "dev.cdevents.service.rolledback.0.3.0"
CONTENT_TYPE = b"application/cloudevents+json; charset=UTF-8"

SEND_S = 30.0
"""A record that is not on its topic by then is given up. Longer than a request may take, so that what the brokers say
comes first."""

STOP_S = 5.0
"""What a producer still holds may take so long to be sent when it is stopped."""

BATCH_BYTES = 16 * 1024
"""The client puts no more than this together; a larger record goes alone."""

REFUSED_S = 600.0
"""A size that a topic refused is not offered to it again for so long; people may raise its limit meanwhile."""

logger = logging.getLogger(__name__)


class Producer:
    """One idempotent producer, started when it is first needed and made anew after a failure.

    The client numbers the records of each partition, and repeats by itself what can be repeated. A record that it gives
    up leaves a gap in the numbers, and the broker takes nothing more on that partition from this client; it does from
    a new one, which has another identity.
    """

    def __init__(self, connection: Connection, *, client: Callable[..., AIOKafkaProducer] = AIOKafkaProducer) -> None:
        self._connection = connection
        self._client = client
        self._producer: AIOKafkaProducer | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._refused: dict[str, tuple[int, float]] = {}

    async def send(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        """Put one record on a topic; returns when all in-sync replicas have it. Raises Refused for one that is too
        large, and Unavailable."""
        size = len(key or b"") + len(value or b"") + sum(len(name.encode()) + len(said) for name, said in headers)
        refused_bytes, until_s = self._refused.get(topic, (0, 0.0))
        if size >= refused_bytes and asyncio.get_running_loop().time() < until_s:
            raise Refused(
                f"a record of {size} bytes is not sent to {topic}: the broker refused one of {refused_bytes} bytes; "
                "raise max.message.bytes of the topic"
            )
        producer: AIOKafkaProducer | None = None
        queued = False
        try:
            producer = await self._started()
            async with asyncio.timeout(SEND_S):
                sent = await producer.send(topic, key=key, value=value, headers=headers)
                queued = True
                await sent
        except MessageSizeTooLargeError as error:
            if queued:
                self._drop(producer, error)
                if size > BATCH_BYTES:
                    self._refused[topic] = (size, asyncio.get_running_loop().time() + REFUSED_S)
            who = "the broker" if queued else "the client"
            raise Refused(f"{who} takes no record of {size} bytes for {topic}: {error}") from error
        except (KafkaError, OSError) as error:
            # Before it was queued, what may go away by itself (a topic that is not known yet) has left no gap.
            if queued or not getattr(error, "retriable", False):
                self._drop(producer, error)
            raise Unavailable(
                f"cannot publish to {topic} on {self._connection.bootstrap_servers}: {error!r}"
            ) from error

    async def _started(self) -> AIOKafkaProducer:
        """The one producer. Several first sends at once wait for the same start, and for the end of the one before:
        what that repeats must not come after newer records."""
        async with self._starting:
            if self._leaving is not None:
                await asyncio.shield(self._leaving)
                self._leaving = None
            if self._producer is None:
                producer = self._client(**self._connection.arguments(), acks="all", enable_idempotence=True)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    def _drop(self, producer: AIOKafkaProducer | None, why: Exception) -> None:
        """Let go of a producer that failed, unless somebody else has."""
        if producer is None or producer is not self._producer:
            return
        logger.warning("the producer is made anew after %r", why, extra={"action": "producer_anew"})
        self._producer = None
        # A task of its own: who sends may be cut off, and a stop that is cut off leaves the client running.
        self._leaving = asyncio.create_task(_stopped(producer), name="producer leaves")

    async def stop(self) -> None:
        """Let go of the brokers."""
        if self._leaving is not None:
            await asyncio.shield(self._leaving)
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stopped(producer)


async def _stopped(producer: AIOKafkaProducer) -> None:
    """Stop it within ``STOP_S``, or else cut it off with what it still holds."""
    try:
        async with asyncio.timeout(STOP_S):
            await producer.stop()
    except (KafkaError, OSError) as error:
        logger.warning("the producer is cut off: %r", error, extra={"action": "producer_cut_off"})
        # Its stop waits for as long as the brokers do not take what it holds; cut off, it leaves its parts running.
        await producer.client.close()
        sending = producer._sender.sender_task
        if sending is not None:
            sending.cancel()
            await asyncio.wait({sending}, timeout=STOP_S)


class KafkaBus:
    """Implements ``ring.ports.Bus``."""

    def __init__(self, producer: Producer, topic: str, *, source: str = "/serinus") -> None:
        self._producer = producer
        self._topic = topic
        self._source = source

    async def publish(self, order: Publish) -> None:
        """See ``Bus.publish``. A repeat carries the same event id."""
        for event in events_of(order, self._source):
            await self._producer.send(
                self._topic,
                key=order.service.bus_key.encode(),
                value=json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode(),
                headers=[("content-type", CONTENT_TYPE)],
            )


def events_of(order: Publish, source: str) -> list[dict[str, Any]]:
    """The CloudEvents that tell a decision: ours, and after a rollback the one that every CDEvents tool knows."""
    subject = {"id": order.rollout, "source": source, "content": order.content}
    events = [_cloudevent(order, source, DECIDED, order.event_id, subject)]
    if order.rolled_back:
        content = {
            "environment": {"id": order.service.cluster},
            "artifactId": str(order.content.get("artifactId") or f"pkg:generic/{order.service.name}"),
        }
        service = {"id": order.service.bus_key, "source": source, "content": content}
        events.append(_cloudevent(order, source, ROLLED_BACK, f"{order.event_id}.rolledback", service))
    return events


def _cloudevent(order: Publish, source: str, kind: str, event_id: str, subject: dict[str, Any]) -> dict[str, Any]:
    at = _rfc3339(order.at)
    context: dict[str, Any] = {"specversion": "0.5.1", "id": event_id, "source": source, "type": kind, "timestamp": at}
    if order.chain_id:
        context["chainId"] = order.chain_id
    if kind == DECIDED and order.trigger_id:
        target = {"contextId": order.trigger_id}
        context["links"] = [{"linkType": "RELATION", "linkKind": "TRIGGER", "target": target}]
    # Only a sender's own trace is passed on: one that was made here would decide for others what they sample.
    trace = {"traceparent": order.traceparent} if order.traceparent and not is_made(order.traceparent) else {}
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": kind,
        "subject": order.service.bus_key,
        "time": at,
        "datacontenttype": "application/json",
        "partitionkey": order.service.bus_key,
        **trace,
        "data": {"context": context, "subject": subject},
    }


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
