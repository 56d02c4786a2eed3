"""Two replicas on one PostgreSQL at the same time: what they share, and what only one of them gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest

from service.model.instruction import Lane
from service.model.names import ServiceKey
from service.model.stimulus import Verb
from service.ring.ports import Refused
from service.ring.store import Conflict, Postponed, RollbackLimit, ServiceHead, TooManyRollbacks
from service.rollout import machine
from service.storage import opening
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.stories import change, keep
from tests.real.parts import postgres
from tests.stories import SERVICE, START, Story, lean, request

pytestmark = pytest.mark.real

LATER = START + timedelta(hours=1)


@pytest.fixture
async def replicas() -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    url = postgres.shared().database()
    opened = (await open_store(url), await open_store(url))
    yield opened
    for store in opened:
        await store.close()


def service(n: int) -> ServiceKey:
    return SERVICE.model_copy(update={"name": f"svc-{n}"})


async def many(store: SqlStore, n: int) -> list[Story]:
    """``n`` services' rollouts that are progressing."""
    stories = [Story(id=f"e{i}", service=service(i), rollout=f"r-{i}").progressing() for i in range(n)]
    for story in stories:
        await keep(store, story)
    return stories


@pytest.mark.parametrize("ahead_s", [3600.0, -60.0])
async def test_a_replica_with_another_time_than_the_database_does_not_start(
    ahead_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.shared().database()
    wrong_s = time.time() + ahead_s
    monkeypatch.setattr(opening.time, "time", lambda: wrong_s)  # type: ignore[attr-defined]
    with pytest.raises(Refused, match=r"this machine's clock says .* and the database's"):
        await open_store(url)


async def test_due_windows_are_shared_without_overlap(replicas: tuple[SqlStore, SqlStore]) -> None:
    await many(replicas[0], 40)
    claims = await asyncio.gather(
        *(store.due(LATER, grace_s=0, limit=5, lease_s=60) for _ in range(8) for store in replicas)
    )
    claimed = [due.state.id for claim in claims for due in claim]
    assert len(claimed) == len(set(claimed))
    rest = await replicas[0].due(LATER, grace_s=0, limit=100, lease_s=60)
    assert {*claimed, *(due.state.id for due in rest)} == {f"r-{i}" for i in range(40)}
    assert len(claimed) + len(rest) == 40


async def test_owed_instructions_are_shared_without_overlap(replicas: tuple[SqlStore, SqlStore]) -> None:
    for i in range(30):
        await keep(replicas[0], Story(id=f"e{i}", service=service(i), rollout=f"r-{i}").ready())
    claims = await asyncio.gather(
        *(store.owed(Lane.WEIGHTS, START, limit=4, lease_s=60) for _ in range(6) for store in replicas)
    )
    claimed = [owed.id for claim in claims for owed in claim]
    rest = [owed.id for owed in await replicas[1].owed(Lane.WEIGHTS, START, limit=100, lease_s=60)]
    assert len(claimed) == len(set(claimed))
    assert not set(claimed) & set(rest)
    assert len(claimed) + len(rest) == 30


async def test_an_expired_lease_is_taken_over_and_the_slow_holder_commits_nothing(
    replicas: tuple[SqlStore, SqlStore],
) -> None:
    slow, quick = replicas
    (story,) = await many(slow, 1)
    (held,) = await slow.due(LATER, grace_s=0, limit=5, lease_s=60)
    assert await quick.due(LATER + timedelta(seconds=59), grace_s=0, limit=5, lease_s=60) == []
    (taken,) = await quick.due(LATER + timedelta(seconds=60), grace_s=0, limit=5, lease_s=60)
    assert taken.state == held.state
    judged = change(story.window().last, held.state.revision)
    await quick.commit([judged])
    with pytest.raises(Conflict):
        await slow.commit([judged])


async def test_of_two_commits_of_one_rollout_one_wins(replicas: tuple[SqlStore, SqlStore]) -> None:
    stories = await many(replicas[0], 12)
    was = [story.state.revision for story in stories]
    made = [change(story.window().last, revision) for story, revision in zip(stories, was, strict=True)]
    # Each commit has two rollouts in common with its neighbours, in opposite orders: this would deadlock if rows were
    # locked as they come.
    pairs = [[made[i], made[(i + 1) % 12]] for i in range(12)]
    turns = [pair if i % 2 else pair[::-1] for i, pair in enumerate(pairs)]
    outcomes = await asyncio.gather(
        *(replicas[i % 2].commit(turn) for i, turn in enumerate(turns)), return_exceptions=True
    )
    won = [pairs[i] for i, outcome in enumerate(outcomes) if outcome is None]
    assert all(outcome is None or type(outcome) is Conflict for outcome in outcomes), outcomes
    written = [one.state.id for pair in won for one in pair]
    assert 4 <= len(won) <= 6
    assert len(written) == len(set(written))


async def test_rollouts_that_begin_in_opposite_orders_do_not_deadlock(replicas: tuple[SqlStore, SqlStore]) -> None:
    for turn in range(10):
        begun = [
            machine.begin(request(id=f"e{turn}-{i}", service=service(100 * turn + i), rollout=f"r-{turn}-{i}"))
            for i in range(8)
        ]
        heads = [ServiceHead(step.state.service, START, "e", 1) for step in begun]
        seen = [("/ci", f"e{turn}-{i}", START) for i in range(8)]
        changes = [change(step, None) for step in begun]
        outcomes = await asyncio.gather(
            replicas[0].commit(changes, heads=heads, seen=seen),
            replicas[1].commit(changes[::-1], heads=heads[::-1], seen=seen[::-1]),
            return_exceptions=True,
        )
        (lost,) = [outcome for outcome in outcomes if outcome is not None]
        assert "UniqueViolation" in str(lost), lost


async def test_of_a_release_and_a_newer_event_that_found_none_running_one_is_read_again(
    replicas: tuple[SqlStore, SqlStore],
) -> None:
    lost: list[str] = []
    for n in range(1, 41):
        key = service(n)
        began = machine.begin(request(id=f"e{n}", service=key, rollout=f"r-{n}"))
        newer = ServiceHead(key, START + timedelta(seconds=5), "gone", 0)
        # In every other turn it comes with much else, and so later.
        others = [
            change(machine.begin(request(id=f"o{n}-{i}", service=service(1000 * n + i), rollout=f"r-{n}-{i}")), None)
            for i in range(100, 100 + 60 * (n % 2))
        ]
        tries = [
            replicas[0].commit([change(began, None)], heads=[ServiceHead(key, START, "e", 0)]),
            replicas[1].commit(others, heads=[newer], idle=[key]),
        ]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        (one,) = [outcome for outcome in outcomes if outcome is not None]
        assert type(one) is Conflict
        lost.append(str(one))
        began_too = (await replicas[0].active([key])).keys() == {key}
        told_too = (await replicas[0].heads([key]))[key] == newer
        assert began_too != told_too
    assert {one.split()[0] for one in lost} == {"a", "rollout"}, "each must have come first at times"


async def test_postponing_while_newer_decisions_drop_the_same_instructions_does_not_deadlock(
    replicas: tuple[SqlStore, SqlStore],
) -> None:
    # The instructions' ids run against the rollouts' names.
    stories = [Story(id=f"e{i}", service=service(i), rollout=f"r-{999 - i}") for i in range(250)]
    await replicas[0].commit([change(story.last, None) for story in stories])
    owed = await replicas[0].owed(Lane.READINESS, START, limit=250, lease_s=30)
    later = [Postponed(one.id, START + timedelta(seconds=5), "not ready yet") for one in owed]
    made = [change(story.person(Verb.ROLLBACK).last, 1) for story in stories]
    assert all("check_ready" in one.drops for one in made)

    async def postpone() -> None:
        for _ in range(30):
            await replicas[0].commit([], postponed=later)

    outcomes = await asyncio.gather(replicas[1].commit(made), postpone(), return_exceptions=True)
    assert outcomes == [None, None]


async def test_a_service_gets_one_active_rollout_whoever_starts_it(replicas: tuple[SqlStore, SqlStore]) -> None:
    begun = [machine.begin(request(id=f"e{i}", rollout=f"r-{i}")) for i in range(10)]
    outcomes = await asyncio.gather(
        *(replicas[i % 2].commit([change(step, None)]) for i, step in enumerate(begun)), return_exceptions=True
    )
    assert sum(outcome is None for outcome in outcomes) == 1
    assert all(outcome is None or type(outcome) is Conflict for outcome in outcomes), outcomes


async def test_the_limit_of_rollbacks_is_exact_under_concurrent_commits(replicas: tuple[SqlStore, SqlStore]) -> None:
    stories = await many(replicas[0], 16)
    was = [story.state.revision for story in stories]
    for story in stories:
        story.window(harmful=True, **lean(200))
    limit = RollbackLimit(5, START)
    outcomes = await asyncio.gather(
        *(
            replicas[i % 2].commit([change(story.last, was[i])], limit=limit)
            for i, story in enumerate(stories)
        ),
        return_exceptions=True,
    )  # fmt: skip
    assert sum(outcome is None for outcome in outcomes) == 5
    assert all(outcome is None or type(outcome) is TooManyRollbacks for outcome in outcomes), outcomes
    assert await replicas[0].rollbacks_since(START) == 5


async def test_a_named_lease_is_one_replicas(replicas: tuple[SqlStore, SqlStore]) -> None:
    for turn in range(5):
        at = START + timedelta(seconds=60 * turn)
        given = await asyncio.gather(
            *(replicas[i % 2].lease("watch", f"replica-{i % 2}-{turn}", at, lease_s=30) for i in range(6))
        )
        holders = {f"replica-{i % 2}" for i, got in enumerate(given) if got}
        assert len(holders) == 1


async def test_a_deadlock_is_a_conflict(replicas: tuple[SqlStore, SqlStore]) -> None:
    await many(replicas[0], 2)
    both = asyncio.Barrier(2)

    async def lock(store: SqlStore, order: Sequence[str]) -> None:
        async with store.writing("lock two rows") as connection:
            for place, rollout in enumerate(order):
                sql = f"UPDATE rollouts SET version = version WHERE id = '{rollout}'"
                await connection.exec_driver_sql(sql)
                if not place:
                    await both.wait()

    outcomes = await asyncio.gather(
        lock(replicas[0], ["r-0", "r-1"]), lock(replicas[1], ["r-1", "r-0"]), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict]


async def test_a_replica_that_stops_inside_a_transaction_does_not_keep_its_rows() -> None:
    url = postgres.shared().database()
    stopped, other = await open_store(url, patience_s=0.5), await open_store(url, patience_s=5)
    (story,) = await many(other, 1)
    judged = change(story.window().last, story.state.revision - 1)
    async with stopped._engine.connect() as connection:
        await connection.exec_driver_sql("UPDATE rollouts SET version = version")
        # The server ends the idle transaction by itself; nothing of the stopped replica runs for that.
        await other.commit([judged])
        # Where the driver is just reading that it was ended, it speaks of another operation.
        with pytest.raises(Exception, match=r"(?i)closed|terminat|idle|another operation"):
            await connection.exec_driver_sql("SELECT 1")
        await connection.invalidate()
    assert (await stopped.load([story.state.id]))[story.state.id] == story.state
    for store in (stopped, other):
        await store.close()


async def test_replicas_that_start_together_migrate_once() -> None:
    url = postgres.shared().database()
    opened = await asyncio.gather(*(open_store(url) for _ in range(4)))
    assert len(postgres.shared().run("SELECT version_num FROM alembic_version", url).split()) == 1
    for store in opened:
        await store.check()
        await store.close()
