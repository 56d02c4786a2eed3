"""Fetches from outside, each bounded in bytes, time and redirects, and none to where it was not meant to go.

An address in an image reference, a report's URL or a redirect was written by somebody else, and may name a metadata
service or a pod that answers whoever can reach it. So every name is resolved here, every address is checked, and the
connection is made to the address that was checked: a name that answers otherwise the second time gains nothing. Hosts
inside are reached only where the operator has listed them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDictProxy
from yarl import URL

from service.preflight.report import readable
from service.ring.ports import PortError, Refused, Unavailable

MAX_REDIRECTS_N = 5
MAX_URL_CHARACTERS_N = 8192
"""Signed addresses of storage services have some 2,000."""
MAX_ERROR_BYTES = 64 * 1024
"""Of an answer that is no success, so much is kept: enough for its reasons."""
CHUNK_BYTES = 64 * 1024
MAX_CONNECTIONS_N = 16

NEVER_BY_NAME = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "fe80::/10",
        "fd00:ec2::/32",  # AWS' metadata over IPv6
        "fd20:ce::254/128",  # Google's over IPv6
        "100.100.100.200/32",  # Alibaba's
        "168.63.129.16/32",  # Azure's, a public address by its number
        "192.0.0.192/32",  # Oracle's older one
    )
)
"""Where credentials of the machine are handed out. Listing a name does not open these; listing the address does."""

NOT_GLOBAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # special purposes of the IETF
        "192.88.99.0/24",  # relays of 6to4, given up
        "fec0::/10",  # site-local, given up and still used
        "3fff::/20",  # documentation
    )
)
"""What the library of some Python versions takes for global."""

NAT64 = ipaddress.ip_network("64:ff9b::/96")
SIX_TO_FOUR = ipaddress.ip_network("2002::/16")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class NotAllowed(Refused):
    """The address is one that nobody listed, or the way to it is not secure."""


class TooLarge(Refused):
    """More bytes came than were asked for; the rest was not read."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Hosts that the operator opened. Public hosts need no entry: they are reached by HTTPS.

    inside : ``host`` or ``host:port`` of hosts that may have a private or loopback address. Without a port, all ports
    plain : the same form; may be reached by HTTP without TLS (and is then inside too)
    """

    inside: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()

    @classmethod
    def listed(cls, entries: Sequence[str]) -> Self:
        """From the form of settings: ``registry.internal``, ``registry.internal:5000``, ``http://localhost:5000``.

        Raises ValueError for an entry of another form.
        """
        inside, plain = set(), set()
        for entry in entries:
            scheme, _, rest = entry.rpartition("://")
            try:
                url = URL(f"//{rest}")
                good = (
                    scheme in ("", "http", "https") and url.raw_host and not (url.path.strip("/") or url.query_string)
                )
                name = (
                    f"{_bare(url.raw_host or '')}:{url.explicit_port}"
                    if url.explicit_port
                    else _bare(url.raw_host or "")
                )
            except ValueError:
                good, name = False, ""
            if not good or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+/?", rest):
                raise ValueError(
                    f"allowed host {readable(entry)!r} has not the form host, host:port or http://host:port"
                )
            inside.add(name)
            if scheme == "http":
                plain.add(name)
        return cls(frozenset(inside), frozenset(plain))

    def is_inside(self, host: str, port: int) -> bool:
        """Whether this host may have an address inside."""
        return _named(self.inside | self.plain, host, port)

    def is_plain(self, host: str, port: int) -> bool:
        """Whether this host may be reached without TLS."""
        return _named(self.plain, host, port)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status."""

    url: str
    """After redirects, without its query, which may hold a signature."""
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    """Whole for a success; the first 64 KiB otherwise."""


@dataclass(slots=True)
class Opened:
    """An answer whose body is still to come."""

    url: str
    status: int
    headers: CIMultiDictProxy[str]
    _response: aiohttp.ClientResponse = field(repr=False)
    _limit_bytes: int

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, in pieces of at most 64 KiB. Raises TooLarge as soon as it passes the limit."""
        length = self._response.content_length
        if length is not None and length > self._limit_bytes:
            raise TooLarge(f"{self.url} announces {length} bytes; at most {self._limit_bytes} are read")
        read_bytes = 0
        async for chunk in self._pieces():
            read_bytes += len(chunk)
            if read_bytes > self._limit_bytes:
                raise TooLarge(f"{self.url} sends more than {self._limit_bytes} bytes; the rest was not read")
            yield chunk

    async def beginning(self, limit_bytes: int) -> bytes:
        """The first bytes, and no complaint about more."""
        body = bytearray()
        async for chunk in self._pieces():
            body += chunk
            if len(body) >= limit_bytes:
                break
        return bytes(body[:limit_bytes])

    async def _pieces(self) -> AsyncIterator[bytes]:
        with _speaking_of(self.url):
            async for chunk in self._response.content.iter_chunked(CHUNK_BYTES):
                yield chunk


class Outside:
    """A client for addresses that others wrote. Use as ``async with Outside(allowed) as outside``.

    allowed : hosts that the operator opened
    tls : for certificates of the operator's own authority; None: the system's
    resolver : for tests; None: the system's

    Every fetch raises NotAllowed, TooLarge or Refused where repeating is useless, and Unavailable where the same call
    may succeed later. Safe to repeat and to cancel; none retries by itself. Proxies of the environment are not used:
    what they resolve cannot be checked.
    """

    def __init__(
        self,
        allowed: Allowed | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver,
    ) -> None:
        self._allowed = allowed or Allowed()
        self._tls = tls
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_GuardedResolver(self._resolver(), self._allowed),
                ssl=self._tls or True,
                limit=MAX_CONNECTIONS_N,
            ),
            # What is counted must be what came: a small body that unpacks to gigabytes is refused by its header.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "serinus"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def base(self, host: str) -> str:
        """Where ``host`` or ``host:port`` is asked: by HTTPS, or by HTTP where the operator listed it so."""
        try:
            url = URL(f"http://{host}")
            name, port = url.raw_host or "", url.port or 80
        except ValueError as error:
            raise Refused(f"{readable(host)!r} is no host or host:port") from error
        return f"{'http' if self._allowed.is_plain(name, port) else 'https'}://{host}"

    async def get(
        self,
        url: str,
        *,
        limit_bytes: int,
        timeout_s: float,
        accept: str = "*/*",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The whole answer, of any status.

        limit_bytes : most that a success may have
        timeout_s : for everything together: names, redirects, body
        headers : sent to the first origin only, so that credentials do not follow a redirect elsewhere
        """
        async with self.opened(
            url, limit_bytes=limit_bytes, timeout_s=timeout_s, accept=accept, headers=headers
        ) as opened:
            if 200 <= opened.status < 300:
                body = b"".join([chunk async for chunk in opened.chunks()])
            else:
                body = await opened.beginning(MAX_ERROR_BYTES)
            return Answer(opened.url, opened.status, opened.headers, body)

    @asynccontextmanager
    async def opened(
        self,
        url: str,
        *,
        limit_bytes: int,
        timeout_s: float,
        accept: str = "*/*",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Opened]:
        """As ``get``, for a body that is read piece by piece; ``timeout_s`` covers the reading."""
        shown = readable(url.partition("?")[0])
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                response, shown = await self._followed(url, {"Accept": accept}, dict(headers or {}))
                try:
                    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
                    if encoding not in ("", "identity"):
                        raise Refused(f"{shown} sends a body packed as {readable(encoding)}, which was not asked for")
                    yield Opened(shown, response.status, response.headers, response, limit_bytes)
                finally:
                    # Not released: an unread rest would be read to the end first.
                    response.close()
        except TimeoutError as error:
            # The caller's own may pass through here too, and stays what it is.
            if not limit.expired():
                raise
            raise Unavailable(f"{shown} did not answer in full within {timeout_s:g} s") from error

    async def _followed(
        self, url: str, always: dict[str, str], first_only: dict[str, str]
    ) -> tuple[aiohttp.ClientResponse, str]:
        """The answer at the end of the redirects, and its address without query."""
        if self._session is None:
            raise RuntimeError("Outside is used with `async with`")
        origin = at = self._checked(url, "the address")
        shown = readable(url.partition("?")[0])
        for _ in range(MAX_REDIRECTS_N + 1):
            shown = readable(str(at.with_query(None).with_fragment(None)))
            headers = always | (first_only if at.origin() == origin.origin() else {})
            with _speaking_of(shown):
                response = await self._session.get(
                    at, headers=headers, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=None)
                )
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                return response, shown
            response.close()
            at = self._checked(str(_joined(at, target)), f"the redirect from {shown}")
        raise Refused(f"{shown} is one redirect too many: at most {MAX_REDIRECTS_N} are followed")

    def _checked(self, text: str, what: str) -> URL:
        """The URL, when its form and scheme are allowed and its host is no forbidden address."""
        if len(text) > MAX_URL_CHARACTERS_N:
            raise Refused(f"{what} has {len(text)} characters; at most {MAX_URL_CHARACTERS_N} are taken")
        shown = readable(text.partition("?")[0])
        try:
            url = URL(text)
            host, port = url.raw_host, url.port
        except ValueError as error:
            raise Refused(f"{what} {shown!r} is no URL: {readable(str(error))}") from error
        if url.scheme not in ("http", "https") or not host or not port:
            raise NotAllowed(f"{what} {shown!r} is neither https nor http with a host")
        if url.user is not None or url.password is not None:
            raise NotAllowed(f"{what} holds a user name; credentials come from files, never from addresses")
        if url.scheme == "http" and not self._allowed.is_plain(host, port):
            raise NotAllowed(
                f"{what} {shown!r} is without TLS; list http://{readable(host)}:{port} among the allowed hosts "
                f"(preflight.allowed_hosts; by hand: --allow) if that is meant"
            )
        if _looks_numeric(host):
            # Literal addresses pass the resolver by.
            try:
                address = ipaddress.ip_address(_bare(host))
            except ValueError as error:
                raise NotAllowed(f"{what} {shown!r} writes an address in an unusual way") from error
            if not _named(self._allowed.inside | self._allowed.plain, host, port) and not is_public(address):
                raise NotAllowed(_inside_sentence(f"{what} {shown!r}", str(address), host, port))
        return url


class _GuardedResolver(AbstractResolver):
    """Resolves as the inner one does, and hands on only addresses that were checked; the connection goes to those."""

    def __init__(self, inner: AbstractResolver, allowed: Allowed) -> None:
        self._inner = inner
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises NotAllowed when any address of the name is one inside that nobody listed."""
        found = await self._inner.resolve(host, port, family)
        inside = self._allowed.is_inside(host, port)
        for one in found:
            try:
                address = ipaddress.ip_address(one["host"].partition("%")[0])
            except ValueError as error:
                raise Refused(f"{readable(host)} resolves to {readable(one['host'])}, which is no address") from error
            # One bad address among good ones is an attempt, not a mistake, so the others are not taken either.
            if any(_embedded(address) in network for network in NEVER_BY_NAME):
                raise NotAllowed(f"{readable(host)} resolves to {address}, where machines get their credentials")
            if not inside and not is_public(address):
                raise NotAllowed(_inside_sentence(readable(host), str(address), host, port))
        return found

    async def close(self) -> None:
        """Release the inner one."""
        await self._inner.close()


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet at large: not private, local, shared, reserved, multicast, metadata."""
    address = _embedded(address)
    if any(address in network for network in (*NEVER_BY_NAME, *NOT_GLOBAL, SIX_TO_FOUR)):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one only wraps."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _looks_numeric(host: str) -> bool:
    """What aiohttp takes for an address and so does not resolve (and a little more)."""
    return ":" in host or host.replace(".", "").isdigit()


def _bare(host: str) -> str:
    return host.rstrip(".").partition("%")[0].lower()


def _named(entries: frozenset[str], host: str, port: int) -> bool:
    name = _bare(host)
    return name in entries or f"{name}:{port}" in entries


def _inside_sentence(what: str, address: str, host: str, port: int) -> str:
    return (
        f"{what} leads to {address}, an address inside; list {readable(_bare(host))}:{port} among the allowed hosts "
        f"(preflight.allowed_hosts; by hand: --allow) if that is meant"
    )


def _joined(base: URL, target: str) -> URL:
    if len(target) > MAX_URL_CHARACTERS_N:
        raise Refused(f"a redirect has {len(target)} characters; at most {MAX_URL_CHARACTERS_N} are followed")
    try:
        return base.join(URL(target, encoded=True))
    except ValueError as error:
        raise Refused(f"a redirect to {readable(target.partition('?')[0])!r} is no URL") from error


@contextmanager
def _speaking_of(shown: str) -> Iterator[None]:
    """The client library's errors as ours, with the address that was read."""
    try:
        yield
    except PortError:
        raise
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The client's errors may repeat the address with its query, which may hold a signature.
        said = re.sub(r"\?[^\s'\"]*", "", str(error)) or type(error).__name__
        raise Unavailable(f"{shown} cannot be read: {readable(said)}") from error
