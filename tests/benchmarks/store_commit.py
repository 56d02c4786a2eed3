"""What the store costs a rollout-window: claim, load and commit of 500 windows at a time, on both databases.

`python -m tests.benchmarks.store_commit [ACTIVE ...]` prints a table; every chunk writes new states (3 kB), new
statistics' rows (3.7 kB), the judged windows (1.7 kB of JSON) and, for one in twenty, a journal row and two orders, as
a tick does. Disks are waited for: SQLite with synchronous FULL, PostgreSQL as it comes.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from service.model.names import RolloutId
from service.model.observation import Availability
from service.model.stimulus import GuardReading, MetricEvidence, WindowJudged
from service.ring.store import Change, Due
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.real.parts.postgres import DURABLE, PostgresServer
from tests.stories import SERVICE, START, Story

CHUNK = 500
MONITOR_BYTES = 3728
MINUTES = 3
"""Windows of every rollout: the first fills caches and is not counted."""


def judged(due: Due, chance: random.Random) -> Change:
    """A window with every number of three metrics in it."""
    state, n = due.state, due.state.window + 1
    end = START + timedelta(seconds=60 * (n + 1))
    evidence = tuple(
        MetricEvidence(
            metric=name,
            availability=Availability.ENOUGH,
            safe=chance.random() < 0.5,
            log_e=chance.gauss(0, 1),
            effect=chance.gauss(1, 0.1),
            effect_low=chance.gauss(0.9, 0.1),
            effect_high=chance.gauss(1.1, 0.1),
            limit=1.05,
            n_canary=chance.randrange(4000),
            n_stable=chance.randrange(40000),
            value_canary=chance.random(),
            value_stable=chance.random(),
            **extra,
        )
        for name, extra in (
            ("latency", {"cusum": chance.random(), "cusum_line": 5.5, "p99_low": 0.97, "p99_high": 1.04}),
            ("errors", {"events_canary": chance.randrange(40), "events_stable": chance.randrange(400)}),
            ("predictions", {}),
        )
    )
    window = WindowJudged(
        id=f"{state.id}/w{n}",
        at=end + timedelta(seconds=10),
        window=n,
        start=end - timedelta(seconds=60),
        end=end,
        evidence=evidence,
        guards=(GuardReading(guard="error-rate", breach=False, value=chance.random() / 100),),
        log_evidence=chance.gauss(0, 1),
        n_canary=60,
        n_stable=540,
    )
    new = state.model_copy(
        update={
            "window": n, "revision": state.revision + 1, "n_canary": state.n_canary + 60,
            "log_evidence": window.log_evidence, "evidence": evidence,
        }
    )  # fmt: skip
    return Change(
        state=new,
        was_revision=state.revision,
        windows=((new.revision, window),),
        monitor=chance.randbytes(MONITOR_BYTES),
    )


async def fill(store: SqlStore, active_n: int) -> None:
    """``active_n`` services with a rollout in progress."""
    state = Story().progressing().state
    for begin in range(0, active_n, CHUNK):
        changes = []
        for n in range(begin, begin + CHUNK):
            service = SERVICE.model_copy(update={"name": f"svc-{n}"})
            begun = state.model_copy(update={"id": RolloutId(f"r-{n:06d}-0123456789"), "service": service})
            changes.append(Change(begun, None))
        await store.commit(changes)


def server_cpu_s(postmaster: int) -> float:
    """Processor time of PostgreSQL's processes, living and ended."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    total = 0
    for pid in (str(postmaster), *children):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue  # It ended just now; the postmaster counts it from the next look on.
        total += sum(map(int, fields[11:15] if pid == str(postmaster) else fields[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


async def measure(store: SqlStore, active_n: int, server: PostgresServer | None, url: str) -> list[str]:
    """One row of the table."""
    chance = random.Random(active_n)
    await fill(store, active_n)
    sent = 0

    def count(*_: object) -> None:
        nonlocal sent
        sent += 1

    sa.event.listen(store._engine.sync_engine, "before_cursor_execute", count)
    walls = {"due": 0.0, "load": 0.0, "commit": 0.0}
    cpus = dict.fromkeys(walls, 0.0)
    longest_s, server_s, windows_n, json_bytes = 0.0, 0.0, 0, 0
    for minute in range(1, MINUTES + 1):
        now = START + timedelta(seconds=60 * (minute + 1) + 15)
        for _ in range(math.ceil(active_n / CHUNK)):
            before_server_s = server_cpu_s(server.pid) if server else 0.0
            marks = [(time.perf_counter(), time.process_time())]
            due = await store.due(now, grace_s=10, limit=CHUNK, lease_s=60)
            marks.append((time.perf_counter(), time.process_time()))
            await store.load([one.state.id for one in due])
            marks.append((time.perf_counter(), time.process_time()))
            changes = [judged(one, chance) for one in due]
            marks.append((time.perf_counter(), time.process_time()))
            await store.commit(changes)
            marks.append((time.perf_counter(), time.process_time()))
            assert len(due) == CHUNK
            if minute == 1:
                sent = 0
                continue
            windows_n += len(due)
            json_bytes += sum(len(w.to_json()) for change in changes for _, w in change.windows)
            for name, place in (("due", 0), ("load", 1), ("commit", 3)):
                walls[name] += marks[place + 1][0] - marks[place][0]
                cpus[name] += marks[place + 1][1] - marks[place][1]
            longest_s = max(longest_s, marks[4][0] - marks[3][0])
            if server:
                server_s += server_cpu_s(server.pid) - before_server_s
        if server:
            # What autovacuum does: it wakes once a minute, and a minute's updates are always enough for it.
            server.run("VACUUM rollouts", url)
    each = 1e6 / windows_n
    return [
        f"{active_n:,}",
        *(f"{walls[name] * each:.0f} ({cpus[name] * each:.0f})" for name in walls),
        f"{sum(walls.values()) * each:.0f} ({sum(cpus.values()) * each:.0f})",
        f"{server_s * each:.0f}" if server else "-",
        f"{sent / (windows_n / CHUNK):.1f}",
        f"{longest_s * 1000:.0f}",
        f"{json_bytes / windows_n:,.0f}",
    ]


async def main(sizes: list[int]) -> None:
    """Print the table, and what PostgreSQL says of its tables."""
    print(
        "| database | active | due, us | load, us | commit, us | all, us wall (CPU) | server CPU, us | statements "
        "a chunk | longest commit, ms | JSON of a window, bytes | stored, bytes |\n|" + "---|" * 11,
        flush=True,
    )
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            file = Path(folder) / f"{size}.db"
            store = await open_store(f"sqlite:///{file}")
            cells = await measure(store, size, None, "")
            query = sa.text("SELECT sum(pgsize) FROM dbstat WHERE name LIKE '%windows%' AND name NOT LIKE '%due%'")
            async with store._engine.connect() as connection:
                try:
                    stored = (await connection.execute(query)).scalar_one() / (size * MINUTES)
                except sa.exc.OperationalError:
                    query = sa.text("SELECT sum(length(packed) + length(rollout) + 10) FROM windows")
                    stored = (await connection.execute(query)).scalar_one() / (size * MINUTES)
            print(f"| SQLite | {' | '.join(cells)} | {stored:,.0f} |", flush=True)
            await store.close()
    server = PostgresServer(settings=DURABLE).start()
    try:
        for size in sizes:
            url = server.database()
            store = await open_store(url)
            cells = await measure(store, size, server, url)
            stored = int(server.run("SELECT pg_total_relation_size('windows')", url)) / (size * MINUTES)
            print(f"| PostgreSQL | {' | '.join(cells)} | {stored:,.0f} |", flush=True)
            told.append(
                server.run(
                    f"""SELECT '{size:,} active, ' || relname || ': ' || n_tup_upd || ' updates, ' || n_tup_hot_upd
                    || ' HOT, ' || n_dead_tup || ' dead of ' || n_live_tup || ', table '
                    || pg_size_pretty(pg_table_size(relid)) || ', indexes ' || pg_size_pretty(pg_indexes_size(relid))
                                        FROM pg_stat_user_tables WHERE relname IN ('rollouts', 'windows') ORDER BY 1""",
                    url,
                )
            )
            await store.close()
    finally:
        server.remove()
    print("\n" + "\n".join(told))


if __name__ == "__main__":
    asyncio.run(main([int(size) for size in sys.argv[1:]] or [1000, 10000]))
