"""LogQL from names and patterns as data. Every question to a log store is written here, so that none becomes grammar.

Selectors are PromQL's; strings are Go's. ``by`` and the groups of an expression are label names that were checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from service.sources import promql

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def string(value: str) -> str:
    """A string literal that means exactly ``value``; raises ValueError for what is no text (UTF-8)."""
    return _CONTROLS.sub(lambda one: f"\\u{ord(one[0]):04x}", promql.string(value))


def selector(labels: Mapping[str, Iterable[str]]) -> str:
    """``{...}`` of the streams; raises ValueError for what is no label name, or for values that no stream can have."""
    for values in labels.values():
        if any(_CONTROLS.search(value) for value in values):
            raise ValueError("a value holds control characters, which no label of a stream does")
    return f"{{{promql.matchers(labels)}}}"


def lines_n(selected: str, seconds: float, by: Sequence[str]) -> str:
    """How many lines there were, whatever they say."""
    return f"{_sum(by)} (count_over_time({selected} [{promql.duration(seconds)}]))"


def found_n(selected: str, found: str, seconds: float, by: Sequence[str]) -> str:
    """How many lines an expression matches."""
    return f"{_sum(by)} (count_over_time({lines(selected, found)} [{promql.duration(seconds)}]))"


def told_n(selected: str, found: str, told: str, groups: Sequence[str], seconds: float) -> str:
    """The same, told apart by what the named groups of ``told`` hold."""
    each = f"{lines(selected, found)} | regexp {string(told)}"
    return f"{_sum(groups)} (count_over_time({each} [{promql.duration(seconds)}]))"


def lines(selected: str, found: str) -> str:
    """The lines that an expression matches."""
    return f"{selected} |~ {string(found)}"


def _sum(by: Sequence[str]) -> str:
    return f"sum by ({','.join(by)})" if by else "sum"
