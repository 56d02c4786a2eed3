"""Names are data: any text survives as exactly itself, and none becomes grammar. Read back by the lab's strict
parser, which takes a selector wholly or not at all."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lab.prometheus_api import BadQuery, read_selector
from service.sources import promql

ANY_TEXT = st.one_of(st.text(max_size=60), st.text('ab"\\\n{}[],=~|.*+?()^$-', max_size=30))


@given(ANY_TEXT)
def test_any_value_is_one_matcher_that_means_itself(value: str) -> None:
    selector = read_selector(promql.range_selector("x_total", {"version": [value]}, 60))
    assert selector.matchers == (("__name__", "=", "x_total"), ("version", "=", value))
    assert selector.seconds == 60


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), ANY_TEXT, max_size=4))
def test_any_labels_come_back_as_they_were(labels: dict[str, str]) -> None:
    text = promql.range_selector(["a_total", "b_total"], {k: [v] for k, v in labels.items()}, 1)
    if labels:
        assert {k: v for k, _, v in read_selector(text).matchers[1:]} == labels
    assert read_selector(text).matchers[0] == ("__name__", "=~", "a_total|b_total")


@given(st.lists(ANY_TEXT, min_size=2, max_size=5, unique=True), ANY_TEXT)
def test_an_alternation_takes_its_values_and_nothing_else(values: list[str], other: str) -> None:
    selector = read_selector(promql.range_selector("x", {"version": values}, 60))
    assert all(selector.takes({"__name__": "x", "version": value}) for value in values)
    assert selector.takes({"__name__": "x", "version": other}) is (other in values)


@pytest.mark.parametrize("label", ["", "a b", 'x="1"', "é", "1a", "a-b", "a\n"])
def test_what_is_no_label_name_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="is no label name"):
        promql.matcher(label, ["x"])


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match="is no text"):
        promql.matcher("version", ["\ud800"])


def test_an_injection_stays_inside_its_string() -> None:
    text = promql.range_selector("x_total", {"version": ['v1"} or vector(1) or x{a="']}, 60)
    assert text == 'x_total{version="v1\\"} or vector(1) or x{a=\\""}[60s]'


def test_a_fraction_of_a_second_reaches_further_back_and_never_less() -> None:
    assert promql.range_selector("x", {"a": ["b"]}, 60.2).endswith("[61s]")


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "x{}",
        "vector(1)",
        'x{a="b"}',
        'x{a="b"c="d"}[1s]',
        'x{a="b"} or y{a="b"}[1s]',
        r'x{a="\q"}[1s]',
        "x{a}[1s]",
    ],
)
def test_the_parser_that_these_tests_rely_on_is_strict(text: str) -> None:
    with pytest.raises(BadQuery):
        read_selector(text)


def test_a_bundle_names_each_expression_and_its_moment() -> None:
    text = promql.bundle([("a", 1.5), ("b", 2.0)])
    assert re.findall(r"\(\((.)\)\[1ms:1ms\] @ ([\d.]+)\), \"serinus_ask\", \"(\d)\"", text) == [
        ("a", "1.500", "0"),
        ("b", "2.000", "1"),
    ]
