"""Counters to exact counts: nothing lost, nothing twice, resets and new pods as they are meant."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sources.counter import Series, growth

POD = {"instance": "a:80", "code": "200"}


def count(*samples: tuple[float, float], labels: Mapping[str, str] = POD, start: float = 60, end: float = 120) -> int:
    return sum(one.count for one in growth([Series(labels, samples)], start, end).series)


def test_a_step_belongs_to_the_window_of_its_later_sample() -> None:
    samples = ((50.0, 10.0), (65.0, 14.0), (115.0, 20.0), (130.0, 99.0))
    assert count(*samples) == 10
    assert count(*samples, start=120, end=180) == 79


def test_a_fall_is_a_restart_and_the_new_value_counts() -> None:
    assert count((50, 100), (70, 120), (90, 7), (110, 9)) == 20 + 7 + 2


def test_a_new_series_on_a_known_instance_counts_from_zero() -> None:
    known = Series(POD, [(50, 5), (110, 8)])
    fresh = Series({**POD, "code": "500"}, [(110, 4)])
    grown = growth([known, fresh], 60, 120)
    assert [one.count for one in grown.series] == [3, 4]


def test_a_new_instance_counts_from_its_first_sample() -> None:
    assert count((70, 1000), (110, 1010)) == 10


def test_a_vanished_series_counts_what_it_still_showed() -> None:
    assert count((50, 5), (70, 9)) == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_samples_that_are_no_counts_are_ignored(bad: float) -> None:
    assert count((50, 5), (80, bad), (110, 9)) == 4


def test_unsorted_and_repeated_samples_count_once() -> None:
    assert count((110, 9), (50, 5), (110, 9), (80, 6)) == 4


def test_no_sample_at_all_is_told_apart_from_no_growth() -> None:
    assert growth([], 60, 120).last_sample_s is None
    assert growth([Series(POD, [(110, 3)])], 60, 120).last_sample_s == 110


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40), st.integers(1, 7))
def test_consecutive_windows_add_up_to_the_whole(steps: list[int], width: int) -> None:
    samples, value = [], 0
    for at, step in enumerate(steps):
        value += step
        samples.append((float(at), float(value)))
    whole = count(*samples, start=0, end=len(steps))
    parts = sum(count(*samples, start=a, end=a + width) for a in range(0, len(steps), width))
    assert whole == parts == sum(steps[1:])
