"""The shipped presets on a real Prometheus that scrapes what the exporters print, to the letter."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from service.app.clock import SystemClock
from service.model.observation import ArmValues, Availability, FailureCounts, HistogramCounts, Reading
from service.sources.prometheus import PrometheusSource
from tests.contract.source import test_recorded as recorded
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
from tests.real.parts.kserve import KServeServer
from tests.real.parts.prometheus import PrometheusServer
from tests.real.parts.serving import NAME, HttpServer, ModelServer, running
from tests.real.parts.triton import TritonServer
from tests.real.test_golden import built
from tests.real.test_golden_v2 import tensor

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
        path: {SERVERS[name].label: version, "job": name, "pod": f"{name}-{version}"}
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
        assert await source.lacking_n(count, "version", {"job": "tensorflow-serving"}) == (0, 4)
        # A label that nobody puts on.
        assert await source.lacking_n(count, "release", {"job": "tensorflow-serving"}) == (4, 4)


async def test_what_a_real_vllm_printed_is_read_by_its_preset(tmp_path: Path) -> None:
    scrape = 0
    paths = {f"/vllm/{version}": version for version in recorded.PRINTED}
    texts = {path: lambda version=version: recorded.PRINTED[version][scrape] for path, version in paths.items()}
    labels = {path: {"version": version, "job": "vllm", "pod": version} for path, version in paths.items()}
    async with scraped(tmp_path, texts, labels, honor_labels=False) as endpoints, aiohttp.ClientSession() as session:
        start = await endpoints.between_scrapes()
        scrape = 1
        end = await endpoints.between_scrapes()
        presets = {"vllm": preset_of("vllm")}
        source = PrometheusSource(session, endpoints.url, presets, clock=SystemClock(), scrape_interval_s=1.0)
        ((*readings,),) = await source.collect([query(SERVERS["vllm"], start, end)])
    recorded.expect(readings)


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


class Arms:
    """Two real servers that a real Prometheus scrapes as stable and canary, by the label that their preset asks for."""

    def __init__(
        self, folder: Path, preset: str, servers: Mapping[str, HttpServer], path: str, count: str, asked: str
    ) -> None:
        """``path`` is where they print metrics, ``count`` a pattern of counters of requests, by which what is
        stored is known, and ``asked`` where requests go."""
        self.preset, self.servers = preset, servers
        self._count, self._asked = count, asked
        self._label = SERVERS[preset].label
        self._store = PrometheusServer(prometheus(), folder, dict.fromkeys(servers, ""), honor_labels=False)
        for version, server in servers.items():
            address = server.metrics_url.removeprefix("http://")
            labels = {self._label: version, "job": preset, "pod": version}
            self._store.aim(version, address, **labels, __metrics_path__=path)

    async def read(self, stable: Sequence[Any], canary: Sequence[Any]) -> dict[str, Reading]:
        """What the preset's metrics read of these bodies of requests, by metric; one more of each is asked before."""
        with running(*self.servers.values()):
            for server in self.servers.values():
                await asyncio.to_thread(server.wait)
            await asyncio.to_thread(self._store.start)
            try:
                # KServe closes the connection behind an answer of 500.
                connector = aiohttp.TCPConnector(force_close=True)
                async with aiohttp.ClientSession(connector=connector) as session:
                    first = [await self._stored(session, version, [stable[0]], 1) for version in self.servers]
                    last = [
                        await self._stored(session, version, bodies, 1 + len(bodies))
                        for version, bodies in ((STABLE, stable), (CANARY, canary))
                    ]
                    presets = {self.preset: preset_of(self.preset)}
                    source = PrometheusSource(
                        session, self._store.url, presets, clock=SystemClock(), scrape_interval_s=1.0
                    )
                    ((*readings,),) = await source.collect([query(SERVERS[self.preset], max(first), max(last))])
            finally:
                await asyncio.to_thread(self._store.stop)
        return {reading.metric: reading for reading in readings}

    async def _stored(self, session: aiohttp.ClientSession, version: str, bodies: Sequence[Any], n: int) -> float:
        """Ask, and wait; a moment at which the store has seen ``n`` requests."""
        for body in bodies:
            async with session.post(f"{self.servers[version].url}{self._asked}", json=body) as answer:
                await answer.read()
        async with asyncio.timeout(60):
            while True:
                question = {"query": f'sum({{__name__=~"{self._count}",{self._label}="{version}"}})'}
                async with session.get(f"{self._store.url}/api/v1/query", params=question) as answer:
                    found = (await answer.json())["data"]["result"]
                if found and float(found[0]["value"][1]) >= n:
                    return time.time()
                await asyncio.sleep(0.2)


async def test_an_op_that_real_tensorflow_lacks_shows_as_failed_requests_by_the_preset(tmp_path: Path) -> None:
    """The servers are the golden tests' stand-in around real TensorFlow; what is scraped is theirs."""
    servers = {
        STABLE: ModelServer("2.12", await asyncio.to_thread(built, tmp_path / "good", "2.12")),
        CANARY: ModelServer("2.13", await asyncio.to_thread(built, tmp_path / "bad", "2.13", "no-kernel")),
    }
    arms = Arms(
        tmp_path / "store", "tensorflow-serving", servers, "/monitoring/prometheus/metrics",
        ":tensorflow:serving:request_count", f"/v1/models/{NAME}:predict",
    )  # fmt: skip
    body = {"instances": [[0.5] * 32]}
    found = await arms.read([body] * 30, [body] * 6)
    assert found["errors"].counts == FailureCounts(6, 6, 0, 30)
    # Only what succeeded has a latency.
    assert not found["latency"].availability.usable
    assert "request_latency_bucket has no series of the canary" in found["latency"].detail


def rows(*features: float) -> Any:
    """A request of the v2 protocol."""
    return {"inputs": [tensor([list(features)])]}


GOOD, RAISES, REFUSES = rows(1, 2, 3, 4), rows(1e7, 0, 0, 0), rows(-1e7, 0, 0, 0)


async def test_a_real_kserve_is_read_by_its_preset(tmp_path: Path) -> None:
    servers = {version: KServeServer(tmp_path) for version in (STABLE, CANARY)}
    count, asked = "request_predict_seconds_count", f"/v2/models/{NAME}/infer"
    arms = Arms(tmp_path / "store", "kserve", servers, "/metrics", count, asked)
    found = await arms.read([GOOD] * 30, [GOOD] * 6 + [RAISES] * 2)
    latency = found["latency"]
    assert latency.availability is Availability.ENOUGH
    assert isinstance(latency.counts, HistogramCounts)
    # What failed in predict has a latency, too.
    assert (sum(latency.counts.canary), sum(latency.counts.stable)) == (8, 30)
    assert latency.counts.edges_s[0] == 0.005
    # Its own server counts no requests by status: without Knative's queue proxy that is nothing, and no zero.
    assert not found["errors"].availability.usable
    assert "revision_app_request_count has no series of the canary" in found["errors"].detail


async def test_a_real_triton_is_read_by_its_preset(tmp_path: Path) -> None:
    servers = {version: TritonServer(tmp_path) for version in (STABLE, CANARY)}
    count, asked = "nv_inference_request_(success|failure)", f"/v2/models/{NAME}/infer"
    arms = Arms(tmp_path / "store", "triton", servers, "/metrics", count, asked)
    found = await arms.read([GOOD] * 30, [GOOD] * 6 + [RAISES] * 2 + [REFUSES])
    # A model of the Python backend that answers with an error of its own has succeeded, for Triton.
    assert found["errors"].counts == FailureCounts(2, 9, 0, 30)
    for name, least in (("mean-us", 1.0), ("pending", 0.0)):
        values = found[name].counts
        assert isinstance(values, ArmValues), found[name]
        assert values.canary is not None
        assert values.stable is not None
        assert least <= min(values.canary, values.stable) < 1e6
    # No histogram of a model that answers once a request, although histogram_latencies is on.
    assert not found["latency"].availability.usable
    assert "nv_inference_first_response_histogram_ms_bucket has no series" in found["latency"].detail
