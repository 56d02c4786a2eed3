"""Prometheus, and whatever speaks its HTTP API: raw samples by range selectors at a fixed time.

Rollouts that read the same series in the same window share a query: their label values are joined into one matcher
and the answer is split again by exact labels. Everything is bounded: answers in bytes, queries in rollouts, requests
under way, and time. Native histograms are not read yet.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import SecretStr

from service.model.names import Arm
from service.model.observation import ArmValues, Availability, Reading, WindowQuery
from service.model.preset import ErrorSeries, LatencySeries, MetricsPreset, PredictionSeries, ValueExpression
from service.ring.ports import PortError, Refused, Unavailable
from service.sources import promql
from service.sources.counter import Series
from service.sources.reading import ArmSeries, read

MAX_ANSWER_BYTES = 64 * 1024 * 1024
ROLLOUTS_PER_QUERY = 50
LARGE_ANSWER_BYTES = 256 * 1024
"""Answers above this are parsed in a thread, so that the loop stays free."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said to one instant query."""

    result: tuple[Mapping[str, Any], ...] = ()
    warning: str = ""
    failure: str = ""
    """Why there is no answer; empty when there is one."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One metric of one query, with the labels of both arms."""

    place: int
    slot: int
    query: WindowQuery
    labels: Mapping[Arm, Mapping[str, str]]


class PrometheusSource:
    """Implements ``ring.ports.Source`` for one metric store."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        presets: Mapping[str, MetricsPreset],
        *,
        scrape_interval_s: float,
        timeout_s: float = 20.0,
        max_concurrent: int = 4,
        token: SecretStr | None = None,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._presets = presets
        self._scrape_interval_s = scrape_interval_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._gate = asyncio.Semaphore(max_concurrent)
        self._headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        out: list[list[Reading | None]] = [[None] * len(q.metrics) for q in queries]
        counters: dict[tuple[Any, ...], list[_Ask]] = defaultdict(list)
        values: dict[tuple[str, float, str, str], list[tuple[_Ask, Arm]]] = defaultdict(list)
        for place, query in enumerate(queries):
            preset = self._presets.get(query.place.metrics)
            for slot, metric in enumerate(query.metrics):
                series = preset.metrics.get(metric) if preset else None
                if preset is None or series is None:
                    where = f"preset {query.place.metrics!r} has no metric {metric!r}"
                    out[place][slot] = Reading(metric, Availability.NO_SERIES, None, where)
                    continue
                labels = {
                    Arm.CANARY: {**preset.labels, **query.place.canary_labels},
                    Arm.STABLE: {**preset.labels, **query.place.stable_labels},
                }
                ask = _Ask(place, slot, query, labels)
                if isinstance(series, ValueExpression):
                    for arm in Arm:
                        text = series.promql.replace("$matchers", _selector(labels[arm]))
                        values[(metric, query.end_s, text, arm)].append((ask, arm))
                else:
                    keys = tuple(sorted(set(labels[Arm.CANARY]) | set(labels[Arm.STABLE])))
                    counters[(preset.name, metric, query.start_s, query.end_s, keys)].append(ask)
        async with asyncio.TaskGroup() as group:
            for (preset_name, metric, start_s, end_s, _), asks in counters.items():
                series = self._presets[preset_name].metrics[metric]
                assert not isinstance(series, ValueExpression)
                for i in range(0, len(asks), ROLLOUTS_PER_QUERY):
                    group.create_task(self._counters(series, start_s, end_s, asks[i : i + ROLLOUTS_PER_QUERY], out))
            asked = [group.create_task(self._query(text, end_s)) for (_, end_s, text, _) in values]
        self._values(values, [task.result() for task in asked], out)
        return [[reading for reading in row if reading is not None] for row in out]

    async def check(self) -> str:
        """One clause on the store's version; raises PortError when it cannot be asked."""
        answer = await self._query("vector(1)", None)
        if answer.failure:
            raise Unavailable(f"the metric store at {self._url} cannot be asked: {answer.failure}")
        try:
            async with self._session.get(
                f"{self._url}/api/v1/status/buildinfo", headers=self._headers, timeout=self._timeout
            ) as response:
                if response.status == 401 or response.status == 403:
                    raise Refused(f"the metric store at {self._url} refuses the credentials ({response.status})")
                body = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return "answers queries (its version cannot be asked)"
        return f"answers queries, version {body.get('data', {}).get('version', 'unknown')}"

    async def _counters(
        self,
        series: LatencySeries | ErrorSeries | PredictionSeries,
        start_s: float,
        end_s: float,
        asks: Sequence[_Ask],
        out: list[list[Reading | None]],
    ) -> None:
        """One query for a chunk of rollouts, split into their readings."""
        joined: dict[str, set[str]] = defaultdict(set)
        for ask in asks:
            for labels in ask.labels.values():
                for label, value in labels.items():
                    joined[label].add(value)
        # The step into the window's first sample needs the sample before it, so one that is not stale is fetched too.
        lookback_s = 5 * self._scrape_interval_s
        name = {"latency": "buckets", "errors": "requests", "predictions": "counter"}[series.kind]
        text = promql.range_selector(getattr(series, name), joined, end_s - start_s + lookback_s)
        answer = await self._query(text, end_s)
        index = _index(answer, tuple(sorted(joined))) if not answer.failure else {}
        keys = tuple(sorted(joined))
        for ask in asks:
            metric = ask.query.metrics[ask.slot]
            if answer.failure:
                out[ask.place][ask.slot] = Reading(metric, Availability.AWAY, None, answer.failure)
                continue
            arms = tuple(
                ArmSeries(
                    arm,
                    promql.matchers({k: [v] for k, v in ask.labels[arm].items()}),
                    _of(index, keys, ask.labels[arm]),
                )
                for arm in (Arm.CANARY, Arm.STABLE)
            )
            out[ask.place][ask.slot] = read(
                metric,
                series,
                (arms[0], arms[1]),
                start_s=start_s,
                end_s=end_s,
                stale_after_s=3 * self._scrape_interval_s,
                warning=answer.warning,
            )

    def _values(
        self,
        values: Mapping[tuple[str, float, str, str], list[tuple[_Ask, Arm]]],
        answers: Sequence[Answer],
        out: list[list[Reading | None]],
    ) -> None:
        """Custom expressions: one number an arm."""
        found: dict[tuple[int, int], dict[Arm, Answer]] = defaultdict(dict)
        names: dict[tuple[int, int], str] = {}
        for ((metric, _, _, _), asks), answer in zip(values.items(), answers, strict=True):
            for ask, arm in asks:
                found[(ask.place, ask.slot)][arm] = answer
                names[(ask.place, ask.slot)] = metric
        for (place, slot), by_arm in found.items():
            out[place][slot] = _value_reading(names[(place, slot)], by_arm)

    async def _query(self, text: str, at_s: float | None) -> Answer:
        """An instant query by POST. Failures are part of the answer: a store that is away is a finding."""
        form = {"query": text} | ({} if at_s is None else {"time": f"{at_s:.3f}"})
        try:
            async with (
                self._gate,
                self._session.post(
                    f"{self._url}/api/v1/query", data=form, headers=self._headers, timeout=self._timeout
                ) as response,
            ):
                body = await _bounded(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError, PortError) as error:
            return Answer(failure=f"the metric store does not answer: {error or type(error).__name__}")
        if len(body) > LARGE_ANSWER_BYTES:
            return await asyncio.to_thread(_parse, body, status)
        return _parse(body, status)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(1 << 16):
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise Refused(f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _parse(body: bytes, status: int) -> Answer:
    try:
        answer = json.loads(body)
        if answer["status"] != "success":
            return Answer(failure=f"the metric store says {status}: {str(answer.get('error', ''))[:200]}")
        result = answer["data"]["result"]
        if not isinstance(result, list):
            return Answer(failure="the metric store's answer has no list of results")
        warnings = answer.get("warnings") or []
        return Answer(tuple(result), "; ".join(str(w) for w in warnings)[:500])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Answer(failure=f"the metric store answered {status} with something that is no Prometheus answer")


def _index(answer: Answer, keys: tuple[str, ...]) -> dict[tuple[str, ...], list[Series]]:
    """The answer's series by the values of the labels that tell rollouts apart."""
    index: dict[tuple[str, ...], list[Series]] = defaultdict(list)
    for one in answer.result:
        labels = one.get("metric", {})
        try:
            samples = [(float(at), float(value)) for at, value in one.get("values", ())]
        except (TypeError, ValueError):
            continue  # a series that cannot be read is not there; its arm then says so
        index[tuple(str(labels.get(k, "")) for k in keys)].append(Series(labels, samples))
    return index


def _of(
    index: Mapping[tuple[str, ...], list[Series]], keys: tuple[str, ...], labels: Mapping[str, str]
) -> list[Series]:
    """The series of one arm. A label that only other rollouts of the query name may have any value."""
    if all(key in labels for key in keys):
        return index.get(tuple(labels[key] for key in keys), [])
    wanted = [(i, labels[key]) for i, key in enumerate(keys) if key in labels]
    return [one for values, series in index.items() if all(values[i] == v for i, v in wanted) for one in series]


def _selector(labels: Mapping[str, str]) -> str:
    return promql.matchers({label: [value] for label, value in labels.items()})


def _value_reading(metric: str, by_arm: Mapping[Arm, Answer]) -> Reading:
    numbers: dict[Arm, float | None] = {}
    for arm, answer in by_arm.items():
        if answer.failure:
            return Reading(metric, Availability.AWAY, None, answer.failure)
        if answer.warning:
            return Reading(metric, Availability.DEGRADED, None, f"the metric store warns: {answer.warning[:200]}")
        numbers[arm] = _number(answer)
    if numbers.get(Arm.CANARY) is None:
        return Reading(metric, Availability.NO_SERIES, None, "the expression gives no single number for the canary")
    return Reading(metric, Availability.ENOUGH, ArmValues(numbers[Arm.CANARY], numbers.get(Arm.STABLE)))


def _number(answer: Answer) -> float | None:
    """The one finite number of an instant vector; None for none or several, which would be a guess."""
    if len(answer.result) != 1:
        return None
    try:
        value = float(answer.result[0]["value"][1])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
