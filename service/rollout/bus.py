"""What the event bus says of a rollout that is under way."""

from __future__ import annotations

from service.model.rollout import Phase
from service.model.stimulus import EventKind, ReleaseRequested, ReleaseWithdrawn, StableUpgraded
from service.model.target import Finish
from service.rollout.judgement import ALL_TRAFFIC
from service.rollout.moves import retreat, return_to_stable
from service.rollout.turn import Turn
from service.telling import words


def on_withdrawn(turn: Turn, fact: ReleaseWithdrawn) -> str | None:
    """Somebody else took the candidate away, or the version that waits for its end."""
    word = "removed" if fact.kind is EventKind.REMOVED else "rolled back by someone else"
    waits = turn.state.successor
    if waits is not None and fact.version == waits.version:
        turn.set(successor=None)
        turn.tell("withdrawn", f"The event bus says that {words.quoted(waits.version)} was {word}: it does not start.")
        return None
    if fact.version not in (None, turn.state.version):
        return f"Nothing was changed: {fact.version} was {word}, this rollout is of {turn.state.version}."
    if turn.state.phase is Phase.ROLLING_BACK:
        if fact.version is None:
            turn.set(successor=None)
        turn.tell("withdrawn", f"The event bus says that the candidate was {word}.")
        return None
    retreat(turn, f"The event bus says that the candidate was {word}.", cause="withdrawn", ended_as=word)
    return None


def on_requested(turn: Turn, fact: ReleaseRequested) -> str | None:
    """A newer release: this one goes back, and the newer one waits for that."""
    state = turn.state
    turn.set(successor=fact)
    sentence = f"Superseded by {words.quoted(fact.version)}, which starts when all traffic is back on stable."
    detail = words.passed_over_sentence(fact.passed_over)
    if state.phase is Phase.ROLLING_BACK:
        turn.tell("superseded", sentence, detail)
        return None
    retreat(turn, sentence, cause="superseded", ended_as="superseded", detail=detail)
    return None


def on_stable_upgraded(turn: Turn, fact: StableUpgraded) -> str | None:
    """Stable runs the candidate's version."""
    state = turn.state
    if fact.version != state.version:
        return f"Nothing was changed: stable runs {fact.version}, this rollout is of {state.version}."
    if state.phase is not Phase.AWAITING_STABLE:
        returns = state.place.finish is Finish.RETURN_TO_STABLE and state.weight_asked == ALL_TRAFFIC
        if state.stable_caught_up or not returns:
            return f"Nothing was changed: stable runs {fact.version}, and the rollout goes on as it is."
        # A quick tool: it acts on the published decision before the mesh has confirmed it, and says it only once; also
        # where the mesh refuses the weight, so that the promotion is held until a person comes.
        turn.set(stable_caught_up=True)
        turn.tell("stable", f"Stable runs {words.quoted(fact.version)}; traffic returns once the promotion stands.")
        return None
    return_to_stable(turn)
    return None
