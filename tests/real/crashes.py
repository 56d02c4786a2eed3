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

from service.lab.world import FAULTS, World
from service.storage.opening import open_store
from tests.real.audit import Audit, audit
from tests.real.launch import NAMES
from tests.real.parts import building
from tests.real.rig import Change, Published, Release, Rig, rig

POLICY: dict[str, Any] = {
    "name": "crash",
    "stages": [{"weight_percent": percent, "bake": "1s", "min_requests": 100} for percent in (10, 30, 60)],
    "window": 2,
    "metrics": [{"name": "errors", "kind": "errors", "margin": 3.0}],
    "on_harm": "rollback",
    "on_pause": {"budget": "10s", "then": "rollback"},
    "on_blind": {"budget": "30s", "then": "rollback"},
    "on_inconclusive": {"budget": "60s", "then": "rollback"},
    "ready_timeout": "1m",
}
"""Short stages on one cheap metric, so that every second many rollouts move. Every budget ends in a rollback."""

REQUESTS_PER_S = 20_000.0
CONSTANTS = {
    # A lease is what the loss of a process costs; with the service's own, most of a life would be spent waiting.
    "service.dispatch.dispatcher:LEASE_S": 2.0,
    "service.dispatch.dispatcher:TRY_S": 1.5,
    "service.dispatch.effects:TRY_S": 1.5,
    "service.analysis.tick:LEASE_S": 2.0,
    # The load moves more rollouts in a minute than one PagerDuty key may tell of.
    "service.alerts.pagerduty:CALLS_PER_MINUTE": 1_000_000,
}
LONGEST_LIFE_S = 2.5
STUCK_AFTER_S = 180.0


class OnlyErrors(World):
    """A world that counts requests and failures and nothing else, so that a hundred of them cost little."""

    def _serve(self, version: str, n: int) -> None:
        failed = int(self._rng.binomial(n, self.behaviours[version].error_rate))
        self._count("http_requests_total", {"version": version, "code": "200"}, n - failed)
        self._count("http_requests_total", {"version": version, "code": "500"}, failed)


@dataclass(slots=True)
class _Service:
    """What the deployment tool knows of one service."""

    name: str
    version: str = ""
    free: bool = True
    begun: bool = False
    """Serinus has told of this version."""
    disturbed_at_s: float = float("inf")
    """When this version is superseded or withdrawn, if it is."""
    told_stable_at_s: float = 0.0
    percent: int = 0


class Deployer:
    """A deployment tool: releases each service again when its last release has ended, and upgrades stable."""

    def __init__(self, real: Rig, seed: int) -> None:
        self._rig = real
        self._rng = random.Random(seed)
        self._services: dict[str, _Service] = {}
        self._n = 0
        self.ending = False
        """No new releases from now on."""
        self.counts: Counter[str] = Counter()

    async def create(self, services_n: int) -> None:
        """Services with routes and traffic."""
        for n in range(services_n):
            name = f"s{n:03d}"
            world = OnlyErrors(requests_per_s=REQUESTS_PER_S, seed=n, job=name)
            self._rig.releases[name] = Release(name, world)
            await self._rig.put_service(name)
            self._services[name] = _Service(name)
        self._rig.on_change = self._changed
        self._rig.on_published = self._heard

    def _changed(self, change: Change) -> None:
        self._services[change.service].percent = change.percent

    def _heard(self, record: Published) -> None:
        service = self._services[record.key.partition("/")[2]]
        if record.version == service.version:
            service.begun = True
            service.free = service.free or record.phase in ("promoted", "rolled_back", "ended")

    @property
    def running(self) -> list[str]:
        """Services whose newest version has not ended."""
        return [one.name for one in self._services.values() if not one.free]

    async def run(self) -> None:
        """For ever."""
        while True:
            now = time.monotonic()
            for one in self._services.values():
                await self._look(one, now)
            await asyncio.sleep(0.05)

    async def _look(self, one: _Service, now: float) -> None:
        if one.free:
            if not self.ending and self._rng.random() < 0.1:
                await self._release(one, now)
        elif one.percent == 100 and one.begun and now > one.told_stable_at_s + 3.0:
            # Told again while all traffic is on the canary: the first may come before the mesh's confirmation.
            one.told_stable_at_s = now
            self.counts["stable upgraded"] += 1
            await self._rig.announce(one.name, stable_version=one.version)
        elif now > one.disturbed_at_s and one.begun and not self.ending:
            if self._rng.random() < 0.7:
                self.counts["superseded"] += 1
                await self._release(one, now)
            else:
                self.counts["withdrawn"] += 1
                one.disturbed_at_s = float("inf")
                await self._rig.announce(one.name, kind="rolledback", stable_version=None)

    async def _release(self, one: _Service, now: float) -> None:
        self._n += 1
        self.counts["released"] += 1
        one.version, one.free, one.begun, one.told_stable_at_s = f"2.{self._n}", False, False, 0.0
        one.disturbed_at_s = now + self._rng.uniform(1, 15) if self._rng.random() < 0.15 else float("inf")
        fault = "errors" if self._rng.random() < 0.25 else "none"
        self._rig.releases[one.name].world.behaviours["v2"] = FAULTS[fault]
        await self._rig.announce(one.name, version=one.version)


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
        order = {"plan": plan, "config": str(config), "log": str(log), "constants": CONSTANTS}
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
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
    # The numeric library must not start threads in a process that forks.
    return {**kept, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


async def crash(real: Rig, *, points_n: int, seed: int, services_n: int, say: bool = False) -> tuple[Crashes, Audit]:
    """Kill the service at so many points under load, let everything end, and look at it all."""
    real.policies = [POLICY]
    real.target = {"finish": "return_to_stable"}
    replica = real.configure()
    done = Crashes()
    rng = random.Random(seed)
    deployer = Deployer(real, seed)
    await deployer.create(services_n)
    await asyncio.sleep(2.5)
    deploying = asyncio.create_task(deployer.run())
    log = real.folder / "lives.log"
    began = time.monotonic()
    async with lives() as parent:
        for n in range(points_n):
            if deploying.done():
                await deploying
            plan = planned(rng)
            done.take(plan, await parent.one(plan, replica.config, log))
            if say and (n + 1) % 20 == 0:
                per_s = (time.monotonic() - began) / (n + 1)
                print(f"{n + 1} points, {per_s:.2f} s each; {dict(deployer.counts)}; {dict(done.fell)}", flush=True)
        done.took_s = time.monotonic() - began
        deployer.ending = True
        # One more life, to the end of everything.
        sets = [word for where, value in CONSTANTS.items() for word in ("--set", f"{where}={value}")]
        replica.command = [sys.executable, "-m", "tests.real.launch", *sets]
        assert real.session is not None
        await replica.start(real.session)
    until = time.monotonic() + STUCK_AFTER_S
    while (deployer.running or await real.owed_n()) and time.monotonic() < until:
        await asyncio.sleep(0.5)
    deploying.cancel()
    stuck = deployer.running
    replica.stop()
    await asyncio.sleep(0.5)
    store = await open_store(real.database)
    try:
        found = await audit(real, store)
    finally:
        await store.close()
    found.check(not stuck, f"{len(stuck)} services never ended: {stuck[:5]}\n{replica.log_tail(2000)}")
    found.check(done.by_itself_n == 0, f"{done.by_itself_n} lives ended by themselves; see {log}")
    return done, found


async def _main(points_n: int, seed: int, services_n: int, database: str) -> int:
    with tempfile.TemporaryDirectory(prefix="serinus-crash-") as folder, contextlib.ExitStack() as stack:
        url = None
        if database == "postgresql":
            from tests.real.parts.postgres import PostgresServer

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
