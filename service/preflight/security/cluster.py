"""Reads the candidate's Deployment and its pods from one cluster's API server. Never writes."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from kubernetes.aio import client

from service.cluster import Right, answered
from service.preflight.outside import readable
from service.preflight.security.posture import NoSpec
from service.preflight.security.workload import Workload, selector_of, workload
from service.ring.ports import Refused, Unavailable

NEEDED = (Right("get", "apps", "deployments"), Right("list", "", "pods"))
"""Every right that this room uses, and no other."""

MAX_PODS_N = 50
MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Fifty pods with their managed fields have a tenth of it."""


class KubernetesWorkloads:
    """Implements ``gate.Workloads`` on one cluster."""

    def __init__(self, api: client.ApiClient, *, timeout_s: float = 10.0) -> None:
        self._apps = client.AppsV1Api(api)
        self._core = client.CoreV1Api(api)
        self._timeout_s = timeout_s

    async def workload(self, namespace: str, deployment: str) -> Workload:
        """See ``gate.Workloads``."""
        where = f"Deployment {namespace}/{deployment}"
        try:
            with answered(f"read {where}"):
                found = await _body(
                    await self._apps.read_namespaced_deployment_without_preload_content(
                        deployment, namespace, _request_timeout=self._timeout_s
                    )
                )
        except client.ApiException as error:
            raise Refused(f"{where} is not there ({error.status})") from error
        pods: dict[str, Any] = {}
        unlisted = ""
        try:
            selector = selector_of(found)
            with answered(f"list the pods of {where}"):
                pods = await _body(
                    await self._core.list_namespaced_pod_without_preload_content(
                        namespace,
                        label_selector=selector,
                        limit=MAX_PODS_N,
                        _request_timeout=self._timeout_s,
                    )
                )
        except client.ApiException as error:
            unlisted = f"the pods of {where} cannot be listed ({error.status})"
        except Refused as error:
            unlisted = str(error)
        except NoSpec as error:
            unlisted = f"the pods of {where} cannot be listed: {error}"
        more = bool((pods.get("metadata") or {}).get("continue"))
        try:
            return workload(found, pods.get("items") or (), unlisted=unlisted, more=more)
        except NoSpec as error:
            raise Refused(f"{where}: {error}") from error


async def _body(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The answer's object, read within bounds; raises the client's exception for one that is no success."""
    try:
        body = b""
        async for piece in response.content.iter_chunked(64 * 1024):
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise Refused(f"the API server answers with more than {MAX_ANSWER_BYTES} bytes")
    finally:
        response.close()
    if response.status != 200:
        error = client.ApiException(status=response.status, reason=response.reason)
        error.body, error.headers = body.decode(errors="replace"), response.headers
        raise error
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"the API server's answer is no JSON: {readable(str(error), 100)}") from error
    if not isinstance(found, dict):
        raise Unavailable("the API server's answer is no object")
    return found
