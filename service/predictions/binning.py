"""From predictions to categories whose counts can be compared: pure.

Numbers are counted twice over. First in *cells*, which are fine and the same for ever: a number's sign, exponent and
eight bits of its fraction (steps of .2 to .4 %), for scores from 0 and from 1 alike, so that .9999 and .99999 differ.
So counting needs to know nothing of a rollout. Later, when a rollout's first window is read, *bins* are chosen from
what stable has shown until then (deciles and both tails, ``analyzers.inputs``) and frozen for that rollout; bounds of
bins are bounds of cells, so that going from cells to bins is exact.

Which bins are chosen moves only how soon a shift is found, never how often a good release is rolled back: they are the
same for both arms and fixed before what they judge.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import msgspec
import numpy as np

from analyzers.inputs import SCORE_LEVELS

Category: TypeAlias = str | int
"""A class's name, or the cell of a number."""

NOT_A_NUMBER: Final = "(not a number)"
OTHER: Final = "(other)"
"""Classes beyond the bound of what is kept of one service in one batch."""

LEAST_NUMBERS: Final = 100
"""Bins are chosen from so many numbers of stable at least, as in ``analyzers.inputs``."""

_DOUBLE, _WHOLE = struct.Struct("<d"), struct.Struct("<q")
_BITS: Final = 52 - 8
_LEAST, _MOST = 2.0**-40, 2.0**100
"""Smaller numbers count as zero and larger ones as infinite."""

_SCORE_LEAST: Final = 2.0**-24


def cell_of_value(number: float) -> int:
    """The cell of a finite number; cells ascend with the numbers, 0 is that of zero."""
    size = abs(number)
    if size < _LEAST:
        return 0
    cell: int = (_WHOLE.unpack(_DOUBLE.pack(min(size, _MOST)))[0] >> _BITS) - _ZERO
    return cell if number > 0 else -cell


def cell_of_score(score: float) -> int:
    """The cell of a number from 0 to 1, as fine near 1 as near 0; others count as the nearer end."""
    if score >= 0.5:
        return _SCORES_TOP - _near_zero(1.0 - score)
    return _near_zero(score)


def _near_zero(score: float) -> int:
    if score < _SCORE_LEAST:
        return 0
    cell: int = (_WHOLE.unpack(_DOUBLE.pack(score))[0] >> _BITS) - _SCORE_ZERO
    return cell


_ZERO: Final = (_WHOLE.unpack(_DOUBLE.pack(_LEAST))[0] >> _BITS) - 1
_SCORE_ZERO: Final = (_WHOLE.unpack(_DOUBLE.pack(_SCORE_LEAST))[0] >> _BITS) - 1
_SCORES_TOP: Final = 2 * _near_zero(0.5)


def end_of_value(cell: int) -> float:
    """The upper end of a cell of ``cell_of_value``."""
    if cell == 0:
        return _LEAST
    if cell > 0:
        return float(_DOUBLE.unpack(_WHOLE.pack((cell + 1 + _ZERO) << _BITS))[0])
    return -float(_DOUBLE.unpack(_WHOLE.pack((-cell + _ZERO) << _BITS))[0])


def end_of_score(cell: int) -> float:
    """The upper end of a cell of ``cell_of_score``."""
    if cell >= _SCORES_TOP // 2:
        near = _SCORES_TOP - cell
        return 1.0 if near == 0 else 1.0 - float(_DOUBLE.unpack(_WHOLE.pack((near + _SCORE_ZERO) << _BITS))[0])
    return float(_DOUBLE.unpack(_WHOLE.pack((cell + 1 + _SCORE_ZERO) << _BITS))[0])


@dataclass(frozen=True, slots=True)
class Bins:
    """Frozen bins of numbers. cells : the last cell of each bin but the last, ascending. ends : where those end."""

    cells: tuple[int, ...]
    ends: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The bins' names, in order, and that of what is no number."""
        shown = [f"{end:.9g}" for end in self.ends]
        between = (f"{low} to {high}" for low, high in pairwise(shown))
        return (f"below {shown[0]}", *between, f"from {shown[-1]}", NOT_A_NUMBER)

    def counts(self, by_cell: Mapping[Category, int]) -> tuple[int, ...]:
        """Counts by bin of counts by cell, in the order of ``names``."""
        out = [0] * (len(self.cells) + 2)
        for cell, n in by_cell.items():
            out[bisect_left(self.cells, cell) if isinstance(cell, int) else -1] += n
        return tuple(out)

    def to_bytes(self) -> bytes:
        """As it is kept for the rollout."""
        return msgspec.json.encode([self.cells, self.ends])

    @staticmethod
    def from_bytes(kept: bytes) -> Bins:
        """What ``to_bytes`` gave; ValueError for anything else."""
        try:
            cells, ends = msgspec.json.decode(kept, type=tuple[tuple[int, ...], tuple[float, ...]])
        except msgspec.MsgspecError as error:
            raise ValueError(f"kept bins are not readable: {error}") from error
        return Bins(cells, ends)


def freeze(by_cell: Mapping[Category, int], *, scores: bool) -> Bins | None:
    """Bins from counts by cell of stable; None for fewer than ``LEAST_NUMBERS`` numbers.

    Levels that fall into one cell (many scores are exactly 0 or 1) give one bound.
    """
    listed = sorted((cell, n) for cell, n in by_cell.items() if isinstance(cell, int))
    total = sum(n for _, n in listed)
    if total < LEAST_NUMBERS:
        return None
    cells = np.array([cell for cell, _ in listed])
    reached = np.cumsum([n for _, n in listed])
    # The smallest cell up to which at least this share lies: numpy's "inverted_cdf" of the numbers written out.
    wanted = np.ceil(np.array(SCORE_LEVELS) * total - 1e-9)
    bounds = np.unique(cells[np.searchsorted(reached, wanted)])
    kept = tuple(int(cell) for cell in bounds)
    end = end_of_score if scores else end_of_value
    return Bins(kept, tuple(end(cell) for cell in kept))


def distance(numbers: Sequence[float], centroid: Sequence[float]) -> float:
    """How far an embedding lies from a frozen centroid (Euclidean); NaN where they differ in length."""
    return math.dist(numbers, centroid) if len(numbers) == len(centroid) else math.nan
