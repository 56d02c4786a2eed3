"""PromQL from names as data. Every matcher in the service is written here, so that no name can become grammar."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# Exactly what RE2 needs: a store looks literals up in its index only where it sees that they are some.
_SPECIAL = re.compile(r"([\\.+*?()|\[\]{}^$])")

ASK_LABEL = "serinus_ask"
"""Put on every result of a bundle, so that the answer can be told apart again."""

SOUND = "sound"

EXACT_BELOW = 2**53
"""Whole numbers up to here are exact as a double, and so is every sum that stays below."""


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


def duration(seconds: float) -> str:
    """``60s``, or milliseconds where it is no whole number of seconds."""
    ms = round(1000 * seconds)
    return f"{ms}ms" if ms % 1000 else f"{ms // 1000}s"


def instant_selector(names: str | Sequence[str], labels: Mapping[str, Iterable[str]]) -> str:
    """``name{...}``. Names come from an operator's preset; several become one selector on ``__name__``."""
    listed = [names] if isinstance(names, str) else sorted(set(names))
    if len(listed) == 1:
        return f"{listed[0]}{{{matchers(labels)}}}"
    return f"{{{matcher('__name__', listed)},{matchers(labels)}}}"


def range_selector(names: str | Sequence[str], labels: Mapping[str, Iterable[str]], seconds: float) -> str:
    """``name{...}[Ns]``: the raw samples of the last ``seconds``, rounded up."""
    return f"{instant_selector(names, labels)}[{max(1, math.ceil(seconds))}s]"


def bundle(asked: Sequence[tuple[str, float]]) -> str:
    """Several expressions, each at its own moment, as one instant query; every result carries its place in ASK_LABEL.

    asked : (expression, seconds since the epoch). The expressions must give instant vectors.
    The subquery of one millisecond does nothing but evaluate at the moment that ``@`` names.
    """
    return " or ".join(
        f'label_replace(last_over_time(({text})[1ms:1ms] @ {at_s:.3f}), "{ASK_LABEL}", "{place}", "", "")'
        for place, (text, at_s) in enumerate(asked)
    )


def sums(
    selected: str,
    *,
    keys: Sequence[str],
    by: Sequence[str],
    reach_s: float,
    length_s: float,
    fresh_s: float,
    cells: bool,
) -> str:
    """How much counters grew until the moment of the query, summed up ``by`` labels; only where that is exact.

    The last values before a window's end are summed up, and those before its start taken off. That is the growth of
    each series exactly where none of them began in the window, none fell, and every sample is a number that a double
    holds without loss. So beside the sums, each group of ``keys`` for which all of this holds has an element whose
    ASK_LABEL is SOUND. A series that is there at the start is there at the end, because the end's range covers the
    start's; so equal counts mean the same series.

    selected : the selector without its range
    reach_s : from the moment of the query back to the oldest sample that is looked at
    length_s : the window's length; what lies between it and ``reach_s`` is where the last sample before it is sought
    fresh_s : a group whose newest sample is older than this is not sound
    cells : the series are buckets by ``le``. The value of SOUND is then the fewest buckets that any histogram of the
        group has: where that is the number of sums, all of them have the same bounds.
    """
    at_end = f"{selected}[{duration(reach_s)}]"
    at_start = f"{selected}[{duration(reach_s - length_s)}] offset {duration(length_s)}"
    group, apart = f"by ({', '.join(keys)})", f"by ({', '.join(by)})"
    sound = (
        f"sum {group} (resets({at_end}) + 1) == count {group} (last_over_time({at_start}) >= 0)"
        f" and sum {group} (sum_over_time({at_end})) < {EXACT_BELOW}"
        f" and count {group} (count_over_time({selected}[{duration(fresh_s)}]))"
    )
    if cells:
        sound = f"min {group} (count without (le) (last_over_time({at_end}))) and {sound}"
    return (
        f"sum {apart} (floor(last_over_time({at_end}))) - sum {apart} (floor(last_over_time({at_start})))"
        f' or label_replace({sound}, "{ASK_LABEL}", "{SOUND}", "", "")'
    )
