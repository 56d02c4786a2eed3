"""The real clock. Every other room is handed one, so that tests can own time.

It never jumps. A wall clock that is set an hour ahead would end every stage's bake at once, one that is set back would
stop all judging for an hour, and nothing tells which of the two times is right. So time is counted by the machine's
steady clock from the start, and follows the wall clock at most one per cent faster or slower. A difference is logged
and shown as a metric; a restart takes the wall clock as it stands.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from service.model.value import from_epoch_s

logger = logging.getLogger(__name__)

SLEW = 0.01
"""How much faster or slower than the steady clock time may pass while it nears the wall clock."""

TOLD_ABOVE_S = 1.0
TOLD_EVERY_S = 60.0


def _steady_s() -> float:
    """Seconds that have passed, also while the machine slept where the system can tell."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class SystemClock:
    """Time in UTC that never goes back; implements ``ring.ports.Clock``."""

    def __init__(self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = _steady_s) -> None:
        self._wall = wall
        self._steady = steady
        self._at_s = steady()
        self._now_s = wall()
        self._told_at_s = -TOLD_EVERY_S
        self.behind_s = 0.0
        """How far the wall clock is ahead of this one; negative where it was set back."""

    def now(self) -> datetime:
        """The present moment in UTC."""
        at_s = self._steady()
        passed_s = max(0.0, at_s - self._at_s)
        self._at_s = at_s
        self._now_s += passed_s
        self.behind_s = self._wall() - self._now_s
        self._now_s += max(-SLEW * passed_s, min(self.behind_s, SLEW * passed_s))
        if abs(self.behind_s) > TOLD_ABOVE_S and at_s >= self._told_at_s + TOLD_EVERY_S:
            self._told_at_s = at_s
            logger.error(
                "the system clock was set by %+.1f s; time goes on as before and follows at most %g %% faster or "
                "slower. If the new time is the right one, restart this replica.",
                self.behind_s,
                100 * SLEW,
                extra={"action": "clock_set"},
            )
        return from_epoch_s(self._now_s)

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)
