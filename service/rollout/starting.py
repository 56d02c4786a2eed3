"""Before the first weight: what the candidate must show while it serves nobody."""

from __future__ import annotations

from service.model.rollout import Phase, Waiting
from service.model.stimulus import CandidateReady
from service.rollout.moves import enter_stage
from service.rollout.turn import Turn
from service.telling import words


def first_weight(turn: Turn, detail: str) -> None:
    """The first stage: from here on the candidate serves people."""
    turn.resolve("readiness")
    enter_stage(turn, 0, words.first_weight_sentence(turn.state), detail)


def on_ready(turn: Turn, fact: CandidateReady) -> str | None:
    """The candidate has ready endpoints."""
    state = turn.state
    if state.phase is Phase.STARTING or (state.phase is Phase.HELD and state.waiting is Waiting.READINESS):
        first_weight(turn, fact.detail)
        return None
    return "Nothing was changed: the rollout is not waiting for readiness."
