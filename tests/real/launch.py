"""Starts the service as tests need it: with other constants than its own, or forked again and again.

``python -m tests.real.launch --config FILE --set service.dispatch.dispatcher:LEASE_S=4`` is one start.
``python -m tests.real.launch --fork`` is a parent for many: a start costs 2.6 s, nearly all of it imports, so the
parent imports once and forks a child for each life. The parent has no loop and no thread, so a child begins as a new
process would. It reads one life a line from its input, kills it with SIGKILL at the planned point, and answers with
what was under way at that moment, which the child writes down in shared memory as it goes.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import importlib
import json
import mmap
import os
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

EFFECTS: Mapping[str, str] = {
    "consume": "service.ring.door:Door.events",
    "offsets": "aiokafka:AIOKafkaConsumer.commit",
    "claim": "service.storage.store:SqlStore.owed",
    "window": "service.sources.prometheus:PrometheusSource.collect",
    "weight": "service.actuators.istio:IstioMesh.set_weights",
    "page": "service.alerts.pagerduty:PagerDutyPager.send",
    "publish": "service.events.publisher:KafkaBus.publish",
    "commit": "service.storage.store:SqlStore.commit",
}
"""Where a life can be ended: on entering or leaving one of these."""

NAMES = tuple(EFFECTS)
CELL = struct.Struct("II")
"""Under way now, begun so far."""


class Board:
    """What a child is doing, in memory that its parent shares and that outlives it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def clear(self) -> None:
        """Before a new life."""
        self._memory[:] = bytes(mmap.PAGESIZE)

    def add(self, name: str, under_way: int, begun: int) -> int:
        """Count; how many have begun."""
        at = NAMES.index(name) * CELL.size
        now, before = CELL.unpack_from(self._memory, at)
        CELL.pack_into(self._memory, at, now + under_way, before + begun)
        return int(before) + begun

    def listening(self) -> None:
        """The start is over."""
        self._memory[-1] = 1

    def read(self) -> dict[str, Any]:
        """Everything on it."""
        cells = {name: CELL.unpack_from(self._memory, i * CELL.size) for i, name in enumerate(NAMES)}
        return {
            "listening": bool(self._memory[-1]),
            "under_way": {name: now for name, (now, _) in cells.items() if now},
            "begun": {name: begun for name, (_, begun) in cells.items()},
        }


def set_constants(given: Mapping[str, float]) -> None:
    """``module:NAME`` -> number."""
    for where, value in given.items():
        module, name = where.split(":")
        loaded = importlib.import_module(module)
        if not hasattr(loaded, name):
            raise SystemExit(f"{module} has no {name} to set")
        setattr(loaded, name, value)


def noticed(board: Board, plan: Mapping[str, Any], reached: int) -> None:
    """Write down every effect on the board, and tell the parent when the planned point is reached."""

    def wrap(name: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(inner)
        async def outer(*given: Any, **named: Any) -> Any:
            n = board.add(name, 1, 1)
            mine = plan["at"] == name and plan["nth"] == n
            if mine and plan["edge"] == "enter":
                os.write(reached, b"x")
            try:
                return await inner(*given, **named)
            finally:
                board.add(name, -1, 0)
                if mine and plan["edge"] == "leave":
                    os.write(reached, b"x")

        return outer

    for name, where in EFFECTS.items():
        module, _, path = where.partition(":")
        owner, _, method = path.partition(".")
        found = getattr(importlib.import_module(module), owner)
        setattr(found, method, wrap(name, getattr(found, method)))
    # Without a name that stays, the group waits for the dead member's session to end: 10 s after each life.
    defaults = importlib.import_module("service.events.consumer").EventConsumer.__init__.__kwdefaults__
    defaults["client"] = functools.partial(defaults["client"], group_instance_id="serinus-0")
    run = importlib.import_module("service.app.run")
    run_until = run.run_until

    async def listening(*given: Any, **named: Any) -> None:
        board.listening()
        await run_until(*given, **named)

    run.run_until = listening


def live(order: Mapping[str, Any], board: Board) -> dict[str, Any]:
    """One life: fork, wait for the planned point or the limit, kill, and say what was under way."""
    plan = order["plan"]
    board.clear()
    hear, tell = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(hear)
        _be_the_service(order, board, tell)
    os.close(tell)
    reached = bool(select.select([hear], [], [], plan["limit_s"])[0])
    if reached and os.read(hear, 1):
        time.sleep(plan["delay_s"])
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(hear)
    by_itself = not os.WIFSIGNALED(status)
    return {"ran_s": time.monotonic() - began, "reached": reached, "by_itself": by_itself, **board.read()}


def _be_the_service(order: Mapping[str, Any], board: Board, reached: int) -> None:
    status = 70
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for mine, standard in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(mine, standard)
        noticed(board, order["plan"], reached)
        status = _serve(order["config"])
    finally:
        os._exit(status)


def _serve(config: str) -> int:
    from service.app.run import serve

    return serve(Path(config))


def fork_server() -> None:
    """Lives, one a line, until the input ends."""
    importlib.import_module("service.app.run")
    for name in ("asyncpg", "sqlalchemy.dialects.postgresql.asyncpg", "sqlalchemy.dialects.sqlite.aiosqlite"):
        importlib.import_module(name)
    from service.storage.opening import open_store

    async def warm() -> None:
        await (await open_store("sqlite://")).close()

    asyncio.run(warm())
    board = Board()
    gc.collect()
    gc.freeze()
    if threading.active_count() != 1:
        raise SystemExit("the parent must have one thread when it forks")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        set_constants(order.get("constants", {}))
        print(json.dumps(live(order, board)), flush=True)


def main() -> int:
    """One start, or the parent of many."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--config")
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    if asked.fork:
        fork_server()
        return 0
    pairs = [one.partition("=") for one in asked.set]
    set_constants({where: float(value) for where, _, value in pairs})
    return _serve(asked.config)


if __name__ == "__main__":
    raise SystemExit(main())
