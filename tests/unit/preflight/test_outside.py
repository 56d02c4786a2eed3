"""Bounded fetches: where they go, where they never go, and what stops them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st

from service.preflight.outside import MAX_ERROR_BYTES, Allowed, NotAllowed, Outside, TooLarge, is_public
from service.ring.ports import Refused, Unavailable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SEEDED = settings(deadline=None, derandomize=True)
QUICK = {"limit_bytes": 1000, "timeout_s": 10.0}


class Names(AbstractResolver):
    """A resolver in the test's hand: each look-up of a name takes the next of its addresses."""

    def __init__(self, **addresses: list[str]) -> None:
        self._addresses = {name.replace("_", "."): list(answers) for name, answers in addresses.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        answers = self._addresses[host]
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=one,
                port=port,
                family=socket.AF_INET6 if ":" in one else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for one in address.split()
        ]

    async def close(self) -> None:
        pass


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


async def test_a_listed_host_inside_is_read_and_any_status_is_an_answer() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/missing":
            return web.Response(status=404, text="not here " * 20_000)
        return web.Response(text=f"{request.path} {request.headers['Accept']}")

    async with server(handler) as port, Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
        answer = await outside.get(f"http://127.0.0.1:{port}/a?sig=secret", accept="text/plain", **QUICK)
        assert (answer.status, answer.body, answer.url) == (200, b"/a text/plain", f"http://127.0.0.1:{port}/a")
        missing = await outside.get(f"http://127.0.0.1:{port}/missing", **QUICK)
        assert missing.status == 404
        assert len(missing.body) == MAX_ERROR_BYTES


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::a9fe:a9fe]/latest/meta-data/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[fe80::1%25eth0]/",
        "https://10.1.2.3/",
        "https://100.64.0.1/",
        "https://168.63.129.16/",
        "https://0.0.0.0/",
        "https://127.1/",
        "https://2130706433/",
        "https://127.0.0.1./",
        "https://①②⑦.0.0.1/",
        "http://registry.example/",
        "https://user:word@registry.example/",
        "ftp://registry.example/",
        "file:///etc/passwd",
        "https:///nohost",
    ],
)
async def test_an_address_that_nobody_listed_is_not_even_connected_to(url: str) -> None:
    names = Names(registry_example=["93.184.215.14"])
    async with Outside(resolver=lambda: names) as outside:
        with pytest.raises(NotAllowed) as caught:
            await outside.get(url, **QUICK)
    assert names.asked == []
    assert "word" not in str(caught.value)


async def test_what_a_signed_address_is_signed_with_is_in_no_error() -> None:
    """The client's own errors repeat the whole address where a server does not speak HTTP."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n")
        writer.close()

    babbling = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with babbling:
        port = babbling.sockets[0].getsockname()[1]
        async with Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
            with pytest.raises(Unavailable, match="Too many headers") as told:
                await outside.get(f"http://127.0.0.1:{port}/a?sig=SECRET", **QUICK)
    assert "SECRET" not in str(told.value)


@pytest.mark.parametrize(
    "addresses", ["127.0.0.1", "169.254.169.254", "93.184.215.14 10.0.0.7", "::1", "fd00:ec2::254", "::ffff:10.0.0.1"]
)
async def test_a_name_with_any_address_inside_is_refused(addresses: str) -> None:
    async with Outside(resolver=lambda: Names(registry_example=[addresses])) as outside:
        with pytest.raises(NotAllowed, match=r"registry\.example"):
            await outside.get("https://registry.example/v2/", **QUICK)


async def test_the_connection_goes_to_the_address_that_was_checked_and_the_next_look_up_is_checked_again() -> None:
    async with server(hello) as port:
        names = Names(registry_internal=["127.0.0.1", "169.254.169.254"])
        allowed = Allowed.listed([f"http://registry.internal:{port}"])
        async with Outside(allowed, resolver=lambda: names) as outside:
            assert (await outside.get(f"http://registry.internal:{port}/", **QUICK)).body == b"hello"
            assert names.asked == ["registry.internal"]
        async with Outside(allowed, resolver=lambda: names) as outside:
            with pytest.raises(NotAllowed, match="credentials"):
                await outside.get(f"http://registry.internal:{port}/", **QUICK)


async def test_a_listed_host_opens_neither_another_port_nor_another_host() -> None:
    async with server(hello) as port:
        names = Names(registry_internal=["127.0.0.1"], other_internal=["127.0.0.1"])
        async with Outside(Allowed.listed([f"registry.internal:{port + 1}"]), resolver=lambda: names) as outside:
            for host in ("registry.internal", "other.internal"):
                with pytest.raises(NotAllowed, match="list "):
                    await outside.get(f"https://{host}:{port}/", **QUICK)


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/iam/",
        "https://169.254.169.254/",
        "http://localhost:1/",
        "//10.0.0.1/",
        "https://metadata.example/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
    ],
)
async def test_a_redirect_to_an_address_inside_is_not_followed(target: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": target})

    names = Names(metadata_example=["169.254.169.254"], localhost=["127.0.0.1"])
    async with server(handler) as port:
        allowed = Allowed.listed([f"http://127.0.0.1:{port}"])
        async with Outside(allowed, resolver=lambda: names) as outside:
            with pytest.raises(NotAllowed):
                await outside.get(f"http://127.0.0.1:{port}/", **QUICK)


async def test_headers_follow_a_redirect_within_their_origin_and_never_to_another() -> None:
    seen: list[tuple[str, str | None]] = []

    async def blobs(request: web.Request) -> web.Response:
        seen.append(("blobs", request.headers.get("Authorization")))
        return web.Response(text="blob")

    async with server(blobs) as other:

        async def registry(request: web.Request) -> web.Response:
            seen.append((request.path, request.headers.get("Authorization")))
            target = "/b" if request.path == "/a" else f"http://127.0.0.1:{other}/c?sig=x"
            return web.Response(status=302, headers={"Location": target})

        async with server(registry) as port:
            allowed = Allowed.listed([f"http://127.0.0.1:{port}", f"http://127.0.0.1:{other}"])
            async with Outside(allowed) as outside:
                answer = await outside.get(f"http://127.0.0.1:{port}/a", headers={"Authorization": "Bearer t"}, **QUICK)
    assert answer.body == b"blob"
    assert seen == [("/a", "Bearer t"), ("/b", "Bearer t"), ("blobs", None)]


async def test_redirects_without_end_are_left_after_five() -> None:
    asked = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=302, headers={"Location": f"/{asked}"})

    async with server(handler) as port, Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
        with pytest.raises(Refused, match="one redirect too many"):
            await outside.get(f"http://127.0.0.1:{port}/", **QUICK)
    assert asked == 6


async def test_a_body_past_the_limit_is_cut_while_it_streams_and_one_that_fits_exactly_is_whole() -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        if request.path == "/fits":
            return web.Response(body=b"x" * 1000)
        if request.path == "/announced":
            return web.Response(body=b"x" * 1001)
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while sent < 500_000_000:
                await response.write(b"x" * 100_000)
                sent += 100_000
        except ConnectionError:
            pass
        return response

    async with server(handler) as port, Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
        assert len((await outside.get(f"http://127.0.0.1:{port}/fits", **QUICK)).body) == 1000
        with pytest.raises(TooLarge, match="announces 1001 bytes"):
            await outside.get(f"http://127.0.0.1:{port}/announced", **QUICK)
        with pytest.raises(TooLarge, match="more than 1000 bytes"):
            await outside.get(f"http://127.0.0.1:{port}/endless", **QUICK)
    assert sent < 50_000_000


async def test_a_packed_body_is_refused_so_that_no_bomb_is_unpacked() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    async with server(handler) as port, Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
        with pytest.raises(Refused, match="packed as gzip"):
            await outside.get(f"http://127.0.0.1:{port}/", **QUICK)


@pytest.mark.parametrize("path", ["/before", "/within"])
async def test_a_host_that_hangs_costs_the_time_that_was_given(path: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if request.path == "/within":
            await response.prepare(request)
            await response.write(b"x")
        await asyncio.Event().wait()
        return response

    async with server(handler) as port, Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await outside.get(f"http://127.0.0.1:{port}{path}", limit_bytes=10, timeout_s=0.2)


async def test_a_name_that_is_never_resolved_costs_the_time_that_was_given() -> None:
    class Never(Names):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            await asyncio.Event().wait()
            return []

    async with Outside(resolver=Never) as outside:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await outside.get("https://registry.example/", limit_bytes=10, timeout_s=0.2)


async def test_headers_without_end_are_not_read() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(100_000):
                writer.write(b"X-%d: %s\r\n" % (number, b"a" * 1000))
                await writer.drain()
        writer.close()

    listener = await asyncio.start_server(endless, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, Outside(Allowed.listed(["http://127.0.0.1"])) as outside:
        with pytest.raises(Unavailable, match="cannot be read"):
            await outside.get(f"http://127.0.0.1:{port}/", **QUICK)


async def test_a_closed_port_and_a_broken_answer_are_unavailable() -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        writer.close()

    listener = await asyncio.start_server(broken, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with Outside(Allowed.listed(["http://127.0.0.1"])) as outside:
        with pytest.raises(Unavailable, match="cannot be read"):
            await outside.get(f"http://127.0.0.1:{port}/", **QUICK)
        listener.close()
        await listener.wait_closed()
        with pytest.raises(Unavailable, match="cannot be read"):
            await outside.get(f"http://127.0.0.1:{port}/", **QUICK)


async def test_what_the_reader_of_a_stream_raises_stays_what_it_is() -> None:
    async with server(hello) as port, Outside(Allowed.listed([f"http://127.0.0.1:{port}"])) as outside:
        for error in (ValueError("mine"), OSError("mine"), TimeoutError("mine"), aiohttp.ClientError("mine")):
            with pytest.raises(type(error), match="mine"):
                async with outside.opened(f"http://127.0.0.1:{port}/", **QUICK):
                    raise error


@pytest.mark.parametrize("entry", ["", "ftp://a", "https://", "a/b", "http://u:p@a", "a b", "http://a?x=1"])
def test_an_entry_of_another_form_stops_the_start_up(entry: str) -> None:
    with pytest.raises(ValueError, match="allowed host"):
        Allowed.listed([entry])


@pytest.mark.parametrize("address", ["192.0.0.192", "192.88.99.1", "fec0::1", "3fff::1", "::ffff:192.0.0.192"])
def test_addresses_of_special_purpose_are_not_public_whatever_the_library_knows_of_them(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["192.0.0.192", "fd20:ce::254"])
async def test_a_listed_name_does_not_open_where_machines_get_their_credentials(address: str) -> None:
    names = Names(registry_internal=[address])
    async with Outside(Allowed.listed(["registry.internal"]), resolver=lambda: names) as outside:
        with pytest.raises(NotAllowed, match="credentials"):
            await outside.get("https://registry.internal/v2/", **QUICK)


@SEEDED
@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_in_every_ipv6_coat(address: object) -> None:
    inner = ip_address(str(address))
    assert is_public(ip_address(f"::ffff:{inner}")) == is_public(ip_address(f"64:ff9b::{inner}")) == is_public(inner)
