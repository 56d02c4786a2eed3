"""Windows of predictions, read from what the consumer has counted.

An arm without records in a window is FEW if it sent any in the hour before, and NO_SERIES if not.

Bins of numbers are frozen for a rollout at its first window, from what stable sent in the hour up to its end.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from service.model.names import Arm, ServiceKey
from service.model.observation import Availability, CategoryCounts, Reading
from service.model.preset import PredictionRecords
from service.predictions.asking import MOST_BODIES, Ask, Slot, TopicSource
from service.predictions.binning import LEAST_NUMBERS, Bins, Category, freeze
from service.predictions.tally import from_bytes, slots_of
from service.ring.predictions import Reference

HISTORY_S: Final = 3600.0
"""How far back an arm's records show that it sends any, and stable's numbers choose the bins."""

ByArm = Mapping[Arm, Counter[Category]]


_Ask: TypeAlias = Ask[PredictionRecords]


class RecordsSource(TopicSource[PredictionRecords]):
    """Reads metrics of kind ``prediction_records``."""

    kind = PredictionRecords
    called = "prediction records"

    async def _read(
        self, by_window: Mapping[tuple[float, float], Sequence[_Ask]], readings: dict[Slot, Reading]
    ) -> None:
        bins = await self._kept_bins([ask for listed in by_window.values() for ask in listed])
        for (start_s, end_s), listed in by_window.items():
            found = await self._summed(listed, start_s, end_s)
            # An arm that is empty here, and bins that are to be chosen, are looked up in the hour before.
            past = [ask for ask in listed if not all(found[ask.slot].values()) or _unbinned(ask, bins)]
            before = await self._summed(past, end_s - HISTORY_S, end_s) if past else {}
            bins |= await self._frozen([ask for ask in past if _unbinned(ask, bins)], before)
            for ask in listed:
                readings[ask.slot] = _reading(ask, found[ask.slot], before.get(ask.slot), bins.get(_reference(ask)))

    async def _summed(self, asks: Sequence[_Ask], start_s: float, end_s: float) -> dict[Slot, ByArm]:
        """Counts by arm of every ask in ``(start_s, end_s]``."""
        services = {ask.service for ask in asks}
        bodies = await self._store.counts(self._topic, services, start_s, end_s, limit=MOST_BODIES)
        slots = slots_of(start_s, end_s)
        assert slots is not None
        return await asyncio.to_thread(_sums, asks, bodies, slots)

    async def _kept_bins(self, asks: Sequence[_Ask]) -> dict[tuple[str, str], Bins]:
        keys = {_reference(ask) for ask in asks if _numeric(ask)}
        kept = await self._store.references(keys) if keys else {}
        return {key: Bins.from_bytes(body) for key, body in kept.items()}

    async def _frozen(self, asks: Sequence[_Ask], before: Mapping[Slot, ByArm]) -> dict[tuple[str, str], Bins]:
        """Choose and freeze the bins of rollouts that begin; whoever freezes first chooses for all."""
        chosen = []
        for ask in asks:
            bins = freeze(before[ask.slot][Arm.STABLE], scores=ask.what.view == "score")
            if bins is not None:
                chosen.append(Reference(*_reference(ask), bins.to_bytes()))
        kept = await self._store.freeze(chosen, self._clock.now().timestamp()) if chosen else {}
        return {key: Bins.from_bytes(body) for key, body in kept.items()}


def _reference(ask: _Ask) -> tuple[str, str]:
    """Under which its bins are frozen."""
    return ask.rollout, ask.metric


def _numeric(ask: _Ask) -> bool:
    return ask.what.view in ("score", "value", "distance")


def _unbinned(ask: _Ask, bins: Mapping[tuple[str, str], Bins]) -> bool:
    return _numeric(ask) and _reference(ask) not in bins


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
