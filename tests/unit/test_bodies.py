"""Answers are read whole, however slowly they come, and never further than allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Event, Thread

import aiohttp
import pytest
from aiohttp import web

from service.bodies import start_of
from service.cli import client


class Pieces:
    """Answers with these pieces, each written by itself."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def answer(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in self.pieces:
            await response.write(piece)
        return response

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """Its address."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """The same for a client that has a loop of its own."""
        started, ended = Event(), Event()
        url = ""

        async def serve() -> None:
            nonlocal url
            async with self.served() as url:
                started.set()
                await asyncio.to_thread(ended.wait)

        thread = Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        try:
            assert started.wait(30)
            yield url
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("pieces", "limit", "read"),
    [
        ((b"",), 4, b""),
        ((b"abcd",), 4, b"abcd"),
        ((b"ab", b"cd"), 4, b"abcd"),
        ((b"ab", b"cde", b"f"), 4, b"abcde"),
        ((b"x" * 200_000, b"y" * 200_000), 300_000, b"x" * 200_000 + b"y" * 100_001),
    ],
)
async def test_a_body_is_read_to_one_byte_beyond_the_limit(pieces: tuple[bytes, ...], limit: int, read: bytes) -> None:
    async with Pieces(*pieces).served() as url, aiohttp.ClientSession() as session, session.get(url) as response:
        assert await start_of(response, limit) == read


def test_the_command_reads_an_answer_that_comes_in_pieces() -> None:
    """It took the first piece for the whole answer, and an answer of some size for one that is not Serinus'."""
    said = json.dumps({"rollouts": ["x" * 300_000]}).encode()
    with Pieces(said[:100_000], said[100_000:200_000], said[200_000:]).in_thread() as url:
        assert client.Client(url).get("/rollouts") == json.loads(said)


def test_the_command_says_of_an_answer_beyond_all_bounds_that_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1000)
    with (
        Pieces(b'{"a": "' + b"x" * 5000, b'"}').in_thread() as url,
        pytest.raises(client.ApiError, match=r"/api/v1/rollouts answers with more than 1,000 bytes; ask for less"),
    ):
        client.Client(url).get("/rollouts")
