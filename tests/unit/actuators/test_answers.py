"""What stands between us and an API server, such as a proxy in maintenance, may answer anything with status 200."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from service.actuators.istio import IstioMesh
from service.model.target import Place, Readiness
from service.ring.ports import Unavailable
from tests.stories import place

ASKS: dict[str, Callable[[IstioMesh, Place], Awaitable[Any]]] = {
    "weights": lambda mesh, where: mesh.get_weights([where]),
    "many weights": lambda mesh, where: mesh.get_weights([where] * 50),
    "write": lambda mesh, where: mesh.set_weights(where, canary_percent=10, fence=1, rollout="r-a"),
    "ready": lambda mesh, where: mesh.ready(where),
}


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/html", "<html>maintenance</html>"), *(("application/json", text) for text in ("<html>", "[]", "null"))],
)
async def test_an_answer_that_is_no_object_counts_as_none(ask: str, content_type: str, body: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type=content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    configuration = client.Configuration()
    configuration.host = site.name
    where = place(readiness=Readiness(namespace="ml", deployment="ranker"))
    async with client.ApiClient(configuration) as api:
        with pytest.raises(Unavailable):
            await ASKS[ask](IstioMesh(api), where)
    await runner.cleanup()
