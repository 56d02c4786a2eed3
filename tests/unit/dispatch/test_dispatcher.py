"""The dispatcher on a real store: what is owed is carried out once it can be, and lanes never wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.dispatch import effects
from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import LEASE_S, Dispatcher
from service.model.catalog import Catalog
from service.model.gates.report import Finding, GateReport
from service.model.instruction import Lane, Page, Publish, RunGate
from service.model.names import RolloutId, ServiceKey
from service.model.rollout import Phase, RolloutState, Waiting
from service.model.stimulus import EventKind, Stimulus, Verb
from service.model.target import Place
from service.ring.answer import Answer
from service.ring.breaker import Breaker
from service.ring.door import Door, Told
from service.ring.ports import Refused, Unavailable, WeightsSeen
from service.ring.seen import Unseen
from service.ring.stopping import Stopping
from service.ring.store import LONGEST_HIDDEN_S, Conflict, Damaged, KillSwitch
from service.rollout import machine
from service.rollout.turn import Step
from service.storage import tables as t
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.test_store import change, keep
from tests.stories import SERVICE, START, Story, catalog, event, lean, place, policy, request


class Outside:
    """The world as it is told to be: a mesh, a pager and a bus in one, and the clock."""

    def __init__(self) -> None:
        self.moment = START
        self.percent: int | None = 0
        self.fence = 0
        self.is_ready = True
        self.gate_finds = Finding.PASSED
        self.mesh_error: Exception | None = None
        self.pager_error: Exception | None = None
        self.mesh_hangs = asyncio.Event()
        self.mesh_hangs.set()
        self.writes: list[tuple[int, int]] = []
        self.pages: list[Page] = []
        self.published: list[Publish] = []

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        await asyncio.sleep(0)

    async def set_weights(
        self, place: Place, *, canary_percent: int, fence: int, rollout: str, first: bool = False
    ) -> WeightsSeen:
        await self.mesh_hangs.wait()
        if self.mesh_error:
            raise self.mesh_error
        if fence < self.fence:
            raise Refused("a newer decision stands")
        self.writes.append((canary_percent, fence))
        self.percent, self.fence = canary_percent, fence
        return WeightsSeen(canary_percent, fence, changed=True)

    async def get_weights(self, places: Sequence[Place]) -> Sequence[WeightsSeen]:
        return [WeightsSeen(self.percent, self.fence) for _ in places]

    async def ready(self, place: Place) -> tuple[bool, str]:
        return self.is_ready, "as told"

    async def look(self, order: RunGate) -> GateReport:
        return GateReport(gate=order.rule.gate, finding=self.gate_finds, sentence="as told.")

    async def send(self, page: Page) -> None:
        if self.pager_error:
            raise self.pager_error
        self.pages.append(page)

    async def publish(self, order: Publish) -> None:
        self.published.append(order)


class Tried(Unseen):
    """Keeps how each try ended."""

    def __init__(self, outcomes: list[str]) -> None:
        self.outcomes = outcomes

    def tried(self, kind: str, outcome: str, took_s: float) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    await opened.close()


def named(name: str) -> ServiceKey:
    return SERVICE.model_copy(update={"name": name})


def made(store: SqlStore, outside: Outside, **more: Any) -> tuple[Door, Dispatcher]:
    door = Door(store, Catalog(), outside)
    return door, Dispatcher(
        store, door, outside, meshes={"default": outside}, gates=outside, pager=outside, bus=outside, **more
    )


async def phase(store: SqlStore, story: Story) -> Phase:
    return (await store.load([story.state.id]))[story.state.id].phase


async def test_readiness_leads_to_a_weight_and_its_confirmation(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    story = Story()
    await keep(store, story)
    await dispatcher.turn(Lane.READINESS)
    assert await phase(store, story) is Phase.PROGRESSING
    await dispatcher.turn(Lane.WEIGHTS)
    state = (await store.load([story.state.id]))[story.state.id]
    assert (outside.percent, state.weight_seen) == (10, 10)
    assert (await store.owed_summary())[Lane.WEIGHTS] == (0, None)


async def test_a_candidate_that_is_not_ready_is_asked_again_later(store: SqlStore) -> None:
    outside = Outside()
    outside.is_ready = False
    _, dispatcher = made(store, outside)
    await keep(store, Story())
    assert await dispatcher.turn(Lane.READINESS) == 1
    assert await dispatcher.turn(Lane.READINESS) == 0
    await outside.sleep(3)
    assert await dispatcher.turn(Lane.READINESS) == 1


async def test_a_gate_that_cannot_look_is_tried_again_until_its_time_is_over(store: SqlStore) -> None:
    outside = Outside()
    outside.gate_finds = Finding.COULD_NOT_LOOK
    _, dispatcher = made(store, outside)
    story = Story(policy=policy(preflight=[{"gate": "model"}], gate_timeout="1m")).ready()
    await keep(store, story)
    assert await dispatcher.turn(Lane.PREFLIGHT) == 1
    assert await phase(store, story) is Phase.STARTING
    assert await dispatcher.turn(Lane.PREFLIGHT) == 0
    await outside.sleep(61)
    assert await dispatcher.turn(Lane.PREFLIGHT) == 1
    assert await phase(store, story) is Phase.HELD
    outside.gate_finds = Finding.PASSED
    await outside.sleep(31)
    assert await dispatcher.turn(Lane.PREFLIGHT) == 1
    assert await phase(store, story) is Phase.PROGRESSING


async def test_the_gates_of_a_rollout_are_looked_at_side_by_side_and_newcomers_before_what_was_tried(
    store: SqlStore,
) -> None:
    outside = Outside()
    outside.gate_finds = Finding.COULD_NOT_LOOK
    _, dispatcher = made(store, outside)
    gates = [{"gate": "image"}, {"gate": "security"}, {"gate": "model"}]
    await keep(store, Story(policy=policy(preflight=gates)))
    assert await dispatcher.turn(Lane.PREFLIGHT) == 3
    other = SERVICE.model_copy(update={"name": "other"})
    await keep(store, Story(id="e2", rollout="r2", service=other, policy=policy(preflight=[{"gate": "image"}])))
    await outside.sleep(40)
    (first,) = await store.owed(Lane.PREFLIGHT, outside.now(), limit=1, lease_s=30, in_order=False)
    assert first.instruction.rollout == "r2"


async def test_a_gate_that_hangs_is_cut_off_and_could_not_look(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(Outside):
        async def look(self, order: RunGate) -> GateReport:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(effects, "GATE_TRY_S", 1.01)
    outside = Hanging()
    _, dispatcher = made(store, outside)
    story = Story(policy=policy(preflight=[{"gate": "model"}], gate_timeout="0s")).ready()
    await keep(store, story)
    assert await dispatcher.turn(Lane.PREFLIGHT) == 1
    assert await phase(store, story) is Phase.STARTING  # one look does not show that nothing can be seen
    await outside.sleep(3)
    assert await dispatcher.turn(Lane.PREFLIGHT) == 1
    state = (await store.load([story.state.id]))[story.state.id]
    assert (state.phase, state.gates[0].finding) == (Phase.HELD, Finding.COULD_NOT_LOOK)
    assert "cut off" in state.reason


async def test_a_look_that_began_before_a_person_resumed_is_not_the_answer_to_the_new_one(store: SqlStore) -> None:
    class Mended(Outside):
        def __init__(self) -> None:
            super().__init__()
            self.looks_n = 0
            self.answers = asyncio.Event()

        async def look(self, order: RunGate) -> GateReport:
            self.looks_n += 1
            if self.looks_n > 1:
                return GateReport(gate=order.rule.gate, finding=Finding.PASSED, sentence="as mended.")
            await self.answers.wait()
            return GateReport(gate=order.rule.gate, finding=Finding.FAILED, sentence="as it was.")

    outside = Mended()
    door, dispatcher = made(store, outside)
    story = Story(policy=policy(preflight=[{"gate": "model"}])).ready()
    await keep(store, story)
    old = asyncio.create_task(dispatcher.turn(Lane.PREFLIGHT))
    while not outside.looks_n:
        await asyncio.sleep(0)
    for verb in (Verb.PAUSE, Verb.RESUME):
        assert (await door.act(story.state.id, verb, actor="ana", reason="mend it", request_id=verb)).accepted
    outside.answers.set()
    await old
    assert await phase(store, story) is Phase.STARTING
    assert await dispatcher.turn(Lane.PREFLIGHT) == 1
    state = (await store.load([story.state.id]))[story.state.id]
    assert [(one.finding, one.sentence) for one in state.gates] == [(Finding.PASSED, "as mended.")]


async def test_what_fails_for_now_stays_owed_with_growing_pauses(store: SqlStore) -> None:
    outside = Outside()
    outside.mesh_error = Unavailable("503")
    _, dispatcher = made(store, outside)
    await keep(store, Story().ready())
    tries = []
    for second in range(40):
        if await dispatcher.turn(Lane.WEIGHTS):
            tries.append(second)
        await outside.sleep(1)
    assert 4 <= len(tries) <= 8
    outside.mesh_error = None
    await outside.sleep(60)
    await dispatcher.turn(Lane.WEIGHTS)
    assert outside.percent == 10


@pytest.mark.parametrize(("wished_s", "waits_s"), [(20, 20), (86_400, LONGEST_HIDDEN_S)])
async def test_the_other_sides_wish_to_wait_is_kept_within_bounds(
    store: SqlStore, wished_s: float, waits_s: float
) -> None:
    outside = Outside()
    outside.mesh_error = Unavailable("429", retry_after_s=wished_s)
    _, dispatcher = made(store, outside)
    await keep(store, Story().ready())
    await dispatcher.turn(Lane.WEIGHTS)
    await outside.sleep(waits_s - 1)
    assert await dispatcher.turn(Lane.WEIGHTS) == 0
    await outside.sleep(2)
    assert await dispatcher.turn(Lane.WEIGHTS) == 1


async def test_an_instruction_is_settled_at_the_services_own_time(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    await keep(store, Story().ready())
    await outside.sleep(7)
    await dispatcher.turn(Lane.WEIGHTS)
    o = t.outbox.c
    (row,) = await store.read("look", sa.select(o.settled_at).where(o.lane == Lane.WEIGHTS, o.settled_at.is_not(None)))
    assert row.settled_at == outside.now().timestamp()


async def test_what_is_refused_is_answered_to_the_core(store: SqlStore) -> None:
    outside = Outside()
    outside.mesh_error = Refused("no such route")
    _, dispatcher = made(store, outside)
    story = Story().ready()
    await keep(store, story)
    await dispatcher.turn(Lane.WEIGHTS)
    state = (await store.load([story.state.id]))[story.state.id]
    assert (state.phase, state.waiting) == (Phase.HELD, Waiting.MESH)
    assert "no such route" in state.reason


async def test_a_cluster_that_only_other_replicas_know_is_left_to_them(store: SqlStore) -> None:
    outside = Outside()
    _, knows = made(store, outside)
    ports = {"meshes": {"other": outside}, "gates": outside, "pager": outside, "bus": outside}
    older = Dispatcher(store, Door(store, Catalog(), outside), outside, **ports)  # type: ignore[arg-type]
    story = Story().ready()
    await keep(store, story)
    for lane, where in older.lanes():
        await older.turn(lane, where)
    assert (await store.load([story.state.id]))[story.state.id] == story.state
    await outside.sleep(61)
    await knows.turn(Lane.WEIGHTS)
    assert (await store.load([story.state.id]))[story.state.id].weight_seen == 10


async def test_the_kill_switch_keeps_every_weight_where_it_is_until_it_is_off(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    await keep(store, Story().progressing().window(harmful=True, **lean(200)))
    await store.set_kill_switch(KillSwitch(True, "ana", "storm", START))
    await dispatcher.turn(Lane.RETREAT)
    assert outside.writes == []
    await store.set_kill_switch(KillSwitch(False, "ana", "over", START))
    await outside.sleep(5)
    await dispatcher.turn(Lane.RETREAT)
    assert [w[0] for w in outside.writes] == [0]


async def test_a_page_goes_out_while_the_mesh_hangs(store: SqlStore) -> None:
    outside = Outside()
    outside.mesh_hangs.clear()
    _, dispatcher = made(store, outside)
    await keep(store, Story().progressing().window(harmful=True, **lean(200)))
    writing = asyncio.create_task(dispatcher.turn(Lane.RETREAT))
    await asyncio.sleep(0)
    await dispatcher.turn(Lane.PAGES)
    assert any(p.dedup_key.endswith("/rollback") for p in outside.pages)
    assert not writing.done()
    outside.mesh_hangs.set()
    await writing
    assert outside.percent == 0


async def test_a_page_that_the_pager_refuses_is_not_tried_for_ever(store: SqlStore) -> None:
    outside = Outside()
    outside.pager_error = Refused("400")
    _, dispatcher = made(store, outside)
    await keep(store, Story())
    await dispatcher.turn(Lane.PAGES)
    assert (await store.owed_summary())[Lane.PAGES][0] == 0


async def test_decisions_reach_the_bus_in_their_order(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    story = Story().progressing().window().window().window().written().window(harmful=True, **lean(300)).written()
    await keep(store, story)
    await dispatcher.turn(Lane.PUBLISH)
    assert [p.content["decision"] for p in outside.published] == [
        "continue",
        "continue",
        "advance",
        "rollback",
        "rollback",
    ]


async def test_a_page_is_resolved_only_after_it_was_sent(store: SqlStore) -> None:
    outside = Outside()
    outside.pager_error = Unavailable("503")
    _, dispatcher = made(store, outside)
    story = Story().progressing().window(harmful=True, **lean(200))
    await keep(store, story)
    await dispatcher.turn(Lane.PAGES)
    story.written()
    assert any(order.type == "page" and order.action == "resolve" for order in story.last.orders)
    await store.commit([change(story.last, story.steps[-2].state.revision)])
    outside.pager_error = None
    assert await dispatcher.turn(Lane.PAGES) == 0  # the newer ones wait for the older ones' pause to end
    await outside.sleep(1)
    await dispatcher.turn(Lane.PAGES)
    actions = [p.action for p in outside.pages if p.dedup_key.endswith("/rollback")]
    assert actions == ["trigger", "resolve"]


async def test_what_is_owed_after_an_instruction_under_way_waits_for_it(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    story = Story()
    await keep(store, story)
    answer = asyncio.Event()
    publish = outside.publish

    async def slow(order: Publish) -> None:
        await answer.wait()
        await publish(order)

    outside.publish = slow  # type: ignore[method-assign]
    first = asyncio.create_task(dispatcher.turn(Lane.PUBLISH))
    while (await store.owed(Lane.PUBLISH, outside.moment, limit=9, lease_s=0)) != []:
        await asyncio.sleep(0)
    story.ready()
    await store.commit([change(story.last, story.steps[-2].state.revision)])
    await outside.sleep(31)  # the lease of the first has run out, and it is still being carried out
    assert await dispatcher.turn(Lane.PUBLISH) == 0
    answer.set()
    await first
    await outside.sleep(31)
    await dispatcher.turn(Lane.PUBLISH)
    assert [order.event_id for order in outside.published] == [
        order.event_id for step in story.steps for order in step.orders if isinstance(order, Publish)
    ]


async def test_one_target_that_hangs_does_not_delay_the_others_of_its_lane(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    stuck = asyncio.Event()
    write = outside.set_weights

    async def sometimes(place: Place, **asked: Any) -> WeightsSeen:
        if place.virtual_service == "stuck-route":
            await stuck.wait()
        return await write(place, **asked)

    outside.set_weights = sometimes  # type: ignore[method-assign,assignment]
    running = asyncio.create_task(dispatcher.run(Lane.WEIGHTS))
    stories = []
    for n in range(60):
        service = SERVICE.model_copy(update={"name": f"s{n}"})
        where = place(virtual_service="stuck-route" if n == 0 else f"r{n}")
        # The one fence of this outside is that of the newest decision.
        story = Story(id=f"e{n}", rollout=f"r{n}", service=service, place=where, at=START + timedelta(seconds=n))
        await keep(store, story.ready())
        stories.append(story)
    async with asyncio.timeout(20):
        while (await store.owed_summary())[Lane.WEIGHTS][0] > 1:
            await asyncio.sleep(0.01)
    assert len(outside.writes) == 59
    running.cancel()
    stuck.set()
    await asyncio.wait([running])


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_lane_that_is_cut_off_cuts_what_is_under_way_once_and_waits_for_its_clean_up(
    store: SqlStore, stopping: bool
) -> None:
    """It left that to itself, so that connections were still in use when the store was closed."""
    outside, stop = Outside(), Stopping()
    _, dispatcher = made(store, outside, stopping=stop)
    begun, told = asyncio.Event(), []

    async def hanging(place: Place, **asked: Any) -> WeightsSeen:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.append("cut off")
            for _ in range(5):
                await asyncio.sleep(0)
            told.append("cleaned up")
        raise AssertionError

    outside.set_weights = hanging  # type: ignore[method-assign,assignment]
    running = asyncio.create_task(dispatcher.run(Lane.WEIGHTS))
    await keep(store, Story().ready())
    async with asyncio.timeout(20):
        await begun.wait()
    if stopping:
        stop.ask()
        await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait([running])
    assert told == ["cut off", "cleaned up"]


async def test_a_mesh_that_is_away_is_asked_once_a_pause_and_not_by_every_instruction(store: SqlStore) -> None:
    outside = Outside()
    outside.mesh_error = Unavailable("connection refused")
    tried: list[str] = []
    _, dispatcher = made(store, outside, seen=Tried(tried))
    for n in range(200):
        service = SERVICE.model_copy(update={"name": f"s{n}"})
        await keep(store, Story(id=f"e{n}", rollout=f"r{n}", service=service).ready())
    running = asyncio.create_task(dispatcher.run(Lane.WEIGHTS))
    while outside.moment < START + timedelta(minutes=5):
        await asyncio.sleep(0)
    assert len(tried) < 32 + 5 * 60 / 5 + 20
    outside.mesh_error = None
    async with asyncio.timeout(20):
        while (await store.owed_summary())[Lane.WEIGHTS][0]:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])


async def test_a_few_instructions_that_always_fail_do_not_keep_the_others_of_their_lane_from_being_tried(
    store: SqlStore,
) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    write = outside.set_weights

    async def sometimes(place: Place, **asked: Any) -> WeightsSeen:
        if place.virtual_service == "bad-route":
            raise Unavailable("500 failed calling webhook")
        return await write(place, **asked)

    outside.set_weights = sometimes  # type: ignore[method-assign,assignment]

    async def begin(n: int, route: str) -> None:
        service = SERVICE.model_copy(update={"name": f"s{n}"})
        at = START + timedelta(seconds=n)
        await keep(
            store,
            Story(id=f"e{n}", rollout=f"r{n}", service=service, place=place(virtual_service=route), at=at).ready(),
        )

    for n in range(3):
        await begin(n, "bad-route")
    running = asyncio.create_task(dispatcher.run(Lane.WEIGHTS))
    while outside.moment < START + timedelta(minutes=5):
        await asyncio.sleep(0)
    for n in range(3, 8):
        await begin(n, f"r{n}")
    began = outside.moment
    while (await store.owed_summary())[Lane.WEIGHTS][0] > 3 and outside.moment < began + timedelta(minutes=1):
        await asyncio.sleep(0)
    assert len(outside.writes) == 5
    running.cancel()
    await asyncio.wait([running])


async def test_outcomes_that_come_together_are_written_together(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    for n in range(40):
        service = SERVICE.model_copy(update={"name": f"s{n}"})
        await keep(store, Story(id=f"e{n}", rollout=f"r{n}", service=service))
    commits = 0

    def count(*_: object) -> None:
        nonlocal commits
        commits += 1

    sa.event.listen(store._engine.sync_engine, "commit", count)
    assert await dispatcher.turn(Lane.READINESS) == 40
    assert commits <= 4
    assert (await store.owed_summary())[Lane.WEIGHTS][0] == 40


async def test_outcomes_wait_for_a_database_that_is_away(store: SqlStore) -> None:
    outside = Outside()
    door, dispatcher = made(store, outside)
    story = Story().ready()
    await keep(store, story)
    tell, away = door.tell, 3

    async def sometimes(*facts: Any, **given: Any) -> Any:
        nonlocal away
        away -= 1
        if away >= 0:
            raise Unavailable("the database is away")
        return await tell(*facts, **given)

    door.tell = sometimes  # type: ignore[method-assign]
    await dispatcher.turn(Lane.WEIGHTS)
    assert (await store.load([story.state.id]))[story.state.id].weight_seen == 10
    assert len(outside.writes) == 1


async def test_an_outcome_that_meets_another_writer_is_written_all_the_same(store: SqlStore) -> None:
    outside = Outside()
    outside.is_ready = False
    _, dispatcher = made(store, outside)
    await keep(store, Story())
    write, others = store.writing, 3

    @asynccontextmanager
    async def sometimes(what: str) -> AsyncIterator[Any]:
        nonlocal others
        async with write(what) as connection:
            yield connection
            if what != "read what is owed" and others:
                others -= 1
                raise Conflict("a deadlock")

    store.writing = sometimes  # type: ignore[method-assign]
    assert await dispatcher.turn(Lane.READINESS) == 1
    await outside.sleep(30)
    (again,) = await store.owed(Lane.READINESS, outside.now(), limit=9, lease_s=30)
    assert (others, again.attempts) == (0, 1)


async def test_an_outcome_for_a_rollout_that_a_newer_replica_has_taken_keeps_no_other_from_being_written(
    store: SqlStore,
) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    for n in range(3):
        service = SERVICE.model_copy(update={"name": f"s{n}"})
        await keep(store, Story(id=f"e{n}", rollout=f"r{n}", service=service).ready())
    write = outside.set_weights

    async def meanwhile(place: Place, **asked: Any) -> WeightsSeen:
        await store.write("carry on", [t.rollouts.update().where(t.rollouts.c.id == "r0").values(format=99)])
        return await write(place, **asked)

    outside.set_weights = meanwhile  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(20):
        await dispatcher.turn(Lane.WEIGHTS)
    states = await store.load([RolloutId("r1"), RolloutId("r2")])
    assert [state.weight_seen for state in states.values()] == [10, 10]
    # The newer replica finds it owed.
    assert (await store.owed_summary())[Lane.WEIGHTS][0] == 1
    await store.write("play it", [t.rollouts.update().where(t.rollouts.c.id == "r0").values(format=1)])
    await outside.sleep(31)
    assert len(await store.owed(Lane.WEIGHTS, outside.now(), limit=9, lease_s=0)) == 1


async def test_an_instruction_whose_lease_cannot_cover_a_try_is_left_to_others(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    await keep(store, Story().ready())
    owed = await store.owed(Lane.WEIGHTS, outside.now(), limit=1, lease_s=30)
    until = outside.now() + timedelta(seconds=30)
    await outside.sleep(25)  # the process stood still
    await dispatcher._carry(owed, until, Breaker(outside))
    assert outside.writes == []


async def test_a_crash_after_the_write_and_before_the_outcome_costs_one_repetition(store: SqlStore) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    story = Story().ready()
    await keep(store, story)
    (owed,) = await store.owed(Lane.WEIGHTS, outside.now(), limit=1, lease_s=60)
    await dispatcher._effects.carry_out(owed)  # the effect happens, and the process dies here
    assert outside.percent == 10
    await outside.sleep(61)
    await dispatcher.turn(Lane.WEIGHTS)
    assert [w[0] for w in outside.writes] == [10, 10]
    state = (await store.load([story.state.id]))[story.state.id]
    assert state.weight_seen == 10


async def test_drift_is_seen_by_the_watch_and_put_back(store: SqlStore) -> None:
    outside = Outside()
    door, dispatcher = made(store, outside)
    watch = Clockwork(store, door, outside, {"default": outside})
    story = Story().progressing()
    await keep(store, story)
    outside.percent, outside.fence = 10, story.state.fence
    await watch.watch_turn("default")
    assert (await store.load([story.state.id]))[story.state.id].revision == story.state.revision
    outside.percent = 70
    await outside.sleep(60)
    await watch.watch_turn("default")
    await outside.sleep(61)
    await watch.watch_turn("default")
    await dispatcher.turn(Lane.WEIGHTS)
    assert outside.percent == 10


async def test_what_the_watch_may_not_read_is_no_drift_and_hides_no_other(store: SqlStore) -> None:
    outside = Outside()
    door, _ = made(store, outside)
    watch = Clockwork(store, door, outside, {"default": outside})
    stories = [Story(id=f"e{i}", rollout=f"r{i}", service=named(f"s{i}")).progressing() for i in range(2)]
    for story in stories:
        await keep(store, story)
    closed = WeightsSeen(None, None, detail="403", unseen=True)

    async def one_closed(places: Sequence[Place]) -> Sequence[WeightsSeen]:
        return [closed, WeightsSeen(70, 1)]

    outside.get_weights = one_closed  # type: ignore[method-assign]
    await watch.watch_turn("default")
    states = await store.load([story.state.id for story in stories])
    assert [states[story.state.id].drift_since is not None for story in stories] == [False, True]

    async def all_closed(places: Sequence[Place]) -> Sequence[WeightsSeen]:
        return [closed] * len(places)

    outside.get_weights = all_closed  # type: ignore[method-assign]
    with pytest.raises(Refused, match="2 of 2 routes of cluster default may not be read"):
        await watch.watch_turn("default")


async def test_a_replica_that_cannot_see_a_cluster_leaves_its_watch_to_another(store: SqlStore) -> None:
    outside = Outside()
    door, _ = made(store, outside)
    await keep(store, Story().progressing())
    turns: list[str] = []

    class Seeing(Outside):
        def __init__(self, name: str, error: Exception | None) -> None:
            super().__init__()
            self.name = name
            self.error = error

        async def get_weights(self, places: Sequence[Place]) -> Sequence[WeightsSeen]:
            turns.append(self.name)
            if self.error:
                raise self.error
            return await super().get_weights(places)

    class InTurn(Outside):
        """A clock on which a replica sleeps until the test lets it go on."""

        def __init__(self) -> None:
            super().__init__()
            self.asleep = asyncio.Event()
            self.goes_on = asyncio.Event()

        async def sleep(self, seconds: float) -> None:
            self.asleep.set()
            await self.goes_on.wait()
            self.goes_on.clear()

        async def turn(self) -> None:
            self.moment += timedelta(seconds=30)
            self.asleep.clear()
            self.goes_on.set()
            await self.asleep.wait()

    clocks = [InTurn(), InTurn()]
    meshes = [Seeing("blind", Unavailable("no route to host")), Seeing("sees", None)]
    watches = [
        asyncio.create_task(Clockwork(store, door, clock, {"default": mesh}, replica=mesh.name).watch("default"))
        for clock, mesh in zip(clocks, meshes, strict=True)
    ]
    for clock in clocks:
        await clock.asleep.wait()
    for _ in range(8):
        # The one that is blind is always a moment ahead.
        for clock in clocks:
            await clock.turn()
    for one in watches:
        one.cancel()
    assert turns == ["blind", *["sees"] * 8]


async def test_a_rollout_is_woken_when_its_moment_comes(store: SqlStore) -> None:
    outside = Outside()
    door, _ = made(store, outside)
    watch = Clockwork(store, door, outside, {"default": outside})
    story = Story()
    await keep(store, story)
    await watch.wake_turn()
    assert await phase(store, story) is Phase.STARTING
    await outside.sleep(1801)
    await watch.wake_turn()
    assert await phase(store, story) is Phase.HELD


class Faulty(Door):
    """A door at which nobody has foreseen the facts of one rollout."""

    async def tell(self, facts: Sequence[Told], **more: Any) -> Sequence[Answer]:  # type: ignore[override]
        if any(fact.rollout == "r1" for fact in facts):
            raise AssertionError("unforeseen")
        return await super().tell(facts, **more)


async def test_a_rollout_that_raises_the_unforeseen_keeps_no_other_from_being_woken(
    store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    outside = Outside()
    clockwork = Clockwork(store, Faulty(store, Catalog(), outside), outside, {"default": outside})
    stories = [Story(id=f"e{i}", rollout=f"r{i}", service=named(f"s{i}")) for i in range(3)]
    for story in stories:
        await keep(store, story)
    await outside.sleep(1801)
    for _ in range(5):
        await clockwork.wake_turn()
    assert [await phase(store, story) for story in stories] == [Phase.HELD, Phase.STARTING, Phase.HELD]
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "cannot wake rollout r1" in told.getMessage()
    assert told.exc_info


async def test_a_rollout_that_raises_the_unforeseen_keeps_no_other_from_being_watched(store: SqlStore) -> None:
    outside = Outside()
    clockwork = Clockwork(store, Faulty(store, Catalog(), outside), outside, {"default": outside})
    stories = [Story(id=f"e{i}", rollout=f"r{i}", service=named(f"s{i}")).progressing() for i in range(3)]
    for story in stories:
        await keep(store, story)
    outside.percent = 70
    await clockwork.watch_turn("default")
    states = await store.load([story.state.id for story in stories])
    assert [states[story.state.id].drift_since is not None for story in stories] == [True, False, True]


CATALOG = catalog(namespace="ml-*", max_first_weight_percent=20)


async def test_the_same_events_in_any_order_and_number_have_the_effect_of_once(store: SqlStore) -> None:
    door = Door(store, CATALOG, Outside())
    newest = event("c", "4", minute=3)
    await door.events([event("b", "3", minute=2), event("a", "2", minute=1), event("b", "3", minute=2)])
    await door.events([newest])
    await door.events([event("a", "2", minute=1), newest])
    running = (await store.active([SERVICE]))[SERVICE]
    assert running.version == "3"
    assert running.successor is not None
    assert running.successor.version == "4"


async def test_an_event_may_pick_a_smaller_weight_and_never_a_larger_than_allowed(store: SqlStore) -> None:
    for n, (asked, given) in enumerate(((3, 3), (15, 15), (90, 20))):
        door = Door(store, CATALOG, Outside())
        await door.events([event(f"e{n}", service=f"svc-{n}", first_weight_percent=asked)])
        key = SERVICE.model_copy(update={"name": f"svc-{n}"})
        assert (await store.active([key]))[key].first_weight_percent == given


async def test_a_policy_that_the_target_does_not_allow_is_not_taken(store: SqlStore) -> None:
    await Door(store, CATALOG, Outside()).events([event("e", policy="yolo")])
    assert (await store.active([SERVICE]))[SERVICE].policy.name == "test"


async def test_an_event_for_nobody_is_remembered_and_starts_nothing(store: SqlStore) -> None:
    door = Door(store, CATALOG, Outside())
    await door.events([event("e", namespace="other"), event("f", version=None), event("g", version="1")])
    assert (await store.active([SERVICE])) == {}
    assert await store.unseen([("/ci", "e"), ("/ci", "f")]) == frozenset()


async def test_a_removed_service_ends_its_rollout(store: SqlStore) -> None:
    door = Door(store, CATALOG, Outside())
    await door.events([event("a")])
    await door.events([event("b", kind=EventKind.REMOVED, minute=1)])
    assert (await store.active([SERVICE]))[SERVICE].phase is Phase.ROLLING_BACK


@pytest.mark.parametrize(
    ("spoilt", "error"), [({"format": 99}, Unavailable), ({"state": "{}"}, Damaged)], ids=["newer", "damaged"]
)
async def test_events_of_a_service_whose_rollout_cannot_be_read_are_left_and_all_others_are_taken_in(
    store: SqlStore, spoilt: dict[str, Any], error: type[Exception]
) -> None:
    door = Door(store, CATALOG, Outside())
    await door.events([event("a", service="spoilt")])
    await store.write("spoil", [t.rollouts.update().values(spoilt)])
    batch = [event("b", "3", minute=1, service="spoilt"), event("c"), event("d", service="third")]
    with pytest.raises(error, match="cannot be read"):
        await door.events(batch)
    assert await store.unseen([("/ci", one.id) for one in batch]) == {("/ci", "b")}
    assert (await store.active([SERVICE]))[SERVICE].version == "2"
    await door.events([event("a", service="spoilt")])  # seen, so that nothing waits for it


async def test_two_writers_on_one_rollout_both_get_through(store: SqlStore) -> None:
    outside = Outside()
    story = Story().progressing()
    await keep(store, story)
    doors = [Door(store, Catalog(), outside) for _ in range(2)]
    facts = [Story(id="x").progressing().window().facts[-1], request(id="e9", version="9")]
    answers = await asyncio.gather(
        *(door.tell([Told(story.state.id, fact)]) for door, fact in zip(doors, facts, strict=True))
    )
    assert all(a[0].accepted for a in answers) or sum(a[0].accepted for a in answers) == 1
    state = (await store.load([story.state.id]))[story.state.id]
    assert state.phase is Phase.ROLLING_BACK


async def test_an_effect_that_fails_in_a_way_nobody_foresaw_is_tried_again_and_stops_no_other(store: SqlStore) -> None:
    class Poisoned(Outside):
        async def set_weights(
            self, place: Place, *, canary_percent: int, fence: int, rollout: str, first: bool = False
        ) -> WeightsSeen:
            if rollout == poisoned and not self.mended:
                raise KeyError("nobody foresaw this")
            return await super().set_weights(
                place, canary_percent=canary_percent, fence=fence, rollout=rollout, first=first
            )

        mended = False

    outside = Poisoned()
    _, dispatcher = made(store, outside)
    one, other = (Story(place=place(readiness=None), service=named(n), id=n, rollout=f"r-{n}") for n in ("one", "two"))
    poisoned = one.state.id
    for story in (one, other):
        await keep(store, story)
    await dispatcher.turn(Lane.WEIGHTS)
    states = await store.load([one.state.id, other.state.id])
    assert [states[story.state.id].weight_seen for story in (one, other)] == [None, 10]
    outside.mended = True
    outside.moment += timedelta(seconds=20)
    await dispatcher.turn(Lane.WEIGHTS)
    assert (await store.load([poisoned]))[poisoned].weight_seen == 10


async def test_an_outcome_that_the_core_cannot_take_is_dropped_alone_and_owed_still(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = Outside()
    _, dispatcher = made(store, outside)
    stories = [Story(place=place(readiness=None), service=named(n), id=n, rollout=f"r-{n}") for n in ("one", "two")]
    for story in stories:
        await keep(store, story)
    poisoned, other = (story.state.id for story in stories)
    real = machine.step

    def step(state: RolloutState, stimulus: Stimulus) -> Step:
        if state.id == poisoned:
            raise machine.IllegalTransition("nobody foresaw this")
        return real(state, stimulus)

    with monkeypatch.context() as patched:
        patched.setattr(machine, "step", step)
        await dispatcher.turn(Lane.WEIGHTS)
    states = await store.load([poisoned, other])
    assert (states[poisoned].weight_seen, states[other].weight_seen) == (None, 10)
    outside.moment += timedelta(seconds=LEASE_S + 1)
    await dispatcher.turn(Lane.WEIGHTS)
    assert (await store.load([poisoned]))[poisoned].weight_seen == 10
