"""Netflix-style sequential tests: bands on both distribution functions for latency, a count test for errors.

Latency: canary is stochastically larger when somewhere ``F_stable - F_canary`` exceeds the sum of both bands' radii,
radius(n) = A sqrt((log(1 + log(n / n_min)) + C) / n), A = .85, which hold for every n >= n_min at once (Howard and
Ramdas 2022, Bernoulli 28(3); Lindon, Sanden and Shirikian, KDD 2022). On bucket counts they hold at the bucket
bounds. Errors: a failure belongs to the canary with the share of requests that it served; Dirichlet mixture around
that share (Lindon and Malek, NeurIPS 2022).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaln, xlogy

from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.stream import Stream

Array = NDArray[np.float64]

A = 0.85
ALPHA = 0.01
CONCENTRATION = 100.0
"""Of the mixture, in failures."""
LEAST_PART = 0.5
"""The bands begin at this part of one window's planned requests."""
HALVINGS = 40


def scores(stream: Stream) -> Scores:
    """(R, T) latency: the largest constant C at which the bands part; errors: log evidence of failing more."""
    return {"latency": _latency(stream), "errors": _errors(stream)}


def band_level(constant: float) -> float:
    """The error level of a band with this constant C: the minimum over eta of 4 exp(-g C) (1 + 1 / ((g - 1) log eta)).

    g = (2 / eta) (A - sqrt(2 (eta - 1) / C))^2, over eta > 1 with g > 1. Source: Howard and Ramdas 2022.
    """

    def level(eta: float) -> float:
        inner = A - np.sqrt(2 * (eta - 1) / constant)
        g = 2 / eta * inner**2
        return float(4 * np.exp(-g * constant) * (1 + 1 / ((g - 1) * np.log(eta)))) if inner > 0 and g > 1 else 1e9

    # Near eta = 1 the log factor is huge and for large eta g falls to 1, so the minimum is looked for from a grid.
    grid = 1 + np.geomspace(1e-4, 0.4, 400)
    best = grid[int(np.argmin([level(float(eta)) for eta in grid]))]
    return float(minimize_scalar(level, bounds=(1 + (best - 1) * 0.97, 1 + (best - 1) * 1.03), method="bounded").fun)


def band_constant(level: float) -> float:
    """C at this error level."""
    return float(brentq(lambda c: np.log(band_level(c) / level), 6.0, 40.0, xtol=1e-6))


def _latency(stream: Stream) -> Array:
    a, b = (np.cumsum(np.cumsum(arm.latency, 1), 2) for arm in (stream.canary, stream.stable))
    n_a, n_b = np.maximum(a[..., -1], 1), np.maximum(b[..., -1], 1)
    gap = (b / n_b[..., None] - a / n_a[..., None]).max(-1)
    law = stream.law
    first = law.share(0, stream.shape[1]) * (law.canary + law.stable)
    least_a, least_b = LEAST_PART * first, LEAST_PART * (law.canary + law.stable - first)
    slow_a, slow_b = (np.log1p(np.log(np.maximum(n / m, 1.0))) for n, m in ((n_a, least_a), (n_b, least_b)))

    def radii(constant: Array) -> Array:
        total: Array = A * (np.sqrt((slow_a + constant) / n_a) + np.sqrt((slow_b + constant) / n_b))
        return total

    low, high = np.zeros(gap.shape), np.full(gap.shape, 1e4)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        parted = gap > radii(middle)
        low, high = np.where(parted, middle, low), np.where(parted, high, middle)
    out: Array = np.where((n_a >= least_a) & (n_b >= least_b), low, -np.inf)
    return out


def _errors(stream: Stream) -> Array:
    x_a, x_b = (np.cumsum(arm.failed, 1) for arm in (stream.canary, stream.stable))
    n_a, n_b = (np.cumsum(arm.total, 1) for arm in (stream.canary, stream.stable))
    share = np.clip(n_a / np.maximum(n_a + n_b, 1), 1e-6, 1 - 1e-6)
    k_a, k_b = CONCENTRATION * share, CONCENTRATION * (1 - share)
    log_e = (
        gammaln(k_a + x_a) + gammaln(k_b + x_b) - gammaln(CONCENTRATION + x_a + x_b)
        - gammaln(k_a) - gammaln(k_b) + gammaln(CONCENTRATION)
        - xlogy(x_a, share) - xlogy(x_b, 1 - share)
    )  # fmt: skip
    return np.where(x_a > share * (x_a + x_b), log_e, -np.inf)


TOOL = Tool(
    "Sequential bands, counts",
    scores,
    {"alpha .01 a metric": {"latency": band_constant(ALPHA / 2), "errors": -float(np.log(ALPHA))}},
    frozenset({"latency", "tail", "errors"}),
)
