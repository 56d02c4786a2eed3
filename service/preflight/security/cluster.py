"""Reads the candidate's Deployment and its pods from one cluster's API server. Never writes."""

from __future__ import annotations

from typing import Any

from kubernetes.aio import client

from service.cluster import Right, answered, get, pods, read_object
from service.preflight.security.posture import NoSpec
from service.preflight.security.workload import Workload, selector_of, workload
from service.ring.ports import Refused

NEEDED = (Right("get", "apps", "deployments"), Right("list", "", "pods"))
"""Every right that this room uses, and no other."""

MAX_PODS_N = 50


class KubernetesWorkloads:
    """Implements ``gate.Workloads`` on one cluster."""

    def __init__(self, api: client.ApiClient, *, timeout_s: float = 10.0) -> None:
        self._api = api
        self._timeout_s = timeout_s

    async def workload(self, namespace: str, deployment: str) -> Workload:
        """See ``gate.Workloads``."""
        where = f"Deployment {namespace}/{deployment}"
        try:
            with answered(f"read {where}"):
                found = await read_object(
                    await get(
                        self._api,
                        "/apis/apps/v1/namespaces/{namespace}/deployments/{name}",
                        {"namespace": namespace, "name": deployment},
                        timeout_s=self._timeout_s,
                    )
                )
        except client.ApiException as error:
            raise Refused(f"{where} is not there ({error.status})") from error
        listed: dict[str, Any] = {}
        unlisted = ""
        try:
            selector = selector_of(found)
            with answered(f"list the pods of {where}"):
                listed = await pods(self._api, namespace, selector, limit=MAX_PODS_N, timeout_s=self._timeout_s)
        except client.ApiException as error:
            unlisted = f"the pods of {where} cannot be listed ({error.status})"
        except Refused as error:
            unlisted = str(error)
        except NoSpec as error:
            unlisted = f"the pods of {where} cannot be listed: {error}"
        more = bool((listed.get("metadata") or {}).get("continue"))
        try:
            return workload(found, listed.get("items") or (), unlisted=unlisted, more=more)
        except NoSpec as error:
            raise Refused(f"{where}: {error}") from error
