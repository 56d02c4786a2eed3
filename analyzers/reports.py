"""Fixed-sample reports for people: one look, one number with its interval. Never used for decisions.

scipy.stats and statsmodels are imported inside, because they take seconds and the service must start without them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzers.latency import rank_statistic

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RankReport:
    """Mann-Whitney on bucket counts. ``slower_probability`` is Vargha and Delaney's A with its 95 % interval."""

    u: float
    p_value: float
    slower_probability: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class QuantileReport:
    """A quantile of both arms with the bucket that holds it: (value, lower edge, upper edge), and their ratio."""

    canary: tuple[float, float, float]
    stable: tuple[float, float, float]
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Distances of two categorical distributions, half a count added a class; in nats."""

    kl: float
    psi: float
    jensen_shannon: float


def mann_whitney(canary: ArrayLike, stable: ArrayLike, *, level: float = 0.95) -> RankReport:
    """Two-sided test and effect of two rows of bucket counts. Equal to scipy's asymptotic test without continuity."""
    from scipy.stats import norm
    from statsmodels.stats.nonparametric import rank_compare_2ordinal

    a, b = (np.asarray(x, dtype=np.float64) for x in (canary, stable))
    n_a, n_b = a.sum(), b.sum()
    if not n_a or not n_b:
        raise ValueError("mann_whitney needs requests in both arms")
    w, v, _ = rank_statistic(a[:, None], b[:, None])
    u = float(w[0] * (n_a + n_b) + n_a * n_b / 2)
    p = float(2 * norm.sf(abs(w[0]) / np.sqrt(v[0]))) if v[0] > 0 else 1.0
    low, high = rank_compare_2ordinal(a, b).conf_int(alpha=1 - level)
    return RankReport(u, p, u / (n_a * n_b), float(low), float(high))


def quantile_ratio(edges: ArrayLike, canary: ArrayLike, stable: ArrayLike, q: float) -> QuantileReport:
    """The ``q`` quantile of both arms, log-linear inside its bucket, and the honest bracket of their ratio."""
    bounds = np.asarray(edges, dtype=np.float64)
    one, two = (_quantile(bounds, np.asarray(x, dtype=np.float64), q) for x in (canary, stable))
    return QuantileReport(one, two, one[0] / two[0], one[1] / two[2], one[2] / two[1])


def _quantile(edges: Array, counts: Array, q: float) -> tuple[float, float, float]:
    if not 0 < q < 1 or not counts.sum():
        raise ValueError(f"a quantile needs requests and 0 < q < 1, found q={q!r}")
    cumulative = np.cumsum(counts) / counts.sum()
    j = int(np.searchsorted(cumulative, q))
    low = float(edges[j - 1]) if j else float(edges[0]) / 2
    high = float(edges[j]) if j < len(edges) else float("inf")
    before = float(cumulative[j - 1]) if j else 0.0
    inside = (q - before) / (float(cumulative[j]) - before)
    top = high if np.isfinite(high) else 2 * low
    return float(low * (top / low) ** inside), low, high


def drift(canary: ArrayLike, stable: ArrayLike) -> DriftReport:
    """KL(canary || stable), PSI and Jensen-Shannon divergence of two rows of class counts."""
    p, q = (np.asarray(x, dtype=np.float64) + 0.5 for x in (canary, stable))
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2

    def kl(x: Array, y: Array) -> float:
        return float((x * np.log(x / y)).sum())

    return DriftReport(kl(p, q), kl(p, q) + kl(q, p), (kl(p, m) + kl(q, m)) / 2)


def proportions(
    x_canary: int, n_canary: int, x_stable: int, n_stable: int, *, level: float = 0.95
) -> tuple[float, float, float]:
    """(difference canary - stable, low, high) by Newcombe's hybrid score method (1998, method 10)."""
    from statsmodels.stats.proportion import confint_proportions_2indep

    if not n_canary or not n_stable:
        raise ValueError("proportions needs requests in both arms")
    low, high = confint_proportions_2indep(
        x_canary, n_canary, x_stable, n_stable, method="newcomb", compare="diff", alpha=1 - level
    )
    return x_canary / n_canary - x_stable / n_stable, float(low), float(high)
