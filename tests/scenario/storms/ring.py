"""The ring in one process on a real SQLite store: door, dispatcher and clockwork, with a world and time of its own."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import Dispatcher
from service.model.instruction import Lane
from service.model.names import ServiceKey
from service.model.stimulus import DeploymentEvent
from service.ring.door import Door
from service.ring.ports import Bus, Mesh, Pager, Unavailable
from service.storage.store import SqlStore
from tests.stories import SERVICE, START, catalog, event
from tests.unit.dispatch.test_dispatcher import Outside


def releases(n: int, *, version: str = "2") -> list[DeploymentEvent]:
    """One release of each of ``n`` services, all in the same second."""
    return [event(f"e{i}-{version}", version, service=f"svc-{i}", at=START) for i in range(n)]


def key(i: int) -> ServiceKey:
    """The ``i``-th service."""
    return SERVICE.model_copy(update={"name": f"svc-{i}"})


BREATH_S = 0.02
"""Real seconds in which everyone gets on with what a step of time has woken."""


class Routes(Outside):
    """A mesh of many routes, each with its weight and fence, that counts what is under way at once; and a time that
    passes in steps, for all sleepers alike."""

    def __init__(self, *, step_s: float = 1.0) -> None:
        super().__init__()
        self._step_s = step_s
        self._sleepers: list[tuple[datetime, int, asyncio.Event]] = []
        self._slept_n = 0
        self.weights: dict[str, tuple[int, int]] = {}
        self.under_way = self.most_under_way = 0

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._slept_n += 1
        heapq.heappush(self._sleepers, (self.moment + timedelta(seconds=seconds), self._slept_n, woken))
        await woken.wait()

    async def pace(self) -> None:
        """Let time pass for ever."""
        while True:
            await asyncio.sleep(BREATH_S)
            self.moment += timedelta(seconds=self._step_s)
            while self._sleepers and self._sleepers[0][0] <= self.moment:
                heapq.heappop(self._sleepers)[2].set()

    async def set_weights(self, place: Any, *, canary_percent: int, fence: int, **_: Any) -> Any:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            stood = self.weights.get(place.virtual_service, (0, 0))
            self.fence = stood[1]
            seen = await super().set_weights(place, canary_percent=canary_percent, fence=fence, rollout="")
            self.weights[place.virtual_service] = (canary_percent, fence)
            return seen
        finally:
            self.under_way -= 1


class Fragile:
    """A store that is away while told to be."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.away = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*given: Any, **named: Any) -> Any:
            if self.away:
                raise Unavailable(f"cannot {name}: the database is away")
            return await method(*given, **named)

        return call


@asynccontextmanager
async def ring(
    store: Any, outside: Routes, *, mesh: Mesh | None = None, pager: Pager | None = None, bus: Bus | None = None
) -> AsyncIterator[Door]:
    """Every loop but the consumer and the tick, running while the context is open."""
    door = Door(store, catalog(), outside)
    meshes = {"default": mesh or outside}
    dispatcher = Dispatcher(
        store, door, outside, meshes=meshes, gates=outside, pager=pager or outside, bus=bus or outside
    )
    door.on_owed = dispatcher.poke
    clockwork = Clockwork(store, door, outside, meshes, replica="one")
    loops = [dispatcher.run(lane, where) for lane, where in dispatcher.lanes()]
    tasks = [asyncio.create_task(loop) for loop in (*loops, clockwork.wake(), outside.pace())]
    try:
        yield door
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await dispatcher.settled()


async def until(true: Callable[[], Any], *, within_s: float = 60.0) -> None:
    """Wait in real time until the answer, or what it awaits to, is true."""
    async with asyncio.timeout(within_s):
        while True:
            said = true()
            if await said if asyncio.iscoroutine(said) else said:
                return
            await asyncio.sleep(BREATH_S)


async def owed_n(store: Any, *lanes: Lane) -> int:
    """Instructions owed in these lanes, or in all."""
    summary = await store.owed_summary()
    return sum(n for lane, (n, _) in summary.items() if not lanes or lane in lanes)
