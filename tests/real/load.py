"""Load for the tests of faults: a deployment tool that releases many services again and again, and what they serve."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from service.lab.world import FAULTS, World
from service.storage.opening import open_store
from tests.real.audit import Audit, audit
from tests.real.rig import Change, Published, Release, Replica, Rig

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

PATIENT: dict[str, Any] = {
    **POLICY,
    "name": "patient",
    "stages": [{"weight_percent": 10, "bake": "1h", "min_requests": 100}],
}
"""Stays at its first weight until a person acts."""

REQUESTS_PER_S = 20_000.0

QUICK = {
    # A lease is what the loss of a process costs; the service's own would make every test wait for it.
    "service.dispatch.dispatcher:LEASE_S": 3.0,
    "service.dispatch.effects:TRY_S": 1.5,
    "service.analysis.tick:LEASE_S": 3.0,
    # The load moves more rollouts in a minute than one PagerDuty key may tell of.
    "service.alerts.pagerduty:CALLS_PER_MINUTE": 1_000_000,
    "service.alerts.pagerduty:NOTES_PER_MINUTE": 1_000_000,
}
"""Constants of the service under this load, by module."""

ENDS_WITHIN_S = 180.0


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
        self._task: asyncio.Task[None]

    async def create(self, services_n: int) -> None:
        """Services with routes and traffic."""
        for n in range(services_n):
            name = f"s{n:03d}"
            await create(self._rig, name, seed=n)
            self._services[name] = _Service(name)
        self._rig.on_change = self._changed
        self._rig.on_published = self._heard

    def _changed(self, change: Change) -> None:
        if change.service in self._services:
            self._services[change.service].percent = change.percent

    def _heard(self, record: Published) -> None:
        service = self._services.get(record.key.partition("/")[2])
        if service is not None and record.version == service.version:
            service.begun = True
            if record.phase in ("promoted", "rolled_back", "ended") and not service.free:
                service.free = True
                self.counts["ended"] += 1

    @property
    def running(self) -> list[str]:
        """Services whose newest version has not ended."""
        return [one.name for one in self._services.values() if not one.free]

    async def begin(self, services_n: int) -> None:
        """Prepare the rig for this load and start it; before any replica is started."""
        await self.create(services_n)
        # Both versions have been scraped before there is any canary traffic, as ready pods are.
        await asyncio.sleep(2.5)
        self._task = asyncio.create_task(self.run())

    async def end(self) -> list[str]:
        """Release nothing more; which services have not come to an end in time, with nothing owed."""
        self.ending = True
        until = time.monotonic() + ENDS_WITHIN_S
        while (self.running or await self._rig.owed_n()) and time.monotonic() < until:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.5)
        self._task.cancel()
        # The last records are on their way to the rig's own reader.
        await asyncio.sleep(1.0)
        return self.running

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


async def create(real: Rig, name: str, *, seed: int) -> None:
    """One service with its route and traffic."""
    real.releases[name] = Release(name, OnlyErrors(requests_per_s=REQUESTS_PER_S, seed=seed, job=name))
    await real.put_service(name)


def under_load(real: Rig, name: str = "serinus", **settings: Any) -> Replica:
    """A replica for this load: its policy, its target, and leases of seconds."""
    real.policies = [POLICY, PATIENT]
    real.target = {"finish": "return_to_stable"}
    replica = real.configure(name, **settings)
    sets = [word for where, value in QUICK.items() for word in ("--set", f"{where}={value}")]
    replica.command = [sys.executable, "-m", "tests.real.launch", *sets]
    return replica


async def audited(real: Rig, deployer: Deployer) -> Audit:
    """The end of the load, of the replicas and of everything that they owed, and then a look at it all."""
    stuck = await deployer.end()
    for replica in real.replicas.values():
        if replica.process is not None and replica.process.poll() is None:
            replica.stop()
    store = await open_store(real.database)
    try:
        found = await audit(real, store)
    finally:
        await store.close()
    found.check(not stuck, f"{len(stuck)} services never ended: {stuck[:5]}\n{real.log_tail()}")
    return found
