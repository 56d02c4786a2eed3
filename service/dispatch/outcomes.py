"""Bringing outcomes home: as many in one commit as came in while the last one was being written.

A thousand instructions that are carried out in the same second so cost a few transactions, and one that comes alone
waits for nobody. While the database is away, outcomes wait here; whoever brought one waits too, which bounds them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace

from service.ring.door import Door, Told
from service.ring.ports import Clock, Unavailable
from service.ring.store import Postponed

logger = logging.getLogger(__name__)

MOST = 500
"""Outcomes in one commit."""

RETRY_S = 1.0


@dataclass(slots=True)
class _News:
    """What one instruction's try led to, and who waits for it to be written."""

    written: asyncio.Future[None]
    facts: Sequence[Told] = ()
    settled: Sequence[int] = ()
    postponed: Sequence[Postponed] = field(default=())


class Outcomes:
    """Writes outcomes in groups, in the order in which they came."""

    def __init__(self, door: Door, clock: Clock) -> None:
        self._door = door
        self._clock = clock
        self._waiting: list[_News] = []
        self._writer: asyncio.Task[None] | None = None

    async def settle(self, owed_id: int, facts: Sequence[Told]) -> None:
        """The instruction is done, and this came of it. Returns once it is committed, or dropped because the rollout
        cannot be read or stepped here: the instruction's lease then ends, and it is owed still."""
        told = [replace(fact, settles=owed_id) for fact in facts]
        await self._bring(_News(_future(), told, settled=() if told else (owed_id,)))

    async def postpone(self, postponed: Sequence[Postponed]) -> None:
        """These are to be tried again later. Returns once it is committed."""
        await self._bring(_News(_future(), postponed=postponed))

    async def _bring(self, news: _News) -> None:
        self._waiting.append(news)
        if self._writer is None or self._writer.done():
            # A context of its own: the writer writes for everybody, not only for the instruction that came first.
            self._writer = asyncio.create_task(self._write(), name="outcomes", context=Context())
        await news.written

    async def written(self) -> None:
        """Return once nothing waits to be written any more."""
        if self._writer is not None:
            await asyncio.shield(self._writer)

    async def _write(self) -> None:
        most = MOST
        while self._waiting:
            group = self._waiting[:most]
            try:
                await self._tell(group)
            except Unavailable as error:
                logger.warning("outcomes wait: %s", error, extra={"action": "outcomes_postponed"})
                await self._clock.sleep(RETRY_S)
                continue
            except Exception:
                if len(group) > 1:
                    most = len(group) // 2  # until the one is found that nobody foresaw; the others are written
                    continue
                logger.exception(
                    "an outcome cannot be written and is dropped; what it is of is owed still: this is a fault of "
                    "Serinus, report it",
                    extra={"action": "outcome_dropped", "rollouts": sorted({fact.rollout for fact in group[0].facts})},
                )
            except BaseException as error:
                for news in self._waiting:
                    if not news.written.done():
                        news.written.set_exception(RuntimeError(f"outcomes cannot be written: {error!r}"))
                self._waiting = []
                raise
            most = MOST
            del self._waiting[: len(group)]
            for news in group:
                if not news.written.done():
                    news.written.set_result(None)

    async def _tell(self, group: Sequence[_News]) -> None:
        await self._door.tell(
            [fact for news in group for fact in news.facts],
            settled=[i for news in group for i in news.settled],
            postponed=[one for news in group for one in news.postponed],
        )


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()
