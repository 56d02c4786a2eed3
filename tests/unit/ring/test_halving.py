"""Halving: one rollout that raises is found, named and left alone; the others are worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from service.model.names import RolloutId
from service.ring.halving import LEFT_ALONE_S, Halving
from service.ring.ports import PortError, Refused, Unavailable
from tests.stories import START

ROLLOUTS = [RolloutId(f"r{n}") for n in range(100)]


class Worker:
    """Work that raises for some rollouts, and a clock set by hand."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors = errors
        self.moment = START
        self.done: list[RolloutId] = []
        self.tries_n = 0

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    async def work(self, part: Sequence[RolloutId]) -> None:
        self.tries_n += 1
        for rollout in part:
            if rollout in self.errors:
                raise self.errors[rollout]
        self.done += part

    async def each(self, halving: Halving) -> None:
        await halving.each(ROLLOUTS, self.work, rollout_of=lambda rollout: rollout)


async def test_the_ones_that_raise_are_found_and_all_others_are_worked_on_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(r7=KeyError("x"), r93=AssertionError())
    await worker.each(Halving(worker, "judge"))
    assert worker.done == [one for one in ROLLOUTS if one not in ("r7", "r93")]
    assert [record.__dict__["rollout"] for record in caplog.records] == ["r7", "r93"]
    assert all(record.exc_info for record in caplog.records)
    assert "cannot judge rollout r7" in caplog.text


async def test_one_that_raised_is_left_alone_for_a_while_and_then_tried_again() -> None:
    worker = Worker(r7=KeyError("x"))
    halving = Halving(worker, "wake")
    await worker.each(halving)
    worker.tries_n, worker.errors = 0, {}
    worker.done.clear()
    await worker.each(halving)
    assert worker.tries_n == 1
    assert "r7" not in worker.done
    await worker.sleep(LEFT_ALONE_S)
    await worker.each(halving)
    assert "r7" in worker.done


@pytest.mark.parametrize("error", [Unavailable("away"), Refused("no")])
async def test_what_is_away_is_the_callers_matter_and_halves_nothing(error: PortError) -> None:
    worker = Worker(r7=error)
    with pytest.raises(type(error)):
        await worker.each(Halving(worker, "judge"))
    assert worker.tries_n == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt()])
def test_the_end_of_the_process_is_no_rollouts_fault(error: BaseException) -> None:
    # Driven by hand: an event loop takes such errors for its own.
    worker = Worker(r7=error)
    with pytest.raises(type(error)):
        worker.each(Halving(worker, "judge")).send(None)
    assert worker.tries_n == 1
