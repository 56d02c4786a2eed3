"""Prometheus, and whatever speaks its HTTP API: growth of counters between two exact moments.

What is asked for is planned in ``plan``. Metrics with few series a window are read from raw samples, which costs the
store least. Where many pods would make answers large, the store sums up what sums up exactly: that costs it some four
times as much, and this process the same for any number of pods. A query that was too much is halved, so that one
rollout with very many series blinds only itself. A store that does not take the question for sums is asked for raw
samples. Native histograms are not read yet: a store that keeps only those gives
NO_SERIES with a detail that says so.

A custom expression is evaluated at its window's end and so sees what PromQL sees there: its staleness is Prometheus'
own (five minutes unless set otherwise), not this room's.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import aiohttp
from pydantic import SecretStr

from service.model.names import Arm
from service.model.observation import ArmValues, Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset, ResourceSeries
from service.ring.ports import Clock, PortError, Refused, Unavailable
from service.sources import pods, promql
from service.sources.answer import Answer, Outcome
from service.sources.asking import Asked, Asker, Limits
from service.sources.counter import Series
from service.sources.plan import EXPRESSIONS_PER_QUERY, Ask, Batch, Reach, Slot, Wanted, plan
from service.sources.pods import Found, PodAsk
from service.sources.reading import ArmSeries, read
from service.sources.sums import read_sums

LARGE_ANSWER_ELEMENTS = 1000
"""Answers with more series than this are split in a thread, so that the loop stays free."""

LOOKBACK_SCRAPES = 5
"""The step into a window's first sample needs the sample before it; a target may miss this many scrapes in between."""

STALE_SCRAPES = 3
"""An arm whose newest sample is older than this many scrapes at the window's end is no longer scraped."""

COLLECT_TIMEOUTS = 2.0
"""All questions that are asked together must be answered within this many times the time-out of one."""

NO_SUMS_FOR_S = 600.0
"""A store that does not know the question for sums is not asked it again for so long; it may be upgraded."""

SUM_ABOVE_N = 100
"""Series a window, on average over a metric's windows, above which the store sums up: a histogram of 19 buckets in two
arms of three pods."""

SUMS_FOR_S = 600.0
"""For so long a metric is summed up before its series are looked at again."""


@dataclass(slots=True)
class _Turn:
    """What one collection has found so far."""

    deadline: float
    readings: dict[Slot, Reading]
    numbers: dict[Slot, dict[Arm, tuple[str, Answer]]] = field(default_factory=lambda: defaultdict(dict))
    series_n: Counter[str] = field(default_factory=Counter)
    """Series that were read raw, by name."""
    windows_n: Counter[str] = field(default_factory=Counter)
    """The windows that they were read for."""


class PrometheusSource:
    """Implements ``ring.ports.Source`` for one metric store. Safe to repeat and to cancel."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        presets: Mapping[str, MetricsPreset],
        *,
        clock: Clock,
        scrape_interval_s: float,
        timeout_s: float = 20.0,
        max_concurrent: int = 4,
        max_answer_bytes: int = 64 * 1024 * 1024,
        max_series: int = 200_000,
        token: SecretStr | None = None,
        basic: tuple[str, SecretStr] | None = None,
        sum_above_n: int = SUM_ABOVE_N,
        asked: Asked = lambda outcome, seconds: None,
    ) -> None:
        """``token`` is a bearer token; ``basic`` a user and a password. At most one of them, read by the settings.

        sum_above_n : see SUM_ABOVE_N; 0 lets the store always sum up where that is exact
        clock : measures the pauses of a store that is left alone
        asked : told the outcome (``answer.Outcome``) and the seconds of every question
        """
        if token is not None and basic is not None:
            raise ValueError("the metric store takes a bearer token or a user and password, not both")
        headers: dict[str, str] = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        elif basic is not None:
            user, password = basic
            headers["Authorization"] = aiohttp.encode_basic_auth(user, password.get_secret_value())
        self._presets = presets
        self._scrape_interval_s = scrape_interval_s
        self._reach = _reach(scrape_interval_s)
        self._clock = clock
        limits = Limits(timeout_s, COLLECT_TIMEOUTS * timeout_s, max_concurrent, max_answer_bytes, max_series)
        self._asker = Asker(session, url, limits, headers=headers, clock=self._clock, asked=asked)
        self._sum_above_n = sum_above_n
        self._summed_until: dict[str, datetime] = {}
        self._no_sums_until: datetime | None = None

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        planned = plan(queries, self._presets, self._reach, summed=self._summed())
        turn = _Turn(self._asker.deadline(), dict(planned.known))
        async with asyncio.TaskGroup() as group:
            for batch in planned.batches:
                group.create_task(self._counted(batch, turn), name=f"counts of {batch.asks[0].metric}")
            for i in range(0, len(planned.wanted), EXPRESSIONS_PER_QUERY):
                part = planned.wanted[i : i + EXPRESSIONS_PER_QUERY]
                group.create_task(self._evaluated(part, turn), name=f"{len(part)} expressions")
            for asks in planned.pods:
                group.create_task(self._resources(asks, turn), name=f"resources of {len(asks)} rollouts")
        for slot, by_arm in turn.numbers.items():
            turn.readings[slot] = _value_reading(by_arm)
        self._learn(turn)
        return [[turn.readings[(place, at)] for at in range(len(query.metrics))] for place, query in enumerate(queries)]

    def _summed(self) -> Callable[[str], bool]:
        """Whether the store sums up the series of a name."""
        now = self._clock.now()
        if self._no_sums_until is not None and now < self._no_sums_until:
            return lambda name: False
        if self._sum_above_n == 0:
            return lambda name: True
        return lambda name: name in self._summed_until and now < self._summed_until[name]

    def _learn(self, turn: _Turn) -> None:
        """Which names have so many series that the store sums them up next time."""
        for name, n in turn.windows_n.items():
            if turn.series_n[name] > self._sum_above_n * n:
                self._summed_until[name] = self._clock.now() + timedelta(seconds=SUMS_FOR_S)

    async def check(self) -> str:
        """One clause on the store's version; raises Refused or Unavailable when it cannot be asked."""
        url, answer = self._asker.url, await self._asker.ask("vector(1)", None, self._asker.deadline())
        if answer.outcome is Outcome.REFUSED:
            raise Refused(f"{url}: {answer.failure}; check the token file")
        if answer.failure:
            raise Unavailable(f"the metric store at {url} cannot be asked: {answer.failure}")
        if [number for _, number in answer.numbers] != [1.0]:
            raise Refused(f"{url} does not answer vector(1) as Prometheus does; is it the right address?")
        try:
            version = str(json.loads(await self._asker.get("/api/v1/status/buildinfo"))["data"]["version"])[:80]
        except (aiohttp.ClientError, TimeoutError, OSError, PortError, ValueError, KeyError, TypeError, RecursionError):
            # Not every store that speaks this API has a build to tell of.
            return "answers queries (its version cannot be asked)"
        return f"answers queries, version {version}"

    async def lacking_n(
        self, series: str, label: str, labels: Mapping[str, str], *, within_s: float = 300.0
    ) -> tuple[int, int]:
        """(series without the label, all series) of a name, for the doctor; raises Unavailable when it cannot be asked.

        labels : what else they carry
        within_s : series without a sample for so long are not looked at
        """
        selected = promql.range_selector(series, {name: [value] for name, value in labels.items()}, within_s)
        text = f"count by ({label}) (count_over_time({selected}))"
        answer = await self._asker.ask(text, self._clock.now().timestamp(), self._asker.deadline())
        if answer.failure:
            raise Unavailable(
                f"the metric store at {self._asker.url} does not say which labels {series} has: {answer.failure}"
            )
        without = sum(n for found, n in answer.numbers if not found.get(label))
        return round(without), round(sum(n for _, n in answer.numbers))

    async def _counted(self, batch: Batch, turn: _Turn, *, again: bool = False) -> None:
        """Ask for a batch, for its halves where it was too much, and ``again`` raw where sums do not say it."""
        answer = await self._asker.ask(batch.text, batch.at_s, turn.deadline)
        if batch.summed and answer.outcome is Outcome.REJECTED:
            if not answer.divisible:
                self._no_sums_until = self._clock.now() + timedelta(seconds=NO_SUMS_FOR_S)
            await self._counted(batch.of(batch.asks, summed=False), turn, again=True)
        elif answer.divisible and len(batch.asks) > 1:
            for half in batch.halves():
                await self._counted(half, turn, again=again)
        elif answer.failure:
            for ask in batch.asks:
                turn.readings[ask.slot] = Reading(ask.metric, Availability.AWAY, None, answer.failure)
        elif batch.summed:
            large = len(answer.numbers) > LARGE_ANSWER_ELEMENTS
            readings, raw = await self._asker.off_loop(large, read_sums, batch, answer)
            turn.readings |= readings
            if raw:
                await self._counted(batch.of(raw, summed=False), turn, again=True)
        else:
            if not again:
                turn.series_n[batch.what.names[0]] += len(answer.series)
                turn.windows_n[batch.what.names[0]] += len(batch.asks)
            large = len(answer.series) > LARGE_ANSWER_ELEMENTS
            turn.readings |= await self._asker.off_loop(large, self._split, batch, answer)

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
                stale_after_s=self._reach.stale_after_s,
                warning=answer.warning,
                native_n=answer.native_n,
            )
        return out

    async def _resources(self, asks: Sequence[PodAsk], turn: _Turn) -> None:
        """Ask which pods the arms have, since when, and what they use; all asks are of one preset and one window."""
        preset, at_s = asks[0].preset, asks[0].end_s
        window_s = at_s - asks[0].start_s
        length_s = window_s + self._reach.lookback_s
        metrics = [name for name in preset.metrics if any(name in ask.slots for ask in asks)]
        what = {name: series for name in metrics if isinstance(series := preset.metrics[name], ResourceSeries)}
        if preset.pods is None:
            for name, series in what.items():
                text = pods.labelled_text(series, asks, window_s + self._reach_of(series).lookback_s)
                answer = await self._asker.ask(text, at_s, turn.deadline)
                await self._of_pods(name, series, asks, None, answer, turn)
            return
        answer = await self._asker.ask(pods.members_text(preset.pods, asks, length_s), at_s, turn.deadline)
        if answer.divisible and len(asks) > 1:
            for half in (asks[: len(asks) // 2], asks[len(asks) // 2 :]):
                await self._resources(half, turn)
            return
        unseen = _unanswered(answer)
        if unseen is not None:
            turn.readings |= {slot: unseen(name) for ask in asks for name, slot in ask.slots.items()}
            return
        found = await asyncio.to_thread(pods.members_of, asks, answer.series, self._reach.stale_after_s)
        for places in pods.parts(asks, found):
            part, known = [asks[i] for i in places], [found[i] for i in places]
            listed = [pod for one in known for of_arm in one.pods.values() for pod in of_arm]
            if listed and preset.pods.started is not None:
                text = pods.started_text(preset.pods, listed, length_s)
                answer = await self._asker.ask(text, at_s, turn.deadline)
                age_s = pods.ages(preset.pods, answer.series, at_s)
                for one in known:
                    one.age_s = age_s
            for name, series in what.items():
                answer = Answer()
                if listed:
                    text = pods.values_text(series, listed, window_s + self._reach_of(series).lookback_s)
                    answer = await self._asker.ask(text, at_s, turn.deadline)
                await self._of_pods(name, series, part, known, answer, turn)

    async def _of_pods(
        self,
        name: str,
        what: ResourceSeries,
        asks: Sequence[PodAsk],
        found: Sequence[Found] | None,
        answer: Answer,
        turn: _Turn,
    ) -> None:
        """One resource's readings of several rollouts. found : their pods; None where the series tell the arms."""
        unseen = _unanswered(answer)
        stale_after_s = self._reach_of(what).stale_after_s

        def work() -> dict[Slot, Reading]:
            of_pod = pods.by_pod(what, answer.series)
            out: dict[Slot, Reading] = {}
            for place, ask in enumerate(asks):
                if name in ask.slots:
                    known = found[place] if found else pods.labelled_members(ask, what, answer.series)
                    out[ask.slots[name]] = pods.read_pods(name, what, ask, known, of_pod, stale_after_s)
            return out

        if unseen is not None:
            turn.readings |= {ask.slots[name]: unseen(name) for ask in asks if name in ask.slots}
        else:
            turn.readings |= await self._asker.off_loop(len(answer.series) > LARGE_ANSWER_ELEMENTS, work)

    def _reach_of(self, what: ResourceSeries) -> Reach:
        return _reach(max(self._scrape_interval_s, what.measured_every_s))

    async def _evaluated(self, wanted: Sequence[Wanted], turn: _Turn) -> None:
        """Ask for several expressions at once; one by one where the store takes no bundle, or one of them is wrong."""
        at_s = max(one.at_s for one in wanted)
        if len(wanted) > 1:
            text = promql.bundle([(one.text, one.at_s) for one in wanted])
            answer = await self._asker.ask(text, at_s, turn.deadline)
            if answer.divisible or answer.outcome is Outcome.REJECTED:
                middle = len(wanted) // 2
                for part in (wanted[:middle], wanted[middle:]):
                    await self._evaluated(part, turn)
                return
            answers = [_part(answer, place) for place in range(len(wanted))]
        else:
            answers = [await self._asker.ask(wanted[0].text, at_s, turn.deadline)]
        for one, part_of_it in zip(wanted, answers, strict=True):
            for slot, metric, arm in one.slots:
                turn.numbers[slot][arm] = (metric, part_of_it)


def _of(index: Mapping[tuple[str, ...], list[Series]], keys: tuple[str, ...], ask: Ask, arm: Arm) -> list[Series]:
    """The series of one arm. A label that only the other arm names may have any value."""
    labels = ask.labels[arm]
    if all(key in labels for key in keys):
        return index.get(tuple(labels[key] for key in keys), [])
    wanted = [(i, labels[key]) for i, key in enumerate(keys) if key in labels]
    return [one for values, series in index.items() if all(values[i] == v for i, v in wanted) for one in series]


def _reach(every_s: float) -> Reach:
    return Reach(LOOKBACK_SCRAPES * every_s, STALE_SCRAPES * every_s)


def _unanswered(answer: Answer) -> Callable[[str], Reading] | None:
    """The reading of any metric that this answer should have told of; None where it does."""
    if answer.failure:
        return lambda name: Reading(name, Availability.AWAY, None, answer.failure)
    if answer.warning:
        return lambda name: Reading(
            name, Availability.DEGRADED, None, f"the metric store warns: {answer.warning[:200]}"
        )
    return None


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
