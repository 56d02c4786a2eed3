"""A small HTTP server on loopback, the base of every part of the lab that speaks HTTP."""

from __future__ import annotations

from typing import Self

from aiohttp import web


class Served:
    """Listens on a free port of 127.0.0.1 between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        raise NotImplementedError

    async def start(self, port: int = 0) -> Self:
        """Listen; the same port again after a stop plays a restart."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port or self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]  # the only way to learn port 0
        return self

    async def stop(self) -> None:
        """Refuse connections from now on."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
