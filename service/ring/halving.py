"""Halving: what nobody foresaw of one rollout must stop neither the others nor the process.

A batch that raises is tried in halves until the rollout is found that does it. It is named in the log and left alone
for a while. That something outside is away (``PortError``) is foreseen, and no rollout's fault: it goes to the caller.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from service.model.names import RolloutId
from service.ring.ports import Clock, PortError

logger = logging.getLogger(__name__)

LEFT_ALONE_S = 60.0
"""Until a rollout that raised is tried again: a fault may be mended by a later fact, and its log stays readable."""

_T = TypeVar("_T")


class Halving:
    """Carries out work on batches of rollouts. The work must be safe to repeat for a part of the batch.

    what : a verb for the log, said of a rollout
    """

    def __init__(self, clock: Clock, what: str) -> None:
        self._clock = clock
        self._what = what
        self._left_until: dict[RolloutId, datetime] = {}

    async def each(
        self,
        items: Sequence[_T],
        work: Callable[[Sequence[_T]], Awaitable[object]],
        *,
        rollout_of: Callable[[_T], RolloutId],
    ) -> None:
        """Do ``work`` on all items together but those left alone, and on its parts where that raises the unforeseen.

        rollout_of : the rollout that an item is of
        Raises PortError; parts that were done by then stay done.
        """
        now = self._clock.now()
        self._left_until = {rollout: until for rollout, until in self._left_until.items() if until > now}
        waiting = [[one for one in items if rollout_of(one) not in self._left_until]]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            try:
                await work(part)
            except PortError:
                raise
            except Exception:
                if len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                    continue
                rollout = rollout_of(part[0])
                self._left_until[rollout] = now + timedelta(seconds=LEFT_ALONE_S)
                logger.exception(
                    "cannot %s rollout %s, which is left alone for %g s: this is a fault of Serinus, report it",
                    self._what,
                    rollout,
                    LEFT_ALONE_S,
                    extra={"action": "rollout_left_alone", "rollout": rollout},
                )
