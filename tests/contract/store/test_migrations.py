"""The schema's way up and down from every revision, with rows in it, and two releases on one schema."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from service.model.instruction import Lane
from service.model.stimulus import WindowJudged
from service.model.value import from_epoch_s
from service.ring.ports import Refused
from service.ring.store import Change, RolloutFilter, ServiceHead
from service.rollout import machine
from service.storage.opening import MIGRATIONS, migrate, open_store
from service.storage.packing import unpack
from tests.contract.store import frozen
from tests.contract.store.stories import keep
from tests.real.parts import postgres
from tests.stories import SERVICE, START, Story

REVISIONS = sorted(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())
HEAD = REVISIONS[-1]

STORY = Story().progressing().window()
AT = START.timestamp()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    return f"sqlite:///{tmp_path / 's.db'}" if request.param == "sqlite" else postgres.shared().database()


async def on(url: str, work: Callable[[Connection], Any]) -> Any:
    """Run synchronous work in one transaction of its own."""
    driver = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
    engine = create_async_engine(sa.make_url(url).set(drivername=driver))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def rows_of(revision: str) -> dict[str, dict[str, Any]]:
    """One row of each table as the code of that revision wrote it: from plain values, not by today's tables."""
    state, windows = STORY.state, [f for f in STORY.facts if isinstance(f, WindowJudged)]
    (entry, *_), (order, *_) = STORY.steps[0].journal, STORY.steps[0].orders
    rows: dict[str, dict[str, Any]] = {
        "rollouts": {
            "id": state.id, "cluster": "default", "namespace": "ml-serving", "service": "tf-model-service",
            "version": state.version, "phase": state.phase.value, "active": True, "watched": True,
            "revision": state.revision, "state": state.to_json(), "monitor": b"\x01\x02",
            "window_due_at": AT, "wake_at": AT, "started_at": AT, "retreated_at": AT,
        },
        "journal": {
            "rollout": state.id, "n": entry.n, "revision": entry.revision, "body": entry.to_json(),
            "stimulus": entry.stimulus,
        },
        "windows": {"rollout": state.id, "n": 1, "revision": state.revision, "body": windows[0].to_json()},
        "outbox": {
            "id": 1, "rollout": state.id, "lane": order.lane.value, "type": order.type, "body": order.to_json(),
            "owed_since": AT, "not_before": 0.0, "attempts": 2, "last_error": "503", "settled_at": None,
        },
        "seen_events": {"source": "/ci", "id": "e1", "at": AT},
        "heads": {
            "cluster": "default", "namespace": "ml-serving", "service": "tf-model-service", "event_at": AT,
            "event_id": "e1", "fence": 7,
        },
        "switches": {"name": "kill", "frozen": True, "actor": "ana", "reason": "storm", "at": AT},
    }  # fmt: skip
    if revision >= "0003":
        rows["leases"] = {"name": "watch", "holder": "a", "until": AT + 60}
        rows["rollouts"]["window_not_before"] = 5.0
    if revision >= "0005":
        rows["pruned"] = {"rollout": "r-old", "exported_at": AT, "windows_at": AT, "journal_at": None}
    if revision >= "0006":
        rows["prediction_partitions"] = {
            "topic": "predictions", "partition": 0, "revision": 3, "next_offset": 70, "watermark_s": AT,
            "seen_at_s": AT, "lost_until_s": 0.0, "lost_from_s": 0.0, "counted_n": 68, "late_n": 1, "poison_n": 1,
            "refused_n": 0,
        }  # fmt: skip
        rows["prediction_counts"] = {
            "id": 1, "topic": "predictions", "cluster": "default", "namespace": "ml-serving",
            "service": "tf-model-service", "from_s": AT, "until_s": AT + 5, "body": b"\x90",
        }  # fmt: skip
        rows["prediction_references"] = {"owner": "r-1", "name": "predictions", "body": b"[[],[]]", "at": AT}
    return rows


def insert(connection: Connection, revision: str) -> None:
    for name, row in rows_of(revision).items():
        columns = ", ".join(f'"{column}"' for column in row)
        values = ", ".join(f":{column}" for column in row)
        connection.execute(sa.text(f"INSERT INTO {name} ({columns}) VALUES ({values})"), row)


def stored(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables but the migrations' own."""
    names = set(sa.inspect(connection).get_table_names()) - {"alembic_version", "compatibility"}
    return {
        name: [dict(row) for row in connection.execute(sa.text(f"SELECT * FROM {name}")).mappings()] for name in names
    }


@pytest.mark.parametrize("revision", REVISIONS)
async def test_rows_of_every_revision_are_read_by_this_one_and_are_there_when_it_is_taken_back(
    url: str, revision: str
) -> None:
    await on(url, lambda c: migrate(c, revision))
    await on(url, lambda c: insert(c, revision))
    before = await on(url, stored)

    store = await open_store(url)
    state = STORY.state
    assert (await store.load([state.id]))[state.id] == state
    assert (await store.active([SERVICE]))[SERVICE] == state
    (due,) = await store.due(START + timedelta(hours=1), grace_s=0, limit=5, lease_s=0.001)
    assert (due.state, due.monitor) == (state, b"\x01\x02")
    assert await store.journal(state.id) == [STORY.steps[0].journal[0]]
    (window,) = await store.windows(state.id)
    assert window == STORY.facts[-1]
    order = STORY.steps[0].orders[0]
    (owed,) = await store.owed(order.lane, START, limit=5, lease_s=0.001)
    assert (owed.instruction, owed.attempts) == (order, 2)
    assert await store.unseen([("/ci", "e1")]) == frozenset()
    assert (await store.heads([SERVICE]))[SERVICE] == ServiceHead(SERVICE, from_epoch_s(AT), "e1", 7)
    assert (await store.kill_switch()).reason == "storm"
    if revision >= "0003":
        assert not await store.lease("watch", "b", START, lease_s=60)
    # What this release writes is there for the older one too.
    fact = Story().progressing().window().window().facts[-1]
    assert isinstance(fact, WindowJudged)
    later = machine.step(state, fact)
    await store.commit([Change(later.state, state.revision, windows=((later.state.revision, fact),))])
    await store.close()

    await on(url, lambda c: migrate(c, revision))
    after = await on(url, stored)
    assert {name: set(rows[0]) for name, rows in after.items() if rows} == {
        name: set(rows[0]) for name, rows in before.items() if rows
    }
    for name in set(before) - {"rollouts", "outbox", "windows", "journal"}:
        assert after[name] == before[name]
    assert [row["revision"] for row in after["rollouts"]] == [later.state.revision]
    bodies = sorted(
        ((row["n"], row["body"] or unpack(bytes(row["packed"]))) for row in after["windows"]), key=lambda pair: pair[0]
    )
    assert [WindowJudged.from_json(body) for _, body in bodies] == [window, fact]

    await on(url, lambda c: migrate(c, "base"))
    assert await on(url, lambda c: sa.inspect(c).get_table_names()) == ["alembic_version"]


@pytest.mark.parametrize("revision", sorted({file.name[:4] for file in frozen.FOLDER.iterdir()}))
async def test_a_release_that_runs_already_goes_on_beside_this_one(url: str, revision: str) -> None:
    """Its own statements, as it sent them, on today's schema; and today's code reads what they wrote."""
    store = await open_store(url)
    assert await on(url, lambda c: frozen.replay(c, revision)) > 100
    loaded = (await store.rollouts(RolloutFilter())).rollouts
    assert [state.service for state in loaded] == [SERVICE]
    assert [w.window for w in await store.windows(loaded[0].id)] == [1, 2]
    assert (await store.kill_switch()).actor == "ana"
    assert len(await store.history(loaded[0].id)) == loaded[0].revision
    await store.close()


def newer(oldest: str) -> Callable[[Connection], None]:
    """Play a newer release's migration."""

    def work(connection: Connection) -> None:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text(f"UPDATE compatibility SET oldest = '{oldest}'"))
        connection.execute(sa.text("ALTER TABLE rollouts ADD COLUMN tomorrow INTEGER DEFAULT 1 NOT NULL"))

    return work


async def test_this_release_starts_on_a_newer_schema_that_says_it_serves_it(url: str) -> None:
    await (await open_store(url)).close()
    await on(url, newer(HEAD))
    store = await open_store(url)
    story = Story().ready()
    await keep(store, story)
    assert (await store.load([story.state.id]))[story.state.id] == story.state
    assert len(await store.owed(Lane.WEIGHTS, START, limit=5, lease_s=1)) == 1
    await store.close()
    assert await on(url, lambda c: c.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()) == "9999"


async def test_this_release_refuses_a_newer_schema_that_does_not_serve_it(url: str) -> None:
    await (await open_store(url)).close()
    await on(url, newer("9998"))
    for _ in range(2):
        # Twice: what was opened for the refusal, such as the lock file, must have been let go.
        with pytest.raises(Refused, match=f"schema 9999 is of a newer release and serves .* 9998 on; .*{HEAD}"):
            await open_store(url)
