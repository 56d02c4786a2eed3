"""From grown series to readings: failures of a total, buckets, classes, or what is missing. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.model.names import Arm
from service.model.observation import Availability, CategoryCounts, Counts, FailureCounts, HistogramCounts, Reading
from service.model.preset import ErrorSeries, LatencySeries, PredictionSeries
from service.sources.counter import Grown, Growth, Series, growth


@dataclass(frozen=True, slots=True)
class ArmSeries:
    """The raw series of one arm."""

    arm: Arm
    matchers: str
    """As people would write them, for sentences."""
    series: Sequence[Series]


def read(
    metric: str,
    what: LatencySeries | ErrorSeries | PredictionSeries,
    arms: tuple[ArmSeries, ArmSeries],
    *,
    start_s: float,
    end_s: float,
    stale_after_s: float,
    warning: str = "",
) -> Reading:
    """The reading of one metric in one window; ``arms`` are (canary, stable)."""
    grown: dict[Arm, Grown] = {}
    for arm in arms:
        grown[arm.arm] = growth(arm.series, start_s, end_s)
        last_s = grown[arm.arm].last_sample_s
        name = _series_name(what)
        if last_s is None:
            return Reading(metric, Availability.NO_SERIES, None, f"{name} has no series with {arm.matchers}")
        if last_s < end_s - stale_after_s:
            detail = f"the newest sample of {name} with {arm.matchers} is {end_s - last_s:.0f} s older than the window"
            return Reading(metric, Availability.STALE, None, detail)
    if warning:
        return Reading(metric, Availability.DEGRADED, None, f"the metric store warns: {warning[:200]}")
    counts = _counts(what, grown[Arm.CANARY].series, grown[Arm.STABLE].series)
    if isinstance(counts, str):
        return Reading(metric, Availability.NO_SERIES, None, counts)
    empty = [arm for arm, n in zip((Arm.CANARY, Arm.STABLE), _totals(counts), strict=True) if n == 0]
    if empty:
        return Reading(metric, Availability.FEW, counts, f"no requests of {' and '.join(empty)} in this window")
    return Reading(metric, Availability.ENOUGH, counts)


def _series_name(what: LatencySeries | ErrorSeries | PredictionSeries) -> str:
    match what:
        case LatencySeries():
            return what.buckets
        case ErrorSeries():
            return what.requests
        case PredictionSeries():
            return what.counter


def _counts(
    what: LatencySeries | ErrorSeries | PredictionSeries, canary: Sequence[Growth], stable: Sequence[Growth]
) -> Counts | str:
    match what:
        case ErrorSeries():
            (xc, nc), (xs, ns) = _failures(what, canary), _failures(what, stable)
            return FailureCounts(xc, nc, xs, ns)
        case PredictionSeries():
            of_canary, of_stable = (_by_label(arm, what.class_label) for arm in (canary, stable))
            names = tuple(sorted(set(of_canary) | set(of_stable)))
            return CategoryCounts(
                names, tuple(of_canary.get(n, 0) for n in names), tuple(of_stable.get(n, 0) for n in names)
            )
        case LatencySeries():
            return _histogram(what, canary, stable)


def _failures(what: ErrorSeries, arm: Sequence[Growth]) -> tuple[int, int]:
    failed = sum(
        one.count
        for one in arm
        if any(
            all(re.fullmatch(pattern, one.labels.get(label, "")) for label, pattern in alternative.items())
            for alternative in what.failed
        )
    )
    return failed, sum(one.count for one in arm)


def _by_label(arm: Sequence[Growth], label: str) -> dict[str, int]:
    out: dict[str, int] = defaultdict(int)
    for one in arm:
        out[one.labels.get(label, "")] += one.count
    return dict(out)


def _histogram(what: LatencySeries, canary: Sequence[Growth], stable: Sequence[Growth]) -> HistogramCounts | str:
    """Cumulative ``le`` counts to counts by bucket, on the bounds that both arms have."""
    cumulative = [_by_bound(arm) for arm in (canary, stable)]
    common = sorted(set(cumulative[0]) & set(cumulative[1]))
    if not common or common[-1] != float("inf"):
        return f"{what.buckets} has no +Inf bucket in both arms"
    if len(common) < 2:
        return f"{what.buckets} has no bucket bound that both arms share"
    per_bucket = []
    for counts in cumulative:
        row: list[int] = []
        below = 0
        for bound in common:
            # A scrape between two bucket updates can make a lower bound's growth the larger; no count is invented.
            here = max(counts[bound], below)
            row.append(here - below)
            below = here
        per_bucket.append(tuple(row))
    return HistogramCounts(tuple(bound * what.unit_s for bound in common[:-1]), per_bucket[0], per_bucket[1])


def _by_bound(arm: Sequence[Growth]) -> Mapping[float, int]:
    out: dict[float, int] = defaultdict(int)
    for one in arm:
        try:
            out[float(one.labels.get("le", ""))] += one.count
        except ValueError:
            continue  # a series without a bound is none of the histogram's buckets
    return out


def _totals(counts: Counts) -> tuple[int, int]:
    match counts:
        case FailureCounts():
            return counts.canary_total, counts.stable_total
        case HistogramCounts() | CategoryCounts():
            return sum(counts.canary), sum(counts.stable)
        case _:
            return 1, 1
