"""Bringing telemetry to a window's layout: nothing is lost, nothing is guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.inputs import (
    binned,
    by_class,
    from_native,
    fullest,
    histogram,
    native_edges,
    rebucket,
    score_bins,
)

EDGES = [0.01, 0.02, 0.05, 0.1]


def test_merging_buckets_keeps_every_request_below_each_remaining_bound() -> None:
    counts = np.array([[1, 2, 3, 4, 5], [5, 0, 0, 1, 0]])
    merged = rebucket(EDGES, counts, [0.02, 0.1])
    np.testing.assert_array_equal(merged, [[3, 7, 5], [5, 1, 0]])


def test_a_bound_that_was_not_counted_is_refused_by_its_value() -> None:
    with pytest.raises(ValueError, match=r"bound 0.03 is not one"):
        rebucket(EDGES, np.ones(5), [0.03])
    with pytest.raises(ValueError, match=r"bound 7 is not one"):
        rebucket(EDGES, np.ones(5), [7.0])


def test_arms_with_other_buckets_are_compared_on_their_common_bounds() -> None:
    both = histogram(EDGES, [[1, 2, 3, 4, 5]], [0.02, 0.03, 0.1], [[4, 1, 1, 9]])
    np.testing.assert_array_equal(np.asarray(both.edges), [0.02, 0.1])
    np.testing.assert_array_equal(np.asarray(both.canary), [[3, 7, 5]])
    np.testing.assert_array_equal(np.asarray(both.stable), [[4, 2, 9]])
    with pytest.raises(ValueError, match="without a common bound"):
        histogram([0.1], [[1, 1]], [0.2], [[1, 1]])


@given(st.lists(st.floats(0.0011, 90.0), min_size=1, max_size=50), st.integers(0, 4), st.integers(0, 3))
def test_a_native_histogram_counts_a_request_where_its_latency_lies(
    latencies: list[float], schema: int, finer: int
) -> None:
    edges = native_edges(schema, 0.001, 100.0)
    fine = schema + finer
    buckets: dict[int, int] = {}
    for x in latencies:
        index = int(np.ceil(np.log2(x) * 2**fine - 1e-9))  # as a client counts it
        buckets[index] = buckets.get(index, 0) + 1
    counts = from_native(fine, buckets, 2, edges=edges, edges_schema=schema)
    plain = np.bincount(np.searchsorted(edges * (1 + 1e-9), latencies), minlength=len(edges) + 1)
    np.testing.assert_array_equal(counts - plain, [2] + [0] * len(edges))


def test_a_native_histogram_coarser_than_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="coarser than the 3"):
        from_native(2, {1: 1}, 0, edges=native_edges(3, 0.001, 1.0), edges_schema=3)


def test_the_fullest_bucket_tells_a_coarse_histogram() -> None:
    np.testing.assert_allclose(fullest([[1, 1, 8], [0, 0, 0]]), [0.8, np.nan])


def test_score_bins_are_frozen_at_stables_quantiles_and_ties_give_one_bound() -> None:
    rng = np.random.default_rng(2)
    scores = np.concatenate([rng.random(500), np.ones(500)])
    bounds = score_bins(scores)
    assert (np.diff(bounds) > 0).all()
    assert bounds[-1] == 1.0
    counts = binned([*scores, np.nan, 2.0], bounds)
    assert counts.sum() == 1002
    assert counts[-1] == 1  # not a number
    assert counts[-2] == 1  # above every score that stable gave
    assert counts[-3] == 500 + ((scores > bounds[-2]) & (scores < 1)).sum()
    with pytest.raises(ValueError, match="at least 100"):
        score_bins([0.5] * 99)


def test_new_classes_go_to_the_last_column() -> None:
    np.testing.assert_array_equal(by_class(["a", "b"], {"b": 2, "new": 3, "newer": 1}), [0, 2, 4])


def test_bounds_that_do_not_ascend_or_do_not_fit_the_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="to must be a list of ascending bounds"):
        rebucket([0.1, 0.2, 0.5], [1, 2, 3, 4], [0.5, 0.1])
    with pytest.raises(ValueError, match="edges must be a list of ascending bounds"):
        rebucket([0.2, 0.1], [1, 2, 3], [0.2])
    with pytest.raises(ValueError, match="counts must have 4 buckets"):
        rebucket([0.1, 0.2, 0.5], [1, 2, 3], [0.2])
    with pytest.raises(ValueError, match="not consecutive bounds"):
        from_native(3, {1: 2.0}, 0, edges=[1.0, 2.0, 2.1], edges_schema=3)
