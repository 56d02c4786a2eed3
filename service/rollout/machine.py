"""The state machine: every change of phase happens here, and only along ``TRANSITIONS``.

``step`` takes a state and one stimulus. A stimulus that the table does not name for the phase is refused: nothing
changes, and the answer says why. A handler that left the table would be a bug, so it raises instead of going on.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from service.model.instruction import CheckReady, Severity
from service.model.names import Mode
from service.model.rollout import Decision, Phase, RolloutState, StageProgress, Waiting
from service.model.stimulus import (
    CandidateReady,
    DriftSeen,
    EventKind,
    PersonActed,
    ReleaseRequested,
    ReleaseWithdrawn,
    StableUpgraded,
    Stimulus,
    TimePassed,
    Verb,
    WeightsRefused,
    WeightsWritten,
    WindowJudged,
)
from service.model.target import Finish
from service.rollout.judgement import (
    ALL_TRAFFIC,
    Cause,
    Move,
    Ruling,
    baked,
    blind_metric,
    exposed,
    guard_rows,
    judge,
    unsafe_metrics,
)
from service.rollout.turn import Step, Turn
from service.telling import words

WINDOW_PHASES = 12
"""Moments within a window's length at which windows end; a minute's windows end every five seconds."""

P = Phase
_BACK = frozenset({P.ROLLING_BACK, P.ROLLED_BACK, P.ENDED})
_JUDGED = frozenset({P.PROGRESSING, P.PAUSED, P.HELD, P.PROMOTING, P.PROMOTED, P.AWAITING_STABLE}) | _BACK

TRANSITIONS: Mapping[Phase, Mapping[type[Stimulus], frozenset[Phase]]] = {
    P.STARTING: {
        CandidateReady: frozenset({P.PROGRESSING}),
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
        WeightsWritten: frozenset({P.PAUSED}),
        WeightsRefused: frozenset({P.HELD}),
        DriftSeen: frozenset({P.PAUSED, P.HELD}),
        PersonActed: _JUDGED | {P.STARTING},
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
    },
    P.HELD: {
        WindowJudged: _JUDGED,
        CandidateReady: frozenset({P.HELD, P.PROGRESSING}),
        WeightsWritten: frozenset({P.HELD, P.PROGRESSING}),
        WeightsRefused: frozenset({P.HELD}),
        DriftSeen: frozenset({P.HELD}),
        PersonActed: _JUDGED | {P.STARTING},
        ReleaseWithdrawn: _BACK,
        ReleaseRequested: _BACK,
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
    """A new rollout, owing a look at the candidate's readiness (or its first weight where none is asked for)."""
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
        reason="Waiting for ready endpoints.",
    )
    turn = Turn(state, request)
    change = f"{state.stable_version or 'stable'} -> {state.version}"
    turn.tell(
        "started",
        f"Release {change} starts under policy {state.policy.name}.",
        words.passed_over_sentence(request.passed_over),
    )
    turn.decide(Decision.CONTINUE, "Started.")
    turn.note_change(f"canary release {change} starts")
    if state.place.readiness is None:
        _first_weight(turn, "No readiness check is set for this target.")
    else:
        _check_ready(turn)
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
        turn.drops |= {"check_ready", "set_weights"}
        return turn.sealed(begin=_successor(turn.state, stimulus.at))
    return turn.sealed()


def _successor(state: RolloutState, at: datetime) -> ReleaseRequested | None:
    """The next release, whose time-outs run from now: it may have waited long for this rollout's end."""
    if state.successor is None:
        return None
    fence_floor = max(state.fence, state.successor.fence_floor)
    return state.successor.model_copy(update={"at": at, "fence_floor": fence_floor})


# --- starting -------------------------------------------------------------------------------------------------------


def _check_ready(turn: Turn) -> None:
    state = turn.state
    turn.orders.append(CheckReady(rollout=state.id, service=state.service, at=turn.stimulus.at, place=state.place))


def _first_weight(turn: Turn, detail: str) -> None:
    turn.resolve("readiness")
    _enter_stage(turn, 0, words.first_weight_sentence(turn.state), detail)


def _enter_stage(turn: Turn, index: int, sentence: str, detail: str = "") -> None:
    """Ask for a stage's weight. Its bake time runs from the mesh's confirmation."""
    turn.enter(P.PROGRESSING, sentence, stage=StageProgress(index=index), undecided_since=None, blind_since=None)
    turn.ask_weight(turn.state.stage_weight(index))
    turn.tell("advanced", words.said(turn.state, sentence), detail)
    turn.decide(Decision.ADVANCE if index else Decision.CONTINUE, turn.state.reason)
    if turn.state.mode is Mode.OBSERVE:
        _confirmed(turn, turn.stimulus.at)


def _confirmed(turn: Turn, at: datetime) -> None:
    """The stage's weight stands: its clock starts, and with the first one the windows start."""
    stage = turn.state.stage
    if stage.entered_at is None:
        turn.set(stage=stage.model_copy(update={"entered_at": at}))
    if turn.state.windows_from is None:
        turn.set(windows_from=_first_window(turn.state, at))


def _first_window(state: RolloutState, after: datetime) -> datetime:
    """When the first window begins: within one window's length, at a phase of the rollout's own.

    Rollouts that start in the same second are so judged evenly over the window's length, and those of one phase share
    their windows' ends and with them their queries.
    """
    window_s = state.policy.window_s
    step_s = max(1.0, window_s / WINDOW_PHASES)
    phase_s = zlib.crc32(state.id.encode()) % max(1, int(window_s // step_s)) * step_s
    start_s = (math.floor((after.timestamp() - phase_s) / window_s) + 1) * window_s + phase_s
    return datetime.fromtimestamp(start_s, after.tzinfo)


def _on_ready(turn: Turn, fact: CandidateReady) -> str | None:
    state = turn.state
    if state.phase is P.STARTING or (state.phase is P.HELD and state.waiting is Waiting.READINESS):
        _first_weight(turn, fact.detail)
        return None
    return "Nothing was changed: the rollout is not waiting for readiness."


# --- the mesh -------------------------------------------------------------------------------------------------------


def _answered(turn: Turn, fence: int, percent: int | None) -> str | None:
    """Note the mesh's answer to the present order (None: refused), or say why it is none.

    Two replicas may carry out one order, so an answer may come again, late, or beside another. What confirmed the
    order is the last word on it. Until then only an answer that differs is news: a write that went through after all
    must not be missed, since the candidate then serves traffic.
    """
    state = turn.state
    if fence != state.fence:
        return f"Nothing was changed: the write of fence {fence} has been replaced by {state.fence}."
    if fence == state.answered_fence and state.answered_percent in (state.weight_asked, percent):
        return f"Nothing was changed: the write of fence {fence} has been answered already."
    turn.set(answered_fence=fence, answered_percent=percent)
    return None


def _on_written(turn: Turn, fact: WeightsWritten) -> str | None:
    state = turn.state
    if refusal := _answered(turn, fact.fence, fact.canary_percent):
        return refusal
    turn.set(weight_seen=fact.canary_percent)
    turn.may_serve(fact.canary_percent)
    if fact.canary_percent != state.weight_asked:
        turn.tell("weights", f"Asked for {state.weight_asked} % and read back {fact.canary_percent} %.")
        return None
    turn.resolve("mesh")
    match state.phase:
        case P.ROLLING_BACK:
            _finish_retreat(
                turn, f"all traffic is on {words.quoted(state.stable_version or 'stable')}, confirmed by the mesh"
            )
        case P.PROMOTING:
            _finish_promotion(turn)
        case P.HELD if state.waiting is Waiting.MESH:
            turn.enter(P.PROGRESSING, f"The weights can be written again: {state.weight_asked} % stands.", drift_n=0)
            turn.tell("resumed", turn.state.reason)
            _confirmed(turn, fact.at)
        case _:
            _confirmed(turn, fact.at)
            turn.tell("weights", f"The mesh confirms {fact.canary_percent} % for the canary.")
    return None


def _on_refused(turn: Turn, fact: WeightsRefused) -> str | None:
    state = turn.state
    if refusal := _answered(turn, fact.fence, None):
        return refusal
    turn.tell("refused", f"The weight {state.weight_asked} % cannot be written.", fact.reason)
    if state.phase is P.ROLLING_BACK:
        if state.served_from is None:
            # No traffic was ever given, so there is none to take back.
            _finish_retreat(turn, "no traffic was given to the candidate")
            return None
        if fact.not_ours:
            _finish_retreat(turn, "what the candidate serves was not given by this rollout and stays")
            return None
        turn.page("mesh", Severity.CRITICAL, f"rollback not confirmed by the mesh: {fact.reason}")
        turn.set(wake_at=fact.at + timedelta(seconds=state.policy.confirm_timeout_s))
        return None
    if state.phase is P.AWAITING_STABLE:
        turn.page("mesh", Severity.ERROR, f"weights cannot be written: {fact.reason}")
        return None
    if state.served_from == fact.fence and state.weight_seen is None:
        turn.set(served_from=None)
    turn.enter(P.HELD, f"Held at {state.weight_seen or 0} %: {fact.reason}", waiting=Waiting.MESH)
    turn.decide(Decision.PAUSE, turn.state.reason)
    turn.page("mesh", Severity.ERROR, f"weights cannot be written: {fact.reason}")
    return None


def _on_drift(turn: Turn, fact: DriftSeen) -> str | None:
    state = turn.state
    if fact.canary_percent == state.weight_asked:
        if state.drift_since is None:
            return "Nothing was changed: the weights stand as asked."
        turn.set(drift_since=None, weight_seen=fact.canary_percent)
        turn.tell("drift", f"The weights stand at {state.weight_asked} % again, by somebody else's hand.")
        if state.phase is P.AWAITING_STABLE:
            turn.resolve("mesh")
        return None
    if state.weight_seen != state.weight_asked and state.drift_since is None:
        return "Nothing was changed: the asked weight has not been confirmed yet."
    seen = "no such route" if fact.canary_percent is None else f"{fact.canary_percent} %"
    if state.drift_since is None:
        turn.set(drift_since=fact.at, weight_seen=fact.canary_percent)
        turn.tell("drift", f"Somebody changed the weights: asked {state.weight_asked} %, found {seen}.", fact.detail)
        return None
    if state.phase is P.HELD and state.waiting is Waiting.MESH:
        return "Nothing was changed: held, because somebody else keeps changing the weights."
    if fact.at < state.drift_since + timedelta(seconds=state.policy.drift_hold_off_s):
        return "Nothing was changed: the hold-off for somebody else's weights has not passed."
    if state.drift_n >= state.policy.drift_give_up_n:
        again = f"somebody else set the weights to {seen} again after {state.drift_n} corrections."
        if state.phase is P.AWAITING_STABLE:
            # Held it would be judged and promoted once more; the promotion stands, so people are told and it waits on.
            if turn.paged("mesh"):
                return "Nothing was changed: people know that somebody else keeps changing the weights."
            turn.tell("drift", f"The weights are left as they are: {again}", fact.detail)
            turn.page("mesh", Severity.ERROR, f"somebody else keeps setting the weights to {seen}")
            return None
        sentence = f"Held: {again}"
        turn.enter(P.HELD, sentence, waiting=Waiting.MESH)
        turn.tell("held", sentence, fact.detail)
        turn.decide(Decision.PAUSE, sentence)
        turn.page("mesh", Severity.ERROR, f"somebody else keeps setting the weights to {seen}")
        return None
    turn.set(drift_n=state.drift_n + 1)
    turn.ask_weight(state.weight_asked)
    turn.tell("drift", f"Putting the weights back from {seen} to {state.weight_asked} %.", fact.detail)
    return None


# --- windows --------------------------------------------------------------------------------------------------------


def _on_window(turn: Turn, fact: WindowJudged) -> str | None:
    state = turn.state
    if fact.window != state.window + 1:
        return f"Nothing was changed: window {fact.window} came while window {state.window + 1} is next."
    _take_in(turn, fact)
    ruling = judge(turn.state, fact)
    match ruling.move:
        case Move.CONTINUE:
            _stay(turn, state, fact)
        case Move.RESUME:
            turn.enter(P.PROGRESSING, words.continue_sentence(turn.state))
            turn.tell("resumed", words.said(turn.state, turn.state.reason))
            turn.decide(Decision.CONTINUE, turn.state.reason)
            turn.resolve(Cause.LEANING, Cause.BLIND)
        case Move.PAUSE:
            _pause(turn, ruling)
        case Move.HOLD:
            _hold(turn, ruling)
        case Move.ADVANCE | Move.PROMOTE:
            _forward(turn, ruling.move)
        case Move.ROLLBACK:
            _retreat(turn, _why_back(turn.state, ruling), cause=ruling.cause)
    return None


def _take_in(turn: Turn, fact: WindowJudged) -> None:
    """Evidence, exposure, guard rows and blindness of the window, before anything is decided."""
    state = turn.state
    stage = state.stage
    # A window that began before the stage's weight stood shows another weight, too; a late one may show only that.
    if stage.entered_at is not None and fact.start >= stage.entered_at:
        stage = stage.model_copy(
            update={"n_canary": stage.n_canary + fact.n_canary, "n_stable": stage.n_stable + fact.n_stable}
        )
    rows = guard_rows(state, fact.guards)
    blind = blind_metric(state, fact.evidence)
    turn.set(
        window=fact.window,
        stage=stage,
        n_canary=state.n_canary + fact.n_canary,
        n_stable=state.n_stable + fact.n_stable,
        evidence=fact.evidence,
        notes=fact.notes,
        log_evidence=fact.log_evidence,
        log_evidence_max=max(state.log_evidence_max, fact.log_evidence),
        log_pause=fact.log_pause,
        log_rollback=fact.log_rollback,
        guard_rows=rows,
        # A guard that a person overruled is armed again once its row is broken.
        confirmed_guards=tuple(g for g in state.confirmed_guards if rows.get(g, 0) > 0),
        blind_since=None if blind is None else (state.blind_since or fact.at),
        frozen=fact.frozen,
    )
    # Too few requests keep a stage from ending, too; without traffic it would otherwise last for ever.
    unsafe = bool(unsafe_metrics(turn.state)) and state.weight_asked < ALL_TRAFFIC
    undecided = baked(turn.state, fact.end) and (unsafe or not exposed(turn.state))
    turn.set(undecided_since=(state.undecided_since or fact.end) if undecided else None)


def _stay(turn: Turn, before: RolloutState, fact: WindowJudged) -> None:
    """No move. What a person would still want to read is written: blindness, and the kill switch."""
    state = turn.state
    if state.phase is P.PROGRESSING:
        turn.set(reason=words.continue_sentence(state))
    if before.blind_since is None and state.blind_since is not None:
        turn.tell("blind", words.blind_sentence(state))
    if before.blind_since is not None and state.blind_since is None:
        turn.tell("data", "The numbers are back: every required metric could be looked at.")
        turn.resolve(Cause.BLIND)
    half = timedelta(seconds=state.policy.on_blind.budget_s / 2)
    if state.blind_since and fact.at >= state.blind_since + half and not turn.paged(Cause.BLIND):
        turn.page(Cause.BLIND, Severity.WARNING, words.blind_sentence(state))
    if before.frozen != fact.frozen:
        now = "is on: all weights are frozen" if fact.frozen else "is off: weights move again"
        turn.tell("kill switch", f"The kill switch {now}.")


def _pause(turn: Turn, ruling: Ruling) -> None:
    guard = ruling.guard
    severity = Severity.CRITICAL if guard else Severity.ERROR
    turn.enter(P.PAUSED, "", waiting=ruling.waiting)
    sentence = (
        words.guard_sentence(turn.state, guard, ruling.value)
        if guard
        else words.limit_sentence(turn.state)
        if ruling.cause is Cause.LIMIT
        else words.pause_sentence(turn.state)
    )
    turn.set(reason=sentence)
    turn.tell("paused", words.said(turn.state, sentence))
    turn.decide(Decision.PAUSE, sentence)
    turn.page(ruling.cause, severity, sentence)


def _hold(turn: Turn, ruling: Ruling) -> None:
    turn.enter(P.HELD, "", waiting=ruling.waiting)
    blind = ruling.cause is Cause.BLIND
    sentence = words.blind_sentence(turn.state) if blind else words.undecided_sentence(turn.state)
    turn.set(reason=sentence)
    turn.tell("held", words.said(turn.state, sentence))
    turn.decide(Decision.PAUSE, sentence)
    turn.page(ruling.cause, Severity.ERROR, sentence)


def _forward(turn: Turn, move: Move) -> None:
    """The next stage or the end; in recommend mode a person is asked first."""
    state = turn.state
    turn.resolve(Cause.INCONCLUSIVE)
    if state.mode is Mode.RECOMMEND:
        proposal = Decision.PROMOTE if move is Move.PROMOTE else Decision.ADVANCE
        turn.enter(P.PAUSED, "", waiting=Waiting.CONFIRM_MOVE, proposal=proposal)
        sentence = words.proposal_sentence(turn.state)
        turn.set(reason=sentence)
        turn.tell("proposed", sentence)
        turn.decide(Decision.PAUSE, sentence)
        turn.page("proposal", Severity.INFO, sentence)
    elif move is Move.PROMOTE:
        _promote(turn, words.promote_sentence(state))
    else:
        _advance(turn, words.advance_sentence(state, state.stage_weight(state.stage.index + 1)))


def _advance(turn: Turn, sentence: str, detail: str = "") -> None:
    turn.resolve()
    _enter_stage(turn, turn.state.stage.index + 1, sentence, detail)
    turn.note_change(sentence)


def _promote(turn: Turn, sentence: str, detail: str = "") -> None:
    turn.resolve()
    turn.enter(P.PROMOTING, sentence, wake_at=_confirm_by(turn))
    turn.ask_weight(ALL_TRAFFIC)
    turn.tell("promoted", words.said(turn.state, sentence), detail)
    turn.decide(Decision.PROMOTE, sentence)
    turn.note_change(sentence)
    if turn.state.mode is Mode.OBSERVE:
        _finish_promotion(turn)


def _finish_promotion(turn: Turn) -> None:
    state = turn.state
    if state.place.finish is Finish.RETURN_TO_STABLE and state.weight_asked == ALL_TRAFFIC and state.version != "":
        if state.mode is Mode.OBSERVE:
            _end(turn, P.PROMOTED, state.reason, "promoted")
            return
        if state.stable_caught_up:
            _return_to_stable(turn)
            return
        sentence = f"{words.quoted(state.version)} serves all traffic; it returns to stable when stable runs it."
        turn.enter(P.AWAITING_STABLE, sentence)
        turn.tell("awaiting stable", sentence)
        return
    _end(turn, P.PROMOTED, state.reason, "promoted")


def _confirm_by(turn: Turn) -> datetime:
    return turn.stimulus.at + timedelta(seconds=turn.state.policy.confirm_timeout_s)


# --- going back -----------------------------------------------------------------------------------------------------


def _why_back(state: RolloutState, ruling: Ruling) -> str:
    if ruling.guard is not None:
        return words.guard_sentence(state, ruling.guard, ruling.value)
    if ruling.cause is Cause.BLIND:
        return words.blind_sentence(state)
    if ruling.cause is Cause.INCONCLUSIVE:
        return words.undecided_sentence(state)
    return words.rollback_sentence(state)


def _retreat(turn: Turn, sentence: str, *, cause: str, ended_as: str = "rolled back", detail: str = "") -> None:
    """All traffic back to stable. A page tells people, and the end comes with the mesh's confirmation."""
    by_itself = cause in (Cause.HARM, Cause.GUARD, Cause.BLIND, Cause.INCONCLUSIVE, Cause.LEANING)
    turn.enter(P.ROLLING_BACK, sentence, ended_as=ended_as, wake_at=_confirm_by(turn))
    turn.ask_weight(0)
    turn.tell("rolling back", words.said(turn.state, sentence), detail)
    turn.decide(Decision.ROLLBACK, sentence)
    if by_itself:
        turn.page("rollback", Severity.ERROR, sentence)
    if turn.state.mode is Mode.OBSERVE:
        _finish_retreat(turn, "nothing was touched")


def _finish_retreat(turn: Turn, stands: str) -> None:
    """The end of the way back. ``stands`` says what is known of the traffic."""
    state = turn.state
    rolled_back = state.ended_as == "rolled back"
    sentence = (
        words.said(state, state.reason)
        if state.mode is Mode.OBSERVE
        else f"{'Rolled back' if rolled_back else 'Ended, ' + state.ended_as}: {stands}. {state.reason}"
    )
    _end(turn, P.ROLLED_BACK if rolled_back else P.ENDED, sentence, state.ended_as)


def _end(turn: Turn, phase: Phase, sentence: str, ended_as: str) -> None:
    turn.enter(phase, sentence, ended_as=ended_as)
    turn.tell(phase.value.replace("_", " "), sentence)
    turn.decide(turn.state.decision, sentence)
    turn.resolve()


def _on_withdrawn(turn: Turn, fact: ReleaseWithdrawn) -> str | None:
    word = "removed" if fact.kind is EventKind.REMOVED else "rolled back by someone else"
    if turn.state.phase is P.ROLLING_BACK:
        turn.set(successor=None)
        turn.tell("withdrawn", f"The event bus says that the candidate was {word}.")
        return None
    _retreat(turn, f"The event bus says that the candidate was {word}.", cause="withdrawn", ended_as=word)
    return None


def _on_requested(turn: Turn, fact: ReleaseRequested) -> str | None:
    state = turn.state
    turn.set(successor=fact)
    sentence = f"Superseded by {words.quoted(fact.version)}, which starts when all traffic is back on stable."
    detail = words.passed_over_sentence(fact.passed_over)
    if state.phase is P.ROLLING_BACK:
        turn.tell("superseded", sentence, detail)
        return None
    _retreat(turn, sentence, cause="superseded", ended_as="superseded", detail=detail)
    return None


def _on_stable_upgraded(turn: Turn, fact: StableUpgraded) -> str | None:
    state = turn.state
    if fact.version != state.version:
        return f"Nothing was changed: stable runs {fact.version}, this rollout is of {state.version}."
    if state.phase is P.PROMOTING:
        returns = state.place.finish is Finish.RETURN_TO_STABLE and state.weight_asked == ALL_TRAFFIC
        if state.stable_caught_up or not returns:
            return f"Nothing was changed: stable runs {fact.version}, and the promotion goes on as it is."
        # A quick tool: it acts on the published decision before the mesh has confirmed it, and says it only once.
        turn.set(stable_caught_up=True)
        turn.tell("stable", f"Stable runs {words.quoted(fact.version)}; traffic returns once the promotion stands.")
        return None
    _return_to_stable(turn)
    return None


def _return_to_stable(turn: Turn) -> None:
    sentence = f"Stable runs {words.quoted(turn.state.version)}: traffic returns to it."
    turn.enter(P.PROMOTING, sentence, wake_at=_confirm_by(turn))
    turn.ask_weight(0)
    turn.tell("returning", sentence)


# --- people and time ------------------------------------------------------------------------------------------------


def _on_person(turn: Turn, fact: PersonActed) -> str | None:
    state = turn.state
    if state.mode is Mode.OBSERVE:
        return "Nothing was changed: Serinus only observes this rollout and touches nothing."
    detail = fact.reason
    who = f"{words.quoted(fact.actor)} ordered it."
    match fact.verb:
        case Verb.ROLLBACK if state.phase is P.ROLLING_BACK:
            turn.ask_weight(0)
            turn.set(wake_at=_confirm_by(turn))
            turn.tell("rolling back", f"Rollback asked for again. {who}", detail)
        case Verb.ROLLBACK:
            _retreat(turn, words.ordered_sentence("Roll back", state, fact.reason), cause="person", detail=who)
        case Verb.PAUSE if state.phase in (P.STARTING, P.PROGRESSING, P.HELD):
            turn.enter(P.PAUSED, words.ordered_sentence("Pause", state, fact.reason), waiting=Waiting.PERSON)
            turn.tell("paused", turn.state.reason, who)
            turn.decide(Decision.PAUSE, turn.state.reason)
        case Verb.RESUME if state.phase in (P.PAUSED, P.HELD):
            _resume(turn, fact, who)
        case Verb.ADVANCE if state.phase.judged and state.windows_from is not None:
            if state.stage.index == len(state.stages) - 1:
                return "Nothing was changed: this is the last stage; promote instead."
            _advance(turn, words.ordered_sentence("Advance", state, fact.reason), who)
        case Verb.PROMOTE if state.phase.judged and state.windows_from is not None:
            _promote(turn, words.ordered_sentence("Promote", state, fact.reason), who)
        case _:
            return f"Nothing was changed: a {state.phase} rollout cannot {fact.verb}. {state.reason}"
    return None


def _resume(turn: Turn, fact: PersonActed, who: str) -> None:
    """Go on although something spoke against it: what is overruled is remembered, and budgets start anew."""
    state = turn.state
    sentence = words.ordered_sentence("Resume", state, fact.reason)
    fired = tuple(g.name for g in state.policy.guards if state.guard_rows.get(g.name, 0) >= g.windows)
    common: dict[str, Any] = {
        "confirmed_guards": tuple(dict.fromkeys((*state.confirmed_guards, *fired))),
        "harm_overruled": state.harm_overruled or state.log_evidence >= state.log_pause,
        "blind_since": fact.at if state.blind_since else None,
        "undecided_since": fact.at if state.undecided_since else None,
    }
    turn.resolve()
    if state.windows_from is None and state.weight_asked == 0:
        wake_at = fact.at + timedelta(seconds=state.policy.ready_timeout_s)
        turn.enter(P.STARTING, sentence, wake_at=wake_at, **common)
        _check_ready(turn)
    else:
        # Refused, not confirmed yet, or somebody else's: a pause may have come since, and nobody else would ask again.
        stands = state.weight_seen == state.weight_asked and state.waiting is not Waiting.MESH
        turn.enter(P.PROGRESSING, sentence, **common)
        if not stands:
            turn.set(drift_n=0)
            turn.ask_weight(state.weight_asked)
    turn.tell("resumed", sentence, who)
    turn.decide(Decision.CONTINUE, sentence)


def _on_time(turn: Turn, fact: TimePassed) -> str | None:
    state = turn.state
    if state.wake_at is None or fact.at < state.wake_at:
        return "Nothing was changed: it is not time yet."
    if state.phase is P.STARTING:
        sentence = f"Held at 0 %: no ready endpoints within {words.duration(state.policy.ready_timeout_s)}."
        turn.enter(P.HELD, sentence, waiting=Waiting.READINESS)
        turn.tell("held", sentence)
        turn.decide(Decision.PAUSE, sentence)
        turn.page("readiness", Severity.ERROR, sentence)
        return None
    what = "rollback" if state.phase is P.ROLLING_BACK else "promotion"
    turn.set(wake_at=None)
    turn.tell("unconfirmed", f"The {what} is not confirmed by the mesh; trying again.")
    turn.page("mesh", Severity.CRITICAL, f"{what} not confirmed by the mesh")
    turn.ask_weight(state.weight_asked)
    return None


_Handler: TypeAlias = Callable[[Turn, Any], str | None]

_HANDLERS: Mapping[type[Stimulus], _Handler] = {
    CandidateReady: _on_ready,
    WeightsWritten: _on_written,
    WeightsRefused: _on_refused,
    DriftSeen: _on_drift,
    WindowJudged: _on_window,
    ReleaseWithdrawn: _on_withdrawn,
    ReleaseRequested: _on_requested,
    StableUpgraded: _on_stable_upgraded,
    PersonActed: _on_person,
    TimePassed: _on_time,
}
