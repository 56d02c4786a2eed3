"""`make bench`: from an event on the topic to the weight on the API server, beside the bare round trip of the same run.

Bare means: produce, consume, one JSON patch, seen on a watch, with the same clients at the same rate and nothing in
between. Also printed: start to ready, and resident memory with the rollouts of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from kubernetes.aio import client

from tests.embedded import virtual_service
from tests.processes import status_kb
from tests.real.rig import NAMESPACE, Rig, rig

EVENTS = 200
EVENTS_PER_S = 20.0
LIMIT_MS = 250.0
LIMIT_TIMES_BARE = 5.0


async def main() -> int:
    """Run and print; 1 when a figure is past its limit."""
    with tempfile.TemporaryDirectory() as folder:
        async with rig(Path(folder)) as real:
            without_readiness(real)
            names = [f"bench-{n}" for n in range(EVENTS)]
            bare_names = [f"bare-{n}" for n in range(EVENTS)]
            custom = client.CustomObjectsApi(real.api)
            for name in (*names, *bare_names):
                await put_route(custom, name)
            await real.start_service()
            bare = await measure_bare(real, custom, bare_names)
            ours = await measure_service(real, names)
            rss_mb = resident_mb(real)
            real.stop_service()
            starts = [await restart(real) for _ in range(3)]
    print(f"{EVENTS} events at {EVENTS_PER_S:g}/s, milliseconds from produce to the weight on a watch:")
    for label, row in (("bare produce, consume, patch", bare), ("serinus", ours)):
        print(f"  {label:30} p50 {np.percentile(row, 50):7.1f}  p99 {np.percentile(row, 99):7.1f}  max {max(row):7.1f}")
    times = np.percentile(ours, 99) / np.percentile(bare, 99)
    print(f"  p99 is {times:.1f} times the bare one (limit: {LIMIT_MS:g} ms or {LIMIT_TIMES_BARE:g} times)")
    print(f"start to ready: {', '.join(f'{s:.2f}' for s in starts)} s (limit 3 s)")
    print(f"resident memory with {EVENTS} rollouts: {rss_mb:.0f} MB (limit 200 MB with 100)")
    late = np.percentile(ours, 99) > LIMIT_MS and times > LIMIT_TIMES_BARE
    return int(late or min(starts) > 3.0 or rss_mb > 200)


def without_readiness(real: Rig) -> None:
    """A weight right after the event: what is measured is the way, not the waiting for pods."""
    file = real.folder / "config" / "targets" / "all.yaml"
    (target,) = yaml.safe_load(file.read_text())
    del target["readiness"]
    file.write_text(yaml.safe_dump([target]))


async def put_route(custom: client.CustomObjectsApi, name: str) -> None:
    """A route with all traffic on v1."""
    body = virtual_service(name)
    await custom.create_namespaced_custom_object("networking.istio.io", "v1", NAMESPACE, "virtualservices", body)


@contextlib.asynccontextmanager
async def watching(real: Rig) -> AsyncIterator[dict[str, float]]:
    """Moments at which each route's canary was first seen above 0, by name."""
    seen: dict[str, float] = {}
    trust = ssl.create_default_context(cafile=real.kube.ca)
    headers = {"Authorization": f"Bearer {real.kube.tokens['admin']}"}
    url = f"{real.kube.url}/apis/networking.istio.io/v1/namespaces/{NAMESPACE}/virtualservices?watch=1"
    timeout = aiohttp.ClientTimeout(total=None)

    async def follow(session: aiohttp.ClientSession) -> None:
        async with session.get(url, headers=headers, ssl=trust) as stream:
            async for line in stream.content:
                vs: dict[str, Any] = json.loads(line)["object"]
                if vs["spec"]["http"][0]["route"][1].get("weight", 0) > 0:
                    seen.setdefault(vs["metadata"]["name"].removesuffix("-route"), time.monotonic())

    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20) as session:
        task = asyncio.create_task(follow(session))
        await asyncio.sleep(1.0)
        yield seen
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def paced(names: list[str], send: Any) -> dict[str, float]:
    """Send one event a name at the rate; the moments of sending."""
    sent: dict[str, float] = {}
    began = time.monotonic()
    for n, name in enumerate(names):
        await asyncio.sleep(max(0.0, began + n / EVENTS_PER_S - time.monotonic()))
        sent[name] = time.monotonic()
        await send(name)
    return sent


async def delays(seen: dict[str, float], sent: dict[str, float]) -> list[float]:
    """Milliseconds of each, once all are there."""
    deadline = time.monotonic() + 60
    while len(seen.keys() & sent.keys()) < len(sent):
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {len(seen.keys() & sent.keys())} of {len(sent)} weights were seen")
        await asyncio.sleep(0.1)
    return [1000 * (seen[name] - sent[name]) for name in sent]


async def measure_service(real: Rig, names: list[str]) -> list[float]:
    """Event to weight through the service."""
    async with watching(real) as seen:
        sent = await paced(names, lambda name: real.announce(name, version="2.13.0"))
        return await delays(seen, sent)


async def measure_bare(real: Rig, custom: client.CustomObjectsApi, names: list[str]) -> list[float]:
    """The same way with nothing in between."""
    admin = AIOKafkaAdminClient(bootstrap_servers=real.broker.bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("bare", 3, 1)])
    await admin.close()
    consumer = AIOKafkaConsumer("bare", bootstrap_servers=real.broker.bootstrap, auto_offset_reset="earliest")
    await consumer.start()

    async def carry() -> None:
        async for record in consumer:
            patch = [{"op": "add", "path": "/spec/http/0/route/1/weight", "value": 10}]
            await custom.patch_namespaced_custom_object(
                "networking.istio.io", "v1", NAMESPACE, "virtualservices", f"{record.value.decode()}-route", patch,
                _content_type="application/json-patch+json",
            )  # fmt: skip

    carrying = asyncio.create_task(carry())
    async with watching(real) as seen:
        sent = await paced(names, lambda name: real.producer.send("bare", key=None, value=name.encode(), headers=[]))
        out = await delays(seen, sent)
    carrying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await carrying
    await consumer.stop()
    return out


async def restart(real: Rig) -> float:
    """Seconds from exec to ready."""
    took = await real.start_service()
    real.stop_service()
    return took


def resident_mb(real: Rig) -> float:
    """Resident memory of the service."""
    assert real.process is not None
    return status_kb(real.process.pid, "VmRSS") / 1000


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
