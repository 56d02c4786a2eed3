"""Latency on bucket counts: rank evidence for a shifted body, tail evidence for slower slow requests.

Rank part: Wilcoxon's statistic within each window's pooled histogram, summed over windows (van Elteren), as Gaussian
e-values over a grid of strengths. Tail part: the density ratio of a few tail shapes on the scale of pooled survival,
normalised for product-binomial labels. Both are conditional on the window's margins, so that load and weight may
drift. Sources: reference statistics.md 2.1 and 2.3, statistics-calibrated.md section 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analyzers.boundary import FIRST, NATS_NEEDED, UNPLANNED_WINDOWS, detectable, start_share

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

CLIP = 50.0
LARGEST = 1e200
LOG_CAP = np.log(40.0)

# (survival at which the shape begins, height there, exponent, floor): a request's weight by its pooled survival
TAILS = ((0.012, 1.5, 0.2, 1.0), (0.003, 1.0, 0.8, 0.6), (0.015, 5.0, 0.0, 1.0), (0.06, 1.4, 0.2, 1.0))
"""More in the slowest 1 %; the slowest 1 % stretched; many outliers; the slowest 6 % slower."""
TAIL_PRIOR = np.array([0.27, 0.58, 0.075, 0.075])[:, None]
TAIL_BEGINS = 0.065
"""Buckets whose survival is above this in every row of a batch carry no tail weight and are left out."""

_RHO = np.linspace(0.002, 0.998, 250)


def rank_grid(planned: int | None) -> tuple[Array, Array]:
    """(windows needed, prior), each (G, 1): effects that 2.5, 8, 26, ... windows of this very traffic can show."""
    half = 0.5 * float(planned or UNPLANNED_WINDOWS)
    needed = [2.5]
    while needed[-1] * 3.2 <= half:
        needed.append(needed[-1] * 3.2)
    prior = np.maximum(3.0 - np.arange(len(needed)), 1.0)
    return np.array(needed)[:, None], (prior / prior.sum())[:, None]


def tail_log_weight(log_survival: Array, begins: float, height: float, exponent: float, floor: float) -> Array:
    """log weight of a tail shape at pooled log survival; 0 outside the shape."""
    log_begins = np.log(begins)
    if floor < 1.0:
        weight = np.clip(np.log(height) + exponent * (log_begins - log_survival), np.log(floor), LOG_CAP)
        return np.where(log_survival > log_begins + np.log(4.0), 0.0, weight)
    if exponent == 0.0:
        return np.where(log_survival < log_begins, np.log(height), 0.0)
    grown = np.minimum(np.log(height) + exponent * (log_begins - log_survival), LOG_CAP)
    return np.where(log_survival < log_begins, grown, 0.0)


def _tail_information() -> Array:
    """(shapes, rho) nats a request at canary share rho, integrated over survival once at import (a millisecond)."""
    log_s = np.linspace(np.log(1e-6), np.log(0.5), 2000)
    d_s = np.gradient(np.exp(log_s))
    out = []
    for shape in TAILS:
        lw = tail_log_weight(log_s, *shape)
        w = np.exp(lw)
        rho = _RHO[:, None]
        norm = np.log1p(rho * (w - 1.0))
        out.append((d_s * (rho * w * lw - norm * (1.0 + rho * (w - 1.0)))).sum(1))
    return np.array(out)


_INFORMATION = _tail_information()


def rank_statistic(canary: Array, stable: Array) -> tuple[Array, Array, Array]:
    """(W, V, scores) of one window: Wilcoxon's centred statistic, its exact permutation variance, ridit scores.

    canary, stable : (K, R) counts. W = sum a_j s_j with s_j the mid-rank share minus 1/2, so that
    A - 1/2 = W n / (n_a n_b) is Vargha and Delaney's probability of being slower, minus a half.
    """
    pooled = canary + stable
    n_a, n = canary.sum(0), pooled.sum(0)
    n1 = np.maximum(n, 2.0)
    scores = (np.cumsum(pooled, 0) - 0.5 * pooled) / n1 - 0.5
    w = (canary * scores).sum(0)
    v = (n_a / n1) * (n - n_a) / (n1 - 1.0) * (pooled * scores * scores).sum(0)
    return w, v, scores


def bucket_shift(edges: Array, ratio: float) -> Array:
    """(K,) share of each bucket's requests that a slow-down by ``ratio`` moves one bucket up, log-linear inside it."""
    log_edges = np.log(np.maximum(edges, 1e-9))
    gaps = np.diff(log_edges)
    # The open buckets at both ends are taken to be as wide as their neighbours; a single bound has none, so a factor e.
    widths = np.concatenate([gaps[:1], gaps, gaps[-1:]]) if len(gaps) else np.ones(2)
    shift: Array = np.minimum(np.log(max(ratio, 1.0)) / np.maximum(widths, 1e-9), 1.0)
    shift[-1] = 0.0
    return shift


def update(
    st: dict[str, Array], canary: Array, stable: Array, t: Array, planned: int | None, ratio: float, edges: Array
) -> Flags:
    """Take one window into the evidence; (R,) whether the row could be compared.

    st : the latency part of the state, feature first. canary, stable : (K, R). ratio : the tolerated slow-down.
    """
    n_a, n_b = canary.sum(0), stable.sum(0)
    ok: Flags = (n_a > 0) & (n_b > 0)
    a = canary * ok
    w, v, scores = rank_statistic(a, stable * ok)
    d = (canary + stable) * ok
    n1 = np.maximum(d.sum(0), 2.0)
    rho = n_a * ok / n1
    pairs = n_a * n_b / n1 * ok
    hist = st["hist"]
    hist += d
    total = np.maximum(hist.sum(0), 1.0)
    survival = np.maximum((np.cumsum(hist[::-1], 0)[::-1] - 0.5 * hist) / total, 1e-6)
    st["w_raw"] += w
    st["pairs"] += pairs
    st["n_a"] += n_a * ok
    st["n_b"] += n_b * ok
    tolerated = None
    drift = np.zeros_like(w)
    if ratio > 1.0:
        moved = bucket_shift(edges, ratio)[:, None] * hist / total
        drift = (moved[:-1] * (survival[:-1] - survival[1:])).sum(0) * pairs
        w = w - drift
        shifted = hist / total - moved
        shifted[1:] += moved[:-1]
        tolerated = np.where(hist > 0, shifted * total / np.maximum(hist, 1e-9), 1.0)
        v1 = np.maximum(v, 1e-9)
        # Evidence that the effect is below its margin: «at the margin» against «no effect».
        st["safe"] += np.where(ok & (v > 0), -drift / v1 * w - 0.5 * drift * drift / v1, 0.0)
    st["v"] += v
    judged = st["judged"].copy()
    st["judged"] += ok
    _rank(st, w, v, d, rho, scores, ok, t, judged, planned)
    _tail(st, a, d, rho, survival, tolerated, ok, t, judged, planned)
    return ok


def _rank(
    st: dict[str, Array], w: Array, v: Array, d: Array, rho: Array, scores: Array, ok: Flags, t: Array, judged: Array,
    planned: int | None,
) -> None:  # fmt: skip
    needed, prior = rank_grid(planned)
    mean_v = np.maximum(st["v"] / np.maximum(st["judged"], 1.0), 1e-9)
    theta = np.minimum(np.sqrt(2.0 * NATS_NEEDED / needed) / np.sqrt(mean_v), 3.0)
    spent = start_share(needed, t, judged, planned, FIRST) * (1.0 - st["rank_spent"]) * ok
    st["rank_spent"] += spent
    r = st["rank"]
    r += spent * prior
    cumulant = 0.5 * theta * theta * v
    for g in range(len(needed)):
        # Where scores are skewed (coarse buckets) the Gaussian cumulant is too small; the binomial label one bounds it.
        np.maximum(cumulant[g], (d * np.log1p(rho * np.expm1(theta[g] * scores))).sum(0), out=cumulant[g])
    r *= np.exp(np.clip(theta * w - cumulant, -CLIP, CLIP) * ok)
    np.minimum(r, LARGEST, out=r)


def _tail(
    st: dict[str, Array], a: Array, d: Array, rho: Array, survival: Array, tolerated: Array | None, ok: Flags,
    t: Array, judged: Array, planned: int | None,
) -> None:  # fmt: skip
    first = int(np.argmax(survival.min(1) < TAIL_BEGINS))
    log_s, tail_a, tail_d = np.log(survival[first:]), a[first:], d[first:]
    base_weight = None if tolerated is None else tolerated[first:]
    base = 0.0 if base_weight is None else np.log1p(rho * (base_weight - 1.0))
    place = np.clip((rho - _RHO[0]) / (_RHO[1] - _RHO[0]), 0, len(_RHO) - 1.001)
    low = place.astype(np.int64)
    information = _INFORMATION[:, low] * (1 - (place - low)) + _INFORMATION[:, low + 1] * (place - low)
    needed = NATS_NEEDED / np.maximum(d.sum(0) * information, 1e-9)
    log_e = np.empty((len(TAILS), a.shape[1]))
    for g, shape in enumerate(TAILS):
        lw = tail_log_weight(log_s, *shape)
        w = np.exp(lw)
        if base_weight is not None:
            w = w * base_weight
        log_e[g] = (tail_a * lw).sum(0) - (tail_d * (np.log1p(rho * (w - 1.0)) - base)).sum(0)
    prior = TAIL_PRIOR * detectable(needed, planned, 1e-6)
    prior /= prior.sum(0)
    spent = prior * start_share(needed, t, judged, planned, FIRST) * (1.0 - st["tail_spent"]) * ok
    st["tail_spent"] += spent.sum(0)
    r = st["tail"]
    r += spent
    r *= np.exp(np.clip(log_e, -CLIP, CLIP) * ok)
    np.minimum(r, LARGEST, out=r)


def interval(st: dict[str, Array], edges: Array, log_level: float) -> tuple[Array, Array, Array, Array]:
    """(effect, low, high) as slow-down ratios and A, the probability that a canary request is the slower one.

    The sequence for A is the two-sided normal-mixture bound on the van Elteren sum (Howard et al. 2021; reference
    statistics.md 2.3); a difference in A becomes a ratio by the pooled histogram's first-order response to a
    slow-down. Rows without data are NaN.
    """
    pairs = np.where(st["pairs"] > 0, st["pairs"], np.nan)
    tuning = 25.0  # tightest near this much variance, about 300 canary requests
    half = np.sqrt((st["v"] + tuning) * (np.log1p(st["v"] / tuning) - 2.0 * log_level)) / pairs
    delta = st["w_raw"] / pairs
    total = np.maximum(st["hist"].sum(0), 1.0)
    share = st["hist"] / total
    survival = np.cumsum(share[::-1], 0)[::-1] - 0.5 * share
    small = 1.01
    moved = bucket_shift(edges, small)[:, None] * share
    slope = np.maximum((moved[:-1] * (survival[:-1] - survival[1:])).sum(0) / np.log(small), 1e-3)
    effect, low, high = (np.exp(np.clip(x, -0.5, 0.5) / slope) for x in (delta, delta - half, delta + half))
    cap = 1000.0
    return np.minimum(effect, cap), np.maximum(low, 1 / cap), np.minimum(high, cap), 0.5 + np.clip(delta, -0.5, 0.5)
