"""Seeded streams of windows by pod: pods that differ, wander, warm up, are replaced, and fail in bursts.

The law is that of reference statistics-pods.md section 4, drawn anew: twelve buckets (Prometheus' defaults), log-normal
latency with spread .6 and 1 % of requests eight times as slow, one window a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from analyzers import Counts, Histogram, Window

BOUNDS_S = np.array([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
SPREAD = 0.6


@dataclass(frozen=True)
class PodLaw:
    """What happens; spreads are of log latency. Everything is «no fault» unless slower, tail or failing is set."""

    canary_pods: int = 2
    stable_pods: int = 18
    requests: float = 600.0
    ramp: bool = False
    """The canary's share of requests goes 5, 10, 25, 50 % while both arms get 20 % slower."""
    pod_spread: float = 0.0
    heavy: bool = False
    """Pods are drawn from a t distribution with 3 degrees of freedom of the same spread."""
    noise: float = 0.0
    correlation: float = 0.8
    warm_up: float = 0.0
    """Canary pods start this much slower."""
    half_life: float = 2.0
    replaced: bool = False
    """One canary pod is replaced half-way."""
    arm_bursts: float = 0.0
    """Each arm by itself fails so many times as often in a tenth of the windows."""
    pod_bursts: float = 0.0
    odd_pod: float = 0.0
    """One stable pod is this much slower."""
    failing_stable: float = 0.001
    onset: int = 0
    slower: float = 1.0
    tail_share: float = 0.01
    failing: float | None = None

    def without_fault(self) -> PodLaw:
        """The same law with a good release."""
        return replace(self, onset=0, slower=1.0, tail_share=0.01, failing=None)


def pod_windows(law: PodLaw, rollouts: int, length: int, seed: int) -> Iterator[Window]:
    """``length`` windows of ``rollouts`` rollouts side by side, canary pods first in the draws."""
    rng = np.random.default_rng(seed)
    k, m = law.canary_pods, law.stable_pods
    pods = k + m
    canary = np.arange(pods) < k
    median = np.exp(rng.uniform(np.log(0.06), np.log(0.16), (rollouts, 1)))

    def levels(shape: tuple[int, int]) -> np.ndarray:
        drawn = rng.standard_t(3, shape) / np.sqrt(3.0) if law.heavy else rng.normal(size=shape)
        return drawn * law.pod_spread

    level = levels((rollouts, pods))
    if law.odd_pod:
        level[:, -1] += np.log1p(law.odd_pod)
    wandering = rng.normal(size=(rollouts, pods))
    bursting = np.zeros((rollouts, pods), bool)
    age = np.where(canary, 0.0, 1e6)
    for t in range(length):
        share = (0.05, 0.1, 0.25, 0.5)[min(3, 4 * t // length)] if law.ramp else k / pods
        rate = law.requests * np.where(canary, share / k, (1.0 - share) / m)
        if law.replaced and t == length // 2:
            level[:, :1] = levels((rollouts, 1))
            age[0] = 0.0
        fault = t >= law.onset
        log_median = np.log(median) + (0.2 * t / length if law.ramp else 0.0) + level + law.noise * wandering
        log_median = log_median + np.where(canary, np.log1p(law.warm_up * 2.0 ** (-age / law.half_life)), 0.0)
        tail = np.full(pods, 0.01)
        if fault:
            log_median = log_median + np.where(canary, np.log(law.slower), 0.0)
            tail = np.where(canary, law.tail_share, tail)
        below = (np.log(BOUNDS_S) - log_median[..., None]) / SPREAD
        below = (1 - tail[:, None]) * ndtr(below) + tail[:, None] * ndtr(below - np.log(8.0) / SPREAD)
        ends = np.concatenate([np.zeros((rollouts, pods, 1)), below, np.ones((rollouts, pods, 1))], -1)
        counts = rng.poisson(rate[:, None] * np.diff(ends, axis=-1))
        failing = np.where(
            canary & fault, law.failing_stable if law.failing is None else law.failing, law.failing_stable
        )
        fails = np.broadcast_to(failing, (rollouts, pods)).copy()
        if law.arm_bursts or law.pod_bursts:
            began = rng.random((rollouts, pods)) < 0.05
            if law.arm_bursts:
                began = np.where(canary, began[:, :1], began[:, -1:])
            fails *= np.where(began | bursting, law.arm_bursts or law.pod_bursts, 1.0)
            bursting = began
        total = counts.sum(-1)
        errors = rng.binomial(total, np.minimum(fails, 1.0))
        ages = np.broadcast_to(age, (rollouts, pods))
        yield Window(
            latency=Histogram(BOUNDS_S, counts[:, :k], counts[:, k:]),
            errors=Counts(errors[:, :k], total[:, :k], errors[:, k:], total[:, k:]),
            pod_age=(ages[:, :k], ages[:, k:]),
        )
        wandering = law.correlation * wandering + np.sqrt(1 - law.correlation**2) * rng.normal(size=wandering.shape)
        age = age + 1.0
