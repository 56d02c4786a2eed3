"""Names and patterns stay data in LogQL, whatever they hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lab.loki_api import LokiApi, meant
from service.sources import logql

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXT)
def test_a_literal_means_exactly_the_text(text: str) -> None:
    literal = logql.string(text)
    assert meant(literal) == text
    # Go's scanner ends a line or stops at NUL inside a literal that holds one.
    assert not any(ord(c) < 32 for c in literal)


@given(TEXT.filter(str.isprintable), TEXT.filter(str.isprintable))
def test_a_selector_takes_its_values_and_no_others(one: str, other: str) -> None:
    api = LokiApi()
    api.write("x", at_s=100.0, app=one or "a", version=other or "b")
    api.write("x", at_s=100.0, app="neighbour", version="neighbour")
    selected = logql.selector({"app": [one or "a", "c"], "version": [other or "b"]})
    found = api.counts(logql.lines_n(selected, 60, ("app", "version")), 110 * 10**9)
    assert [element["value"] for element in found] == [[110.0, "1"]]


@pytest.mark.parametrize("labels", [{"a b": ["x"]}, {"a": ["x\n"]}, {"a": ["\x00"]}, {"a": ["\ud800"]}])
def test_what_no_stream_can_have_is_refused(labels: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError):
        logql.selector(labels)


def test_the_questions_read_as_they_are_meant() -> None:
    selected = logql.selector({"app": ["a"], "version": ["v1", "v2"]})
    assert selected == '{app="a",version=~"v1|v2"}'
    assert logql.lines_n(selected, 60, ("app",)) == f"sum by (app) (count_over_time({selected} [60s]))"
    assert logql.found_n(selected, "a|b", 60.5, ()) == f'sum (count_over_time({selected} |~ "a|b" [60500ms]))'
    assert logql.told_n(selected, "a", r"(?P<x>\d)", ("x",), 60) == (
        f'sum by (x) (count_over_time({selected} |~ "a" | regexp "(?P<x>\\\\d)" [60s]))'
    )
