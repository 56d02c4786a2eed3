"""The state machine: every change of phase happens here, and only along ``TRANSITIONS``.

``step`` takes a state and one stimulus. A stimulus that the table does not name for the phase is refused: nothing
changes, and the answer says why. A handler that left the table would be a bug, so it raises instead of going on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from service.model.rollout import Decision, Phase, RolloutState
from service.model.stimulus import (
    CandidateReady,
    DriftSeen,
    GateAnswered,
    PersonActed,
    ReleaseRequested,
    ReleaseWithdrawn,
    StableUpgraded,
    Stimulus,
    TimePassed,
    WeightsRefused,
    WeightsWritten,
    WindowJudged,
)
from service.rollout.bus import on_requested, on_stable_upgraded, on_withdrawn
from service.rollout.mesh import on_drift, on_refused, on_written
from service.rollout.people import on_person, on_time
from service.rollout.starting import look, on_gate, on_ready
from service.rollout.turn import Step, Turn
from service.rollout.windows import on_window
from service.telling import words

P = Phase
_BACK = frozenset({P.ROLLING_BACK, P.ROLLED_BACK, P.ENDED})
_JUDGED = frozenset({P.PROGRESSING, P.PAUSED, P.HELD, P.PROMOTING, P.PROMOTED, P.AWAITING_STABLE}) | _BACK

TRANSITIONS: Mapping[Phase, Mapping[type[Stimulus], frozenset[Phase]]] = {
    P.STARTING: {
        CandidateReady: frozenset({P.PROGRESSING}),
        GateAnswered: frozenset({P.PROGRESSING, P.HELD}) | _BACK,
        PersonActed: frozenset({P.PAUSED}) | _BACK,
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
        TimePassed: frozenset({P.STARTING, P.HELD}),
    },
    P.PROGRESSING: {
        WindowJudged: _JUDGED,
        WeightsWritten: frozenset({P.PROGRESSING}),
        WeightsRefused: frozenset({P.HELD}),
        DriftSeen: frozenset({P.PROGRESSING, P.HELD}),
        PersonActed: _JUDGED,
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
    },
    P.PAUSED: {
        WindowJudged: _JUDGED,
        CandidateReady: frozenset({P.PAUSED}),
        GateAnswered: frozenset({P.PAUSED}) | _BACK,
        WeightsWritten: frozenset({P.PAUSED}),
        WeightsRefused: frozenset({P.HELD}),
        DriftSeen: frozenset({P.PAUSED, P.HELD}),
        PersonActed: _JUDGED | {P.STARTING},
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
        StableUpgraded: frozenset({P.PAUSED}),
    },
    P.HELD: {
        WindowJudged: _JUDGED,
        CandidateReady: frozenset({P.HELD, P.STARTING, P.PROGRESSING}),
        GateAnswered: frozenset({P.HELD, P.STARTING, P.PROGRESSING}) | _BACK,
        WeightsWritten: frozenset({P.HELD, P.PROGRESSING, P.PROMOTING, P.PROMOTED, P.AWAITING_STABLE}),
        WeightsRefused: frozenset({P.HELD}),
        DriftSeen: frozenset({P.HELD}),
        PersonActed: _JUDGED | {P.STARTING},
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
        StableUpgraded: frozenset({P.HELD}),
    },
    P.ROLLING_BACK: {
        WeightsWritten: frozenset({P.ROLLING_BACK, P.ROLLED_BACK, P.ENDED}),
        WeightsRefused: frozenset({P.ROLLING_BACK, P.ROLLED_BACK, P.ENDED}),
        TimePassed: frozenset({P.ROLLING_BACK}),
        PersonActed: frozenset({P.ROLLING_BACK}),
        ReleaseWithdrawn: frozenset({P.ROLLING_BACK}),
        ReleaseRequested: frozenset({P.ROLLING_BACK}),
    },
    P.PROMOTING: {
        WeightsWritten: frozenset({P.PROMOTING, P.PROMOTED, P.AWAITING_STABLE}),
        WeightsRefused: frozenset({P.HELD}),
        TimePassed: frozenset({P.PROMOTING}),
        PersonActed: _BACK,
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
        StableUpgraded: frozenset({P.PROMOTING}),
    },
    P.AWAITING_STABLE: {
        StableUpgraded: frozenset({P.PROMOTING, P.PROMOTED}),
        DriftSeen: frozenset({P.AWAITING_STABLE}),
        WeightsWritten: frozenset({P.AWAITING_STABLE}),
        WeightsRefused: frozenset({P.AWAITING_STABLE}),
        PersonActed: _BACK,
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
    },
    P.ROLLED_BACK: {},
    P.PROMOTED: {},
    P.ENDED: {},
}
"""Phase -> stimulus -> the phases that may come of it. What is not named here is refused."""


class IllegalTransition(AssertionError):
    """A handler left the table: a bug, told with the story that led to it."""


def begin(request: ReleaseRequested) -> Step:
    """A new rollout, owing a look at all that the candidate must show (or its first weight where that is nothing)."""
    state = RolloutState(
        id=request.rollout,
        service=request.service,
        version=request.version,
        stable_version=request.stable_version,
        artifact=request.artifact,
        event_source=request.event_source,
        event_id=request.event_id,
        event_at=request.at,
        chain_id=request.chain_id,
        traceparent=request.traceparent,
        policy=request.policy,
        place=request.place,
        criticality=request.criticality,
        first_weight_percent=request.first_weight_percent,
        mode=request.mode,
        phase=P.STARTING,
        phase_since=request.at,
        fence=request.fence_floor,
        answered_fence=request.fence_floor,
        answered_percent=0,
        log_pause=math.log(1 / request.policy.false_pause),
        log_rollback=math.log(1 / request.policy.false_rollback),
        wake_at=request.at + timedelta(seconds=request.policy.ready_timeout_s),
        reason="",
        ready=request.place.readiness is None,
    )
    turn = Turn(state.model_copy(update={"reason": words.waiting_sentence(state)}), request)
    change = f"{state.stable_version or 'stable'} -> {state.version}"
    turn.tell(
        "started",
        f"Release {change} starts under policy {state.policy.name}.",
        words.passed_over_sentence(request.passed_over),
    )
    turn.decide(Decision.CONTINUE, "Started.")
    turn.note_change(f"canary release {change} starts")
    look(turn, "No readiness check is set for this target." if state.ready else "")
    return turn.sealed()


def step(state: RolloutState, stimulus: Stimulus) -> Step:
    """The state after ``stimulus``, with what is owed. Refused stimuli leave the state as it is."""
    allowed = TRANSITIONS[state.phase].get(type(stimulus))
    if allowed is None:
        return Step(state, False, f"Nothing was changed: a {state.phase} rollout takes no {stimulus.type}.")
    turn = Turn(state, stimulus)
    refusal = _HANDLERS[type(stimulus)](turn, stimulus)
    if refusal is not None:
        return Step(state, False, refusal)
    after = turn.state.phase
    if after is not state.phase and after not in allowed:
        raise IllegalTransition(f"{state.phase} -> {after} by {stimulus.to_json()} in {state.id} at {state.revision}")
    if after.terminal:
        turn.drops |= {"check_ready", "run_gate", "set_weights"}
        return turn.sealed(begin=_successor(turn.state, stimulus.at))
    return turn.sealed()


def _successor(state: RolloutState, at: datetime) -> ReleaseRequested | None:
    """The next release, whose time-outs run from now: it may have waited long for this rollout's end."""
    if state.successor is None:
        return None
    fence_floor = max(state.fence, state.successor.fence_floor)
    return state.successor.model_copy(update={"at": at, "fence_floor": fence_floor})


_Handler: TypeAlias = Callable[[Turn, Any], str | None]

_HANDLERS: Mapping[type[Stimulus], _Handler] = {
    CandidateReady: on_ready,
    GateAnswered: on_gate,
    WeightsWritten: on_written,
    WeightsRefused: on_refused,
    DriftSeen: on_drift,
    WindowJudged: on_window,
    ReleaseWithdrawn: on_withdrawn,
    ReleaseRequested: on_requested,
    StableUpgraded: on_stable_upgraded,
    PersonActed: on_person,
    TimePassed: on_time,
}
