"""Counters to counts: how much a counter grew in a window, as an exact integer.

``increase()`` extrapolates and gives fractions, so raw samples are read and their positive steps added up. A step
belongs to the window in which its later sample lies, and nothing else in this room looks at the window's edges: over
consecutive windows every step is counted exactly once.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Labels = frozenset[tuple[str, str]]
Samples = Sequence[Sequence[float]]

INSTANCE_LABELS = ("job", "namespace", "instance", "pod", "kubernetes_pod_name")
"""Labels that tell one scraped process from another."""


@dataclass(frozen=True, slots=True)
class Series:
    """One counter: its labels, and samples (seconds since the epoch, value) in any order."""

    labels: Mapping[str, str]
    samples: Samples


@dataclass(frozen=True, slots=True)
class Growth:
    """How much one series grew in the window."""

    labels: Mapping[str, str]
    count: int


@dataclass(frozen=True, slots=True)
class Grown:
    """Growth of several series, and when the newest sample of any of them was taken (None: no sample)."""

    series: tuple[Growth, ...]
    last_sample_s: float | None


def growth(
    listed: Iterable[Series],
    start_s: float,
    end_s: float,
    *,
    beside: Iterable[Series] = (),
    together: str | None = None,
) -> Grown:
    """Growth of each series in ``(start_s, end_s]``; samples up to ``start_s`` serve as the steps' lower ends.

    A fall is a restart of the process: the new value is what it has counted since.

    A series whose instance was scraped before the series' first sample counts from 0: a status code that was never
    seen, or a sidecar's first request to the canary, has its first sample only because of new requests. A series that
    begins with its instance counts from its first sample, because nothing tells how old its count is: Serinus may see
    a process for the first time that has run for days. A starting pod so loses what it served before its first scrape.
    This rule compares samples only with each other, never with the window, so windows add up.

    A series that vanished has grown by what its samples still show. Samples that are not finite or negative are
    ignored, fractions are cut off, and of several at one moment the largest is taken.

    beside : further series of the same scrapes (the other arm's), which only bear witness to when an instance was seen
    together : a label whose values live and restart together, such as a histogram's ``le``. A fall of one bucket is
        then a restart of all, also of those that have already overtaken their old value.
    """
    walks = [(one, _walk(one.samples, start_s, end_s)) for one in listed]
    seen = [(one, walk) for one, walk in walks if walk is not None]
    if not seen:
        return Grown((), None)
    first_seen_s: dict[Labels, float] | None = None
    falls: dict[Labels, set[float]] = defaultdict(set)
    if together is not None:
        for one, walk in seen:
            if walk.falls_s:
                falls[_without(one.labels, together)].update(walk.falls_s)
    out: list[Growth] = []
    for one, walk in seen:
        count = walk.steps
        family = falls.get(_without(one.labels, together)) if falls else None
        if family and not family <= set(walk.falls_s):
            count = _steps_with_falls(_clean(one.samples, end_s), start_s, family)
        if walk.first_s > start_s:
            # Most series are older than the window, so who was seen when is only worked out for one that is not.
            if first_seen_s is None:
                first_seen_s = _first_seen_s(seen, beside, start_s, end_s)
            if first_seen_s[_instance(one.labels)] < walk.first_s:
                count += walk.first
        out.append(Growth(one.labels, count))
    return Grown(tuple(out), max(walk.last_s for _, walk in seen))


def counted_by(samples: Samples, end_s: float) -> int:
    """What a counter has counted by ``end_s``: its first sample and all positive steps, where a fall is a restart."""
    good = _clean(samples, end_s)
    return (good[0][1] if good else 0) + _steps_with_falls(good, -math.inf, ())


@dataclass(slots=True)
class _Walk:
    """One pass over a series' samples up to the window's end."""

    first_s: float
    first: int
    last_s: float
    steps: int = 0
    """The positive steps whose later sample lies in the window."""
    falls_s: Sequence[float] = ()
    """When the series fell, also before the window."""


def _walk(samples: Samples, start_s: float, end_s: float) -> _Walk | None:
    """None without a good sample. Finite samples in order, as a store gives them, take one pass."""
    plain = _plain_walk(samples, start_s, end_s)
    if plain is not None:
        return plain
    walk: _Walk | None = None
    reached_s, before, total = -math.inf, 0, 0
    last_s = -math.inf
    falls_s: list[float] = []
    for at, value in samples:
        # Written so that NaN fails both comparisons.
        if not (at > reached_s and 0 <= value < math.inf):
            good = _clean(samples, end_s)
            return _walk(good, start_s, end_s) if good else None
        reached_s = at
        if at > end_s:
            continue
        count = int(value)
        if walk is None:
            walk = _Walk(at, count, at)
        else:
            grown = count - before
            if grown < 0:
                falls_s.append(at)
                grown = count
            if at > start_s:
                total += grown
        before, last_s = count, at
    if walk is not None:
        walk.last_s, walk.steps, walk.falls_s = last_s, total, falls_s
    return walk


def _plain_walk(samples: Samples, start_s: float, end_s: float) -> _Walk | None:
    """The walk over good samples in order that never fall, none after the end, without a step for each: most are so.

    None for all others.
    """
    if not samples:
        return None
    times, values = zip(*samples, strict=True)
    # Written so that NaN fails; the comparisons of all neighbours are one call.
    if not (-math.inf < times[0] and times[-1] <= end_s and values[0] >= 0 and values[-1] < math.inf):
        return None
    if not (all(map(operator.lt, times, times[1:])) and all(map(operator.le, values, values[1:]))):
        return None
    before = max(0, bisect_right(times, start_s) - 1)
    return _Walk(times[0], int(values[0]), times[-1], int(values[-1]) - int(values[before]))


def _clean(samples: Samples, end_s: float) -> list[tuple[float, int]]:
    """Whole numbers in order of time, one a moment, none after the window's end."""
    merged: dict[float, int] = {}
    for at, value in samples:
        if 0 <= value < math.inf and -math.inf < at <= end_s:
            merged[at] = max(int(value), merged.get(at, 0))
    return sorted(merged.items())


def _steps_with_falls(samples: Sequence[tuple[float, int]], start_s: float, falls_s: Collection[float]) -> int:
    """The positive steps after ``start_s``, where a fall of the family between two samples is a restart of this one."""
    total = 0
    for (before_s, before), (at, value) in pairwise(samples):
        if at > start_s:
            restarted = value < before or any(before_s < fell_s <= at for fell_s in falls_s)
            total += value if restarted else value - before
    return total


def _first_seen_s(
    seen: Iterable[tuple[Series, _Walk]], beside: Iterable[Series], start_s: float, end_s: float
) -> dict[Labels, float]:
    """When each instance was first scraped, as far back as the samples go."""
    out: dict[Labels, float] = {}
    others = ((one, _walk(one.samples, start_s, end_s)) for one in beside)
    for one, walk in (*seen, *others):
        if walk is not None:
            key = _instance(one.labels)
            out[key] = min(walk.first_s, out.get(key, math.inf))
    return out


def _without(labels: Mapping[str, str], label: str | None) -> Labels:
    return frozenset(item for item in labels.items() if item[0] != label)


def _instance(labels: Mapping[str, str]) -> Labels:
    """The scraped process behind a series; the whole service where no label tells."""
    return frozenset((name, labels[name]) for name in INSTANCE_LABELS if name in labels)
