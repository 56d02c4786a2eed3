"""What to ask for many windows at once: pure, so that how requests grow can be tested without a store.

Rollouts that read the same metric share a query: their label values are joined into one matcher, and the answer is
split again by exact labels and by each sample's own time. So windows that end some seconds apart share it too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.model.names import Arm
from service.model.observation import Availability, Reading, WindowQuery
from service.model.preset import NAME, PLACEHOLDER, CounterSeries, MetricsPreset, ValueExpression
from service.sources import promql

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
class Batch:
    """Asks that one query answers."""

    what: CounterSeries
    asks: tuple[Ask, ...]
    keys: tuple[str, ...]
    """The labels that tell the arms of all asks apart."""
    lookback_s: float

    @property
    def at_s(self) -> float:
        """When the query is evaluated: the latest end."""
        return max(ask.end_s for ask in self.asks)

    @property
    def text(self) -> str:
        """The query."""
        joined: dict[str, set[str]] = defaultdict(set)
        for ask in self.asks:
            for labels in ask.labels.values():
                for label, value in labels.items():
                    joined[label].add(value)
        reach_s = self.at_s - min(ask.start_s for ask in self.asks) + self.lookback_s
        return promql.range_selector(self.what.names, joined, reach_s)

    def halves(self) -> tuple[Batch, Batch]:
        """The same in two queries; there must be two asks at least."""
        middle = len(self.asks) // 2
        first, second = (
            Batch(self.what, part, self.keys, self.lookback_s) for part in (self.asks[:middle], self.asks[middle:])
        )
        return first, second


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
    known: Mapping[Slot, Reading]


def plan(queries: Sequence[WindowQuery], presets: Mapping[str, MetricsPreset], *, lookback_s: float) -> Plan:
    """The questions for all windows; total: a metric that cannot be asked becomes a reading that says why.

    lookback_s : how far before a window samples are read, for the step into its first sample
    """
    known: dict[Slot, Reading] = {}
    groups: dict[tuple[str, str, tuple[str, ...]], list[Ask]] = defaultdict(list)
    values: dict[tuple[str, float], list[tuple[Slot, str, Arm]]] = defaultdict(list)
    for place, query in enumerate(queries):
        preset = presets.get(query.place.metrics)
        for at, metric in enumerate(query.metrics):
            slot = (place, at)
            series = preset.metrics.get(metric) if preset else None
            if preset is None or series is None:
                why = f"preset {query.place.metrics!r} has no metric {metric!r}"
                known[slot] = Reading(metric, Availability.NO_SERIES, None, why)
                continue
            labels = {
                Arm.CANARY: {**preset.labels, **query.place.canary_labels},
                Arm.STABLE: {**preset.labels, **query.place.stable_labels},
            }
            fault = _fault(labels)
            if fault:
                known[slot] = Reading(metric, Availability.NO_SERIES, None, fault)
            elif isinstance(series, ValueExpression):
                for arm in Arm:
                    text = series.promql.replace(PLACEHOLDER, promql.selector(labels[arm]))
                    values[(text, query.end_s)].append((slot, metric, arm))
            else:
                keys = tuple(sorted({*labels[Arm.CANARY], *labels[Arm.STABLE]}))
                groups[(preset.name, metric, keys)].append(Ask(slot, metric, labels, query.start_s, query.end_s))
    batches: list[Batch] = []
    for (preset_name, metric, keys), asks in groups.items():
        what = presets[preset_name].metrics[metric]
        assert not isinstance(what, ValueExpression)
        batches += (Batch(what, part, keys, lookback_s) for part in _chunks(asks, lookback_s))
    wanted = tuple(Wanted(text, at_s, tuple(slots)) for (text, at_s), slots in values.items())
    return Plan(tuple(batches), wanted, known)


def _fault(labels: Mapping[Arm, Mapping[str, str]]) -> str:
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
    if labels[Arm.CANARY] == labels[Arm.STABLE]:
        same = promql.selector(labels[Arm.CANARY])
        return f"both arms have the labels {{{same}}}, so the candidate would be compared with itself"[:300]
    return ""


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
