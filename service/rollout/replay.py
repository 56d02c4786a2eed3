"""Replay: a rollout's history told once more to the state machine, to see that the same comes of it."""

from __future__ import annotations

from collections.abc import Iterable

from service.model.journal import JournalEntry
from service.model.rollout import RolloutState
from service.model.stimulus import STIMULUS, ReleaseRequested
from service.rollout import machine


class NotReplayed(ValueError):
    """The history does not lead anywhere: it does not begin with a release, or the machine refuses a part of it."""


def replay(history: Iterable[tuple[int, str]]) -> tuple[RolloutState, list[JournalEntry]]:
    """The state and the journal that come of (revision, canonical JSON) of every stimulus, in order.

    Raises NotReplayed, and pydantic's ValidationError for what is no stimulus.
    """
    told = iter(history)
    revision, first = next(told, (0, ""))
    request = STIMULUS.validate_json(first) if first else None
    if revision != 1 or not isinstance(request, ReleaseRequested):
        raise NotReplayed(f"the history begins at revision {revision}, not with the request for a release")
    step = machine.begin(request)
    rows = list(step.journal)
    for revision, text in told:
        step = machine.step(step.state, STIMULUS.validate_json(text))
        if step.state.revision != revision or not step.accepted:
            raise NotReplayed(f"revision {revision} does not follow revision {step.state.revision}: {step.reason}")
        rows += step.journal
    return step.state, rows
