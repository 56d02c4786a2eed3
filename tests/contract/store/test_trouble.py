"""What the store does while its database is away, hangs, is full, locked or read-only, and afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.model.instruction import Lane
from service.model.stimulus import WindowJudged
from service.ring.ports import Unavailable
from service.ring.store import Change, Conflict, KillSwitch, Postponed, RolloutFilter
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.stories import keep
from tests.real.parts.postgres import PostgresServer
from tests.stories import SERVICE, START, Story

PATIENCE_S = 1.0
LATER = START + timedelta(hours=1)

RUNNING = Story(id="running").progressing()
BEGUN = Story(id="begun", service=SERVICE.model_copy(update={"name": "other"}))
WINDOW = Story(id="running").progressing().window()
FACT = WINDOW.facts[-1]
assert isinstance(FACT, WindowJudged)
JUDGED = Change(WINDOW.state, RUNNING.state.revision, WINDOW.last.journal, ((WINDOW.state.revision, FACT),))

METHODS: dict[str, Callable[[SqlStore], Awaitable[object]]] = {
    "commit": lambda s: s.commit([JUDGED], postponed=[Postponed(1, START, "503")]),
    "unseen": lambda s: s.unseen([("/ci", "e1")]),
    "heads": lambda s: s.heads([SERVICE]),
    "active": lambda s: s.active([SERVICE]),
    "load": lambda s: s.load([RUNNING.state.id]),
    "due": lambda s: s.due(LATER, grace_s=0, limit=5, lease_s=0.001),
    "past_monitors": lambda s: s.past_monitors([SERVICE], last=1),
    "waking": lambda s: s.waking(LATER, limit=5),
    "watched": lambda s: s.watched(limit=5),
    "owed": lambda s: s.owed(Lane.PAGES, LATER, limit=5, lease_s=0.001),
    "lease": lambda s: s.lease("watch", "a", START, lease_s=10),
    "owed_summary": lambda s: s.owed_summary(),
    "overdue": lambda s: s.overdue(LATER),
    "rollbacks_since": lambda s: s.rollbacks_since(START),
    "kill_switch": lambda s: s.kill_switch(),
    "set_kill_switch": lambda s: s.set_kill_switch(KillSwitch(False, "ana", "over", START)),
    "rollouts": lambda s: s.rollouts(RolloutFilter()),
    "journal": lambda s: s.journal(RUNNING.state.id),
    "windows": lambda s: s.windows(RUNNING.state.id),
    "history": lambda s: s.history(RUNNING.state.id),
    "check": lambda s: s.check(),
}
WRITERS = ("commit", "lease", "set_kill_switch", "check")


def test_every_method_of_the_store_is_tried_here() -> None:
    # ``read`` and ``write`` are what retention's own statements go through; ``history`` reads by the last two.
    beneath = {"close", "read", "write", "stimuli", "pages"}
    public = {name for name in vars(SqlStore) if not name.startswith("_")} - beneath
    assert public == set(METHODS)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    own = PostgresServer().start()
    yield own
    own.remove()


@pytest.fixture
async def on_postgres(server: PostgresServer) -> AsyncIterator[SqlStore]:
    store = await open_store(server.database(), patience_s=PATIENCE_S)
    await keep(store, RUNNING)
    yield store
    await store.close()


async def all_are_unavailable(store: SqlStore) -> None:
    """Every method at once: none answers, none hangs, none raises anything else."""
    outcomes = await asyncio.gather(*(method(store) for method in METHODS.values()), return_exceptions=True)
    wrong = {
        name: outcome
        for name, outcome in zip(METHODS, outcomes, strict=True)
        if not isinstance(outcome, Unavailable)
    }  # fmt: skip
    assert not wrong


async def it_answers_again(store: SqlStore) -> None:
    """By itself, with nobody starting anything anew."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await store.check()
            except Unavailable:
                await asyncio.sleep(0.05)


async def all_work_again(store: SqlStore) -> None:
    """Nothing of the commit that failed is there, and the same commit goes through now."""
    await it_answers_again(store)
    assert (await store.load([RUNNING.state.id]))[RUNNING.state.id] == RUNNING.state
    assert await store.windows(RUNNING.state.id) == []
    for method in METHODS.values():
        await method(store)
    assert (await store.load([RUNNING.state.id]))[RUNNING.state.id] == WINDOW.state
    assert await store.windows(RUNNING.state.id) == [FACT]


@pytest.mark.real
async def test_while_postgres_is_killed_every_method_says_so_and_works_when_it_is_back(
    server: PostgresServer, on_postgres: SqlStore
) -> None:
    await asyncio.to_thread(server.kill)
    for _ in range(3):
        await all_are_unavailable(on_postgres)
    await asyncio.to_thread(server.start)
    await all_work_again(on_postgres)


@pytest.mark.real
async def test_while_postgres_hangs_every_method_ends_in_time_and_works_when_it_goes_on(
    server: PostgresServer, on_postgres: SqlStore
) -> None:
    await on_postgres.check()
    server.pause()
    try:
        began = time.monotonic()
        async with asyncio.timeout(60):
            await all_are_unavailable(on_postgres)
            print(f"all {len(METHODS)} methods ended within {time.monotonic() - began:.1f} s")
            await all_are_unavailable(on_postgres)
    finally:
        server.resume()
    # What was sent into the silence may be carried out now, but only as a whole.
    await it_answers_again(on_postgres)
    (state,) = (await on_postgres.load([RUNNING.state.id])).values()
    assert state in (RUNNING.state, WINDOW.state)
    assert len(await on_postgres.windows(RUNNING.state.id)) == state.window
    for name, method in METHODS.items():
        if name != "commit":
            await method(on_postgres)


@pytest.mark.real
async def test_a_kill_in_the_middle_of_commits_leaves_each_whole_or_undone(server: PostgresServer) -> None:
    store = await open_store(server.database(), patience_s=PATIENCE_S)
    stories = [
        Story(id=f"e{n}", service=SERVICE.model_copy(update={"name": f"svc-{n}"}), rollout=f"r-{n}").progressing()
        for n in range(20)
    ]
    for story in stories:
        await keep(store, story)
    for turn in range(4):
        before = [story.state for story in stories]
        for story in stories:
            story.window()
        pairs = list(zip(stories, before, strict=True))
        commits = [
            asyncio.create_task(
                store.commit(
                    [
                        Change(s.state, was.revision, s.last.journal, ((s.state.revision, s.facts[-1]),))  # type: ignore[arg-type]
                        for s, was in pairs[n : n + 5]
                    ]
                )
            )
            for n in range(0, 20, 5)
        ]
        await asyncio.sleep(0.003 * (turn + 1))
        await asyncio.to_thread(server.kill)
        outcomes = await asyncio.gather(*commits, return_exceptions=True)
        assert all(outcome is None or type(outcome) is Unavailable for outcome in outcomes), outcomes
        await asyncio.to_thread(server.start)
        there = await store.load([story.state.id for story in stories])
        for n, outcome in enumerate(outcomes):
            group = range(5 * n, 5 * n + 5)
            new = [there[stories[i].state.id] == stories[i].state for i in group]
            old = [there[stories[i].state.id] == before[i] for i in group]
            assert all(new) or (all(old) and outcome is not None)
            for i in group:
                assert len(await store.windows(stories[i].state.id, limit=999)) == there[stories[i].state.id].window
                if not new[0]:
                    stories[i].steps.pop()
                    stories[i].facts.pop()
    await store.close()


@pytest.mark.real
async def test_a_postgres_that_is_away_at_the_start_is_named(server: PostgresServer) -> None:
    url = server.url.replace(f":{server.port}/", ":1/")
    with pytest.raises(Unavailable, match=r"cannot open the database: .*[Cc]onnect"):
        await open_store(url, patience_s=PATIENCE_S)
    wrong = server.url.replace(f"{server.url.split(':')[2].split('@')[0]}@", "wrong@")
    with pytest.raises(Unavailable, match=r"check database\.user and its password") as caught:
        await open_store(wrong, patience_s=PATIENCE_S)
    assert "wrong@" not in str(caught.value)


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(f"sqlite:///{tmp_path / 'serinus.db'}", patience_s=PATIENCE_S)
    await keep(store, RUNNING)
    yield store
    await store.close()


async def pragma(store: SqlStore, statement: str) -> None:
    """Every connection from now on is opened with this pragma."""

    def set_up(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute(statement)
        cursor.close()

    await store._engine.dispose()
    sa.event.listen(store._engine.sync_engine, "connect", set_up)


async def test_a_full_disk_is_said_and_work_goes_on_when_there_is_room(on_sqlite: SqlStore) -> None:
    await pragma(on_sqlite, "PRAGMA max_page_count = 1")
    big = BEGUN.state.model_copy(update={"reason": "x" * 200_000})
    with pytest.raises(Unavailable, match="cannot commit: database or disk is full; free space"):
        await on_sqlite.commit([Change(big, None)])
    assert await on_sqlite.load([BEGUN.state.id]) == {}
    await pragma(on_sqlite, "PRAGMA max_page_count = 100000")
    await on_sqlite.commit([Change(big, None)])
    await all_work_again(on_sqlite)


async def test_a_read_only_database_is_said_and_still_answers(on_sqlite: SqlStore) -> None:
    await pragma(on_sqlite, "PRAGMA query_only = ON")
    for name in WRITERS:
        with pytest.raises(Unavailable, match="readonly database; the database's file or disk is read-only"):
            await METHODS[name](on_sqlite)
    assert (await on_sqlite.active([SERVICE]))[SERVICE] == RUNNING.state
    await pragma(on_sqlite, "PRAGMA query_only = OFF")
    await all_work_again(on_sqlite)


async def test_a_database_that_another_program_has_locked_is_said_in_time(on_sqlite: SqlStore, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "serinus.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for name in WRITERS:
        with pytest.raises(Unavailable, match="locked"):
            await METHODS[name](on_sqlite)
    assert (await on_sqlite.active([SERVICE]))[SERVICE] == RUNNING.state
    other.execute("ROLLBACK")
    other.close()
    await all_work_again(on_sqlite)


async def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match=r"cannot open the lock file .*file/serinus\.db\.lock"):
        await open_store(f"sqlite:///{tmp_path / 'file' / 'serinus.db'}")


async def test_a_conflict_is_still_told_from_an_outage(on_sqlite: SqlStore) -> None:
    with pytest.raises(Conflict):
        await on_sqlite.commit([Change(RUNNING.state, None)])
