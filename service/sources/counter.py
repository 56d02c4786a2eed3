"""Counters to counts: how much a counter grew in a window, as an exact integer.

``increase()`` extrapolates and gives fractions, so raw samples are read and their positive steps added up. A step
belongs to the window in which its later sample lies: over consecutive windows every step is counted exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Labels = frozenset[tuple[str, str]]

INSTANCE_LABELS = ("instance", "pod", "kubernetes_pod_name")
"""Labels that tell one scraped process from another."""


@dataclass(frozen=True, slots=True)
class Series:
    """One counter: its labels, and samples (seconds since the epoch, value) in any order."""

    labels: Mapping[str, str]
    samples: Sequence[tuple[float, float]]


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


def growth(listed: Iterable[Series], start_s: float, end_s: float) -> Grown:
    """Growth of each series in ``(start_s, end_s]``; samples before ``start_s`` serve as the steps' lower ends.

    A fall is a restart of the process: the new value is what it has counted since. A series that appears in the window
    on an instance that was scraped before counts from 0 (a status code that was never seen: its first sample is new
    requests). A series of an instance that is new itself counts from its first sample, because nothing tells how old
    its count is; a starting pod loses at most what it served before its first scrape. Samples that are not finite or
    negative are ignored.
    """
    clean = [(one.labels, _clean(one.samples, end_s)) for one in listed]
    known = {_instance(labels) for labels, samples in clean if samples and samples[0][0] <= start_s}
    out: list[Growth] = []
    last: float | None = None
    for labels, samples in clean:
        if not samples:
            continue
        last = samples[-1][0] if last is None else max(last, samples[-1][0])
        out.append(Growth(labels, _grown(samples, start_s, fresh_counts=_instance(labels) in known)))
    return Grown(tuple(out), last)


def _clean(samples: Sequence[tuple[float, float]], end_s: float) -> list[tuple[float, float]]:
    """In order of time, one a moment, none after the window's end."""
    good = {at: value for at, value in samples if at <= end_s and math.isfinite(value) and value >= 0}
    return sorted(good.items())


def _grown(samples: Sequence[tuple[float, float]], start_s: float, *, fresh_counts: bool) -> int:
    total = 0.0
    before: float | None = None
    for at, value in samples:
        if at > start_s:
            if before is not None:
                total += value - before if value >= before else value
            elif fresh_counts:
                total += value
        before = value
    return round(total)


def _instance(labels: Mapping[str, str]) -> Labels:
    """The scraped process behind a series; the whole service where no label tells."""
    return frozenset((name, labels[name]) for name in INSTANCE_LABELS if name in labels)
