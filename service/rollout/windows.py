"""One judged window: taken in, ruled on by ``judgement``, and carried out."""

from __future__ import annotations

from datetime import timedelta

from service.model.instruction import Severity
from service.model.names import Mode
from service.model.rollout import Decision, Phase, RolloutState, Waiting
from service.model.stimulus import WindowJudged
from service.rollout.judgement import (
    ALL_TRAFFIC,
    CONTINUE,
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
from service.rollout.moves import advance, promote, promote_on, retreat
from service.rollout.turn import Turn
from service.telling import words


def on_window(turn: Turn, fact: WindowJudged) -> str | None:
    """A window was judged, or could not be."""
    state = turn.state
    if fact.window != state.window + 1:
        return f"Nothing was changed: window {fact.window} came while window {state.window + 1} is next."
    _take_in(turn, fact)
    ruling = CONTINUE if state.return_stopped else judge(turn.state, fact)
    match ruling.move:
        case Move.CONTINUE:
            _stay(turn, state, fact)
        case Move.RESUME:
            if state.promotion_stopped:
                promote_on(turn, words.continue_sentence(turn.state))
            else:
                turn.enter(Phase.PROGRESSING, words.continue_sentence(turn.state))
            turn.tell("resumed", words.said(turn.state, turn.state.reason))
            turn.decide(turn.state.decision, turn.state.reason)
            turn.resolve(Cause.LEANING, Cause.BLIND)
        case Move.PAUSE:
            _pause(turn, ruling)
        case Move.HOLD:
            _hold(turn, ruling)
        case Move.ADVANCE | Move.PROMOTE:
            _forward(turn, ruling.move)
        case Move.ROLLBACK:
            retreat(turn, _why_back(turn.state, ruling), cause=ruling.cause)
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
    if state.phase is Phase.PROGRESSING:
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
    turn.enter(Phase.PAUSED, "", waiting=ruling.waiting)
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
    turn.enter(Phase.HELD, "", waiting=ruling.waiting)
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
        turn.enter(Phase.PAUSED, "", waiting=Waiting.CONFIRM_MOVE, proposal=proposal)
        sentence = words.proposal_sentence(turn.state)
        turn.set(reason=sentence)
        turn.tell("proposed", sentence)
        turn.decide(Decision.PAUSE, sentence)
        turn.page("proposal", Severity.INFO, sentence)
    elif move is Move.PROMOTE:
        promote(turn, words.promote_sentence(state))
    else:
        advance(turn, words.advance_sentence(state, state.stage_weight(state.stage.index + 1)))


def _why_back(state: RolloutState, ruling: Ruling) -> str:
    if ruling.guard is not None:
        return words.guard_sentence(state, ruling.guard, ruling.value)
    if ruling.cause is Cause.BLIND:
        return words.blind_sentence(state)
    if ruling.cause is Cause.INCONCLUSIVE:
        return words.undecided_sentence(state)
    return words.rollback_sentence(state)
