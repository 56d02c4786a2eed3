"""A store at the other end of a wire: questions go out bounded in every way, and every end is an answer.

Bounded are the requests under way, the time of one and of all that belong together, bytes and series. A store that
keeps failing is left alone for a while (``ring.breaker``), so that a tick with a thousand windows learns of it once and
not by a thousand time-outs. And a store is only believed about a time that its own clock has reached: a window that
ends in its future would seem to be without requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import aiohttp

from service.bodies import start_of
from service.ring.breaker import Breaker
from service.ring.ports import Clock, Refused
from service.sources.answer import METRIC_STORE, Answer, Outcome, parse

LARGE_ANSWER_BYTES = 64 * 1024
"""Larger answers are worked on in a thread, so that the loop stays free."""

CLOCKS_APART_S = 2.0
"""The store's clock may be behind a window's end by this much, beside the second that ``Date`` cuts off."""

FAILURES_TO_OPEN = 5

T = TypeVar("T")

Parse = Callable[[bytes, int, int], Answer]
"""(body, status, most series) to an answer. Total."""

Asked = Callable[[str, float], None]
"""Told of every question: an ``Outcome`` and how many seconds it took."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What asking may cost at most."""

    timeout_s: float
    """Of one request."""
    collect_timeout_s: float
    """Of all requests of one collection together, however often a question is halved."""
    max_concurrent: int
    max_answer_bytes: int
    max_series: int


class Asker:
    """Asks one store instant queries. Safe to repeat and to cancel."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        limits: Limits,
        *,
        headers: Mapping[str, str],
        clock: Clock,
        asked: Asked,
        called: str = METRIC_STORE,
    ) -> None:
        """``called`` is what people call the store, for sentences."""
        self._session = session
        self.url = url.rstrip("/")
        self._limits = limits
        self._timeout = aiohttp.ClientTimeout(total=limits.timeout_s)
        self._headers = headers
        self._told_of = asked
        self._called = called
        self._gate = asyncio.Semaphore(limits.max_concurrent)
        self._breaker = Breaker(clock, after_n=FAILURES_TO_OPEN)
        # Large answers are worked on one at a time: more threads would only make the loop wait longer for its turn.
        self._desk = asyncio.Lock()

    def deadline(self) -> float:
        """The moment on the loop's clock by which questions that are asked together must be answered."""
        return asyncio.get_running_loop().time() + self._limits.collect_timeout_s

    async def ask(self, text: str, at_s: float | None, deadline: float) -> Answer:
        """The answer to an instant query. Failures are part of it: a store away is a finding.

        at_s : the moment of the query, None for the store's now
        """
        form = {"query": text} | ({} if at_s is None else {"time": f"{at_s:.3f}"})
        return await self.asked("/api/v1/query", form, at_s, deadline, parse)

    async def asked(
        self, path: str, form: Mapping[str, str | Sequence[str]], at_s: float | None, deadline: float, parse: Parse
    ) -> Answer:
        """The answer to any question that is asked by a form; ``at_s`` is the latest moment that it is about."""
        loop = asyncio.get_running_loop()
        began: float | None = None
        try:
            async with asyncio.timeout_at(deadline), self._gate:
                if not self._breaker.admits():
                    return self._told(Outcome.OPEN, None, self._not_asked())
                began = loop.time()
                status, body, date = await self._post(path, form)
        except Refused as error:
            return self._told(Outcome.TOO_LARGE, began, str(error))
        except TimeoutError:
            together = loop.time() >= deadline
            within = f"{self._limits.collect_timeout_s if together else self._limits.timeout_s:g} s"
            if together:
                within += ", the time for all questions that are asked together"
            return self._told(Outcome.TIMEOUT, began, f"{self._called} did not answer within {within}")
        except (aiohttp.ClientError, OSError) as error:
            said = str(error)[:200] or type(error).__name__
            return self._told(Outcome.AWAY, began, f"{self._called} does not answer: {said}")
        seconds = loop.time() - began
        answer = await self.off_loop(len(body) > LARGE_ANSWER_BYTES, parse, body, status, self._limits.max_series)
        if not answer.failure and at_s is not None and date:
            answer = _unless_early(answer, at_s, date, self._called)
        self._count(answer.outcome, seconds, answer.failure)
        return answer

    async def off_loop(self, large: bool, work: Callable[..., T], *given: object) -> T:
        """What ``work`` gives, in a thread where it is ``large``."""
        if not large:
            return work(*given)
        async with self._desk:
            return await asyncio.to_thread(work, *given)

    async def get(self, path: str) -> bytes:
        """The body of a page of the store; raises what aiohttp raises, and Refused when it is too large."""
        async with self._session.get(
            f"{self.url}{path}", headers=self._headers, timeout=self._timeout, allow_redirects=False
        ) as response:
            return await self._bounded(response)

    async def _post(self, path: str, form: Mapping[str, str | Sequence[str]]) -> tuple[int, bytes, str]:
        """Status, body and date. Redirects are not followed: credentials and questions go where the settings say."""
        async with self._session.post(
            f"{self.url}{path}",
            data=aiohttp.FormData([(k, v) for k, given in form.items() for v in _listed(given)]),
            headers=self._headers,
            timeout=self._timeout,
            allow_redirects=False,
        ) as response:
            return response.status, await self._bounded(response), response.headers.get("Date", "")

    async def _bounded(self, response: aiohttp.ClientResponse) -> bytes:
        """The body; raises Refused when it is larger than allowed, having read no more than that."""
        limit = self._limits.max_answer_bytes
        body = await start_of(response, limit)
        if len(body) > limit:
            raise Refused(f"{self._called}'s answer is larger than {limit} bytes")
        return body

    def _told(self, outcome: Outcome, began: float | None, failure: str) -> Answer:
        """A failure that came without an answer; ``began`` is None where it was not asked, which is no one's fault."""
        if began is None:
            self._told_of(outcome.value, 0.0)
        else:
            self._count(outcome, asyncio.get_running_loop().time() - began, failure)
        return Answer(failure=failure, outcome=outcome, divisible=outcome is Outcome.TOO_LARGE)

    def _not_asked(self) -> str:
        return f"{self._called} is not asked for a while, because it keeps failing: {self._breaker.last_error}"

    def _count(self, outcome: Outcome, seconds: float, failure: str) -> None:
        self._told_of(outcome.value, seconds)
        if outcome.store_failed:
            self._breaker.failed(failure)
        else:
            self._breaker.worked()


def _listed(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _unless_early(answer: Answer, at_s: float, date: str, called: str) -> Answer:
    """The answer, or why it is none yet: by its own clock the store cannot have seen all of the window."""
    try:
        store_s = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return answer
    if store_s + 1 + CLOCKS_APART_S > at_s:
        return answer
    why = (
        f"the window ends at {_said(at_s)}, but {called}'s clock says {_said(store_s)} and this machine's "
        f"{_said(time.time())}; set the clock that is wrong"
    )
    return Answer(failure=why, outcome=Outcome.EARLY)


def _said(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
