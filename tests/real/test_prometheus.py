"""What only a real Prometheus can show: its restarts, its limits, its own arithmetic beside ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from service.app.clock import SystemClock
from service.model.observation import Availability, FailureCounts
from service.sources.prometheus import PrometheusSource
from tests.contract.source.stores import PRESET, SCRAPE_S, RealStore, begun, read, real_store, serve, window

pytestmark = pytest.mark.real


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RealStore]:
    async with real_store(tmp_path) as made:
        yield made


async def test_what_is_counted_across_a_restart_of_the_store_is_counted_once(store: RealStore) -> None:
    assert store.server is not None
    start = await begun(store)
    serve(store, "v1", 30)
    serve(store, "v2", 3)
    middle = await store.scraped()
    await asyncio.to_thread(store.server.stop)
    ((away,),) = await read(store, window(start, middle, "errors"))
    assert away.availability is Availability.AWAY
    serve(store, "v1", 50)
    serve(store, "v2", 5, failed=1)
    await asyncio.to_thread(store.server.start)
    end = await store.scraped()
    # The window of the outage is read afterwards at its own time, as the tick does with windows it has missed.
    first, second = await read(store, window(start, middle, "errors"), window(middle, end, "errors"))
    assert first[0].counts == FailureCounts(0, 3, 0, 30)
    assert second[0].counts == FailureCounts(1, 5, 0, 50)


async def test_beyond_the_stores_own_limit_each_rollout_is_still_counted(tmp_path: Path) -> None:
    services = 12
    async with real_store(tmp_path, arguments=("--query.max-samples=200",)) as store:

        def each(n: int) -> None:
            for i in range(services):
                for version in ("v1", "v2"):
                    store.add("http_requests_total", n + i, code="200", version=version, instance="a", app=f"s{i}")

        each(0)
        start = await store.scraped()
        each(100)
        end = await store.scraped()
        queries = [
            window(
                start, end, "errors", stable={"version": "v1", "app": f"s{i}"}, canary={"version": "v2", "app": f"s{i}"}
            )
            for i in range(services)
        ]
        rows = await read(store, *queries)
    assert [row[0].counts for row in rows] == [FailureCounts(0, 100 + i, 0, 100 + i) for i in range(services)]


async def test_our_sums_over_windows_are_the_counters_own_difference(store: RealStore) -> None:
    edges = [await begun(store)]
    served = 0
    for n in (7, 1, 250, 33):
        served += n
        serve(store, "v1", n)
        serve(store, "v2", n)
        edges.append(await store.scraped())
    rows = await read(store, *(window(a, b, "errors") for a, b in pairwise(edges)))
    ours = sum(row[0].counts.canary_total for row in rows if isinstance(row[0].counts, FailureCounts))
    async with aiohttp.ClientSession() as session:
        question = {"query": 'sum(http_requests_total{version="v2"})', "time": f"{edges[-1]:.3f}"}
        async with session.post(f"{store.url}/api/v1/query", data=question) as response:
            body = await response.json()
    assert ours == served == float(body["data"]["result"][0]["value"][1]) - 10


async def test_the_doctor_is_told_the_stores_version(store: RealStore) -> None:
    async with aiohttp.ClientSession() as session:
        source = PrometheusSource(session, store.url, {"http": PRESET}, clock=SystemClock(), scrape_interval_s=SCRAPE_S)
        assert (await source.check()).startswith("answers queries, version ")
