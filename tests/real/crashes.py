"""``make crash POINTS=1000 SEED=1``: kill -9 of the service at seeded points, under load, on real parts.

Many services are released again and again (good ones, bad ones, superseded and withdrawn ones) on a real broker, a
real API server, a real Prometheus and SQLite or PostgreSQL. The service lives about a second, is killed, and is
started anew at once. When the killing stops, everything must end, and ``audit`` must find nothing lost, nothing out of
order, and nothing that nobody decided.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.real.audit import Audit
from tests.real.launch import NAMES
from tests.real.load import QUICK, Deployer, audited, under_load
from tests.real.parts import building
from tests.real.parts.postgres import PostgresServer
from tests.real.rig import Rig, rig

LONGEST_LIFE_S = 2.5


def planned(rng: random.Random) -> dict[str, Any]:
    """Where the next life ends: after a time, or just before, in or just after an effect."""
    kind = rng.random()
    if kind < 0.15:
        return {"at": "clock", "delay_s": 0.0, "limit_s": rng.uniform(0.0, 0.4)}
    if kind < 0.35:
        return {"at": "clock", "delay_s": 0.0, "limit_s": rng.uniform(0.4, 2.0)}
    return {
        "at": rng.choice(NAMES),
        "edge": rng.choice(("enter", "leave")),
        "nth": 1 + min(int(rng.expovariate(0.3)), 20),
        "delay_s": 0.0 if rng.random() < 0.3 else rng.expovariate(1 / 0.003),
        "limit_s": LONGEST_LIFE_S,
    }


@dataclass(slots=True)
class Crashes:
    """What the killing did."""

    points_n: int = 0
    fell: Counter[str] = field(default_factory=Counter)
    """Points by what was under way: several effects may be."""
    reached: Counter[str] = field(default_factory=Counter)
    """Planned points that were reached, by effect and edge."""
    begun: Counter[str] = field(default_factory=Counter)
    by_itself_n: int = 0
    lived_s: float = 0.0
    took_s: float = 0.0

    def take(self, plan: dict[str, Any], life: dict[str, Any]) -> None:
        """Count one life."""
        self.points_n += 1
        self.lived_s += life["ran_s"]
        self.begun.update(life["begun"])
        self.by_itself_n += life["by_itself"]
        if life["reached"]:
            self.reached[f"{plan['edge']} {plan['at']}"] += 1
        if not life["listening"]:
            self.fell["start"] += 1
        elif not life["under_way"]:
            self.fell["idle"] += 1
        self.fell.update(life["under_way"].keys())


class Lives:
    """The forking parent as a process beside this one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def one(self, plan: dict[str, Any], config: Path, log: Path) -> dict[str, Any]:
        """One life of the service, to its planned end."""
        order = {"plan": plan, "config": str(config), "log": str(log), "constants": QUICK}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """The next line of the parent."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the forking parent has ended")
        said: dict[str, Any] = json.loads(line)
        return said


@asynccontextmanager
async def lives() -> AsyncIterator[Lives]:
    """A forking parent that has imported everything."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.real.launch", "--fork",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=building.ROOT, env={**_environment()},
    )  # fmt: skip
    try:
        made = Lives(process)
        await made.answer()
        yield made
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
    # The numeric library must not start threads in a process that forks.
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


async def crash(real: Rig, *, points_n: int, seed: int, services_n: int, say: bool = False) -> tuple[Crashes, Audit]:
    """Kill the service at so many points under load, let everything end, and look at it all."""
    replica = under_load(real)
    done = Crashes()
    rng = random.Random(seed)
    deployer = Deployer(real, seed)
    await deployer.begin(services_n)
    log = real.folder / "lives.log"
    began = time.monotonic()
    async with lives() as parent:
        for n in range(points_n):
            plan = planned(rng)
            done.take(plan, await parent.one(plan, replica.config, log))
            if say and (n + 1) % 20 == 0:
                per_s = (time.monotonic() - began) / (n + 1)
                print(f"{n + 1} points, {per_s:.2f} s each; {dict(deployer.counts)}; {dict(done.fell)}", flush=True)
    done.took_s = time.monotonic() - began
    # One more life, to the end of everything.
    assert real.session is not None
    await replica.start(real.session)
    found = await audited(real, deployer)
    found.check(done.by_itself_n == 0, f"{done.by_itself_n} lives ended by themselves; see {log}")
    return done, found


async def _main(points_n: int, seed: int, services_n: int, database: str) -> int:
    with tempfile.TemporaryDirectory(prefix="serinus-crash-") as folder, contextlib.ExitStack() as stack:
        url = None
        if database == "postgresql":
            server = PostgresServer()
            stack.callback(server.remove)
            url = server.start().database()
        async with rig(Path(folder), database=url) as real:
            done, found = await crash(real, points_n=points_n, seed=seed, services_n=services_n, say=True)
            print(f"{database}, seed {seed}: {done.points_n} points in {done.took_s:.0f} s, {services_n} services")
            print(f"under way when killed: {dict(done.fell.most_common())}")
            print(f"planned points reached: {dict(sorted(done.reached.items()))}")
            print(f"effects begun: {dict(done.begun)}")
            print(f"rollouts: {dict(found.ends)}; {dict(found.seen)}")
            for one in found.broken[:50]:
                print(f"BROKEN: {one}")
            if found.broken:
                kept = Path(tempfile.mkdtemp(prefix="serinus-crash-kept-"))
                for file in Path(folder).glob("*.log"):
                    file.rename(kept / file.name)
                for file in Path(folder).glob("serinus.db*"):
                    file.rename(kept / file.name)
                print(f"{len(found.broken)} things are broken; logs and database are in {kept}")
    return bool(found.broken)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    asked = parser.parse_args()
    return asyncio.run(_main(asked.points, asked.seed, asked.services, asked.database))


if __name__ == "__main__":
    raise SystemExit(main())
