"""From raw series to readings: failures of a total, buckets, classes, or what is missing. Pure."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from service.model.lines import LineCounterSeries
from service.model.names import Arm
from service.model.observation import Availability, CategoryCounts, Counts, FailureCounts, HistogramCounts, Reading
from service.model.preset import NAME, CounterSeries, ErrorSeries, LatencySeries, PredictionSeries, ScoreSeries
from service.sources import lines
from service.sources.counter import Growth, Labels, Series, counted_by, growth

LONGEST_MATCHED = 256
"""A label value longer than this is no status, so no pattern is tried on it: it bounds the time of any pattern."""

DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class ArmSeries:
    """The raw series of one arm."""

    arm: Arm
    matchers: str
    """As people would write them, for sentences."""
    series: Sequence[Series]


def read(
    metric: str,
    what: CounterSeries,
    arms: tuple[ArmSeries, ArmSeries],
    *,
    start_s: float,
    end_s: float,
    stale_after_s: float,
    warning: str = "",
    native_n: int = 0,
) -> Reading:
    """The reading of one metric in ``(start_s, end_s]``; ``arms`` are (canary, stable).

    A warning comes before all else: in a partial answer, what is missing means nothing.
    native_n : series that the store holds as native histograms only, for the sentence when classic ones are missing
    """
    if warning:
        return _none(metric, Availability.DEGRADED, f"the metric store warns: {warning}")
    name = " and ".join(what.names)
    shared = {id(one) for one in arms[0].series} & {id(one) for one in arms[1].series}
    if shared:
        why = f"{len(shared)} series of {name} belong to both arms; the labels must tell them apart: "
        return _none(metric, Availability.NO_SERIES, why + f"{{{arms[0].matchers}}} and {{{arms[1].matchers}}}")
    grown: dict[Arm, Sequence[Growth]] = {}
    for arm, other in (arms, arms[::-1]):
        together = "le" if isinstance(what, LatencySeries | ScoreSeries) else None
        main = [one for one in arm.series if _name(what, one.labels) == what.names[0]]
        found = growth(main, start_s, end_s, beside=(*arm.series, *other.series), together=together)
        if found.last_sample_s is None:
            native = "; there are native histograms, which are not read" if native_n else ""
            why = f"{what.names[0]} has no series of the {arm.arm} with {{{arm.matchers}}}{native}"
            return _none(metric, Availability.NO_SERIES, why)
        if found.last_sample_s < end_s - stale_after_s:
            age = f"{end_s - found.last_sample_s:.0f} s older than the window's end"
            why = f"the newest sample of {what.names[0]} of the {arm.arm} with {{{arm.matchers}}} is {age}"
            return _none(metric, Availability.STALE, why)
        grown[arm.arm] = found.series
        if len(main) < len(arm.series):
            # A counter of failures alone may be absent, or end with its pod: whether the arm lives, requests tell.
            others = [one for one in arm.series if _name(what, one.labels) != what.names[0]]
            further = growth(others, start_s, end_s, beside=(*main, *other.series))
            grown[arm.arm] = (*found.series, *further.series)
    if isinstance(what, LineCounterSeries):
        counts = [_lines(metric, what, arm.series, end_s) for arm in arms]
        return lines.counted(metric, counts[0], counts[1], Counter(), before="since its pods began")
    return of_growth(metric, what, grown[Arm.CANARY], grown[Arm.STABLE])


def _lines(metric: str, what: LineCounterSeries, series: Sequence[Series], end_s: float) -> Counter[str]:
    """Lines of one arm by what they are about, since its pods began."""
    out: Counter[str] = Counter()
    for one in series:
        if _name(what, one.labels) == what.lines:
            out[_subject(what, metric, one.labels)] += counted_by(one.samples, end_s)
    return +out


def _subject(what: LineCounterSeries, metric: str, labels: Mapping[str, str]) -> str:
    return f"{metric} {lines.shown(labels.get(what.subject_label, ''), lines.LONGEST_SUBJECT)}".rstrip()


def of_growth(metric: str, what: CounterSeries, canary: Sequence[Growth], stable: Sequence[Growth]) -> Reading:
    """The reading of arms that are known to be there and fresh, from how much each of their series or sums grew."""
    counts, detail = _counts(what, canary, stable)
    if counts is None:
        return _none(metric, Availability.NO_SERIES, detail)
    empty = [arm for arm, n in zip((Arm.CANARY, Arm.STABLE), _totals(counts), strict=True) if n == 0]
    if empty:
        said = f"no requests of {' and '.join(empty)} in this window"
        return Reading(metric, Availability.FEW, counts, f"{said}; {detail}" if detail else said)
    return Reading(metric, Availability.ENOUGH, counts, detail)


def _none(metric: str, availability: Availability, detail: str) -> Reading:
    return Reading(metric, availability, None, detail[:DETAIL_CHARS])


def _counts(what: CounterSeries, canary: Sequence[Growth], stable: Sequence[Growth]) -> tuple[Counts | None, str]:
    """The counts, and what had to be said of them; no counts where the series cannot be compared."""
    match what:
        case ErrorSeries():
            (xc, nc), (xs, ns) = _failures(what, canary), _failures(what, stable)
            # A scrape between two counters' updates can show more failures than requests; the total is what holds.
            over = "more failures than requests in one scrape, cut to the requests" if xc > nc or xs > ns else ""
            return FailureCounts(min(xc, nc), nc, min(xs, ns), ns), over
        case PredictionSeries():
            of_canary, of_stable = (_by_label(_first(arm, what), what.class_label) for arm in (canary, stable))
            names = tuple(sorted(set(of_canary) | set(of_stable)))
            by_arm = [tuple(arm.get(n, 0) for n in names) for arm in (of_canary, of_stable)]
            return CategoryCounts(names, by_arm[0], by_arm[1]), ""
        case LatencySeries():
            edges, rows, detail = _histogram(what.buckets, canary, stable)
            if not edges:
                return None, detail
            return HistogramCounts(tuple(edge / what.per_second for edge in edges), rows[0], rows[1]), detail
        case ScoreSeries():
            edges, rows, detail = _histogram(what.buckets, canary, stable)
            if not edges:
                return None, detail
            shown = [f"{edge:.9g}" for edge in edges]
            between = (f"{low} to {high}" for low, high in pairwise(shown))
            return CategoryCounts((f"up to {shown[0]}", *between, f"above {shown[-1]}"), rows[0], rows[1]), detail
        case LineCounterSeries():
            raise TypeError("lines are read from raw samples only, for what stable had before the window")


def _failures(what: ErrorSeries, arm: Sequence[Growth]) -> tuple[int, int]:
    """(failed, all)."""
    failed = [one for one in arm if _failed(what, one.labels)]
    total = sum(one.count for one in arm if _name(what, one.labels) == what.requests)
    if what.failures_are == "beside":
        total += sum(one.count for one in failed if _name(what, one.labels) != what.requests)
    return sum(one.count for one in failed), total


def _failed(what: ErrorSeries, labels: Mapping[str, str]) -> bool:
    name = _name(what, labels)
    return any(
        name == alternative.get(NAME, what.requests)
        and all(_matches(pattern, labels.get(label, "")) for label, pattern in alternative.items() if label != NAME)
        for alternative in what.failed
    )


def _name(what: CounterSeries, labels: Mapping[str, str]) -> str:
    return labels.get(NAME, what.names[0])


@functools.lru_cache(maxsize=4096)
def _matches(pattern: str, value: str) -> bool:
    # The same few codes come again with every series, so most are answered without the expression.
    return len(value) <= LONGEST_MATCHED and re.fullmatch(pattern, value) is not None


def _first(arm: Sequence[Growth], what: PredictionSeries) -> Iterable[Growth]:
    """What is counted once a request."""
    label = what.rank_label
    return arm if label is None else (one for one in arm if one.labels.get(label, "") == what.rank)


def _by_label(arm: Iterable[Growth], label: str) -> dict[str, int]:
    out: dict[str, int] = defaultdict(int)
    for one in arm:
        out[one.labels.get(label, "")] += one.count
    return dict(out)


def _histogram(
    name: str, canary: Sequence[Growth], stable: Sequence[Growth]
) -> tuple[tuple[float, ...], list[tuple[int, ...]], str]:
    """Cumulative ``le`` counts to (bounds, counts by bucket of both arms, what had to be said), on the bounds that
    every histogram of both arms has; without bounds where they cannot be compared.

    Pods may have different bounds while a release is under way; a bound that one of them lacks says nothing of it, so
    only common ones are kept. Histograms that did not grow do not narrow them.
    """
    arms = [_histograms(canary), _histograms(stable)]
    grown = [[h for h in arm if any(h.values())] or arm for arm in arms]
    bounds = set.intersection(*({*h} for arm in grown for h in arm)) if all(grown) else set()
    common = sorted(bounds)
    if not common or common[-1] != math.inf:
        return (), [], f"{name} has no +Inf bucket in every histogram of both arms"
    if len(common) < 2:
        return (), [], f"{name} has no bucket bound that both arms share"
    clipped_n = 0
    rows: list[tuple[int, ...]] = []
    for arm in grown:
        cumulative = [sum(histogram[bound] for histogram in arm) for bound in common]
        for i in range(len(common) - 2, -1, -1):
            # A scrape between two buckets' updates can show a lower bound ahead of a higher one. What is too much is
            # cut, never added: the arm's total stays what its +Inf buckets counted.
            clipped_n += max(0, cumulative[i] - cumulative[i + 1])
            cumulative[i] = min(cumulative[i], cumulative[i + 1])
        rows.append(tuple(now - below for now, below in zip(cumulative, [0, *cumulative], strict=False)))
    detail = f"{clipped_n} counts of buckets that overtook higher ones were cut" if clipped_n else ""
    return tuple(common[:-1]), rows, detail


def _histograms(arm: Iterable[Growth]) -> list[dict[float, int]]:
    """Growth by bound of each histogram; ``1`` and ``1.0`` are one bound."""
    out: dict[Labels, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for one in arm:
        try:
            bound = float(one.labels.get("le", ""))
        except ValueError:
            continue  # a series without a bound is none of the histogram's buckets
        if not math.isnan(bound):
            out[frozenset(item for item in one.labels.items() if item[0] != "le")][bound] += one.count
    return list(out.values())


def _totals(counts: Counts) -> tuple[int, int]:
    match counts:
        case FailureCounts():
            return counts.canary_total, counts.stable_total
        case HistogramCounts() | CategoryCounts():
            return sum(counts.canary), sum(counts.stable)
        case _:
            raise TypeError(f"{type(counts).__name__} has no totals")
