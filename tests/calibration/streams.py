"""Seeded streams of windows by arm: one law, with the nulls and faults that the promise is about.

Requests are exchangeable within a window; what differs from window to window (load, weight, drift, bursts) differs for
both arms. Latency is log-normal with spread .6, and the slowest 1 % are eight times as slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from analyzers import Categories, Counts, Histogram, Window

Array = NDArray[np.float64]

EDGES_S = np.geomspace(0.005, 5.0, 19)
CLASSES = np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01])
MEDIAN_S, SPREAD, TAIL_SHARE, TAIL_FACTOR = 0.05, 0.6, 0.01, 8.0
RAMP = (0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Law:
    """What happens. Rates are requests a window; everything is «no fault» unless a fault is named.

    onset : window at which the fault begins. slower, tail_share, tail_slower (factor on the slowest 1 %),
    canary_errors, class_move (share of requests moved from the first class to the second) : the faults.
    """

    canary: float = 60.0
    stable: float = 540.0
    errors: float = 0.001
    ramp: bool = False
    """The canary's share goes 5, 10, 25, 50 % while both arms get 20 % slower."""
    day: bool = False
    """Load goes down to a third and back while latency goes up and down by 20 %."""
    wandering: bool = False
    """Latency and load of both arms wander, autocorrelated (.8), by 10 % and 30 %."""
    bursts: bool = False
    """In a tenth of the windows both arms fail ten times as often."""
    arm_bursts: float = 1.0
    """Each arm by itself fails so many times as often in about a tenth of the windows, two windows in a row."""
    lost_share: bool = False
    """The share that really arrives is not the one asked for, another one in every rollout, and wanders."""
    warm_up: float = 0.0
    """The canary starts this much slower; half of it is gone after two windows."""
    onset: int = 0
    slower: float = 1.0
    tail_share: float = TAIL_SHARE
    tail_slower: float = 1.0
    canary_errors: float | None = None
    class_move: float = 0.0
    classes_n: int = len(CLASSES)
    """Classes of the model: 2 as 70 to 30 %, 10 as ``CLASSES``, any other number as 1, 1/2, 1/3 and so on."""
    outputs_n: int = 1
    """Outputs of the model, alike and independent; a fault is in the first."""
    predictions_alone: bool = False
    """Latency and errors are not collected."""

    def without_fault(self) -> Law:
        """The same law with a good release."""
        good = {"onset": 0, "slower": 1.0, "tail_share": TAIL_SHARE, "tail_slower": 1.0, "class_move": 0.0}
        return replace(self, canary_errors=None, **good)  # type: ignore[arg-type]

    @property
    def class_shares(self) -> tuple[Array, Array]:
        """Shares of the classes without the fault and with it."""
        if self.classes_n == len(CLASSES):
            usual = CLASSES
        elif self.classes_n == 2:
            usual = np.array([0.7, 0.3])
        else:
            usual = 1.0 / np.arange(1, self.classes_n + 1)
            usual = usual / usual.sum()
        moved = usual.copy()
        moved[0] -= self.class_move
        moved[1] += self.class_move
        return usual, moved

    def share(self, t: int, length: int) -> float:
        """The canary's share of requests that is asked for in window ``t``."""
        return RAMP[min(3, 4 * t // length)] if self.ramp else self.canary / (self.canary + self.stable)

    def drift(self, t: int, length: int) -> float:
        """How much slower both arms are in window ``t`` than in the first, while the share grows."""
        return 1.0 + 0.2 * t / length if self.ramp else 1.0


def windows(law: Law, rollouts: int, length: int, seed: int) -> Iterator[Window]:
    """``length`` windows of ``rollouts`` rollouts side by side."""
    rng = np.random.default_rng(seed)
    usual, moved = law.class_shares
    total = law.canary + law.stable
    ones = np.ones(rollouts)
    walk = rng.normal(size=(3, rollouts)) if law.wandering or law.lost_share else np.zeros((3, rollouts))
    odds = np.exp(rng.normal(0, 0.5, rollouts)) if law.lost_share else ones
    bursting = np.zeros((2, rollouts), bool)
    for t in range(length):
        share, phase = law.share(t, length), 2 * np.pi * t / length
        rate, slow = total * ones, ones
        if law.ramp:
            slow = slow * law.drift(t, length)
        if law.day:
            rate, slow = rate * (2.0 + np.cos(phase)) / 3.0, slow * (1.0 + 0.2 * np.sin(phase))
        if law.wandering:
            rate, slow = rate * np.exp(0.3 * walk[0]), slow * np.exp(0.1 * walk[1])
        if law.lost_share:
            asked = share / (1 - share) * odds * np.exp(0.3 * walk[2])
            share = asked / (1 + asked)
        n_c, n_s = rng.poisson(rate * share, rollouts), rng.poisson(rate * (1 - share), rollouts)
        fail = np.ones((2, rollouts))
        if law.bursts:
            fail *= np.where(rng.random(rollouts) < 0.1, 10.0, 1.0)
        if law.arm_bursts > 1:
            began = rng.random((2, rollouts)) < 0.05
            fail *= np.where(began | bursting, law.arm_bursts, 1.0)
            bursting = began
        fault = t >= law.onset
        slow_c = slow * (1.0 + law.warm_up * 2.0 ** (-t / 2.0)) * (law.slower if fault else 1.0)
        tail = (law.tail_share, TAIL_FACTOR * law.tail_slower) if fault else (TAIL_SHARE, TAIL_FACTOR)
        failing = law.errors if law.canary_errors is None or not fault else law.canary_errors
        if law.predictions_alone:
            shares = [moved if fault and place == 0 else usual for place in range(law.outputs_n)]
            first, *further = [Categories(rng.multinomial(n_c, p), rng.multinomial(n_s, usual)) for p in shares]
            yield Window(predictions=first, outputs=tuple(further))
            continue
        yield Window(
            Histogram(
                EDGES_S,
                rng.multinomial(n_c, bucket_shares(MEDIAN_S * slow_c, *tail)),
                rng.multinomial(n_s, bucket_shares(MEDIAN_S * slow)),
            ),
            Counts(
                rng.binomial(n_c, np.minimum(1.0, failing * fail[0])), n_c,
                rng.binomial(n_s, np.minimum(1.0, law.errors * fail[1])), n_s,
            ),
            Categories(rng.multinomial(n_c, moved if fault else usual), rng.multinomial(n_s, usual)),
        )  # fmt: skip
        walk = 0.8 * walk + 0.6 * rng.normal(size=walk.shape) if walk.any() else walk


def bucket_shares(median_s: Array, tail_share: float = TAIL_SHARE, tail_factor: float = TAIL_FACTOR) -> Array:
    """(R, K) shares of requests by bucket at the medians (R,)."""
    z = (np.log(EDGES_S) - np.log(median_s)[:, None]) / SPREAD
    below = (1 - tail_share) * ndtr(z) + tail_share * ndtr(z - np.log(tail_factor) / SPREAD)
    ends = np.concatenate([np.zeros((len(below), 1)), below, np.ones((len(below), 1))], axis=1)
    shares: Array = np.diff(ends, axis=1)
    return shares
