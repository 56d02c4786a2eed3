"""PromQL from names as data. Every matcher in the service is written here, so that no name can become grammar."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$-])")


def string(value: str) -> str:
    """A PromQL string literal that means exactly ``value``."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def literal_regex(value: str) -> str:
    """An RE2 expression that matches exactly ``value``."""
    return _SPECIAL.sub(r"\\\1", value)


def matcher(label: str, values: Iterable[str]) -> str:
    """``label="value"``, or an alternation for several values; raises ValueError for what is no label name."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{label!r} is no label name")
    listed = sorted(set(values))
    if len(listed) == 1:
        return f"{label}={string(listed[0])}"
    return f"{label}=~{string('|'.join(literal_regex(v) for v in listed))}"


def matchers(labels: Mapping[str, Iterable[str]]) -> str:
    """All matchers of a selector, joined by commas, without its braces."""
    return ",".join(matcher(label, values) for label, values in sorted(labels.items()))


def range_selector(name: str, labels: Mapping[str, Iterable[str]], seconds: float) -> str:
    """``name{...}[Ns]``: the raw samples of the last ``seconds``. ``name`` comes from an operator's preset."""
    return f"{name}{{{matchers(labels)}}}[{max(1, round(seconds))}s]"
