"""`make bench-scale`: many rollouts at one-minute windows on one or more replicas, with a world around them.

The service runs as processes of its own, as in production. Around it, in other processes: a Prometheus-compatible
store that answers real bytes (``load_store``), the lab's Kafka, API server and PagerDuty, and SQLite or a real
PostgreSQL. Every rollout is begun by an event, gets its first weight by a patch, and is judged once a minute on
latency, errors and predictions.

With ``--catch-up`` the replicas are away for some minutes once all rollouts are under way; measured is how fast all of
them together judge what was missed, and who judged how much.

Printed each minute: the replicas' CPU and memory, windows judged, and their lag: from the moment at which a window
could be judged (its end and two scrape intervals) to its verdict, from each window's own record in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import sqlalchemy as sa
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.events.connection import Connection as Kafka
from service.events.publisher import Producer
from service.events.sending import message
from service.lab.broker import EmbeddedBroker
from service.lab.kube_api import KubeApi
from service.lab.pagerduty_api import PagerDutyApi
from service.model.stimulus import WindowJudged
from service.storage.packing import unpack
from tests import embedded, processes
from tests.benchmarks.load_store import LoadStore
from tests.embedded import NAMESPACE
from tests.real.rig import Replica

ROOT = Path(__file__).parents[2]
SCRAPE_S = 15.0
PARTITIONS = 16

POLICY = {
    "name": "scale",
    "stages": [{"weight_percent": 10, "bake": "6h", "min_requests": 1000}],
    "window": "1m",
    "metrics": [
        {"name": "latency", "kind": "latency"},
        {"name": "errors", "kind": "errors"},
        {"name": "predictions", "kind": "predictions"},
    ],
}
TARGET = {**embedded.TARGET, "labels": {"job": "${service}"}, "policy": "scale"}


# --- the world around the service -----------------------------------------------------------------------------------


def world(told: Connection, rollouts_n: int, folder: str) -> None:
    """Kafka, API server and PagerDuty in one process, until it is told to end."""
    asyncio.run(_world(told, rollouts_n, Path(folder)))


async def _world(told: Connection, rollouts_n: int, folder: Path) -> None:
    with EmbeddedBroker() as broker:
        broker.create_topic(embedded.TOPIC, PARTITIONS)
        for topic in (embedded.DEAD_LETTERS, embedded.DECISIONS):
            broker.create_topic(topic)
        async with KubeApi() as kube, PagerDutyApi() as pagerduty:
            for n in range(rollouts_n):
                kube.put("virtualservices", embedded.virtual_service(f"model-{n}"))
            told.send((broker.bootstrap, str(kube.kubeconfig(folder / "kubeconfig")), pagerduty.url))
            with contextlib.suppress(EOFError):
                await asyncio.to_thread(told.recv)


@contextlib.contextmanager
def around(rollouts_n: int, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(Kafka's address, kubeconfig, PagerDuty's URL)."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=world, args=(theirs, rollouts_n, str(folder)), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        process.join(10)


# --- the service ----------------------------------------------------------------------------------------------------


def configure(folder: Path, database: str, parts: tuple[str, str, str], store_url: str) -> dict[str, Any]:
    """The files and settings of every replica."""
    bootstrap, kubeconfig, pagerduty = parts
    for kind, body in (("policies", POLICY), ("targets", [TARGET])):
        (folder / "config" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "config" / kind / "scale.yaml").write_text(yaml.safe_dump(body))
    for kind in ("metrics", "logs"):
        shutil.copytree(ROOT / "config" / kind, folder / "config" / kind, dirs_exist_ok=True)
    (folder / "key").write_text("k" * 32)
    return {
        "mode": "enforce",
        "config_dir": str(folder / "config"),
        "kafka": {"bootstrap_servers": bootstrap},
        "prometheus": {"url": store_url, "scrape_interval": f"{SCRAPE_S:g}s"},
        "kubernetes": {"kubeconfig": kubeconfig},
        "database": {"url": database},
        "api": {"host": "127.0.0.1", "auth": "off"},
        "pagerduty": {"routing_key_file": str(folder / "key"), "url": pagerduty},
    }


def pid(replica: Replica) -> int:
    """Of its running process."""
    assert replica.process is not None
    return replica.process.pid


def cpu_spent_s(replicas: list[Replica]) -> list[float]:
    """Processor time of each replica since its start."""
    return [processes.cpu_s(pid(replica)) for replica in replicas]


async def windows_judged(replica: Replica, session: aiohttp.ClientSession) -> float:
    """Windows that this replica has judged since its start."""
    return await counted(replica, session, "serinus_window_lag_seconds_count")


async def counted(replica: Replica, session: aiohttp.ClientSession, name: str, **labels: str) -> float:
    """The sum of a replica's samples of this name and these labels."""
    async with session.get(f"{replica.url}/metrics") as answer:
        return sum(
            sample.value
            for family in text_string_to_metric_families(await answer.text())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


# --- what is measured -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Minute:
    """One minute's figures."""

    cpu_s: list[float]
    judged: list[float]
    lag_s: np.ndarray[Any, np.dtype[np.float64]]
    peak_mib: float
    store_cpu_s: float
    availability: Counter[str] = field(default_factory=Counter)


class Records:
    """The database as a reader beside the service sees it."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        driver = "sqlite" if parsed.get_backend_name() == "sqlite" else "postgresql+asyncpg"
        self._url = parsed.set(drivername=driver)
        self._seen: dict[str, int] = {}

    async def under_way(self) -> int:
        """Rollouts whose first weight stands."""
        rows = await self._all(sa.text("SELECT count(*) FROM rollouts WHERE window_due_at IS NOT NULL"))
        return int(rows[0][0])

    async def missed(self) -> int:
        """Windows that could be judged by now and were not."""
        rows = await self._all(sa.text("SELECT window_due_at FROM rollouts WHERE window_due_at IS NOT NULL"))
        late_s = time.time() - 2 * SCRAPE_S - np.array([row[0] for row in rows])
        return int(np.maximum(0, np.floor(late_s / 60) + 1).sum())

    async def judged_since(self, moment_s: float) -> list[WindowJudged]:
        """Each rollout's last window, where it was judged after the moment."""
        query = sa.text(
            "SELECT w.packed FROM windows w JOIN (SELECT rollout, max(n) AS n FROM windows GROUP BY rollout) l "
            "ON w.rollout = l.rollout AND w.n = l.n"
        )
        judged = [WindowJudged.from_json(unpack(row.packed)) for row in await self._all(query)]
        return [one for one in judged if one.at.timestamp() > moment_s]

    async def _all(self, query: sa.TextClause) -> list[Any]:
        if self._url.get_backend_name() == "sqlite":
            return await asyncio.to_thread(self._sync, query)
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(self._url)
        try:
            async with engine.connect() as connection:
                return list((await connection.execute(query)).all())
        finally:
            await engine.dispose()

    def _sync(self, query: sa.TextClause) -> list[Any]:
        engine = sa.create_engine(self._url)
        with engine.connect() as connection:
            rows = list(connection.execute(query).all())
        engine.dispose()
        return rows


async def announce(bootstrap: str, rollouts_n: int, spread_s: float) -> None:
    """One event a service, spread over some time."""
    producer = Producer(Kafka(bootstrap))
    began = time.monotonic()
    for n in range(rollouts_n):
        sent = message(
            kind="upgraded", namespace=NAMESPACE, service=f"model-{n}", at=datetime.now(UTC),
            version="2.13.0", stable_version="2.12.0",
        )  # fmt: skip
        await producer.send("cd.events", key=sent.key, value=sent.value, headers=list(sent.headers))
        ahead_s = spread_s * n / rollouts_n - (time.monotonic() - began)
        if ahead_s > 0.05:
            await asyncio.sleep(ahead_s)
    await producer.stop()


@contextlib.asynccontextmanager
async def database(kind: str, folder: Path) -> AsyncIterator[str]:
    """Its URL."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'serinus.db'}"
        return
    from tests.real.parts.postgres import DURABLE, PostgresServer

    server = PostgresServer(settings=DURABLE).start()
    try:
        yield server.database()
    finally:
        server.stop()


@dataclass(frozen=True, slots=True)
class Run:
    """What is measured."""

    rollouts_n: int
    minutes: int
    database: str
    replicas_n: int
    pods: int
    away_minutes: int

    def __str__(self) -> str:
        return f"{self.rollouts_n} rollouts, {self.database}, {self.replicas_n} replica(s), {self.pods} pod(s) an arm"


async def measure(run: Run) -> int:
    """Run it and print; 1 when a figure is past its limit."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(LoadStore(run.rollouts_n, pods=run.pods, scrape_s=SCRAPE_S))
        parts = stack.enter_context(around(run.rollouts_n, folder))
        url = await stack.enter_async_context(database(run.database, folder))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        settings = configure(folder, url, parts, store.url)
        replicas = [Replica(folder, f"serinus-{n}", settings) for n in range(run.replicas_n)]

        async def start() -> None:
            await asyncio.gather(*(replica.start(session) for replica in replicas))

        def stop() -> None:
            for replica in replicas:
                if replica.process is not None:
                    replica.stop()

        stack.callback(stop)
        await start()
        began = time.monotonic()
        await announce(parts[0], run.rollouts_n, min(60.0, run.rollouts_n / 200))
        records = Records(url)
        while (under_way_n := await records.under_way()) < run.rollouts_n:
            if time.monotonic() > began + 600:
                raise SystemExit(f"only {under_way_n} rollouts are under way after ten minutes")
            await asyncio.sleep(1)
        print(f"{run}: all under way {time.monotonic() - began:.0f} s after the first event", flush=True)
        await asyncio.sleep(100)  # every rollout has begun its comparison
        if run.away_minutes:
            stop()
            await asyncio.sleep(60 * run.away_minutes)
            missed_n = await records.missed()
            await start()
            await catch_up(replicas, missed_n, session)
            return 0
        minutes = [await one_minute(n, replicas, records, store, session) for n in range(1, run.minutes + 1)]
        return report(run.rollouts_n, minutes)


async def catch_up(replicas: list[Replica], missed_n: int, session: aiohttp.ClientSession) -> None:
    """Time the replicas while they judge what was missed, from when all of them are ready and without the last tenth,
    in which some have nothing to do. A window that two of them judge is a conflict of one of their commits."""
    already = [await windows_judged(replica, session) for replica in replicas]
    began = time.monotonic()
    cpu_s = cpu_spent_s(replicas)
    judged: list[float] = []
    while sum(judged) < 0.9 * missed_n:
        await asyncio.sleep(0.5)
        judged = [await windows_judged(replica, session) for replica in replicas]
    took_s = time.monotonic() - began
    done = [after - before for before, after in zip(already, judged, strict=True)]
    shares = [n / sum(done) * len(replicas) for n in done]
    conflicts_n = sum(
        [
            await counted(one, session, "serinus_store_errors_total", call="commit", reason="conflict")
            for one in replicas
        ]
    )
    print(
        f"  caught up with {sum(judged):.0f} of {missed_n} windows, the last {sum(done):.0f} in "
        f"{took_s:.1f} s = {sum(done) / took_s:.0f} a second; {conflicts_n:.0f} conflicts; CPU "
        f"{'+'.join(f'{(now_s - s) / took_s:.2f}' for s, now_s in zip(cpu_s, cpu_spent_s(replicas), strict=True))} "
        f"cores; shares of an even part: "
        f"{', '.join(f'{share:.2f}' for share in shares)}",
        flush=True,
    )


async def one_minute(
    number: int, replicas: list[Replica], records: Records, store: LoadStore, session: aiohttp.ClientSession
) -> Minute:
    """Wait for a minute and tell it."""
    began_s = time.time()
    store_cpu_s = store.spent().cpu_s
    judged = [await windows_judged(replica, session) for replica in replicas]
    cpu_s = cpu_spent_s(replicas)
    await asyncio.sleep(60 - (time.time() - began_s))
    cpu_s = [now_s - s for s, now_s in zip(cpu_s, cpu_spent_s(replicas), strict=True)]
    judged = [await windows_judged(replica, session) - n for replica, n in zip(replicas, judged, strict=True)]
    windows = await records.judged_since(began_s)
    lag_s = np.array([(w.at - w.end).total_seconds() - 2 * SCRAPE_S for w in windows])
    minute = Minute(
        cpu_s,
        judged,
        lag_s,
        max(processes.peak_rss_mib(pid(replica)) for replica in replicas),
        store.spent().cpu_s - store_cpu_s,
        Counter(e.availability.value for w in windows for e in w.evidence),
    )
    print(
        f"  minute {number:2}: windows {'+'.join(f'{n:.0f}' for n in judged)}; lag p50 {np.median(lag_s):.2f} "
        f"p99 {np.percentile(lag_s, 99):.2f} max {lag_s.max():.2f} s; CPU "
        f"{'+'.join(f'{s / 60:.2f}' for s in cpu_s)} cores, {1e3 * sum(cpu_s) / sum(judged):.2f} ms a window; peak "
        f"{minute.peak_mib:.0f} MiB; store {minute.store_cpu_s / 60:.2f} cores; "
        f"{json.dumps(dict(minute.availability))}",
        flush=True,
    )
    return minute


def report(rollouts_n: int, minutes: list[Minute]) -> int:
    """The whole run in one line; 1 when a figure is past its limit."""
    lag_s = np.concatenate([m.lag_s for m in minutes])
    cores = sum(sum(m.cpu_s) for m in minutes) / 60 / len(minutes)
    judged = sum(sum(m.judged) for m in minutes)
    cost_ms = 1e3 * sum(sum(m.cpu_s) for m in minutes) / judged
    p99_s, peak_mib = float(np.percentile(lag_s, 99)), max(m.peak_mib for m in minutes)
    print(
        f"  whole: {judged:.0f} windows in {len(minutes)} minutes ({judged / len(minutes) / rollouts_n:.3f} a rollout "
        f"and minute), lag p99 {p99_s:.2f} s, {cores:.2f} cores, {cost_ms:.2f} ms a rollout-window, peak "
        f"{peak_mib:.0f} MiB"
    )
    return int(p99_s > 10 or cores > 1 or peak_mib > 1024)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", default="100,1000,10000", help="numbers of rollouts, one run each")
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--replicas", default="1", help="numbers of replicas, one run each; PostgreSQL for more than 1")
    parser.add_argument("--catch-up", type=int, default=0, metavar="MINUTES", help="judge what so many minutes missed")
    parser.add_argument("--pods", type=int, default=1, help="pods of each arm")
    given = parser.parse_args()
    worst = 0
    for rollouts_n in map(int, given.rollouts.split(",")):
        for replicas_n in map(int, given.replicas.split(",")):
            run = Run(rollouts_n, given.minutes, given.database, replicas_n, given.pods, given.catch_up)
            worst = max(worst, asyncio.run(measure(run)))
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
