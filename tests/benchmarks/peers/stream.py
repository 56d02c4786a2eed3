"""One stream of windows as arrays over (rollouts, windows), and the per-minute series that some tools ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analyzers import Window
from tests.calibration.streams import EDGES_S, Law, windows

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

_RATIO = EDGES_S[1] / EDGES_S[0]
BOUNDS_S: Array = np.concatenate([[EDGES_S[0] / _RATIO], EDGES_S, [EDGES_S[-1] * _RATIO]])
"""(K + 1,) ends of the buckets, seconds; the two open ones are taken to be as wide as the others."""
_WIDTH = np.log(BOUNDS_S[1:] / BOUNDS_S[:-1])
MEAN_S: Array = np.diff(BOUNDS_S) / _WIDTH
"""(K,) mean latency in a bucket, where requests are log-uniform inside it."""
SQUARE_S2: Array = np.diff(BOUNDS_S**2) / (2 * _WIDTH)
"""(K,) mean square of it, likewise."""


@dataclass(frozen=True)
class Arm:
    """Counts of one arm: latency (R, T, K) by bucket, total and failed (R, T), classes (R, T, C)."""

    latency: Whole
    total: Whole
    failed: Whole
    classes: Whole

    @cached_property
    def moments(self) -> tuple[Array, Array]:
        """(sum, sum of squares) of latency in each window, (R, T), seconds and seconds squared."""
        return self.latency @ MEAN_S, self.latency @ SQUARE_S2

    def quantile(self, q: float) -> Array:
        """(R, T) the ``q`` quantile of latency in each window, seconds; NaN without requests."""
        return quantile(self.latency, q)

    @property
    def error_rate(self) -> Array:
        """(R, T) failed share of each window's requests, NaN without requests."""
        return np.where(self.total > 0, self.failed / np.maximum(self.total, 1), np.nan)


@dataclass(frozen=True)
class Stream:
    """What every tool gets: the windows as Serinus reads them, and the same counts as arrays."""

    law: Law
    windows: Sequence[Window]
    canary: Arm
    stable: Arm
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rollouts, windows)."""
        rollouts, length = self.canary.total.shape
        return rollouts, length

    @cached_property
    def baseline(self) -> Arm:
        """Stable thinned to the canary's requests in each window, drawn without replacement.

        It stands for the second deployment of the stable version, as large as the canary, that some tools ask for.
        """
        rng = np.random.default_rng([self.seed, 1])
        size = np.minimum(self.canary.total, self.stable.total)
        failed = rng.hypergeometric(self.stable.failed, self.stable.total - self.stable.failed, size)
        return Arm(drawn(rng, self.stable.latency, size), size, failed, drawn(rng, self.stable.classes, size))


def gather(law: Law, rollouts: int, length: int, seed: int) -> Stream:
    """Draw the stream once and stack it."""
    seen = list(windows(law, rollouts, length, seed))
    arms = []
    for arm in ("canary", "stable"):
        arms.append(
            Arm(
                np.stack([getattr(w.latency, arm) for w in seen], axis=1),
                np.stack([getattr(w.errors, f"{arm}_total") for w in seen], axis=1),
                np.stack([getattr(w.errors, arm) for w in seen], axis=1),
                np.stack([getattr(w.predictions, arm) for w in seen], axis=1),
            )
        )
    return Stream(law, seen, arms[0], arms[1], seed)


def quantile(counts: Whole, q: float) -> Array:
    """(...) the ``q`` quantile, seconds, of requests counted by bucket (..., K); NaN where there are none."""
    upto = np.cumsum(counts, axis=-1)
    total = upto[..., -1]
    wanted = q * total
    place = np.minimum((upto < wanted[..., None]).sum(-1), counts.shape[-1] - 1)
    inside = np.take_along_axis(counts, place[..., None], -1)[..., 0]
    before = np.take_along_axis(upto, place[..., None], -1)[..., 0] - inside
    part = (wanted - before) / np.maximum(inside, 1)
    value: Array = np.where(total > 0, BOUNDS_S[place] * np.exp(part * _WIDTH[place]), np.nan)
    return value


def drawn(rng: np.random.Generator, counts: Whole, size: Whole) -> Whole:
    """(..., K) counts of ``size`` (...) requests drawn without replacement from those of ``counts`` (..., K)."""
    out = np.zeros_like(counts)
    left, rest = size.copy(), counts.sum(-1)
    for k in range(counts.shape[-1]):
        rest = rest - counts[..., k]
        out[..., k] = rng.hypergeometric(counts[..., k], rest, left)
        left = left - out[..., k]
    return out
