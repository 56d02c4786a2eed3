"""What the door answers to a fact: taken or not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.model.journal import JournalEntry
from service.model.names import RolloutId
from service.model.rollout import RolloutState
from service.model.stimulus import Verb


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one fact."""

    accepted: bool
    reason: str
    """One sentence: what was done, or why nothing was changed."""
    state: RolloutState | None
    """The rollout as it stands now; None when there is no such rollout."""
    entry: JournalEntry | None = None
    """The journal row that it left, when it left one."""


class PeoplesDoor(Protocol):
    """The part of the door that people's commands come in by."""

    async def act(self, rollout: RolloutId, verb: Verb, *, actor: str, reason: str, request_id: str) -> Answer:
        """Carry a person's order to the rollout. The same ``request_id`` twice has the effect of once."""
