"""Fixed-sample tests at every look on all counts so far: what is done by hand, naively or divided by the looks.

Latency: Mann-Whitney on bucket counts, normal approximation with the correction for ties (Mann and Whitney 1947;
Conover, Practical Nonparametric Statistics). Errors: the pooled two-proportion z test. Both one-sided. Classes: the G
test of equal shares with chi-squared quantiles (Wilks 1938).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincc, log_ndtr, xlogy

from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.scenarios import LENGTH
from tests.benchmarks.peers.stream import Stream

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

NAIVE_P = 0.02
BONFERRONI = 0.01


def scores(stream: Stream) -> Scores:
    """-log10 p of each test at each look, (R, T)."""
    a, b = (np.cumsum(arm.latency, axis=1) for arm in (stream.canary, stream.stable))
    x_a, n_a = np.cumsum(stream.canary.failed, 1), np.cumsum(stream.canary.total, 1)
    x_b, n_b = np.cumsum(stream.stable.failed, 1), np.cumsum(stream.stable.total, 1)
    c, d = (np.cumsum(arm.classes, axis=1) for arm in (stream.canary, stream.stable))
    return {
        "latency": -log_ndtr(-rank_z(a, b)) / np.log(10),
        "errors": -log_ndtr(-proportion_z(x_a, n_a, x_b, n_b)) / np.log(10),
        "classes": -g_log_p(c, d) / np.log(10),
    }


def rank_z(a: Whole, b: Whole) -> Array:
    """(...) z of «a is larger» from counts by bucket (..., K); 0 where an arm is empty or all lie in one bucket."""
    pooled = (a + b).astype(float)
    n_a, n = a.sum(-1).astype(float), pooled.sum(-1)
    middle = np.cumsum(pooled, axis=-1) - pooled / 2 - n[..., None] / 2
    w = (a * middle).sum(-1)
    v = n_a * (n - n_a) / np.maximum(n * (n - 1), 1) * (pooled * middle**2).sum(-1)
    return _ratio(w, v)


def proportion_z(x_a: Whole, n_a: Whole, x_b: Whole, n_b: Whole) -> Array:
    """(...) z of «a fails more often» with the pooled share in the variance; 0 where it has none."""
    p = (x_a + x_b) / np.maximum(n_a + n_b, 1)
    safe_a, safe_b = np.maximum(n_a, 1), np.maximum(n_b, 1)
    return _ratio(x_a / safe_a - x_b / safe_b, p * (1 - p) * (1 / safe_a + 1 / safe_b) * (n_a > 0) * (n_b > 0))


def g_log_p(a: Whole, b: Whole) -> Array:
    """(...) log p of equal class shares from counts (..., C); classes without counts take no degree of freedom."""
    pooled = (a + b).astype(float)
    n_a, n = a.sum(-1, keepdims=True), np.maximum(pooled.sum(-1, keepdims=True), 1)
    seen = np.maximum(pooled, 1)
    expect_a, expect_b = seen * n_a / n, seen * (n - n_a) / n
    g = 2 * (xlogy(a, a / np.maximum(expect_a, 1e-9)) + xlogy(b, b / np.maximum(expect_b, 1e-9))).sum(-1)
    freedom = np.maximum((pooled > 0).sum(-1) - 1, 1)
    log_p: Array = np.log(np.maximum(gammaincc(freedom / 2, np.maximum(g, 0) / 2), 1e-300))
    return log_p


def _ratio(mean: Array, variance: Array) -> Array:
    return np.where(variance > 0, mean / np.sqrt(np.where(variance > 0, variance, 1)), 0.0)


def _all(p: float) -> dict[str, float]:
    return dict.fromkeys(("latency", "errors", "classes"), -float(np.log10(p)))


TOOL = Tool(
    "Mann-Whitney, z, G test",
    scores,
    {f"p < {NAIVE_P:g} at each look": _all(NAIVE_P), f"Bonferroni {BONFERRONI:g}/T": _all(BONFERRONI / LENGTH)},
    frozenset({"latency", "tail", "errors", "classes"}),
)
