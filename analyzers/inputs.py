"""From what telemetry counts to what a window holds: bucket layouts that differ, native histograms, scores, classes.

A window's counts must keep one layout for the whole rollout. These functions bring what was counted to a layout that
was chosen before it; they never guess within a bucket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzers.windows import Histogram

Array = NDArray[np.float64]

COARSE = 0.6
"""Above this share of all requests in one bucket a histogram hides shifts: they take several times as long to find
(reference statistics.md 2.5)."""
SCORE_LEVELS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Quantiles of stable's scores at which bins are frozen: deciles, and both tails."""


def rebucket(edges: ArrayLike, counts: ArrayLike, to: ArrayLike) -> Array:
    """Counts (..., K) on ``edges`` (K-1,) as counts (..., L) on fewer bounds ``to`` (L-1,), all among ``edges``."""
    old, new = (np.asarray(x, dtype=np.float64) for x in (edges, to))
    for name, bounds in (("edges", old), ("to", new)):
        if bounds.ndim != 1 or not len(bounds) or not (np.diff(bounds) > 0).all():
            raise ValueError(f"{name} must be a list of ascending bounds, found {bounds.tolist()}")
    if np.asarray(counts).shape[-1:] != (len(old) + 1,):
        raise ValueError(
            f"counts must have {len(old) + 1} buckets in their last axis, found {np.asarray(counts).shape}"
        )
    places = np.searchsorted(old, new)
    if (places >= len(old)).any() or (old[np.minimum(places, len(old) - 1)] != new).any():
        bad = next(float(x) for x in new if x not in old)
        raise ValueError(f"bound {bad:g} is not one of the histogram's, so its buckets cannot be merged at it")
    starts = np.concatenate([[0], places + 1])
    out: Array = np.add.reduceat(np.asarray(counts, dtype=np.float64), starts, axis=-1)
    return out


def histogram(edges_canary: ArrayLike, canary: ArrayLike, edges_stable: ArrayLike, stable: ArrayLike) -> Histogram:
    """Both arms on the bounds that they share, where a new release brought other buckets.

    ValueError where they share none. Keep to the first window's bounds for a whole rollout (``rebucket``).
    """
    shared = np.intersect1d(np.asarray(edges_canary, dtype=np.float64), np.asarray(edges_stable, dtype=np.float64))
    if not shared.size:
        raise ValueError("canary and stable count latency in buckets without a common bound; they cannot be compared")
    return Histogram(shared, rebucket(edges_canary, canary, shared), rebucket(edges_stable, stable, shared))


def native_edges(schema: int, low_s: float, high_s: float) -> Array:
    """Bounds of Prometheus' native histogram of ``schema`` from the last one below ``low_s`` to the first above
    ``high_s``: powers of 2^(2^-schema)."""
    if not 0 < low_s < high_s:
        raise ValueError(f"bounds must be positive and ascend, found {low_s!r} and {high_s!r}")
    per_doubling = 2.0**schema
    first, last = np.floor(np.log2(low_s) * per_doubling), np.ceil(np.log2(high_s) * per_doubling)
    out: Array = 2.0 ** (np.arange(first, last + 1) / per_doubling)
    return out


def from_native(
    schema: int, buckets: Mapping[int, float], zeros: float, *, edges: ArrayLike, edges_schema: int
) -> Array:
    """(K,) counts of a native histogram on ``native_edges(edges_schema, ...)``.

    buckets : index -> count, where bucket i holds (b^(i-1), b^i] with b = 2^(2^-schema). zeros : requests in the zero
    bucket. A histogram may be finer than the edges, as its resolution falls by itself; coarser ones are refused.
    """
    if schema < edges_schema:
        raise ValueError(
            f"the native histogram has schema {schema}, coarser than the {edges_schema} of the bounds; "
            f"choose bounds of schema {schema} or lower before the rollout"
        )
    bounds = np.asarray(edges, dtype=np.float64)
    places = np.log2(bounds) * 2.0**edges_schema
    first = round(float(places[0]))
    if not np.allclose(places, first + np.arange(len(bounds)), atol=1e-6):
        raise ValueError(f"edges are not consecutive bounds of schema {edges_schema}; take them from native_edges")
    out = np.zeros(len(bounds) + 1)
    out[0] = zeros
    for index, count in buckets.items():
        upper = -(-index // 2 ** (schema - edges_schema))
        out[min(max(upper - first, 0), len(bounds))] += count
    return out


def fullest(counts: ArrayLike) -> Array:
    """(...) share of the requests in the fullest bucket of counts (..., K); NaN without requests. See ``COARSE``."""
    array = np.asarray(counts, dtype=np.float64)
    total = array.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Array = array.max(-1) / np.where(total > 0, total, np.nan)
    return out


def score_bins(scores: ArrayLike) -> Array:
    """(K-1,) ascending bounds of score bins from stable's past scores, to be frozen before the rollout.

    Levels that fall on one value (many scores are exactly 0 or 1) give one bound.
    """
    given = np.asarray(scores, dtype=np.float64)
    given = given[np.isfinite(given)]
    if given.size < 100:
        raise ValueError(f"score bins need at least 100 finite scores, found {given.size}")
    bounds: Array = np.unique(np.quantile(given, SCORE_LEVELS, method="inverted_cdf"))
    return bounds


def binned(scores: ArrayLike, bounds: ArrayLike) -> Array:
    """(K + 1,) counts of scores by bin, the last but one to infinity, the last of what is not a number.

    A bound belongs to the bin below it, so that a score of exactly 1 has a bin of its own beside those near it.
    """
    given, edges = (np.asarray(x, dtype=np.float64) for x in (scores, bounds))
    known = np.isfinite(given)
    counts = np.bincount(np.searchsorted(edges, given[known]), minlength=len(edges) + 1)
    return np.concatenate([counts, [float((~known).sum())]]).astype(np.float64)


def by_class(known: Sequence[str], counts: Mapping[str, float]) -> Array:
    """(C + 1,) counts of the classes that were known before the rollout, and of all others as one.

    A class that only the new release predicts is then a move of mass into the last column.
    """
    places = {name: place for place, name in enumerate(known)}
    out = np.zeros(len(known) + 1)
    for name, count in counts.items():
        out[places.get(name, len(known))] += count
    return out
