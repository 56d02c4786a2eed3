"""What pods use, judged beside the monitor: who sits in which slot, and one row of the statistics a resource.

The promise of the whole rollout is shared out: of the policy's rate ``RESOURCE_SHARE`` is for resources, in equal
parts, and the rest for the monitor; so P(a harmless release is ever rolled back) stays below the policy's rate by
Bonferroni's inequality, whatever the metrics have to do with each other. Evidence is told on the scale of the combined
evidence: a resource reaches the rollback line there when its own part of the rate is used up.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from analyzers.resources import (
    CANARY_PODS,
    LAST,
    LEAK,
    MARGINS,
    MEAN,
    PODS,
    RECENT,
    Measures,
    PodWindow,
    ResourceConfig,
    ResourceMonitor,
    ResourceVerdict,
)
from service.model.observation import Availability, PodValue, PodValues, Reading
from service.model.policy import MetricKind, MetricRule, Policy
from service.model.rollout import RolloutState
from service.model.stimulus import MetricEvidence, ResourceEvidence

RESOURCE_SHARE = 0.25
"""Part of a policy's rates that resources have, where it names any."""

TESTS = {MEAN: "mean", RECENT: "recent", LEAK: "slope", LAST: "jump"}

Case = tuple[RolloutState, bytes, Sequence[Reading], tuple[int, int], float | None]
"""(state, its resources as stored, readings, requests of canary and stable, the monitor's rollback line)."""


@dataclass(slots=True)
class Watched:
    """What is found of one rollout's pods. row : to be stored; None: as it was."""

    evidence: dict[str, MetricEvidence]
    log_evidence: float
    harmful: bool
    row: bytes | None


@dataclass(slots=True)
class _Seats:
    """Which pod has which slot of one resource, and since when it is known: None, from before the rollout."""

    measures: Measures
    settled_s: float
    weight: int | None = None
    """The canary's weight in percent in the window before."""
    pods: list[str] = field(default_factory=lambda: [""] * PODS)
    since_s: list[float | None] = field(default_factory=lambda: [None] * PODS)
    numbers: NDArray[np.float64] | None = None


def _nothing() -> NDArray[np.float64]:
    return np.full(PODS, np.nan)


@dataclass(slots=True)
class _Row:
    """One resource of one rollout on its way through a batch."""

    place: int
    rule: MetricRule
    reading: Reading | None
    seats: _Seats
    values: NDArray[np.float64] = field(default_factory=_nothing)
    age_s: NDArray[np.float64] = field(default_factory=_nothing)
    new: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(PODS, dtype=bool))
    limit: NDArray[np.float64] = field(default_factory=_nothing)
    load: tuple[float, float] = (math.nan, math.nan)
    stepped: bool = False


def watch_resources(cases: Sequence[Case]) -> list[Watched | None]:
    """What is found for each case, in order; None for a rollout without resources."""
    out: list[Watched | None] = [None] * len(cases)
    kept: dict[int, dict[str, _Seats]] = {}
    batches: dict[tuple[ResourceConfig, bool], list[_Row]] = defaultdict(list)
    for place, (state, packed, listed, requests, _) in enumerate(cases):
        rules = [m for m in state.policy.metrics if m.kind is MetricKind.RESOURCE]
        if not rules:
            continue
        readings = {reading.metric: reading for reading in listed}
        found = out[place] = Watched({}, -math.inf, False, None)
        try:
            seats = _unpack(packed)
        except (ValueError, TypeError, KeyError) as error:
            for rule in rules:
                found.evidence[rule.name] = _blind(rule, f"cannot be compared: its stored row: {error}")
            continue
        kept[place] = seats
        for rule in rules:
            reading = readings.get(rule.name)
            row = _row(place, state, rule, reading, seats, requests)
            if isinstance(row, MetricEvidence):
                found.evidence[rule.name] = row
                continue
            try:
                config = _config(state.policy, rule, row.seats)
            except ValueError as error:
                found.evidence[rule.name] = _blind(rule, f"cannot be compared: {error}")
                continue
            batches[(config, row.seats.numbers is None)].append(row)
    for (config, _), batch in batches.items():
        _judge(config, batch, cases, out)
    for place, seats in kept.items():
        watched = out[place]
        assert watched is not None
        watched.row = _pack(seats) if seats else None
    return out


def _config(policy: Policy, rule: MetricRule, seats: _Seats) -> ResourceConfig:
    rows = sum(m.kind is MetricKind.RESOURCE for m in policy.metrics)
    rate = RESOURCE_SHARE * policy.false_rollback / rows
    return ResourceConfig(seats.measures, rate, rule.margin, policy.planned_windows, policy.window_s, seats.settled_s)


def _row(
    place: int,
    state: RolloutState,
    rule: MetricRule,
    reading: Reading | None,
    seats: dict[str, _Seats],
    requests: tuple[int, int],
) -> _Row | MetricEvidence:
    """What the statistics are told, or evidence that says why they are not."""
    counts = reading.counts if reading is not None and reading.availability.usable else None
    if reading is None:
        return _blind(rule, "was not collected")
    if state.window < state.policy.warmup_windows:
        return _seen(rule, reading)
    if isinstance(counts, PodValues):
        if counts.measures not in MARGINS:
            return _blind(rule, f"pods cannot be compared by {counts.measures!r}")
        known = seats.setdefault(rule.name, _Seats(counts.measures, counts.settled_s))
        if known.measures != counts.measures:
            return _blind(rule, "the preset changed how its pods are compared since the comparison began")
    elif rule.name not in seats:
        return _seen(rule, reading)
    mine = seats[rule.name]
    assert state.windows_from is not None
    start_s = state.windows_from.timestamp() + state.window * state.policy.window_s
    row = _Row(place, rule, reading, mine, stepped=mine.weight not in (None, state.weight_seen))
    mine.weight = state.weight_seen
    if isinstance(counts, PodValues):
        first = mine.numbers is None
        _seat(row, counts.canary, slice(0, CANARY_PODS), start_s, state.policy.window_s, old=False)
        _seat(row, counts.stable, slice(CANARY_PODS, PODS), start_s, state.policy.window_s, old=first)
        serving_n = counts.serving_n
        if any(requests) and all(serving_n):
            row.load = (requests[0] / serving_n[0], requests[1] / serving_n[1])
    return row


def _seat(row: _Row, listed: Sequence[PodValue], arm: slice, start_s: float, window_s: float, *, old: bool) -> None:
    """Give each pod its slot: the one that it has, or one whose pod is gone. Pods beyond the slots are left out."""
    seats = row.seats
    places = range(arm.start, arm.stop)
    at = {seats.pods[i]: i for i in places if seats.pods[i]}
    names = {one.pod for one in listed}
    free = [i for i in places if seats.pods[i] not in names]
    for one in listed:
        place = at.get(one.pod)
        if place is None:
            if not free or one.value is None:
                continue
            place = free.pop(0)
            row.new[place] = True
            seats.pods[place], seats.since_s[place] = one.pod, None if old else start_s
        since = seats.since_s[place]
        row.values[place] = np.nan if one.value is None else one.value
        row.limit[place] = np.nan if one.limit is None else one.limit
        known_s = math.inf if since is None else start_s + window_s - since
        row.age_s[place] = known_s if one.age_s is None else one.age_s


def _judge(config: ResourceConfig, batch: Sequence[_Row], cases: Sequence[Case], out: list[Watched | None]) -> None:
    """Take a window into the rows of a batch; what cannot be restored blinds its own metric."""
    stored = [row.seats.numbers for row in batch if row.seats.numbers is not None]
    try:
        monitor = ResourceMonitor.restore(config, np.stack(stored)) if stored else ResourceMonitor(config, len(batch))
    except ValueError as error:
        if len(batch) > 1:
            for row in batch:
                _judge(config, [row], cases, out)
            return
        found = out[batch[0].place]
        assert found is not None
        found.evidence[batch[0].rule.name] = _blind(batch[0].rule, f"cannot be compared: its stored row: {error}")
        return
    verdict = monitor.observe(
        PodWindow(
            values=np.stack([row.values for row in batch]),
            age_s=np.stack([row.age_s for row in batch]),
            new=np.stack([row.new for row in batch]),
            load=np.array([row.load for row in batch]),
            limit=np.stack([row.limit for row in batch]),
            stepped=np.array([row.stepped for row in batch]),
        )
    )
    numbers = monitor.state()
    for r, row in enumerate(batch):
        row.seats.numbers = numbers[r]
        found = out[row.place]
        assert found is not None
        state, *_, log_rollback = cases[row.place]
        line = state.log_rollback if log_rollback is None else log_rollback
        # p = the row's rate is the line of the combined evidence.
        log_e = float(verdict.log_p[r]) + math.log(config.false_alarm) + line
        found.evidence[row.rule.name] = _evidence(config, row, verdict, r, log_e)
        found.log_evidence = max(found.log_evidence, log_e)
        found.harmful = found.harmful or bool(verdict.harmful[r])


def _evidence(config: ResourceConfig, row: _Row, verdict: ResourceVerdict, r: int, log_e: float) -> MetricEvidence:
    assert row.reading is not None
    seen = np.isfinite(row.values)
    changes: dict[str, object] = {
        "log_e": log_e,
        "safe": bool(verdict.safe[r]),
        "limit": config.tolerated,
        "effect": _known(verdict.effect[r]),
        "resource": ResourceEvidence(
            measures=config.measures,
            by="events" if config.counts else TESTS[int(verdict.by[r])],
            pods_canary=int(seen[:CANARY_PODS].sum()),
            pods_stable=int(seen[CANARY_PODS:].sum()),
            unit=row.reading.counts.unit if isinstance(row.reading.counts, PodValues) else "",
            slope_per_hour=_known(verdict.slope_per_hour[r]),
            to_limit_s=_known(verdict.to_limit_s[r]),
        ),
    }
    if config.counts:
        changes |= {
            "events_canary": int(verdict.events_canary[r]),
            "events_stable": int(verdict.events_stable[r]),
            "n_canary": int(verdict.exposure_canary[r]),
            "n_stable": int(verdict.exposure_stable[r]),
        }
    return _seen(row.rule, row.reading).model_copy(update=changes)


def _seen(rule: MetricRule, reading: Reading) -> MetricEvidence:
    """The window's reading, without evidence."""
    means = reading.counts.means if isinstance(reading.counts, PodValues) else (None, None)
    return MetricEvidence(
        metric=rule.name,
        availability=reading.availability,
        detail=reading.detail,
        value_canary=means[0],
        value_stable=means[1],
    )


def _blind(rule: MetricRule, why: str) -> MetricEvidence:
    return MetricEvidence(metric=rule.name, availability=Availability.NO_SERIES, detail=why[:500])


def _known(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _pack(seats: Mapping[str, _Seats]) -> bytes:
    """All resources of a rollout: a head in JSON, and their numbers one after the other; most slots are empty."""
    begun = {name: one for name, one in seats.items() if one.numbers is not None}
    head = json.dumps(
        [
            [name, one.measures, one.settled_s, one.weight, one.pods, one.since_s, len(_numbers(one))]
            for name, one in begun.items()
        ],
        separators=(",", ":"),
    ).encode()
    numbers = b"".join(np.ascontiguousarray(_numbers(one), dtype="<f8").tobytes() for one in begun.values())
    return zlib.compress(len(head).to_bytes(4, "little") + head + numbers, level=1)


def _numbers(seats: _Seats) -> NDArray[np.float64]:
    assert seats.numbers is not None
    return seats.numbers


def _unpack(packed: bytes) -> dict[str, _Seats]:
    """What ``_pack`` wrote; raises ValueError for anything else."""
    if not packed:
        return {}
    try:
        packed = zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(f"is cut off or altered ({error})") from None
    size = 4 + int.from_bytes(packed[:4], "little")
    out: dict[str, _Seats] = {}
    at = size
    for name, measures, settled_s, weight, pods, since_s, n in json.loads(packed[4:size]):
        if measures not in MARGINS or len(pods) != PODS or len(since_s) != PODS:
            raise ValueError(f"holds {name!r} in a form that this version does not write")
        numbers = np.frombuffer(packed, dtype="<f8", count=n, offset=at).astype(np.float64)
        out[name] = _Seats(measures, settled_s, weight, pods, since_s, numbers)
        at += 8 * n
    return out
