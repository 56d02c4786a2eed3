"""Questions about windows of a topic's records: what every kind of metric that is read from them asks alike.

A window is read only when every partition of the topic is counted past its end; it then says the same whenever it is
read. Until then it is STALE; AWAY where nobody reads the topic; DEGRADED where records of its time were lost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeAlias, TypeVar

from service.model.names import Arm, ServiceKey
from service.model.observation import Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset, PredictionLearned, PredictionPairs, PredictionRecords
from service.predictions.tally import SLOT_S, slots_of
from service.ring.ports import Clock, PortError
from service.ring.predictions import GONE, NOT_BEGUN, PartitionState, PredictionStore

MOST_BODIES: Final = 5_000
"""Batches of one service that are read for a window; 100 partitions give 1,200 a minute."""

UNREAD_S: Final = 60.0
"""A partition whose consumer has not written for so long is read by nobody."""

Slot: TypeAlias = tuple[int, int]
"""Where a reading goes: place of the query, place of the metric in it."""

What = TypeVar("What", PredictionRecords, PredictionPairs, PredictionLearned)


@dataclass(frozen=True, slots=True)
class Ask(Generic[What]):
    """One metric of one window."""

    slot: Slot
    metric: str
    rollout: str
    what: What
    service: ServiceKey
    versions: Mapping[Arm, str]
    start_s: float
    end_s: float


class TopicSource(ABC, Generic[What]):
    """A ``ring.ports.Source`` over what the consumer has counted, for one kind of metric.

    Safe to repeat and to cancel.
    """

    kind: type[What]
    """The preset's series that are read."""
    called: ClassVar[str]
    """What they are, in the sentence that a preset has none of them."""

    def __init__(
        self, store: PredictionStore, presets: Mapping[str, MetricsPreset], *, topic: str, clock: Clock
    ) -> None:
        self._store = store
        self._presets = presets
        self._topic = topic
        self._clock = clock

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        readings: dict[Slot, Reading] = {}
        asks: list[Ask[What]] = []
        for place, query in enumerate(queries):
            for at, metric in enumerate(query.metrics):
                asked = self._asked((place, at), metric, query)
                if isinstance(asked, Reading):
                    readings[place, at] = asked
                else:
                    asks.append(asked)
        try:
            await self._read(self._complete(asks, await self._states(asks), readings), readings)
        except PortError as error:
            for ask in asks:
                readings.setdefault(ask.slot, away(ask.metric, error))
        return [[readings[place, at] for at in range(len(query.metrics))] for place, query in enumerate(queries)]

    @abstractmethod
    async def _read(
        self, by_window: Mapping[tuple[float, float], Sequence[Ask[What]]], readings: dict[Slot, Reading]
    ) -> None:
        """Put in the readings of windows that are complete; statements grow with windows, not with rollouts."""

    def _asked(self, slot: Slot, metric: str, query: WindowQuery) -> Ask[What] | Reading:
        """What to read, or why that cannot be said."""
        preset = self._presets.get(query.place.metrics)
        what = preset.metrics.get(metric) if preset else None
        if not isinstance(what, self.kind):
            why = f"preset {query.place.metrics!r} has no {self.called} named {metric!r}"
            return Reading(metric, Availability.NO_SERIES, None, why)
        arms = arms_of(query, what.service_label, what.version_label)
        if isinstance(arms, str):
            return Reading(metric, Availability.NO_SERIES, None, arms)
        return Ask(slot, metric, query.rollout, what, *arms, query.start_s, query.end_s)

    async def _states(self, asks: Sequence[Ask[What]]) -> Sequence[PartitionState]:
        return await self._store.partitions(self._topic) if asks else ()

    def _complete(
        self, asks: Sequence[Ask[What]], states: Sequence[PartitionState], readings: dict[Slot, Reading]
    ) -> Mapping[tuple[float, float], Sequence[Ask[What]]]:
        """The asks whose windows are counted whole, by window; of the others the readings say what is missing."""
        now_s = self._clock.now().timestamp()
        by_window: dict[tuple[float, float], list[Ask[What]]] = defaultdict(list)
        for ask in asks:
            missing = incomplete(states, self._topic, ask.start_s, ask.end_s, now_s)
            if missing is None:
                by_window[ask.start_s, ask.end_s].append(ask)
            else:
                readings[ask.slot] = Reading(ask.metric, missing[0], None, missing[1])
        return by_window


def away(metric: str, error: PortError) -> Reading:
    """The reading of a metric whose counts cannot be asked for."""
    return Reading(metric, Availability.AWAY, None, str(error)[:300])


def arms_of(query: WindowQuery, service_label: str, version_label: str) -> tuple[ServiceKey, Mapping[Arm, str]] | str:
    """The service and each arm's version as records name them, by the target's labels; or why that cannot be said."""
    arms = {Arm.CANARY: query.place.canary_labels, Arm.STABLE: query.place.stable_labels}
    for label in (service_label, version_label):
        lacking = [arm for arm, labels in arms.items() if not labels.get(label)]
        if lacking:
            return f"the target gives the {lacking[0]} no label {label!r}, by which its prediction records are known"
    versions = {arm: labels[version_label] for arm, labels in arms.items()}
    names = {labels[service_label] for labels in arms.values()}
    if len(names) > 1 or versions[Arm.CANARY] == versions[Arm.STABLE]:
        return "both arms must have one service and two versions in their labels, or they cannot be compared"
    if slots_of(query.start_s, query.end_s) is None:
        return f"the window's edges are no multiples of {SLOT_S:g} s, in which predictions are counted"
    # Not checked: a label that is no service's name has no records, which is what is then said.
    service = ServiceKey.model_construct(cluster=query.cluster, namespace=query.place.namespace, name=names.pop())
    return service, versions


def incomplete(
    states: Sequence[PartitionState], topic: str, start_s: float, end_s: float, now_s: float
) -> tuple[Availability, str] | None:
    """Why the window cannot be read now; None when every partition is counted past its end."""
    there = [one for one in states if one.next_offset != GONE]
    if not there:
        return Availability.AWAY, f"topic {topic} has not been read yet"
    behind = [one for one in there if one.watermark_s < end_s]
    for one in behind:
        silent_s = now_s - one.seen_at_s
        if one.next_offset == NOT_BEGUN or silent_s > UNREAD_S:
            since = "yet" if one.next_offset == NOT_BEGUN else f"for {silent_s:.0f} s"
            why = (
                f"partition {one.partition} of topic {topic} has not been read {since}; is it there, and its consumer?"
            )
            return Availability.AWAY, why
    if behind:
        worst = min(behind, key=lambda one: one.watermark_s)
        how_far = f"up to {end_s - worst.watermark_s:.0f} s before the window's end"
        return Availability.STALE, f"partition {worst.partition} of topic {topic} is counted {how_far}"
    for one in states:
        if one.lost_from_s < end_s and start_s < one.lost_until_s:
            why = f"records of partition {one.partition} of topic {topic} were not read in the window's time"
            return Availability.DEGRADED, why
    return None
