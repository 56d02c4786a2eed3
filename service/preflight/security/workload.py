"""The candidate's Deployment and pods as they are looked at: from the API server's answers or from a manifest. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.preflight.report import readable
from service.preflight.security.posture import NoSpec


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod that runs, or may soon."""

    name: str
    spec: Mapping[str, Any]
    image_ids: Mapping[str, str]
    """By container, as the kubelet pulled it: ``registry/name@sha256:...``."""
    uids: Mapping[str, int]
    """By container, where the kubelet says it (Kubernetes 1.31 and newer)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A Deployment: the spec of its template, and those of its pods that were made of it."""

    name: str
    template: Mapping[str, Any]
    pods: tuple[Pod, ...] = ()
    unlisted: str = ""
    """Why its pods could not be listed; empty: they were."""
    more: bool = False
    """There are more pods than were looked at."""

    def images(self, containers: Collection[str] | None = None) -> dict[str, str]:
        """The image of each of these containers, as the template names it; None: of all, with the init containers."""
        return {
            name: image for name, image in _images(self.template).items() if containers is None or name in containers
        }

    @property
    def serving(self) -> list[str]:
        """The containers that run as long as the pod, by name."""
        return [str(one.get("name")) for one in map(_map, _list(self.template.get("containers")))]


def workload(deployment: object, pods: Iterable[object] = (), *, unlisted: str = "", more: bool = False) -> Workload:
    """From the objects of the API. Raises NoSpec for what is no Deployment.

    Pods of an older template are left out: those with an image that the template does not name for that container.
    """
    body = _map(deployment)
    name = str(_map(body.get("metadata")).get("name") or "")
    if body.get("kind") not in (None, "Deployment"):
        raise NoSpec(f"{readable(str(body.get('kind')), 40)} {readable(name, 63)} is no Deployment")
    template = _map(_map(_map(body.get("spec")).get("template")).get("spec"))
    if not template.get("containers"):
        raise NoSpec(f"Deployment {readable(name, 63)} has no spec.template.spec.containers")
    images = _images(template)
    seen = (_pod(_map(one)) for one in pods if _lives(_map(one)))
    return Workload(
        name, template, tuple(pod for pod in seen if images.items() <= _images(pod.spec).items()), unlisted, more
    )


def selector_of(deployment: object) -> str:
    """The label selector of a Deployment's pods, in the form of the API's query. Raises NoSpec."""
    selector = _map(_map(_map(deployment).get("spec")).get("selector"))
    parts = [f"{key}={value}" for key, value in _map(selector.get("matchLabels")).items()]
    for expression in map(_map, _list(selector.get("matchExpressions"))):
        key, values = expression.get("key"), ",".join(map(str, _list(expression.get("values"))))
        match expression.get("operator"):
            case "In":
                parts.append(f"{key} in ({values})")
            case "NotIn":
                parts.append(f"{key} notin ({values})")
            case "Exists":
                parts.append(f"{key}")
            case "DoesNotExist":
                parts.append(f"!{key}")
            case operator:
                # Left out, it would select pods that are none of this Deployment's.
                raise NoSpec(f"its selector has the operator {readable(str(operator), 40)}, which is not known")
    return ",".join(parts)


def _lives(pod: Mapping[str, Any]) -> bool:
    phase = _map(pod.get("status")).get("phase")
    return not _map(pod.get("metadata")).get("deletionTimestamp") and phase not in ("Succeeded", "Failed")


def _pod(pod: Mapping[str, Any]) -> Pod:
    status = _map(pod.get("status"))
    image_ids: dict[str, str] = {}
    uids: dict[str, int] = {}
    for listed in ("containerStatuses", "initContainerStatuses"):
        for one in map(_map, _list(status.get(listed))):
            name, uid = str(one.get("name")), _map(_map(one.get("user")).get("linux")).get("uid")
            if one.get("imageID"):
                image_ids[name] = str(one["imageID"])
            if isinstance(uid, int):
                uids[name] = uid
    return Pod(str(_map(pod.get("metadata")).get("name") or ""), _map(pod.get("spec")), image_ids, uids)


def _images(spec: Mapping[str, Any]) -> dict[str, str]:
    listed = [*_list(spec.get("containers")), *_list(spec.get("initContainers"))]
    return {str(one.get("name")): str(one.get("image") or "") for one in map(_map, listed)}


def _map(value: object) -> Mapping[str, Any]:
    """A mapping, or an empty one: what is absent, and what is of another type in a manifest, says nothing."""
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()
