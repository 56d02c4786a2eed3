"""The door, where two replicas come by it at once, and where events come out of their order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from service.model.catalog import Catalog
from service.model.journal import JournalEntry
from service.model.names import RolloutId
from service.model.stimulus import DeploymentEvent, EventKind, Verb
from service.ring.answer import Answer
from service.ring.door import Door
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.test_store import keep
from tests.stories import SERVICE, START, Story, catalog, event


class Clock:
    def now(self) -> Any:
        return START

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Slow:
    """The store, seen by a replica that stands still after it has read the journal."""

    def __init__(self, store: SqlStore, until: asyncio.Event) -> None:
        self._store = store
        self._until = until
        self.has_read = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def journal(self, rollout: RolloutId, *, limit: int) -> Sequence[JournalEntry]:
        rows = await self._store.journal(rollout, limit=limit)
        self.has_read.set()
        await self._until.wait()
        return rows


async def test_a_persons_order_that_reaches_two_replicas_at_once_takes_effect_once(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    story = Story().progressing()
    await keep(store, story)
    done = asyncio.Event()
    slow = Slow(store, done)

    async def order(seen: Any) -> Answer:
        door = Door(seen, Catalog(), Clock())
        return await door.act(story.state.id, Verb.ADVANCE, actor="ana", reason="sure", request_id="once")

    late = asyncio.create_task(order(slow))
    await slow.has_read.wait()
    first = await order(store)
    done.set()
    second = await late
    assert (first.accepted, second.accepted) == (True, True)
    assert second.entry == first.entry
    assert (await store.load([story.state.id]))[story.state.id].stage.index == 1
    await store.close()


@pytest.mark.parametrize("together", [True, False])
async def test_a_release_that_comes_after_its_own_withdrawal_is_not_begun(tmp_path: Path, together: bool) -> None:
    store = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    door = Door(store, catalog(), Clock())
    events: list[DeploymentEvent] = [event("gone", None, 2, kind=EventKind.REMOVED), event("late", "2", 1)]
    for batch in [events] if together else [[one] for one in events]:
        await door.events(batch)
    assert await store.active([SERVICE]) == {}
    assert (await store.heads([SERVICE]))[SERVICE].event_id == "gone"
    await door.events([event("next", "3", 3)])
    assert (await store.active([SERVICE]))[SERVICE].version == "3"
    await store.close()
