"""One window's counts, and their checks: a bad window is refused before it changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Requests by latency bucket.

    edges : (K-1,) ascending upper bounds in seconds; the last bucket reaches to infinity.
    canary, stable : (R, K) counts, not cumulative; or (R, Pc, K) and (R, Ps, K) by pod, zeros where one is absent.
    """

    edges: ArrayLike
    canary: ArrayLike
    stable: ArrayLike


@dataclass(frozen=True, slots=True)
class Counts:
    """Failures and totals, each (R,); or (R, Pc) and (R, Ps) by pod."""

    canary: ArrayLike
    canary_total: ArrayLike
    stable: ArrayLike
    stable_total: ArrayLike


@dataclass(frozen=True, slots=True)
class Categories:
    """Requests by class: canary and stable (R, C); or (R, P, C) with a pod axis, which is summed over."""

    canary: ArrayLike
    stable: ArrayLike


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in one window. None: not collected; an arm without requests: the same for its row.

    pod_age : by pod, (canary (R, Pc), stable (R, Ps)), windows since each pod started; a falling age is a new pod in
        the slot. None where it is not known.
    outputs : predictions of further outputs of a model with several, each counted by classes of its own; always as many
        as in the first window.
    weight : (R,) the share of requests that was asked for the canary, between 0 and 1, NaN where it is not known. Only
        the share check uses it.
    """

    latency: Histogram | None = None
    errors: Counts | None = None
    predictions: Categories | None = None
    pod_age: tuple[ArrayLike, ArrayLike] | None = None
    weight: ArrayLike | None = None
    outputs: tuple[Categories, ...] = ()


@dataclass(frozen=True, slots=True)
class ByPod:
    """One metric's counts by pod, pods first: latency (P, K, R), totals and failures (P, R)."""

    canary: Array
    stable: Array


@dataclass(frozen=True, slots=True)
class Checked:
    """The same with counts as float64 arrays, buckets and classes first: (K, R), (R,), (C, R).

    pods : (canary, stable) slots, None without a pod axis. by_pod : "latency", "errors", "requests" where they carry
        one; ages (Pc, R) and (Ps, R). weight : (R,).
    """

    edges: Array | None
    latency: tuple[Array, Array] | None
    errors: tuple[Array, Array, Array, Array] | None
    predictions: tuple[Array, Array] | None
    pods: tuple[int, int] | None = None
    by_pod: Mapping[str, ByPod] = field(default_factory=dict)
    ages: tuple[Array, Array] | None = None
    weight: Array | None = None
    outputs: tuple[tuple[Array, Array], ...] = ()

    @property
    def by_output(self) -> tuple[tuple[Array, Array], ...]:
        """Predictions of all outputs."""
        return () if self.predictions is None else (self.predictions, *self.outputs)

    def requests(self) -> tuple[Array, Array]:
        """(canary, both arms), (R,) requests: failures' totals where they are counted, else what was counted."""
        if self.errors is not None:
            return self.errors[1], self.errors[1] + self.errors[3]
        a, b = self.latency or self.predictions or (np.zeros((1, 1)), np.zeros((1, 1)))
        return a.sum(0), a.sum(0) + b.sum(0)


def checked(window: Window, rollouts: int) -> Checked:
    """The window's counts as arrays; ValueError naming the argument and the first bad place."""
    edges = latency = errors = predictions = None
    by_pod: dict[str, ByPod] = {}
    if window.latency is not None:
        edges = _edges(window.latency.edges)
        both = [_counts(f"latency.{arm}", getattr(window.latency, arm), rollouts, 2) for arm in ("canary", "stable")]
        for arm, counts in zip(("canary", "stable"), both, strict=True):
            if counts.shape[-1] != len(edges) + 1:
                raise ValueError(
                    f"latency.{arm} has {counts.shape[-1]} buckets, but latency.edges names {len(edges)} bounds "
                    f"({len(edges) + 1} buckets with the last one to infinity)"
                )
        if _by_pod("latency", both, 2):
            canary, stable = (np.ascontiguousarray(np.moveaxis(x, 0, -1)) for x in both)
            by_pod["latency"] = ByPod(canary, stable)
            by_pod["requests"] = ByPod(canary.sum(1), stable.sum(1))
            latency = (canary.sum(0), stable.sum(0))
        else:
            latency = (both[0].T, both[1].T)
    if window.errors is not None:
        names = ("canary", "canary_total", "stable", "stable_total")
        four = [_counts(f"errors.{n}", getattr(window.errors, n), rollouts, 1) for n in names]
        for arm, part, whole in (("canary", four[0], four[1]), ("stable", four[2], four[3])):
            if part.shape != whole.shape:
                raise ValueError(f"errors.{arm} has shape {part.shape}, its total {whole.shape}")
            if (part > whole).any():
                place = tuple(int(i) for i in np.argwhere(part > whole)[0])
                raise ValueError(
                    f"errors.{arm} at row {place[0]} is {part[place]:.0f}, more than its total {whole[place]:.0f}"
                )
        if _by_pod("errors", four[::2], 1):
            xc, nc, xs, ns = (np.ascontiguousarray(x.T) for x in four)
            by_pod["errors"] = ByPod(xc, xs)
            by_pod["totals"] = ByPod(nc, ns)
            by_pod.setdefault("requests", by_pod["totals"])
            errors = (xc.sum(0), nc.sum(0), xs.sum(0), ns.sum(0))
        else:
            errors = (four[0], four[1], four[2], four[3])
    if window.outputs and window.predictions is None:
        raise ValueError("outputs holds further outputs; the first one's counts must stand in predictions")
    if window.predictions is not None:
        predictions = _categories("predictions", window.predictions, rollouts)
    outputs = tuple(_categories(f"outputs[{n}]", one, rollouts) for n, one in enumerate(window.outputs))
    pods = ages = None
    if by_pod:
        if any(m is not None and name not in by_pod for name, m in (("latency", latency), ("errors", errors))):
            raise ValueError("latency and errors must both carry a pod axis, or neither")
        shapes = {(len(one.canary), len(one.stable)) for one in by_pod.values()}
        if len(shapes) > 1:
            raise ValueError(f"latency and errors must hold the same pods, found {sorted(shapes)} (canary, stable)")
        pods = shapes.pop()
        if min(pods) < 1:
            raise ValueError(f"both arms need at least one pod slot, found {pods} (canary, stable)")
        ages = None if window.pod_age is None else _ages(window.pod_age, rollouts, pods)
    weight = None if window.weight is None else _weight(window.weight, rollouts)
    return Checked(edges, latency, errors, predictions, pods, by_pod, ages, weight, outputs)


def _categories(name: str, given: Categories, rollouts: int) -> tuple[Array, Array]:
    pc, ps = (_counts(f"{name}.{arm}", getattr(given, arm), rollouts, 2) for arm in ("canary", "stable"))
    pc, ps = (x.sum(axis=1) if x.ndim == 3 else x for x in (pc, ps))
    if pc.shape != ps.shape:
        raise ValueError(f"{name}.canary has shape {pc.shape}, {name}.stable {ps.shape}")
    if pc.shape[1] < 2:
        raise ValueError(f"{name} needs at least two classes")
    return pc.T, ps.T


def _by_pod(name: str, both: list[Array], ndim: int) -> bool:
    axes = {counts.ndim for counts in both}
    if len(axes) > 1:
        raise ValueError(f"{name}: either both arms carry a pod axis or none")
    return axes == {ndim + 1}


def _ages(given: tuple[ArrayLike, ArrayLike], rollouts: int, pods: tuple[int, int]) -> tuple[Array, Array]:
    out = []
    for arm, ages, slots in zip(("canary", "stable"), given, pods, strict=True):
        array = np.asarray(ages, dtype=np.float64)
        if array.shape != (rollouts, slots):
            raise ValueError(f"pod_age of {arm} must have shape {(rollouts, slots)}, found {array.shape}")
        if not (array >= 0).all():
            raise ValueError(f"pod_age of {arm} must be numbers of at least 0; look at {np.argwhere(~(array >= 0))[0]}")
        out.append(np.ascontiguousarray(array.T))
    return out[0], out[1]


def _weight(given: ArrayLike, rollouts: int) -> Array:
    weight = np.asarray(given, dtype=np.float64)
    if weight.shape != (rollouts,):
        raise ValueError(f"weight must have shape {(rollouts,)}, found {weight.shape}")
    bad = np.flatnonzero((weight < 0) | (weight > 1))
    if bad.size:
        raise ValueError(f"weight[{bad[0]}] is {weight[bad[0]]:g}; shares lie between 0 and 1")
    return weight


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
    return out
