"""The tick asks once for what is common to a chunk of rollouts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import pytest

from service.analysis.judging import judge_windows
from service.analysis.tick import PAST_ROLLOUTS, Tick
from service.model.names import ServiceKey
from service.model.observation import Availability, FailureCounts, HistogramCounts, Reading, WindowQuery
from service.model.rollout import RolloutState
from service.ring.door import Told
from service.ring.store import Due, KillSwitch
from tests.stories import SERVICE, START, Story

READINGS = (
    Reading("latency", Availability.ENOUGH, HistogramCounts((0.1, 0.2), (30, 20, 10), (270, 180, 90))),
    Reading("errors", Availability.ENOUGH, FailureCounts(0, 60, 3, 540)),
)


class World:
    """A store, a door, a source and a clock in one, that remember what they were asked."""

    def __init__(self, due: Sequence[Due]) -> None:
        self.waiting = due
        self.asked: list[tuple[set[ServiceKey], int]] = []
        self.told: list[Told] = []
        self.past: dict[ServiceKey, list[bytes]] = {}

    async def due(self, now: datetime, *, grace_s: float, limit: int, lease_s: float) -> Sequence[Due]:
        return self.waiting

    async def past_monitors(self, services: Collection[ServiceKey], *, last: int) -> dict[ServiceKey, list[bytes]]:
        self.asked.append((set(services), last))
        return self.past

    async def kill_switch(self) -> KillSwitch:
        return KillSwitch()

    async def rollbacks_since(self, moment: datetime) -> int:
        return 0

    async def tell(self, told: Sequence[Told]) -> None:
        self.told += told

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        return [READINGS for _ in queries]

    def now(self) -> datetime:
        return START + timedelta(minutes=30)


def named(state: RolloutState, name: str) -> RolloutState:
    return state.model_copy(update={"service": SERVICE.model_copy(update={"name": name})})


@pytest.mark.parametrize(("fresh", "questions"), [(0, 0), (1, 1), (3, 1)])
async def test_past_rollouts_are_asked_for_once_and_only_for_those_that_begin(fresh: int, questions: int) -> None:
    state = Story().progressing().state
    (one,) = judge_windows([(state, b"", READINGS)])
    assert one.monitor is not None
    beginning = [Due(named(state, f"fresh-{i}"), b"") for i in range(fresh)]
    world = World([Due(named(state, "running"), one.monitor), *beginning])
    world.past = {due.state.service: [one.monitor] for due in beginning}
    tick = Tick(world, world, {"default": world}, world, grace_s=0)  # type: ignore[arg-type]
    assert await tick.turn() == 1 + fresh
    assert world.asked == [({due.state.service for due in beginning}, PAST_ROLLOUTS)] * questions
    assert [len(told.monitor or b"") for told in world.told] == [len(one.monitor)] * (1 + fresh)
    without = judge_windows([(due.state, b"", READINGS) for due in beginning])
    # What the past says stands in the row from the first window on.
    assert all(told.monitor != plain.monitor for told, plain in zip(world.told[1:], without, strict=True))
