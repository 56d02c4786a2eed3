"""What the mesh answers, and what somebody else does to the weights."""

from __future__ import annotations

from datetime import timedelta

from service.model.instruction import Severity
from service.model.rollout import Decision, Phase, Waiting
from service.model.stimulus import DriftSeen, WeightsRefused, WeightsWritten
from service.rollout.moves import confirm_by, confirmed, finish_promotion, finish_retreat
from service.rollout.turn import Turn
from service.telling import words


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


def on_written(turn: Turn, fact: WeightsWritten) -> str | None:
    """The mesh was written and read back."""
    state = turn.state
    if refusal := _answered(turn, fact.fence, fact.canary_percent):
        return refusal
    turn.set(weight_seen=fact.canary_percent)
    turn.may_serve(fact.canary_percent)
    if fact.canary_percent != state.weight_asked:
        # Somebody else's hand came between. It is looked at again: where weights are watched as any other drift, on
        # the way to an end when the confirmation is due.
        turn.tell("weights", f"Asked for {state.weight_asked} % and read back {fact.canary_percent} %.")
        if state.phase in (Phase.ROLLING_BACK, Phase.PROMOTING):
            turn.set(wake_at=confirm_by(turn))
        else:
            turn.set(drift_since=state.drift_since or fact.at)
        return None
    turn.set(drift_since=None)
    turn.resolve("mesh")
    match state.phase:
        case Phase.ROLLING_BACK:
            finish_retreat(
                turn, f"all traffic is on {words.quoted(state.stable_version or 'stable')}, confirmed by the mesh"
            )
        case Phase.PROMOTING:
            finish_promotion(turn)
        case Phase.HELD if state.waiting is Waiting.MESH and state.promotion_stopped:
            turn.enter(Phase.PROMOTING, f"The weights can be written again: {state.weight_asked} % stands.")
            turn.tell("resumed", turn.state.reason)
            turn.decide(Decision.PROMOTE, turn.state.reason)
            finish_promotion(turn)
        case Phase.HELD if state.waiting is Waiting.MESH:
            turn.enter(
                Phase.PROGRESSING, f"The weights can be written again: {state.weight_asked} % stands.", drift_n=0
            )
            turn.tell("resumed", turn.state.reason)
            confirmed(turn, fact.at)
        case _:
            confirmed(turn, fact.at)
            turn.tell("weights", f"The mesh confirms {fact.canary_percent} % for the canary.")
    return None


def on_refused(turn: Turn, fact: WeightsRefused) -> str | None:
    """The mesh refused the write for good."""
    state = turn.state
    if refusal := _answered(turn, fact.fence, None):
        return refusal
    turn.tell("refused", f"The weight {state.weight_asked} % cannot be written.", fact.reason)
    if state.phase is Phase.ROLLING_BACK:
        if state.served_from is None:
            # No traffic was ever given, so there is none to take back.
            finish_retreat(turn, "no traffic was given to the candidate")
            return None
        if fact.not_ours:
            finish_retreat(turn, "what the candidate serves was not given by this rollout and stays")
            return None
        turn.page("mesh", Severity.CRITICAL, f"rollback not confirmed by the mesh: {fact.reason}")
        turn.set(wake_at=fact.at + timedelta(seconds=state.policy.confirm_timeout_s))
        return None
    if state.phase is Phase.AWAITING_STABLE:
        turn.page("mesh", Severity.ERROR, f"weights cannot be written: {fact.reason}")
        return None
    if state.served_from == fact.fence and state.weight_seen is None:
        turn.set(served_from=None)
    turn.enter(Phase.HELD, f"Held at {state.weight_seen or 0} %: {fact.reason}", waiting=Waiting.MESH)
    turn.decide(Decision.PAUSE, turn.state.reason)
    turn.page("mesh", Severity.ERROR, f"weights cannot be written: {fact.reason}")
    return None


def on_drift(turn: Turn, fact: DriftSeen) -> str | None:
    """Somebody else changed the weights: wait, put them back, and at last give way."""
    state = turn.state
    if fact.canary_percent == state.weight_asked:
        if state.drift_since is None:
            return "Nothing was changed: the weights stand as asked."
        turn.set(drift_since=None, weight_seen=fact.canary_percent)
        turn.tell("drift", f"The weights stand at {state.weight_asked} % again, by somebody else's hand.")
        if state.phase is Phase.AWAITING_STABLE:
            turn.resolve("mesh")
        else:
            confirmed(turn, fact.at)
        return None
    # After the promotion a refused correction changes no phase, so whatever stands there since is news again.
    refused = state.phase is Phase.AWAITING_STABLE and state.answered_fence == state.fence
    if state.weight_seen != state.weight_asked and state.drift_since is None and not refused:
        return "Nothing was changed: the asked weight has not been confirmed yet."
    seen = "no such route" if fact.canary_percent is None else f"{fact.canary_percent} %"
    if state.drift_since is None:
        turn.set(drift_since=fact.at, weight_seen=fact.canary_percent)
        turn.tell("drift", f"Somebody changed the weights: asked {state.weight_asked} %, found {seen}.", fact.detail)
        return None
    if state.phase is Phase.HELD and state.waiting is Waiting.MESH:
        return "Nothing was changed: held, because somebody else keeps changing the weights."
    if fact.at < state.drift_since + timedelta(seconds=state.policy.drift_hold_off_s):
        return "Nothing was changed: the hold-off for somebody else's weights has not passed."
    if state.drift_n >= state.policy.drift_give_up_n:
        again = f"somebody else set the weights to {seen} again after {state.drift_n} corrections."
        if state.phase is Phase.AWAITING_STABLE:
            # Held it would be judged and promoted once more; the promotion stands, so people are told and it waits on.
            if turn.paged("mesh"):
                return "Nothing was changed: people know that somebody else keeps changing the weights."
            turn.tell("drift", f"The weights are left as they are: {again}", fact.detail)
            turn.page("mesh", Severity.ERROR, f"somebody else keeps setting the weights to {seen}")
            return None
        sentence = f"Held: {again}"
        turn.enter(Phase.HELD, sentence, waiting=Waiting.MESH)
        turn.tell("held", sentence, fact.detail)
        turn.decide(Decision.PAUSE, sentence)
        turn.page("mesh", Severity.ERROR, f"somebody else keeps setting the weights to {seen}")
        return None
    turn.set(drift_n=state.drift_n + 1)
    turn.ask_weight(state.weight_asked)
    turn.tell("drift", f"Putting the weights back from {seen} to {state.weight_asked} %.", fact.detail)
    return None
