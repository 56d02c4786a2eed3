"""Decisions out: CloudEvents with a CDEvents body on one topic, keyed by service so that their order holds."""

from __future__ import annotations

import asyncio
import json
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


class Producer:
    """One idempotent producer, started when it is first needed and made anew after a failure."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def send(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        """Put one record on a topic; returns when all in-sync replicas have it."""
        try:
            producer = await self._started()
            await producer.send_and_wait(topic, key=key, value=value, headers=headers)
        except MessageSizeTooLargeError as error:
            raise Refused(f"the broker takes no record of this size on {topic}: {error}") from error
        except (KafkaError, OSError) as error:
            raise Unavailable(
                f"cannot publish to {topic} on {self._connection.bootstrap_servers}: {error!r}"
            ) from error

    async def _started(self) -> AIOKafkaProducer:
        """The one producer. Several first sends at once wait for the same start."""
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(**self._connection.arguments(), acks="all", enable_idempotence=True)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def stop(self) -> None:
        """Let go of the brokers."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()


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
