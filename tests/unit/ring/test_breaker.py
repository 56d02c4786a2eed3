"""The breaker and the lease, in a time that is set by hand."""

from __future__ import annotations

from datetime import datetime, timedelta

from service.ring.breaker import Breaker
from service.ring.lease import HeldLease
from tests.stories import START


class Clock:
    moment = START

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Leases:
    """A store of leases, and how often it was asked."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, datetime]] = {}
        self.asked_n = 0

    async def lease(self, name: str, holder: str, now: datetime, *, lease_s: float) -> bool:
        self.asked_n += 1
        who, until = self.held.get(name, (holder, now))
        if who != holder and until > now:
            return False
        self.held[name] = (holder, now + timedelta(seconds=lease_s))
        return True


async def test_after_some_failures_in_a_row_one_call_tries_once_a_pause_that_doubles() -> None:
    clock = Clock()
    breaker = Breaker(clock, after_n=3, pause_s=1, longest_pause_s=4)
    tries: list[int] = []
    for second in range(20):
        while breaker.admits():
            tries.append(second)
            breaker.failed("connection refused")
        await clock.sleep(1)
    assert tries == [0, 0, 0, 1, 3, 7, 11, 15, 19]
    assert (breaker.open, breaker.last_error) == (True, "connection refused")


async def test_one_answer_closes_it_and_failures_count_from_nothing_again() -> None:
    breaker = Breaker(Clock(), after_n=2)
    breaker.failed("a")
    breaker.worked()
    breaker.failed("b")
    assert breaker.admits()
    assert not breaker.open


async def test_while_it_is_tried_by_one_call_no_other_is_admitted() -> None:
    clock = Clock()
    breaker = Breaker(clock, after_n=1, pause_s=2)
    breaker.failed("timeout")
    await clock.sleep(2)
    assert [breaker.admits(), breaker.admits()] == [True, False]
    breaker.worked()
    assert [breaker.admits(), breaker.admits()] == [True, True]


async def test_a_held_lease_is_asked_for_seldom_and_one_that_stood_still_asks_before_it_acts() -> None:
    clock, leases = Clock(), Leases()
    one, other = (HeldLease(leases, clock, "watch", name, lease_s=30) for name in ("a", "b"))  # type: ignore[arg-type]
    for _ in range(60):
        assert await one.mine()
        assert not await other.mine()
        await clock.sleep(1)
    assert leases.asked_n < 60 + 60 / 15 + 1
    await clock.sleep(31)  # the first one stands still
    assert await other.mine()
    assert not await one.mine()


async def test_only_who_holds_a_lease_gives_it_up() -> None:
    clock, leases = Clock(), Leases()
    one, other = (HeldLease(leases, clock, "watch", name, lease_s=30) for name in ("a", "b"))  # type: ignore[arg-type]
    assert await one.mine()
    assert not await other.mine()
    asked_n = leases.asked_n
    await other.let_go()
    assert leases.asked_n == asked_n
    await one.let_go()
    assert leases.held["watch"] == ("a", clock.now())
