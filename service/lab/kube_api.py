"""The API server's side of what Serinus asks: VirtualServices, Deployments, pods, EndpointSlices, access reviews.

Held to the same contract tests as a real kube-apiserver with Istio's CRDs (tests/contract/mesh, .../workloads).
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from service.lab.json_patch import PatchFailed, apply
from service.lab.server import Served

Object = dict[str, Any]
Key = tuple[str, str, str]
"""(plural, namespace, name)."""

SERVED = {
    "virtualservices": ("networking.istio.io", ("v1", "v1beta1")),
    "deployments": ("apps", ("v1",)),
    "endpointslices": ("discovery.k8s.io", ("v1",)),
}


class KubeApi(Served):
    """``objects`` is the store; ``answers`` are given first to writes, one a call, as HTTP status."""

    def __init__(self, on_change: Callable[[Object], None] | None = None) -> None:
        super().__init__()
        self.objects: dict[Key, Object] = {}
        self.answers: deque[int] = deque()
        self.writes: list[Object] = []
        """Every VirtualService as it stood after a patch, in order."""
        self.slow: asyncio.Event | None = None
        """Patches wait for it."""
        self.asked_n = 0
        """Patches that have come in."""
        self.forbidden: set[str] = set()
        """Namespaces and plurals that may not be read."""
        self.logs: dict[tuple[str, str, str, bool], list[tuple[float, str]]] = {}
        """Lines with their moments, by (namespace, pod, container, whether of the container before the present one)."""
        self._version = 1
        self._on_change = on_change or (lambda _: None)

    def put(self, plural: str, body: Object) -> None:
        """Place an object, as `kubectl apply` would."""
        metadata = body["metadata"]
        self._version += 1
        stored = copy.deepcopy(body)
        stored["metadata"]["resourceVersion"] = str(self._version)
        self.objects[(plural, metadata["namespace"], metadata["name"])] = stored
        if plural == "virtualservices":
            self._on_change(stored)

    def kubeconfig(self, file: Path) -> Path:
        """A kubeconfig for this server."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.url}}],
            "users": [{"name": "lab", "user": {"token": "lab"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        }
        file.write_text(json.dumps(config))
        return file

    def routes(self) -> list[web.RouteDef]:
        """The paths that are asked."""
        base = "/apis/{group}/{version}/namespaces/{namespace}/{plural}"
        return [
            web.get(base, self._list),
            web.get(base + "/{name}", self._get),
            web.patch(base + "/{name}", self._patch),
            web.get("/api/v1/namespaces/{namespace}/{plural:pods}", self._list),
            web.get("/api/v1/namespaces/{namespace}/pods/{name}/log", self._log),
            web.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._review),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        plural, namespace = request.match_info["plural"], request.match_info["namespace"]
        if self.forbidden & {namespace, plural}:
            return _status(403, "Forbidden", "as told")
        wanted = dict(part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part)
        after, limit = request.query.get("continue", ""), int(request.query.get("limit") or 0)
        names = sorted(
            name
            for (kind, space, name), body in self.objects.items()
            if (kind, space) == (plural, namespace)
            and name > after
            and wanted.items() <= (body["metadata"].get("labels") or {}).items()
        )
        page = names[:limit] if limit else names
        metadata = {"continue": page[-1]} if len(page) < len(names) else {}
        items = [self.objects[(plural, namespace, name)] for name in page]
        return web.json_response({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})

    async def _get(self, request: web.Request) -> web.Response:
        if request.match_info["namespace"] in self.forbidden:
            return _status(403, "Forbidden", "as told")
        found = self._find(request)
        return _status(404, "NotFound", "not found") if found is None else web.json_response(found)

    async def _log(self, request: web.Request) -> web.Response:
        """As the kubelet gives it: from a moment on, cut off after some bytes."""
        namespace, pod, asked = request.match_info["namespace"], request.match_info["name"], request.query
        if namespace in self.forbidden:
            return _status(403, "Forbidden", "pods/log is forbidden")
        if ("pods", namespace, pod) not in self.objects:
            return _status(404, "NotFound", f'pods "{pod}" not found', name=pod)
        listed = self.logs.get((namespace, pod, asked.get("container", ""), asked.get("previous") in ("true", "True")))
        if listed is None:
            return _status(400, "BadRequest", f'container "{asked.get("container", "")}" is waiting to start')
        since_s = time.time() - int(asked.get("sinceSeconds", 10**9))
        stamped = asked.get("timestamps") in ("true", "True")
        text = "".join(
            (f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z " if stamped else "") + f"{line}\n"
            for at_s, line in listed
            if at_s >= since_s
        )
        return web.Response(body=text.encode()[: int(asked.get("limitBytes", 10**9))], content_type="text/plain")

    async def _patch(self, request: web.Request) -> web.Response:
        self.asked_n += 1
        if self.slow is not None:
            await self.slow.wait()
        if self.answers and (status := self.answers.popleft()) != 200:
            reason = {409: "Conflict", 403: "Forbidden", 429: "TooManyRequests"}.get(status, "InternalError")
            return _status(status, reason, "as told", retry_after=status == 429)
        found = self._find(request)
        if found is None:
            return _status(404, "NotFound", "not found")
        if request.content_type != "application/json-patch+json":
            return _status(415, "UnsupportedMediaType", f"{request.content_type} is not supported here")
        try:
            changed = apply(found, await request.json())
        except PatchFailed:
            return _status(422, "Invalid", "the server rejected our request due to an error in our request")
        for route in changed.get("spec", {}).get("http", []):
            for one in route.get("route", []):
                weight = one.get("weight", 0)
                if isinstance(weight, bool) or not isinstance(weight, int):
                    return _status(422, "Invalid", f"spec.http.route.weight: Invalid value: {weight!r}")
        if changed != found:
            self.put(request.match_info["plural"], changed)
            self.writes.append(copy.deepcopy(self._find(request) or {}))
        return web.json_response(self._find(request))

    async def _review(self, request: web.Request) -> web.Response:
        body = await request.json()
        return web.json_response({**body, "status": {"allowed": True}}, status=201)

    def _find(self, request: web.Request) -> Object | None:
        info = request.match_info
        group, versions = SERVED.get(info["plural"], ("", ()))
        if info["group"] != group or info["version"] not in versions:
            return None
        return self.objects.get((info["plural"], info["namespace"], info["name"]))


def _status(code: int, reason: str, message: str, *, name: str = "", retry_after: bool = False) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "details": {"name": name},
        "code": code,
    }
    return web.json_response(body, status=code, headers={"Retry-After": "1"} if retry_after else None)
