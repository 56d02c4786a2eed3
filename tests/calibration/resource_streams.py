"""Seeded streams of what pods use: pods differ, wander, warm up, are replaced, collect garbage, and swing together.

One window a minute. Memory is a part of the limit, so a leak is told as a part of the limit an hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from analyzers.resources import CANARY_PODS, PODS, Measures, PodWindow


@dataclass(frozen=True)
class ResourceLaw:
    """What happens. Everything is «no fault» unless more, leak, jump or happening is set."""

    measures: Measures = "load"
    canary_pods: int = 2
    stable_pods: int = 16
    level: float = 0.5
    """What a settled pod uses: a part of the limit, CPU seconds a request, a share."""
    pod_spread: float = 0.03
    heavy: bool = False
    """Pods are drawn from a t distribution with 3 degrees of freedom of the same spread."""
    noise: float = 0.03
    correlation: float = 0.8
    warm_up: float = 0.0
    """Canary pods start this much above (below, where negative) their level ..."""
    half_life: float = 2.0
    """... and lose half of that in so many windows."""
    saw: float = 0.0
    """Memory falls by this part of itself at every collection, and comes back evenly ..."""
    saw_windows: float = 37.0
    """... in about so many windows."""
    swing: float = 0.0
    """Load of both arms goes up and down by this part over four hours, and by a third of it from minute to minute."""
    idle: float | None = None
    """Part of a pod's use that does not depend on load; None: .2 of what is measured as load, all of memory."""
    canary_load: float = 1.0
    """Requests of a canary pod to those of a stable pod."""
    steps: bool = False
    """The canary's weight rises at each third: load of its pods .3, 1 and 2 times, of stable's 1.1, 1 and .8 times."""
    replaced: bool = False
    """A canary pod and a stable pod are replaced half-way."""
    happening: float = 0.0005
    """Events of a pod and window."""
    onset: int = 0
    more: float = 1.0
    leak: float = 0.0
    """Part of the limit that canary pods grow by in an hour."""
    jump: float = 0.0
    """Canary pods suddenly use this much more, as a part of themselves."""
    canary_happening: float | None = None

    def without_fault(self) -> ResourceLaw:
        """The same law with a good release."""
        return replace(self, onset=0, more=1.0, leak=0.0, jump=0.0, canary_happening=None)


def resource_windows(law: ResourceLaw, rows: int, length: int, seed: int) -> Iterator[PodWindow]:
    """``length`` windows of ``rows`` rows side by side."""
    rng = np.random.default_rng(seed)
    k, m = law.canary_pods, law.stable_pods
    here = np.zeros(PODS, bool)
    here[:k] = here[CANARY_PODS : CANARY_PODS + m] = True
    canary = np.arange(PODS) < CANARY_PODS
    ratio = law.measures in ("load", "memory", "device-memory")

    def levels(shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.standard_t(3, shape) / np.sqrt(3.0) if law.heavy else rng.normal(size=shape)
        return drawn * law.pod_spread

    level = levels((rows, PODS))
    wandering = rng.normal(size=(rows, PODS))
    phase, period = rng.random((rows, PODS)), law.saw_windows * np.exp(0.2 * rng.normal(size=(rows, PODS)))
    age = np.broadcast_to(np.where(canary, 0.0, np.inf), (rows, PODS)).copy()
    start = rng.random((rows, 1))
    for t in range(length):
        new = np.zeros((rows, PODS), bool)
        if law.replaced and t == length // 2:
            new[:, [0, CANARY_PODS]] = True
            level = np.where(new, levels((rows, PODS)), level)
            age[new] = 0.0
        load = 1.0 + law.swing * (np.sin(2 * np.pi * (t / 240 + start)) + rng.normal(size=(rows, 1)) / 3)
        load = np.maximum(load, 0.05) * np.where(canary, law.canary_load, 1.0)
        if law.steps:
            third = 3 * t // length
            load = load * np.where(canary, (0.3, 1.0, 2.0)[third], (1.1, 1.0, 0.8)[third])
        x = level + law.noise * wandering
        if ratio:
            with np.errstate(over="ignore"):
                young = np.where(np.isinf(age), 0.0, law.warm_up * 2.0 ** (-np.minimum(age, 1e6) / law.half_life))
            values = law.level * np.exp(x) * (1.0 + young)
            idle = law.idle if law.idle is not None else 0.2 if law.measures == "load" else 1.0
            values *= idle + (1.0 - idle) * load
            values *= 1.0 - law.saw + law.saw * ((t / period + phase) % 1.0)
        elif law.measures == "share":
            values = np.clip(law.level + x * law.level, 0.0, 1.0)
        elif law.measures == "ready":
            values = np.ones((rows, PODS))
        else:
            values = np.zeros((rows, PODS))
        rate = np.full(PODS, law.happening)
        if t >= law.onset:
            values = np.where(canary, values * law.more * (1.0 + law.jump) + law.leak * (t - law.onset) / 60, values)
            if law.canary_happening is not None:
                rate = np.where(canary, law.canary_happening, rate)
        if law.measures == "events":
            values = values + rng.poisson(rate, (rows, PODS))
        if law.measures == "ready":
            values = values - (rng.random((rows, PODS)) < rate)
        requests = 100.0 * load
        yield PodWindow(
            values=np.where(here, values, np.nan),
            age_s=60.0 * age,
            new=new,
            load=np.stack([requests[:, 0], requests[:, -1]], axis=-1),
            limit=np.broadcast_to(np.where(here, 1.0, np.nan), (rows, PODS)),
            stepped=np.full(rows, law.steps and t > 0 and 3 * t // length != 3 * (t - 1) // length),
        )
        wandering = law.correlation * wandering + np.sqrt(1 - law.correlation**2) * rng.normal(size=wandering.shape)
        age += 1.0
