"""Counters to counts: how much a counter grew in a window, as an exact integer.

``increase()`` extrapolates and gives fractions, so raw samples are read and their positive steps added up. A step
belongs to the window in which its later sample lies, and nothing else in this room looks at the window's edges: over
consecutive windows every step is counted exactly once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Labels = frozenset[tuple[str, str]]
Samples = Sequence[tuple[float, float]]

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
    clean = [(one.labels, _clean(one.samples, end_s)) for one in listed]
    clean = [(labels, samples) for labels, samples in clean if samples]
    if not clean:
        return Grown((), None)
    first_seen_s: dict[Labels, float] | None = None
    falls = _falls(clean, together) if together else {}
    out: list[Growth] = []
    for labels, samples in clean:
        count = _steps(samples, start_s, falls.get(_without(labels, together), ()) if falls else ())
        if samples[0][0] > start_s:
            # Most series are older than the window, so who was seen when is only worked out for one that is not.
            if first_seen_s is None:
                first_seen_s = _first_seen_s(clean, beside, end_s)
            if first_seen_s[_instance(labels)] < samples[0][0]:
                count += samples[0][1]
        out.append(Growth(labels, count))
    return Grown(tuple(out), max(samples[-1][0] for _, samples in clean))


def _clean(samples: Samples, end_s: float) -> list[tuple[float, int]]:
    """Whole numbers in order of time, one a moment, none after the window's end."""
    good: list[tuple[float, int]] = []
    ordered = True
    before = -math.inf
    for at, value in samples:
        # Written so that NaN fails both comparisons.
        if 0 <= value < math.inf and -math.inf < at <= end_s:
            ordered = ordered and at > before
            before = at
            good.append((at, int(value)))
    if ordered:
        return good
    merged: dict[float, int] = {}
    for at, count in good:
        merged[at] = max(count, merged.get(at, 0))
    return sorted(merged.items())


def _steps(samples: Sequence[tuple[float, int]], start_s: float, falls: Sequence[float]) -> int:
    """The positive steps whose later sample lies after ``start_s``."""
    total = 0
    before_s, before = samples[0]
    for at, value in samples[1:]:
        if at > start_s:
            restarted = value < before or any(before_s < fell <= at for fell in falls)
            total += value if restarted else value - before
        before_s, before = at, value
    return total


def _falls(clean: Iterable[tuple[Mapping[str, str], list[tuple[float, int]]]], label: str) -> dict[Labels, list[float]]:
    """When any series of a family fell, by the family."""
    out: dict[Labels, list[float]] = defaultdict(list)
    for labels, samples in clean:
        for (_, before), (at, value) in pairwise(samples):
            if value < before:
                out[_without(labels, label)].append(at)
    return out


def _first_seen_s(
    clean: Iterable[tuple[Mapping[str, str], list[tuple[float, int]]]], beside: Iterable[Series], end_s: float
) -> dict[Labels, float]:
    out: dict[Labels, float] = {}
    for labels, samples in clean:
        key = _instance(labels)
        out[key] = min(samples[0][0], out.get(key, math.inf))
    for one in beside:
        samples = _clean(one.samples, end_s)
        if samples:
            key = _instance(one.labels)
            out[key] = min(samples[0][0], out.get(key, math.inf))
    return out


def _without(labels: Mapping[str, str], label: str | None) -> Labels:
    return frozenset(item for item in labels.items() if item[0] != label)


def _instance(labels: Mapping[str, str]) -> Labels:
    """The scraped process behind a series; the whole service where no label tells."""
    return frozenset((name, labels[name]) for name in INSTANCE_LABELS if name in labels)
