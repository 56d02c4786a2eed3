"""The tick: chunks of rollouts together, missed windows at their own time, and never more rollbacks than allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.analysis.judging import judge_windows
from service.analysis.tick import PAST_ROLLOUTS, NoSource, Tick
from service.model.catalog import Catalog
from service.model.names import ServiceKey
from service.model.observation import Availability, FailureCounts, HistogramCounts, Reading, WindowQuery
from service.model.rollout import Phase, RolloutState, Waiting
from service.ring.answer import Answer
from service.ring.door import Door, Told
from service.ring.store import LONGEST_HIDDEN_S, Due, KillSwitch, Store, Where
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.test_store import keep
from tests.stories import SERVICE, START, Story, policy

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

    async def due(self, now: datetime, **_: object) -> Sequence[Due]:
        return self.waiting

    async def past_monitors(self, services: Collection[ServiceKey], *, last: int) -> dict[ServiceKey, list[bytes]]:
        self.asked.append((set(services), last))
        return self.past

    async def kill_switch(self) -> KillSwitch:
        return KillSwitch()

    async def rollbacks_since(self, moment: datetime) -> int:
        return 0

    async def tell(self, told: Sequence[Told], **_: object) -> None:
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
    tick = Tick(world, world, world, world, grace_s=0)  # type: ignore[arg-type]
    assert await tick.turn() == 1 + fresh
    assert world.asked == [({due.state.service for due in beginning}, PAST_ROLLOUTS)] * questions
    assert [len(told.monitor or b"") for told in world.told] == [len(one.monitor)] * (1 + fresh)
    without = judge_windows([(due.state, b"", READINGS) for due in beginning])
    # What the past says stands in the row from the first window on.
    assert all(told.monitor != plain.monitor for told, plain in zip(world.told[1:], without, strict=True))


BAD = (READINGS[0], Reading("errors", Availability.ENOUGH, FailureCounts(60, 60, 3, 540)))
AWAY = tuple(Reading(r.metric, Availability.AWAY, None, "connection refused") for r in READINGS)


class Hands:
    """A clock that is set by hand, and a metric store that gives every window the same readings."""

    def __init__(self, readings: Sequence[Reading] = READINGS) -> None:
        self.moment = START
        self.readings = readings
        self.asked: list[float] = []

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        self.asked += [query.end_s for query in queries]
        return [self.readings for _ in queries]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    await opened.close()


def ticking(store: Store, hands: Hands, **given: object) -> Tick:
    return Tick(store, Door(store, Catalog(), hands), hands, hands, grace_s=10, **given)  # type: ignore[arg-type]


async def rollouts(store: SqlStore, n: int, *, window: str = "60s", **changes: object) -> list[Story]:
    out = []
    for i in range(n):
        service = SERVICE.model_copy(update={"name": f"s{i}"} | changes)
        story = Story(
            id=f"e{i}", rollout=f"r{i}", service=service, policy=policy(guards=[], window=window)
        ).progressing()
        await keep(store, story)
        out.append(story)
    return out


async def phases(store: SqlStore, stories: Sequence[Story]) -> list[Phase]:
    states = await store.load([story.state.id for story in stories])
    return [states[story.state.id].phase for story in stories]


async def test_a_storm_of_harm_rolls_back_as_many_as_the_hour_allows_and_pauses_the_others(store: SqlStore) -> None:
    stories = await rollouts(store, 8)
    hands = Hands(BAD)
    for _ in range(12):
        hands.moment += timedelta(seconds=60)
        await ticking(store, hands, rollbacks_per_hour=3).turn()
    found = await phases(store, stories)
    assert (found.count(Phase.ROLLING_BACK), found.count(Phase.PAUSED)) == (3, 5)
    states = (await store.load([story.state.id for story in stories])).values()
    assert {s.waiting for s in states if s.phase is Phase.PAUSED} == {Waiting.CONFIRM_ROLLBACK}


async def test_two_replicas_share_the_windows_and_the_hourly_limit(store: SqlStore) -> None:
    stories = await rollouts(store, 8)
    hands = Hands(BAD)
    replicas = [ticking(store, hands, rollbacks_per_hour=3) for _ in range(2)]
    judged = 0
    for _ in range(12):
        hands.moment += timedelta(seconds=60)
        async with asyncio.TaskGroup() as group:
            turns = [group.create_task(replica.turn()) for replica in replicas]
        judged += sum(turn.result() for turn in turns)
    assert (await phases(store, stories)).count(Phase.ROLLING_BACK) == 3
    kept = [len(await store.windows(story.state.id)) for story in stories]
    assert sum(kept) == judged


async def test_missed_windows_are_judged_at_their_own_time_oldest_first(store: SqlStore) -> None:
    (story,) = await rollouts(store, 1)
    assert story.state.windows_from is not None
    hands = Hands()
    hands.moment = story.state.windows_from + timedelta(seconds=5 * 60 + 10)
    tick = ticking(store, hands)
    while await tick.turn():
        pass
    first_end_s = story.state.windows_from.timestamp() + 60
    assert hands.asked == [first_end_s + 60 * n for n in range(5)]
    assert [w.late for w in await store.windows(story.state.id)] == [True, True, True, False, False]


async def test_while_the_store_is_away_missed_windows_are_used_up_no_faster_than_time_passes(store: SqlStore) -> None:
    (story,) = await rollouts(store, 1)
    assert story.state.windows_from is not None
    hands = Hands(AWAY)
    hands.moment = story.state.windows_from + timedelta(hours=1)
    tick = ticking(store, hands)
    for _ in range(12):
        await tick.turn()
        hands.moment += timedelta(seconds=15)
    assert len(await store.windows(story.state.id)) == 3
    hands.readings = READINGS
    hands.moment += timedelta(seconds=60)
    while await tick.turn():
        pass
    assert len([w for w in await store.windows(story.state.id) if w.n_canary]) > 55


async def test_no_window_rests_for_longer_than_others_would_believe(store: SqlStore) -> None:
    (story,) = await rollouts(store, 1, window="1h")
    assert story.state.windows_from is not None
    hands = Hands(AWAY)
    hands.moment = story.state.windows_from + timedelta(hours=5)
    tick = ticking(store, hands)
    assert [await tick.turn(), await tick.turn()] == [1, 0]
    hands.moment += timedelta(seconds=LONGEST_HIDDEN_S)
    assert await tick.turn() == 1


async def test_windows_older_than_the_history_are_blind_without_asking(store: SqlStore) -> None:
    (story,) = await rollouts(store, 1)
    assert story.state.windows_from is not None
    hands = Hands()
    hands.moment = story.state.windows_from + timedelta(seconds=600)
    tick = ticking(store, hands, history_s=300)
    while await tick.turn():
        pass
    windows = await store.windows(story.state.id)
    assert [w.evidence[0].availability.usable for w in windows] == [False] * 4 + [True] * 5
    assert len(hands.asked) == 5


class FaultyDoor(Door):
    """A door at which nobody has foreseen the facts of one rollout."""

    async def tell(self, facts: Sequence[Told], **more: Any) -> Sequence[Answer]:  # type: ignore[override]
        if any(fact.rollout == "r2" for fact in facts):
            raise AssertionError("unforeseen")
        return await super().tell(facts, **more)


class FaultySource(Hands):
    """A question for one rollout that nobody has foreseen."""

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        if any(query.rollout == "r2" for query in queries):
            raise KeyError("unforeseen")
        return await super().collect(queries)


@pytest.mark.parametrize(
    ("door_of", "hands"), [(FaultyDoor, Hands()), (Door, FaultySource())], ids=["told", "collected"]
)
async def test_a_rollout_that_raises_the_unforeseen_keeps_no_other_from_being_judged(
    store: SqlStore, caplog: pytest.LogCaptureFixture, door_of: type[Door], hands: Hands
) -> None:
    stories = await rollouts(store, 5)
    tick = Tick(store, door_of(store, Catalog(), hands), hands, hands, grace_s=10)
    for _ in range(4):
        hands.moment += timedelta(seconds=60)
        while await tick.turn():
            pass
    judged_n = [len(await store.windows(story.state.id)) for story in stories]
    assert [n > 0 for n in judged_n] == [True, True, False, True, True]
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert all("cannot judge rollout r2" in record.getMessage() and record.exc_info for record in told)
    assert 1 <= len(told) <= 4


async def test_rollouts_of_a_cluster_that_is_no_longer_set_are_blind_and_say_so(store: SqlStore) -> None:
    (story,) = await rollouts(store, 1, cluster="gone")
    hands = Hands()
    hands.moment = START + timedelta(minutes=5)
    door = Door(store, Catalog(), hands)
    known = Tick(store, door, hands, hands, grace_s=10, where=Where(only="default"))
    stray = Tick(store, door, NoSource(), hands, grace_s=10, where=Where(but=frozenset({"default"})))
    assert await known.turn() == 0
    assert await stray.turn() == 1
    (window,) = await store.windows(story.state.id)
    assert window.evidence[0].detail == "no metric store is set for cluster gone"
