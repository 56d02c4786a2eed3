"""What a store says over Prometheus' HTTP API, as values. Pure and total: any bytes give an ``Answer``.

An answer that is partly unreadable is a failure as a whole, because counts that silently lack a series look healthy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.sources.counter import Series

DIVISIBLE_STATUS = (413, 422)
"""Statuses that say the question was too much or went wrong while it ran: a smaller one may be answered.

422 is Prometheus' "execution": also its limit on samples in memory, and any fault of one expression in a bundle.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the store said to one instant query."""

    series: tuple[Series, ...] = ()
    """Of a matrix: every series with its samples."""
    numbers: tuple[tuple[Mapping[str, str], float], ...] = ()
    """Of a vector or scalar: every element's labels and value."""
    native_n: int = 0
    """Series of which there are only native histograms."""
    warning: str = ""
    failure: str = ""
    """Why there is no answer; empty when there is one."""
    divisible: bool = False
    """The failure may be the question's size: asking for less may help."""


def parse(body: bytes, status: int, *, max_series: int) -> Answer:
    """The answer in ``body``; a failure for anything that is not wholly a Prometheus answer."""
    if status in (401, 403):
        return Answer(failure=f"the metric store refuses the credentials ({status})")
    nonsense = f"the metric store answered {status} with something that is no Prometheus answer"
    try:
        answer = json.loads(body)
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            return Answer(failure=nonsense)
        if answer["status"] == "error":
            said = f"{answer.get('errorType', 'error')}: {answer.get('error', '')}"[:300]
            return Answer(failure=f"the metric store says {status}, {said}", divisible=status in DIVISIBLE_STATUS)
        if status != 200:
            return Answer(failure=nonsense)
        warning = _warning(answer.get("warnings"))
        kind, result = answer["data"]["resultType"], answer["data"]["result"]
        if not isinstance(result, list):
            return Answer(failure=nonsense)
        if kind != "scalar" and len(result) > max_series:
            too_many = f"the metric store answered with {len(result)} series, more than the {max_series} allowed"
            return Answer(failure=too_many, divisible=True)
        match kind:
            case "matrix":
                series = tuple(Series(_labels(one), _samples(one["values"])) for one in result if "values" in one)
                return Answer(series=series, native_n=len(result) - len(series), warning=warning)
            case "vector":
                numbers = tuple((_labels(one), float(one["value"][1])) for one in result if "value" in one)
                return Answer(numbers=numbers, native_n=len(result) - len(numbers), warning=warning)
            case "scalar":
                return Answer(numbers=(({}, float(result[1])),), warning=warning)
            case _:
                return Answer(failure=f"the metric store answered with a {str(kind)[:40]!r}, which is no number")
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return Answer(failure=nonsense)


def _warning(given: Any) -> str:
    if not given:
        return ""
    return "; ".join(str(w) for w in given)[:500] if isinstance(given, list) else str(given)[:500]


def _labels(one: Mapping[str, Any]) -> dict[str, str]:
    labels = one["metric"]
    if not isinstance(labels, dict):
        raise TypeError("labels that are no object")
    for value in labels.values():
        if not isinstance(value, str):
            raise TypeError("a label value that is no string")
    return labels


def _samples(pairs: Any) -> list[list[float]]:
    """The pairs with both parts made floats, in place: new containers are what parsing a large answer costs most."""
    if not isinstance(pairs, list):
        raise TypeError("samples that are no list")
    for pair in pairs:
        if not isinstance(pair, list):
            raise TypeError("a sample that is no pair")
        at, value = pair
        pair[0], pair[1] = float(at), float(value)
        if not -math.inf < pair[0] < math.inf:
            raise ValueError("a sample without a moment")
    return pairs
