"""Log lines from Loki, or whatever speaks its HTTP API: counted in the store, by pattern and arm.

A window, with what the preset looks back, costs two questions that it shares with up to fifty others: how many lines
each arm wrote at all, and how many of them match. Only where the canary has some is asked further: of which kinds,
whether stable had them too, then or before, and one line for people to read.

That an arm has no such line is only known where its lines get here. A server may be quiet for days, so an arm without
lines in the window is looked up in the store's index: a stream that was heard of within ``heard_within_s`` makes zero
a count, and without one nothing is known.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import aiohttp
import msgspec
from pydantic import SecretStr

from service.model.lines import LinePattern, LogSeries
from service.model.names import Arm
from service.model.observation import Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.ring.ports import Clock, Refused, Unavailable
from service.sources import lines, logql
from service.sources.answer import Answer, Outcome, parse
from service.sources.asking import Asked, Asker, Limits
from service.sources.lines import nothing
from service.sources.plan import fault
from service.telling.words import duration

LOG_STORE = "the log store"

ARMS_PER_QUERY = 50
"""An alternation of this many names stays a short question, and one answer blinds few if it fails."""

COLLECT_TIMEOUTS = 2.0
"""All questions that are asked together must be answered within this many times the time-out of one."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_SERIES = 20_000

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Side:
    """The lines of one arm in one window."""

    labels: Labels
    patterns: tuple[LinePattern, ...]
    start_s: float
    end_s: float

    @property
    def selector(self) -> str:
        return logql.selector({name: [value] for name, value in self.labels})


@dataclass(frozen=True, slots=True)
class _Ask:
    """One metric of one window."""

    slot: tuple[int, int]
    metric: str
    series: LogSeries
    sides: Mapping[Arm, _Side]


@dataclass(slots=True)
class _Turn:
    """What one collection has found so far."""

    deadline: float
    lines_n: dict[_Side, int] = field(default_factory=dict)
    found_n: dict[_Side, int] = field(default_factory=dict)
    heard: set[_Side] = field(default_factory=set)
    trouble: dict[_Side, Answer] = field(default_factory=dict)


class _Data(msgspec.Struct):
    result: list[_Stream]
    kind: str = msgspec.field(name="resultType", default="")


class _Stream(msgspec.Struct):
    stream: dict[str, str]
    values: list[list[object]]


class _Streams(msgspec.Struct):
    data: _Data


class _Index(msgspec.Struct):
    data: list[dict[str, str]] | None = None


class _Names(msgspec.Struct):
    data: list[str] | None = None


_STREAMS = msgspec.json.Decoder(_Streams)
_INDEX = msgspec.json.Decoder(_Index)
_NAMES = msgspec.json.Decoder(_Names)


class LokiSource:
    """Implements ``ring.ports.Source`` for metrics of kind ``logs``. Safe to repeat and to cancel."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        presets: Mapping[str, MetricsPreset],
        *,
        clock: Clock,
        tenant: str | None = None,
        token: SecretStr | None = None,
        timeout_s: float = 20.0,
        max_concurrent: int = 4,
        delay_s: float = 30.0,
        heard_within_s: float = 7 * 86400.0,
        asked: Asked = lambda outcome, seconds: None,
    ) -> None:
        """``tenant`` is sent as X-Scope-OrgID, ``token`` as a bearer token.

        delay_s : a line may arrive so much later than it was written, so each window is counted that much further back
        heard_within_s : an arm without any line for so long has none here; see the module
        """
        headers = {} if tenant is None else {"X-Scope-OrgID": tenant}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        limits = Limits(timeout_s, COLLECT_TIMEOUTS * timeout_s, max_concurrent, MAX_ANSWER_BYTES, MAX_SERIES)
        self._presets = presets
        self._delay_s = delay_s
        self._heard_within_s = heard_within_s
        self._asker = Asker(
            session, f"{url.rstrip('/')}/loki", limits, headers=headers, clock=clock, asked=asked, called=LOG_STORE
        )

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        found: dict[tuple[int, int], Reading] = {}
        asks = self._asks(queries, found)
        turn = _Turn(self._asker.deadline())
        sides = list(dict.fromkeys(side for ask in asks for side in ask.sides.values()))
        async with asyncio.TaskGroup() as group:
            for part in _parts(sides, lambda one: (one.patterns, _names(one), *_span(one))):
                group.create_task(self._counted(part, turn), name=f"lines of {len(part)} arms")
        silent = [side for side in sides if not turn.lines_n.get(side) and side not in turn.trouble]
        async with asyncio.TaskGroup() as group:
            for part in _parts(silent, _span):
                group.create_task(self._sought(part, turn), name=f"streams of {len(part)} arms")
        async with asyncio.TaskGroup() as group:
            tasks = {ask.slot: group.create_task(self._read(ask, turn), name=f"lines of {ask.metric}") for ask in asks}
        found |= {slot: task.result() for slot, task in tasks.items()}
        return [[found[(place, at)] for at in range(len(query.metrics))] for place, query in enumerate(queries)]

    async def labels(self) -> frozenset[str]:
        """Names of the streams' labels, for the doctor; raises Refused or Unavailable when it cannot be asked."""
        answer = await self._asker.asked("/api/v1/labels", {}, None, self._asker.deadline(), _parse_names)
        if answer.outcome in (Outcome.REFUSED, Outcome.REJECTED):
            raise Refused(f"{self._asker.url}: {answer.failure}; check the address, the token file and the tenant")
        if answer.failure:
            raise Unavailable(f"the log store at {self._asker.url} cannot be asked: {answer.failure}")
        return frozenset(name for _, name in answer.streams)

    def _asks(self, queries: Sequence[WindowQuery], found: dict[tuple[int, int], Reading]) -> list[_Ask]:
        """What to ask; metrics that cannot be asked get a reading that says why."""
        asks = []
        for place, query in enumerate(queries):
            preset = self._presets.get(query.place.metrics)
            labels = {
                Arm.CANARY: query.place.canary_log_labels or query.place.canary_labels,
                Arm.STABLE: query.place.stable_log_labels or query.place.stable_labels,
            }
            why = fault(labels)
            for at, metric in enumerate(query.metrics):
                series = preset.metrics.get(metric) if preset else None
                if not isinstance(series, LogSeries):
                    said = f"preset {query.place.metrics!r} has no log lines by the name {metric!r}"
                    found[(place, at)] = nothing(metric, Availability.NO_SERIES, said)
                elif why:
                    found[(place, at)] = nothing(metric, Availability.NO_SERIES, why)
                else:
                    more = {"container": series.container} if series.container else {}
                    span = (query.start_s - self._delay_s - series.lookback_s, query.end_s - self._delay_s)
                    sides = {
                        arm: _Side(tuple(sorted({**more, **labels[arm]}.items())), series.patterns, *span)
                        for arm in Arm
                    }
                    asks.append(_Ask((place, at), metric, series, sides))
        return asks

    async def _counted(self, sides: Sequence[_Side], turn: _Turn) -> None:
        """All lines and the matching ones of arms that differ in their labels' values only."""
        one = sides[0]
        by = _names(one)
        try:
            selected = logql.selector(_joined(sides))
        except ValueError as error:
            if len(sides) == 1:
                turn.trouble[one] = Answer(failure=f"the labels cannot be asked for: {error}", outcome=Outcome.REJECTED)
                return
            await self._halved(sides, turn)
            return
        length_s = one.end_s - one.start_s
        everything, matching = await asyncio.gather(
            self._ask(logql.lines_n(selected, length_s, by), one.end_s, turn),
            self._ask(logql.found_n(selected, lines.kinds(one.patterns).found, length_s, by), one.end_s, turn),
        )
        for answer in (everything, matching):
            if answer.failure or answer.warning:
                if len(sides) > 1 and (answer.divisible or answer.outcome is Outcome.REJECTED):
                    await self._halved(sides, turn)
                else:
                    turn.trouble |= dict.fromkeys(sides, answer)
                return
        for counts, answer in ((turn.lines_n, everything), (turn.found_n, matching)):
            by_labels = {tuple([labels.get(name, "") for name in by]): n for labels, n in answer.numbers}
            for side in sides:
                counts[side] = round(by_labels.get(tuple([value for _, value in side.labels]), 0))

    async def _halved(self, sides: Sequence[_Side], turn: _Turn) -> None:
        middle = len(sides) // 2
        for half in (sides[:middle], sides[middle:]):
            await self._counted(half, turn)

    async def _sought(self, sides: Sequence[_Side], turn: _Turn) -> None:
        """Whether arms that wrote nothing in their window have been heard of at all."""
        end_s = sides[0].end_s
        form = {
            "match[]": list(dict.fromkeys(side.selector for side in sides)),
            "start": _ns(end_s - self._heard_within_s),
            "end": _ns(end_s),
        }
        answer = await self._asker.asked("/api/v1/series", form, end_s, turn.deadline, _parse_index)
        for side in sides:
            if answer.failure:
                turn.trouble[side] = answer
            elif any(all(labels.get(name) == value for name, value in side.labels) for labels, _ in answer.streams):
                turn.heard.add(side)

    async def _read(self, ask: _Ask, turn: _Turn) -> Reading:
        """The reading of a metric, by what is known of its arms and, where the canary has lines, by asking further."""
        for arm, side in ask.sides.items():
            if side in turn.trouble:
                return _trouble(ask.metric, turn.trouble[side])
            if not turn.lines_n.get(side) and side not in turn.heard:
                why = f"{LOG_STORE} had no line of the {arm} with {side.selector} for {duration(self._heard_within_s)}"
                return nothing(ask.metric, Availability.NO_SERIES, f"{why}; do its logs get there?")
        canary, stable = ask.sides[Arm.CANARY], ask.sides[Arm.STABLE]
        before = f"for {duration(ask.series.stable_before_s)}"
        if not turn.found_n[canary]:
            return lines.counted(ask.metric, Counter(), Counter(), Counter(), before=before)
        earlier = replace(stable, start_s=stable.start_s - max(1.0, ask.series.stable_before_s), end_s=stable.start_s)
        counts: list[Counter[str]] = []
        for answer in await self._told((canary, stable, earlier), turn):
            if answer.failure or answer.warning:
                return _trouble(ask.metric, answer)
            counts.append(_by_kind(answer, canary))
        sample = await self._sample(canary, turn) if ask.series.quoted else ""
        return lines.counted(ask.metric, *counts, sample=sample, before=before)

    async def _told(self, sides: Sequence[_Side], turn: _Turn) -> Sequence[Answer]:
        """Matching lines by kind; all together where one of them has more kinds than the store tells apart."""
        answers: Sequence[Answer] = ()
        for apart in (True, False):
            texts = []
            for side in sides:
                told, length_s = lines.kinds(side.patterns), side.end_s - side.start_s
                by_kind = logql.told_n(side.selector, told.found, told.told, told.groups, length_s)
                texts.append(by_kind if apart else logql.found_n(side.selector, told.found, length_s, ()))
            answers = await asyncio.gather(
                *(self._ask(text, side.end_s, turn) for text, side in zip(texts, sides, strict=True))
            )
            if all(answer.outcome is not Outcome.REJECTED for answer in answers):
                break
        return answers

    async def _sample(self, side: _Side, turn: _Turn) -> str:
        """The first matching line, for people; empty where it cannot be had, which is no reason to know less."""
        form = {
            "query": logql.lines(side.selector, lines.kinds(side.patterns).found),
            # A range takes its start and leaves out its end; a window the other way round.
            "start": _ns(side.start_s, 1),
            "end": _ns(side.end_s, 1),
            "limit": "1",
            "direction": "forward",
        }
        answer = await self._asker.asked("/api/v1/query_range", form, side.end_s, turn.deadline, _parse_lines)
        return next((line for _, line in answer.streams if line), "")

    async def _ask(self, text: str, at_s: float, turn: _Turn) -> Answer:
        form = {"query": text, "time": _ns(at_s)}
        return await self._asker.asked("/api/v1/query", form, at_s, turn.deadline, _parse_counts)


def _span(side: _Side) -> tuple[float, float]:
    return side.start_s, side.end_s


def _names(side: _Side) -> tuple[str, ...]:
    return tuple([name for name, _ in side.labels])


def _parts(sides: Sequence[_Side], key: Callable[[_Side], object]) -> list[list[_Side]]:
    """Sides that one question asks about: alike by ``key``, and not too many."""
    alike: dict[object, list[_Side]] = defaultdict(list)
    for side in sides:
        alike[key(side)].append(side)
    return [listed[i : i + ARMS_PER_QUERY] for listed in alike.values() for i in range(0, len(listed), ARMS_PER_QUERY)]


def _joined(sides: Sequence[_Side]) -> dict[str, set[str]]:
    joined: dict[str, set[str]] = defaultdict(set)
    for side in sides:
        for name, value in side.labels:
            joined[name].add(value)
    return joined


def _by_kind(answer: Answer, side: _Side) -> Counter[str]:
    told = lines.kinds(side.patterns)
    out: Counter[str] = Counter()
    for labels, n in answer.numbers:
        out[told.of_groups(labels) or lines.OTHERS] += round(n)
    return out


def _trouble(metric: str, answer: Answer) -> Reading:
    if answer.failure:
        return nothing(metric, Availability.AWAY, answer.failure)
    return nothing(metric, Availability.DEGRADED, f"{LOG_STORE} warns: {answer.warning}")


def _ns(at_s: float, more: int = 0) -> str:
    """Nanoseconds since the epoch, as whole milliseconds so that a double's last digits do not matter."""
    return str(round(at_s * 1000) * 1_000_000 + more)


def _parse_counts(body: bytes, status: int, max_series: int) -> Answer:
    """A vector, as Prometheus writes it. Errors are plain text."""
    answer = _said(body, status) or parse(body, status, max_series, called=LOG_STORE)
    if all(0 <= n < math.inf for _, n in answer.numbers):
        return answer
    return Answer(failure=f"{LOG_STORE} answered with what is no number of lines", outcome=Outcome.MALFORMED)


def _parse_index(body: bytes, status: int, max_series: int) -> Answer:
    """The labels of streams."""
    return _parsed(body, status, max_series, lambda: [(labels, "") for labels in _INDEX.decode(body).data or ()])


def _parse_names(body: bytes, status: int, max_series: int) -> Answer:
    """The names of labels, in place of lines."""
    return _parsed(body, status, max_series, lambda: [({}, name) for name in _NAMES.decode(body).data or ()])


def _parse_lines(body: bytes, status: int, max_series: int) -> Answer:
    """Streams with one of their lines each."""

    def read() -> list[tuple[Mapping[str, str], str]]:
        listed = _STREAMS.decode(body).data.result
        return [(one.stream, str(one.values[0][1])) for one in listed if one.values and len(one.values[0]) > 1]

    return _parsed(body, status, max_series, read)


def _parsed(
    body: bytes, status: int, max_series: int, read: Callable[[], list[tuple[Mapping[str, str], str]]]
) -> Answer:
    refused = _said(body, status)
    if refused is not None:
        return refused
    if status != 200:
        return parse(body, status, max_series, called=LOG_STORE)
    try:
        streams = read()
    except (ValueError, RecursionError):
        said = f"{LOG_STORE} answered {status} with something that is no answer of Loki"
        return Answer(failure=said, outcome=Outcome.MALFORMED)
    if len(streams) > max_series:
        too_many = f"{LOG_STORE} answered with {len(streams)} streams, more than the {max_series} allowed"
        return Answer(failure=too_many, divisible=True, outcome=Outcome.TOO_LARGE)
    return Answer(streams=tuple(streams))


def _said(body: bytes, status: int) -> Answer | None:
    """What the store says of a question that it does not take: Loki's errors are plain text."""
    if status in (400, 404, 405, 413, 422) and not body.lstrip().startswith(b"{"):
        text = lines.shown(body[:2000].decode(errors="replace"), 200)
        return Answer(failure=f"{LOG_STORE} says {status}, {text}", outcome=Outcome.REJECTED)
    return None
