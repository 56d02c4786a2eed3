"""The metric store's contract: exact counts, and each kind of missing told apart. On the lab's Prometheus, and on a
real one that scrapes what the test increments."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import aiohttp
import pytest
import yaml
from aiohttp import web

from service.lab.prometheus_api import PrometheusApi
from service.model.names import RolloutId
from service.model.observation import (
    ArmValues,
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    Reading,
    WindowQuery,
)
from service.model.preset import MetricsPreset
from service.sources.prometheus import PrometheusSource
from tests.conformance import ROOT
from tests.stories import place

PRESET = MetricsPreset.model_validate(
    yaml.safe_load((Path(__file__).parents[3] / "config" / "metrics" / "http.yaml").read_text())
)
SCRAPE_S = 1.0
Counters = dict[tuple[str, tuple[tuple[str, str], ...]], float]
assert ROOT


class Store(Protocol):
    """A metric store with its counters in the test's hand."""

    url: str

    def add(self, name: str, n: int, **labels: str) -> None: ...
    def forget(self, **labels: str) -> None: ...
    async def scraped(self) -> float: ...
    async def go_away(self) -> None: ...


class _Counters:
    def __init__(self) -> None:
        self.values: Counters = {}

    def add(self, name: str, n: int, **labels: str) -> None:
        key = (name, tuple(sorted({"job": "tf-serving", **labels}.items())))
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
        return self.api.url

    async def scraped(self) -> float:
        self.now += SCRAPE_S
        self.api.scrape(self.now)
        self.now += 0.25
        return self.now

    async def go_away(self) -> None:
        self.api.away = True


class RealStore(_Counters):
    """A real Prometheus that scrapes this process."""

    def __init__(self, folder: Path, port: int) -> None:
        from tests.real.parts.building import prometheus
        from tests.real.parts.prometheus import PrometheusServer

        super().__init__()
        self.scrapes = 0
        self.server = PrometheusServer(prometheus(), folder, {"test": f"127.0.0.1:{port}"})

    @property
    def url(self) -> str:
        return self.server.url

    async def exposition(self, _: web.Request) -> web.Response:
        lines = []
        for (name, labels), value in self.values.items():
            escaped = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels)
            lines.append(f"{name}{{{escaped}}} {value:.0f}")
        self.scrapes += 1
        return web.Response(text="\n".join(lines) + "\n")

    async def scraped(self) -> float:
        # Two more scrapes: the first may have begun before the counters were changed.
        wanted = self.scrapes + 2
        while self.scrapes < wanted:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        return time.time()

    async def go_away(self) -> None:
        self.server.stop()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


@pytest.fixture(params=["lab", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "lab":
        lab = LabStore()
        async with lab.api:
            yield lab
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    real = RealStore(tmp_path, port)
    app = web.Application()
    app.router.add_get("/metrics", real.exposition)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    real.server.start()
    yield real
    real.server.stop()
    await runner.cleanup()


async def read(store: Store, start: float, end: float, *metrics: str, canary: str = "v2") -> list[Reading]:
    labels = {
        "stable_labels": {"job": "tf-serving", "version": "v1"},
        "canary_labels": {"job": "tf-serving", "version": canary},
    }
    query = WindowQuery(RolloutId("r"), "default", place(**labels), metrics, start, end)
    async with aiohttp.ClientSession() as session:
        source = PrometheusSource(session, store.url, {"http": PRESET}, scrape_interval_s=SCRAPE_S, timeout_s=5)
        return list((await source.collect([query]))[0])


def serve(store: Store, version: str, n: int, failed: int = 0, pod: str = "0") -> None:
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


async def test_counts_are_exact_integers_per_arm(store: Store) -> None:
    start = await begun(store)
    serve(store, "v1", 540, failed=7)
    serve(store, "v2", 60, failed=3)
    end = await store.scraped()
    errors, latency, predictions = await read(store, start, end, "errors", "latency", "predictions")
    assert errors == Reading("errors", Availability.ENOUGH, FailureCounts(3, 60, 7, 540))
    assert latency.counts == HistogramCounts((0.1, 0.5), (30, 24, 6), (270, 216, 54))
    assert predictions.counts == CategoryCounts(("cat",), (60,), (540,))


async def test_a_restarted_and_a_vanished_pod_lose_nothing_that_was_scraped(store: Store) -> None:
    serve(store, "v1", 50, pod="gone")
    start = await begun(store)
    serve(store, "v1", 20)
    serve(store, "v1", 5, pod="gone")
    await store.scraped()
    store.forget(instance="v1-gone")
    store.forget(instance="v2-0")
    serve(store, "v2", 4)
    end = await store.scraped()
    (errors,) = await read(store, start, end, "errors")
    assert errors.counts == FailureCounts(0, 4, 0, 25)


async def test_an_arm_without_requests_is_few_and_not_missing(store: Store) -> None:
    start = await begun(store)
    serve(store, "v1", 5)
    end = await store.scraped()
    (errors,) = await read(store, start, end, "errors")
    assert errors.availability is Availability.FEW
    assert errors.counts == FailureCounts(0, 0, 0, 5)


async def test_an_arm_without_series_is_said_with_its_matchers(store: Store) -> None:
    start = await begun(store)
    end = await store.scraped()
    (errors,) = await read(store, start, end, "errors", canary='v9"} or vector(1')
    assert errors.availability is Availability.NO_SERIES
    assert "v9" in errors.detail


async def test_an_arm_that_is_no_longer_scraped_is_stale(store: Store) -> None:
    start = await begun(store)
    store.forget(version="v2")
    for _ in range(5):
        end = await store.scraped()
    (errors,) = await read(store, start, end, "errors")
    assert errors.availability is Availability.STALE


async def test_a_store_that_is_away_is_said_and_never_read_as_zero(store: Store) -> None:
    start = await begun(store)
    await store.go_away()
    (errors,) = await read(store, start, start + 5, "errors")
    assert errors.availability is Availability.AWAY
    assert errors.counts is None


async def test_many_rollouts_share_one_query_and_get_their_own_counts() -> None:
    lab = LabStore()
    asked: list[str] = []
    async with lab.api:
        for n in range(30):
            for version in ("v1", "v2"):
                lab.values[
                    (
                        "http_requests_total",
                        (("code", "200"), ("instance", "a"), ("job", f"s{n}"), ("version", version)),
                    )
                ] = 1
        start = await lab.scraped()
        for n in range(30):
            for version in ("v1", "v2"):
                key = (
                    "http_requests_total",
                    (("code", "200"), ("instance", "a"), ("job", f"s{n}"), ("version", version)),
                )
                lab.values[key] += n + 1
        end = await lab.scraped()
        queries = []
        for n in range(30):
            labels = {
                "stable_labels": {"job": f"s{n}", "version": "v1"},
                "canary_labels": {"job": f"s{n}", "version": "v2"},
            }
            queries.append(WindowQuery(RolloutId(f"r{n}"), "default", place(**labels), ("errors",), start, end))
        async with aiohttp.ClientSession() as session:
            source = PrometheusSource(session, lab.url, {"http": PRESET}, scrape_interval_s=SCRAPE_S)
            plain = source._query

            async def counted(text: str, at_s: float | None) -> object:
                asked.append(text)
                return await plain(text, at_s)

            source._query = counted  # type: ignore[method-assign,assignment]
            readings = await source.collect(queries)
    assert [r[0].counts for r in readings] == [FailureCounts(0, n + 1, 0, n + 1) for n in range(30)]
    assert len(asked) == 1


async def test_warnings_of_the_store_degrade_the_reading() -> None:
    lab = LabStore()
    async with lab.api:
        start = await begun(lab)
        end = await lab.scraped()
        lab.api.warnings = ["partial answer"]
        (errors,) = await read(lab, start, end, "errors")
    assert errors.availability is Availability.DEGRADED
    assert "partial answer" in errors.detail


async def test_a_custom_expression_gives_one_number_an_arm(store: Store) -> None:
    store.add("gpu_bytes", 70, version="v2")
    store.add("gpu_bytes", 35, version="v1")
    end = await store.scraped()
    if isinstance(store, LabStore):
        store.api.expressions = {
            'max(gpu_bytes{job="tf-serving",version="v2"})': 70.0,
            'max(gpu_bytes{job="tf-serving",version="v1"})': 35.0,
        }
    preset = MetricsPreset.model_validate(
        {"name": "http", "metrics": {"gpu": {"kind": "value", "promql": "max(gpu_bytes{$matchers})"}}}
    )
    labels = {
        "stable_labels": {"job": "tf-serving", "version": "v1"},
        "canary_labels": {"job": "tf-serving", "version": "v2"},
    }
    query = WindowQuery(RolloutId("r"), "default", place(**labels), ("gpu",), end - 5, end)
    async with aiohttp.ClientSession() as session:
        source = PrometheusSource(session, store.url, {"http": preset}, scrape_interval_s=SCRAPE_S)
        ((reading,),) = await source.collect([query])
    assert reading == Reading("gpu", Availability.ENOUGH, ArmValues(70.0, 35.0))
