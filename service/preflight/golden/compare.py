"""Two answers to one request held against each other, output by output. Pure.

What is compared depends on what it is: numbers within a tolerance, whole numbers and texts exactly, scores of classes
by their order too where the policy says that an output holds such. NaN equals NaN and an infinity itself.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.gates.golden import Tolerance
from service.preflight.golden.answers import INTEGERS, Output
from service.preflight.report import readable

DEFAULT = Tolerance(output="*")
LONGEST_TEXT = 40


class Kind(StrEnum):
    """What may differ, the gravest first."""

    ERROR = "error"
    NON_FINITE = "NaN or infinity"
    MISSING = "missing output"
    DTYPE = "type"
    SHAPE = "shape"
    VALUE = "value"
    RANKING = "ranking"

    @property
    def excused(self) -> bool:
        """Whether a rate of these may be allowed, and stable's own unsteadiness explains them away."""
        return self in (Kind.VALUE, Kind.RANKING)


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which one output differs."""

    kind: Kind
    output: str
    said: str
    """What stable answered and what the canary did, for people."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Two finite values and how far apart they are, within the tolerance or not."""

    of_tolerance: float
    """1 at the tolerance; infinity for any distance where none is allowed."""
    absolute: float
    output: str
    said: str

    def beyond(self, other: Distance | None) -> bool:
        """Whether this one is the larger, measured by tolerances: outputs have units of their own."""
        return other is None or (self.of_tolerance, self.absolute) > (other.of_tolerance, other.absolute)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that one answer has otherwise than the other."""

    differences: tuple[Difference, ...]
    new_outputs: tuple[str, ...]
    largest: Distance | None
    both_non_finite: bool
    """Some value is NaN or infinite in both answers alike."""
    ranked_n: int
    """Rows of class scores whose order was compared."""
    reordered_n: int
    """Of these, rows in another order."""


def compare(
    stable: Mapping[str, Output], canary: Mapping[str, Output], tolerances: Sequence[Tolerance] = ()
) -> Comparison:
    """How ``canary`` differs from ``stable``. Outputs that a tolerance ignores are as if they were not there."""
    differences: list[Difference] = []
    largest: Distance | None = None
    both_non_finite = False
    ranked_n = reordered_n = 0
    for name, ours in stable.items():
        tolerance = tolerance_of(name, tolerances)
        if tolerance.ignored:
            continue
        theirs = canary.get(name)
        if theirs is None:
            differences.append(Difference(Kind.MISSING, name, "is missing"))
            continue
        if said := _another_type(ours.dtype, theirs.dtype):
            differences.append(Difference(Kind.DTYPE, name, said))
        if ours.shape != theirs.shape:
            differences.append(Difference(Kind.SHAPE, name, f"shape {_shape(ours)} -> {_shape(theirs)}"))
            continue
        pair = _as_numbers(ours, theirs, tolerance)
        if pair is None:
            if not said:
                differences += _exactly(name, ours, theirs)
            continue
        a, b = pair
        differences += _non_finite(name, a, b, ours.shape)
        both_non_finite |= ours.dtype != "null" and bool(_same_non_finite(a, b).any())
        distance, over = _numbers(name, a, b, ours.shape, tolerance)
        if distance is not None and distance.beyond(largest):
            largest = distance
        if over is not None and not tolerance.ranking_only:
            differences.append(over)
        if tolerance.top_k is not None and ours.shape and ours.shape[-1] > 1 and a.size:
            ranked, reordered, difference = _ranking(name, a, b, ours.shape, tolerance, tolerance.top_k)
            ranked_n, reordered_n = ranked_n + ranked, reordered_n + reordered
            differences += [difference] if difference else []
    new = tuple(name for name in canary if name not in stable and not tolerance_of(name, tolerances).ignored)
    return Comparison(tuple(differences), new, largest, both_non_finite, ranked_n, reordered_n)


def tolerance_of(output: str, tolerances: Sequence[Tolerance]) -> Tolerance:
    """The first that matches, else the default."""
    # Brackets are part of names, such as boxes[0].
    return next(
        (one for one in tolerances if fnmatch.fnmatchcase(output, re.sub(r"([\[?])", r"[\1]", one.output))), DEFAULT
    )


def shown(text: Any) -> str:
    """An outside text for a line of ours: printable, cut, in quotes."""
    return f"'{readable(str(text), LONGEST_TEXT)}'"


def _another_type(ours: str, theirs: str) -> str:
    """Said when the types differ. How JSON writes a number is too little to tell of one answer: 1 may be a float."""
    told_by_json = {"integer", "number", "null", "empty"}
    if ours == theirs or {ours, theirs} <= told_by_json or "empty" in (ours, theirs):
        return ""
    return f"type {shown(ours)[1:-1]} -> {shown(theirs)[1:-1]}"


def _as_numbers(
    ours: Output, theirs: Output, tolerance: Tolerance
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Both as floats where a tolerance applies; None where they must be equal."""
    by_tolerance = ours.numeric or theirs.numeric or tolerance.output != "*"
    if not by_tolerance or not all(one.numeric or one.dtype in INTEGERS | {"integer"} for one in (ours, theirs)):
        return None
    try:
        return ours.values.astype(np.float64), theirs.values.astype(np.float64)
    except OverflowError:  # whole numbers beyond float64's range
        return None


def _exactly(name: str, ours: Output, theirs: Output) -> list[Difference]:
    unequal = np.flatnonzero(ours.values != theirs.values)
    if not unequal.size:
        return []
    first = int(unequal[0])
    said = f"{shown(ours.values[first])} -> {shown(theirs.values[first])} {_at(first, ours.shape)}"
    return [Difference(Kind.VALUE, name, f"{_of(unequal.size, ours.values.size)}: {said}")]


def _same_non_finite(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (np.isnan(a) & np.isnan(b)) | (np.isinf(a) & (a == b))
    return same


def _non_finite(name: str, a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> list[Difference]:
    """NaN and infinity that only one side has, or that are of another kind there."""
    unlike = ~(np.isfinite(a) & np.isfinite(b)) & ~_same_non_finite(a, b)
    found = []
    # That the canary is finite where stable was not is another value, and no worse.
    for kind, where in ((Kind.NON_FINITE, unlike & ~np.isfinite(b)), (Kind.VALUE, unlike & np.isfinite(b))):
        if n := int(np.count_nonzero(where)):
            first = int(np.argmax(where))
            found.append(
                Difference(kind, name, f"{_of(n, a.size)}: {a[first]:.6g} -> {b[first]:.6g} {_at(first, shape)}")
            )
    return found


def _numbers(
    name: str, a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...], tolerance: Tolerance
) -> tuple[Distance | None, Difference | None]:
    """The largest distance of finite values, and the difference where any lies beyond the tolerance."""
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.any():
        return None, None
    # Two huge values of either sign are infinitely far apart; and of no tolerance any distance is infinitely much.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        gap = np.where(finite, np.abs(a - b), 0.0)
        allowed = tolerance.absolute + tolerance.relative * np.abs(np.where(finite, a, 0.0))
        ratio = np.where(gap > 0, gap / allowed, 0.0)
    far = int(np.argmax(np.where(ratio == ratio.max(), gap, -1.0)))
    said = f"{a[far]:.6g} -> {b[far]:.6g} {_at(far, shape)}".rstrip()
    distance = Distance(float(ratio[far]), float(gap[far]), name, said)
    if not (n := int(np.count_nonzero(gap > allowed))):
        return distance, None
    return distance, Difference(Kind.VALUE, name, f"{_of(n, a.size)}, most {said}")


def _ranking(
    name: str, a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...], tolerance: Tolerance, top_k: int
) -> tuple[int, int, Difference | None]:
    """(rows compared, rows in another order, difference). Rows with NaN have no order and are told as such."""
    a, b = a.reshape(-1, shape[-1]), b.reshape(-1, shape[-1])
    ordered = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
    a, b = a[ordered], b[ordered]
    if not len(a):
        return 0, 0, None
    k = min(top_k, shape[-1])
    stables = np.argsort(-a, axis=1, kind="stable")[:, :k]
    canarys = np.argsort(-b, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(a, stables, axis=1)
    chosen = np.take_along_axis(a, canarys, axis=1)
    # The canary's i-th class must have had, on stable, the i-th score: ties may change places.
    with np.errstate(invalid="ignore"):
        swapped = (best != chosen) & ~(np.abs(best - chosen) <= tolerance.absolute + tolerance.relative * np.abs(best))
    rows = np.flatnonzero(swapped.any(axis=1))
    if not rows.size:
        return len(a), 0, None
    row = int(rows[0])
    rank = int(np.argmax(swapped[row]))
    said = f"{_of(rows.size, len(a), 'rows')}, rank {rank + 1}: class {stables[row, rank]} -> {canarys[row, rank]}"
    return len(a), int(rows.size), Difference(Kind.RANKING, name, said)


def _of(n: int, total: int, what: str = "values") -> str:
    return f"{n:,} of {total:,} {what}"


def _at(flat: int, shape: tuple[int, ...]) -> str:
    return f"at [{', '.join(str(int(i)) for i in np.unravel_index(flat, shape))}]" if shape else ""


def _shape(output: Output) -> str:
    shape = output.shape[:8]
    return f"[{', '.join(map(str, shape))}{', ...' if len(output.shape) > 8 else ''}]"
