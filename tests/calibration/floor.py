"""The floor of class moves: how soon one finds them who knows the shares, which pair of classes and how much.

A CUSUM of the true log likelihood ratio of the canary's classes, on its own, whose line is crossed in 1 % of good
rollouts (Page 1954, optimal for a known change; reference statistics.md 1.5). The onset is not known to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peers.oracle import cusum
from tests.calibration.streams import Law

Array = NDArray[np.float64]

ROLLOUTS = 20_000
RATE = 0.01
"""Of false alarms in a whole rollout, as for the monitor."""


def floor_windows(law: Law, length: int, *, seed: int = 1) -> float:
    """Median windows from the fault's onset until it is found, of rollouts that had no alarm before."""
    rng = np.random.default_rng(seed)
    line = np.quantile(cusum(_llr(law, length, length, rng)).max(1), 1 - RATE)
    crossed = cusum(_llr(law, length, law.onset, rng)) >= line
    first = np.where(crossed.any(1), crossed.argmax(1) + 1.0, np.inf)
    late = first > law.onset
    return float(np.quantile(first[late] - law.onset, 0.5, method="inverted_cdf"))


def _llr(law: Law, length: int, onset: int, rng: np.random.Generator) -> Array:
    """(R, T) nats of each window; only the two classes of the move say anything."""
    usual, moved = law.class_shares
    n = rng.poisson(law.canary, (ROLLOUTS, length))
    fault = np.arange(length) >= onset
    out = np.zeros(n.shape)
    left, rest = n, np.ones(length)
    for j in range(2):
        share = np.where(fault, moved[j], usual[j])
        x = rng.binomial(left, np.minimum(share / rest, 1.0))
        out += x * np.log(moved[j] / usual[j])
        left, rest = left - x, rest - share
    return out
