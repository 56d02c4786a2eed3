"""Seeded streams of windows: one law, with the nulls and faults that the promise is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from analyzers import Categories, Counts, Histogram, Window

EDGES_S = np.geomspace(0.005, 5.0, 19)
CLASSES = np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01])


@dataclass(frozen=True)
class Law:
    """What happens. Rates are requests a window."""

    canary: float = 60.0
    stable: float = 540.0
    slower: float = 1.0
    tail_share: float = 0.01
    errors: float = 0.001
    canary_errors: float | None = None
    class_move: float = 0.0
    ramp: bool = False
    """The canary's share goes 5, 10, 25, 50 % while both arms get 20 % slower."""
    bursts: bool = False
    """In a tenth of the windows both arms fail ten times as often."""


def windows(law: Law, rollouts: int, length: int, seed: int) -> Iterator[Window]:
    """``length`` windows of ``rollouts`` rollouts side by side."""
    rng = np.random.default_rng(seed)
    moved = CLASSES.copy()
    moved[0] -= law.class_move
    moved[1] += law.class_move
    total = law.canary + law.stable
    for t in range(length):
        share = (0.05, 0.1, 0.25, 0.5)[min(3, 4 * t // length)] if law.ramp else law.canary / total
        load = 1.0 + 0.2 * t / length if law.ramp else 1.0
        n_c, n_s = rng.poisson(total * share, rollouts), rng.poisson(total * (1 - share), rollouts)
        burst = np.where(rng.random(rollouts) < 0.1, 10.0, 1.0) if law.bursts else np.ones(rollouts)
        canary_errors = law.errors if law.canary_errors is None else law.canary_errors
        yield Window(
            Histogram(
                EDGES_S,
                rng.multinomial(n_c, _buckets(0.05 * load * law.slower, law.tail_share)),
                rng.multinomial(n_s, _buckets(0.05 * load, 0.01)),
            ),
            Counts(
                rng.binomial(n_c, np.minimum(1.0, canary_errors * burst)),
                n_c,
                rng.binomial(n_s, np.minimum(1.0, law.errors * burst)),
                n_s,
            ),
            Categories(rng.multinomial(n_c, moved), rng.multinomial(n_s, CLASSES)),
        )


def _buckets(median_s: float, tail_share: float) -> np.ndarray:
    """Shares by bucket: a log-normal body with spread 0.6, and a tail eight times as slow."""
    below = (1 - tail_share) * norm.cdf(np.log(EDGES_S / median_s) / 0.6)
    below += tail_share * norm.cdf(np.log(EDGES_S / (8 * median_s)) / 0.6)
    return np.diff(np.concatenate([[0.0], below, [1.0]]))
