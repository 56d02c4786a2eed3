"""Counters to exact counts: nothing lost, nothing twice, resets and new pods as they are meant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sources.counter import Series, growth

POD = {"instance": "a:80", "code": "200"}


def count(*samples: tuple[float, float], labels: Mapping[str, str] = POD, start: float = 60, end: float = 120) -> int:
    return sum(one.count for one in growth([Series(labels, samples)], start, end).series)


def counts(listed: Sequence[Series], start: float = 60, end: float = 120) -> list[int]:
    return [one.count for one in growth(listed, start, end).series]


def test_a_step_belongs_to_the_window_of_its_later_sample() -> None:
    samples = ((50.0, 10.0), (65.0, 14.0), (115.0, 20.0), (130.0, 99.0))
    assert count(*samples) == 10
    assert count(*samples, start=120, end=180) == 79


def test_a_sample_on_the_windows_edge_belongs_to_the_window_that_ends_there() -> None:
    samples = ((50.0, 1.0), (60.0, 2.0), (120.0, 4.0))
    assert count(*samples, start=0, end=60) == 1
    assert count(*samples, start=60, end=120) == 2


def test_a_fall_is_a_restart_and_the_new_value_counts() -> None:
    assert count((50, 100), (70, 120), (90, 7), (110, 9)) == 20 + 7 + 2


def test_a_new_series_on_a_known_instance_counts_from_zero() -> None:
    fresh = Series({**POD, "code": "500"}, [(110, 4)])
    assert counts([Series(POD, [(50, 5), (110, 8)]), fresh]) == [3, 4]


def test_a_new_series_on_an_instance_that_began_in_the_same_window_counts_from_zero_too() -> None:
    fresh = Series({**POD, "code": "500"}, [(110, 4)])
    assert counts([Series(POD, [(70, 5), (110, 8)]), fresh]) == [3, 4]


def test_the_other_arm_bears_witness_that_an_instance_was_known() -> None:
    first = Series({"instance": "sidecar", "version": "v2"}, [(110, 4)])
    other = Series({"instance": "sidecar", "version": "v1"}, [(50, 900), (110, 950)])
    assert growth([first], 60, 120).series[0].count == 0
    assert growth([first], 60, 120, beside=[other]).series[0].count == 4


def test_a_new_instance_counts_from_its_first_sample() -> None:
    assert count((70, 1000), (110, 1010)) == 10


def test_pods_of_different_services_at_one_address_are_different_instances() -> None:
    known = Series({"job": "a", "instance": "x:80"}, [(50, 5)])
    assert counts([known, Series({"job": "b", "instance": "x:80"}, [(110, 400)])]) == [0, 0]


def test_a_vanished_series_counts_what_it_still_showed() -> None:
    assert count((50, 5), (70, 9)) == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_samples_that_are_no_counts_are_ignored(bad: float) -> None:
    assert count((50, 5), (80, bad), (110, 9)) == 4


def test_fractions_are_cut_off_so_that_windows_stay_whole() -> None:
    assert count((50, 5.9), (110, 9.2)) == 4


def test_unsorted_and_repeated_samples_count_once() -> None:
    assert count((110, 9), (50, 5), (110, 9), (80, 6)) == 4


def test_of_two_values_at_one_moment_the_order_does_not_matter() -> None:
    assert count((50, 5), (80, 6), (80, 7), (110, 9)) == count((50, 5), (80, 7), (80, 6), (110, 9)) == 4


def test_a_bucket_that_overtook_its_old_value_restarts_with_its_histogram() -> None:
    low = Series({**POD, "le": "0.1"}, [(50, 5), (110, 7)])
    inf = Series({**POD, "le": "+Inf"}, [(50, 100), (110, 50)])
    assert [one.count for one in growth([low, inf], 60, 120, together="le").series] == [7, 50]
    assert counts([low, inf]) == [2, 50]


def test_no_sample_at_all_is_told_apart_from_no_growth() -> None:
    assert growth([], 60, 120).last_sample_s is None
    assert growth([Series(POD, [(121, 3)])], 60, 120).last_sample_s is None
    assert growth([Series(POD, [(110, 3)])], 60, 120).last_sample_s == 110


LOOKBACK = 5


@st.composite
def scrapes(draw: st.DrawFn) -> tuple[list[Series], int]:
    """Instances that start, restart and end; each scraped every second, with codes that show up as they are met."""
    moments = draw(st.integers(2, 40))
    listed: list[Series] = []
    for n in range(draw(st.integers(1, 3))):
        born = draw(st.integers(0, moments - 1))
        died = draw(st.integers(born, moments))
        restarts = draw(st.sets(st.integers(born, died), max_size=3))
        for code in ("200", "404", "500"):
            met = draw(st.integers(born, died))
            value, samples = 0, []
            for at in range(born, died + 1):
                if at in restarts:
                    value = 0
                if at >= met:
                    value += draw(st.integers(0, 9))
                    samples.append((float(at), float(value)))
            listed.append(Series({"instance": str(n), "code": code}, samples))
    return listed, moments


@given(scrapes(), st.integers(1, 7), st.floats(0, 1))
def test_consecutive_windows_add_up_to_the_whole_exactly(
    given_scrapes: tuple[list[Series], int], width: int, offset: float
) -> None:
    listed, moments = given_scrapes
    first = -1 - offset
    whole = sum(one.count for one in growth(listed, first, moments + width).series)
    parts, start = 0, first
    while start < moments:
        end = start + width
        # Each window sees what its own query would fetch, not all of history.
        seen = [Series(s.labels, [p for p in s.samples if start - LOOKBACK < p[0] <= end]) for s in listed]
        parts += sum(one.count for one in growth(seen, start, end).series)
        start = end
    assert parts == whole


SAMPLE_VALUES = st.one_of(st.integers(0, 20).map(float), st.sampled_from([0.5, -1.0, math.nan, math.inf]))
SAMPLE_TIMES = st.one_of(st.integers(0, 12).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))


def by_definition(samples: list[tuple[float, float]], start_s: float, end_s: float) -> tuple[list[int], float | None]:
    """The counts of a series alone, and its last moment: step by step."""
    merged: dict[float, int] = {}
    for at, value in samples:
        if math.isfinite(at) and at <= end_s and math.isfinite(value) and value >= 0:
            merged[at] = max(int(value), merged.get(at, 0))
    steps = pairwise(sorted(merged.items()))
    total = sum(now if now < before else now - before for (_, before), (at, now) in steps if at > start_s)
    return ([total], max(merged)) if merged else ([], None)


@given(st.lists(st.tuples(SAMPLE_TIMES, SAMPLE_VALUES), max_size=6), st.booleans())
def test_a_series_alone_grows_by_its_steps_whatever_its_samples_are(
    samples: list[tuple[float, float]], tidy: bool
) -> None:
    if tidy:
        values = sorted(value for _, value in samples if value >= 0)
        samples = list(zip(sorted({at for at, _ in samples if math.isfinite(at)}), values, strict=False))
    for start, end in ((3.0, 9.0), (-1.0, 12.0), (5.0, 5.5)):
        grown = growth([Series({"a": "b"}, samples)], start, end)
        assert ([one.count for one in grown.series], grown.last_sample_s) == by_definition(samples, start, end)
