"""The shipped presets on a real Prometheus that scrapes what the exporters print, to the letter."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from service.app.clock import SystemClock
from service.model.observation import FailureCounts
from service.sources.prometheus import PrometheusSource
from tests.contract.source.expositions import Served
from tests.contract.source.test_shipped_presets import (
    CANARY,
    EXPORTERS,
    SERVERS,
    STABLE,
    Pods,
    expect,
    expect_resources,
    pod_query,
    preset_of,
    query,
    shipped,
)
from tests.real.parts.building import prometheus
from tests.real.parts.prometheus import PrometheusServer
from tests.real.parts.serving import NAME, ModelServer, running
from tests.real.test_golden import built

pytestmark = pytest.mark.real


class Endpoints:
    """Texts by path on one port, and a real Prometheus that scrapes them."""

    def __init__(self, texts: Mapping[str, Callable[[], str]]) -> None:
        self.texts = texts
        self.url = ""
        self._scraped = asyncio.Condition()
        self._scraped_n = Counter[str]()

    async def metrics(self, request: web.Request) -> web.Response:
        """What one of them prints."""
        text = self.texts[request.path]()
        async with self._scraped:
            self._scraped_n[request.path] += 1
            self._scraped.notify_all()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def between_scrapes(self) -> float:
        """A moment that a scrape of all that stands now lies before, and that every earlier scrape is stored at."""
        await self._scrapes(2)
        between = time.time()
        await self._scrapes(1)
        return between

    async def _scrapes(self, n: int) -> None:
        async with self._scraped, asyncio.timeout(60):
            wanted = {path: self._scraped_n[path] + n for path in self.texts}
            await self._scraped.wait_for(lambda: all(self._scraped_n[path] >= m for path, m in wanted.items()))


@asynccontextmanager
async def scraped(
    folder: Path, texts: Mapping[str, Callable[[], str]], labels: Mapping[str, Mapping[str, str]], *, honor_labels: bool
) -> AsyncIterator[Endpoints]:
    """``labels`` are what the scrape puts on each path's series."""
    endpoints = Endpoints(texts)
    app = web.Application()
    for path in texts:
        app.router.add_get(path, endpoints.metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    jobs = {path.strip("/").replace("/", "-"): path for path in texts}
    server = await asyncio.to_thread(
        lambda: PrometheusServer(prometheus(), folder, dict.fromkeys(jobs, address), honor_labels=honor_labels)
    )
    endpoints.url = server.url
    for job, path in jobs.items():
        server.aim(job, address, **labels[path], __metrics_path__=path)
    try:
        await asyncio.to_thread(server.start)
        yield endpoints
    finally:
        await asyncio.to_thread(server.stop)
        await runner.cleanup()


async def test_every_metric_of_every_server_is_read_from_what_it_prints(tmp_path: Path) -> None:
    began = {STABLE: Served(1000, 10), CANARY: Served(100, 1, took_s=0.03)}
    pods = {(name, version): replace(pod) for name in SERVERS for version, pod in began.items()}
    paths = {f"/{name}/{version}": (name, version) for name, version in pods}
    texts = {
        path: lambda key=key: SERVERS[key[0]].prints(pods[key]).replace("REVISION", key[1])
        for path, key in paths.items()
    }
    labels = {
        path: {SERVERS[name].label: version, "job": "serving", "pod": f"{name}-{version}"}
        for path, (name, version) in paths.items()
    }
    async with scraped(tmp_path, texts, labels, honor_labels=False) as endpoints, aiohttp.ClientSession() as session:
        start = await endpoints.between_scrapes()
        for (_, version), pod in pods.items():
            answered, failed = (40, 2) if version == CANARY else (400, 1)
            pod.answered += answered
            pod.failed += failed
        end = await endpoints.between_scrapes()
        presets = {name: preset_of(name) for name in SERVERS}
        source = PrometheusSource(session, endpoints.url, presets, clock=SystemClock(), scrape_interval_s=1.0)
        rows = await source.collect([query(one, start, end) for one in SERVERS.values()])
        for one, readings in zip(SERVERS.values(), rows, strict=True):
            expect(list(readings), one)
        count = ":tensorflow:serving:request_count"
        assert await source.lacking_n(count, "version", {"job": "serving"}) == (0, 4)
        # A label that nobody puts on.
        assert await source.lacking_n(count, "release", {"job": "serving"}) == (4, 4)


async def test_what_pods_use_is_read_from_what_three_exporters_print(tmp_path: Path) -> None:
    cluster = Pods()
    texts = {f"/{n}": lambda n=n: cluster.texts(time.time())[n] for n in range(3)}
    labels = {path: {"job": "exporter"} for path in texts}
    preset = shipped("tensorflow-serving").with_included(EXPORTERS)
    async with scraped(tmp_path, texts, labels, honor_labels=True) as endpoints, aiohttp.ClientSession() as session:
        start = await endpoints.between_scrapes()
        cluster.serve()
        end = await endpoints.between_scrapes()
        source = PrometheusSource(
            session, endpoints.url, {preset.name: preset}, clock=SystemClock(), scrape_interval_s=1.0
        )
        ((*readings,),) = await source.collect([pod_query(start, end)])
        expect_resources(readings)


async def test_an_op_that_real_tensorflow_lacks_shows_as_failed_requests_by_the_preset(tmp_path: Path) -> None:
    """The servers are the golden tests' stand-in around real TensorFlow; what is scraped is theirs."""
    servers = {
        STABLE: ModelServer("2.12", await asyncio.to_thread(built, tmp_path / "good", "2.12")),
        CANARY: ModelServer("2.13", await asyncio.to_thread(built, tmp_path / "bad", "2.13", "no-kernel")),
    }
    store = PrometheusServer(prometheus(), tmp_path / "store", dict.fromkeys(servers, ""), honor_labels=False)
    path = "/monitoring/prometheus/metrics"
    count = ":tensorflow:serving:request_count"
    with running(*servers.values()):
        for version, server in servers.items():
            await asyncio.to_thread(server.wait)
            address = server.url.removeprefix("http://")
            store.aim(version, address, version=version, job="serving", pod=version, __metrics_path__=path)
        await asyncio.to_thread(store.start)
        try:
            async with aiohttp.ClientSession() as session:

                async def asked(version: str, n: int) -> None:
                    for _ in range(n):
                        body = {"instances": [[0.5] * 32]}
                        url = f"{servers[version].url}/v1/models/{NAME}:predict"
                        async with session.post(url, json=body) as answer:
                            await answer.read()

                async def stored(version: str, n: int) -> float:
                    """A moment at which the store has seen so many requests."""
                    async with asyncio.timeout(60):
                        while True:
                            question = {"query": f'sum({count}{{version="{version}"}})'}
                            async with session.get(f"{store.url}/api/v1/query", params=question) as answer:
                                found = (await answer.json())["data"]["result"]
                            if found and float(found[0]["value"][1]) >= n:
                                return time.time()
                            await asyncio.sleep(0.2)

                for version in servers:
                    await asked(version, 1)
                start = max([await stored(version, 1) for version in servers])
                await asked(STABLE, 30)
                await asked(CANARY, 6)
                end = max([await stored(STABLE, 31), await stored(CANARY, 7)])
                name = "tensorflow-serving"
                source = PrometheusSource(
                    session, store.url, {name: preset_of(name)}, clock=SystemClock(), scrape_interval_s=1.0
                )
                ((latency, errors),) = await source.collect([query(SERVERS[name], start, end)])
        finally:
            await asyncio.to_thread(store.stop)
    assert errors.counts == FailureCounts(6, 6, 0, 30)
    # Only what succeeded has a latency.
    assert not latency.availability.usable
    assert "request_latency_bucket has no series of the canary" in latency.detail
