"""Istio: the thin shell around the pure edit. Reads, patches, reads back; on a conflict it looks again, a few times."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kubernetes.aio import client

from service.actuators.virtual_service import CannotEdit, Edit, ServesOthers, Wanted, edit, look
from service.cluster import answered, message, object_of
from service.model.target import Place, Readiness
from service.ring.ports import NotOurs, Refused, Unavailable, WeightsSeen

logger = logging.getLogger(__name__)

GROUP = "networking.istio.io"
VERSIONS = ("v1", "v1beta1")
PLURAL = "virtualservices"
FEW = 5
"""Up to so many objects of a namespace are read one by one; beyond, the namespace is listed."""

PAGE = 500
"""Objects in one page of a list."""

MAX_CONFLICTS = 5
"""Other writers in a row before the dispatcher is asked to come again later."""


class IstioMesh:
    """Implements ``ring.ports.Mesh`` on the VirtualServices of one cluster."""

    def __init__(self, api: client.ApiClient, *, timeout_s: float = 10.0) -> None:
        self._custom = client.CustomObjectsApi(api)
        self._timeout_s = timeout_s
        self._version = VERSIONS[0]

    async def set_weights(
        self, place: Place, *, canary_percent: int, fence: int, rollout: str, first: bool = False
    ) -> WeightsSeen:
        """See ``Mesh.set_weights``."""
        wanted = _wanted(place, canary_percent=canary_percent, fence=fence, rollout=rollout, first=first)
        for _ in range(MAX_CONFLICTS):
            found = await self._get(place)
            if found is None:
                raise Refused(f"there is no VirtualService {place.namespace}/{place.virtual_service}")
            planned = _planned(found, wanted, place)
            if not planned.patch:
                return WeightsSeen(planned.before.canary_percent, planned.before.fence, changed=False)
            try:
                await self._patch(place, planned)
            except client.ApiException as error:
                if error.status == 404:
                    raise Refused(f"VirtualService {place.namespace}/{place.virtual_service} is gone") from error
                if error.status == 422 and "admission" in message(error).lower():
                    raise Refused(f"an admission policy refuses the weights: {message(error)}") from error
                # 409, or a test of the patch that no longer holds (422): somebody else wrote in between.
                logger.info("conflict on %s/%s, reading again", place.namespace, place.virtual_service)
                continue
            after = await self._get(place)
            if after is None:
                raise Refused(f"VirtualService {place.namespace}/{place.virtual_service} is gone")
            seen = look(after, wanted)
            return WeightsSeen(seen.canary_percent, seen.fence, changed=True)
        raise Unavailable(
            f"others changed VirtualService {place.namespace}/{place.virtual_service} {MAX_CONFLICTS} times in a row"
        )

    async def get_weights(self, places: Sequence[Place]) -> Sequence[WeightsSeen]:
        """See ``Mesh.get_weights``."""
        out: dict[int, WeightsSeen] = {}
        namespaces: dict[str, list[int]] = {}
        for at, place in enumerate(places):
            namespaces.setdefault(place.namespace, []).append(at)
        for namespace, listed in namespaces.items():
            try:
                if len(listed) <= FEW:
                    found = {places[at].virtual_service: await self._get(places[at]) for at in listed}
                else:
                    found = {one["metadata"]["name"]: one async for one in self._list(namespace)}
            except Refused as refused:
                out |= dict.fromkeys(listed, WeightsSeen(None, None, detail=str(refused), unseen=True))
                continue
            out |= {at: _seen(found.get(places[at].virtual_service), places[at]) for at in listed}
        return [out[at] for at in range(len(places))]

    async def ready(self, place: Place) -> tuple[bool, str]:
        """See ``Mesh.ready``."""
        readiness = place.readiness
        if readiness is None:
            return True, "no readiness check is set for this target"
        if readiness.deployment is not None:
            return await self._deployment_ready(readiness, readiness.deployment)
        return await self._endpoints_ready(readiness)

    async def _deployment_ready(self, readiness: Readiness, name: str) -> tuple[bool, str]:
        where = f"Deployment {readiness.namespace}/{name}"
        try:
            with answered(f"read {where}"):
                found = object_of(
                    await self._custom.get_namespaced_custom_object(
                        "apps", "v1", readiness.namespace, "deployments", name, _request_timeout=self._timeout_s
                    )
                )
        except client.ApiException as error:
            return False, f"{where} is not there ({error.status})"
        status = found.get("status") or {}
        ready_n = status.get("readyReplicas") or 0
        wanted_n = (found.get("spec") or {}).get("replicas", 1)
        observed = status.get("observedGeneration", 0) >= (found.get("metadata") or {}).get("generation", 0)
        updated = (status.get("updatedReplicas") or 0) >= min(wanted_n, readiness.min_endpoints)
        detail = f"{where} has {ready_n} of {wanted_n} replicas ready"
        return observed and updated and ready_n >= max(1, readiness.min_endpoints), detail

    async def _endpoints_ready(self, readiness: Readiness) -> tuple[bool, str]:
        where = f"Service {readiness.namespace}/{readiness.service}"
        try:
            with answered(f"list the endpoints of {where}"):
                found = object_of(
                    await self._custom.list_namespaced_custom_object(
                        "discovery.k8s.io",
                        "v1",
                        readiness.namespace,
                        "endpointslices",
                        label_selector=f"kubernetes.io/service-name={readiness.service}",
                        limit=500,
                        _request_timeout=self._timeout_s,
                    )
                )
        except client.ApiException as error:
            return False, f"the endpoints of {where} cannot be listed ({error.status})"
        ready_n = sum(
            len(endpoint.get("addresses") or ())
            for piece in found.get("items") or ()
            for endpoint in piece.get("endpoints") or ()
            # Absent means unknown, which the API asks to take for ready.
            if (endpoint.get("conditions") or {}).get("ready") is not False
        )
        return ready_n >= readiness.min_endpoints, f"{where} has {ready_n} ready endpoints"

    async def _get(self, place: Place) -> dict[str, Any] | None:
        """The VirtualService, or None. An API server without v1 of the CRD is asked for v1beta1."""
        for version in (self._version, *(v for v in VERSIONS if v != self._version)):
            try:
                with answered(f"read VirtualService {place.namespace}/{place.virtual_service}"):
                    found = object_of(
                        await self._custom.get_namespaced_custom_object(
                            GROUP, version, place.namespace, PLURAL, place.virtual_service,
                            _request_timeout=self._timeout_s,
                        )
                    )  # fmt: skip
                self._version = version
                return found
            except client.ApiException as error:
                if error.status != 404:
                    raise Unavailable(f"the API server answers {error.status}: {message(error)}") from error
        return None

    async def _list(self, namespace: str) -> AsyncIterator[dict[str, Any]]:
        """Every VirtualService of a namespace, page by page."""
        more = ""
        while True:
            try:
                with answered(f"list VirtualServices of {namespace}"):
                    page = object_of(
                        await self._custom.list_namespaced_custom_object(
                            GROUP, self._version, namespace, PLURAL,
                            limit=PAGE, _continue=more, _request_timeout=self._timeout_s,
                        )
                    )  # fmt: skip
                    listed = [object_of(one) for one in page.get("items") or ()]
            except client.ApiException as error:
                raise Unavailable(f"the API server answers {error.status}: {message(error)}") from error
            for one in listed:
                yield one
            more = (page.get("metadata") or {}).get("continue") or ""
            if not more:
                return

    async def _patch(self, place: Place, planned: Edit) -> None:
        with answered(f"patch VirtualService {place.namespace}/{place.virtual_service}"):
            await self._custom.patch_namespaced_custom_object(
                GROUP,
                self._version,
                place.namespace,
                PLURAL,
                place.virtual_service,
                [dict(op) for op in planned.patch],
                field_manager="serinus",
                _content_type="application/json-patch+json",
                _request_timeout=self._timeout_s,
            )


def _seen(found: dict[str, Any] | None, place: Place) -> WeightsSeen:
    if found is None:
        return WeightsSeen(None, None, detail="there is no such VirtualService")
    try:
        seen = look(found, _wanted(place, canary_percent=0, fence=0, rollout=""))
    except CannotEdit as reason:
        return WeightsSeen(None, None, detail=str(reason))
    return WeightsSeen(seen.canary_percent, seen.fence)


def _wanted(place: Place, *, canary_percent: int, fence: int, rollout: str, first: bool = False) -> Wanted:
    return Wanted(
        place.namespace, place.http_route, place.stable, place.canary, canary_percent, fence, rollout, first=first
    )


def _planned(found: dict[str, Any], wanted: Wanted, place: Place) -> Edit:
    try:
        return edit(found, wanted)
    except CannotEdit as reason:
        kind = NotOurs if isinstance(reason, ServesOthers) else Refused
        raise kind(f"VirtualService {place.namespace}/{place.virtual_service}: {reason}") from reason
