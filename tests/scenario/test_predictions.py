"""The whole service counts a topic of prediction records, once, over a restart."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from service.events.sending import Message
from service.ring.predictions import PartitionState
from service.storage.opening import open_to_read
from service.storage.predictions import SqlPredictions
from tests.embedded import NAMESPACE, Embedded, embedded, produce

TOPIC = "predictions"


def records(n: int) -> list[Message]:
    body = {"service": "svc-0", "namespace": NAMESPACE, "version": "v1", "class": "cat"}
    return [
        Message(key=str(i).encode(), value=json.dumps({**body, "time": time.time()}).encode(), headers=())
        for i in range(n)
    ]


async def counted(parts: Embedded, n: int) -> list[PartitionState]:
    """The partitions once so many records are counted."""
    async with asyncio.timeout(60):
        while True:
            store = await open_to_read(f"sqlite:///{parts.folder / 'serinus.db'}")
            states = list(await SqlPredictions(store).partitions(TOPIC))
            await store.close()
            if sum(one.counted_n for one in states) >= n:
                return states
            await asyncio.sleep(0.5)


async def test_records_are_counted_by_the_service_once_over_a_restart(tmp_path: Path) -> None:
    settings = {"predictions": {"topic": TOPIC, "lateness": "60s"}}
    async with embedded(tmp_path) as parts:
        parts.broker.create_topic(TOPIC, 3)
        async with parts.service(**settings):
            await asyncio.to_thread(produce, parts.broker.bootstrap, TOPIC, records(400))
            await counted(parts, 400)
        await asyncio.to_thread(produce, parts.broker.bootstrap, TOPIC, records(200))
        async with parts.service(**settings):
            states = await counted(parts, 600)
    assert len(states) == 3
    assert sum(one.counted_n for one in states) == sum(one.next_offset for one in states) == 600
    assert sum(one.poison_n + one.late_n + one.refused_n for one in states) == 0
