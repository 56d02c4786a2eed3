"""Learned margins: how different stable pods or past good releases look from one another, and so what is no harm.

Split conformal prediction with one number, the scale of all margins: if the next good release is exchangeable with
the past ones, it is rolled back with at most the promised probability, whatever the law. Source: reference
statistics.md 5.3 (Vovk et al. 2005 for the quantile).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analyzers.config import Margins, MonitorConfig
from analyzers.monitor import Monitor
from analyzers.windows import Categories, Counts, Histogram, Window, checked

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)
"""Multiples of the default margins that are tried; 1 is the default itself."""


@dataclass(frozen=True, slots=True)
class Learned(Margins):
    """Margins that say in one sentence what they rest on. ``enough`` is False where the given ones were kept."""

    enough: bool = True
    reason: str = ""


def _learned(margins: Margins, enough: bool, reason: str) -> Learned:
    return Learned(margins.latency, margins.errors, margins.predictions, enough, reason)


def scaled(margins: Margins, scale: float) -> Margins:
    """Margins of ``scale`` times the size, on the scale on which each adds up (log for ratios)."""
    return Margins(
        latency=math.exp(scale * math.log(margins.latency)),
        errors=math.exp(scale * math.log(margins.errors)),
        predictions=scale * margins.predictions,
    )


def needed(false_rollback: float) -> int:
    """Past rollouts that the promise takes: 99 for 1 %, 19 for 5 %."""
    return math.ceil(1 / false_rollback - 1e-9) - 1


def learn_margins(past: Sequence[Sequence[Window]], config: MonitorConfig) -> Learned:
    """The smallest margins at which at most the promised share of past good rollouts would have been rolled back.

    past : rollouts, each a sequence of windows with R = 1, by arm; from ``pseudo_canaries`` where there are no past
    rollouts. Fewer than ``needed`` keep the configured margins, and so do margins that cannot be learned.
    Cost: one pass over ``past`` for each scale, rollouts of one length and layout side by side.
    """
    wanted = needed(config.false_rollback)
    for place, rollout in enumerate(past):
        if not rollout:
            raise ValueError(f"past rollout {place} holds no window")
        if checked(rollout[0], 1).pods is not None:
            raise ValueError(f"past rollout {place} holds counts by pod; pods have no margins, give counts by arm")
    if len(past) < wanted:
        return _learned(
            config.margins,
            False,
            f"{len(past)} past rollouts are too few to promise {config.false_rollback:g} (needs {wanted}); "
            "the configured margins are kept",
        )
    rank = math.ceil((len(past) + 1) * (1 - config.false_rollback))
    quiet_at = np.sort(np.concatenate([_smallest_quiet_scale(batch, config) for batch in _batches(past)]))
    scale = float(quiet_at[min(rank, len(past)) - 1])
    if math.isinf(scale):
        return _learned(
            scaled(config.margins, SCALES[-1]),
            False,
            f"even {SCALES[-1]:g} times the configured margins would roll back too many past rollouts; "
            "look at what differs between the pods before trusting any margin",
        )
    return _learned(
        scaled(config.margins, scale),
        True,
        f"learned from {len(past)} past rollouts: {scale:g} times the configured margins",
    )


def pseudo_canaries(windows: Sequence[Window], canary_pods: int, rollouts: int, *, seed: int = 0) -> list[list[Window]]:
    """Rollouts in which random stable pods play the canary against the others, for ``learn_margins``.

    windows : of one rollout (R = 1) with counts by pod; only the stable pods are used. canary_pods : how many play the
    canary. Rollouts of one stretch of time share its pods and hours, so that many of them say less than as many past
    rollouts; take windows from several days.
    """
    rng = np.random.default_rng(seed)
    picks: list[NDArray[np.bool_]] = []
    for _ in range(rollouts):
        first = windows[0].latency or windows[0].errors
        counted = np.asarray(first.stable) if first is not None else np.zeros((1, 0))
        if counted.ndim < 2 or counted.shape[1] <= canary_pods or counted.shape[0] != 1:
            raise ValueError(f"pseudo-canaries need one rollout with more than {canary_pods} stable pods in its counts")
        who = np.zeros(counted.shape[1], bool)
        who[rng.choice(len(who), canary_pods, replace=False)] = True
        picks.append(who)
    return [[_recast(window, who) for window in windows] for who in picks]


def _recast(window: Window, who: NDArray[np.bool_]) -> Window:
    """The window with the stable pods ``who`` as its canary, by arm."""
    latency, errors = window.latency, window.errors
    if latency is not None:
        pods = np.asarray(latency.stable)[0]
        latency = Histogram(latency.edges, pods[who].sum(0)[None], pods[~who].sum(0)[None])
    if errors is not None:
        x, n = np.asarray(errors.stable)[0], np.asarray(errors.stable_total)[0]
        errors = Counts([x[who].sum()], [n[who].sum()], [x[~who].sum()], [n[~who].sum()])
    return Window(latency=latency, errors=errors)


def _batches(past: Sequence[Sequence[Window]]) -> list[list[Window]]:
    """Rollouts of one length whose windows hold the same metrics in the same shapes, as one stream each."""
    alike: dict[tuple[object, ...], list[Sequence[Window]]] = {}
    for rollout in past:
        alike.setdefault(tuple(_kind(window) for window in rollout), []).append(rollout)
    return [[_stacked(windows) for windows in zip(*rollouts, strict=True)] for rollouts in alike.values()]


def _kind(window: Window) -> tuple[object, ...]:
    edges = None if window.latency is None else tuple(float(x) for x in np.asarray(window.latency.edges))
    shapes = [np.shape(x.canary) + np.shape(x.stable) for x in (window.latency, window.errors, window.predictions) if x]
    return (edges, window.errors is None, window.predictions is None, *shapes)


def _stacked(windows: Sequence[Window]) -> Window:
    def stack(metric: str, *fields: str) -> list[NDArray[np.float64]]:
        return [np.concatenate([np.asarray(getattr(getattr(w, metric), f)) for w in windows]) for f in fields]

    one = windows[0]
    return Window(
        latency=one.latency and Histogram(one.latency.edges, *stack("latency", "canary", "stable")),
        errors=one.errors and Counts(*stack("errors", "canary", "canary_total", "stable", "stable_total")),
        predictions=one.predictions and Categories(*stack("predictions", "canary", "stable")),
    )


def _smallest_quiet_scale(stream: Sequence[Window], config: MonitorConfig) -> NDArray[np.float64]:
    """(R,) the smallest scale at which each rollout of the stream is never rolled back, infinite where none is."""
    first = next(x for x in (stream[0].latency, stream[0].errors, stream[0].predictions) if x is not None)
    rollouts = len(np.asarray(first.canary))
    quiet = np.full(rollouts, np.inf)
    for scale in reversed(SCALES):
        monitor = Monitor(replace(config, margins=scaled(config.margins, scale)), rollouts)
        for window in stream:
            verdict = monitor.observe(window)
        # Smaller margins roll back more: a rollout that is quiet here was quiet at every larger scale.
        quiet[~verdict.rollback & (quiet == _next_scale(scale))] = scale
    return quiet


def _next_scale(scale: float) -> float:
    """The next larger scale that is tried; infinite above the largest."""
    place = SCALES.index(scale) + 1
    return SCALES[place] if place < len(SCALES) else math.inf
