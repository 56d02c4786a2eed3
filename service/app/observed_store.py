"""The store as seen from outside: how long each call took, what failed, and what each commit made true.

One proxy around all calls, because what is committed here is what happened: a window's lag ends, a decision is made
and a journal row is told in the log exactly once, whichever room it came from.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from service.app.metrics import OwnMetrics
from service.ring.ports import Clock, Unavailable
from service.ring.seen import About
from service.ring.store import Change, Conflict, Store, TooManyRollbacks

logger = logging.getLogger(__name__)

LOGGED_AT_ONCE = 100
"""Changes told in the log before other tasks get a turn, at most about 10 ms."""

_REASONS = {Conflict: "conflict", TooManyRollbacks: "conflict", Unavailable: "unavailable"}


def observed(store: Store, own: OwnMetrics, clock: Clock, *, grace_s: float) -> Store:
    """``store``, with every call measured. ``grace_s``: how long after its end a window can be judged."""
    return cast(Store, _Observed(store, own, clock, grace_s))


class _Observed:
    def __init__(self, store: Store, own: OwnMetrics, clock: Clock, grace_s: float) -> None:
        self._store = store
        self._own = own
        self._clock = clock
        self._grace_s = grace_s

    def __getattr__(self, name: str) -> Any:
        measured = self._measured(name, getattr(self._store, name))
        setattr(self, name, measured)
        return measured

    def _measured(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def measured(*given: Any, **named: Any) -> Any:
            reason = ""
            began_s = time.perf_counter()
            try:
                return await call(*given, **named)
            except Exception as error:
                reason = _REASONS.get(type(error), "other")
                raise
            finally:
                self._own.stored(name, reason, time.perf_counter() - began_s)

        return measured

    async def commit(self, changes: Sequence[Change], **more: Any) -> None:
        """See ``Store.commit``."""
        with self._own.part("commit"):
            await self._measured("commit", self._store.commit)(changes, **more)
        self._own.committed(changes, self._clock.now(), self._grace_s)
        for n, change in enumerate(changes):
            if n % LOGGED_AT_ONCE == LOGGED_AT_ONCE - 1:
                # Cut off here, the caller does not hear of a commit that is: what it does again has the effect of once.
                await asyncio.sleep(0)
            _log(change)


def _log(change: Change) -> None:
    """One line a journal row: the story of a release, with the id of the fact that it came from."""
    about = About.state(change.state).keys()
    owes = [order.type for order in change.orders]
    for row in change.journal:
        logger.info(
            "%s",
            row.headline,
            extra={
                "action": "journal",
                **about,
                "kind": row.kind,
                "phase": change.state.phase.value,
                "revision": row.revision,
                "stimulus": str(json.loads(row.stimulus)["id"]),
                "owes": owes,
            },
        )
