"""The store's contract, on SQLite and, as a real test, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from service.model.instruction import Lane
from service.model.journal import first_broken_row
from service.model.names import RolloutId, ServiceKey
from service.model.rollout import Phase, RolloutState
from service.model.stimulus import STIMULUS, EventKind, Verb, WindowJudged
from service.ring.door import Door
from service.ring.ports import Refused, Unavailable
from service.ring.store import (
    Change,
    Conflict,
    Damaged,
    KillSwitch,
    Postponed,
    RollbackLimit,
    RolloutFilter,
    ServiceHead,
    TooManyRollbacks,
    Unreadable,
    Where,
)
from service.rollout import machine
from service.storage import tables as t
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.stories import change, keep
from tests.real.parts import postgres
from tests.stories import SERVICE, START, Story, catalog, event, lean, request


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlStore]:
    url = f"sqlite:///{tmp_path / 'serinus.db'}" if request.param == "sqlite" else postgres.shared().database()
    opened = await open_store(url)
    yield opened
    await opened.close()


async def test_what_was_committed_is_read_back_equal(store: SqlStore) -> None:
    story = Story().progressing().window()
    await keep(store, story)
    assert (await store.load([story.state.id]))[story.state.id] == story.state
    assert (await store.active([SERVICE]))[SERVICE] == story.state
    rows = await store.journal(story.state.id)
    assert first_broken_row(list(rows)) is None
    assert [w.window for w in await store.windows(story.state.id)] == [1]


async def test_the_history_replays_to_the_same_state(store: SqlStore) -> None:
    story = Story().progressing().window().window(**lean(15)).window(**lean(2)).person(Verb.PAUSE).person(Verb.RESUME)
    await keep(store, story)
    facts = [STIMULUS.validate_json(text) for _, text in await store.history(story.state.id)]
    state = machine.begin(facts[0]).state  # type: ignore[arg-type]
    for fact in facts[1:]:
        state = machine.step(state, fact).state
    assert state.to_json() == story.state.to_json()


async def test_an_older_revision_is_a_conflict_and_nothing_is_written(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    step = machine.step(story.state, story.window().facts[-1])
    with pytest.raises(Conflict):
        await store.commit([change(step, was=1)], seen=[("/ci", "e9", START)])
    assert await store.unseen([("/ci", "e9")]) == {("/ci", "e9")}


async def test_a_service_has_at_most_one_active_rollout(store: SqlStore) -> None:
    await keep(store, Story())
    with pytest.raises(Conflict):
        await keep(store, Story(id="e2"))


async def test_a_successor_starts_in_the_transaction_that_ends_its_predecessor(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    was = story.state.revision
    story.tell(request(id="e2", version="2.14.0"))
    await store.commit([change(story.last, was)])
    was = story.state.revision
    story.written()
    assert story.last.begin is not None
    begun = machine.begin(story.last.begin)
    await store.commit([change(story.last, was), change(begun, None)])
    assert (await store.active([SERVICE]))[SERVICE].id == begun.state.id


async def test_a_newer_order_replaces_the_older_owed_one(store: SqlStore) -> None:
    story = Story().ready().person(Verb.ROLLBACK)
    await keep(store, story)
    assert await store.owed(Lane.WEIGHTS, START, limit=10, lease_s=30) == []
    owed = await store.owed(Lane.RETREAT, START, limit=10, lease_s=30)
    assert [o.instruction.canary_percent for o in owed] == [0]  # type: ignore[union-attr]


async def test_a_leased_order_is_hidden_until_the_lease_ends_and_gone_when_settled(store: SqlStore) -> None:
    await keep(store, Story().ready())
    (one,) = await store.owed(Lane.WEIGHTS, START, limit=10, lease_s=30)
    assert await store.owed(Lane.WEIGHTS, START, limit=10, lease_s=30) == []
    later = START + timedelta(seconds=31)
    assert [o.id for o in await store.owed(Lane.WEIGHTS, later, limit=10, lease_s=30)] == [one.id]
    await store.commit([], postponed=[Postponed(one.id, later + timedelta(seconds=5), "409")])
    assert await store.owed(Lane.WEIGHTS, later, limit=10, lease_s=30) == []
    (again,) = await store.owed(Lane.WEIGHTS, later + timedelta(seconds=6), limit=10, lease_s=30)
    assert again.attempts == 1
    await store.commit([], settled={one.id: START})
    assert (await store.owed_summary())[Lane.WEIGHTS] == (0, None)


async def test_the_least_tried_order_is_offered_first_where_it_is_asked_for_and_never_out_of_its_order(
    store: SqlStore,
) -> None:
    for n in range(2):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        await keep(store, Story(id=f"e{n}", service=service, rollout=f"r-{n}").ready())
    first = await store.owed(Lane.PUBLISH, START, limit=9, lease_s=0)
    heads = {one.instruction.rollout: one for one in reversed(first)}
    assert len(first) > len(heads) == 2
    await store.commit([], postponed=[Postponed(heads["r-0"].id, START, "503")])
    second = await store.owed(Lane.PUBLISH, START, limit=9, lease_s=0, least_tried=True)
    assert [(one.id, one.attempts) for one in second] == [(heads["r-1"].id, 0), (heads["r-0"].id, 1)]


async def test_windows_are_due_by_their_own_time(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    assert story.state.windows_from is not None
    end = story.state.windows_from + timedelta(seconds=60)
    assert await store.due(end + timedelta(seconds=9), grace_s=10, limit=5, lease_s=30) == []
    (due,) = await store.due(end + timedelta(seconds=10), grace_s=10, limit=5, lease_s=30)
    assert due.state == story.state
    assert due.monitor == b""


async def test_the_statistics_row_is_kept_beside_the_state(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    was = story.state.revision
    story.window()
    await store.commit([Change(story.state, was, monitor=b"\x01\x02")])
    (due,) = await store.due(START + timedelta(hours=1), grace_s=0, limit=5, lease_s=30)
    assert due.monitor == b"\x01\x02"


async def test_a_claimed_window_is_hidden_until_its_lease_ends_or_it_is_judged(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    later = START + timedelta(hours=1)
    assert len(await store.due(later, grace_s=0, limit=5, lease_s=30)) == 1
    assert await store.due(later, grace_s=0, limit=5, lease_s=30) == []
    assert len(await store.due(later + timedelta(seconds=30), grace_s=0, limit=5, lease_s=30)) == 1
    for rest_until, offered_n in ((None, 1), (later + timedelta(minutes=2), 0)):
        was = story.state.revision
        judged = story.window().facts[-1]
        assert isinstance(judged, WindowJudged)
        windows = ((story.state.revision, judged),)
        await store.commit([Change(story.state, was, windows=windows, rest_until=rest_until)])
        assert len(await store.due(later, grace_s=0, limit=5, lease_s=0.001)) == offered_n


async def test_a_person_does_not_free_a_claimed_window(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    later = START + timedelta(hours=1)
    await store.due(later, grace_s=0, limit=5, lease_s=30)
    was = story.state.revision
    await store.commit([change(story.person(Verb.PAUSE).last, was)])
    assert await store.due(later, grace_s=0, limit=5, lease_s=30) == []


async def test_one_clusters_work_is_claimed_without_anothers(store: SqlStore) -> None:
    for n, cluster in enumerate(("east", "west")):
        service = SERVICE.model_copy(update={"cluster": cluster})
        await keep(store, Story(id=f"e{n}", service=service, rollout=f"r-{cluster}").ready())
        await keep(
            store,
            Story(id=f"f{n}", service=service.model_copy(update={"name": "b"}), rollout=f"s-{cluster}").progressing(),
        )
    for where, rollouts in ((Where(only="east"), {"east"}), (Where(but=frozenset({"east"})), {"west"})):
        owed = await store.owed(Lane.WEIGHTS, START, limit=9, lease_s=30, where=where)
        due = await store.due(START + timedelta(hours=1), grace_s=0, limit=9, lease_s=30, where=where)
        assert {o.instruction.service.cluster for o in owed} == {d.state.service.cluster for d in due} == rollouts


async def test_a_lease_is_one_holders_until_it_runs_out(store: SqlStore) -> None:
    for at_s, holder, given in ((0, "a", True), (1, "b", False), (5, "a", True), (14, "b", False), (15, "b", True)):
        assert await store.lease("watch", holder, START + timedelta(seconds=at_s), lease_s=10) is given
    assert await store.lease("other", "a", START, lease_s=10)


async def test_what_a_clock_far_ahead_has_claimed_is_offered_to_others_at_once(store: SqlStore) -> None:
    ahead, now = START + timedelta(hours=3), START + timedelta(hours=1)
    await keep(store, Story().progressing())

    async def offered(at: datetime) -> tuple[int, int]:
        owed = await store.owed(Lane.WEIGHTS, at, limit=9, lease_s=30)
        return len(owed), len(await store.due(at, grace_s=0, limit=9, lease_s=30))

    assert await offered(ahead) == (1, 1)
    assert await offered(now) == (1, 1)
    assert await offered(now) == (0, 0)


async def test_what_a_clock_a_little_ahead_has_claimed_is_left_to_it(store: SqlStore) -> None:
    now = START + timedelta(hours=1)
    await keep(store, Story().progressing())
    assert len(await store.due(now + timedelta(minutes=2), grace_s=0, limit=9, lease_s=30)) == 1
    assert await store.due(now, grace_s=0, limit=9, lease_s=30) == []


@pytest.mark.parametrize(("ahead_s", "taken"), [(9, False), (11, True), (3600, True)])
async def test_a_named_lease_is_not_believed_beyond_twice_its_length(
    store: SqlStore, ahead_s: float, taken: bool
) -> None:
    assert await store.lease("watch", "ahead", START + timedelta(seconds=ahead_s), lease_s=10)
    assert await store.lease("watch", "right", START, lease_s=10) is taken


async def test_a_commit_beyond_the_hourly_limit_of_rollbacks_writes_nothing(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    was = story.state.revision
    story.window(harmful=True, **lean(200))
    with pytest.raises(TooManyRollbacks):
        await store.commit([change(story.last, was)], limit=RollbackLimit(0, START))
    assert (await store.load([story.state.id]))[story.state.id].revision == was
    await store.commit([change(story.last, was)], limit=RollbackLimit(1, START))
    assert await store.rollbacks_since(START) == 1


async def test_an_event_is_seen_once_and_nothing_is_committed_with_one_that_was(store: SqlStore) -> None:
    head = ServiceHead(SERVICE, START, "e1", 7)
    await store.commit([], seen=[("/ci", "e1", START)] * 2, heads=[head])
    with pytest.raises(Conflict):
        await store.commit([change(Story().last, None)], seen=[("/ci", "e2", START), ("/ci", "e1", START)])
    assert await store.active([SERVICE]) == {}
    assert await store.unseen([("/ci", "e1"), ("/ci", "e2")]) == {("/ci", "e2")}
    assert (await store.heads([SERVICE]))[SERVICE] == head


async def test_a_services_head_never_goes_back(store: SqlStore) -> None:
    later = START + timedelta(seconds=1)
    for at, event_id, fence in ((later, "e2", 5), (START, "e1", 9), (later, "e3", 4)):
        await store.commit([], heads=[ServiceHead(SERVICE, at, event_id, fence)])
    assert (await store.heads([SERVICE]))[SERVICE] == ServiceHead(SERVICE, later, "e3", 9)


@pytest.mark.parametrize(("ahead_s", "fence"), [(5, 0), (0, 9)], ids=["a newer event", "a higher fence"])
async def test_no_rollout_begins_where_a_newer_event_came_since_its_service_was_read(
    store: SqlStore, ahead_s: float, fence: int
) -> None:
    other = SERVICE.model_copy(update={"name": "other"})
    begun = [machine.begin(request(id="e1")), machine.begin(request(id="e2", service=other, rollout="r-other"))]
    heads = [ServiceHead(step.state.service, START, "e1", 0) for step in begun]
    await store.commit([], heads=[ServiceHead(SERVICE, START + timedelta(seconds=ahead_s), "gone", fence)])
    with pytest.raises(Conflict, match=f"a newer event of {SERVICE} "):
        await store.commit([change(step, None) for step in begun], heads=heads, seen=[("/ci", "e1", START)])
    assert await store.active([SERVICE, other]) == {}
    assert await store.unseen([("/ci", "e1")]) == {("/ci", "e1")}
    assert list(await store.heads([other])) == []
    await store.commit([change(begun[1], None)], heads=heads[1:])
    await store.commit([change(begun[0], None)], heads=[(await store.heads([SERVICE]))[SERVICE]])


@pytest.mark.parametrize("year", [2026, 2300, 2700, 9999])
async def test_a_rollout_begins_with_the_head_that_was_read_whatever_its_time(store: SqlStore, year: int) -> None:
    for n in range(20):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        at = START.replace(year=year, microsecond=1 + 49_999 * n)
        await store.commit([], heads=[ServiceHead(service, at, "e0", 1)])
        read = (await store.heads([service]))[service]
        began = machine.begin(request(id=f"e{n}", service=service, rollout=f"r-{n}"))
        await store.commit([change(began, None)], heads=[read])
    fresh = ServiceHead(SERVICE, START.replace(year=year, microsecond=123_457), "e1", 1)
    await store.commit([change(machine.begin(request(id="x")), None)], heads=[fresh])


async def test_what_was_told_of_an_idle_service_is_not_kept_where_a_rollout_has_begun_since(store: SqlStore) -> None:
    story = Story()
    await keep(store, story)
    gone = ServiceHead(SERVICE, START + timedelta(seconds=5), "gone", 0)
    with pytest.raises(Conflict, match=f"rollout {story.state.id} has begun since"):
        await store.commit([], heads=[gone], seen=[("/ci", "gone", START)], idle=[SERVICE])
    assert await store.heads([SERVICE]) == {}
    assert await store.unseen([("/ci", "gone")]) == {("/ci", "gone")}
    await store.commit([], heads=[gone], idle=[SERVICE.model_copy(update={"name": "other"})])


class Between:
    """The store, seen by a replica that stands still between what it has read and its commit."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.has_read, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def active(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, RolloutState]:
        found = await self._store.active(services)
        await self._stand_still()
        return found

    async def _stand_still(self) -> None:
        self.has_read.set()
        await self.go_on.wait()


class BetweenReads(Between):
    """It stands still before it looks at what runs."""

    async def active(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, RolloutState]:
        await self._stand_still()
        return await self._store.active(services)


class StillClock:
    def now(self) -> datetime:
        return START

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("first", ["the withdrawal", "the release"])
async def test_a_release_and_its_withdrawal_that_two_replicas_take_in_at_once_leave_nothing_running(
    store: SqlStore, first: str
) -> None:
    told = [event("begun", "2", 0), event("gone", "2", 5, kind=EventKind.REMOVED)]
    quick, slow = told[::-1] if first == "the withdrawal" else told
    behind: Any = Between(store)
    late = asyncio.create_task(Door(behind, catalog(), StillClock()).events([slow]))
    await behind.has_read.wait()
    await Door(store, catalog(), StillClock()).events([quick])
    behind.go_on.set()
    await late
    running = (await store.active([SERVICE])).get(SERVICE)
    assert running is None or running.phase is Phase.ROLLING_BACK
    head = (await store.heads([SERVICE]))[SERVICE]
    assert (head.event_id, head.event_at) == (told[1].id, told[1].at)


@pytest.mark.parametrize("goes_back", [False, True])
async def test_an_event_that_two_replicas_take_in_at_once_begins_one_rollout_and_supersedes_none(
    store: SqlStore, goes_back: bool
) -> None:
    told = event("begun", "2", 0)
    behind: Any = BetweenReads(store)
    late = asyncio.create_task(Door(behind, catalog(), StillClock()).events([told]))
    await behind.has_read.wait()
    quick = Door(store, catalog(), StillClock())
    await quick.events([told])
    began = (await store.active([SERVICE]))[SERVICE]
    if goes_back:
        await quick.act(began.id, Verb.ROLLBACK, actor="ana", reason="no", request_id="1")
    behind.go_on.set()
    await late
    assert (await store.active([SERVICE]))[SERVICE].successor is None
    assert (await store.load([began.id]))[began.id].revision == began.revision + goes_back


@pytest.mark.parametrize("odd", ["x" * 5000, "\N{BIRD}" * 1000, "a\0b"], ids=["long", "wide", "nul"])
async def test_an_event_with_any_name_is_seen_once_and_holds_up_nothing(store: SqlStore, odd: str) -> None:
    await store.commit([], seen=[(odd[:1024], odd, START)], heads=[ServiceHead(SERVICE, START, odd, 7)])
    other = (odd[:1024], odd + "2")
    assert await store.unseen([(odd[:1024], odd), other]) == {other}
    await keep(store, Story().ready())
    (one,) = await store.owed(Lane.WEIGHTS, START, limit=10, lease_s=30)
    await store.commit([], postponed=[Postponed(one.id, START, odd)])
    await store.set_kill_switch(KillSwitch(True, "ana", odd, START))
    assert (await store.kill_switch()).frozen


async def test_rollbacks_by_serinus_count_and_peoples_do_not(store: SqlStore) -> None:
    await keep(store, Story().progressing().window(harmful=True, **lean(200)).written())
    await keep(store, Story(id="e2").progressing().person(Verb.ROLLBACK).written())
    assert await store.rollbacks_since(START) == 1
    assert await store.rollbacks_since(START + timedelta(hours=1)) == 0


async def test_a_service_finds_the_rows_of_its_last_promoted_rollouts_newest_first(store: SqlStore) -> None:
    other = SERVICE.model_copy(update={"name": "other"})
    promoted, ended = {"phase": Phase.PROMOTED}, {"phase": Phase.ROLLED_BACK}
    for place, (service, changes) in enumerate(
        [(SERVICE, promoted), (SERVICE, ended), (SERVICE, promoted), (other, promoted), (SERVICE, promoted)]
    ):
        state = Story(id=f"e{place}").progressing().state
        at = {"service": service, "event_at": START + timedelta(hours=place)}
        finished = state.model_copy(update={**changes, **at})
        await store.commit([Change(finished, None, monitor=bytes([place]))])
    await keep(store, Story(id="running").progressing())
    assert await store.past_monitors([SERVICE], last=2) == {SERVICE: [b"\x04", b"\x02"]}
    unknown = SERVICE.model_copy(update={"name": "unknown"})
    assert await store.past_monitors([SERVICE, other, unknown], last=9) == {
        SERVICE: [b"\x04", b"\x02", b"\x00"], other: [b"\x03"],
    }  # fmt: skip


async def test_the_kill_switch_is_kept(store: SqlStore) -> None:
    assert (await store.kill_switch()).frozen is False
    switch = KillSwitch(True, "ana", "storm", START)
    await store.set_kill_switch(switch)
    assert await store.kill_switch() == switch


async def test_closing_waits_for_a_transaction_that_is_under_way(store: SqlStore) -> None:
    """Its connection came back to a pool that was gone, and was closed by nobody."""
    inside, goes_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with store.writing("hold a connection"):
            inside.set()
            await goes_on.wait()

    holding = asyncio.create_task(hold())
    await inside.wait()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    goes_on.set()
    await asyncio.gather(holding, closing)


async def test_a_list_pages_by_cursor_and_filters_text_as_data(store: SqlStore) -> None:
    for n in range(5):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        await keep(store, Story(id=f"e{n}", service=service, at=START + timedelta(seconds=n)))
    first = await store.rollouts(RolloutFilter(), limit=2)
    second = await store.rollouts(RolloutFilter(), limit=2, after=first.next_after)
    assert [s.service.name for s in (*first.rollouts, *second.rollouts)] == ["svc-4", "svc-3", "svc-2", "svc-1"]
    assert first.counts == {Phase.STARTING: 5}
    for text, found in (("svc-3", 1), ("%", 0), ("_", 0), ("' OR 1=1 --", 0)):
        assert len((await store.rollouts(RolloutFilter(text=text))).rollouts) == found


async def test_overdue_windows_are_counted_with_the_end_of_the_oldest(store: SqlStore) -> None:
    assert await store.overdue(START + timedelta(days=1)) == (0, None)
    ends = []
    for n in range(3):
        service = SERVICE.model_copy(update={"name": f"s{n}"})
        story = Story(id=f"e{n}", rollout=f"r{n}", service=service, at=START + timedelta(minutes=n)).progressing()
        await keep(store, story)
        assert story.state.windows_from is not None
        ends.append(story.state.windows_from + timedelta(seconds=60))
    await store.due(START + timedelta(hours=1), grace_s=0, limit=9, lease_s=60)
    # Who holds a lease has not judged yet.
    assert await store.overdue(max(ends)) == (3, min(ends))
    assert await store.overdue(min(ends) - timedelta(seconds=1)) == (0, None)


async def test_waking_names_those_whose_moment_has_come(store: SqlStore) -> None:
    story = Story()
    await keep(store, story)
    assert story.state.wake_at is not None
    assert await store.waking(story.state.wake_at - timedelta(seconds=1), limit=5) == []
    assert await store.waking(story.state.wake_at, limit=5) == [story.state.id]


async def test_a_commit_of_many_rollouts_takes_a_bounded_number_of_statements(store: SqlStore) -> None:
    counted = 0

    def count(*_: object) -> None:
        nonlocal counted
        counted += 1

    sa.event.listen(store._engine.sync_engine, "before_cursor_execute", count)
    steps = []
    for n in range(300):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        steps.append(machine.begin(request(id=f"e{n}", service=service, rollout=f"r-{n}")))
    await store.commit([change(s, None) for s in steps])
    assert counted < 12


async def test_a_rollout_in_a_newer_format_is_left_to_newer_replicas_and_holds_up_no_other(store: SqlStore) -> None:
    stories = []
    for n in range(3):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        stories.append(Story(id=f"e{n}", service=service, rollout=f"r-{n}").progressing())
        await keep(store, stories[n])
    async with store.writing("play a newer release") as connection:
        await connection.exec_driver_sql("""UPDATE rollouts SET format = 99, state = '{"a": 1}' WHERE id = 'r-1'""")
    later = START + timedelta(hours=1)
    assert {due.state.id for due in await store.due(later, grace_s=0, limit=9, lease_s=60)} == {"r-0", "r-2"}
    assert {state.id for state in await store.watched(limit=9)} == {"r-0", "r-2"}
    assert {state.id for state in (await store.rollouts(RolloutFilter())).rollouts} == {"r-0", "r-2"}
    owed = [one for lane in Lane for one in await store.owed(lane, later, limit=99, lease_s=60)]
    assert {one.instruction.rollout for one in owed} == {"r-0", "r-2"}
    with pytest.raises(Unreadable, match="rollout r-1 was written by a newer release") as caught:
        await store.load([RolloutId("r-0"), RolloutId("r-1")])
    assert (caught.value.readable, caught.value.newer) == ({"r-0": stories[0].state}, {"r-1"})
    with pytest.raises(Conflict):
        await keep(store, Story(id="x", service=stories[1].state.service))
    was = stories[0].state.revision
    await store.commit([change(stories[0].window().last, was)])


@pytest.mark.parametrize("state", ['{"a": 1}', "{", ""])
async def test_a_damaged_state_costs_only_its_own_rollout(
    store: SqlStore, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [SERVICE.model_copy(update={"name": f"svc-{n}"}) for n in range(3)]
    stories = [Story(id=f"e{n}", service=key, rollout=f"r-{n}").progressing() for n, key in enumerate(keys)]
    for story in stories:
        await keep(store, story)
    await store.write("damage", [t.rollouts.update().where(t.rollouts.c.id == "r-1").values(state=state)])
    later = START + timedelta(hours=1)
    assert {due.state.id for due in await store.due(later, grace_s=0, limit=9, lease_s=60)} == {"r-0", "r-2"}
    assert {state.id for state in await store.watched(limit=9)} == {"r-0", "r-2"}
    assert {state.id for state in (await store.rollouts(RolloutFilter())).rollouts} == {"r-0", "r-2"}
    with pytest.raises(Unreadable, match="the stored state of rollout r-1 is damaged") as loaded:
        await store.load([RolloutId(f"r-{n}") for n in range(3)])
    assert (loaded.value.readable.keys(), loaded.value.damaged) == ({"r-0", "r-2"}, {"r-1"})
    with pytest.raises(Unreadable) as looked_up:
        await store.active(keys)
    assert (looked_up.value.readable.keys(), looked_up.value.damaged) == ({keys[0], keys[2]}, {keys[1]})
    (said,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "rollout r-1 is damaged" in said.getMessage()
    assert "restore its row from a backup" in said.getMessage()


async def test_a_damaged_instruction_costs_only_what_its_rollout_owes_in_its_lane(store: SqlStore) -> None:
    for n in range(3):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        await keep(store, Story(id=f"e{n}", service=service, rollout=f"r-{n}").ready())
    first = min(one.id for one in await store.owed(Lane.PUBLISH, START, limit=99, lease_s=0))
    await store.write("damage", [t.outbox.update().where(t.outbox.c.id == first).values(body="{}")])
    offered = await store.owed(Lane.PUBLISH, START, limit=99, lease_s=0)
    assert {one.instruction.rollout for one in offered} == {"r-1", "r-2"}
    assert {one.instruction.rollout for one in await store.owed(Lane.WEIGHTS, START, limit=9, lease_s=0)} >= {"r-0"}
    # It is not claimed again and again: what is asked for one by one finds the others.
    soon = START + timedelta(seconds=90)
    (one,) = await store.owed(Lane.PUBLISH, soon, limit=1, lease_s=0)
    assert one.instruction.rollout == "r-1"


async def test_a_stored_value_that_cannot_be_read_says_so(store: SqlStore) -> None:
    story = Story().progressing()
    await keep(store, story)
    async with store.writing("play a newer release") as connection:
        await connection.exec_driver_sql("""UPDATE journal SET body = '{"a": 1}'""")
    with pytest.raises(Unavailable, match="cannot read the journal: a stored JournalEntry is not readable"):
        await store.journal(story.state.id)


@pytest.mark.parametrize("packed", [b"", b"\xc8abc", b"\x01\xff\xff\xff", b"\x01"])
async def test_a_packed_window_that_cannot_be_read_says_so(store: SqlStore, packed: bytes) -> None:
    story = Story().progressing().window()
    await keep(store, story)
    await store.write("damage", [t.windows.update().values(packed=packed)])
    with pytest.raises(Unavailable, match=r"cannot read windows: .* a newer release wrote it, or it is damaged"):
        await store.windows(story.state.id)
    with pytest.raises(Damaged, match=r"cannot read the history of rollout r-.*: one of the rows 1 to 1 of windows"):
        await store.history(story.state.id)


async def test_lanes_and_phases_of_a_newer_release_are_left_out_where_they_are_counted_and_said_once(
    store: SqlStore, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(2):
        service = SERVICE.model_copy(update={"name": f"svc-{n}"})
        await keep(store, Story(id=f"e{n}", service=service, rollout=f"r-{n}").progressing())
    before = await store.owed_summary()
    theirs = t.outbox.insert().values(
        rollout="r-1",
        lane="shadow",
        type="mirror",
        body="{}",
        owed_since=0.0,
        not_before=0.0,
        attempts=0,
        last_error="",
    )
    newer = t.rollouts.update().where(t.rollouts.c.id == "r-1").values(phase="shadowing", format=t.FORMAT + 1)
    await store.write("play a newer release", [theirs, newer])
    for _ in range(3):
        assert await store.owed_summary() == before
        page = await store.rollouts(RolloutFilter())
        assert ([state.id for state in page.rollouts], page.counts) == (["r-0"], {Phase.PROGRESSING: 1})
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert [one.split(" is not known")[0] for one in said] == ["the lane 'shadow'", "the phase 'shadowing'"]


async def test_a_value_or_statement_that_can_never_be_carried_out_is_no_outage(store: SqlStore) -> None:
    on_postgres = store._engine.dialect.name == "postgresql"
    never = {
        "a statement": sa.text("SELECT 1 FROM nowhere") if on_postgres else sa.text("SELECT ?"),
        "a value": sa.text("SELECT 1 / 0") if on_postgres else sa.text("SELECT ?, ?"),
        "a parameter": sa.select(t.outbox.c.id).where(t.outbox.c.attempts == 2**70),
    }
    for what, statement in never.items():
        with pytest.raises((DBAPIError, OverflowError)):
            await store.read(what, statement)  # type: ignore[arg-type]


async def test_a_second_process_is_refused_with_the_file_and_the_reason(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'serinus.db'}"
    first = await open_store(url)
    with pytest.raises(Refused, match="in use by process"):
        await open_store(url)
    await first.close()
    await (await open_store(url)).close()


async def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(Refused, match="known: sqlite, postgresql"):
        await open_store("mysql://localhost/x")
