"""The part of PromQL in which Serinus asks for sums, worked out step by step.

Aggregations, a few functions of ranges, arithmetic, comparisons that filter, ``and`` and ``or``: each as Prometheus
defines it. Whatever else is written is an error, as it would be to a store that does not know it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

Labels = Mapping[str, str]
Vector = list[tuple[Labels, float]]
Range = list[tuple[Labels, Sequence[tuple[float, float]]]]
Key = frozenset[tuple[str, str]]
Select = Callable[[str, float, float], Range]
"""(selector, after, until): the series that it selects, with their samples in ``(after, until]``."""

NAME = "__name__"

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<range>(?P<selector>[a-zA-Z_:][\w:]*\{(?:[^"{}]|"(?:[^"\\\n]|\\.)*")*\})
        \[(?P<reach>\d+)(?P<unit>ms|s)\](?:\s+offset\s+(?P<offset>\d+)(?P<offset_unit>ms|s))?)
    | (?P<number>\d+(?:\.\d+)?)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<word>[a-zA-Z_]\w*)
    | (?P<sign>==|>=|[-+<(),])
    )""",
    re.VERBOSE | re.DOTALL,
)


class BadQuery(ValueError):
    """The query is none that the lab knows; answered as Prometheus answers a parse error."""


def _resets(values: Sequence[float]) -> float:
    return float(sum(now < before for before, now in pairwise(values)))


_OVER_TIME: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last_over_time": lambda values: values[-1],
    "sum_over_time": lambda values: float(sum(values)),
    "count_over_time": lambda values: float(len(values)),
    "resets": _resets,
}
_AGGREGATIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "sum": lambda values: float(sum(values)),
    "count": lambda values: float(len(values)),
    "min": lambda values: min((v for v in values if not math.isnan(v)), default=math.nan),
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "==": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
}


def evaluate(text: str, at_s: float, select: Select) -> Vector:
    """What the expression is at this moment; raises BadQuery for what is not known here."""
    reader = _Reader(text, at_s, select)
    found = reader.any_of()
    if reader.token is not None or isinstance(found, float):
        raise BadQuery(f"the lab does not know {text[:80]!r}")
    return found


class _Reader:
    """Reads and works out in one go; a method for each level of precedence, the loosest first."""

    def __init__(self, text: str, at_s: float, select: Select) -> None:
        self._text, self._at_s, self._select = text, at_s, select
        self._place = 0
        self.token: re.Match[str] | None = None
        self._next()

    def any_of(self) -> Vector | float:
        """``a or b``: all of a, and of b what has other labels than any of a."""
        left = self._all_of()
        while self._took("or"):
            one, two = _vector(left), _vector(self._all_of())
            known = {_key(labels) for labels, _ in one}
            left = [*one, *(element for element in two if _key(element[0]) not in known)]
        return left

    def _all_of(self) -> Vector | float:
        left = self._compared()
        while self._took("and"):
            one, two = _vector(left), _vector(self._compared())
            known = {_key(labels) for labels, _ in two}
            left = [element for element in one if _key(element[0]) in known]
        return left

    def _compared(self) -> Vector | float:
        left = self._added()
        while (sign := self._sign()) in _COMPARISONS:
            self._next()
            holds = _COMPARISONS[sign]
            pairs = _matched(_vector(left), self._added())
            left = [(labels, a) for labels, a, b in pairs if holds(a, b)]
        return left

    def _added(self) -> Vector | float:
        left = self._one()
        while (sign := self._sign()) in ("+", "-"):
            self._next()
            pairs = _matched(_vector(left), self._one())
            left = [(_unnamed(labels), a + b if sign == "+" else a - b) for labels, a, b in pairs]
        return left

    def _one(self) -> Vector | float:
        token = self.token
        if token is None:
            raise self._bad()
        if token["number"]:
            self._next()
            return float(token["number"])
        if self._took("("):
            inside = self.any_of()
            self._expect(")")
            return inside
        word = token["word"]
        self._next()
        if word in _AGGREGATIONS:
            return self._aggregated(_AGGREGATIONS[word])
        self._expect("(")
        if word in _OVER_TIME:
            found = self._over_time(_OVER_TIME[word], named=word == "last_over_time")
        elif word == "floor":
            found = [(_unnamed(labels), float(v // 1)) for labels, v in _vector(self.any_of())]
        elif word == "label_replace":
            found = self._labelled()
        else:
            raise self._bad()
        self._expect(")")
        return found

    def _over_time(self, work: Callable[[Sequence[float]], float], *, named: bool) -> Vector:
        token = self.token
        if token is None or not token["range"]:
            raise self._bad()
        self._next()
        until_s = self._at_s - (_seconds(token["offset"], token["offset_unit"]) if token["offset"] else 0.0)
        # Prometheus counts in whole milliseconds.
        after_s = round(until_s - _seconds(token["reach"], token["unit"]), 3)
        ranged = self._select(token["selector"], after_s, round(until_s, 3))
        listed = ((labels, [value for _, value in samples]) for labels, samples in ranged if samples)
        return [(labels if named else _unnamed(labels), work(values)) for labels, values in listed]

    def _aggregated(self, work: Callable[[Sequence[float]], float]) -> Vector:
        by = self._took("by")
        if not by and not self._took("without"):
            raise self._bad()
        self._expect("(")
        names: list[str] = []
        while not self._took(")"):
            if self.token is None or not self.token["word"]:
                raise self._bad()
            names.append(self.token["word"])
            self._next()
            self._took(",")
        self._expect("(")
        groups: dict[Key, list[float]] = defaultdict(list)
        for labels, value in _vector(self.any_of()):
            kept = {k: v for k, v in _unnamed(labels).items() if (k in names) == by and v}
            groups[_key(kept)].append(value)
        self._expect(")")
        return [(dict(key), work(values)) for key, values in groups.items()]

    def _labelled(self) -> Vector:
        """Only the form that puts a label on everything."""
        found = _vector(self.any_of())
        given: list[str] = []
        for _ in range(4):
            self._expect(",")
            if self.token is None or not self.token["string"]:
                raise self._bad()
            given.append(self.token["string"][1:-1])
            self._next()
        if given[2:] != ["", ""] or "\\" in given[1]:
            raise self._bad()
        return [({**labels, given[0]: given[1]}, value) for labels, value in found]

    def _sign(self) -> str:
        return (self.token["sign"] or "") if self.token is not None else ""

    def _took(self, wanted: str) -> bool:
        if self.token is None or wanted not in (self.token["word"], self.token["sign"]):
            return False
        self._next()
        return True

    def _expect(self, wanted: str) -> None:
        if not self._took(wanted):
            raise self._bad()

    def _next(self) -> None:
        if not self._text[self._place :].strip():
            self.token = None
            return
        self.token = _TOKEN.match(self._text, self._place)
        if self.token is None:
            raise self._bad()
        self._place = self.token.end()

    def _bad(self) -> BadQuery:
        return BadQuery(f"the lab does not know {self._text[max(0, self._place - 40) :][:80]!r}")


def _vector(found: Vector | float) -> Vector:
    if isinstance(found, float):
        raise BadQuery("a number stands where series are needed")
    return found


def _matched(left: Vector, right: Vector | float) -> list[tuple[Labels, float, float]]:
    """Pairs of elements with the same labels, the name apart; one number goes with every element."""
    if isinstance(right, float):
        return [(labels, value, right) for labels, value in left]
    by_key = {_key(_unnamed(labels)): value for labels, value in right}
    keyed = ((labels, value, by_key.get(_key(_unnamed(labels)))) for labels, value in left)
    return [(labels, a, b) for labels, a, b in keyed if b is not None]


def _unnamed(labels: Labels) -> dict[str, str]:
    return {k: v for k, v in labels.items() if k != NAME}


def _key(labels: Labels) -> Key:
    return frozenset(labels.items())


def _seconds(number: str, unit: str) -> float:
    return int(number) / (1000 if unit == "ms" else 1)
