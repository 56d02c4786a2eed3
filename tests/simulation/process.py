"""A simulated process, and the line between it and one part of the outside: where effects happen and faults strike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from service.app.clock import SystemClock
from tests.simulation.loop import Owner

if TYPE_CHECKING:
    from tests.simulation.world import World

EPOCH = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
"""When every world begins."""

SHORTEST_LOOK_S = 0.2
"""Whoever sleeps so long, looks again and again for something to do."""

PAUSES_S = (3.0, 15.0, 40.0, 70.0, 130.0)
"""How long a process is stopped; some are longer than its leases and its group's patience."""

_T = TypeVar("_T")


class Process:
    """One life of a replica. After its death nothing that it does reaches the outside, not even its tidying up."""

    def __init__(self, world: World, replica: int, life: int, skew_s: float) -> None:
        self.world = world
        self.replica = replica
        self.name = f"replica {replica}" + (f" (life {life})" if life > 1 else "")
        self.owner = Owner(self.name)
        self.skew_s = skew_s
        """How far the machine's wall clock is off."""
        self.slow_until_s = 0.0
        """Until then whatever it asks of an API server is held up on its way."""
        self._clock = SystemClock(wall=self._wall, steady=world.loop.time)

    def _wall(self) -> float:
        return EPOCH.timestamp() + self.world.loop.time() + self.skew_s

    @property
    def alive(self) -> bool:
        """Whether it has not been killed."""
        return not self.owner.dead

    def gate(self) -> None:
        """Stop a dead process's call at its own border."""
        if self.owner.dead:
            raise asyncio.CancelledError

    def now(self) -> datetime:
        """The moment by this process's own clock; implements ``ring.ports.Clock``."""
        return self._clock.now()

    async def sleep(self, seconds: float) -> None:
        """Sleep, at least as long as the world's pace: idle looks at the store are most of all steps."""
        self.gate()
        await asyncio.sleep(max(seconds, self.world.pace_s) if seconds >= SHORTEST_LOOK_S else seconds)
        self.gate()


class Line:
    """The way from a process to one part of the outside. ``part`` names it in FAULTS: store, api, pager, ..."""

    def __init__(self, process: Process, part: str, where: str = "") -> None:
        self._process = process
        self._world = process.world
        self._part = part
        self._where = where or part
        self._dice = process.world.dice(f"line {part} {process.replica}")

    async def call(
        self,
        what: str,
        act: Callable[[], Awaitable[_T]],
        *,
        away: Callable[[str], Exception],
        timeout_s: float,
        risk: float,
        fates: tuple[str, ...] = ("error", "lost", "hang"),
    ) -> _T:
        """Do ``act``, one effect, or let something go wrong before or after it.

        risk : how probable a fault is while the world is sick.
        fates : what of this part may go wrong in this call.
        """
        process, world = self._process, self._world
        process.gate()
        await self._travel()
        if self._part == "api" and process.slow_until_s > world.loop.time():
            await asyncio.sleep(process.slow_until_s - world.loop.time())
            process.gate()
        if self._where in world.outages:
            await asyncio.sleep(0.01)
            raise away(f"{self._where} is away")
        fate = self._fate(risk, fates)
        if fate == "crash before":
            world.strike("crash at an effect", f"{process.name} is killed before it can {what}.")
            world.crash(process)
            raise asyncio.CancelledError
        if fate == "pause before":
            await self._pause(f"before it can {what}")
        if fate in ("error", "conflict", "throttled", "forbidden"):
            world.strike(f"{self._part}.{fate}", f"{self._where} fails {process.name}: {what} ({fate}).")
            raise away(fate)
        if fate in ("hang", "late"):
            world.strike(f"{self._part}.{fate}", f"{self._where} does not answer {process.name}: {what} ({fate}).")
            if fate == "late":
                world.later(self._dice.uniform(timeout_s, 6 * timeout_s), what, act)
            await asyncio.sleep(timeout_s)
            raise away("timed out")
        if fate == "slow":
            world.strike(f"{self._part}.slow", f"{self._where} takes long to answer {process.name}: {what}.")
            await asyncio.sleep(self._dice.uniform(1.0, timeout_s))
            process.gate()
        result = await act()
        world.stepped()
        if fate == "crash after":
            world.strike("crash at an effect", f"{process.name} is killed after it could {what}.")
            world.crash(process)
            raise asyncio.CancelledError
        if fate == "pause after":
            await self._pause(f"after it could {what}")
        if fate == "lost":
            world.strike(f"{self._part}.lost", f"{process.name} never hears that it could {what}.")
            raise away("the answer was lost")
        await self._travel()
        process.gate()
        return result

    async def _pause(self, when: str) -> None:
        self._world.stop("pause at an effect", self._process, self._dice.choice(PAUSES_S), when)
        await asyncio.sleep(0)
        self._process.gate()

    async def _travel(self) -> None:
        """A moment on the wire, often enough too short to matter."""
        if self._world.sick and self._dice.random() < 0.2:
            await asyncio.sleep(self._dice.expovariate(20.0))
            self._process.gate()

    def _fate(self, risk: float, fates: tuple[str, ...]) -> str:
        world = self._world
        if not world.sick or self._dice.random() >= risk:
            return ""
        faults = world.plan.faults
        known = [fate for fate in fates if f"{self._part}.{fate}" in faults]
        for kind, odds in (("crash", 0.2), ("pause", 0.3)):
            if f"{kind} at an effect" in faults and self._dice.random() < odds:
                known += [f"{kind} before", f"{kind} after"]
        return self._dice.choice(known) if known else ""
