"""Windows of predictions, read from what the consumer has counted.

A window is read only when every partition of the topic is counted past its end; it then says the same whenever it is
read. Until then it is STALE; AWAY where nobody reads the topic; DEGRADED where records of its time were lost. An arm
without records in the window is FEW if it sent any in the hour before, and NO_SERIES if not.

Bins of numbers are frozen for a rollout at its first window, from what stable sent in the hour up to its end.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.model.names import Arm, ServiceKey
from service.model.observation import Availability, CategoryCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset, PredictionRecords
from service.predictions.binning import LEAST_NUMBERS, Bins, Category, freeze
from service.predictions.tally import SLOT_S, from_bytes, slots_of
from service.ring.ports import Clock, PortError
from service.ring.predictions import NOT_BEGUN, PartitionState, PredictionStore, Reference

HISTORY_S: Final = 3600.0
"""How far back an arm's records show that it sends any, and stable's numbers choose the bins."""

MOST_BODIES: Final = 5_000
"""Batches of one service that are read for a window; 100 partitions give 1,200 a minute."""

UNREAD_S: Final = 60.0
"""A partition whose consumer has not written for so long is read by nobody."""

Slot = tuple[int, int]
"""Where a reading goes: place of the query, place of the metric in it."""

ByArm = Mapping[Arm, Counter[Category]]


@dataclass(frozen=True, slots=True)
class _Ask:
    """One metric of one window."""

    slot: Slot
    metric: str
    rollout: str
    what: PredictionRecords
    service: ServiceKey
    versions: Mapping[Arm, str]
    start_s: float
    end_s: float

    @property
    def reference(self) -> tuple[str, str]:
        """Under which its bins are frozen."""
        return self.rollout, self.metric


class RecordsSource:
    """Implements ``ring.ports.Source`` for metrics of kind ``prediction_records``. Safe to repeat and to cancel."""

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
        asks: list[_Ask] = []
        for place, query in enumerate(queries):
            for at, metric in enumerate(query.metrics):
                asked = self._asked((place, at), metric, query)
                if isinstance(asked, Reading):
                    readings[place, at] = asked
                else:
                    asks.append(asked)
        try:
            await self._read(asks, readings)
        except PortError as error:
            for ask in asks:
                readings.setdefault(ask.slot, Reading(ask.metric, Availability.AWAY, None, str(error)[:300]))
        return [[readings[place, at] for at in range(len(query.metrics))] for place, query in enumerate(queries)]

    def _asked(self, slot: Slot, metric: str, query: WindowQuery) -> _Ask | Reading:
        """What to read, or why that cannot be said."""
        preset = self._presets.get(query.place.metrics)
        what = preset.metrics.get(metric) if preset else None
        if not isinstance(what, PredictionRecords):
            why = f"preset {query.place.metrics!r} has no prediction records named {metric!r}"
            return Reading(metric, Availability.NO_SERIES, None, why)
        arms = arms_of(query, what.service_label, what.version_label)
        if isinstance(arms, str):
            return Reading(metric, Availability.NO_SERIES, None, arms)
        return _Ask(slot, metric, query.rollout, what, *arms, query.start_s, query.end_s)

    async def _read(self, asks: Sequence[_Ask], readings: dict[Slot, Reading]) -> None:
        """The readings of all asks; statements grow with different windows, not with rollouts."""
        states = await self._store.partitions(self._topic) if asks else ()
        by_window: dict[tuple[float, float], list[_Ask]] = defaultdict(list)
        for ask in asks:
            missing = incomplete(states, self._topic, ask.start_s, ask.end_s, self._clock.now().timestamp())
            if missing is None:
                by_window[ask.start_s, ask.end_s].append(ask)
            else:
                readings[ask.slot] = Reading(ask.metric, missing[0], None, missing[1])
        bins = await self._kept_bins([ask for listed in by_window.values() for ask in listed])
        for (start_s, end_s), listed in by_window.items():
            found = await self._summed(listed, start_s, end_s)
            # An arm that is empty here, and bins that are to be chosen, are looked up in the hour before.
            past = [ask for ask in listed if not all(found[ask.slot].values()) or _unbinned(ask, bins)]
            before = await self._summed(past, end_s - HISTORY_S, end_s) if past else {}
            bins |= await self._frozen([ask for ask in past if _unbinned(ask, bins)], before)
            for ask in listed:
                readings[ask.slot] = _reading(ask, found[ask.slot], before.get(ask.slot), bins.get(ask.reference))

    async def _summed(self, asks: Sequence[_Ask], start_s: float, end_s: float) -> dict[Slot, ByArm]:
        """Counts by arm of every ask in ``(start_s, end_s]``."""
        services = {ask.service for ask in asks}
        bodies = await self._store.counts(self._topic, services, start_s, end_s, limit=MOST_BODIES)
        slots = slots_of(start_s, end_s)
        assert slots is not None
        return await asyncio.to_thread(_sums, asks, bodies, slots)

    async def _kept_bins(self, asks: Sequence[_Ask]) -> dict[tuple[str, str], Bins]:
        keys = {ask.reference for ask in asks if _numeric(ask)}
        kept = await self._store.references(keys) if keys else {}
        return {key: Bins.from_bytes(body) for key, body in kept.items()}

    async def _frozen(self, asks: Sequence[_Ask], before: Mapping[Slot, ByArm]) -> dict[tuple[str, str], Bins]:
        """Choose and freeze the bins of rollouts that begin; whoever freezes first chooses for all."""
        chosen = []
        for ask in asks:
            bins = freeze(before[ask.slot][Arm.STABLE], scores=ask.what.view == "score")
            if bins is not None:
                chosen.append(Reference(*ask.reference, bins.to_bytes()))
        kept = await self._store.freeze(chosen, self._clock.now().timestamp()) if chosen else {}
        return {key: Bins.from_bytes(body) for key, body in kept.items()}


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
    if not states:
        return Availability.AWAY, f"topic {topic} has not been read yet"
    behind = [one for one in states if one.watermark_s < end_s]
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


def _numeric(ask: _Ask) -> bool:
    return ask.what.view in ("score", "value", "distance")


def _unbinned(ask: _Ask, bins: Mapping[tuple[str, str], Bins]) -> bool:
    return _numeric(ask) and ask.reference not in bins


def _sums(asks: Sequence[_Ask], bodies: Mapping[ServiceKey, Sequence[bytes]], slots: range) -> dict[Slot, ByArm]:
    out: dict[Slot, ByArm] = {ask.slot: {arm: Counter() for arm in Arm} for ask in asks}
    by_service: dict[ServiceKey, list[_Ask]] = defaultdict(list)
    for ask in asks:
        by_service[ask.service].append(ask)
    for service, listed in by_service.items():
        for body in bodies.get(service, ()):
            for model, version, output, view, slot, counts in from_bytes(body):
                if slot not in slots:
                    continue
                for ask in listed:
                    if (output, view) == (ask.what.output, ask.what.view) and ask.what.model in ("", model):
                        for arm, its_version in ask.versions.items():
                            if its_version == version:
                                for category, n in counts.items():
                                    out[ask.slot][arm][category] += n
    return out


def _reading(ask: _Ask, found: ByArm, before: ByArm | None, bins: Bins | None) -> Reading:
    """The reading of a complete window."""
    for arm in Arm:
        if not found[arm] and not (before and before[arm]):
            why = (
                f"no prediction records of version {ask.versions[arm]!r} ({arm}) of {ask.service} "
                f"with {ask.what.view} in the last {HISTORY_S / 60:.0f} minutes"
            )
            return Reading(ask.metric, Availability.NO_SERIES, None, why)
    if not _numeric(ask):
        names = tuple(sorted({str(name) for arm in Arm for name in found[arm]}))
        canary, stable = (tuple(found[arm].get(name, 0) for name in names) for arm in (Arm.CANARY, Arm.STABLE))
        counts = CategoryCounts(names, canary, stable)
    elif bins is None:
        n = sum(before[Arm.STABLE].values()) if before else 0
        why = f"bins are chosen from {LEAST_NUMBERS} numbers of stable, and it has sent {n}"
        return Reading(ask.metric, Availability.FEW, None, why)
    else:
        counts = CategoryCounts(bins.names, bins.counts(found[Arm.CANARY]), bins.counts(found[Arm.STABLE]))
    empty = [arm for arm in Arm if not found[arm]]
    if empty:
        why = f"no predictions of {' and '.join(empty)} in this window"
        return Reading(ask.metric, Availability.FEW, counts, why)
    return Reading(ask.metric, Availability.ENOUGH, counts)
