"""Cells and bins: numbers keep their order, bounds are exact, and bins follow what stable has shown."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyzers.inputs import SCORE_LEVELS, binned, score_bins
from service.predictions.binning import (
    NOT_A_NUMBER,
    Bins,
    cell_of_score,
    cell_of_value,
    distance,
    end_of_score,
    end_of_value,
    freeze,
)

NUMBERS = st.floats(-1e28, 1e28, allow_nan=False)
SCORES = st.floats(0, 1)


@given(NUMBERS, NUMBERS)
def test_values_keep_their_order_in_cells(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert cell_of_value(low) <= cell_of_value(high)


@given(SCORES, SCORES)
def test_scores_keep_their_order_in_cells(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert cell_of_score(low) <= cell_of_score(high)


@given(NUMBERS)
def test_a_value_lies_between_the_ends_of_its_cell(x: float) -> None:
    cell = cell_of_value(x)
    assert end_of_value(cell - 1) <= x <= end_of_value(cell) or abs(x) < 2.0**-39
    assert end_of_value(cell) - end_of_value(cell - 1) <= 0.004 * abs(x) + 2.0**-38


@given(SCORES)
def test_a_score_lies_between_the_ends_of_its_cell_and_cells_are_fine_at_both_ends(x: float) -> None:
    cell = cell_of_score(x)
    low, high = end_of_score(cell - 1) if cell else 0.0, end_of_score(cell)
    assert low <= x <= high
    assert high - low <= 0.004 * min(x, 1 - x) + 2.0**-23


def test_scores_near_one_are_told_apart() -> None:
    assert len({cell_of_score(x) for x in (0.99, 0.999, 0.9999, 0.99999, 1.0)}) == 5


@pytest.mark.parametrize("scores", [True, False])
def test_bins_are_those_of_the_numbers_written_out(scores: bool) -> None:
    given = np.random.default_rng(1).beta(8, 2, 700)
    cells = [(cell_of_score if scores else cell_of_value)(float(x)) for x in given]
    bins = freeze(Counter(cells), scores=scores)
    assert bins is not None
    assert bins.cells == tuple(score_bins(cells))
    counts = bins.counts(Counter([*cells, NOT_A_NUMBER]))
    assert counts == tuple(binned([*cells, np.nan], bins.cells))
    assert len(counts) == len(bins.names) == len(set(bins.names)) == len(SCORE_LEVELS) + 2


def test_numbers_that_are_all_alike_give_one_bound_and_what_is_beyond_shows() -> None:
    bins = freeze({cell_of_score(1.0): 150}, scores=True)
    assert bins is not None
    assert bins.counts({cell_of_score(1.0): 3, cell_of_score(0.9): 2, NOT_A_NUMBER: 1}) == (5, 0, 1)
    values = freeze({cell_of_value(5.0): 150}, scores=False)
    assert values is not None
    assert values.counts({cell_of_value(5.1): 4}) == (0, 4, 0)


def test_fewer_than_a_hundred_numbers_choose_no_bins() -> None:
    assert freeze({cell_of_score(0.5): 99, NOT_A_NUMBER: 50}, scores=True) is None


def test_frozen_bins_are_read_back_equal_and_other_bytes_are_refused() -> None:
    bins = freeze(Counter(cell_of_value(float(x)) for x in range(-100, 100)), scores=False)
    assert bins is not None
    assert Bins.from_bytes(bins.to_bytes()) == bins
    with pytest.raises(ValueError, match="kept bins are not readable"):
        Bins.from_bytes(b"[1]")


def test_an_embedding_of_another_length_has_no_distance() -> None:
    assert distance([0.0, 3.0], [4.0, 0.0]) == 5.0
    assert math.isnan(distance([1.0], [1.0, 2.0]))
