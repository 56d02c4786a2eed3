"""The supervisor: named root tasks that live as long as the service.

None of them may return; if one does, or fails, the others are stopped and the process ends, so that whoever runs it
starts it again whole instead of limping on without a part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

logger = logging.getLogger(__name__)


class RootTaskEnded(RuntimeError):
    """A root task returned although it should live as long as the service."""


async def run_until(stop: asyncio.Event, tasks: Mapping[str, Coroutine[Any, Any, None]], *, stop_s: float) -> None:
    """Run ``tasks`` until ``stop`` is set, then cancel them and wait at most ``stop_s`` for each to end.

    Raises what the first failing task raised, or RootTaskEnded.
    """
    running = {asyncio.create_task(coroutine, name=name) for name, coroutine in tasks.items()}
    stopper = asyncio.create_task(stop.wait(), name="stop")
    try:
        everyone: set[asyncio.Task[Any]] = {*running, stopper}
        done, _ = await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopper.cancel()
        for task in running:
            task.cancel()
        late = (await asyncio.wait(running, timeout=stop_s))[1]
        for task in late:
            logger.error("task %s did not stop in %s s", task.get_name(), stop_s, extra={"action": "stop_late"})
    for task in done - {stopper}:
        if error := task.exception():
            logger.error("task %s failed: %s", task.get_name(), error, extra={"action": "root_failed"})
            raise error
        raise RootTaskEnded(f"task {task.get_name()} ended by itself")
