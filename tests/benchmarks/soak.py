"""`make soak`: the whole service for an hour on embedded parts, rollouts coming and going, parts failing by a seed.

Each minute the service's memory, threads, file handles and database are sampled, and the rollouts by phase. It fails
when memory grows after the first quarter by more than ``GROWTH_MIB``, or when a rollout still waits for the mesh at
the end although every part has been well for some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from service.events.sending import message
from tests.embedded import NAMESPACE, TOPIC, Embedded, embedded, produce

GROWTH_MIB = 40.0
SERVICES_N = 100
SAMPLE_S = 60.0
CALM_S = 150.0
"""No faults and no new rollouts at the end, so that all may end."""

FAULTS = ("prometheus away", "API server stopped", "API server 429 and 503", "PagerDuty stopped", "Kafka down")
MUST_END = ("starting", "rolling_back", "promoting")


async def releases(parts: Embedded, rng: random.Random, until: float) -> int:
    """A release of some service every second or so; every fourth candidate fails requests."""
    n = 0
    while time.monotonic() < until:
        name = f"model-{rng.randrange(SERVICES_N)}"
        (parts.traffic.faulty.add if rng.random() < 0.25 else parts.traffic.faulty.discard)(name)
        # What was promoted became stable in the meantime, and the canary is free again.
        if parts.traffic.canary_percent[name] == 100:
            parts.furnish([name])
        sent = message(
            kind="deployed", namespace=NAMESPACE, service=name, at=datetime.now(UTC), version=f"1.{n}.0",
            stable_version="1.0.0-stable",
        )  # fmt: skip
        with contextlib.suppress(RuntimeError):
            await asyncio.to_thread(produce, parts.broker.bootstrap, TOPIC, [sent])
        n += 1
        await asyncio.sleep(rng.uniform(0.5, 1.5))
    return n


async def faults(parts: Embedded, rng: random.Random, until: float, counts: Counter[str]) -> None:
    """One part away for some seconds, then another."""
    while time.monotonic() < until:
        await asyncio.sleep(rng.uniform(5, 15))
        fault = rng.choice(FAULTS)
        counts[fault] += 1
        lasts_s = rng.uniform(2, 8)
        match fault:
            case "prometheus away":
                parts.prometheus.away = True
                await asyncio.sleep(lasts_s)
                parts.prometheus.away = False
            case "API server 429 and 503":
                # Writes that fail for a time, however few are tried in it.
                parts.kube.answers.extend(rng.choice([429, 503]) for _ in range(1000))
                await asyncio.sleep(lasts_s)
                parts.kube.answers.clear()
            case "Kafka down":
                parts.broker.down()
                await asyncio.sleep(lasts_s)
                parts.broker.up()
            case _:
                part = parts.kube if fault == "API server stopped" else parts.pagerduty
                await part.stop()
                await asyncio.sleep(lasts_s)
                await part.start()


def trim(parts: Embedded) -> None:
    """The parts of this process remember everything for tests; here that would be the leak."""
    parts.kube.writes.clear()
    parts.pagerduty.events.clear()


async def soak(minutes: float, seed: int) -> int:
    """Run and print; 1 on failure."""
    rng, counts = random.Random(seed), Counter[str]()
    samples: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with embedded(Path(folder), seed=seed) as parts:
            parts.furnish(f"model-{n}" for n in range(SERVICES_N))
            driving = asyncio.create_task(parts.drive())
            async with parts.service() as child:
                began = time.monotonic()
                busy_until = began + 60 * minutes - CALM_S
                work = asyncio.gather(
                    releases(parts, rng, busy_until), faults(parts, random.Random(seed + 1), busy_until, counts)
                )
                print("minute  RSS MiB  threads  files  database MiB  CPU s  rollouts by phase", flush=True)
                every_s = min(SAMPLE_S, 60 * minutes / 20)
                while time.monotonic() < began + 60 * minutes:
                    await asyncio.sleep(every_s)
                    trim(parts)
                    samples.append(child.rss_mib)
                    size_mib = sum(f.stat().st_size for f in Path(folder).glob("serinus.db*")) / 2**20
                    print(
                        f"{(time.monotonic() - began) / 60:6.1f}  {child.rss_mib:7.0f}  {child.threads_n:7d}  "
                        f"{child.files_n:5d}  {size_mib:12.1f}  {child.cpu_s:5.0f}  {await phases(parts, child.url)}",
                        flush=True,
                    )
                released_n, _ = await work
                left = {phase: n for phase, n in (await phases(parts, child.url)).items() if phase in MUST_END}
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)
    quarter = max(1, len(samples) // 4)
    growth_mib = max(samples[-quarter:]) - max(samples[:quarter])
    print(f"{released_n} releases; faults: {dict(counts)}; still waiting for the mesh at the end: {left or 'none'}")
    print(f"memory grew by {growth_mib:.1f} MiB from the first quarter to the last (limit {GROWTH_MIB:g})")
    return int(growth_mib > GROWTH_MIB or bool(left))


async def phases(parts: Embedded, url: str) -> dict[str, int]:
    """Rollouts by phase; empty where the API does not answer."""
    with contextlib.suppress(Exception):
        async with parts.session.get(f"{url}/api/v1/rollouts", params={"limit": "1"}) as response:
            return {phase: n for phase, n in (await response.json())["counts"].items() if n}
    return {}


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return asyncio.run(soak(given.minutes, given.seed))


if __name__ == "__main__":
    sys.exit(main())
