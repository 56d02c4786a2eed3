"""Sends recorded requests to both versions, so that both are treated alike, and hands on what comes back.

Each request goes out twice to either side, in the order stable, canary, canary, stable, and the next one the other way
round: so both see the same load at the same time, and caches favour neither. The very first request to each is sent and
timed before, alone. Nothing is tried again, redirects are not followed, and every wait and every body has a limit.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from service.bodies import start_of
from service.model.gates.golden import GoldenSubject, Protocol
from service.model.names import Arm
from service.preflight.golden.requests import GoldenRequest
from service.preflight.threads import in_thread

READY_EVERY_S = 0.5
READY_TIMEOUT_S = 5.0
MAX_READY_BYTES = 64 * 1024
MAX_FAILURE_BYTES = 64 * 1024
"""So much of an error's body is read for the report; TensorFlow puts stack traces before the reason."""
GIVE_UP_AFTER = 5
"""Calls in a row that one side leaves without any answer, before it is left alone."""

AS_SENT = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Uncompressed, so that the limit of bytes is one of memory too."""


def session() -> aiohttp.ClientSession:
    """Without cookies, and each call on a connection of its own: one that is used again may just have been closed by
    the server, and as nothing is tried again that would be held against the server's version."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), cookie_jar=aiohttp.DummyCookieJar())


@dataclass(frozen=True, slots=True)
class Raw:
    """One answer as it came: a body, or why there is none."""

    body: bytes
    failure: str
    status: int | None
    """None: no answer at all."""
    seconds: float


@dataclass(slots=True)
class Replayed:
    """What replaying measured beside the answers, and why it ended early if it did."""

    cold_start_s: float | None = None
    first: dict[Arm, Raw] = field(default_factory=dict)
    seconds: dict[Arm, list[float]] = field(default_factory=lambda: {arm: [] for arm in Arm})
    away: str = ""
    """Why a side could not be asked at all; empty when both could."""
    cut_short: str = ""
    """Why not all requests were replayed."""


T = TypeVar("T")

Examine = Callable[[GoldenRequest, tuple[Raw, Raw], tuple[Raw, Raw]], T]
"""What the two answers of stable and the two of the canary show. Runs in a thread, one at a time, and keeps nothing."""


class Replay(Generic[T]):
    """One replay of one file to one pair of servers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        subject: GoldenSubject,
        examine: Examine[T],
        heard: Callable[[T], None],
    ) -> None:
        """``session`` is one that ``session()`` made.

        heard : told what ``examine`` made of each request, on the loop
        """
        self._session = session
        self._subject = subject
        self._examine = examine
        self._heard = heard
        self._urls = {Arm.STABLE: subject.stable_url.rstrip("/"), Arm.CANARY: subject.canary_url.rstrip("/")}
        self._unanswered = dict.fromkeys(Arm, 0)
        # One body is taken apart at a time: what a body becomes in memory may be twenty times as large.
        self._desk = asyncio.Lock()
        self._result = Replayed()

    async def run(self, requests: Sequence[GoldenRequest]) -> Replayed:
        """Replay all of them; safe to cancel."""
        result = self._result
        try:
            async with asyncio.timeout(self._subject.within_s):
                if not await self._ready(requests[0]):
                    return result
                for arm in Arm:
                    result.first[arm] = first = await self._ask(arm, requests[0], self._subject.first_timeout_s)
                    if first.status is None:
                        result.away = f"{arm} did not answer the first request ({requests[0].id}): {first.failure}"
                        return result
                numbered = zip(count(), requests, strict=False)
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._subject.concurrency):
                        group.create_task(self._worker(numbered), name="golden-replay")
        except TimeoutError:
            result.cut_short = f"the {self._subject.within_s:g} s for all of it were over"
        return result

    async def _worker(self, numbered: zip[tuple[int, GoldenRequest]]) -> None:
        for number, request in numbered:
            first, second = (Arm.STABLE, Arm.CANARY) if number % 2 == 0 else (Arm.CANARY, Arm.STABLE)
            heard: dict[Arm, list[Raw]] = {arm: [] for arm in Arm}
            for arm in (first, second, second, first):
                raw = await self._ask(arm, request, self._subject.timeout_s)
                heard[arm].append(raw)
                self._unanswered[arm] = self._unanswered[arm] + 1 if raw.status is None else 0
                if raw.status is not None:
                    self._result.seconds[arm].append(raw.seconds)
            stable, canary = heard[Arm.STABLE], heard[Arm.CANARY]
            async with self._desk:
                self._heard(await in_thread(self._examine, request, (stable[0], stable[1]), (canary[0], canary[1])))
            for arm, n in self._unanswered.items():
                if n >= GIVE_UP_AFTER and not self._result.cut_short:
                    self._result.cut_short = f"{arm} left {n} calls in a row unanswered: {heard[arm][-1].failure}"
            if self._result.cut_short:
                return

    async def _ready(self, request: GoldenRequest) -> bool:
        """Wait until both say that they are ready; False when one does not in time."""
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def wait(arm: Arm) -> tuple[float, str]:
            """Seconds until ready, or why it is not."""
            asked = 0
            while True:
                why = await self._not_ready(arm, request)
                asked += 1
                waited_s = loop.time() - began
                if not why:
                    return (0.0 if asked == 1 else waited_s), ""
                if waited_s + READY_EVERY_S > self._subject.ready_within_s:
                    return waited_s, why
                await asyncio.sleep(READY_EVERY_S)

        waits = dict(zip(Arm, await asyncio.gather(*(wait(arm) for arm in Arm)), strict=True))
        for arm, (waited_s, why) in waits.items():
            if why:
                self._result.away = f"{arm} was not ready after {waited_s:.1f} s: {why}"
                return False
        self._result.cold_start_s = waits[Arm.CANARY][0]
        return True

    async def _not_ready(self, arm: Arm, request: GoldenRequest) -> str:
        """Why a version is not ready; empty when it is. Where no place says so, any answer means that it is."""
        path = request.ready_path
        ready = GoldenRequest("ready", path or "/", request.protocol, "GET", headers=request.headers)
        raw = await self._ask(arm, ready, READY_TIMEOUT_S, max_bytes=MAX_READY_BYTES)
        if raw.status is None or path is None:
            return raw.failure if raw.status is None else ""
        if not raw.failure and request.protocol is Protocol.TENSORFLOW_SERVING:
            return "" if _available(raw.body) else "no version of the model is AVAILABLE"
        return raw.failure

    async def _ask(self, arm: Arm, request: GoldenRequest, timeout_s: float, *, max_bytes: int | None = None) -> Raw:
        """One call; every end of it is an answer."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        body, failure, status = b"", "", None
        try:
            async with self._session.request(
                request.method,
                URL(self._urls[arm] + request.path, encoded=True),
                data=request.body or None,
                headers=_headers(request),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    failure = "answers compressed, although it was asked not to"
                elif 200 <= response.status < 300:
                    limit = max_bytes or self._subject.max_answer_bytes
                    body = await start_of(response, limit)
                    if len(body) > limit:
                        body, failure = b"", f"answers with more than {limit:,} bytes"
                elif 300 <= response.status < 400:
                    failure = f"answers {response.status}; redirects are not followed"
                else:
                    said = await start_of(response, MAX_FAILURE_BYTES)
                    failure = f"answers {response.status}: {_error(said)}"
                status = response.status
        except TimeoutError:
            body, failure = b"", f"no whole answer within {timeout_s:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            body, failure = b"", f"no answer: {str(error)[:200] or type(error).__name__}"
        return Raw(body, failure, status, loop.time() - began)


def _headers(request: GoldenRequest) -> CIMultiDict[str]:
    """What every call has, and what was recorded; that may name another content type and nothing of the connection."""
    headers = CIMultiDict(AS_SENT)
    if request.body:
        headers["Content-Type"] = "application/json"
    headers.update(request.headers)
    return headers


def _available(body: bytes) -> bool:
    """Whether TensorFlow Serving's status names a version that it serves; or KServe's, which speaks the same protocol
    at the same path and has another status."""
    with suppress(ValueError, RecursionError):
        match json.loads(body.decode("utf-8")):
            case {"model_version_status": list(versions)}:
                return any(isinstance(one, dict) and one.get("state") == "AVAILABLE" for one in versions)
            case {"ready": True}:
                return True
    return False


_REASON = re.compile(
    r"no opkernel was registered|no registered '[\w:>]+' opkernel|op type not registered|"
    r"could not find device for node",
    re.IGNORECASE,
)
"""Where TensorFlow begins to say that it lacks an operator or its kernel."""


def _error(said: bytes) -> str:
    """What an error's body says, as text of one line."""
    text = said.decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        match json.loads(text):
            case {"error": str(inner)} | {"message": str(inner)} | {"detail": str(inner)}:
                text = inner
    text = " ".join(text.split())
    reason = _REASON.search(text)
    return text[reason.start() if reason else 0 :][:300]
