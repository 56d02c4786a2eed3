"""Liveness of the real loops: an outage elsewhere keeps them going round, a call that never returns does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from service.analysis.tick import Tick
from service.api.health import STUCK_AFTER_S
from service.app.heartbeats import Heartbeats
from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import Dispatcher
from service.model.instruction import Lane
from service.ring.ports import Unavailable
from service.ring.seen import Unseen
from service.ring.stopping import Stopping
from tests.unit.dispatch.test_dispatcher import Outside


class Beating(Unseen):
    """Only the heartbeats, on a steady clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.beats = Heartbeats(lambda: self.now_s)

    def turned(self, loop: str) -> None:
        self.beats.turned(loop)

    def stuck(self) -> set[str]:
        return {loop for loop, silent_s in self.beats.silent_s().items() if silent_s > STUCK_AFTER_S}


class Store:
    """Every call does the same."""

    def __init__(self, answer: Callable[[], Awaitable[Any]]) -> None:
        self._answer = answer

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*_: object, **__: object) -> Any:
            return await self._answer()

        return call


async def away() -> None:
    raise Unavailable("connection refused")


async def never() -> None:
    await asyncio.Event().wait()


def loops(store: Any, seen: Beating, stopping: Stopping) -> dict[str, Coroutine[Any, Any, None]]:
    outside: Any = Outside()
    tick = Tick(store, None, outside, outside, grace_s=0, seen=seen, stopping=stopping)  # type: ignore[arg-type]
    dispatcher = Dispatcher(
        store,
        None,
        outside,
        meshes={"default": outside},
        gates=outside,
        pager=outside,
        bus=outside,
        seen=seen,
        stopping=stopping,  # type: ignore[arg-type]
    )
    clockwork = Clockwork(store, None, outside, {"default": outside}, seen=seen)  # type: ignore[arg-type]
    return {
        "tick everywhere 1": tick.run(),
        "lane retreat everywhere": dispatcher.run(Lane.RETREAT),
        "wake": clockwork.wake(),
        "watch default": clockwork.watch("default"),
    }


@pytest.mark.parametrize("outage", [away, never])
async def test_only_a_call_that_never_returns_makes_a_loop_look_stuck(outage: Callable[[], Awaitable[Any]]) -> None:
    seen, stopping = Beating(), Stopping()
    made = loops(Store(outage), seen, stopping)
    running = [asyncio.create_task(one) for one in made.values()]
    for _ in range(10):
        await asyncio.sleep(0.002)
        seen.now_s += timedelta(minutes=1).total_seconds()
        await asyncio.sleep(0.002)
    assert seen.stuck() == (set() if outage is away else {*made, "tick everywhere 2"})
    for task in running:
        task.cancel()
    await asyncio.wait(running)
