"""What is measured of pods' resources: the nulls of the promise, and the faults that must be found.

Nulls are measured without a margin, at the whole rate of 1 % for a row; a margin makes them only rarer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analyzers.resources import ResourceConfig, ResourceMonitor
from tests.calibration.measuring import Outcome
from tests.calibration.resource_streams import ResourceLaw, resource_windows


@dataclass(frozen=True)
class ResourceCell:
    """One thing that is measured. rate : promised for the row. margin : None for the default."""

    name: str
    law: ResourceLaw
    length: int
    rate: float = 0.01
    margin: float | None = None


def measure_resources(cell: ResourceCell, rollouts: int, seed: int) -> Outcome:
    """The first window in which each row is harmful."""
    config = ResourceConfig(cell.law.measures, cell.rate, cell.margin, cell.length)
    monitor = ResourceMonitor(config, rollouts)
    first = np.full(rollouts, np.inf)
    for t, window in enumerate(resource_windows(cell.law, rollouts, cell.length, seed), start=1):
        first[np.isinf(first) & monitor.observe(window).harmful] = t
    never = np.full(rollouts, np.inf)
    return Outcome(rollback=first, pause=never, safe=never, requests=never)


PODS = {"1 of 10": (1, 9), "2 of 18": (2, 16), "5 of 10": (5, 5), "1 of 2": (1, 1)}
LOAD = ResourceLaw()
MEMORY = ResourceLaw(measures="memory", pod_spread=0.05, noise=0.02, saw=0.1)
DEVICE = ResourceLaw(measures="device-memory", noise=0.005)
NULLS: tuple[tuple[str, ResourceLaw, int], ...] = (
    ("load: pods 3 %, noise 3 %", LOAD, 60),
    ("load: pods alike", replace(LOAD, pod_spread=0.0), 60),
    ("load: pods 8 %, noise 10 %", replace(LOAD, pod_spread=0.08, noise=0.1), 60),
    ("load: noise 10 %, correlation .95", replace(LOAD, pod_spread=0.0, noise=0.1, correlation=0.95), 60),
    ("load: pods of heavy tails, 8 %", replace(LOAD, pod_spread=0.08, heavy=True), 60),
    ("load: warm-up", replace(LOAD, warm_up=0.6), 60),
    ("load: replaced, warm-up both times", replace(LOAD, warm_up=0.6, replaced=True), 60),
    ("load: weight rises twice", replace(LOAD, swing=0.2, steps=True), 480),
    ("load: swings, canary has half the load", replace(LOAD, swing=0.4, canary_load=0.5), 480),
    ("load: swings, canary has 1.5 times the load", replace(LOAD, swing=0.4, canary_load=1.5), 480),
    ("load: pods 8 %, noise 10 %", replace(LOAD, pod_spread=0.08, noise=0.1), 1440),
    ("share: throttled 10 %, pods 20 %", ResourceLaw(measures="share", level=0.1, pod_spread=0.2, noise=0.3), 480),
    ("memory: collection", replace(MEMORY, saw=0.2), 480),
    ("memory: noise 5 %, correlation .98", ResourceLaw(measures="memory", noise=0.05, correlation=0.98), 480),
    ("memory: pods alike, pods fill in 15 min", replace(MEMORY, pod_spread=0.0, warm_up=-0.5, half_life=15.0), 480),
    ("memory: pods 8 %, fill in 30 min", replace(MEMORY, pod_spread=0.08, warm_up=-0.5, half_life=30.0), 480),
    ("memory: half of it by load, canary has twice the load",
        replace(MEMORY, idle=0.5, swing=0.3, canary_load=2.0), 480),
    ("memory: half of it by load, weight rises twice", replace(MEMORY, idle=0.5, swing=0.2, steps=True), 480),
    ("memory: replaced, fill in 30 min",
        replace(MEMORY, pod_spread=0.08, noise=0.01, warm_up=-0.5, half_life=30.0, replaced=True), 1440),
    ("memory: collection", replace(MEMORY, saw=0.2), 1440),
    ("device memory: pods 8 %", replace(DEVICE, pod_spread=0.08), 240),
    ("device memory: a fifth of it by load, canary has twice the load",
        replace(DEVICE, idle=0.8, swing=0.3, canary_load=2.0), 240),
    ("device memory: a fifth of it by load, weight rises twice",
        replace(DEVICE, idle=0.8, steps=True), 240),
    ("device memory: noise 5 %, correlation .5", replace(DEVICE, noise=0.05, correlation=0.5), 240),
    ("device memory: replaced, fill in 10 min",
        replace(DEVICE, noise=0.01, warm_up=-0.4, half_life=10.0, replaced=True), 240),
    ("events: 1 a day of a pod", ResourceLaw(measures="events", happening=1 / 1440), 1440),
    ("events: 1 in 100 min of a pod", ResourceLaw(measures="events", happening=0.01), 480),
    ("readiness: lost once in 500 min of a pod", ResourceLaw(measures="ready", happening=0.002), 480),
)  # fmt: skip
RATE = 0.0005
"""Of a row where six resources share a fifth and more of a policy's 1 %, about."""
FILLING = replace(MEMORY, pod_spread=0.08, warm_up=-0.5)
"""What fills up for hours is told from a leak by a test of its own, so it is measured at the rate of a row, too."""
SLOW_START = replace(LOAD, warm_up=0.6, half_life=5.0)
NULLS_RESOURCES = [
    ResourceCell(f"{pods}, {name}", replace(law, canary_pods=k, stable_pods=m), length,
                 margin=0.0 if law.measures == "share" else 1.0)
    for pods, (k, m) in PODS.items()
    for name, law, length in NULLS
] + [
    ResourceCell(f"{pods}, load: warm-up of half-life 5 min, margin 1.2",
                 replace(SLOW_START, canary_pods=k, stable_pods=m), 60)
    for pods, (k, m) in PODS.items()
] + [
    ResourceCell(f"{pods}, memory: half-life of filling {half_life} min, at .05 %",
                 replace(FILLING, half_life=half_life, canary_pods=k, stable_pods=m), 240, rate=RATE, margin=1.0)
    for pods, (k, m) in PODS.items()
    for half_life in (30, 60, 120)
]  # fmt: skip

LEAKING, JUMPING = replace(MEMORY, leak=0.01), replace(DEVICE, jump=0.2)
FAULTS: tuple[tuple[str, ResourceLaw, int], ...] = (
    ("load x1.5 at 60, pods 3 %", replace(LOAD, more=1.5, onset=60), 240),
    ("load x2 at 60, pods 5 %, noise 5 %", replace(LOAD, more=2.0, onset=60, pod_spread=0.05, noise=0.05), 240),
    ("load x4 at 60, pods 5 %, noise 5 %", replace(LOAD, more=4.0, onset=60, pod_spread=0.05, noise=0.05), 240),
    ("leak 4 %/h from the start, at 50 % of the limit", replace(LEAKING, leak=0.04), 600),
    ("leak 1 %/h from the start, at 50 % of the limit", LEAKING, 1500),
    ("leak 1 %/h from 240, at 50 % of the limit", replace(LEAKING, onset=240), 1740),
    ("leak 1 %/h from the start, at 80 % of the limit", replace(LEAKING, level=0.8), 600),
    ("GPU memory +20 % at 60", replace(JUMPING, onset=60), 240),
    ("GPU memory +20 % at 600", replace(JUMPING, onset=600), 1440),
    ("GPU memory +10 % at 600", replace(JUMPING, jump=0.1, onset=600), 1440),
    ("restarts 1 in 20 min of a canary pod, at 0", ResourceLaw(measures="events", canary_happening=0.05), 240),
)
FAULTS_RESOURCES = [
    ResourceCell(f"{pods}, {name}", replace(law, canary_pods=k, stable_pods=m), length, rate=RATE)
    for pods, (k, m) in PODS.items()
    for name, law, length in FAULTS
]
