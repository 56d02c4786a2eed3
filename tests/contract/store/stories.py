"""Stories, brought into a store."""

from __future__ import annotations

from service.ring.store import Change
from service.rollout.turn import Step
from service.storage.store import SqlStore
from tests.stories import Story


def change(step: Step, was: int | None) -> Change:
    """What one step changed of the revision that was read."""
    return Change(state=step.state, was_revision=was, journal=step.journal, orders=step.orders, drops=step.drops)


async def keep(store: SqlStore, story: Story) -> None:
    """Commit every step of a story, one transaction each."""
    was: int | None = None
    for step, fact in zip(story.steps, story.facts, strict=True):
        if not step.accepted:
            continue
        windows = ((step.state.revision, fact),) if fact.type == "window_judged" else ()
        made = Change(step.state, was, step.journal, windows, step.orders, step.drops)  # type: ignore[arg-type]
        await store.commit([made])
        was = step.state.revision
