"""The stop: nothing new is begun, what is under way is finished or stays owed, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.app.supervisor import RootTaskEnded, run_until
from service.dispatch.dispatcher import Dispatcher
from service.model.catalog import Catalog
from service.model.gates.report import GateReport
from service.model.instruction import Lane, RunGate
from service.ring.door import Door
from service.ring.ports import Unavailable
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.test_store import keep
from tests.stories import SERVICE, Story, policy
from tests.unit.dispatch.test_dispatcher import Outside


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    await opened.close()


class Slow(Outside):
    """A mesh whose writes the test holds up."""

    def __init__(self) -> None:
        super().__init__()
        self.mesh_hangs.clear()
        self.asked = asyncio.Event()

    async def set_weights(self, place, **more):  # type: ignore[no-untyped-def]
        self.asked.set()
        return await super().set_weights(place, **more)


def made(store: SqlStore, outside: Outside, stopping: Stopping) -> Dispatcher:
    door = Door(store, Catalog(), outside)
    ports = {"meshes": {"default": outside}, "gates": outside, "pager": outside, "bus": outside}
    return Dispatcher(store, door, outside, **ports, stopping=stopping)  # type: ignore[arg-type]


async def test_an_instruction_in_flight_at_the_stop_is_completed_and_settled(store: SqlStore) -> None:
    outside, stopping = Slow(), Stopping()
    story = Story().ready()
    await keep(store, story)
    dispatcher = made(store, outside, stopping)
    running = asyncio.create_task(run_until(stopping, {"lane": dispatcher.run(Lane.WEIGHTS)}, stop_s=60))
    await outside.asked.wait()
    stopping.ask()
    await asyncio.sleep(0.05)
    assert not running.done()
    # What became owed after the stop was asked is left to others.
    other = SERVICE.model_copy(update={"name": "other"})
    await keep(store, Story(id="e2", rollout="r2", service=other).ready())
    dispatcher.poke(frozenset({Lane.WEIGHTS}))
    outside.mesh_hangs.set()
    await running
    state = (await store.load([story.state.id]))[story.state.id]
    assert (outside.percent, state.weight_seen) == (10, 10)
    assert (await store.owed_summary())[Lane.WEIGHTS][0] == 1
    assert len(outside.writes) == 1


async def test_one_that_hangs_is_cut_off_and_stays_owed(store: SqlStore) -> None:
    outside, stopping = Slow(), Stopping()
    await keep(store, Story().ready())
    dispatcher = made(store, outside, stopping)
    running = asyncio.create_task(run_until(stopping, {"lane": dispatcher.run(Lane.WEIGHTS)}, stop_s=0.2))
    await outside.asked.wait()
    stopping.ask()
    await running
    assert outside.writes == []
    assert (await store.owed_summary())[Lane.WEIGHTS][0] == 1


async def test_an_effect_that_is_done_is_settled_though_the_database_was_away_when_the_stop_came(
    store: SqlStore,
) -> None:
    outside, stopping = Outside(), Stopping()
    story = Story().ready()
    await keep(store, story)
    away = asyncio.Event()
    commit = store.commit

    async def failing(*given, **named):  # type: ignore[no-untyped-def]
        if not away.is_set():
            away.set()
            stopping.ask()
            raise Unavailable("as told")
        await commit(*given, **named)

    store.commit = failing  # type: ignore[method-assign]
    dispatcher = made(store, outside, stopping)
    await run_until(stopping, {"lane": dispatcher.run(Lane.WEIGHTS)}, stop_s=60)
    await dispatcher.settled()
    assert (await store.load([story.state.id]))[story.state.id].weight_seen == 10
    assert (await store.owed_summary())[Lane.WEIGHTS][0] == 0


async def test_a_second_wish_to_stop_does_not_wait() -> None:
    stopping, ended = Stopping(), []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("slow")

    running = asyncio.create_task(run_until(stopping, {"slow": slow()}, stop_s=3600))
    await asyncio.sleep(0)
    stopping.ask()
    await asyncio.sleep(0.01)
    assert ended == []
    stopping.ask()
    await running
    assert ended == ["slow"]


async def test_tasks_that_only_look_are_not_waited_for() -> None:
    stopping, order = Stopping(), []

    async def looks() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("looks")

    async def works() -> None:
        await stopping.wait()
        while "looks" not in order:
            await asyncio.sleep(0)
        order.append("works")

    running = asyncio.create_task(run_until(stopping, {"l": looks(), "w": works()}, stop_s=3600, at_once=["l"]))
    await asyncio.sleep(0)
    stopping.ask()
    await running
    assert order == ["looks", "works"]


async def test_a_root_task_that_ends_by_itself_ends_the_service() -> None:
    async def short() -> None:
        return

    with pytest.raises(RootTaskEnded, match="short"):
        await run_until(Stopping(), {"short": short(), "long": asyncio.sleep(3600)}, stop_s=0.1)


async def test_a_failing_root_task_lets_the_others_finish_and_its_error_is_raised() -> None:
    stopping, order = Stopping(), []

    async def fails() -> None:
        raise ValueError("a bug")

    async def works() -> None:
        await stopping.wait()
        order.append("finished")

    with pytest.raises(ValueError, match="a bug"):
        await run_until(stopping, {"fails": fails(), "works": works()}, stop_s=60)
    assert order == ["finished"]


async def test_a_stop_that_is_asked_before_the_start_is_no_fault_of_the_tasks_that_see_it_at_once() -> None:
    stopping = Stopping()
    stopping.ask()

    async def sees_it() -> None:
        assert stopping.asked

    await run_until(stopping, {str(n): sees_it() for n in range(5)}, stop_s=60)


async def test_an_error_while_stopping_is_raised_too() -> None:
    stopping = Stopping()

    async def fails_late() -> None:
        await stopping.wait()
        raise ValueError("late")

    running = asyncio.create_task(run_until(stopping, {"late": fails_late()}, stop_s=60))
    await asyncio.sleep(0)
    stopping.ask()
    with pytest.raises(ValueError, match="late"):
        await running


async def test_a_stop_cuts_off_a_look_at_a_gate_and_leaves_it_to_others_at_once(store: SqlStore) -> None:
    class Looking(Outside):
        began = asyncio.Event()

        async def look(self, order: RunGate) -> GateReport:
            self.began.set()
            await asyncio.Event().wait()
            raise AssertionError

    outside, stopping = Looking(), Stopping()
    await keep(store, Story(policy=policy(preflight=[{"gate": "image"}])).ready())
    dispatcher = made(store, outside, stopping)
    running = asyncio.create_task(run_until(stopping, {"lane": dispatcher.run(Lane.PREFLIGHT)}, stop_s=60))
    await outside.began.wait()
    assert not await store.owed(Lane.PREFLIGHT, outside.now(), limit=9, lease_s=30)
    stopping.ask()
    await asyncio.wait_for(running, 10)
    assert len(await store.owed(Lane.PREFLIGHT, outside.now(), limit=9, lease_s=30)) == 1
