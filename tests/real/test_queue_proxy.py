"""Real queue proxies of Knative Serving before a real KServe, read by the shipped presets from a real Prometheus.

One queue proxy runs at a time, because it has fixed ports: what each printed is kept, and printed again for both arms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from service.app.clock import SystemClock
from service.model.observation import Availability, FailureCounts, HistogramCounts
from service.sources.prometheus import PrometheusSource
from tests.contract.source import expositions
from tests.contract.source.expositions import Served
from tests.contract.source.test_shipped_presets import CANARY, SERVERS, STABLE, preset_of, query
from tests.real.parts.exporters import KNATIVE, QueueProxy
from tests.real.parts.kserve import KServeServer
from tests.real.parts.serving import NAME, running
from tests.real.test_presets import GOOD, RAISES, scraped

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
PRESETS = dict(zip(KNATIVE, ("kserve", "kserve-otel"), strict=True))


@dataclass(frozen=True, slots=True)
class Printed:
    """What a server and its queue proxy print before and behind requests, and the statuses of these."""

    before: str
    behind: str
    statuses: list[int]


async def printed(folder: Path, version: str, revision: str, bodies: Sequence[Any], *, dies: bool) -> Printed:
    """Ask for one of each kind, and then for ``bodies``. dies : the server ends, and a last request finds it gone"""
    server = KServeServer(folder)
    proxy = QueueProxy(folder, version, server, revision=revision, ready=f"/v2/models/{NAME}/ready")
    # KServe closes the connection behind an answer of 500.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(body: Any) -> int:
            async with session.post(f"{proxy.url}/v2/models/{NAME}/infer", json=body) as answer:
                await answer.read()
                return answer.status

        async def text(url: str) -> str:
            async with session.get(f"{url}/metrics") as answer:
                return await answer.text()

        with running(server):
            await asyncio.to_thread(server.wait)
            with running(proxy):
                await asyncio.to_thread(proxy.wait)
                assert [await ask(GOOD), await ask(RAISES)] == [200, 500]
                before = await text(server.metrics_url) + await text(proxy.metrics_url)
                statuses = [await ask(body) for body in bodies]
                own = await text(server.metrics_url)
                if dies:
                    server.stop()
                    statuses.append(await ask(GOOD))
                return Printed(before, own + await text(proxy.metrics_url), statuses)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KNATIVE)
async def knative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(version, what both arms print)."""
    folder = tmp_path_factory.mktemp("knative")
    stable = await printed(folder, request.param, STABLE, [GOOD] * 30, dies=False)
    canary = await printed(folder, request.param, CANARY, [GOOD] * 6 + [RAISES] * 2, dies=True)
    return request.param, {STABLE: stable, CANARY: canary}


async def test_requests_that_fail_and_latency_are_read_by_the_preset_of_that_version(
    knative: Any, tmp_path: Path
) -> None:
    version, arms = knative
    server, preset = SERVERS[PRESETS[version]], preset_of(PRESETS[version])
    served = False
    paths = {f"/{arm}": lambda one=one: one.behind if served else one.before for arm, one in arms.items()}
    labels = {f"/{arm}": {server.label: arm, "job": server.preset, "pod": f"{arm}-0"} for arm in arms}
    async with scraped(tmp_path, paths, labels, honor_labels=False) as endpoints, aiohttp.ClientSession() as session:
        start = await endpoints.between_scrapes()
        served = True
        end = await endpoints.between_scrapes()
        source = PrometheusSource(
            session, endpoints.url, {preset.name: preset}, clock=SystemClock(), scrape_interval_s=1.0
        )
        ((*readings,),) = await source.collect([query(server, start, end)])
    found = {reading.metric: reading for reading in readings}
    assert {reading.availability for reading in readings} == {Availability.ENOUGH}
    statuses = arms[CANARY].statuses
    assert arms[STABLE].statuses == [200] * 30
    assert statuses[:7] == [200] * 6 + [500]
    # It finds no server, of which the server itself can tell nobody. The one before it may have found its connection
    # closed behind an answer of 500, and was then a 502, too.
    assert statuses[-1] == 502
    assert found["errors"].counts == FailureCounts(3, 9, 0, 30)
    latency = found["latency"].counts
    assert isinstance(latency, HistogramCounts)
    assert (sum(latency.canary), sum(latency.stable)) == (9 - statuses.count(502), 30)


async def test_the_imitation_prints_what_kserve_and_the_queue_proxy_print(knative: Any) -> None:
    version, arms = knative
    imitated, real = expositions.forms(SERVERS[PRESETS[version]].prints(Served(2, 1)), arms[STABLE].behind)
    assert imitated == real
