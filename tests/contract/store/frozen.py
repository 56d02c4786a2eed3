"""The SQL of a release, frozen: every statement that its store sends, so that later schemas are held to serve it.

`python -m tests.contract.store.frozen REVISION` writes the present code's statements, once, when a revision is out.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from service.model.instruction import Lane
from service.model.rollout import Phase
from service.model.stimulus import WindowJudged
from service.ring.store import Change, KillSwitch, Postponed, RollbackLimit, RolloutFilter, ServiceHead, Where
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.real.parts import postgres
from tests.stories import SERVICE, START, Story, lean

FOLDER = Path(__file__).parent / "statements"


async def everything(store: SqlStore) -> Story:
    """Use every method of the store; the rollout that it tells of."""
    story = Story().progressing().window().window(harmful=True, **lean(200))
    was: int | None = None
    later = START + timedelta(hours=1)
    heads = [ServiceHead(SERVICE, START, "e1", 7)]
    for step, fact in zip(story.steps, story.facts, strict=True):
        windows = ((step.state.revision, fact),) if isinstance(fact, WindowJudged) else ()
        change = Change(step.state, was, step.journal, windows, step.orders, step.drops, monitor=b"\x01\x02")
        await store.commit([change], seen=[("/ci", "e1", START)], heads=heads, limit=RollbackLimit(5, START))
        was = step.state.revision
        for where in (Where(), Where(only="default"), Where(but=frozenset({"other"}))):
            for lane in Lane:
                owed = await store.owed(lane, later, limit=9, lease_s=0.001, where=where)
                await store.commit([], postponed=[Postponed(one.id, START, "503") for one in owed])
            await store.due(later, grace_s=0, limit=9, lease_s=0.001, where=where)
    await store.commit([], settled={1: START})
    await store.lease("watch", "a", START, lease_s=10)
    await store.set_kill_switch(KillSwitch(True, "ana", "storm", START))
    await store.kill_switch()
    await store.unseen([("/ci", "e1")])
    await store.heads([SERVICE])
    await store.active([SERVICE])
    await store.load([story.state.id])
    await store.past_monitors([SERVICE], last=3)
    await store.waking(later, limit=5)
    await store.watched(limit=5)
    await store.watched(limit=5, after=story.state.id)
    await store.owed_summary()
    await store.overdue(later)
    await store.rollbacks_since(START)
    which = RolloutFilter([Phase.STARTING], active=True, cluster="c", namespace="n", service="s", text="x")
    await store.rollouts(which, after="1~r")
    await store.journal(story.state.id)
    await store.windows(story.state.id)
    await store.history(story.state.id)
    await store.check()
    return story


async def record(revision: str) -> None:
    """Write the statements for both databases."""
    with tempfile.TemporaryDirectory() as folder:
        urls = {"sqlite": f"sqlite:///{folder}/s.db", "postgresql": postgres.shared().database()}
        for dialect, url in urls.items():
            store = await open_store(url)
            kept: list[tuple[str, Any]] = []

            def keep(*sent: Any, kept: list[tuple[str, Any]] = kept) -> None:
                _, _, statement, parameters, _, many = sent
                kept.extend((statement, row) for row in (parameters if many else [parameters]))

            sa.event.listen(store._engine.sync_engine, "before_cursor_execute", keep)
            await everything(store)
            await store.close()
            lines = [json.dumps([statement, [_out(value) for value in row]]) for statement, row in kept]
            (FOLDER / f"{revision}-{dialect}.jsonl").write_text("\n".join(lines) + "\n")


def replay(connection: Connection, revision: str) -> int:
    """Run a release's statements as it sent them; how many there were."""
    file = FOLDER / f"{revision}-{connection.dialect.name}.jsonl"
    lines = file.read_text().splitlines()
    for line in lines:
        statement, row = json.loads(line)
        connection.exec_driver_sql(statement, tuple(_in(value) for value in row))
    return len(lines)


def _out(value: Any) -> Any:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value


def _in(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1]))
