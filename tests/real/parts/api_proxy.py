"""Stands between one replica and the API server, in plain HTTP: notes every write, and can hold writes or answers.

What is held is sent on when it is let go, also when whoever sent it has died or stands still: a network may do that.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from service.lab.server import Served
from tests.real.parts.kube import KubeApiServer

PASSED_ON = ("Authorization", "Content-Type", "Accept")


@dataclass(frozen=True, slots=True)
class Write:
    """One PATCH and what the API server answered; status 0: it could not be reached."""

    name: str
    status: int


class ApiProxy(Served):
    """``hold_writes_of`` and ``hold_answers_of`` name objects whose PATCH requests, or answers to GET, are kept back
    until ``let_go``."""

    def __init__(self, kube: KubeApiServer) -> None:
        super().__init__()
        self._kube = kube
        self._session: aiohttp.ClientSession | None = None
        self._go = asyncio.Event()
        self.hold_writes_of = ""
        self.hold_answers_of = ""
        self.held_n = 0
        """Held now."""
        self.writes: list[Write] = []

    def routes(self) -> list[web.RouteDef]:
        """Everything."""
        return [web.route("*", "/{path:.*}", self._pass)]

    def kubeconfig(self, file: Path) -> Path:
        """An administrator's kubeconfig that goes through here."""
        config = json.loads(Path(self._kube.kubeconfig).read_text())
        config["clusters"][0]["cluster"] = {"server": self.url}
        file.write_text(json.dumps(config))
        return file

    def let_go(self) -> None:
        """Everything that is held, and nothing is held from now on."""
        self.hold_writes_of = self.hold_answers_of = ""
        self._go.set()
        self._go = asyncio.Event()

    async def _held(self) -> None:
        self.held_n += 1
        await self._go.wait()
        self.held_n -= 1

    async def _pass(self, request: web.Request) -> web.Response:
        body = await request.read()
        name = request.path.rpartition("/")[2]
        if request.method == "PATCH" and name == self.hold_writes_of:
            await self._held()
        if self._session is None:
            trust = ssl.create_default_context(cafile=self._kube.ca)
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust))
        headers = {one: request.headers[one] for one in PASSED_ON if one in request.headers}
        status, content, kind = 502, b"", "text/plain"
        try:
            async with self._session.request(
                request.method, self._kube.url + request.path_qs, data=body or None, headers=headers
            ) as answer:
                status, content, kind = answer.status, await answer.read(), answer.content_type
        except (aiohttp.ClientError, OSError):
            pass
        if request.method == "PATCH":
            self.writes.append(Write(name, 0 if status == 502 else status))
        elif name == self.hold_answers_of:
            await self._held()
        return web.Response(status=status, body=content, content_type=kind)

    async def stop(self) -> None:
        """Also lets go of the API server."""
        self.let_go()
        if self._session is not None:
            await self._session.close()
        await super().stop()
