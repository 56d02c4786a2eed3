"""The view model: what a person or a tool is shown of a rollout. API, command line and page read the same values."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, TypeAlias

from service.model.gates.report import GateReport
from service.model.journal import JournalEntry
from service.model.names import Mode, RolloutId
from service.model.observation import Availability
from service.model.policy import Guard, MetricKind
from service.model.rollout import Decision, Phase, RolloutState, Waiting
from service.model.stimulus import MetricEvidence, Verb, WindowJudged
from service.model.value import Utc, Value
from service.telling import words


class Finding(StrEnum):
    """The four findings."""

    SAFE = "safe"
    UNDECIDED = "undecided"
    HARMFUL = "harmful"
    BLIND = "blind"


class ActionView(Value):
    """One thing that a person can order now, or why not."""

    verb: Verb
    allowed: bool
    why_not: str = ""
    needs_reason: bool


class StageView(Value):
    """One stage."""

    weight_percent: int
    state: Literal["done", "now", "later"]
    bake_s: float
    baked_s: float | None = None
    min_requests: int
    n_canary: int | None = None


class MetricView(Value):
    """One metric's row."""

    metric: str
    label: str
    required: bool
    finding: Finding
    leaning: bool
    sentence: str
    evidence: MetricEvidence


class GuardView(Value):
    """One guard's row."""

    name: str
    metric: str
    windows_needed: int
    windows_in_row: int
    fired: bool


GateState: TypeAlias = Literal["waiting", "passed", "failed", "could_not_look", "overruled", "unanswered"]


class GateView(Value):
    """One gate's row: what must be passed before any traffic."""

    gate: str
    state: GateState
    """``unanswered``: the rollout ended before there was an answer, for another reason."""
    report: GateReport | None
    """The last answer; None before there is one."""


class WindowView(Value):
    """One window of the evidence path."""

    window: int
    end: Utc
    log_evidence: float
    state: Literal["warmup", "judged", "late", "blind"]
    n_canary: int
    n_stable: int


class RowView(Value):
    """One line of a list."""

    id: RolloutId
    phase: Phase
    waiting: Waiting | None
    mode: Mode
    cluster: str
    namespace: str
    service: str
    version: str
    stable_version: str | None
    weight_asked: int
    weight_seen: int | None
    window: int
    evidence: str
    log_evidence: float
    sentence: str
    if_nothing: str
    since: Utc
    started_at: Utc
    ended_as: str = ""
    """How it ends or has ended, as ``refused before any traffic`` or ``superseded``; empty while it goes on."""


class RolloutView(RowView):
    """Everything of one rollout."""

    policy: str
    decision: Decision
    harmless_one_in: int
    log_pause: float
    log_rollback: float
    harm_so_far: str
    next_at: Utc | None
    last_window_end: Utc | None
    actions: tuple[ActionView, ...]
    stages: tuple[StageView, ...]
    metrics: tuple[MetricView, ...]
    guards: tuple[GuardView, ...]
    gates: tuple[GateView, ...]
    windows: tuple[WindowView, ...]
    journal: tuple[JournalEntry, ...]
    n_canary: int
    n_stable: int
    notes: tuple[str, ...]
    artifact: str
    frozen: bool


class Signal(Value):
    """One metric in the decision document."""

    name: str
    test: str
    value: float | None
    threshold: float | None
    verdict: Literal["pass", "fail", "unknown"]


class DecisionWindow(Value):
    """The last judged window in the decision document."""

    start: Utc | None
    end: Utc | None
    n_canary: int
    n_stable: int


class DecisionDocument(Value):
    """The current decision for a service, in one form that all deploy tools can read. Every key is always there."""

    id: str
    app: str
    revision: str
    decision: Decision
    status: Literal["RUNNING", "SUCCEEDED", "TERMINAL", "CANCELED"]
    progress: str
    score: float
    complete: bool
    reason: str
    data: Literal["enough", "low", "none", "stale"]
    window: DecisionWindow
    signals: tuple[Signal, ...]
    valid_until: Utc


def row_view(state: RolloutState) -> RowView:
    """One line of a list."""
    return RowView(**_row(state))


def _row(state: RolloutState) -> dict[str, object]:
    return {
        "id": state.id,
        "phase": state.phase,
        "waiting": state.waiting,
        "mode": state.mode,
        "cluster": state.service.cluster,
        "namespace": state.service.namespace,
        "service": state.service.name,
        "version": state.version,
        "stable_version": state.stable_version,
        "weight_asked": state.weight_asked,
        "weight_seen": state.weight_seen,
        "window": state.window,
        "evidence": words.evidence_number(state.log_evidence),
        "log_evidence": state.log_evidence,
        "sentence": state.reason,
        "if_nothing": words.if_nothing(state),
        "since": state.phase_since,
        "started_at": state.event_at,
        "ended_as": state.ended_as,
    }


def rollout_view(
    state: RolloutState, journal: tuple[JournalEntry, ...], windows: tuple[WindowJudged, ...], now: datetime
) -> RolloutView:
    """Everything of one rollout, as it stands at ``now``."""
    return RolloutView(
        **_row(state),
        policy=state.policy.name,
        decision=state.decision,
        harmless_one_in=words.one_in(state.log_evidence_max),
        log_pause=state.log_pause,
        log_rollback=state.log_rollback,
        harm_so_far=words.harm_so_far(state),
        notes=state.notes,
        next_at=state.wake_at,
        last_window_end=windows[-1].end if windows else None,
        actions=tuple(_action(state, verb) for verb in Verb),
        stages=tuple(_stage(state, i, now) for i in range(len(state.stages))),
        metrics=metric_views(state),
        guards=tuple(
            GuardView(
                name=g.name,
                metric=g.metric,
                windows_needed=g.windows,
                windows_in_row=state.guard_rows.get(g.name, 0),
                fired=_fired(state, g),
            )
            for g in state.policy.guards
        ),
        gates=gate_views(state),
        windows=tuple(_window(w) for w in windows),
        journal=journal,
        n_canary=state.n_canary,
        n_stable=state.n_stable,
        artifact=state.artifact,
        frozen=state.frozen,
    )


def metric_views(state: RolloutState) -> tuple[MetricView, ...]:
    """A row for each metric of the policy."""
    found = {e.metric: e for e in state.evidence}
    broken = {g.metric for g in state.policy.guards if _fired(state, g)}
    rows = []
    for rule in state.policy.metrics:
        unseen = MetricEvidence(metric=rule.name, availability=Availability.FEW)
        evidence = found.get(rule.name, unseen)
        rows.append(
            MetricView(
                metric=rule.name,
                label=words.label(rule),
                required=rule.required,
                finding=finding(state, evidence, guard_fired=rule.name in broken),
                leaning=evidence.log_e >= state.log_pause and rule.kind is not MetricKind.VALUE,
                sentence=words.metric_clause(evidence, rule),
                evidence=evidence,
            )
        )
    return tuple(rows)


def gate_views(state: RolloutState) -> tuple[GateView, ...]:
    """A row for each gate of the policy."""
    answers = {report.gate: report for report in state.gates}
    rows = []
    for rule in state.policy.preflight:
        report = answers.get(rule.gate)
        now: GateState
        if rule.gate in state.overruled_gates:
            now = "overruled"
        elif report is not None:
            now = report.finding.value
        else:
            now = "unanswered" if state.phase.terminal else "waiting"
        rows.append(GateView(gate=rule.gate, state=now, report=report))
    return tuple(rows)


def _fired(state: RolloutState, guard: Guard) -> bool:
    return state.guard_rows.get(guard.name, 0) >= guard.windows


def finding(state: RolloutState, evidence: MetricEvidence, *, guard_fired: bool = False) -> Finding:
    """What one metric says. guard_fired : whether it broke an absolute limit, which needs no comparison."""
    if not evidence.availability.usable:
        return Finding.BLIND
    if guard_fired or evidence.log_e >= state.log_rollback:
        return Finding.HARMFUL
    return Finding.SAFE if evidence.safe else Finding.UNDECIDED


def decision_document(
    state: RolloutState | None, *, app: str, now: datetime, window_s: float = 60.0
) -> DecisionDocument:
    """The current decision for a service; one that stays valid for three windows, so that a reader sees staleness."""
    if state is None:
        return DecisionDocument(
            id="",
            app=app,
            revision="",
            decision=Decision.CONTINUE,
            status="CANCELED",
            progress="no rollout",
            score=0.0,
            complete=False,
            reason=f"No rollout of {app} is known.",
            data="none",
            window=DecisionWindow(start=None, end=None, n_canary=0, n_stable=0),
            signals=(),
            valid_until=now + timedelta(seconds=3 * window_s),
        )
    window_s = state.policy.window_s
    end = start = None
    if state.windows_from is not None and state.window:
        end = state.windows_from + timedelta(seconds=state.window * window_s)
        start = end - timedelta(seconds=window_s)
    status: dict[Phase, Literal["SUCCEEDED", "TERMINAL", "CANCELED"]] = {
        Phase.PROMOTED: "SUCCEEDED",
        Phase.ROLLED_BACK: "TERMINAL",
        Phase.ENDED: "CANCELED",
    }
    metrics = metric_views(state)
    safe_n = sum(m.finding is Finding.SAFE for m in metrics if m.required)
    required_n = sum(m.required for m in metrics)
    return DecisionDocument(
        id=state.id,
        app=app,
        revision=state.version,
        decision=state.decision,
        status=status.get(state.phase, "RUNNING"),
        progress=f"stage {state.stage.index + 1} of {len(state.stages)}, window {state.window}",
        score=round(100.0 * safe_n / required_n, 1),
        complete=state.phase.terminal,
        reason=state.reason,
        data=_data(state, metrics, end, now),
        window=DecisionWindow(start=start, end=end, n_canary=state.n_canary, n_stable=state.n_stable),
        signals=tuple(
            Signal(
                name=m.metric,
                test=_TESTS[rule.kind],
                value=m.evidence.effect,
                threshold=m.evidence.limit,
                verdict=_VERDICTS[m.finding],
            )
            for m, rule in zip(metrics, state.policy.metrics, strict=True)
        ),
        valid_until=(max(end or state.phase_since, state.phase_since) + timedelta(seconds=3 * window_s))
        if not state.phase.terminal
        else now + timedelta(days=1),
    )


_TESTS = {
    MetricKind.LATENCY: "mann-whitney",
    MetricKind.ERRORS: "cusum",
    MetricKind.PREDICTIONS: "kl",
    MetricKind.RESOURCE: "pod-t",
    MetricKind.VALUE: "guard",
}
_VERDICTS: dict[Finding, Literal["pass", "fail", "unknown"]] = {
    Finding.SAFE: "pass",
    Finding.HARMFUL: "fail",
    Finding.UNDECIDED: "unknown",
    Finding.BLIND: "unknown",
}


def _data(
    state: RolloutState, metrics: tuple[MetricView, ...], end: datetime | None, now: datetime
) -> Literal["enough", "low", "none", "stale"]:
    if state.window == 0 or not state.evidence:
        return "none"
    required = [m for m in metrics if m.required]
    if any(m.finding is Finding.BLIND for m in required):
        availabilities = {m.evidence.availability for m in required}
        return "stale" if Availability.STALE in availabilities else "none"
    if end is not None and now > end + timedelta(seconds=3 * state.policy.window_s) and not state.phase.terminal:
        return "stale"
    return "low" if any(m.evidence.availability is Availability.FEW for m in required) else "enough"


def _action(state: RolloutState, verb: Verb) -> ActionView:
    why_not = ""
    moving = state.phase.judged and state.windows_from is not None
    last = state.stage.index == len(state.stages) - 1
    if state.mode is Mode.OBSERVE:
        why_not = "observe mode touches nothing"
    elif state.phase.terminal:
        why_not = f"the rollout is {state.phase.value.replace('_', ' ')}"
    elif verb is Verb.PAUSE and state.phase not in (Phase.STARTING, Phase.PROGRESSING, Phase.HELD):
        why_not = f"it is {state.phase.value.replace('_', ' ')}"
    elif verb is Verb.RESUME and state.phase not in (Phase.PAUSED, Phase.HELD):
        why_not = "it is neither paused nor held"
    elif verb is Verb.ADVANCE and last:
        why_not = "this is the last stage; promote instead"
    elif verb in (Verb.ADVANCE, Verb.PROMOTE) and not moving:
        why_not = "the first weight is not confirmed yet"
    return ActionView(verb=verb, allowed=not why_not, why_not=why_not, needs_reason=verb is not Verb.ROLLBACK)


def _stage(state: RolloutState, index: int, now: datetime) -> StageView:
    stage = state.stages[index]
    here = state.stage.index
    done = index < here or state.phase is Phase.PROMOTED
    current = index == here and not done
    entered = state.stage.entered_at
    return StageView(
        weight_percent=state.stage_weight(index),
        state="done" if done else "now" if current else "later",
        bake_s=stage.bake_s,
        baked_s=max(0.0, (now - entered).total_seconds()) if current and entered else None,
        min_requests=stage.min_requests,
        n_canary=state.stage.n_canary if current else None,
    )


def _window(window: WindowJudged) -> WindowView:
    blind = any(not e.availability.usable for e in window.evidence)
    kind: Literal["warmup", "judged", "late", "blind"] = (
        "warmup" if window.warmup else "blind" if blind else "late" if window.late else "judged"
    )
    evidence = window.log_evidence if math.isfinite(window.log_evidence) else 0.0
    return WindowView(
        window=window.window,
        end=window.end,
        log_evidence=evidence,
        state=kind,
        n_canary=window.n_canary,
        n_stable=window.n_stable,
    )
