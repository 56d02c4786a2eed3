"""The shipped presets on a real Prometheus that scrapes what the exporters print, to the letter."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from service.app.clock import SystemClock
from service.sources.prometheus import PrometheusSource
from tests.contract.source.expositions import Served
from tests.contract.source.test_shipped_presets import CANARY, SERVERS, STABLE, expect, preset_of, query
from tests.real.parts.building import prometheus
from tests.real.parts.prometheus import PrometheusServer

pytestmark = pytest.mark.real


class Pods:
    """A pod of each version of each kind of server, on one port."""

    def __init__(self) -> None:
        self.pods = {
            (name, version): Served(answered, failed, took_s)
            for name in SERVERS
            for version, answered, failed, took_s in ((STABLE, 1000, 10, 0.02), (CANARY, 100, 1, 0.03))
        }
        self._scraped = asyncio.Condition()
        self._scraped_n = Counter[tuple[str, str]]()

    async def metrics(self, request: web.Request) -> web.Response:
        """What one pod prints."""
        key = (request.match_info["preset"], request.match_info["version"])
        text = SERVERS[key[0]].prints(self.pods[key]).replace("REVISION", key[1])
        async with self._scraped:
            self._scraped_n[key] += 1
            self._scraped.notify_all()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    def serve(self, version: str, answered: int, failed: int) -> None:
        """So many more requests by every pod of a version."""
        for key, pod in self.pods.items():
            if key[1] == version:
                self.pods[key] = replace(pod, answered=pod.answered + answered, failed=pod.failed + failed)

    async def between_scrapes(self) -> float:
        """A moment that a scrape of all that stands now lies before, and that every earlier scrape is stored at."""
        await self._scrapes(2)
        between = time.time()
        await self._scrapes(1)
        return between

    async def _scrapes(self, n: int) -> None:
        async with self._scraped, asyncio.timeout(60):
            wanted = {key: self._scraped_n[key] + n for key in self.pods}
            await self._scraped.wait_for(lambda: all(self._scraped_n[key] >= m for key, m in wanted.items()))


@asynccontextmanager
async def scraped(folder: Path) -> AsyncIterator[tuple[Pods, PrometheusServer]]:
    pods = Pods()
    app = web.Application()
    app.router.add_get("/{preset}/{version}", pods.metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    jobs = {f"{name}-{version}": (name, version) for name, version in pods.pods}
    server = await asyncio.to_thread(
        lambda: PrometheusServer(prometheus(), folder, dict.fromkeys(jobs, address), honor_labels=False)
    )
    for job, (name, version) in jobs.items():
        labels = {SERVERS[name].label: version, "job": "serving", "pod": f"{name}-{version}"}
        server.aim(job, address, **labels, __metrics_path__=f"/{name}/{version}")
    try:
        await asyncio.to_thread(server.start)
        yield pods, server
    finally:
        await asyncio.to_thread(server.stop)
        await runner.cleanup()


async def test_every_metric_of_every_preset_is_read_from_what_the_exporters_print(tmp_path: Path) -> None:
    async with scraped(tmp_path) as (pods, server), aiohttp.ClientSession() as session:
        start = await pods.between_scrapes()
        pods.serve(CANARY, 40, 2)
        pods.serve(STABLE, 400, 1)
        end = await pods.between_scrapes()
        presets = {name: preset_of(name) for name in SERVERS}
        source = PrometheusSource(session, server.url, presets, clock=SystemClock(), scrape_interval_s=1.0)
        rows = await source.collect([query(one, start, end) for one in SERVERS.values()])
        for one, readings in zip(SERVERS.values(), rows, strict=True):
            expect(list(readings), one)
        assert await source.lacking_n(":tensorflow:serving:request_count", "version", {"job": "serving"}) == (0, 4)
        # A label that nobody puts on.
        assert await source.lacking_n(":tensorflow:serving:request_count", "release", {"job": "serving"}) == (4, 4)
