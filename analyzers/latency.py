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
MOST_RATIO = 1000.0
"""The largest slow-down that is told as a number."""
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


def fields(buckets: int, planned: int | None, *, bets: bool) -> dict[str, tuple[int, ...]]:
    """State of one rollout: field -> shape. bets : with the evidence of the arms; without, only what is shown."""
    out: dict[str, tuple[int, ...]] = dict.fromkeys(("judged", "v", "w_raw", "pairs", "n_a", "n_b", "exposure"), ())
    out |= {"hist": (buckets,), "own": (buckets,), "matched": (buckets,)}
    if bets:
        grid = len(rank_grid(planned)[0])
        out |= {"safe": (), "rank": (grid,), "rank_spent": (grid,), "tail": (len(TAILS),), "tail_spent": ()}
    return out


def add(st: dict[str, Array], canary: Array, stable: Array) -> Flags:
    """Add one window to the sums that are shown; (R,) whether the row could be compared. canary, stable : (K, R).

    ``matched`` is stable's histogram with each window scaled to the canary's requests of that window, so that the two
    can be compared over windows of different weight and load; ``exposure`` is the variance that this costs.
    """
    n_a, n_b = canary.sum(0), stable.sum(0)
    ok: Flags = (n_a > 0) & (n_b > 0)
    each = np.where(ok, n_a / np.maximum(n_b, 1.0), 0.0)
    st["hist"] += (canary + stable) * ok
    st["own"] += canary * ok
    st["matched"] += stable * each
    st["exposure"] += n_a * (1.0 + each) * ok
    st["n_a"] += n_a * ok
    st["n_b"] += n_b * ok
    return ok


def update(
    st: dict[str, Array], canary: Array, stable: Array, t: Array, planned: int | None, ratio: float, edges: Array
) -> Flags:
    """Take one window into the evidence; (R,) whether the row could be compared.

    st : the latency part of the state, feature first. canary, stable : (K, R). ratio : the tolerated slow-down.
    """
    ok = add(st, canary, stable)
    n_a, n_b = canary.sum(0), stable.sum(0)
    a = canary * ok
    w, v, scores = rank_statistic(a, stable * ok)
    d = (canary + stable) * ok
    n1 = np.maximum(d.sum(0), 2.0)
    rho = n_a * ok / n1
    pairs = n_a * n_b / n1 * ok
    hist = st["hist"]
    total = np.maximum(hist.sum(0), 1.0)
    survival = np.maximum((np.cumsum(hist[::-1], 0)[::-1] - 0.5 * hist) / total, 1e-6)
    st["w_raw"] += w
    st["pairs"] += pairs
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
        cost = np.log1p(rho * (w - 1.0))
        if base_weight is not None:
            # What is tolerated takes requests out of some buckets; a release that does not use it must not pay for it.
            cost = np.maximum(cost, np.log1p(rho * (w * base_weight - 1.0)) - base)
        log_e[g] = (tail_a * lw).sum(0) - (tail_d * cost).sum(0)
    prior = TAIL_PRIOR * detectable(needed, planned, 1e-6)
    prior /= prior.sum(0)
    spent = prior * start_share(needed, t, judged, planned, FIRST) * (1.0 - st["tail_spent"]) * ok
    st["tail_spent"] += spent.sum(0)
    r = st["tail"]
    r += spent
    r *= np.exp(np.clip(log_e, -CLIP, CLIP) * ok)
    np.minimum(r, LARGEST, out=r)


def evidence(st: dict[str, Array], rank: float, tail: float) -> Array:
    """(R,) the metric's e-value: average of both parts by their shares."""
    out: Array = (rank * st["rank"].sum(0) + tail * st["tail"].sum(0)) / (rank + tail)
    return out


def ratio_slope(hist: Array, edges: Array) -> Array:
    """(R,) by how much A, the probability of being slower, grows a unit of log slow-down, at the pooled histogram."""
    share = hist / np.maximum(hist.sum(0), 1.0)
    survival = np.cumsum(share[::-1], 0)[::-1] - 0.5 * share
    small = 1.01
    moved = bucket_shift(edges, small)[:, None] * share
    slope: Array = np.maximum((moved[:-1] * (survival[:-1] - survival[1:])).sum(0) / np.log(small), 1e-3)
    return slope


def interval(st: dict[str, Array], log_level: float) -> tuple[Array, Array, Array]:
    """(delta, low, high): A - 1/2, how much likelier a canary request is the slower one; NaN without data.

    Two-sided normal-mixture bound on the van Elteren sum (Howard et al. 2021; reference statistics.md 2.3).
    """
    pairs = np.where(st["pairs"] > 0, st["pairs"], np.nan)
    half = mixture_radius(st["v"], log_level) / pairs
    delta = st["w_raw"] / pairs
    return delta, delta - half, delta + half


def mixture_radius(v: Array, log_level: float) -> Array:
    """(R,) half width, at every window at once, of a sum with variance ``v``; tightest near a variance of 25."""
    tuning = 25.0  # about 300 canary requests
    out: Array = np.sqrt((v + tuning) * (np.log1p(v / tuning) - 2.0 * log_level))
    return out


def as_ratio(delta: Array, slope: Array) -> Array:
    """A difference in the probability of being slower as a slow-down ratio, within 1/1000 to 1000, or 0, or infinite.

    Exact for a log-normal latency, where A = Phi(log ratio / (spread sqrt 2)), and to first order for any other. The
    normal quantile is Tukey's lambda of .135 (Joiner and Rosenblatt 1971), right to 1/100 up to a probability of .99.
    """
    above = np.clip(0.5 + delta, 0.0, 1.0)
    normal = (above**0.135 - (1.0 - above) ** 0.135) / 0.1975
    with np.errstate(over="ignore"):  # clipped right after
        out: Array = np.clip(np.exp(normal / (slope * np.sqrt(2.0 * np.pi))), 1 / MOST_RATIO, MOST_RATIO)
    # At the end of the scale every larger ratio looks the same.
    return np.where(above >= 1.0, np.inf, np.where(above <= 0.0, 0.0, out))


def quantile_ratio(st: dict[str, Array], edges: Array, q: float, log_level: float) -> tuple[Array, Array, Array]:
    """(ratio, low, high) of the canary's ``q`` quantile to stable's, at every window at once; NaN without data.

    The canary's distribution function differs from the matched stable one by no more than a normal-mixture radius for
    binomial counts, so the canary's quantiles at q minus and plus that radius bound the ratio; both ends are moved
    to the bounds of their buckets, because nothing finer is known.
    """
    n = np.where(st["n_a"] > 0, st["n_a"], np.nan)
    radius = mixture_radius(st["exposure"] * q * (1.0 - q), log_level) / n
    own, matched = (_cumulative(st[name]) for name in ("own", "matched"))
    level = np.full_like(n, q)
    middle, _, _ = _quantile(own, edges, level)
    base, base_low, base_high = _quantile(matched, edges, level)
    _, low, _ = _quantile(own, edges, level - radius)
    _, _, high = _quantile(own, edges, level + radius)
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN: nothing seen yet; infinite: the last bucket
        low = np.where(level - radius <= 0, 0.0, low / base_high)
        high = np.where(level + radius >= 1, np.inf, high / base_low)
        return middle / base, low, high


def _cumulative(counts: Array) -> Array:
    total = counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # rows without requests are NaN
        out: Array = np.cumsum(counts, 0) / np.where(total > 0, total, np.nan)
    return out


def _quantile(cumulative: Array, edges: Array, level: Array) -> tuple[Array, Array, Array]:
    """(value, lower bound, upper bound) in seconds at ``level`` (R,); log-linear inside the bucket."""
    level = np.clip(level, 1e-12, 1 - 1e-12)
    j = np.minimum((cumulative < level).sum(0), len(cumulative) - 1)
    lows = np.concatenate([[edges[0] / 2.0], edges])
    highs = np.concatenate([edges, [np.inf]])
    low, high = lows[j], highs[j]
    before = np.where(j > 0, np.take_along_axis(cumulative, np.maximum(j - 1, 0)[None], 0)[0], 0.0)
    here = np.take_along_axis(cumulative, j[None], 0)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.clip((level - before) / np.maximum(here - before, 1e-300), 0.0, 1.0)
    top = np.where(np.isfinite(high), high, 2.0 * low)
    seen = np.isfinite(here)
    value = low * (top / low) ** inside
    return np.where(seen, value, np.nan), np.where(seen, low, np.nan), np.where(seen, high, np.nan)
