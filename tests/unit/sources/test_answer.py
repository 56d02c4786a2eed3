"""Any bytes are an answer or a failure; nothing that was only partly read counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sources.answer import Outcome, parse


def body(result: Any, kind: str = "matrix", **more: Any) -> bytes:
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}, **more}).encode()


GOOD = {"metric": {"a": "b"}, "values": [[1, "2"], [3.5, "4e3"]]}


def test_a_matrix_gives_series_with_their_samples() -> None:
    answer = parse(body([GOOD]), 200, max_series=1)
    assert [(s.labels, list(s.samples)) for s in answer.series] == [({"a": "b"}, [(1.0, 2.0), (3.5, 4000.0)])]
    assert not answer.failure


def test_vectors_and_scalars_give_numbers() -> None:
    assert parse(body([{"metric": {}, "value": [1, "2"]}], "vector"), 200, max_series=1).numbers == (({}, 2.0),)
    assert parse(body([1, "2.5"], "scalar"), 200, max_series=1).numbers == (({}, 2.5),)


def test_infinities_and_nan_are_read_as_prometheus_writes_them() -> None:
    pairs = [[1, "+Inf"], [2, "-Inf"], [3, "NaN"], [4, "1.5e+06"]]
    ((one,), (number,)) = (
        parse(body([{"metric": {"le": "+Inf", "x": '"+Inf"]'}, "values": pairs}]), 200, max_series=1).series,
        parse(body([{"metric": {}, "value": [1, "+Inf"]}], "vector"), 200, max_series=1).numbers,
    )
    assert [str(value) for _, value in one.samples] == ["inf", "-inf", "nan", "1500000.0"]
    assert one.labels == {"le": "+Inf", "x": '"+Inf"]'}
    assert number == ({}, float("inf"))


def test_native_histograms_are_counted_and_not_taken_for_samples() -> None:
    native = {"metric": {"a": "c"}, "histograms": [[1, {}]]}
    answer = parse(body([GOOD, native]), 200, max_series=5)
    assert (len(answer.series), answer.native_n) == (1, 1)


def test_warnings_are_kept_and_bounded() -> None:
    assert parse(body([], warnings=["a", "b"]), 200, max_series=1).warning == "a; b"
    assert len(parse(body([], warnings=["x" * 9999]), 200, max_series=1).warning) == 500


def test_too_many_series_may_be_asked_for_in_parts() -> None:
    answer = parse(body([GOOD, GOOD]), 200, max_series=1)
    assert "2 series, more than the 1 allowed" in answer.failure
    assert answer.divisible


@pytest.mark.parametrize(
    ("status", "divisible", "outcome"),
    [
        (400, False, Outcome.REJECTED),
        (422, True, Outcome.REJECTED),
        (413, True, Outcome.REJECTED),
        (429, False, Outcome.AWAY),
        (503, False, Outcome.AWAY),
    ],
)
def test_an_error_says_what_the_store_said(status: int, divisible: bool, outcome: Outcome) -> None:
    said = json.dumps({"status": "error", "errorType": "execution", "error": "too many samples"}).encode()
    answer = parse(said, status, max_series=1)
    assert answer.failure == f"the metric store says {status}, execution: too many samples"
    assert (answer.divisible, answer.outcome) == (divisible, outcome)


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"<html>bad gateway</html>",
        b"[]",
        b"null",
        b'{"status": "success"}',
        b'{"status": "success", "data": {"resultType": "matrix", "result": {}}}',
        b"[" * 100_000,
        b'{"status": "success", "data": {"resultType": "matrix", "result": [' + b"1" * 5000 + b"]}}",
        body([1]),
        body([GOOD, {"metric": [], "values": []}]),
        body([GOOD, {"metric": {"a": ["b"]}, "values": []}]),
        body([GOOD, {"metric": {}, "values": [[1, "two"]]}]),
        body([GOOD, {"metric": {}, "values": [[1]]}]),
        body([GOOD, {"metric": {}, "values": 3}]),
        body([GOOD, {"metric": {}, "values": [{"1": 1, "2": 2}]}]),
        body([GOOD, {"metric": {}, "values": [[float("nan"), "1"]]}]),
    ],
)
def test_what_is_not_wholly_an_answer_is_a_failure(given: bytes) -> None:
    answer = parse(given, 200, max_series=10)
    assert answer.failure
    assert answer.series == ()


def test_a_good_body_under_a_bad_status_is_not_believed() -> None:
    assert parse(body([GOOD]), 502, max_series=1).failure


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["matrix", "vector", "scalar", "string"]))
def test_any_result_is_read_or_refused_without_an_exception(result: Any, kind: str) -> None:
    parse(body(result, kind), 200, max_series=10)


@given(st.binary(max_size=200), st.integers(100, 599))
def test_any_bytes_are_read_or_refused_without_an_exception(given: bytes, status: int) -> None:
    assert parse(given, status, max_series=10).failure


def test_what_a_store_says_is_no_command_to_a_terminal() -> None:
    """Its errors and warnings quote what others wrote, and are shown on the page, in pages and in the terminal."""
    said = "bad\x1b]0;title\x07\nsecond line"
    error = json.dumps({"status": "error", "errorType": "bad_data", "error": said}).encode()
    assert parse(error, 400, max_series=1).failure.isprintable()
    warned = parse(body([], "vector", warnings=[said]), 200, max_series=1)
    assert warned.warning.isprintable()
    assert "second line" in warned.warning
