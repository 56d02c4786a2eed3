"""The world of the demo: two versions of a model server behind a route, and the requests of many users.

Requests are drawn, not made: each step draws how many there were, which side of the route they took by the weights
that stand in the VirtualService, and how each side answered. The counters grow as real servers' counters would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

EDGES_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5)
CLASSES = ("cat", "dog", "bird", "fish", "other")
SHARES = np.array([0.35, 0.3, 0.2, 0.1, 0.05])
TAIL_TIMES = 8.0


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one version answers."""

    median_s: float = 0.04
    spread: float = 0.35
    tail_share: float = 0.01
    error_rate: float = 0.005
    shares: tuple[float, ...] = tuple(SHARES)
    says: str = ""
    """A line that it writes to its log when it serves."""
    leak_mib_per_s: float = 0.0
    gpu_step_mib: float = 0.0
    """So much more GPU memory is taken some seconds after the first request."""


HEALTHY = Behaviour()
FAULTS: Mapping[str, Behaviour] = {
    "none": HEALTHY,
    "latency": replace(HEALTHY, median_s=0.06),
    "tail": replace(HEALTHY, tail_share=0.06),
    "errors": replace(HEALTHY, error_rate=0.04),
    "drift": replace(HEALTHY, shares=(0.2, 0.45, 0.2, 0.1, 0.05)),
    "blackout": HEALTHY,
    "opkernel": replace(
        HEALTHY,
        error_rate=0.007,
        says="Not found: No registered 'SegmentMaxV2' OpKernel for 'CPU' devices compatible with node {{node y}}",
    ),
    "memory": replace(HEALTHY, leak_mib_per_s=40.0),
    "gpu-memory": replace(HEALTHY, gpu_step_mib=3000.0),
    "scan": HEALTHY,
    "incompatible-model": HEALTHY,
}
"""Faults of the candidate; ``blackout`` is the metric store's fault, and the last two show before any traffic."""


PODS = {"v1": 10, "v2": 4}
GPU_STEP_AFTER_S = 8.0


@dataclass(frozen=True, slots=True)
class _Pod:
    """One pod, which uses a little more or less than others of its kind."""

    version: str
    memory: float
    gpu: float


class World:
    """Draws traffic and counts it."""

    def __init__(self, *, requests_per_s: float, seed: int, job: str = "tf-serving") -> None:
        self._job = job
        self._requests_per_s = requests_per_s
        self._rng = np.random.default_rng(seed)
        self.behaviours = {"v1": HEALTHY, "v2": HEALTHY}
        self.canary_percent = 0
        self.weights_seen: list[int] = []
        self.served: dict[str, int] = {"v1": 0, "v2": 0}
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._pods = {
            f"tf-model-{version}-{n}": _Pod(version, *self._rng.normal(1.0, 0.01, 2))
            for version, pods_n in PODS.items()
            for n in range(pods_n)
        }
        self._served_s = 0.0
        """How long the canary has served."""

    def follow(self, virtual_service: Mapping[str, Any]) -> None:
        """Take the weights of the route, as the mesh would."""
        route = virtual_service["spec"]["http"][0]["route"]
        weights = {one["destination"]["subset"]: one.get("weight", 0) for one in route}
        percent = round(100 * weights["v2"] / (sum(weights.values()) or 1))
        if not self.weights_seen or self.weights_seen[-1] != percent:
            self.weights_seen.append(percent)
        self.canary_percent = percent

    def step(self, seconds: float) -> None:
        """Let so much time's requests happen."""
        self._served_s = self._served_s + seconds if self.canary_percent else 0.0
        total = int(self._rng.poisson(self._requests_per_s * seconds))
        canary = int(self._rng.binomial(total, self.canary_percent / 100))
        for version, n in (("v1", total - canary), ("v2", canary)):
            self.served[version] += n
            self._serve(version, n)

    def lines(self) -> Iterator[tuple[str, str]]:
        """(version, line) of what was logged in a step."""
        for version, behaviour in self.behaviours.items():
            yield version, "I external/org_tensorflow: served"
            if behaviour.says and (version != "v2" or self.canary_percent):
                yield version, behaviour.says

    def _serve(self, version: str, n: int) -> None:
        behaviour = self.behaviours[version]
        failed = int(self._rng.binomial(n, behaviour.error_rate))
        self._count("http_requests_total", {"version": version, "code": "200"}, n - failed)
        self._count("http_requests_total", {"version": version, "code": "500"}, failed)
        latency_s = behaviour.median_s * np.exp(behaviour.spread * self._rng.standard_normal(n))
        latency_s *= np.where(self._rng.random(n) < behaviour.tail_share, TAIL_TIMES, 1.0)
        below = np.searchsorted(np.sort(latency_s), EDGES_S, side="right")
        for edge, count in zip((*(repr(e) for e in EDGES_S), "+Inf"), (*below, n), strict=True):
            self._count("model_latency_seconds_bucket", {"version": version, "le": edge}, int(count))
        for name, count in zip(CLASSES, self._rng.multinomial(n, behaviour.shares), strict=True):
            self._count("model_predictions_total", {"version": version, "class": name}, int(count))

    def _count(self, name: str, labels: Mapping[str, str], n: int) -> None:
        full = {"job": self._job, "instance": f"{labels['version']}-0", **labels}
        key = (name, tuple(sorted(full.items())))
        self._counters[key] = self._counters.get(key, 0.0) + n

    def series(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Every counter as a scrape sees it."""
        for (name, labels), value in self._counters.items():
            yield name, dict(labels), value
        for pod, one in self._pods.items():
            labels_of_pod = {"namespace": "ml-serving", "pod": pod, "version": one.version, "job": self._job}
            behaviour = self.behaviours[one.version]
            served_s = self._served_s if one.version == "v2" else 0.0
            stepped = served_s > GPU_STEP_AFTER_S
            noise = self._rng.normal(1.0, 0.002, 2)
            memory = 2000.0 * one.memory * noise[0] + behaviour.leak_mib_per_s * served_s
            gpu = 9000.0 * one.gpu * noise[1] + behaviour.gpu_step_mib * stepped
            yield "container_memory_working_set_bytes", {**labels_of_pod, "container": "serving"}, memory * 2**20
            yield "container_spec_memory_limit_bytes", {**labels_of_pod, "container": "serving"}, 8000.0 * 2**20
            yield "DCGM_FI_DEV_FB_USED", {**labels_of_pod, "gpu": "0"}, gpu
            yield "DCGM_FI_DEV_FB_FREE", {**labels_of_pod, "gpu": "0"}, 16000.0 - gpu
