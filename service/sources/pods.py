"""What each pod uses, from raw samples: which pods an arm has, and one number a pod. Pure.

Resource series rarely carry the labels of the arms, so the pods are asked for first, by a series that does
(``preset.PodSeries``), and then what they use, by their names. Names come from the store: data, quoted like all else.

A sample that says «not supported», and a pod without samples, have no value. They are never 0: an exporter that is
gone must not look like a pod that uses nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.model.names import Arm
from service.model.observation import Availability, PodValue, PodValues, Reading
from service.model.preset import NAME, MetricsPreset, PodSeries, ResourceSeries
from service.sources import promql
from service.sources.counter import Samples, Series

MOST_PODS = 32
"""Of an arm so many pods are read at most, the first by name; the statistics follow fewer."""

PODS_PER_QUERY = 400
"""Pods whose names one question holds."""

DETAIL_CHARS = 300

Pod = tuple[str, str]
"""(namespace, name); the namespace is empty where none is told."""


@dataclass(frozen=True, slots=True)
class PodAsk:
    """The resources of one rollout's window. slots : where each metric's reading goes."""

    preset: MetricsPreset
    slots: Mapping[str, tuple[int, int]]
    labels: Mapping[Arm, Mapping[str, str]]
    """What tells the arms: the labels of the pods' series, or of the resources themselves."""
    start_s: float
    end_s: float


@dataclass(slots=True)
class Found:
    """The pods of one rollout's window."""

    pods: dict[Arm, list[Pod]] = field(default_factory=lambda: {arm: [] for arm in Arm})
    age_s: dict[Pod, float] = field(default_factory=dict)
    pods_n: dict[Arm, int] = field(default_factory=dict)
    """Pods of each arm in all, with those beyond ``MOST_PODS``."""
    missing: Reading | None = None
    """Why no pods are known, for every metric (its name is left empty)."""


def arm_labels(
    preset: MetricsPreset, by_arm: Mapping[Arm, Mapping[str, str]], namespace: str
) -> dict[Arm, dict[str, str]]:
    """The labels that tell the arms' pods, from those of the target. namespace : the rollout's own."""
    what = preset.pods
    if what is None:
        return {arm: dict(labels) for arm, labels in by_arm.items()}
    out: dict[Arm, dict[str, str]] = {}
    for arm, labels in by_arm.items():
        mapped = {what.by[name]: value for name, value in labels.items() if name in what.by}
        # Without a namespace, versions of other services would be taken for this one's.
        here = {what.namespace_label: namespace} if mapped and what.namespace_label is not None else {}
        out[arm] = {**here, **what.labels, **mapped}
    return out


def members_text(what: PodSeries, asks: Sequence[PodAsk], reach_s: float) -> str:
    """Which pods there are, of all asks."""
    return promql.range_selector(what.series, _joined(asks), reach_s)


def started_text(what: PodSeries, pods: Iterable[Pod], reach_s: float) -> str:
    """When pods started."""
    assert what.started is not None
    return promql.range_selector(what.started, _of_pods(pods, what.pod_label, what.namespace_label), reach_s)


def values_text(what: ResourceSeries, pods: Iterable[Pod], reach_s: float) -> str:
    """What pods use, and their limits."""
    matched = _of_pods(pods, what.pod_label, what.namespace_label)
    return promql.range_selector(what.names, {**{n: [v] for n, v in what.labels.items()}, **matched}, reach_s)


def labelled_text(what: ResourceSeries, asks: Sequence[PodAsk], reach_s: float) -> str:
    """The same where the resources themselves carry the labels of the arms."""
    return promql.range_selector(what.names, {**{n: [v] for n, v in what.labels.items()}, **_joined(asks)}, reach_s)


class ByLabels:
    """Series found by labels that they must have, without going through all of them for every rollout."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._series = series
        self._by: dict[tuple[str, ...], dict[tuple[str, ...], list[Series]]] = {}

    def of(self, labels: Mapping[str, str]) -> Sequence[Series]:
        """Those whose labels have these values; an absent label is empty."""
        names = tuple(sorted(labels))
        if names not in self._by:
            by: dict[tuple[str, ...], list[Series]] = defaultdict(list)
            for one in self._series:
                by[tuple(one.labels.get(name, "") for name in names)].append(one)
            self._by[names] = by
        return self._by[names].get(tuple(labels[name] for name in names), ())


def members_of(asks: Sequence[PodAsk], series: Sequence[Series], stale_after_s: float) -> list[Found]:
    """For each ask, the pods of both arms that are still there at the window's end."""
    by = ByLabels(series)
    return [
        members(ask, [*by.of(ask.labels[Arm.CANARY]), *by.of(ask.labels[Arm.STABLE])], stale_after_s) for ask in asks
    ]


def members(ask: PodAsk, series: Iterable[Series], stale_after_s: float) -> Found:
    """The pods of both arms that are still there at the window's end."""
    what = ask.preset.pods
    assert what is not None
    out = Found()
    newest: dict[Arm, float] = {}
    arms: dict[Pod, Arm] = {}
    for one in series:
        of = [arm for arm in Arm if _has(one.labels, ask.labels[arm])]
        pod = _pod(one.labels, what.pod_label, what.namespace_label)
        last = _last_s(one.samples, ask.end_s)
        if not of or pod is None or last is None:
            continue
        # A pod whose label was changed in place has a series of either arm; the one that has ended says nothing of now.
        there = last >= ask.end_s - stale_after_s
        if len(of) > 1 or (there and arms.get(pod, of[0]) is not of[0]):
            why = f"pod {pod[1]!r} belongs to both arms by {what.series}; the labels must tell them apart"
            out.missing = Reading("", Availability.NO_SERIES, None, why[:DETAIL_CHARS])
            return out
        newest[of[0]] = max(last, newest.get(of[0], -math.inf))
        if there and pod not in arms:
            arms[pod] = of[0]
            out.pods[of[0]].append(pod)
    for arm in Arm:
        matchers = promql.selector(ask.labels[arm])
        if arm not in newest:
            why = f"{what.series} has no pods of the {arm} with {{{matchers}}}"
            out.missing = Reading("", Availability.NO_SERIES, None, why[:DETAIL_CHARS])
            return out
        if not out.pods[arm]:
            age = f"{ask.end_s - newest[arm]:.0f} s older than the window's end"
            why = f"the newest sample of {what.series} of the {arm} with {{{matchers}}} is {age}"
            out.missing = Reading("", Availability.STALE, None, why[:DETAIL_CHARS])
            return out
        out.pods_n[arm] = len(out.pods[arm])
        out.pods[arm] = sorted(out.pods[arm])[:MOST_PODS]
    return out


def parts(asks: Sequence[PodAsk], found: Sequence[Found]) -> list[list[int]]:
    """Places of asks that one question about their pods may hold."""
    out: list[list[int]] = [[]]
    held = 0
    for place, one in enumerate(found):
        n = sum(len(pods) for pods in one.pods.values())
        if out[-1] and held + n > PODS_PER_QUERY:
            out.append([])
            held = 0
        out[-1].append(place)
        held += n
    return out if asks else []


def labelled_members(ask: PodAsk, what: ResourceSeries, series: Iterable[Series]) -> Found:
    """The pods of both arms, from series that carry the arms' labels themselves."""
    out = Found()
    seen: dict[Arm, set[Pod]] = {arm: set() for arm in Arm}
    for one in series:
        pod = _pod(one.labels, what.pod_label, what.namespace_label)
        for arm in Arm:
            if pod is not None and _has(one.labels, ask.labels[arm]):
                seen[arm].add(pod)
    both = seen[Arm.CANARY] & seen[Arm.STABLE]
    if both:
        why = f"pod {min(both)[1]!r} belongs to both arms by {what.series}; the labels must tell them apart"
        out.missing = Reading("", Availability.NO_SERIES, None, why[:DETAIL_CHARS])
    for arm, pods in seen.items():
        out.pods_n[arm] = len(pods)
        out.pods[arm] = sorted(pods)[:MOST_PODS]
    return out


def ages(what: PodSeries, series: Iterable[Series], end_s: float) -> dict[Pod, float]:
    """Seconds since each pod's start, as of the window's end."""
    out: dict[Pod, float] = {}
    for one in series:
        pod = _pod(one.labels, what.pod_label, what.namespace_label)
        began = [value for at, value in one.samples if at <= end_s and 0 < value <= end_s]
        if pod is not None and began:
            out[pod] = max(end_s - began[-1], 0.0)
    return out


def by_pod(what: ResourceSeries, series: Iterable[Series]) -> dict[Pod, list[Series]]:
    """The series of each pod, without those that are left out."""
    out: dict[Pod, list[Series]] = defaultdict(list)
    for one in series:
        pod = _pod(one.labels, what.pod_label, what.namespace_label)
        left_out = any(one.labels.get(label, "") in values for label, values in what.without.items())
        if pod is not None and not left_out:
            out[pod].append(one)
    return out


def read_pods(
    metric: str,
    what: ResourceSeries,
    ask: PodAsk,
    found: Found,
    of_pod: Mapping[Pod, Sequence[Series]],
    stale_after_s: float,
) -> Reading:
    """What the pods of both arms used in the window, or why that is not known."""
    if found.missing is not None:
        return Reading(metric, found.missing.availability, None, found.missing.detail)
    rows: dict[Arm, tuple[PodValue, ...]] = {}
    said: list[str] = []
    for arm in (Arm.CANARY, Arm.STABLE):
        listed, without, unsupported = [], 0, 0
        for pod in found.pods[arm]:
            value, limit, refused = _value(what, of_pod.get(pod, ()), ask, stale_after_s)
            without += value is None
            unsupported += refused
            listed.append(PodValue("/".join(part for part in pod if part), value, limit, found.age_s.get(pod)))
        if without == len(listed):
            why = _nothing(what, arm, found.pods[arm], of_pod, unsupported, ask, stale_after_s)
            return Reading(metric, why[0], None, why[1][:DETAIL_CHARS])
        if without:
            said.append(f"{without} of {len(listed)} {arm} pods have no value")
        rows[arm] = tuple(listed)
    canary_n, stable_n = (found.pods_n.get(arm, len(rows[arm])) for arm in (Arm.CANARY, Arm.STABLE))
    if more_n := canary_n + stable_n - sum(map(len, rows.values())):
        said.append(f"{more_n} further pods are not looked at")
    values = PodValues(what.measures, what.unit, rows[Arm.CANARY], rows[Arm.STABLE], what.settled_s, canary_n, stable_n)
    return Reading(metric, Availability.ENOUGH, values, "; ".join(said)[:DETAIL_CHARS])


def _nothing(
    what: ResourceSeries,
    arm: Arm,
    pods: Sequence[Pod],
    of_pod: Mapping[Pod, Sequence[Series]],
    unsupported: int,
    ask: PodAsk,
    stale_after_s: float,
) -> tuple[Availability, str]:
    if not pods:
        return (
            Availability.NO_SERIES,
            f"{what.series} has no pods of the {arm} with {{{promql.selector(ask.labels[arm])}}}",
        )
    if unsupported:
        return Availability.NO_SERIES, f"{what.series} says of the {arm}'s pods that it is not supported"
    last = [_last_s(one.samples, ask.end_s) for pod in pods for one in of_pod.get(pod, ())]
    known = [at for at in last if at is not None]
    if not known:
        such = f"{what.pod_label}={promql.string(pods[0][1])}"
        return Availability.NO_SERIES, f"{what.series} has no series of the {arm}'s pods, such as {{{such}}}"
    if max(known) >= ask.end_s - stale_after_s:
        return Availability.NO_SERIES, f"{what.over or what.series} of the {arm}'s pods shows nothing in this window"
    age = f"{ask.end_s - max(known):.0f} s older than the window's end"
    return Availability.STALE, f"the newest sample of {what.series} of the {arm}'s pods is {age}"


def _value(
    what: ResourceSeries, series: Sequence[Series], ask: PodAsk, stale_after_s: float
) -> tuple[float | None, float | None, bool]:
    """(value, limit, whether the exporter says that it has none) of one pod."""
    by_name: dict[str, list[float]] = defaultdict(list)
    refused = False
    for one in _unreplaced(what, series, ask.end_s):
        good = [(at, v) for at, v in one.samples if v not in what.not_supported]
        refused = refused or len(good) < len(one.samples)
        number = (_grown if _counted(what, one) else _level)(good, ask.start_s, ask.end_s, stale_after_s)
        name = one.labels.get(NAME, what.series)
        if number is not None:
            by_name[name].append(number)
    values, over = by_name.get(what.series, []), by_name.get(what.over or "", [])
    if not values:
        return None, None, refused
    value = _together(what.pods_are, values)
    if what.over is not None:
        whole = _together(what.pods_are, over) if over else 0.0
        value = value / whole if whole > 0 else math.nan
    limits = [_together(what.pods_are, by_name[name]) for name in what.limit if by_name.get(name)]
    limit = what.scale * math.fsum(limits) if limits and len(limits) == len(what.limit) else None
    if len(what.limit) == 1 and 0 in by_name.get(what.limit[0], ()):
        limit = None
    value *= what.scale
    return (value if 0 <= value < math.inf else None), (limit if limit and math.isfinite(limit) else None), refused


def _counted(what: ResourceSeries, one: Series) -> bool:
    return what.counter and one.labels.get(NAME, what.series) in (what.series, what.over)


def _unreplaced(what: ResourceSeries, series: Sequence[Series], end_s: float) -> list[Series]:
    """Without gauges of containers in whose place there are newer ones. What a counter grew by before stays."""
    out: list[Series] = []
    newest: dict[tuple[tuple[str, str], ...], tuple[float, Series]] = {}
    for one in series:
        if not what.instance_labels or _counted(what, one):
            out.append(one)
            continue
        same = tuple(sorted((n, v) for n, v in one.labels.items() if n not in what.instance_labels))
        last_s = _last_s(one.samples, end_s)
        if last_s is not None and (same not in newest or last_s > newest[same][0]):
            newest[same] = (last_s, one)
    return [*out, *(one for _, one in newest.values())]


def _together(how: str, values: Sequence[float]) -> float:
    match how:
        case "max":
            return max(values)
        case "min":
            return min(values)
        case "mean":
            return math.fsum(values) / len(values)
        case _:
            return math.fsum(values)


def _level(samples: Samples, start_s: float, end_s: float, stale_after_s: float) -> float | None:
    """The mean of a gauge's samples in the window, or the last one before it; None where it is no longer sampled."""
    good = [(at, value) for at, value in samples if at <= end_s and math.isfinite(value)]
    if not good or max(good)[0] < end_s - stale_after_s:
        return None
    inside = [value for at, value in good if at > start_s]
    return math.fsum(inside) / len(inside) if inside else max(good)[1]


def _grown(samples: Samples, start_s: float, end_s: float, stale_after_s: float) -> float | None:
    """How much a counter grew in the window, fractions and all; a fall is a restart. None where it is not sampled.

    A counter that begins in the window counts from its first sample: what it had by then is of no known time.
    """
    good = sorted((at, value) for at, value in samples if at <= end_s and 0 <= value < math.inf)
    if not good or good[-1][0] < end_s - stale_after_s:
        return None
    grown, before = 0.0, good[0][1]
    for at, value in good[1:]:
        if at > start_s:
            grown += value - before if value >= before else value
        before = value
    return grown


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name, "") == value for name, value in wanted.items())


def _pod(labels: Mapping[str, str], pod_label: str, namespace_label: str | None) -> Pod | None:
    name = labels.get(pod_label, "")
    return (labels.get(namespace_label, "") if namespace_label else "", name) if name else None


def _last_s(samples: Samples, end_s: float) -> float | None:
    return max((at for at, value in samples if at <= end_s and not math.isnan(value)), default=None)


def _joined(asks: Sequence[PodAsk]) -> dict[str, set[str]]:
    """The label values of all arms; a label that only some name narrows nothing."""
    named = [set(labels) for ask in asks for labels in ask.labels.values()]
    out: dict[str, set[str]] = defaultdict(set)
    for label in set.intersection(*named):
        for ask in asks:
            out[label].update(labels[label] for labels in ask.labels.values())
    return out


def _of_pods(pods: Iterable[Pod], pod_label: str, namespace_label: str | None) -> dict[str, list[str]]:
    listed = sorted(set(pods))
    out = {pod_label: [name for _, name in listed]}
    if namespace_label is not None:
        out[namespace_label] = sorted({namespace for namespace, _ in listed})
    return out
