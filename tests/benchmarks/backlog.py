"""`python -m tests.benchmarks.backlog`: deployment events that wait on the topic when the service comes up.

One replica with SQLite on a file, pinned to one core, takes a backlog in; it is done when the group's committed offsets
stand at the end of every partition, which is after the effects are committed. Printed by mix: events a second, CPU,
peak memory, and how late the API answered meanwhile. Mixes: ``versions`` (10,000 services, ten successive versions
each), ``late`` (duplicates and late events that change nothing), ``unknown`` (services that no target names), ``few``
(100 services with 1,000 versions each).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import numpy as np

from service.events.sending import Message, message
from tests.embedded import GROUP, NAMESPACE, TOPIC, Embedded, consumer_lag, embedded, produce

LIMIT_S = 60.0
PARTITIONS = 36
"""The mock broker keeps at most 5 MiB a partition."""

POLICY = {
    "window": 60,
    "stages": [{"weight_percent": "first", "bake": "10m"}, {"weight_percent": 50, "bake": "10m"}],
    "on_blind": {"budget": "1h", "then": "hold"},
    "on_inconclusive": {"budget": "1h", "then": "hold"},
}
"""Ordinary windows: what is measured is the intake beside the work that it makes, not a tick of seconds."""

MIXES = ("versions", "late", "unknown", "few")


def backlog(mix: str, events_n: int) -> list[Message]:
    """The events of a mix, in the order in which they would have been sent."""
    began = datetime.now(UTC) - timedelta(hours=6)
    services_n = {"versions": events_n // 10, "late": events_n // 10, "unknown": events_n // 10, "few": 100}[mix]
    out = []
    for n in range(events_n):
        turn, service = divmod(n, services_n)
        # Late: the newest event of each service comes first, then its elders, the last of them twice.
        version = turn if mix != "late" else max(0, events_n // services_n - 1 - turn) or 1
        out.append(
            message(
                kind="deployed",
                namespace=NAMESPACE if mix != "unknown" else "elsewhere",
                service=f"model-{service}",
                at=began + timedelta(seconds=version * 60 + service / services_n),
                version=f"2.{version + 1}.0",
                stable_version="2.0.0",
                event_id=f"e-{service}-{version}",
                source="/benchmark",
            )
        )
    return out


async def measure(mix: str, events_n: int, *, core: int | None) -> dict[str, float]:
    """Eat one backlog; what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        async with embedded(Path(folder), partitions=PARTITIONS) as parts:
            messages = await asyncio.to_thread(backlog, mix, events_n)
            parts.furnish(
                sorted({f"model-{m.key.decode().rpartition('-')[2]}" for m in messages}) if mix != "unknown" else []
            )
            if mix == "late":
                # The newest events are taken in first; only the ones that change nothing are measured.
                newest, messages = messages[: events_n // 10], messages[events_n // 10 :]
                await asyncio.to_thread(produce, parts.broker.bootstrap, TOPIC, newest)
                async with parts.service(ready=False, policy=POLICY) as child:
                    await _eaten(parts, child.url, [])
            await asyncio.to_thread(produce, parts.broker.bootstrap, TOPIC, messages)
            late_ms: list[float] = []
            async with parts.service(ready=False, policy=POLICY) as child:
                if core is not None:
                    os.sched_setaffinity(child.process.pid, {core})
                began, took_s = time.monotonic(), 0.0
                took_s = await _eaten(parts, child.url, late_ms) - began
                out = {
                    "events": len(messages),
                    "seconds": took_s,
                    "events_per_s": len(messages) / took_s,
                    "cpu_s": child.cpu_s,
                    "peak_rss_mib": child.peak_rss_mib,
                    "api_p99_ms": float(np.percentile(late_ms, 99)) if late_ms else float("nan"),
                    "api_max_ms": max(late_ms, default=float("nan")),
                }
            with sqlite3.connect(Path(folder) / "serinus.db") as db:
                for table in ("rollouts", "journal", "outbox", "seen_events"):
                    out[table] = db.execute(f"select count(*) from {table}").fetchone()[0]
            return out


async def _eaten(parts: Embedded, url: str, late_ms: list[float]) -> float:
    """Ask the API again and again until nothing is left; the moment of that."""
    asking = asyncio.create_task(_ask(parts.session, url, late_ms))
    try:
        while await asyncio.to_thread(consumer_lag, parts.broker.bootstrap, TOPIC, GROUP):
            await asyncio.sleep(0.5)
        return time.monotonic()
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, url: str, late_ms: list[float]) -> None:
    """How long an answer takes that needs no database: the lateness of the service's loop, seen from outside."""
    while True:
        await asyncio.sleep(0.05)
        began = time.monotonic()
        try:
            async with session.get(f"{url}/livez") as response:
                await response.read()
        except aiohttp.ClientConnectorError:
            continue
        late_ms.append(1000 * (time.monotonic() - began))


def main() -> int:
    """Run and print; 1 when a mix takes longer than the limit (in proportion, where fewer events are asked for)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--mix", choices=MIXES, action="append")
    parser.add_argument("--core", type=int, default=0, help="the core of the service; -1: any")
    given = parser.parse_args()
    slow = False
    for mix in given.mix or MIXES:
        out = asyncio.run(measure(mix, given.events, core=None if given.core < 0 else given.core))
        print(json.dumps({"mix": mix, **{k: round(v, 1) for k, v in out.items()}}), flush=True)
        slow |= out["seconds"] > LIMIT_S * given.events / 100_000
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
