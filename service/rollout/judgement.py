"""The policy as pure functions: what a judged window means for the rollout. Evidence in, one move out.

Nothing here changes a state; ``machine`` carries the move out. Missing evidence is never a reason to go forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from service.model.names import Mode
from service.model.observation import Availability
from service.model.policy import BudgetEnd, Guard, OnHarm
from service.model.rollout import Phase, RolloutState, Waiting
from service.model.stimulus import GuardReading, MetricEvidence, WindowJudged

RESUME_BELOW_PAUSE = math.log(10 / 3)
"""A pause on leaning evidence ends when evidence is this far (natural log) below the pause line: at the default
lines, paused at 10 and resumed below 3, so that a value that hovers at the line does not flap."""

ALL_TRAFFIC = 100


class Move(StrEnum):
    """What to do with the rollout now."""

    CONTINUE = "continue"
    RESUME = "resume"
    ADVANCE = "advance"
    PROMOTE = "promote"
    PAUSE = "pause"
    HOLD = "hold"
    ROLLBACK = "rollback"


class Cause(StrEnum):
    """Why. Also the last part of the dedup key of a page."""

    HARM = "harm"
    LEANING = "leaning"
    GUARD = "guard"
    BLIND = "blind"
    INCONCLUSIVE = "inconclusive"
    LIMIT = "limit"
    PREFLIGHT = "preflight"
    SAFE = "safe"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Ruling:
    """One move with its cause."""

    move: Move
    cause: Cause = Cause.NONE
    waiting: Waiting | None = None
    guard: Guard | None = None
    value: float | None = None


CONTINUE = Ruling(Move.CONTINUE)


def guard_rows(state: RolloutState, readings: tuple[GuardReading, ...]) -> dict[str, int]:
    """Breaching windows in a row by guard. A window that could not be judged leaves the row as it is."""
    rows = dict(state.guard_rows)
    for reading in readings:
        if reading.breach is not None:
            rows[reading.guard] = rows.get(reading.guard, 0) + 1 if reading.breach else 0
    return rows


def blind_metric(state: RolloutState, evidence: tuple[MetricEvidence, ...]) -> MetricEvidence | None:
    """The first required metric that could not be looked at, or None.

    Little traffic is not blindness. At 100 % stable has no traffic, so only a store that is away or partial counts.
    """
    required = {m.name for m in state.policy.metrics if m.required}
    seen = {e.metric for e in evidence}
    for name in sorted(required - seen):
        return MetricEvidence(metric=name, availability=Availability.NO_SERIES, detail="was not collected")
    for one in evidence:
        if one.metric not in required or one.availability.usable:
            continue
        if state.weight_asked < ALL_TRAFFIC or one.availability in (Availability.AWAY, Availability.DEGRADED):
            return one
    return None


def unsafe_metrics(state: RolloutState) -> tuple[str, ...]:
    """Required metrics whose effect is not yet shown to be within its limit."""
    required = {m.name for m in state.policy.metrics if m.required}
    return tuple(sorted(required - {e.metric for e in state.evidence if e.safe}))


def baked(state: RolloutState, at: datetime) -> bool:
    """The windows up to ``at`` cover the present stage's bake time since the mesh confirmed its weight."""
    entered = state.stage.entered_at
    return entered is not None and at >= entered + timedelta(seconds=state.stages[state.stage.index].bake_s)


def exposed(state: RolloutState) -> bool:
    """Both arms have served the stage's minimum of requests; at 100 % only the canary can."""
    needed = state.stages[state.stage.index].min_requests
    stable_enough = state.weight_asked == ALL_TRAFFIC or state.stage.n_stable >= needed
    return state.stage.n_canary >= needed and stable_enough


def may_advance(state: RolloutState, at: datetime) -> bool:
    """Bake time, exposure and evidence of safety are all there, and nothing speaks against it."""
    all_safe = state.weight_asked == ALL_TRAFFIC or not unsafe_metrics(state)
    return (
        baked(state, at)
        and exposed(state)
        and all_safe
        and state.blind_since is None
        and not state.frozen
        and state.drift_since is None
        and state.log_evidence < state.log_pause
    )


def judge(state: RolloutState, window: WindowJudged) -> Ruling:
    """The move for ``state``, which already holds the window's evidence, exposure, guard rows and blindness.

    The order is the order of urgency: guards, harm, leaning, blindness, and only then going forward.
    """
    return (
        _guards(state, window)
        or _harm(state, window)
        or _leaning(state, window)
        or _blindness(state, window)
        or _forward(state, window)
        or CONTINUE
    )


def _guards(state: RolloutState, window: WindowJudged) -> Ruling | None:
    values = {reading.guard: reading.value for reading in window.guards}
    for guard in state.policy.guards:
        fired = state.guard_rows.get(guard.name, 0) >= guard.windows and guard.name not in state.confirmed_guards
        if fired:
            ruling = _retreat(state, window, guard.on_breach, Cause.GUARD)
            return Ruling(ruling.move, ruling.cause, ruling.waiting, guard, values.get(guard.name))
    return None


def _harm(state: RolloutState, window: WindowJudged) -> Ruling | None:
    if window.harmful and not state.harm_overruled:
        return _retreat(state, window, state.policy.on_harm, Cause.HARM)
    return None


def _retreat(state: RolloutState, window: WindowJudged, wish: OnHarm, cause: Cause) -> Ruling:
    """Roll back where policy, mode and the hourly limit allow it; otherwise ask a person to confirm it."""
    if wish is OnHarm.ROLLBACK and state.mode is not Mode.RECOMMEND:
        if window.rollbacks_left > 0 or state.mode is Mode.OBSERVE:
            return Ruling(Move.ROLLBACK, cause)
        cause = Cause.LIMIT
    if state.phase is Phase.PAUSED and state.waiting is Waiting.CONFIRM_ROLLBACK:
        return CONTINUE
    return Ruling(Move.PAUSE, cause, Waiting.CONFIRM_ROLLBACK)


def _leaning(state: RolloutState, window: WindowJudged) -> Ruling | None:
    if state.phase is Phase.PAUSED and state.waiting is Waiting.EVIDENCE:
        if state.log_evidence < state.log_pause - RESUME_BELOW_PAUSE:
            return Ruling(Move.RESUME, Cause.LEANING)
        if window.at >= state.phase_since + timedelta(seconds=state.policy.on_pause.budget_s):
            wish = OnHarm.ROLLBACK if state.policy.on_pause.then is BudgetEnd.ROLLBACK else OnHarm.PAUSE_AND_CONFIRM
            return _retreat(state, window, wish, Cause.LEANING)
        return CONTINUE
    moving = state.phase in (Phase.PROGRESSING, Phase.HELD) and not state.harm_overruled
    if moving and state.log_evidence >= state.log_pause:
        return Ruling(Move.PAUSE, Cause.LEANING, Waiting.EVIDENCE)
    return None


def _blindness(state: RolloutState, window: WindowJudged) -> Ruling | None:
    if state.blind_since is None:
        if state.phase is Phase.HELD and state.waiting is Waiting.DATA:
            return Ruling(Move.RESUME, Cause.BLIND)
        return None
    if state.phase is not Phase.PROGRESSING:
        return None
    if window.at >= state.blind_since + timedelta(seconds=state.policy.on_blind.budget_s):
        if state.policy.on_blind.then is BudgetEnd.ROLLBACK:
            return _retreat(state, window, OnHarm.ROLLBACK, Cause.BLIND)
        return Ruling(Move.HOLD, Cause.BLIND, Waiting.DATA)
    return CONTINUE


def _forward(state: RolloutState, window: WindowJudged) -> Ruling | None:
    at = window.end  # not the moment of judging: missed windows, judged late, count for the time that they show
    waits_for_safety = state.phase is Phase.HELD and state.waiting is Waiting.SAFETY
    if state.phase is not Phase.PROGRESSING and not waits_for_safety:
        return None
    if may_advance(state, at):
        last = state.stage.index == len(state.stages) - 1
        return Ruling(Move.PROMOTE if last else Move.ADVANCE, Cause.SAFE)
    if state.undecided_since is None or waits_for_safety:
        return None
    if at >= state.undecided_since + timedelta(seconds=state.policy.on_inconclusive.budget_s):
        if state.policy.on_inconclusive.then is BudgetEnd.ROLLBACK:
            return _retreat(state, window, OnHarm.ROLLBACK, Cause.INCONCLUSIVE)
        return Ruling(Move.HOLD, Cause.INCONCLUSIVE, Waiting.SAFETY)
    return None
