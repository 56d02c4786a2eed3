"""One window's counts, and their checks: a bad window is refused before it changes anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Requests by latency bucket.

    edges : (K-1,) ascending upper bounds in seconds; the last bucket reaches to infinity.
    canary, stable : (R, K) counts, not cumulative; or (R, P, K) with a pod axis, which is summed over.
    """

    edges: ArrayLike
    canary: ArrayLike
    stable: ArrayLike


@dataclass(frozen=True, slots=True)
class Counts:
    """Failures and totals, each (R,), or (R, P) with a pod axis, which is summed over."""

    canary: ArrayLike
    canary_total: ArrayLike
    stable: ArrayLike
    stable_total: ArrayLike


@dataclass(frozen=True, slots=True)
class Categories:
    """Requests by class: canary and stable (R, C), or (R, P, C) with a pod axis, which is summed over."""

    canary: ArrayLike
    stable: ArrayLike


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in one window. None: not collected; an arm without requests: the same for its row."""

    latency: Histogram | None = None
    errors: Counts | None = None
    predictions: Categories | None = None
    pod_age: Any = None
    """Kept for the method that takes pods as units; the comparison of arms does not use it."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The same with counts as float64 arrays, buckets and classes first: (K, R), (R,), (C, R)."""

    edges: Array | None
    latency: tuple[Array, Array] | None
    errors: tuple[Array, Array, Array, Array] | None
    predictions: tuple[Array, Array] | None


def checked(window: Window, rollouts: int) -> Checked:
    """The window's counts as arrays; ValueError naming the argument and the first bad place."""
    edges = latency = errors = predictions = None
    if window.latency is not None:
        edges = _edges(window.latency.edges)
        both = [_counts(f"latency.{arm}", getattr(window.latency, arm), rollouts, 2) for arm in ("canary", "stable")]
        for arm, counts in zip(("canary", "stable"), both, strict=True):
            if counts.shape[1] != len(edges) + 1:
                raise ValueError(
                    f"latency.{arm} has {counts.shape[1]} buckets, but latency.edges names {len(edges)} bounds "
                    f"({len(edges) + 1} buckets with the last one to infinity)"
                )
        latency = (both[0].T, both[1].T)
    if window.errors is not None:
        names = ("canary", "canary_total", "stable", "stable_total")
        xc, nc, xs, ns = (_counts(f"errors.{n}", getattr(window.errors, n), rollouts, 1) for n in names)
        for arm, part, whole in (("canary", xc, nc), ("stable", xs, ns)):
            if (bad := np.flatnonzero(part > whole)).size:
                raise ValueError(
                    f"errors.{arm} at row {bad[0]} is {part[bad[0]]:.0f}, more than its total {whole[bad[0]]:.0f}"
                )
        errors = (xc, nc, xs, ns)
    if window.predictions is not None:
        pc, ps = (
            _counts(f"predictions.{arm}", getattr(window.predictions, arm), rollouts, 2) for arm in ("canary", "stable")
        )
        if pc.shape != ps.shape:
            raise ValueError(f"predictions.canary has shape {pc.shape}, predictions.stable {ps.shape}")
        if pc.shape[1] < 2:
            raise ValueError("predictions needs at least two classes")
        predictions = (pc.T, ps.T)
    return Checked(edges, latency, errors, predictions)


def _edges(given: ArrayLike) -> Array:
    edges = np.asarray(given, dtype=np.float64)
    if edges.ndim != 1 or edges.size == 0:
        raise ValueError(f"latency.edges must be one row of bounds, found shape {edges.shape}")
    if not np.isfinite(edges).all():
        raise ValueError(f"latency.edges[{int(np.flatnonzero(~np.isfinite(edges))[0])}] is not finite")
    if edges[0] < 0 or (falling := np.flatnonzero(np.diff(edges) <= 0)).size:
        place = 0 if edges[0] < 0 else int(falling[0]) + 1
        raise ValueError(f"latency.edges must ascend from 0 or more; look at place {place}")
    return edges


def _counts(name: str, given: ArrayLike, rollouts: int, ndim: int) -> Array:
    counts = np.asarray(given)
    if counts.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers, found {counts.dtype}")
    if counts.ndim not in (ndim, ndim + 1) or counts.shape[0] != rollouts:
        raise ValueError(
            f"{name} must have {ndim} axes (or one more for pods) with {rollouts} rows, found {counts.shape}"
        )
    out = counts.astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN is what is being looked for
        bad = ~(out >= 0) | (out != np.floor(out)) | ~np.isfinite(out)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}{list(place)} is {float(out[place]):g}; counts are whole numbers of at least 0")
    # Pods are summed: the comparison of arms takes requests, not pods, as its units.
    return out.sum(axis=1) if out.ndim == ndim + 1 else out
