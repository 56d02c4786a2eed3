"""An event loop without time and without chance: the clock jumps to the next timer, and a seed picks who goes next.

Every callback belongs to an owner, one for each simulated process. Within an owner callbacks run first in, first out,
as in any loop; between owners the seed chooses, as between processes. A paused owner's callbacks wait, so a process
that is stopped for longer than its leases goes on later where it stood.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

LONGEST_MOMENT = 500_000
"""Callbacks at one moment before the loop is taken to be running in circles."""


class Stuck(RuntimeError):
    """Nothing can ever happen again, or the same moment never ends."""


class Owner:
    """A process: who a callback belongs to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.ready: deque[_Handle] = deque()
        self.tasks: set[asyncio.Task[Any]] = set()


OWNER: contextvars.ContextVar[Owner] = contextvars.ContextVar("owner")


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not hang on its address."""

    def __init__(self, number: int, *args: Any, **given: Any) -> None:
        self._number = number
        super().__init__(*args, **given)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Handle(asyncio.Handle):
    """A callback that waits for its turn."""

    __slots__ = ("owner",)

    def __init__(self, owner: Owner, callback: Any, args: Any, loop: VirtualLoop, context: Any) -> None:
        super().__init__(callback, args, loop, context)
        self.owner = owner


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs coroutines in virtual time, on one thread, always in the same order for the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)
        self._now_s = 0.0
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timer_n = 0
        self._task_n = 0
        self._ready: list[Owner] = []
        """Owners with callbacks that may run, each once."""
        self.nature = Owner("the world")
        self._turns_n = 0
        self.failures: list[BaseException] = []
        """Errors that nobody was there to receive."""
        self._stopped = False
        self._owners = [self.nature]

    # --- what asyncio asks of a loop --------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        context = context if context is not None else contextvars.copy_context()
        owner = context.get(OWNER, self.nature)
        handle = _Handle(owner, callback, args, self, context)
        self._push(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        context = context if context is not None else contextvars.copy_context()
        handle = _Handle(context.get(OWNER, self.nature), callback, args, self, context)
        self._timer_n += 1
        heapq.heappush(self._timers, (when, self._timer_n, handle))
        return handle

    def _timer_handle_cancelled(self, handle: Any) -> None:
        """Cancelled timers are dropped when their time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None, **_: Any) -> asyncio.Task[Any]:
        self._task_n += 1
        task = _Task(self._task_n, coro, loop=self, name=name, context=context)
        owner = (context or contextvars.copy_context()).get(OWNER, self.nature)
        if owner not in self._owners:
            self._owners.append(owner)
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """No threads: the work is done here and now, its result comes with the next turn."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            self.failures.append(error)

    def set_default_executor(self, executor: concurrent.futures.Executor) -> None:
        raise NotImplementedError("no threads here")

    # --- running ----------------------------------------------------------------------------------------------------

    def run_until_complete(self, main: Coroutine[Any, Any, Any]) -> Any:  # type: ignore[override]
        """Run ``main``, and everybody else, until it returns or ``stop`` is called; then nobody goes on."""
        asyncio.events._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done() and not self._stopped:
                self._turn()
            result = task.result() if task.done() else None
            self._end()
            return result
        finally:
            asyncio.events._set_running_loop(None)

    def stop(self) -> None:
        """No further turn."""
        self._stopped = True

    def _end(self) -> None:
        """Cancel whoever is left, so that nothing is pending when the loop is forgotten."""
        self.failures.clear()
        self._timers.clear()
        for owner in self._owners:
            self.kill(owner)
        while self._ready:
            self._turn()

    def kill(self, owner: Owner) -> None:
        """End a process: its tasks are cancelled. Whoever calls makes sure that they reach nothing outside any more."""
        owner.dead = True
        self.resume(owner)
        for task in list(owner.tasks):
            task.cancel()

    def pause(self, owner: Owner) -> None:
        """Stop a process where it stands."""
        owner.paused = True
        if owner in self._ready:
            self._ready.remove(owner)

    def resume(self, owner: Owner) -> None:
        """Let it go on; everything that came for it meanwhile comes now."""
        if owner.paused:
            owner.paused = False
            if owner.ready:
                self._ready.append(owner)

    def _push(self, handle: _Handle) -> None:
        owner = handle.owner
        if not owner.ready and not owner.paused:
            self._ready.append(owner)
        owner.ready.append(handle)

    def _turn(self) -> None:
        if not self._ready:
            self._next_moment()
            return
        self._turns_n += 1
        if self._turns_n > LONGEST_MOMENT:
            raise Stuck(f"{self._turns_n} callbacks at {self._now_s:.3f} s and still no end")
        i = self._random.randrange(len(self._ready)) if len(self._ready) > 1 else 0
        owner = self._ready[i]
        handle = owner.ready.popleft()
        if not owner.ready:
            self._ready[i] = self._ready[-1]
            self._ready.pop()
        if not handle.cancelled():
            handle._run()

    def _next_moment(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers:
            raise Stuck(f"nothing can happen any more at {self._now_s:.3f} s")
        self._now_s = max(self._now_s, self._timers[0][0])
        self._turns_n = 0
        while self._timers and self._timers[0][0] <= self._now_s:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._push(handle)
