"""What people order, and what time alone brings."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from service.model.instruction import Severity
from service.model.names import Mode
from service.model.rollout import Decision, Phase, Waiting
from service.model.stimulus import PersonActed, TimePassed, Verb
from service.rollout.judgement import Cause
from service.rollout.moves import advance, confirm_by, promote, promote_on, retreat
from service.rollout.starting import look, overruled
from service.rollout.turn import Turn
from service.telling import words


def on_person(turn: Turn, fact: PersonActed) -> str | None:
    """A person, or a tool in a person's name, ordered something."""
    state = turn.state
    if state.mode is Mode.OBSERVE:
        return "Nothing was changed: Serinus only observes this rollout and touches nothing."
    detail = fact.reason
    who = f"{words.quoted(fact.actor)} ordered it."
    match fact.verb:
        case Verb.ROLLBACK if state.phase is Phase.ROLLING_BACK:
            turn.ask_weight(0)
            turn.set(wake_at=confirm_by(turn))
            turn.tell("rolling back", f"Rollback asked for again. {who}", detail)
        case Verb.ROLLBACK:
            retreat(turn, words.ordered_sentence("Roll back", state, fact.reason), cause="person", detail=who)
        case Verb.PAUSE if state.phase in (Phase.STARTING, Phase.PROGRESSING, Phase.HELD):
            turn.enter(Phase.PAUSED, words.ordered_sentence("Pause", state, fact.reason), waiting=Waiting.PERSON)
            turn.tell("paused", turn.state.reason, who)
            turn.decide(Decision.PAUSE, turn.state.reason)
        case Verb.RESUME if state.phase in (Phase.PAUSED, Phase.HELD):
            _resume(turn, fact, who)
        case Verb.ADVANCE | Verb.PROMOTE if state.return_stopped:
            return f"Nothing was changed: {state.version} is promoted already; resume to return the traffic to stable."
        case Verb.ADVANCE if state.phase.judged and state.windows_from is not None:
            if state.stage.index == len(state.stages) - 1:
                return "Nothing was changed: this is the last stage; promote instead."
            advance(turn, words.ordered_sentence("Advance", state, fact.reason), who)
        case Verb.PROMOTE if state.phase.judged and state.windows_from is not None:
            promote(turn, words.ordered_sentence("Promote", state, fact.reason), who)
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
        # Looked at anew: what was ready before a pause may be gone.
        common |= {
            "ready": state.place.readiness is None,
            "overruled_gates": overruled(state),
            "looks_n": state.looks_n + fact.asks_anew,
        }
        turn.enter(Phase.STARTING, sentence, wake_at=wake_at, **common)
        turn.tell("resumed", sentence, who)
        turn.decide(Decision.CONTINUE, sentence)
        look(turn)
    elif state.promotion_stopped:
        promote_on(turn, sentence, **common)
        turn.tell("resumed", sentence, who)
        turn.decide(Decision.PROMOTE, sentence)
    else:
        # Refused, not confirmed yet, or somebody else's: a pause may have come since, and nobody else would ask again.
        stands = state.weight_seen == state.weight_asked and state.waiting is not Waiting.MESH
        turn.enter(Phase.PROGRESSING, sentence, **common)
        if not stands:
            turn.set(drift_n=0)
            turn.ask_weight(state.weight_asked)
        turn.tell("resumed", sentence, who)
        turn.decide(Decision.CONTINUE, sentence)


def on_time(turn: Turn, fact: TimePassed) -> str | None:
    """The moment has come that the state asked to be woken at."""
    state = turn.state
    if state.wake_at is None or fact.at < state.wake_at:
        return "Nothing was changed: it is not time yet."
    if state.phase is Phase.STARTING:
        sentence = words.not_shown_sentence(state)
        turn.enter(Phase.HELD, sentence, waiting=Waiting.PREFLIGHT if state.ready else Waiting.READINESS)
        turn.tell("held", sentence)
        turn.decide(Decision.PAUSE, sentence)
        turn.page(Cause.PREFLIGHT if state.ready else "readiness", Severity.ERROR, sentence)
        return None
    what = "rollback" if state.phase is Phase.ROLLING_BACK else "promotion"
    turn.set(wake_at=None)
    turn.tell("unconfirmed", f"The {what} is not confirmed by the mesh; trying again.")
    turn.page("mesh", Severity.CRITICAL, f"{what} not confirmed by the mesh")
    turn.ask_weight(state.weight_asked)
    return None
