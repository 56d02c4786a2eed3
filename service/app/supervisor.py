"""The supervisor: named root tasks that live as long as the service.

None of them may return before a stop is asked; if one does, or fails, the others are stopped and the process ends, so
that whoever runs it starts it again whole instead of limping on without a part.

A stop is asked first: loops that look at ``Stopping`` take on nothing new, finish what they have claimed and return.
Those that have not by ``FINISH_SHARE`` of the time are cancelled, which is safe at any point, only less thrifty: what
was not settled is owed still and done once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from service.ring.stopping import Stopping

logger = logging.getLogger(__name__)

FINISH_SHARE = 0.5
"""Of the time that a stop may take, for finishing what is under way."""

CANCEL_SHARE = 0.15
"""For the clean-up of what had to be cancelled, such as leaving the consumer group. The rest is for closing."""


class RootTaskEnded(RuntimeError):
    """A root task returned although it should live as long as the service."""


async def run_until(
    stopping: Stopping,
    tasks: Mapping[str, Coroutine[Any, Any, None]],
    *,
    stop_s: float,
    at_once: Iterable[str] = (),
) -> None:
    """Run ``tasks`` until a stop is asked, give them time to finish, cancel the rest.

    at_once : tasks that only look and leave nothing half done, cancelled without waiting
    Raises what the first failing task raised, or RootTaskEnded.
    """
    running = {asyncio.create_task(coroutine, name=name) for name, coroutine in tasks.items()}
    stopper = asyncio.create_task(stopping.wait(), name="stop")
    try:
        everyone: set[asyncio.Task[Any]] = {*running, stopper}
        done, _ = await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.asked:
            # A task has failed or ended: the others still finish what they have in hand.
            stopping.ask()
        logger.info("stopping", extra={"action": "stopping"})
        for task in running:
            if task.get_name() in set(at_once):
                task.cancel()
        await _finished(running, stopping, FINISH_SHARE * stop_s)
    finally:
        stopper.cancel()
        for task in running:
            task.cancel()
        late = (await asyncio.wait(running, timeout=CANCEL_SHARE * stop_s))[1]
        for task in late:
            logger.error("task %s did not stop in time", task.get_name(), extra={"action": "stop_late"})
    # Loops that see the wish to stop as soon as this does may have ended already: that is no fault.
    early = set() if stopper in done else done
    for task in running - late:
        if not task.cancelled() and (error := task.exception()):
            logger.error("task %s failed: %s", task.get_name(), error, extra={"action": "root_failed"})
            raise error
    for task in early:
        raise RootTaskEnded(f"task {task.get_name()} ended by itself")


async def _finished(running: set[asyncio.Task[None]], stopping: Stopping, within_s: float) -> None:
    """Until all have ended, the time is over, or the stop is asked a second time."""
    ended = asyncio.create_task(asyncio.wait(running), name="all ended")
    urgent = asyncio.create_task(stopping.wait_urgent(), name="urgent")
    try:
        await asyncio.wait({ended, urgent}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        urgent.cancel()
    for task in running:
        if not task.done():
            logger.warning("task %s is cancelled before its end", task.get_name(), extra={"action": "stop_cancels"})
