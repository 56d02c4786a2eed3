"""An API server: VirtualServices with resource versions and JSON Patch, and the status of Deployments."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from kubernetes.aio import client

from service.actuators.virtual_service import FENCE, ROLLOUT
from service.lab.json_patch import PatchFailed, apply
from tests.simulation.process import Line, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

NAMESPACE = "ml"


class Cluster:
    """One cluster's objects. ``on_write`` is told of every VirtualService before and after a write."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.where = f"the API server of {name}"
        self.routes: dict[str, dict[str, Any]] = {}
        self.ready_at_s: dict[str, float] = {}
        """When the candidate of a service has ready endpoints, in the world's seconds."""
        self.seen_ready_s: dict[str, float] = {}
        """When somebody was last told that it has."""
        self.on_write: Callable[[Cluster, str, Mapping[str, Any], Mapping[str, Any]], None] = lambda *_: None
        self.hands: set[str] = set()
        """Routes whose weights were last set by somebody else."""
        self._version = 1

    def furnish(self, service: str) -> None:
        """A service's VirtualService, all traffic on stable."""
        route = [
            {"destination": {"host": service, "subset": "stable"}, "weight": 100},
            {"destination": {"host": service, "subset": "canary"}, "weight": 0},
        ]
        body = {"metadata": {"name": service, "namespace": NAMESPACE}, "spec": {"http": [{"route": route}]}}
        self._keep(service, body)

    def weight(self, service: str) -> int:
        """The canary's weight that stands."""
        return weight_of(self.routes[service])

    def by_hand(self, service: str, canary: int) -> None:
        """Somebody else sets the weights."""
        body = copy.deepcopy(self.routes[service])
        stable, other = body["spec"]["http"][0]["route"]
        stable["weight"], other["weight"] = 100 - canary, canary
        self._keep(service, body)
        self.hands.add(service)

    def patch(self, name: str, patch: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Apply a JSON Patch as the API server does: all of it or nothing."""
        before = self.routes.get(name)
        if before is None:
            raise client.ApiException(status=404, reason="NotFound")
        try:
            after = apply(before, patch)
        except PatchFailed as failed:
            raise client.ApiException(status=422, reason=str(failed)) from None
        if after != before:
            self.on_write(self, name, before, after)
            self._keep(name, after)
            self.hands.discard(name)
        return copy.deepcopy(self.routes[name])

    def _keep(self, name: str, body: dict[str, Any]) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.routes[name] = body


class Api:
    """What IstioMesh asks of CustomObjectsApi, for one process."""

    def __init__(self, cluster: Cluster, process: Process) -> None:
        self._cluster = cluster
        self._process = process
        self._line = Line(process, "api", cluster.where)

    async def get_namespaced_custom_object(
        self, group: str, version: str, namespace: str, plural: str, name: str, *, _request_timeout: float = 10.0
    ) -> dict[str, Any]:
        """One object."""

        async def act() -> dict[str, Any]:
            if plural == "deployments":
                return self._deployment(name)
            if name not in self._cluster.routes:
                raise client.ApiException(status=404, reason="NotFound")
            return copy.deepcopy(self._cluster.routes[name])

        return await self._call(f"read {plural} {name}", act, _request_timeout, ("error", "throttled", "slow", "hang"))

    async def list_namespaced_custom_object(
        self, group: str, version: str, namespace: str, plural: str, *, _request_timeout: float = 10.0, **_: Any
    ) -> dict[str, Any]:
        """Every VirtualService."""

        async def act() -> dict[str, Any]:
            return {"items": copy.deepcopy(list(self._cluster.routes.values())), "metadata": {}}

        return await self._call("list the routes", act, _request_timeout, ("error", "throttled", "slow", "hang"))

    async def patch_namespaced_custom_object(
        self,
        group: str,
        version: str,
        namespace: str,
        plural: str,
        name: str,
        body: list[Mapping[str, Any]],
        *,
        _request_timeout: float = 10.0,
        **_: Any,
    ) -> dict[str, Any]:
        """Patch one object."""

        async def act() -> dict[str, Any]:
            return self._cluster.patch(name, body)

        fates = ("error", "throttled", "conflict", "lost", "slow", "hang", "late", "forbidden")
        # Writes are few, and most can go wrong with them.
        return await self._call(f"patch {name}", act, _request_timeout, fates, risk=0.5)

    def _deployment(self, name: str) -> dict[str, Any]:
        service, now_s = name.removesuffix("-canary"), self._process.world.loop.time()
        ready_n = 2 if now_s >= self._cluster.ready_at_s.get(service, 0.0) else 0
        if ready_n:
            self._cluster.seen_ready_s[service] = now_s
        return {
            "metadata": {"generation": 1},
            "spec": {"replicas": 2},
            "status": {"observedGeneration": 1, "readyReplicas": ready_n, "updatedReplicas": 2},
        }

    async def _call(self, what: str, act: Any, timeout_s: float, fates: tuple[str, ...], *, risk: float = 0.2) -> Any:
        return await self._line.call(what, act, away=_away, timeout_s=timeout_s, risk=risk, fates=fates)


def _away(why: str) -> Exception:
    statuses = {"error": 500, "throttled": 429, "conflict": 409, "forbidden": 403}
    return client.ApiException(status=statuses[why], reason=why) if why in statuses else TimeoutError(why)


def weight_of(virtual_service: Mapping[str, Any]) -> int:
    """The canary's weight."""
    return int(virtual_service["spec"]["http"][0]["route"][1]["weight"])


def fence_of(virtual_service: Mapping[str, Any]) -> int:
    """The fencing number, 0 where there is none."""
    annotations = virtual_service["metadata"].get("annotations") or {}
    return int(json.loads(annotations.get(FENCE, "{}")).get("", 0))


def rollout_of(virtual_service: Mapping[str, Any]) -> str:
    """The rollout that wrote last."""
    return str((virtual_service["metadata"].get("annotations") or {}).get(ROLLOUT, ""))
