"""Jobs of one cluster: made, looked at and taken away by its API server, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubernetes.aio import client

from service.cluster import Right, answered, message, object_of, pods
from service.preflight.report import readable
from service.preflight.saved_model.job import MESSAGE_BYTES, Ended, Standing
from service.ring.ports import Refused

NEEDED = (
    *(Right(verb, "batch", "jobs") for verb in ("create", "get", "delete")),
    Right("list", "", "pods"),
)
"""Every right that this room uses, and no other; only in the namespace that a target names for such Jobs."""


class KubernetesJobs:
    """Implements ``job.Jobs`` on one cluster."""

    def __init__(self, api: client.ApiClient, *, timeout_s: float = 10.0) -> None:
        # Plain objects: the models of the client refuse what a newer API server adds.
        self._custom = client.CustomObjectsApi(api)
        self._api = api
        self._timeout_s = timeout_s

    async def create(self, namespace: str, manifest: Mapping[str, Any]) -> None:
        """See ``Jobs.create``."""
        name = manifest["metadata"]["name"]
        try:
            with answered(f"make the Job {namespace}/{name}"):
                await self._custom.create_namespaced_custom_object(
                    "batch", "v1", namespace, "jobs", dict(manifest), _request_timeout=self._timeout_s
                )
        except client.ApiException as error:
            if error.status != 409:
                raise Refused(f"the Job {namespace}/{name} is refused ({error.status}): {message(error)}") from error

    async def standing(self, namespace: str, name: str) -> Standing:
        """See ``Jobs.standing``."""
        try:
            with answered(f"read the Job {namespace}/{name}"):
                job = object_of(
                    await self._custom.get_namespaced_custom_object(
                        "batch", "v1", namespace, "jobs", name, _request_timeout=self._timeout_s
                    )
                )
            # Not by the name alone: a pod of an earlier Job of this name may not be gone yet.
            selector = f"job-name={name},controller-uid={job['metadata']['uid']}"
            with answered(f"list the pods of the Job {namespace}/{name}"):
                listed = await pods(self._api, namespace, selector, limit=5, timeout_s=self._timeout_s)
        except client.ApiException as error:
            raise Refused(f"the Job {namespace}/{name} cannot be read ({error.status}): {message(error)}") from error
        conditions = (job.get("status") or {}).get("conditions") or ()
        failed = any(one.get("type") == "Failed" and one.get("status") == "True" for one in conditions)
        return standing_of(listed.get("items") or (), failed=failed)

    async def delete(self, namespace: str, name: str) -> None:
        """See ``Jobs.delete``."""
        try:
            with answered(f"delete the Job {namespace}/{name}"):
                await self._custom.delete_namespaced_custom_object(
                    "batch", "v1", namespace, "jobs", name,
                    propagation_policy="Background", _request_timeout=self._timeout_s,
                )  # fmt: skip
        except client.ApiException as error:
            if error.status != 404:
                raise Refused(f"the Job {namespace}/{name} cannot be deleted ({error.status})") from error


def standing_of(pods: Sequence[Mapping[str, Any]], *, failed: bool) -> Standing:
    """How a Job stands, by its pods as the API gives them. Pure."""
    waiting = ""
    for pod in pods:
        status = pod.get("status") or {}
        for container in status.get("containerStatuses") or ():
            state = container.get("state") or {}
            if ended := state.get("terminated"):
                said = str(ended.get("message") or "").encode()[:MESSAGE_BYTES].decode(errors="replace")
                return Standing(
                    Ended(int(ended.get("exitCode") or 0), readable(str(ended.get("reason") or "")), said), failed, ""
                )
            if wait := state.get("waiting"):
                waiting = readable(str(wait.get("reason") or ""))
        for condition in status.get("conditions") or ():
            if condition.get("status") == "False" and condition.get("reason") and not waiting:
                waiting = readable(str(condition["reason"]))
    return Standing(None, failed, waiting)
