"""From rows back to values. What this release cannot read is said once, and is nobody else's matter."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import ValidationError

from service.model.instruction import INSTRUCTION
from service.model.names import RolloutId, ServiceKey
from service.model.rollout import RolloutState, WatchedRollout
from service.model.value import from_epoch_s
from service.ring.store import Owed, Unreadable
from service.storage import tables as t

YIELD_EVERY = 50
"""States decoded before other tasks get a turn; decoding one takes about 0.1 ms."""

REMEMBERED_N = 500
"""Rollouts and words that the log has told of."""

logger = logging.getLogger(__name__)

_K = TypeVar("_K", ServiceKey, RolloutId)
_S = TypeVar("_S", RolloutState, WatchedRollout)
_W = TypeVar("_W", bound=StrEnum)


class Decoder:
    """Decodes stored states, and remembers which unreadable ones it has told of."""

    def __init__(self) -> None:
        self._told_of: set[str] = set()

    async def states(self, rows: Iterable[Any]) -> AsyncIterator[tuple[RolloutState | None, Any]]:
        """Each row with its state; none where it cannot be read, which is nobody else's matter."""
        for i, row in enumerate(rows):
            if i % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            yield self.decoded(row, RolloutState), row

    async def by_key(self, rows: Iterable[Any], key: Callable[[Any], _K]) -> Mapping[_K, RolloutState]:
        """The states by a key of their rows; raises Unreadable, with the others, where one cannot be read."""
        read = [(key(row), state, row.id, row.format) async for state, row in self.states(rows)]
        states = {one: state for one, state, _, _ in read if state is not None}
        unreadable = [(one, rollout, format_) for one, state, rollout, format_ in read if state is None]
        if unreadable:
            _, rollout, format_ = unreadable[0]
            raise Unreadable(
                f"{len(unreadable)} rollout(s) cannot be read, the first: {_why_unreadable(rollout, format_)}",
                readable=states,
                newer=frozenset(one for one, _, format_ in unreadable if format_ > t.FORMAT),
                damaged=frozenset(one for one, _, format_ in unreadable if format_ <= t.FORMAT),
            )
        return states

    def word(self, value: str, words: type[_W], what: str) -> _W | None:
        """One of the ``words``; None, said once, for one that this release does not know."""
        try:
            return words(value)
        except ValueError:
            if self._first(f"{what} {value}"):
                logger.warning(
                    "%s %r is not known to this release and is left out; a newer one wrote it, whose replicas carry it "
                    "on, or it is damaged",
                    what,
                    value[:40],
                    extra={"action": "unreadable"},
                )
            return None

    def decoded(self, row: Any, kind: type[_S]) -> _S | None:
        """The row's state; None, said once, where this release cannot read it."""
        why = ""
        if row.format <= t.FORMAT:
            try:
                return kind.from_json(row.state)
            except ValidationError as error:
                why = f" ({error.error_count()} errors, the first: {error.errors()[0]['msg']})"
        if self._first(row.id):
            level = logging.ERROR if why else logging.WARNING
            logger.log(
                level,
                "%s%s",
                _why_unreadable(row.id, row.format),
                why,
                extra={"action": "unreadable", "rollout": row.id},
            )
        return None

    def _first(self, told_of: str) -> bool:
        """Whether the log has not told of it: whoever asks is told again and again."""
        if told_of in self._told_of:
            return False
        self._told_of = {*(self._told_of if len(self._told_of) < REMEMBERED_N else ()), told_of}
        return True


def _why_unreadable(rollout: str, format_: int) -> str:
    if format_ > t.FORMAT:
        return (
            f"rollout {rollout} was written by a newer release (format {format_}, this one reads up to {t.FORMAT}); "
            "a replica of that release carries it on"
        )
    return (
        f"the stored state of rollout {rollout} is damaged; it is left alone, with its weights as they stand: set them "
        "by hand if need be, and restore its row from a backup"
    )


def orders(rows: Iterable[Any]) -> tuple[Sequence[Owed], Sequence[int]]:
    """What is owed, and the ids of what cannot be read; what its rollout owes after that is left out too."""
    owed: list[Owed] = []
    damaged: dict[str, int] = {}
    for row in rows:
        if row.rollout in damaged:
            continue
        try:
            order = INSTRUCTION.validate_json(row.body)
        except ValidationError:
            damaged[row.rollout] = row.id
            logger.error(
                "%s %s of rollout %s is damaged and is not carried out, nor what the lane %s owes for it after that; "
                "restore the row of the outbox from a backup, or settle it and set the weights by hand",
                row.type,
                row.id,
                row.rollout,
                row.lane,
                extra={"action": "unreadable", "rollout": row.rollout, "owed": row.id},
            )
        else:
            owed.append(Owed(row.id, order, row.attempts, from_epoch_s(row.owed_since)))
    return owed, list(damaged.values())
