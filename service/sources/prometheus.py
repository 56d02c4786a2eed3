"""Prometheus, and whatever speaks its HTTP API: raw samples by range selectors at a fixed time.

Everything is bounded: answers in bytes and in series, queries in rollouts, requests under way, and time. A query that
was too much is halved, so that one rollout with very many series blinds only itself. Native histograms are not read
yet: a store that keeps only those gives NO_SERIES with a detail that says so.

A custom expression is evaluated at its window's end and so sees what PromQL sees there: its staleness is Prometheus'
own (five minutes unless set otherwise), not this room's.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import aiohttp
from pydantic import SecretStr

from service.model.names import Arm
from service.model.observation import ArmValues, Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.ring.ports import PortError, Refused, Unavailable
from service.sources import promql
from service.sources.answer import Answer, parse
from service.sources.counter import Series
from service.sources.plan import EXPRESSIONS_PER_QUERY, Ask, Batch, Slot, Wanted, plan
from service.sources.reading import ArmSeries, read

LARGE_ANSWER_BYTES = 256 * 1024
LARGE_ANSWER_SAMPLES = 10_000
"""Answers above these are worked on in a thread, so that the loop stays free."""

LOOKBACK_SCRAPES = 5
"""The step into a window's first sample needs the sample before it; a target may miss this many scrapes in between."""

STALE_SCRAPES = 3
"""An arm whose newest sample is older than this many scrapes at the window's end is no longer scraped."""


class PrometheusSource:
    """Implements ``ring.ports.Source`` for one metric store. Safe to repeat and to cancel."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        presets: Mapping[str, MetricsPreset],
        *,
        scrape_interval_s: float,
        timeout_s: float = 20.0,
        max_concurrent: int = 4,
        max_answer_bytes: int = 64 * 1024 * 1024,
        max_series: int = 200_000,
        token: SecretStr | None = None,
        basic: tuple[str, SecretStr] | None = None,
    ) -> None:
        """``token`` is a bearer token; ``basic`` a user and a password. At most one of them, read by the settings."""
        if token is not None and basic is not None:
            raise ValueError("the metric store takes a bearer token or a user and password, not both")
        self._session = session
        self._url = url.rstrip("/")
        self._presets = presets
        self._scrape_interval_s = scrape_interval_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._timeout_s = timeout_s
        self._gate = asyncio.Semaphore(max_concurrent)
        # Large answers are worked on one at a time: more threads would only make the loop wait longer for its turn.
        self._desk = asyncio.Lock()
        self._max_answer_bytes = max_answer_bytes
        self._max_series = max_series
        self._headers: dict[str, str] = {}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        elif basic is not None:
            user, password = basic
            self._headers["Authorization"] = aiohttp.encode_basic_auth(user, password.get_secret_value())

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        planned = plan(queries, self._presets, lookback_s=LOOKBACK_SCRAPES * self._scrape_interval_s)
        out: dict[Slot, Reading] = dict(planned.known)
        found: dict[Slot, dict[Arm, tuple[str, Answer]]] = defaultdict(dict)
        async with asyncio.TaskGroup() as group:
            for batch in planned.batches:
                group.create_task(self._counted(batch, out), name=f"counts of {batch.asks[0].metric}")
            for i in range(0, len(planned.wanted), EXPRESSIONS_PER_QUERY):
                part = planned.wanted[i : i + EXPRESSIONS_PER_QUERY]
                group.create_task(self._evaluated(part, found), name=f"{len(part)} expressions")
        for slot, by_arm in found.items():
            out[slot] = _value_reading(by_arm)
        return [[out[(place, at)] for at in range(len(query.metrics))] for place, query in enumerate(queries)]

    async def check(self) -> str:
        """One clause on the store's version; raises Refused or Unavailable when it cannot be asked."""
        answer, status = await self._query("vector(1)", None)
        if status in (401, 403):
            raise Refused(f"the metric store at {self._url} refuses the credentials ({status}); check the token file")
        if answer.failure:
            raise Unavailable(f"the metric store at {self._url} cannot be asked: {answer.failure}")
        if [number for _, number in answer.numbers] != [1.0]:
            raise Refused(f"{self._url} does not answer vector(1) as Prometheus does; is it the right address?")
        try:
            async with self._session.get(
                f"{self._url}/api/v1/status/buildinfo",
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                version = str(json.loads(await self._bounded(response))["data"]["version"])[:80]
        except (aiohttp.ClientError, TimeoutError, OSError, PortError, ValueError, KeyError, TypeError, RecursionError):
            # Not every store that speaks this API has a build to tell of.
            return "answers queries (its version cannot be asked)"
        return f"answers queries, version {version}"

    async def _counted(self, batch: Batch, out: dict[Slot, Reading]) -> None:
        """Ask for a batch, or for its halves where it was too much."""
        answer, _ = await self._query(batch.text, batch.at_s)
        if answer.divisible and len(batch.asks) > 1:
            for half in batch.halves():
                await self._counted(half, out)
        elif answer.failure:
            for ask in batch.asks:
                out[ask.slot] = Reading(ask.metric, Availability.AWAY, None, answer.failure)
        elif sum(len(one.samples) for one in answer.series) > LARGE_ANSWER_SAMPLES:
            async with self._desk:
                out |= await asyncio.to_thread(self._split, batch, answer)
        else:
            out |= self._split(batch, answer)

    def _split(self, batch: Batch, answer: Answer) -> dict[Slot, Reading]:
        """Each ask's reading, from the series that have exactly its labels."""
        index: dict[tuple[str, ...], list[Series]] = defaultdict(list)
        for one in answer.series:
            index[tuple(one.labels.get(key, "") for key in batch.keys)].append(one)
        out: dict[Slot, Reading] = {}
        for ask in batch.asks:
            canary, stable = (
                ArmSeries(arm, promql.selector(ask.labels[arm]), _of(index, batch.keys, ask, arm))
                for arm in (Arm.CANARY, Arm.STABLE)
            )
            out[ask.slot] = read(
                ask.metric,
                batch.what,
                (canary, stable),
                start_s=ask.start_s,
                end_s=ask.end_s,
                stale_after_s=STALE_SCRAPES * self._scrape_interval_s,
                warning=answer.warning,
                native_n=answer.native_n,
            )
        return out

    async def _evaluated(self, wanted: Sequence[Wanted], found: dict[Slot, dict[Arm, tuple[str, Answer]]]) -> None:
        """Ask for several expressions at once; one by one where the store takes no bundle, or one of them is wrong."""
        if len(wanted) > 1:
            answer, status = await self._query(promql.bundle([(one.text, one.at_s) for one in wanted]), wanted[0].at_s)
            if answer.failure and (answer.divisible or status == 400):
                middle = len(wanted) // 2
                for part in (wanted[:middle], wanted[middle:]):
                    await self._evaluated(part, found)
                return
            answers = [_part(answer, place) for place in range(len(wanted))]
        else:
            answers = [(await self._query(wanted[0].text, wanted[0].at_s))[0]]
        for one, part_of_it in zip(wanted, answers, strict=True):
            for slot, metric, arm in one.slots:
                found[slot][arm] = (metric, part_of_it)

    async def _query(self, text: str, at_s: float | None) -> tuple[Answer, int]:
        """An instant query by POST, and the status. Failures are part of the answer: a store away is a finding.

        Redirects are not followed: credentials and questions go only where the settings say.
        """
        form = {"query": text} | ({} if at_s is None else {"time": f"{at_s:.3f}"})
        try:
            async with (
                self._gate,
                self._session.post(
                    f"{self._url}/api/v1/query",
                    data=form,
                    headers=self._headers,
                    timeout=self._timeout,
                    allow_redirects=False,
                ) as response,
            ):
                status = response.status
                body = await self._bounded(response)
        except Refused as error:
            return Answer(failure=str(error), divisible=True), 0
        except TimeoutError:
            return Answer(failure=f"the metric store did not answer within {self._timeout_s:g} s"), 0
        except (aiohttp.ClientError, OSError) as error:
            return Answer(failure=f"the metric store does not answer: {str(error)[:200] or type(error).__name__}"), 0
        if len(body) > LARGE_ANSWER_BYTES:
            async with self._desk:
                return await asyncio.to_thread(parse, body, status, max_series=self._max_series), status
        return parse(body, status, max_series=self._max_series), status

    async def _bounded(self, response: aiohttp.ClientResponse) -> bytes:
        """The body; raises Refused when it is larger than allowed, having read no more than that."""
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_chunked(1 << 16):
            size += len(part)
            if size > self._max_answer_bytes:
                raise Refused(f"the metric store's answer is larger than {self._max_answer_bytes} bytes")
            parts.append(part)
        return b"".join(parts)


def _of(index: Mapping[tuple[str, ...], list[Series]], keys: tuple[str, ...], ask: Ask, arm: Arm) -> list[Series]:
    """The series of one arm. A label that only the other arm names may have any value."""
    labels = ask.labels[arm]
    if all(key in labels for key in keys):
        return index.get(tuple(labels[key] for key in keys), [])
    wanted = [(i, labels[key]) for i, key in enumerate(keys) if key in labels]
    return [one for values, series in index.items() if all(values[i] == v for i, v in wanted) for one in series]


def _part(answer: Answer, place: int) -> Answer:
    """What a bundle's answer says of one expression."""
    mine = tuple((labels, n) for labels, n in answer.numbers if labels.get(promql.ASK_LABEL) == str(place))
    return Answer(numbers=mine, warning=answer.warning, failure=answer.failure)


def _value_reading(by_arm: Mapping[Arm, tuple[str, Answer]]) -> Reading:
    """One number an arm. A canary without one has no series; a stable arm without one is None, for guards."""
    metric, _ = by_arm[Arm.CANARY]
    numbers: dict[Arm, float | None] = {}
    for arm, (_, answer) in by_arm.items():
        if answer.failure:
            return Reading(metric, Availability.AWAY, None, answer.failure)
        if answer.warning:
            return Reading(metric, Availability.DEGRADED, None, f"the metric store warns: {answer.warning[:200]}")
        numbers[arm] = _number(answer)
    if numbers[Arm.CANARY] is None:
        n = len(by_arm[Arm.CANARY][1].numbers)
        why = f"the expression gives {n or 'no'} numbers for the canary, and one finite number is needed"
        return Reading(metric, Availability.NO_SERIES, None, why)
    return Reading(metric, Availability.ENOUGH, ArmValues(numbers[Arm.CANARY], numbers[Arm.STABLE]))


def _number(answer: Answer) -> float | None:
    """The one finite number of an answer; None for none or several, which would be a guess."""
    if len(answer.numbers) != 1:
        return None
    value = answer.numbers[0][1]
    return value if math.isfinite(value) else None
