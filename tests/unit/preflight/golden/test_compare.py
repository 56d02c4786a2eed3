"""Two answers beside each other: what differs, how far, and what does not count."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.model.gates.golden import Protocol, Tolerance
from service.preflight.golden.answers import Output, read
from service.preflight.golden.compare import Comparison, Kind, compare, shown


def plain(body: Any) -> dict[str, Output]:
    return read((body if isinstance(body, str) else json.dumps(body)).encode(), Protocol.HTTP_JSON)


def beside(stable: Any, canary: Any, *tolerances: Tolerance) -> Comparison:
    return compare(plain(stable), plain(canary), tolerances)


def kinds(stable: Any, canary: Any, *tolerances: Tolerance) -> list[Kind]:
    return [one.kind for one in beside(stable, canary, *tolerances).differences]


def typed(dtype: str, data: list[Any]) -> dict[str, Output]:
    body = {"outputs": [{"name": "y", "shape": [len(data)], "datatype": dtype, "data": data}]}
    return read(json.dumps(body).encode(), Protocol.KSERVE_V2)


def test_a_number_at_its_tolerance_is_the_same_and_beyond_it_is_not() -> None:
    tolerance = Tolerance(output="y", absolute=0.5, relative=0.25)
    # 0.5 + 0.25 x 8 = 2.5, whichever way.
    assert kinds({"y": [8.0, -8.0]}, {"y": [10.5, -10.5]}, tolerance) == []
    assert kinds({"y": [8.0, 8.0]}, {"y": [5.5, 10.5]}, tolerance) == []
    assert kinds({"y": [8.0]}, {"y": [10.500001]}, tolerance) == [Kind.VALUE]
    assert kinds({"y": [8.0]}, {"y": [5.499999]}, tolerance) == [Kind.VALUE]


def test_the_default_lets_float32_round_another_way_and_shows_float16() -> None:
    weights = np.random.default_rng(1).normal(size=(64, 10))
    x = np.random.default_rng(2).normal(size=(64,))

    def scores(dtype: Any, order: int) -> list[float]:
        logits = (x.astype(np.float32)[::order] @ weights.astype(dtype).astype(np.float32)[::order]).astype(np.float64)
        return list(np.exp(logits) / np.exp(logits).sum())

    assert kinds({"y": scores(np.float32, 1)}, {"y": scores(np.float32, -1)}) == []
    assert kinds({"y": scores(np.float32, 1)}, {"y": scores(np.float16, 1)}) == [Kind.VALUE]


def test_the_largest_distance_is_told_even_within_the_tolerance_and_with_its_place() -> None:
    comparison = beside({"a": [[1.0, 2.0]], "b": [5.0]}, {"a": [[1.0, 2.000001]], "b": [5.00001]})
    assert comparison.differences == ()
    assert comparison.largest is not None
    assert comparison.largest.output == "b"
    assert comparison.largest.absolute == pytest.approx(1e-5)
    (difference,) = beside({"a": [[1.0, 2.0]]}, {"a": [[1.0, 2.5]]}).differences
    assert difference.said == "1 of 2 values, most 2 -> 2.5 at [0, 1]"


def test_which_distance_is_the_largest_is_measured_by_tolerances() -> None:
    loose = Tolerance(output="logits", absolute=10, relative=0)
    largest = beside({"logits": [1.0], "scores": [0.5]}, {"logits": [4.0], "scores": [0.51]}, loose).largest
    assert largest is not None
    assert (largest.output, largest.of_tolerance) == ("scores", pytest.approx(0.01 / 6e-5))
    exact = Tolerance(output="*", absolute=0, relative=0)
    largest = beside({"y": [1.0, 2.0, 3.0]}, {"y": [1.1, 2.3, 3.0]}, exact).largest
    assert largest is not None
    assert (largest.of_tolerance, largest.said) == (np.inf, "2 -> 2.3 at [1]")


def test_whole_numbers_texts_and_booleans_must_be_equal() -> None:
    assert kinds({"y": [1_000_000, 2]}, {"y": [1_000_001, 2]}) == [Kind.VALUE]
    assert kinds({"y": ["cat", "dog"]}, {"y": ["cat", "cow"]}) == [Kind.VALUE]
    assert kinds({"y": True}, {"y": False}) == [Kind.VALUE]
    assert kinds({"y": [2**63 + 1]}, {"y": [2**63 + 2]}) == [Kind.VALUE]
    assert kinds({"y": [1, "a", True]}, {"y": [True, "a", 1]}) == [Kind.VALUE]
    (difference,) = beside({"y": ["cat", "dog"]}, {"y": ["cat", "cow"]}).differences
    assert difference.said == "1 of 2 values: 'dog' -> 'cow' at [1]"


def test_whole_numbers_have_a_tolerance_where_one_names_them() -> None:
    assert kinds({"y": [1000]}, {"y": [1001]}, Tolerance(output="*", absolute=5)) == [Kind.VALUE]
    assert kinds({"y": [1000]}, {"y": [1001]}, Tolerance(output="y*", absolute=5)) == []
    assert kinds({"y": ["a"]}, {"y": ["b"]}, Tolerance(output="y", absolute=5)) == [Kind.VALUE]


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity", '"NaN"', "null"])
def test_what_is_no_number_where_stable_has_one_is_its_own_kind(bad: str) -> None:
    (difference,) = beside({"y": [0.25, 0.5]}, f'{{"y": [0.25, {bad}]}}').differences
    assert difference.kind is Kind.NON_FINITE
    assert difference.said.startswith("1 of 2 values: 0.5 -> ")
    assert difference.said.endswith("at [1]")


def test_an_output_that_is_wholly_null_or_nan_is_found_beside_numbers_of_either_kind() -> None:
    assert kinds({"y": [1, 2]}, {"y": [None, None]}) == [Kind.NON_FINITE]
    assert kinds({"y": [0.5]}, '{"y": ["NaN"]}') == [Kind.NON_FINITE]
    assert kinds({"y": 3}, {"y": None}) == [Kind.NON_FINITE]


def test_nan_on_both_sides_is_equal_and_told() -> None:
    comparison = beside('{"y": [NaN, Infinity, 1.0]}', '{"y": [NaN, Infinity, 1.0]}')
    assert (comparison.differences, comparison.both_non_finite) == ((), True)
    assert kinds('{"y": [Infinity]}', '{"y": [-Infinity]}') == [Kind.NON_FINITE]
    assert kinds('{"y": [Infinity]}', '{"y": [NaN]}') == [Kind.NON_FINITE]
    assert beside({"y": None}, {"y": None}).both_non_finite is False


def test_a_candidate_that_is_finite_where_stable_is_not_differs_in_value_only() -> None:
    assert kinds('{"y": [NaN, 1.0]}', '{"y": [0.5, 1.0]}') == [Kind.VALUE]


def test_nan_does_not_hide_the_largest_distance_of_the_other_values() -> None:
    comparison = beside('{"y": [NaN, 1.0, 2.0]}', '{"y": [NaN, 1.0, 9.0]}')
    assert comparison.largest is not None
    assert comparison.largest.absolute == 7.0
    assert [one.kind for one in comparison.differences] == [Kind.VALUE]


def test_huge_values_of_either_sign_are_far_apart_and_no_warning() -> None:
    assert kinds({"y": [1e308]}, {"y": [-1e308]}) == [Kind.VALUE]


def test_another_shape_is_found_before_any_value() -> None:
    (difference,) = beside({"y": [[1.0, 2.0]]}, {"y": [1.0, 2.0]}).differences
    assert (difference.kind, difference.said) == (Kind.SHAPE, "shape [1, 2] -> [2]")
    assert kinds({"y": []}, {"y": [1.0]}) == [Kind.SHAPE]


def test_another_type_is_found_where_it_can_be_told() -> None:
    assert kinds({"y": [1.5]}, {"y": ["1.5"]}) == [Kind.DTYPE]
    assert kinds({"y": [1]}, {"y": [True]}) == [Kind.DTYPE]
    both = compare(typed("FP32", [1.5]), typed("FP64", [1.5]))
    assert [(one.kind, one.said) for one in both.differences] == [(Kind.DTYPE, "type FP32 -> FP64")]
    also = compare(typed("FP32", [1.5]), typed("INT64", [2]))
    assert [one.kind for one in also.differences] == [Kind.DTYPE, Kind.VALUE]


def test_how_json_writes_a_single_number_is_no_type() -> None:
    assert kinds({"y": 1}, {"y": 1.0}) == []
    assert kinds({"y": 1}, {"y": 1.5}) == [Kind.VALUE]


def test_outputs_that_went_and_came_are_named() -> None:
    comparison = beside({"scores": [0.5], "label": 1}, {"scores": [0.5], "logits": [3.0]})
    assert [(one.kind, one.output) for one in comparison.differences] == [(Kind.MISSING, "label")]
    assert comparison.new_outputs == ("logits",)


def test_an_ignored_output_is_as_if_it_were_not_there() -> None:
    ignored = Tolerance(output="meta.*", ignored=True)
    comparison = beside({"y": 1.5, "meta": {"id": "a", "t": 1}}, {"y": 1.5, "meta": {"id": "b", "new": 1}}, ignored)
    assert (comparison.differences, comparison.new_outputs) == ((), ())


def test_the_first_tolerance_that_matches_is_used() -> None:
    wide, exact = Tolerance(output="scores", absolute=1), Tolerance(output="*", absolute=0, relative=0)
    assert kinds({"scores": [0.5], "x": [0.5]}, {"scores": [0.6], "x": [0.5]}, wide, exact) == []
    assert kinds({"scores": [0.5]}, {"scores": [0.6]}, exact, wide) == [Kind.VALUE]


def test_brackets_and_question_marks_in_a_pattern_are_meant() -> None:
    assert kinds({"b": [[1.5, 2], [3]]}, {"b": [[1.6, 2], [3]]}, Tolerance(output="b[0]", absolute=1)) == []
    assert kinds({"b": 1.5}, {"b": 1.6}, Tolerance(output="?", absolute=1)) == [Kind.VALUE]


TOP_1 = Tolerance(output="*", absolute=0.01, relative=0, top_k=1, ranking_only=True)
TOP_3 = TOP_1.model_copy(update={"top_k": 3})


def test_the_winner_must_be_the_same_and_the_rest_may_move() -> None:
    assert kinds({"y": [[0.7, 0.2, 0.1]]}, {"y": [[0.5, 0.1, 0.4]]}, TOP_1) == []
    comparison = beside({"y": [[0.7, 0.2, 0.1], [0.9, 0.1, 0.0]]}, {"y": [[0.2, 0.7, 0.1], [0.9, 0.1, 0.0]]}, TOP_1)
    (difference,) = comparison.differences
    assert (difference.kind, difference.said) == (Kind.RANKING, "1 of 2 rows, rank 1: class 0 -> 1")
    assert (comparison.ranked_n, comparison.reordered_n) == (2, 1)


def test_the_order_of_the_first_k_must_be_the_same() -> None:
    stable = {"y": [0.4, 0.3, 0.2, 0.1]}
    assert kinds(stable, {"y": [0.4, 0.25, 0.2, 0.15]}, TOP_3) == []
    assert kinds(stable, {"y": [0.4, 0.2, 0.3, 0.1]}, TOP_3) == [Kind.RANKING]
    assert kinds(stable, {"y": [0.4, 0.3, 0.1, 0.2]}, TOP_3) == [Kind.RANKING]
    assert kinds(stable, {"y": [0.4, 0.2, 0.3, 0.1]}, TOP_1) == []


def test_classes_within_the_tolerance_of_one_another_may_change_places() -> None:
    assert kinds({"y": [0.405, 0.4, 0.195]}, {"y": [0.4, 0.405, 0.195]}, TOP_3) == []
    assert kinds({"y": [0.5, 0.4, 0.1]}, {"y": [0.4, 0.5, 0.1]}, TOP_3) == [Kind.RANKING]


def test_the_order_is_compared_beside_the_values_unless_it_alone_counts() -> None:
    both = TOP_1.model_copy(update={"ranking_only": False})
    assert kinds({"y": [0.7, 0.3]}, {"y": [0.3, 0.7]}, both) == [Kind.VALUE, Kind.RANKING]
    assert kinds({"y": [7.0, 3.0]}, {"y": [70.0, 30.0]}, TOP_1) == []


def test_rows_with_nan_have_no_order_and_are_told_as_nan() -> None:
    stable, canary = '{"y": [[0.7, 0.3], [0.7, 0.3]]}', '{"y": [[NaN, 0.3], [0.7, 0.3]]}'
    comparison = compare(plain(stable), plain(canary), [TOP_1])
    assert [one.kind for one in comparison.differences] == [Kind.NON_FINITE]
    assert comparison.ranked_n == 1


def test_infinite_scores_have_an_order_without_a_warning() -> None:
    assert kinds('{"y": [Infinity, 0.3]}', '{"y": [Infinity, 0.3]}', TOP_1) == []


def test_ranking_only_without_a_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="ranking_only needs top_k"):
        Tolerance(output="y", ranking_only=True)


def test_an_outside_text_is_shown_cut_and_without_control_characters() -> None:
    assert shown("a\x1b[31mb\n") == "'a�[31mb�'"
    assert len(shown("x" * 1000)) == 42
