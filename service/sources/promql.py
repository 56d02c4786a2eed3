"""PromQL from names as data. Every matcher in the service is written here, so that no name can become grammar."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$-])")

ASK_LABEL = "serinus_ask"
"""Put on every result of a bundle, so that the answer can be told apart again."""


def string(value: str) -> str:
    """A PromQL string literal that means exactly ``value``; raises ValueError for what is no text (UTF-8)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} is no text that a metric store can hold") from None
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


def selector(labels: Mapping[str, str]) -> str:
    """The matchers of one arm."""
    return matchers({label: [value] for label, value in labels.items()})


def range_selector(names: str | Sequence[str], labels: Mapping[str, Iterable[str]], seconds: float) -> str:
    """``name{...}[Ns]``: the raw samples of the last ``seconds``, rounded up. Names come from an operator's preset.

    Several names become one selector on ``__name__``.
    """
    listed = [names] if isinstance(names, str) else sorted(set(names))
    window = f"[{max(1, math.ceil(seconds))}s]"
    if len(listed) == 1:
        return f"{listed[0]}{{{matchers(labels)}}}{window}"
    return f"{{{matcher('__name__', listed)},{matchers(labels)}}}{window}"


def bundle(asked: Sequence[tuple[str, float]]) -> str:
    """Several expressions, each at its own moment, as one instant query; every result carries its place in ASK_LABEL.

    asked : (expression, seconds since the epoch). The expressions must give instant vectors.
    The subquery of one millisecond does nothing but evaluate at the moment that ``@`` names.
    """
    return " or ".join(
        f'label_replace(last_over_time(({text})[1ms:1ms] @ {at_s:.3f}), "{ASK_LABEL}", "{place}", "", "")'
        for place, (text, at_s) in enumerate(asked)
    )
