"""The loop that counts for the gauges lives as long as the service."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.app.metrics import OwnMetrics
from service.app.run import _count
from service.ring.ports import Unavailable
from service.ring.store import RolloutPage
from tests.stories import START


class Store:
    """Fails in its own way at each look, and then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)

    async def lease(self, *_: object, **__: object) -> bool:
        return True

    async def overdue(self, _: object) -> tuple[int, None]:
        if self.failures:
            raise self.failures.pop(0)
        return 3, None

    async def rollouts(self, *_: object, **__: object) -> RolloutPage:
        return RolloutPage((), None)

    async def owed_summary(self) -> dict[Any, Any]:
        return {}


class Clock:
    """Ends the loop after so many turns."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def now(self) -> Any:
        return START

    async def sleep(self, seconds: float) -> None:
        self.turns -= 1
        if not self.turns:
            raise asyncio.CancelledError


async def test_a_count_that_fails_in_a_way_that_nobody_foresaw_is_told_and_the_next_one_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = OwnMetrics("0")
    store: Any = Store(ValueError("'shadow' is not a valid Lane"), Unavailable("locked"))
    clock: Any = Clock(turns=3)
    with pytest.raises(asyncio.CancelledError):
        await _count(own, store, clock, "a", 30.0)
    (told,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "nobody foresaw" in told.getMessage()
    assert "is not a valid Lane" in str(told.exc_text)
    assert own.registry.get_sample_value("serinus_windows_overdue") == 3
