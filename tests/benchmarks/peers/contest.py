"""The common form of a contestant, its thresholds, and what came of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peers.stream import Stream

Array = NDArray[np.float64]
Scores = Mapping[str, Array]
"""Signal -> (R, T) score; -inf where the tool does not look."""
Thresholds = Mapping[str, float]

RATE = 0.01
"""False alarms over a whole rollout to which every tool is tuned."""


@dataclass(frozen=True)
class Tool:
    """A contestant.

    scores : what it says of a stream. defaults : its documented settings, each as thresholds by signal. sees : the
    kinds of fault that it has anything to say about ("latency", "tail", "errors", "classes").
    """

    name: str
    scores: Callable[[Stream], Scores]
    defaults: Mapping[str, Thresholds]
    sees: frozenset[str]


def first_reached(scores: Scores, thresholds: Thresholds) -> Array:
    """(R,) index of the first window in which a signal reaches its threshold, inf where none does."""
    reached = np.logical_or.reduce([scores[signal] >= level for signal, level in thresholds.items()])
    return np.where(reached.any(1), reached.argmax(1).astype(float), np.inf)


def highest(scores: Scores) -> dict[str, Array]:
    """(R,) by signal, the highest score of each rollout."""
    return {signal: score.max(1) for signal, score in scores.items()}


def reached_share(tops: Mapping[str, Array], thresholds: Thresholds) -> float:
    """Share of rollouts in which a signal's highest score reaches its threshold."""
    reached = np.logical_or.reduce([tops[signal] >= level for signal, level in thresholds.items()])
    return float(reached.mean())


def tuned(tops: Mapping[str, Array], rate: float = RATE) -> dict[str, float]:
    """Thresholds that at most ``rate`` of the null rollouts with these highest scores (R,) reach in any signal.

    Every signal is reached by equally many rollouts, by as many as leave all signals together within the rate. Scores
    may be tied or whole numbers; the rate is then not used up.
    """
    ordered = {signal: np.sort(top)[::-1] for signal, top in tops.items()}
    allowed = int(rate * len(next(iter(ordered.values()))))
    for each in range(allowed, -1, -1):
        levels = {signal: float(np.nextafter(top[each], np.inf)) for signal, top in ordered.items()}
        if reached_share(tops, levels) <= rate:
            return levels
    raise AssertionError("levels above all scores are reached by none")


@dataclass(frozen=True)
class Found:
    """What became of a fault in the rollouts that still stood at its onset.

    early : share rolled back before it. share : found by the end. median, p90 : windows from onset, misses as infinity.
    requests : median canary requests from onset to the rollback, likewise.
    """

    early: float
    share: float
    median: float
    p90: float
    requests: float


def found(rollback: Array, requests: Array, onset: int) -> Found:
    """Delays of ``rollback`` (R,) from the onset; requests (R, T) of the canary in each window."""
    late = rollback >= onset
    if not late.any():
        return Found(1.0, np.nan, np.nan, np.nan, np.nan)
    delay = rollback[late] + 1 - onset
    served = np.cumsum(requests[late], axis=1, dtype=float)
    before = served[:, onset - 1] if onset else np.zeros(len(served))
    hit = np.isfinite(delay)
    at = np.where(hit, rollback[late], 0).astype(int)
    cost = np.where(hit, served[np.arange(len(at)), at] - before, np.inf)
    median, p90 = np.quantile(delay, (0.5, 0.9), method="inverted_cdf")
    middle = float(np.quantile(cost, 0.5, method="inverted_cdf"))
    return Found(float(1 - late.mean()), float(hit.mean()), float(median), float(p90), middle)
