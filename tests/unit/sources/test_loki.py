"""A log store's answers, as far as they need no store."""

from __future__ import annotations

import json

import pytest

from service.sources.answer import Outcome
from service.sources.loki import _parse_counts


def body(value: str) -> bytes:
    element = {"metric": {"app": "tf"}, "value": [1, value]}
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": [element]}}).encode()


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1"])
def test_what_is_no_number_of_lines_is_no_answer_of_a_log_store(value: str) -> None:
    """Rounding it raised what ends the collection of every rollout's windows."""
    answer = _parse_counts(body(value), 200, 10)
    assert answer.outcome is Outcome.MALFORMED
    assert not answer.numbers


def test_a_number_of_lines_is_one() -> None:
    assert _parse_counts(body("3"), 200, 10).numbers == (({"app": "tf"}, 3.0),)
