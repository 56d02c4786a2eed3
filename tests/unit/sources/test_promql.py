"""Names are data: any text survives as exactly itself, and none becomes grammar."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lab.prometheus_api import _matchers
from service.sources import promql


@given(st.text(max_size=60))
def test_any_value_is_one_string_that_means_itself(value: str) -> None:
    written = promql.string(value)
    assert written.startswith('"')
    assert written.endswith('"')
    # Between the quotes no quote stands unescaped, so nothing can end the string early.
    assert re.fullmatch(r'(?:[^"\\\n]|\\.)*', written[1:-1], re.DOTALL)
    back = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], written[1:-1], flags=re.DOTALL)
    assert back == value


@given(
    st.lists(st.text("ab.*+?()[]{}|^$-\\", min_size=1, max_size=8), min_size=2, max_size=5, unique=True),
    st.text(max_size=8),
)
def test_an_alternation_matches_its_values_and_nothing_else(values: list[str], other: str) -> None:
    ((_, check),) = _matchers(promql.matcher("version", values))
    assert all(check(value) for value in values)
    assert check(other) is (other in values)


@pytest.mark.parametrize("label", ["", "a b", 'x="1"', "é", "1a", "a-b"])
def test_what_is_no_label_name_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="is no label name"):
        promql.matcher(label, ["x"])


def test_an_injection_stays_inside_its_string() -> None:
    text = promql.range_selector("x_total", {"version": ['v1"} or vector(1) or x{a="']}, 60)
    assert text == 'x_total{version="v1\\"} or vector(1) or x{a=\\""}[60s]'
