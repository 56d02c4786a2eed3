"""What a store says over Prometheus' HTTP API, as values. Pure and total: any bytes give an ``Answer``.

An answer that is partly unreadable is a failure as a whole, because counts that silently lack a series look healthy.
The shape is checked while it is decoded, in C: a Python step for each sample is what reading a large answer would
cost most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import msgspec

from service.sources.counter import Series
from service.sources.lines import shown

METRIC_STORE = "the metric store"

DIVISIBLE_STATUS = (413, 422)
"""Statuses that say the question was too much or went wrong while it ran: a smaller one may be answered.

422 is Prometheus' "execution": also its limit on samples in memory, and any fault of one expression in a bundle.
"""


Pair: TypeAlias = tuple[float, float]
"""(seconds since the epoch, value); the value is written as a string."""


class _Series(msgspec.Struct, gc=False):
    metric: dict[str, str]
    values: list[Pair] | msgspec.UnsetType = msgspec.UNSET


class _Element(msgspec.Struct, gc=False):
    metric: dict[str, str]
    value: Pair | msgspec.UnsetType = msgspec.UNSET


class _Data(msgspec.Struct):
    kind: str = msgspec.field(name="resultType")
    result: msgspec.Raw


class _Body(msgspec.Struct):
    status: Literal["success", "error"]
    data: _Data | None = None
    warnings: Any = None
    error_kind: str = msgspec.field(name="errorType", default="error")
    error: str = ""


_BODY = msgspec.json.Decoder(_Body)
# Not strict: that is, a number may be written as a string.
_MATRIX = msgspec.json.Decoder(list[_Series], strict=False)
_VECTOR = msgspec.json.Decoder(list[_Element], strict=False)
_SCALAR = msgspec.json.Decoder(Pair, strict=False)

_PLUS_INF = b'"+Inf"]'
"""How Prometheus ends a pair whose value is infinite. The decoder knows infinity only without its sign."""


class Outcome(StrEnum):
    """How asking went: the whole set, so that it can be counted by it."""

    OK = "ok"
    WARNING = "warning"  # an answer that may be partial
    TIMEOUT = "timeout"  # none in time
    AWAY = "away"  # no connection, 5xx or 429
    REFUSED = "refused"  # the credentials are not taken
    REJECTED = "rejected"  # this one question is not answered
    TOO_LARGE = "too_large"  # more bytes or series than are read
    MALFORMED = "malformed"  # something that is no Prometheus answer
    EARLY = "early"  # by the store's own clock the window is not over
    OPEN = "open"  # not asked, because the store has been failing

    @property
    def store_failed(self) -> bool:
        """True when it speaks against the store and not against one question."""
        return self in (Outcome.TIMEOUT, Outcome.AWAY, Outcome.MALFORMED)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said to one instant query."""

    series: tuple[Series, ...] = ()
    """Of a matrix: every series with its samples."""
    numbers: tuple[tuple[Mapping[str, str], float], ...] = ()
    """Of a vector or scalar: every element's labels and value."""
    streams: tuple[tuple[Mapping[str, str], str], ...] = ()
    """Of a log store: streams by their labels, each with one of its lines where lines were asked for."""
    native_n: int = 0
    """Series of which there are only native histograms."""
    warning: str = ""
    failure: str = ""
    """Why there is no answer; empty when there is one."""
    divisible: bool = False
    """The failure may be the question's size: asking for less may help."""
    outcome: Outcome = Outcome.OK


def parse(body: bytes, status: int, max_series: int, *, called: str = METRIC_STORE) -> Answer:
    """The answer in ``body``; a failure for anything that is not wholly a Prometheus answer.

    called : what people call the store, for sentences
    """
    if status in (401, 403):
        return Answer(failure=f"{called} refuses the credentials ({status})", outcome=Outcome.REFUSED)
    away = status >= 500 or status == 429
    try:
        answer = _BODY.decode(body)
        if answer.status == "error":
            return Answer(
                failure=f"{called} says {status}, {shown(f'{answer.error_kind}: {answer.error}', 300)}",
                divisible=status in DIVISIBLE_STATUS,
                outcome=Outcome.AWAY if away else Outcome.REJECTED,
            )
        if status == 200 and answer.data is not None:
            return _success(answer.data, _warning(answer.warnings), max_series, called)
    except (ValueError, RecursionError):
        pass
    return Answer(
        failure=f"{called} answered {status} with something that is no Prometheus answer",
        outcome=Outcome.AWAY if away else Outcome.MALFORMED,
    )


def _success(data: _Data, warning: str, max_series: int, called: str) -> Answer:
    """The answer in its data; raises ValueError for any other shape."""
    outcome = Outcome.WARNING if warning else Outcome.OK
    raw = bytes(data.result)
    if _PLUS_INF in raw:
        raw = raw.replace(_PLUS_INF, b'"Infinity"]')
    series: tuple[Series, ...] = ()
    numbers: tuple[tuple[Mapping[str, str], float], ...] = ()
    match data.kind:
        case "matrix":
            listed = _MATRIX.decode(raw)
            n = len(listed)
            series = tuple(Series(one.metric, one.values) for one in listed if one.values is not msgspec.UNSET)
        case "vector":
            elements = _VECTOR.decode(raw)
            n = len(elements)
            numbers = tuple((one.metric, one.value[1]) for one in elements if one.value is not msgspec.UNSET)
        case "scalar":
            return Answer(numbers=(({}, _SCALAR.decode(raw)[1]),), warning=warning, outcome=outcome)
        case _:
            said = f"{called} answered with a {data.kind[:40]!r}, which is no number"
            return Answer(failure=said, outcome=Outcome.MALFORMED)
    if n > max_series:
        too_many = f"{called} answered with {n} series, more than the {max_series} allowed"
        return Answer(failure=too_many, divisible=True, outcome=Outcome.TOO_LARGE)
    native_n = n - len(series) - len(numbers)
    return Answer(series=series, numbers=numbers, native_n=native_n, warning=warning, outcome=outcome)


def _warning(given: Any) -> str:
    if not given:
        return ""
    return shown("; ".join(str(w) for w in given) if isinstance(given, list) else str(given), 500)
