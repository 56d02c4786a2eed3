"""Paired predictions of mirrored traffic, window by window: how often both versions disagree, and what that says.

The sequential statistics of ``analyzers.paired`` (McNemar, Bowker for more than two classes, and the disagreement
rate against what is tolerated) are kept for each rollout and metric in the store, and a window enters them once: who
asks for a window again is told what was said then. The number serves a policy's guards.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np

from analyzers.paired import PairedConfig, PairedMonitor
from service.model.names import Arm
from service.model.observation import ArmValues, Availability, Reading
from service.model.preset import PredictionPairs
from service.predictions.asking import MOST_BODIES, Ask, Slot, TopicSource
from service.predictions.binning import OTHER
from service.predictions.decode import View
from service.predictions.pairing import SEPARATOR
from service.predictions.tally import from_bytes, slots_of
from service.ring.predictions import Reference

MOST_CLASSES: Final = 11
"""Classes told apart, the most frequent of the first window with pairs; the rest is one more."""


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """What is kept of one rollout's metric."""

    end_s: float
    """End of the last window that entered."""
    classes: tuple[str, ...]
    row: tuple[float, ...]
    log_evidence: float
    pairs_n: int
    disagreed_n: int


_Ask: TypeAlias = Ask[PredictionPairs]


class PairsSource(TopicSource[PredictionPairs]):
    """Reads metrics of kind ``prediction_pairs``."""

    kind = PredictionPairs
    called = "prediction pairs"

    async def _read(
        self, by_window: Mapping[tuple[float, float], Sequence[_Ask]], readings: dict[Slot, Reading]
    ) -> None:
        now_s = self._clock.now().timestamp()
        kept = await self._store.references({_reference(ask) for listed in by_window.values() for ask in listed})
        for (start_s, end_s), listed in sorted(by_window.items()):
            services = {ask.service for ask in listed}
            bodies = await self._store.counts(self._topic, services, start_s, end_s, limit=MOST_BODIES)
            slots = slots_of(start_s, end_s)
            assert slots is not None
            now: dict[tuple[str, str], bytes] = {}
            for ask in listed:
                was, key = kept.get(_reference(ask)), _reference(ask)
                body = now.get(key)
                if body is None:
                    pairs = _pairs(ask, bodies.get(ask.service, ()), slots)
                    body = await asyncio.to_thread(_entered, ask, was, pairs)
                    if body != was:
                        await self._store.replace(Reference(*key, body), was, now_s)
                    now[key] = body
                readings[ask.slot] = _reading(ask, msgspec.msgpack.decode(body, type=_Kept))
            kept = {**kept, **now}


def _reference(ask: _Ask) -> tuple[str, str]:
    """Under which its statistics are kept; both numbers of one output are of one comparison."""
    return ask.rollout, f"pairs of {ask.what.model or '*'}/{ask.what.output}"[:130]


def _pairs(ask: _Ask, bodies: Sequence[bytes], slots: range) -> Counter[tuple[str, str]]:
    """(stable's class, the canary's) -> pairs of the window."""
    stable, canary = ask.versions[Arm.STABLE], ask.versions[Arm.CANARY]
    wanted = SEPARATOR.join(sorted((stable, canary)))
    out: Counter[tuple[str, str]] = Counter()
    for body in bodies:
        for model, versions, output, view, slot, counts in from_bytes(body):
            if (versions, output, view) != (wanted, ask.what.output, View.PAIR) or slot not in slots:
                continue
            if ask.what.model not in ("", model):
                continue
            for classes, n in counts.items():
                one, _, other = str(classes).partition(SEPARATOR)
                if one == OTHER:
                    continue  # rare pairs beyond the bound of a batch; who they were is not known
                out[(one, other) if stable < canary else (other, one)] += n
    return out


def _entered(ask: _Ask, was: bytes | None, pairs: Counter[tuple[str, str]]) -> bytes:
    """The statistics with this window in them, unless it is in them already."""
    kept = None if was is None else msgspec.msgpack.decode(was, type=_Kept)
    if kept is not None and ask.end_s <= kept.end_s:
        assert was is not None
        return was
    config = PairedConfig(tolerated=ask.what.tolerated)
    if kept is None or not kept.row:
        if not pairs:
            return msgspec.msgpack.encode(_Kept(ask.end_s, (), (), 0.0, 0, 0))
        seen: Counter[str] = Counter()
        for (one, other), n in pairs.items():
            seen[one] += n
            seen[other] += n
        classes = tuple(sorted(sorted(seen, key=lambda name: (-seen[name], name))[:MOST_CLASSES]))
        monitor = PairedMonitor(config, len(classes) + 1)
    else:
        classes = kept.classes
        monitor = PairedMonitor.restore(config, np.array([kept.row]))
    index = {name: place for place, name in enumerate(classes)}
    counts = np.zeros((1, len(classes) + 1, len(classes) + 1))
    for (one, other), n in pairs.items():
        counts[0, index.get(one, len(classes)), index.get(other, len(classes))] += n
    said = monitor.observe(counts)
    row = tuple(float(x) for x in monitor.state()[0])
    before = (kept.pairs_n, kept.disagreed_n) if kept else (0, 0)
    disagreed_n = sum(n for (one, other), n in pairs.items() if one != other)
    now = _Kept(
        ask.end_s,
        classes,
        row,
        float(said.log_evidence[0]),
        before[0] + sum(pairs.values()),
        before[1] + disagreed_n,
    )
    return msgspec.msgpack.encode(now)


def _reading(ask: _Ask, kept: _Kept) -> Reading:
    if not kept.pairs_n:
        why = "no pairs yet: both versions' records of a mirrored request must carry the same request_id"
        return Reading(ask.metric, Availability.NO_SERIES, None, why)
    values = (
        ArmValues(kept.log_evidence, None)
        if ask.what.gives == "log_evidence"
        else ArmValues(kept.disagreed_n / kept.pairs_n, ask.what.tolerated)
    )
    detail = f"{kept.disagreed_n} of {kept.pairs_n} pairs differ so far"
    return Reading(ask.metric, Availability.ENOUGH, values, detail)
