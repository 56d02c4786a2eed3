"""The weights that the actuator writes move real requests through a real Envoy."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from scipy.stats import binomtest

from service.actuators.istio import IstioMesh
from service.cluster import connect
from tests.contract.mesh.test_mesh import World
from tests.real.parts import building
from tests.real.parts.envoy import EnvoyProxy
from tests.real.parts.kube import KubeApiServer
from tests.real.rig import prepare_cluster

pytestmark = pytest.mark.real

REQUESTS = 3000


async def shares(session: aiohttp.ClientSession, url: str) -> Counter[str]:
    """Answers by version of REQUESTS requests, 16 at a time."""
    seen: Counter[str] = Counter()
    left = REQUESTS

    async def ask() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with session.get(url) as answer:
                seen[await answer.text()] += 1

    await asyncio.gather(*(ask() for _ in range(16)))
    return seen


async def test_real_requests_follow_the_weights_on_the_api_server(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        backends: dict[str, int] = {}
        for version in ("v1", "v2"):
            app = web.Application()

            async def answer(_: web.Request, version: str = version) -> web.Response:
                return web.Response(text=version)

            app.router.add_get("/", answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                backends[version] = listener.getsockname()[1]
            await web.TCPSite(runner, "127.0.0.1", backends[version]).start()
        kube = stack.enter_context(KubeApiServer(building.apiserver(), tmp_path / "kube", fsync=False))
        api = await connect(Path(kube.kubeconfig))
        stack.push_async_callback(api.close)
        await prepare_cluster(api)
        world = World(api, None)
        where = await world.route()
        proxy = EnvoyProxy(tmp_path / "envoy", backends)
        stack.callback(proxy.stop)
        proxy.start(await world.read(where))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://127.0.0.1:{proxy.port}/"
        mesh = IstioMesh(api)
        for fence, percent in enumerate((5, 30, 100, 0), start=1):
            await mesh.set_weights(where, canary_percent=percent, fence=fence, rollout="r-1")
            proxy.follow(await world.read(where))
            await asyncio.sleep(1.0)  # Envoy notices the renamed file by itself
            seen = await shares(session, url)
            assert sum(seen.values()) == REQUESTS
            assert set(seen) <= {"v1", "v2"}
            if percent in (0, 100):
                assert seen["v2"] == REQUESTS * percent // 100
            else:
                # An honest proxy fails this once in a million runs.
                assert binomtest(seen["v2"], REQUESTS, percent / 100).pvalue > 1e-6, seen
