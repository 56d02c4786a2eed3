"""The floor: a CUSUM of the true log likelihood ratio, which knows the fault, its strength and every window's law.

C_t = max(0, C_{t-1}) + llr_t (Page 1954; optimal for a known change, Moustakides 1986). Only the metric that the fault
touches is looked at, and the whole 1 % of false alarms is spent on it. The onset is not known to it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from tests.benchmarks.peers.contest import Scores
from tests.benchmarks.peers.scenarios import Scenario
from tests.benchmarks.peers.stream import Stream
from tests.calibration.streams import CLASSES, MEDIAN_S, TAIL_FACTOR, TAIL_SHARE, Law, bucket_shares

Array = NDArray[np.float64]

MOST_OF_A_CLASS = 0.9
"""A class smaller than the mass that is moved gives at most this part of itself."""


def oracle(scenario: Scenario, stream: Stream) -> Scores:
    """The CUSUM of what the fault of ``scenario`` does to the one metric that it touches, (R, T) in nats."""
    law, touches = scenario.law, scenario.touches
    if touches == "errors":
        llr = _binomial(stream.canary.failed, stream.canary.total, law.errors, law.canary_errors or law.errors)
    elif touches == "classes":
        moved = CLASSES.copy()
        moved[0] -= law.class_move
        moved[1] += law.class_move
        llr = stream.canary.classes @ np.log(moved / CLASSES)
    else:
        llr = np.einsum("rtk,tk->rt", stream.canary.latency, _latency_weights(law, stream.shape[1]))
    return {touches: cusum(llr)}


def any_pair(scenario: Scenario, stream: Stream) -> Scores:
    """For class moves: as much mass moved from any class to any other, all 90 ordered pairs alike, (R, T) in nats.

    Knows the shares and the strength but not the pair. Shiryaev-Roberts sums by pair, averaged, so that pairs and
    onsets are both mixed over.
    """
    move, size = scenario.law.class_move, len(CLASSES)
    weights = []
    for i in range(size):
        for j in range(size):
            if i != j:
                moved = CLASSES.copy()
                mass = min(move, MOST_OF_A_CLASS * CLASSES[i])
                moved[i] -= mass
                moved[j] += mass
                weights.append(np.log(moved / CLASSES))
    llr = stream.canary.classes @ np.array(weights).T
    total = np.zeros(llr[:, 0].shape)
    out = np.empty(stream.shape)
    for t in range(stream.shape[1]):
        total = (1 + total) * np.exp(llr[:, t])
        out[:, t] = np.log(total.mean(1))
    return {"any pair": out}


def cusum(llr: Array) -> Array:
    """(R, T) Page's recursion along the windows."""
    out = np.empty(llr.shape)
    level = np.zeros(len(llr))
    for t in range(llr.shape[1]):
        level = np.maximum(level, 0) + llr[:, t]
        out[:, t] = level
    return out


def _latency_weights(law: Law, length: int) -> Array:
    """(T, K) log likelihood ratio of one canary request by its bucket, in each window of the law."""
    drift = np.array([law.drift(t, length) for t in range(length)])
    good = bucket_shares(MEDIAN_S * drift, TAIL_SHARE, TAIL_FACTOR)
    bad = bucket_shares(MEDIAN_S * drift * law.slower, law.tail_share, TAIL_FACTOR * law.tail_slower)
    weights: Array = np.log(bad / good)
    return weights


def _binomial(x: NDArray[np.int64], n: NDArray[np.int64], p0: float, p1: float) -> Array:
    llr: Array = xlogy(x, p1 / p0) + xlogy(n - x, (1 - p1) / (1 - p0))
    return llr
