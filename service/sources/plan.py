"""What to ask for many windows at once: pure, so that how requests grow can be tested without a store.

Rollouts that read the same metric share a query: their label values are joined into one matcher, and the answer is
split again by exact labels. Windows that are alike can be summed up in the store (``sums``); others, and those of
which the store finds that a sum would not be exact, are read from raw samples. A raw answer is split by each sample's
own time, so raw windows that end some seconds apart share a query too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.model.lines import LineCounterSeries, LogSeries
from service.model.names import Arm
from service.model.observation import Availability, Reading, WindowQuery
from service.model.preset import (
    NAME,
    PLACEHOLDER,
    CounterSeries,
    ErrorSeries,
    FromRecords,
    LatencySeries,
    MetricsPreset,
    PredictionSeries,
    ResourceSeries,
    ScoreSeries,
    ValueExpression,
)
from service.sources import promql
from service.sources.pods import PodAsk, arm_labels

WINDOWS_SUMMED = 12
"""Of a metric, so many different windows are summed up however few rollouts share them. Windows beyond these are only
summed where they fill half a query, or else the number of questions would grow with the rollouts."""

ROLLOUTS_PER_QUERY = 50
"""An alternation of this many names stays a short question, and one answer blinds few if it fails."""

EXPRESSIONS_PER_QUERY = 20

WIDEST = 2.0
"""Windows share a query while it reaches back at most this many times as far as the longest of them alone would."""

Slot = tuple[int, int]
"""Where a reading goes: place of the query, place of the metric in it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One counted metric of one window."""

    slot: Slot
    metric: str
    labels: Mapping[Arm, Mapping[str, str]]
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Reach:
    """How far from a window's edges its samples may lie."""

    lookback_s: float
    """Before a window samples are read this far back, for the step into its first sample."""
    stale_after_s: float
    """An arm whose newest sample is older than this at the window's end is no longer scraped."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Asks that one query answers."""

    what: CounterSeries
    asks: tuple[Ask, ...]
    keys: tuple[str, ...]
    """The labels that tell the arms of all asks apart."""
    reach: Reach
    summed: bool = False
    """The store sums up; all windows are the same then."""

    @property
    def at_s(self) -> float:
        """When the query is evaluated: the latest end."""
        return max(ask.end_s for ask in self.asks)

    @property
    def text(self) -> str:
        """The query."""
        # A label that only one arm names may have any value in the other, so it narrows nothing.
        named = [set(labels) for ask in self.asks for labels in ask.labels.values()]
        common = set.intersection(*named)
        joined: dict[str, set[str]] = defaultdict(set)
        for ask in self.asks:
            for labels in ask.labels.values():
                for label in common:
                    joined[label].add(labels[label])
        start_s = min(ask.start_s for ask in self.asks)
        reach_s = math.ceil(self.at_s - start_s + self.reach.lookback_s)
        if not self.summed:
            return promql.range_selector(self.what.names, joined, reach_s)
        return promql.sums(
            promql.instant_selector(self.what.names, joined),
            keys=self.keys,
            by=sorted({*self.keys, *_details(self.what)}),
            reach_s=reach_s,
            length_s=self.at_s - start_s,
            fresh_s=self.reach.stale_after_s,
            cells=isinstance(self.what, LatencySeries | ScoreSeries),
        )

    def of(self, asks: Sequence[Ask], *, summed: bool) -> Batch:
        """Some of the asks in a query of their own."""
        return Batch(self.what, tuple(asks), self.keys, self.reach, summed)

    def halves(self) -> tuple[Batch, Batch]:
        """The same in two queries; there must be two asks at least."""
        middle = len(self.asks) // 2
        return self.of(self.asks[:middle], summed=self.summed), self.of(self.asks[middle:], summed=self.summed)


def _details(what: CounterSeries) -> set[str]:
    """The labels that a reading looks at beside those that tell the arms."""
    match what:
        case LatencySeries() | ScoreSeries():
            return {"le"}
        case PredictionSeries():
            return {what.class_label} | ({what.rank_label} if what.rank_label else set())
        case ErrorSeries():
            return {label for alternative in what.failed for label in alternative}
        case LineCounterSeries():
            return {what.subject_label}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A custom expression of one arm at one moment, and every reading that it is for."""

    text: str
    at_s: float
    slots: tuple[tuple[Slot, str, Arm], ...]
    """(slot, metric, arm)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All questions, and the readings that need none."""

    batches: tuple[Batch, ...]
    wanted: tuple[Wanted, ...]
    pods: tuple[tuple[PodAsk, ...], ...]
    """Resources by pod: asks of one preset and one window, which share their questions."""
    known: Mapping[Slot, Reading]


def plan(
    queries: Sequence[WindowQuery],
    presets: Mapping[str, MetricsPreset],
    reach: Reach,
    *,
    summed: Callable[[str], bool],
) -> Plan:
    """The questions for all windows; total: a metric that cannot be asked becomes a reading that says why.

    summed : whether the store sums up the series of this name, where that can be exact
    """
    known: dict[Slot, Reading] = {}
    groups: dict[tuple[str, str, tuple[str, ...]], list[Ask]] = defaultdict(list)
    values: dict[tuple[str, float], list[tuple[Slot, str, Arm]]] = defaultdict(list)
    pods: dict[tuple[str, float, float], list[PodAsk]] = defaultdict(list)
    for place, query in enumerate(queries):
        preset = presets.get(query.place.metrics)
        resources: dict[str, Slot] = {}
        for at, metric in enumerate(query.metrics):
            slot = (place, at)
            series = preset.metrics.get(metric) if preset else None
            if preset is None or series is None:
                why = f"preset {query.place.metrics!r} has no metric {metric!r}"
                known[slot] = Reading(metric, Availability.NO_SERIES, None, why)
                continue
            if isinstance(series, FromRecords):
                why = f"{metric} comes from prediction records, and no topic of them is set (predictions.topic)"
                known[slot] = Reading(metric, Availability.NO_SERIES, None, why)
                continue
            if isinstance(series, ResourceSeries):
                resources[metric] = slot
                continue
            if isinstance(series, LogSeries):
                known[slot] = Reading(metric, Availability.AWAY, None, "log lines are not read from the metric store")
                continue
            labels = {
                Arm.CANARY: {**preset.labels, **query.place.canary_labels},
                Arm.STABLE: {**preset.labels, **query.place.stable_labels},
            }
            why = fault(labels)
            if why:
                known[slot] = Reading(metric, Availability.NO_SERIES, None, why)
            elif isinstance(series, ValueExpression):
                for arm in Arm:
                    text = series.promql.replace(PLACEHOLDER, promql.selector(labels[arm]))
                    values[(text, query.end_s)].append((slot, metric, arm))
            else:
                keys = tuple(sorted({*labels[Arm.CANARY], *labels[Arm.STABLE]}))
                groups[(preset.name, metric, keys)].append(Ask(slot, metric, labels, query.start_s, query.end_s))
        if preset is not None and resources:
            where = {Arm.CANARY: query.place.canary_labels, Arm.STABLE: query.place.stable_labels}
            labels = arm_labels(preset, where, query.place.namespace)
            why = fault(labels)
            if preset.pods is not None and not all(labels.values()):
                why = f"the target's labels have none of {', '.join(preset.pods.by)}, by which pods are known"
            if why:
                known |= {slot: Reading(m, Availability.NO_SERIES, None, why) for m, slot in resources.items()}
            else:
                one = PodAsk(preset, resources, labels, query.start_s, query.end_s)
                pods[(preset.name, query.start_s, query.end_s)].append(one)
    batches: list[Batch] = []
    for (preset_name, metric, keys), asks in groups.items():
        what = presets[preset_name].metrics[metric]
        assert not isinstance(what, ValueExpression | LogSeries | ResourceSeries | FromRecords)
        to_sum, raw = _parted(asks, what, keys) if summed(what.names[0]) else ([], asks)
        for alike in to_sum:
            batches += (
                Batch(what, tuple(alike[i : i + ROLLOUTS_PER_QUERY]), keys, reach, summed=True)
                for i in range(0, len(alike), ROLLOUTS_PER_QUERY)
            )
        batches += (Batch(what, part, keys, reach) for part in _chunks(raw, reach.lookback_s))
    wanted = tuple(Wanted(text, at_s, tuple(slots)) for (text, at_s), slots in values.items())
    shared = (
        tuple(asks[i : i + ROLLOUTS_PER_QUERY])
        for asks in pods.values()
        for i in range(0, len(asks), ROLLOUTS_PER_QUERY)
    )
    return Plan(tuple(batches), wanted, tuple(shared), known)


def fault(labels: Mapping[Arm, Mapping[str, str]]) -> str:
    """Why these labels cannot be asked for; empty when they can."""
    for arm in Arm:
        if not labels[arm]:
            return f"the target gives the {arm} no labels, so all series there are would be its own"
        if NAME in labels[arm]:
            return f"the labels of the {arm} hold {NAME}; the series' names stand in the preset"
        try:
            promql.selector(labels[arm])
        except ValueError as error:
            return f"the labels of the {arm} cannot be asked for: {error}"
    if not {*labels[Arm.CANARY]} & {*labels[Arm.STABLE]}:
        return "the labels of the arms have no name in common, so nothing would narrow what is read"
    if labels[Arm.CANARY] == labels[Arm.STABLE]:
        same = promql.selector(labels[Arm.CANARY])
        return f"both arms have the labels {{{same}}}, so the candidate would be compared with itself"[:300]
    return ""


def _parted(asks: Sequence[Ask], what: CounterSeries, keys: Sequence[str]) -> tuple[list[list[Ask]], list[Ask]]:
    """Asks to sum up, by their window, and asks to read raw."""
    by_window: dict[tuple[float, float], list[Ask]] = defaultdict(list)
    raw: list[Ask] = []
    # Of several names at once PromQL's functions would make one.
    possible = len(what.names) == 1 and "le" not in keys and promql.ASK_LABEL not in {*keys, *_details(what)}
    for ask in asks:
        # Where an arm leaves a label open, a group of it might be missing from the sums without being missed.
        if possible and _whole_ms(ask) and all(len(labels) == len(keys) for labels in ask.labels.values()):
            by_window[ask.start_s, ask.end_s].append(ask)
        else:
            raw.append(ask)
    summed: list[list[Ask]] = []
    for alike in sorted(by_window.values(), key=len, reverse=True):
        if len(summed) < WINDOWS_SUMMED or 2 * len(alike) >= ROLLOUTS_PER_QUERY:
            summed.append(alike)
        else:
            raw += alike
    return summed, raw


def _whole_ms(ask: Ask) -> bool:
    """Whether the window's edges are moments that a query can name, so that it parts samples as they do."""
    return ask.start_s < ask.end_s and all(float(f"{edge:.3f}") == edge for edge in (ask.start_s, ask.end_s))


def _chunks(asks: Sequence[Ask], lookback_s: float) -> list[tuple[Ask, ...]]:
    """Asks in order of time, in parts that one query answers at bounded cost."""
    out: list[tuple[Ask, ...]] = []
    part: list[Ask] = []
    first_s = longest_s = 0.0
    for ask in sorted(asks, key=lambda ask: ask.end_s):
        if part:
            reach_s = ask.end_s - min(first_s, ask.start_s) + lookback_s
            longest_s = max(longest_s, ask.end_s - ask.start_s)
            if len(part) < ROLLOUTS_PER_QUERY and reach_s <= WIDEST * (longest_s + lookback_s):
                part.append(ask)
                first_s = min(first_s, ask.start_s)
                continue
            out.append(tuple(part))
        part = [ask]
        first_s, longest_s = ask.start_s, ask.end_s - ask.start_s
    if part:
        out.append(tuple(part))
    return out
