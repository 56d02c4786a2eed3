"""A connection to one cluster's API server, and what our credentials may do there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from service.bodies import start_of
from service.ring.ports import Refused, Unavailable


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that we need to be allowed."""

    verb: str
    group: str
    resource: str
    allowed: bool = False


NEEDED = (
    *(Right(verb, "networking.istio.io", "virtualservices") for verb in ("get", "list", "watch", "patch")),
    *(Right(verb, "apps", "deployments") for verb in ("get", "list")),
    *(Right(verb, "discovery.k8s.io", "endpointslices") for verb in ("get", "list")),
)
"""Every right that the service always uses, and no other."""

LOGS_NEEDED = (Right("list", "", "pods"), Right("get", "", "pods/log"))
"""Beside them where logs are read from pods."""


async def connect(kubeconfig: Path | None, context: str | None = None) -> client.ApiClient:
    """A client for the cluster that ``kubeconfig`` names, or for the one that this pod runs in."""
    configuration = client.Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(str(kubeconfig), context=context, client_configuration=configuration)
    except (config.ConfigException, OSError, ValueError) as error:
        where = f"kubeconfig {kubeconfig}" if kubeconfig else "the pod's ServiceAccount"
        to_do = "" if kubeconfig else "; outside of a cluster set kubernetes.kubeconfig"
        raise Refused(f"cannot use {where}: {str(error).rstrip('.')}{to_do}") from error
    # The client repeats PUT, DELETE and GET by itself otherwise, and then mistakes its own success for a conflict.
    configuration.retries = False
    return client.ApiClient(configuration)


MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Fifty pods with their managed fields have a tenth of it."""

PODS = "/api/v1/namespaces/{namespace}/pods"


async def get(
    api: client.ApiClient, path: str, where: Mapping[str, str], *, timeout_s: float, **query: str | int
) -> aiohttp.ClientResponse:
    """The answer to a GET, whatever its status, with the body still to be read.

    path : with ``{names}`` that ``where`` fills in, quoted; further arguments are the query
    Not by the client's typed classes: importing CoreV1Api alone takes 80 MiB and some seconds of the loop.
    """
    request = await api.param_serialize(
        method="GET",
        resource_path=path,
        path_params=dict(where),
        query_params=list(query.items()),
        header_params={"Accept": "*/*"},
        auth_settings=["BearerToken"],
    )
    answer = await api.call_api(*request, _preload_content=False, _request_timeout=timeout_s)
    response: aiohttp.ClientResponse = answer.response
    return response


async def read_object(response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The answer's object, read within bounds; raises the client's exception for one that is no success, and ValueError
    as ``object_of`` does. Called within ``answered``."""
    try:
        body = await start_of(response, MAX_ANSWER_BYTES)
    finally:
        response.close()
    if len(body) > MAX_ANSWER_BYTES:
        raise Refused(f"the API server answers with more than {MAX_ANSWER_BYTES} bytes")
    if response.status != 200:
        error = client.ApiException(status=response.status, reason=response.reason)
        error.body, error.headers = body.decode(errors="replace"), response.headers
        raise error
    return object_of(json.loads(body))


async def pods(api: client.ApiClient, namespace: str, selector: str, *, limit: int, timeout_s: float) -> dict[str, Any]:
    """The list of pods with these labels, as ``read_object`` gives it."""
    query: dict[str, str | int] = {"labelSelector": selector, "limit": limit}
    return await read_object(await get(api, PODS, {"namespace": namespace}, timeout_s=timeout_s, **query))


async def rights(
    api: client.ApiClient, namespace: str, *, needed: Sequence[Right] = NEEDED, timeout_s: float = 10.0
) -> list[Right]:
    """What of ``needed`` we may do in a namespace, by SelfSubjectAccessReview."""
    custom = client.CustomObjectsApi(api)

    async def ask(one: Right) -> Right:
        resource, _, part = one.resource.partition("/")
        attributes = {"namespace": namespace, "verb": one.verb, "group": one.group, "resource": resource}
        attributes |= {"subresource": part} if part else {}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        with answered("review our rights"):
            answer = object_of(
                await custom.create_cluster_custom_object(
                    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", body, _request_timeout=timeout_s
                )
            )
        status = answer.get("status") or {}
        return Right(one.verb, one.group, one.resource, bool(status.get("allowed")))

    return list(await asyncio.gather(*(ask(one) for one in needed)))


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Say an API error in the ring's two words. 404, 409 and 422 are left to the caller, who knows what they mean."""
    try:
        yield
    except client.ApiException as error:
        if error.status in (404, 409, 422):
            raise
        said = f"the API server answers {error.status} to «{what}»: {message(error)}"
        if error.status == 429 or error.status is None or error.status >= 500:
            raise Unavailable(said, retry_after_s=_retry_after_s(error)) from error
        raise Refused(said) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable(f"the API server does not answer «{what}»: {error or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        # A proxy before it, that says something of its own with status 200.
        raise Unavailable(f"the answer to «{what}» is none of an API server: {error!r}"[:500]) from error


def object_of(answer: Any) -> dict[str, Any]:
    """The object that an API server answers with; raises ValueError for anything else, which ``answered`` words."""
    if not isinstance(answer, dict):
        raise ValueError(f"no object but {type(answer).__name__}")
    return answer


def message(error: client.ApiException) -> str:
    """The server's own sentence, cut."""
    try:
        return str(json.loads(error.body or "{}").get("message", ""))[:500]
    except (ValueError, AttributeError, TypeError):
        return str(error.reason)[:500]


def _retry_after_s(error: client.ApiException) -> float | None:
    try:
        return min(60.0, float((error.headers or {}).get("Retry-After", "")))
    except (TypeError, ValueError):
        return None
