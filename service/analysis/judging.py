"""Judging: readings of many rollouts in, one verdict each out. Pure: arrays over rollouts, no Python loop over buckets.

Rollouts that share the statistics' settings and the layout form one batch; a batch is one call of the library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analyzers import (
    Categories,
    Counts,
    Histogram,
    Margins,
    Monitor,
    MonitorConfig,
    Past,
    Prior,
    Window,
    learn_prior,
    output_name,
    past_of,
    warnings,
)
from service.analysis.resources import RESOURCE_SHARE, Watched, watch_resources
from service.analysis.rows import OTHER, Layout, layout_of, pack, resources_in, unpack
from service.model.names import ServiceKey
from service.model.observation import (
    ArmValues,
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    LineCounts,
    PodValues,
    Reading,
)
from service.model.policy import Guard, MetricKind, Policy
from service.model.rollout import RolloutState
from service.model.stimulus import GuardReading, MetricEvidence

DEFAULT_MARGINS = Margins()

BY_ARM = frozenset({MetricKind.LATENCY, MetricKind.ERRORS, MetricKind.PREDICTIONS})
"""Kinds that are compared between the arms by the monitor."""


@dataclass(slots=True)
class Judged:
    """What the statistics say of one rollout's window."""

    evidence: tuple[MetricEvidence, ...]
    guards: tuple[GuardReading, ...]
    n_canary: int
    n_stable: int
    warmup: bool = False
    log_evidence: float = 0.0
    log_pause: float | None = None
    log_rollback: float | None = None
    harmful: bool = False
    notes: tuple[str, ...] = ()
    monitor: bytes | None = None


@dataclass(slots=True)
class _Case:
    """One rollout on its way through a batch."""

    place: int
    state: RolloutState
    readings: dict[str, Reading]
    row: NDArray[np.float64] | None
    past: Sequence[bytes]
    """Monitor rows of the service's promoted rollouts, the newest first; only looked at where ``row`` is None."""
    refused: dict[str, str] = field(default_factory=dict)


def compared_metrics(policy: Policy) -> frozenset[str]:
    """Names of the metrics that are compared between the arms; the others are of pods, or serve guards only."""
    return frozenset(m.name for m in policy.metrics if m.kind in BY_ARM)


def monitor_config(policy: Policy, layout: Layout) -> MonitorConfig:
    """The library's settings for a policy, limited to the metrics that the layout holds."""
    kinds, outputs = _kinds(layout), _outputs(layout)
    margins = {m.kind.value: m.margin for m in policy.metrics if m.margin is not None and m.kind in BY_ARM}
    # The promise is for the whole rollout: what is said of pods has a part of the rates of its own.
    left = 1.0 - RESOURCE_SHARE * any(m.kind is MetricKind.RESOURCE for m in policy.metrics)
    weights = {str(m.kind): m.weight for m in policy.metrics if m.weight is not None and m.kind.value in kinds}
    return MonitorConfig(
        false_rollback=left * policy.false_rollback,
        false_pause=left * policy.false_pause,
        planned_windows=policy.planned_windows,
        margins=Margins(
            latency=margins.get("latency", DEFAULT_MARGINS.latency),
            errors=margins.get("errors", DEFAULT_MARGINS.errors),
            predictions=margins.get("predictions", DEFAULT_MARGINS.predictions),
        ),
        weights=weights or None,
        warmup_windows=policy.warmup_windows,
        required=frozenset(
            outputs.get(m.name, m.name)
            for m in policy.metrics
            if m.required and m.name in (outputs if m.kind is MetricKind.PREDICTIONS else kinds)
        ),
    )


def judge_windows(
    cases: Sequence[tuple[RolloutState, bytes, Sequence[Reading]]],
    past: Mapping[ServiceKey, Sequence[bytes]] | None = None,
) -> list[Judged]:
    """A verdict for each (state, monitor row, readings), in order.

    past : monitor rows of promoted rollouts of the services whose comparison begins now, the newest first.
    """
    judged: list[Judged | None] = [None] * len(cases)
    batches: dict[tuple[MonitorConfig, Layout, bool], list[_Case]] = {}
    for place, (state, packed, listed) in enumerate(cases):
        readings = {reading.metric: reading for reading in listed}
        try:
            layout, row = unpack(packed)
        except ValueError as error:
            judged[place] = _uncomparable(state, readings, f"its stored row: {error}")
            continue
        if row is None:
            required = frozenset(m.name for m in state.policy.metrics if m.required)
            layout = layout_of(readings, compared_metrics(state.policy), required)
        if layout.empty or state.weight_asked == 100:
            judged[place] = _uncompared(state, readings)
        else:
            key = (monitor_config(state.policy, layout), layout, row is None)
            finished = (past or {}).get(state.service, ())
            batches.setdefault(key, []).append(_Case(place, state, readings, row, finished))
    for (config, layout, _), batch in batches.items():
        for case, verdict in zip(batch, _verdicts(config, layout, batch), strict=True):
            judged[case.place] = verdict
    found = [one for one in judged if one is not None]
    # At 100 % stable's pods serve nobody, so there is no equal load to compare at.
    both = [place for place, (state, _, _) in enumerate(cases) if state.weight_asked != 100]
    watched = watch_resources(
        [
            (state, _resources(packed), listed, _requests({r.metric: r for r in listed}), found[place].log_rollback)
            for place, (state, packed, listed) in zip(both, (cases[place] for place in both), strict=True)
        ]
    )
    for place, seen in zip(both, watched, strict=True):
        if seen is not None:
            found[place] = _with_resources(found[place], seen, cases[place][1])
    return found


def _resources(packed: bytes) -> bytes:
    with contextlib.suppress(ValueError, TypeError):
        return resources_in(packed)
    return b""


def _with_resources(judged: Judged, watched: Watched, packed: bytes) -> Judged:
    """The verdict with what was found of pods.

    Harm counts. What only leans is shown and does not pause: looks at pods lie hours apart, so nothing would end such a
    pause but its budget, and the budget's end is no part of what resources may spend of the promise.
    """
    row = judged.monitor
    if watched.row is not None:
        # A row that cannot be read is left as it is.
        with contextlib.suppress(ValueError, TypeError):
            row = pack(*unpack(judged.monitor or packed), watched.row)
    return replace(
        judged,
        evidence=tuple(watched.evidence.get(one.metric, one) for one in judged.evidence),
        log_evidence=max(judged.log_evidence, watched.log_evidence) if watched.harmful else judged.log_evidence,
        harmful=judged.harmful or watched.harmful,
        monitor=row,
    )


def _verdicts(config: MonitorConfig, layout: Layout, batch: Sequence[_Case]) -> list[Judged]:
    """The batch's verdicts; what the library refuses (a row of another version, odd counts) blinds its own rollout."""
    try:
        return _judge_batch(config, layout, batch)
    except (ValueError, OverflowError) as error:
        if len(batch) == 1:
            return [_uncomparable(batch[0].state, batch[0].readings, str(error))]
        return [one for case in batch for one in _verdicts(config, layout, [case])]


def _uncompared(state: RolloutState, readings: Mapping[str, Reading]) -> Judged:
    """Nothing to compare: before the first readings, or at 100 % where stable has no traffic. Guards stand watch."""
    before = {e.metric: e for e in state.evidence}
    evidence = tuple(
        before.get(m.name, MetricEvidence(metric=m.name, availability=Availability.NO_SERIES)).model_copy(
            update=_seen(readings.get(m.name))
        )
        for m in state.policy.metrics
    )
    n_canary, n_stable = _requests(readings)
    return Judged(
        evidence,
        _guards(state, readings),
        n_canary,
        n_stable,
        warmup=state.window < state.policy.warmup_windows,
        log_evidence=state.log_evidence,
    )


def _uncomparable(state: RolloutState, readings: Mapping[str, Reading], why: str) -> Judged:
    """A window that cannot be compared: every metric is blind, and says why."""
    blind = {name: Reading(name, Availability.NO_SERIES, None, f"cannot be compared: {why}"[:500]) for name in readings}
    return _uncompared(state, blind)


def _judge_batch(config: MonitorConfig, layout: Layout, batch: Sequence[_Case]) -> list[Judged]:
    kept = [case.row for case in batch if case.row is not None]  # a batch begins as a whole or goes on as a whole
    monitor = (
        Monitor.restore(config, np.stack(kept))
        if kept
        else Monitor(config, len(batch), prior=[learned(case.past) for case in batch])
    )
    verdict = monitor.observe(_window(layout, batch))
    outputs = _outputs(layout)
    rows = monitor.state()
    _, p99_low, p99_high = monitor.quantiles(0.99)
    out: list[Judged] = []
    for r, case in enumerate(batch):
        evidence = []
        for rule in case.state.policy.metrics:
            reading = case.readings.get(rule.name)
            changes = _seen(reading)
            if rule.name in case.refused:
                changes = {"availability": Availability.NO_SERIES, "detail": case.refused[rule.name]}
            of_metric = verdict.evidence.get(outputs.get(rule.name, rule.name))
            if of_metric is not None:
                changes |= _numbers(of_metric, r)
            if rule.kind is MetricKind.LATENCY:
                ends = {"p99_low": float(p99_low[r]), "p99_high": float(p99_high[r])}
                changes |= {name: end for name, end in ends.items() if np.isfinite(end)}
            limit = _limit(config, rule.kind)
            evidence.append(
                MetricEvidence(metric=rule.name, limit=limit, **({"availability": Availability.NO_SERIES} | changes))
            )
        n_canary, n_stable = _requests(case.readings)
        out.append(
            Judged(
                tuple(evidence),
                _guards(case.state, case.readings),
                n_canary,
                n_stable,
                warmup=case.state.window < case.state.policy.warmup_windows,
                log_evidence=float(verdict.log_evidence[r]),
                log_pause=float(np.broadcast_to(verdict.log_threshold_pause, len(batch))[r]),
                log_rollback=float(np.broadcast_to(verdict.log_threshold_rollback, len(batch))[r]),
                harmful=bool(verdict.rollback[r]),
                notes=warnings(monitor, verdict, r),
                monitor=pack(layout, rows[r]),
            )
        )
    return out


def learned(rows: Sequence[bytes]) -> Prior:
    """What the rows of past good rollouts, the newest first, teach; rows that this version cannot read are left out."""
    past: list[Past] = []
    for packed in reversed(rows):
        with contextlib.suppress(ValueError):
            _, row = unpack(packed)
            if row is not None:
                past += past_of(row[None])
    return learn_prior(past)


def _numbers(of_metric: object, r: int) -> dict[str, object]:
    """One rollout's numbers out of the library's arrays; NaN (nothing known) becomes None."""
    out: dict[str, object] = {}
    for name in ("log_e", "effect", "effect_low", "effect_high", "cusum", "cusum_line"):
        array = getattr(of_metric, name, None)
        if array is not None and np.isfinite(array[r]):
            out[name] = float(array[r])
    for name in ("n_canary", "n_stable", "events_canary", "events_stable"):
        array = getattr(of_metric, name, None)
        if array is not None:
            out[name] = int(array[r])
    safe = getattr(of_metric, "safe", None)
    out["safe"] = bool(safe[r]) if safe is not None else False
    return out


def _kinds(layout: Layout) -> frozenset[str]:
    held = {"latency": layout.edges_s is not None, "errors": layout.errors, "predictions": bool(layout.by_output)}
    return frozenset(name for name, there in held.items() if there)


def _outputs(layout: Layout) -> dict[str, str]:
    """Metrics that are compared as predictions, by what the library calls them."""
    return {name: output_name(place) for place, (name, _) in enumerate(layout.by_output)}


def _limit(config: MonitorConfig, kind: MetricKind) -> float | None:
    return float(getattr(config.margins, kind.value)) if kind in BY_ARM else None


def _window(layout: Layout, batch: Sequence[_Case]) -> Window:
    """The batch's counts as arrays; zeros stand for a rollout whose metric was not collected."""
    rollouts = len(batch)
    latency = errors = None
    if layout.edges_s is not None:
        hist = np.zeros((2, rollouts, len(layout.edges_s) + 1), dtype=np.int64)
        for r, case in enumerate(batch):
            counts = _usable(case, "latency")
            if not isinstance(counts, HistogramCounts):
                continue
            if counts.edges_s != layout.edges_s:
                case.refused["latency"] = "its buckets changed since the comparison began"
                continue
            hist[0, r], hist[1, r] = counts.canary, counts.stable
        latency = Histogram(edges=np.asarray(layout.edges_s), canary=hist[0], stable=hist[1])
    if layout.errors:
        four = np.zeros((4, rollouts), dtype=np.int64)
        for r, case in enumerate(batch):
            counts = _usable(case, "errors")
            if isinstance(counts, FailureCounts):
                four[:, r] = (counts.canary, counts.canary_total, counts.stable, counts.stable_total)
        errors = Counts(canary=four[0], canary_total=four[1], stable=four[2], stable_total=four[3])
    outputs: list[Categories] = []
    for metric, classes in layout.by_output:
        cats = np.zeros((2, rollouts, len(classes)), dtype=np.int64)
        index = {name: i for i, name in enumerate(classes)}
        for r, case in enumerate(batch):
            counts = _usable(case, metric)
            if isinstance(counts, CategoryCounts):
                columns = [index.get(name, index[OTHER]) for name in counts.names]
                np.add.at(cats[0, r], columns, counts.canary)
                np.add.at(cats[1, r], columns, counts.stable)
        outputs.append(Categories(canary=cats[0], stable=cats[1]))
    weight = np.array([_share_asked(case.state) for case in batch])
    first = outputs[0] if outputs else None
    return Window(latency=latency, errors=errors, predictions=first, outputs=tuple(outputs[1:]), weight=weight)


def _share_asked(state: RolloutState) -> float:
    """The canary's share of requests that stands on the mesh, NaN where it is not known."""
    return np.nan if state.weight_seen is None else state.weight_seen / 100


def _usable(case: _Case, metric: str) -> object:
    reading = case.readings.get(metric)
    return reading.counts if reading is not None and reading.availability.usable else None


def _seen(reading: Reading | None) -> dict[str, object]:
    """Availability and the last window's values of one metric."""
    if reading is None:
        return {"availability": Availability.NO_SERIES, "detail": "was not collected"}
    out: dict[str, object] = {"availability": reading.availability, "detail": reading.detail}
    match reading.counts:
        case FailureCounts(canary=x, canary_total=n, stable=y, stable_total=m):
            out |= {"value_canary": x / n if n else None, "value_stable": y / m if m else None}
        case ArmValues(canary=canary, stable=stable):
            out |= {"value_canary": canary, "value_stable": stable}
        case LineCounts(names=names, canary=lines, stable=known):
            out |= {"value_canary": float(sum(lines)), "value_stable": float(sum(known)) if names else None}
        case PodValues() as pods:
            canary, stable = pods.means
            out |= {"value_canary": canary, "value_stable": stable}
        case _:
            pass
    return out


def _requests(readings: Mapping[str, Reading]) -> tuple[int, int]:
    """Requests of the window by arm: the largest count that any metric saw."""
    canary = stable = 0
    for reading in readings.values():
        match reading.counts:
            case FailureCounts(canary_total=n, stable_total=m):
                canary, stable = max(canary, n), max(stable, m)
            case HistogramCounts(canary=n, stable=m) | CategoryCounts(canary=n, stable=m):
                canary, stable = max(canary, sum(n)), max(stable, sum(m))
            case _:
                pass
    return canary, stable


def _guards(state: RolloutState, readings: Mapping[str, Reading]) -> tuple[GuardReading, ...]:
    out = []
    for guard in state.policy.guards:
        # At 100 % stable serves nobody, so what it does not say tells nothing of the canary.
        alone = guard.only_on_canary and state.weight_asked == 100
        reading = GuardReading(guard=guard.name, breach=None) if alone else _guard(guard, readings.get(guard.metric))
        out.append(reading)
    return tuple(out)


def _guard(guard: Guard, reading: Reading | None) -> GuardReading:
    """Whether the canary is past the guard's limit in this window; None where that cannot be said."""
    canary: float | None = None
    stable: float | None = None
    match reading.counts if reading is not None and reading.availability.usable else None:
        case FailureCounts(canary=x, canary_total=n, stable=y, stable_total=m) if n >= guard.min_requests:
            canary, stable = x / n, (y / m if m else None)
        case ArmValues(canary=canary, stable=stable):
            pass
        case LineCounts() as lines if guard.only_on_canary:
            canary, stable = float(sum(lines.only_on_canary())), 0.0
        case LineCounts(canary=of_canary, stable=of_stable):
            canary, stable = float(sum(of_canary)), float(sum(of_stable))
        case PodValues() as pods:
            canary, stable = pods.means
        case _:
            pass
    unknown = (guard.times_stable_above is not None and not stable) or (guard.only_on_canary and stable is None)
    if canary is None or unknown:
        return GuardReading(guard=guard.name, breach=None)
    breach = (
        (guard.only_on_canary and canary > 0 and stable == 0)
        or (guard.above is not None and canary > guard.above)
        or (guard.below is not None and canary < guard.below)
        or (guard.times_stable_above is not None and stable is not None and canary > guard.times_stable_above * stable)
    )
    return GuardReading(guard=guard.name, breach=breach, value=canary)
