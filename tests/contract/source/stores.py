"""Two metric stores with their counters in the test's hand: the lab's on a clock of its own, and a real Prometheus
that scrapes this process."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import aiohttp
import yaml
from aiohttp import web

from service.app.clock import SystemClock
from service.lab.prometheus_api import PrometheusApi
from service.model.names import RolloutId
from service.model.observation import Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.sources.prometheus import PrometheusSource
from tests.real.parts.building import prometheus
from tests.real.parts.prometheus import PrometheusServer
from tests.stories import place

PRESET = MetricsPreset.model_validate(
    yaml.safe_load((Path(__file__).parents[3] / "config" / "metrics" / "http.yaml").read_text())
)
SCRAPE_S = 1.0
JOB = "tf-serving"
NEVER = 10**9
"""Series above which the store sums up, so that it never does."""


class Store(Protocol):
    """A metric store with its counters in the test's hand."""

    values: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    @property
    def url(self) -> str: ...
    def add(self, name: str, n: int, **labels: str) -> None: ...
    def forget(self, **labels: str) -> None: ...
    async def scraped(self) -> float: ...
    async def go_away(self) -> None: ...


class _Counters:
    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, name: str, n: int, **labels: str) -> None:
        """Count ``n`` more."""
        key = (name, tuple(sorted({"job": JOB, **labels}.items())))
        self.values[key] = self.values.get(key, 0.0) + n

    def forget(self, **labels: str) -> None:
        """Series with these labels are gone, as when a pod ends."""
        self.values = {k: v for k, v in self.values.items() if not set(labels.items()) <= set(k[1])}


class LabStore(_Counters):
    """The lab's Prometheus on a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.api = PrometheusApi(lambda: ((name, dict(labels), v) for (name, labels), v in self.values.items()))
        self.now = 1_000_000.0

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.api.url

    async def scraped(self) -> float:
        """Scrape; a moment that all which was counted lies before."""
        self.now += SCRAPE_S
        self.api.scrape(self.now)
        self.now += 0.25
        return self.now

    async def go_away(self) -> None:
        """Answer no more."""
        self.api.away = True


class RealStore(_Counters):
    """A real Prometheus that scrapes this process."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = asyncio.Condition()
        self._begun_n = 0
        self.server: PrometheusServer | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        assert self.server is not None
        return self.server.url

    async def exposition(self, _: web.Request) -> web.Response:
        """What is scraped."""
        lines = []
        for (name, labels), value in self.values.items():
            escaped = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels)
            lines.append(f"{name}{{{escaped}}} {value:.0f}")
        async with self._begun:
            self._begun_n += 1
            self._begun.notify_all()
        return web.Response(text="\n".join(lines) + "\n")

    async def scraped(self) -> float:
        """Wait for a scrape of what stands now; a moment that all which was counted lies before."""
        # The next scrape sees everything; that the one after it has begun shows that the next one is stored.
        async with self._begun, asyncio.timeout(30):
            wanted = self._begun_n + 2
            await self._begun.wait_for(lambda: self._begun_n >= wanted)
            between = time.time()
        # A window's edge is asked for only once every scrape before it has been stored.
        async with self._begun, asyncio.timeout(30):
            wanted = self._begun_n + 1
            await self._begun.wait_for(lambda: self._begun_n >= wanted)
        return between

    async def go_away(self) -> None:
        """The process ends."""
        assert self.server is not None
        self.server.stop()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@asynccontextmanager
async def lab_store() -> AsyncIterator[LabStore]:
    """A lab store that answers."""
    lab = LabStore()
    async with lab.api:
        yield lab


@asynccontextmanager
async def real_store(folder: Path, *, arguments: tuple[str, ...] = ()) -> AsyncIterator[RealStore]:
    """A real store that answers and scrapes."""
    real = RealStore()
    app = web.Application()
    app.router.add_get("/metrics", real.exposition)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server = await asyncio.to_thread(
        lambda: PrometheusServer(prometheus(), folder, {"test": f"127.0.0.1:{port}"}, arguments=arguments)
    )
    real.server = server
    try:
        await asyncio.to_thread(server.start)
        yield real
    finally:
        await asyncio.to_thread(server.stop)
        await runner.cleanup()


def window(
    start: float,
    end: float,
    *metrics: str,
    stable: Mapping[str, str] | None = None,
    canary: Mapping[str, str] | None = None,
) -> WindowQuery:
    """A question about v1 against v2, unless told otherwise."""
    labels = {
        "stable_labels": {"job": JOB, **(stable or {"version": "v1"})},
        "canary_labels": {"job": JOB, **(canary or {"version": "v2"})},
    }
    return WindowQuery(RolloutId("r"), "default", place(**labels), metrics, start, end)


async def read(store: Store, *queries: WindowQuery, preset: MetricsPreset = PRESET) -> list[list[Reading]]:
    """Every reading of every window, which is the same by sums and by raw samples."""
    async with aiohttp.ClientSession() as session:
        by_sums, raw = [
            await PrometheusSource(
                session,
                store.url,
                {"http": preset},
                clock=SystemClock(),
                scrape_interval_s=SCRAPE_S,
                timeout_s=5,
                sum_above_n=n,
            ).collect(queries)
            for n in (0, NEVER)
        ]
        assert by_sums == raw
        return [list(row) for row in raw]


def serve(store: Store, version: str, n: int, failed: int = 0, pod: str = "0") -> None:
    """``n`` requests of a version: half within 0.1 s, nine tenths within 0.5 s, all of them cats."""
    labels = {"version": version, "instance": f"{version}-{pod}"}
    store.add("http_requests_total", n - failed, code="200", **labels)
    if failed:
        store.add("http_requests_total", failed, code="503", **labels)
    for bound, share in (("0.1", 0.5), ("0.5", 0.9), ("+Inf", 1.0)):
        store.add("model_latency_seconds_bucket", math.floor(n * share), le=bound, **labels)
    store.add("model_predictions_total", n, **{"class": "cat"}, **labels)


async def begun(store: Store) -> float:
    """Both arms have been scraped once."""
    serve(store, "v1", 100)
    serve(store, "v2", 10)
    return await store.scraped()
