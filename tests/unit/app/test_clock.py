"""The clock: steps of the machine's wall clock do not reach the service."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest

from service.app.clock import SLEW, SystemClock


class Machine:
    """A machine's two clocks."""

    wall_s = 1_800_000_000.0
    steady_s = 77.0

    def clock(self) -> SystemClock:
        return SystemClock(wall=lambda: self.wall_s, steady=lambda: self.steady_s)

    def pass_time(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_wall_clock_that_is_set_by_an_hour_is_told_and_hardly_followed(
    step_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now()
    machine.wall_s += step_s
    with caplog.at_level(logging.ERROR):
        for _ in range(600):
            machine.pass_time(1)
            clock.now()
    passed_s = (clock.now() - before).total_seconds()
    assert abs(passed_s - 600) <= 600 * SLEW * 1.001
    assert abs(clock.behind_s - step_s) < 7
    assert 9 <= len([r for r in caplog.records if "was set by" in r.getMessage()]) <= 11


def test_time_never_goes_back() -> None:
    machine = Machine()
    clock = machine.clock()
    last = clock.now()
    for step_s in (5.0, -5.0, 0.3, -0.3) * 50:
        machine.pass_time(0.01)
        machine.wall_s += step_s
        assert clock.now() >= last
        last = clock.now()


def test_a_small_difference_is_caught_up_with_quietly(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_s += 0.5
    for _ in range(60):
        machine.pass_time(1)
        clock.now()
    assert abs(clock.now().timestamp() - machine.wall_s) < 1e-3
    assert caplog.records == []


def test_the_time_of_a_machine_that_slept_is_taken() -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now()
    machine.pass_time(8 * 3600)
    assert clock.now() - before == timedelta(hours=8)
