"""Health, for those who restart and those who route.

Live: every loop of this process still goes round. An outage elsewhere never fails it, because restarting would not
help: loops go round in their retry paths, too. Ready: every part answers; asked side by side, each for at most
``CHECK_S``, so that a probe is answered whatever hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from service.ring.ports import PortError

Check = Callable[[], Awaitable[str | None]]
"""One clause on a part that is ready; raises PortError, which says what to do, when it is not."""

CHECK_S = 2.0
STUCK_AFTER_S = 300.0
"""A loop that has not gone round for so long is stuck: more than all time-outs on its way together."""


class Health:
    """The handlers of ``/livez`` and ``/readyz``. With ``?verbose`` each says a line a part."""

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        silent_s: Callable[[], Mapping[str, float]] = dict,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """``silent_s``: seconds since each loop last went round. ``stopping``: no new work is taken on."""
        self._checks = checks
        self._silent_s = silent_s
        self._stopping = stopping

    async def livez(self, request: web.Request) -> web.Response:
        """503 when a loop of this process is stuck, which only a restart mends."""
        return _answer(self._loops(), "alive", "stuck", verbose="verbose" in request.query)

    async def readyz(self, request: web.Request) -> web.Response:
        """503 when a part does not answer, a loop is stuck, or the service is stopping."""
        asked = await asyncio.gather(*(self._ask(check) for check in self._checks.values()))
        lines = dict(zip(self._checks, asked, strict=True)) | self._loops()
        if self._stopping():
            lines["service"] = (False, "stopping: finishes what is under way and takes on nothing new")
        return _answer(lines, "ok", "not ready", verbose="verbose" in request.query)

    async def _ask(self, check: Check) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(CHECK_S):
                return True, await check() or "ok"
        except PortError as error:
            return False, str(error)
        except TimeoutError:
            return False, f"no answer within {CHECK_S:g} s"

    def _loops(self) -> dict[str, tuple[bool, str]]:
        return {
            f"loop {loop}": (True, f"went round {silent_s:.1f} s ago")
            if silent_s <= STUCK_AFTER_S
            else (False, f"has not gone round for {silent_s:.0f} s: it is stuck, restart this replica")
            for loop, silent_s in self._silent_s().items()
        }


def _answer(lines: Mapping[str, tuple[bool, str]], good: str, bad: str, *, verbose: bool) -> web.Response:
    ok = all(fine for fine, _ in lines.values())
    # What is wrong is always said: whoever reads a failing probe's text must not have to ask again.
    shown = [f"[{'+' if fine else '-'}] {name}: {said}" for name, (fine, said) in lines.items() if verbose or not fine]
    return web.Response(status=200 if ok else 503, text="\n".join([*shown, good if ok else bad]) + "\n")
