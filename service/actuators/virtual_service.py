"""The edit of a VirtualService as a pure function: two weights of one named route, and nothing else.

The result is a JSON Patch whose ``test`` operations pin down what was looked at (the object's version, route,
destinations, weights), so that an edit made meanwhile by somebody else makes the write fail instead of landing beside
it. Lists are atomic to server-side apply in this CRD, so a patch with tests is the narrowest write there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.model.target import Destination

FENCE = "serinus.io/fence"
"""Annotation: JSON object, route name ("" for an unnamed one) -> fencing number of the last weight written."""

ROLLOUT = "serinus.io/rollout"

WHOLE = 100


class CannotEdit(ValueError):
    """The route cannot be edited as asked. The message says what was looked for and what was found."""


class ServesOthers(CannotEdit):
    """The canary destination serves traffic that this rollout did not give it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the route should say."""

    namespace: str
    """The VirtualService's namespace, which short host names belong to."""
    http_route: str | None
    stable: Destination
    canary: Destination
    canary_percent: int
    fence: int
    rollout: str
    first: bool = False
    """Nothing of this rollout stands yet."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the route says. ``canary_percent`` is the canary's share of both destinations' weights."""

    canary_percent: int
    fence: int | None


@dataclass(frozen=True, slots=True)
class Edit:
    """The patch that makes it so; empty when it is so already."""

    patch: tuple[Mapping[str, Any], ...]
    before: Seen


@dataclass(frozen=True, slots=True)
class _Found:
    route: int
    name: str
    stable: int
    canary: int
    weights: list[int]


def look(virtual_service: Mapping[str, Any], wanted: Wanted) -> Seen:
    """What stands there now; raises CannotEdit when the route or a destination is missing."""
    found = _find(virtual_service, wanted)
    ours = found.weights[found.stable] + found.weights[found.canary]
    share = 0 if ours == 0 else round(found.weights[found.canary] * WHOLE / ours)
    return Seen(share, _fences(virtual_service).get(found.name))


def edit(virtual_service: Mapping[str, Any], wanted: Wanted) -> Edit:
    """The narrowest change to the wanted share; raises CannotEdit rather than touch what is not ours.

    The two destinations' total is kept where the share is a whole part of it, and is 100 otherwise, so that what is
    read back is what was asked. A third destination with weight, a route that is not the one named, or a newer fence
    is a refusal.
    """
    if not 0 <= wanted.canary_percent <= WHOLE:
        raise CannotEdit(f"weight {wanted.canary_percent} % is none between 0 and 100")
    found = _find(virtual_service, wanted)
    before = look(virtual_service, wanted)
    if before.fence is not None and before.fence > wanted.fence:
        raise CannotEdit(f"a newer decision (fence {before.fence}) stands on the route; ours is {wanted.fence}")
    if wanted.first and before.canary_percent > 0 and _annotations(virtual_service).get(ROLLOUT) != wanted.rollout:
        # After a promotion the «canary» destination carries production; a share or a retreat would send it to old pods.
        raise ServesOthers(
            f"the canary destination already serves {before.canary_percent} % that this rollout did not give it; "
            "a release starts from 0, so name the destinations anew or set it to 0 first"
        )
    for i, weight in enumerate(found.weights):
        if i not in (found.stable, found.canary) and weight > 0:
            where = _destination(virtual_service, found.route, i)
            raise CannotEdit(
                f"route {found.name!r} also sends weight {weight} to {where}, which is not ours; set that to 0 first"
            )
    total = found.weights[found.stable] + found.weights[found.canary]
    if total == 0 or total * wanted.canary_percent % WHOLE:
        total = WHOLE
    canary = total * wanted.canary_percent // WHOLE
    new = {found.stable: total - canary, found.canary: canary}
    fresh_fence = before.fence == wanted.fence
    same = all(_raw_weight(virtual_service, found.route, i) == new[i] for i in new)
    if same and fresh_fence:
        return Edit((), before)
    return Edit(
        (
            *_tests(virtual_service, found),
            *_weights(virtual_service, found, new),
            *_notes(virtual_service, found, wanted),
        ),
        before,
    )


def _find(virtual_service: Mapping[str, Any], wanted: Wanted) -> _Found:
    spec = virtual_service.get("spec")
    routes = spec.get("http") if isinstance(spec, Mapping) else None
    if not isinstance(routes, Sequence) or isinstance(routes, str) or not routes:
        raise CannotEdit("the VirtualService has no HTTP routes; only HTTP routes are edited")
    index = _route_index(routes, wanted.http_route)
    route = routes[index]
    destinations = route.get("route") if isinstance(route, Mapping) else None
    if not isinstance(destinations, Sequence) or isinstance(destinations, str) or not destinations:
        raise CannotEdit(
            f"route {_route_name(route)!r} has no destinations (a redirect, a delegate or a direct response)"
        )
    stable = _destination_index(destinations, wanted.stable, wanted.namespace, "stable")
    canary = _destination_index(destinations, wanted.canary, wanted.namespace, "canary")
    if stable == canary:
        raise CannotEdit("stable and canary are the same destination; name subsets or hosts that tell them apart")
    weights = [_weight(one) for one in destinations]
    return _Found(index, _route_name(route), stable, canary, weights)


def _route_index(routes: Sequence[Any], name: str | None) -> int:
    if name is None:
        if len(routes) != 1 or _route_name(routes[0]):
            names = ", ".join(repr(_route_name(r)) for r in routes)
            raise CannotEdit(f"no route is named in the target and there is not just one unnamed route; found: {names}")
        return 0
    found = [i for i, route in enumerate(routes) if _route_name(route) == name]
    if len(found) != 1:
        names = ", ".join(repr(_route_name(r)) for r in routes)
        raise CannotEdit(f"{'no' if not found else 'more than one'} HTTP route is named {name!r}; found: {names}")
    return found[0]


def _route_name(route: Any) -> str:
    return str(route.get("name") or "") if isinstance(route, Mapping) else ""


def _destination_index(listed: Sequence[Any], wanted: Destination, namespace: str, arm: str) -> int:
    found = [i for i, one in enumerate(listed) if _is(one, wanted, namespace)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(_shown(one) for one in listed)
    what = wanted.host + (f" subset {wanted.subset}" if wanted.subset else "")
    raise CannotEdit(f"{'no' if not found else 'more than one'} destination is the {arm} {what}; found: {known}")


def _is(listed: Any, wanted: Destination, namespace: str) -> bool:
    destination = listed.get("destination") if isinstance(listed, Mapping) else None
    if not isinstance(destination, Mapping):
        return False
    port = destination.get("port")
    number = port.get("number") if isinstance(port, Mapping) else None
    return (
        fqdn(str(destination.get("host", "")), namespace) == fqdn(wanted.host, namespace)
        and (destination.get("subset") or None) == wanted.subset
        and (wanted.port is None or wanted.port == number)
    )


def fqdn(host: str, namespace: str) -> str:
    """A host as Istio resolves it: a short name belongs to the VirtualService's namespace; ``name.ns`` is completed."""
    labels = host.split(".")
    if len(labels) == 1:
        return f"{host}.{namespace}.svc.cluster.local"
    if len(labels) == 2 or (len(labels) == 3 and labels[2] == "svc"):
        return f"{labels[0]}.{labels[1]}.svc.cluster.local"
    return host


def _weight(listed: Any) -> int:
    weight = listed.get("weight", 0) if isinstance(listed, Mapping) else 0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight != int(weight) or weight < 0:
        raise CannotEdit(f"a destination has weight {weight!r}; weights are whole numbers of at least 0")
    return int(weight)


def _raw_weight(virtual_service: Mapping[str, Any], route: int, i: int) -> Any:
    return virtual_service["spec"]["http"][route]["route"][i].get("weight")


def _shown(listed: Any) -> str:
    destination = listed.get("destination", {}) if isinstance(listed, Mapping) else {}
    if not isinstance(destination, Mapping):
        return "?"
    subset = destination.get("subset")
    return str(destination.get("host", "?")) + (f" subset {subset}" if subset else "")


def _destination(virtual_service: Mapping[str, Any], route: int, i: int) -> str:
    return _shown(virtual_service["spec"]["http"][route]["route"][i])


def _annotations(virtual_service: Mapping[str, Any]) -> Mapping[str, Any]:
    return (virtual_service.get("metadata") or {}).get("annotations") or {}


def _fences(virtual_service: Mapping[str, Any]) -> dict[str, int]:
    try:
        fences = json.loads(_annotations(virtual_service).get(FENCE, "{}"))
        return {str(name): int(fence) for name, fence in fences.items()}
    except (ValueError, TypeError, AttributeError):
        # Somebody's hand broke it. Ours is written anew; weights are still guarded by the tests in the patch.
        return {}


def _tests(virtual_service: Mapping[str, Any], found: _Found) -> list[Mapping[str, Any]]:
    base = f"/spec/http/{found.route}"
    route = virtual_service["spec"]["http"][found.route]
    tests: list[Mapping[str, Any]] = []
    version = (virtual_service.get("metadata") or {}).get("resourceVersion")
    if version is not None:
        # Equal weights are not enough: a write that is held up on its way may arrive when newer decisions have gone up
        # and back to the very weights that it was made for, and would land with its older fence.
        tests.append({"op": "test", "path": "/metadata/resourceVersion", "value": version})
    if "name" in route:
        tests.append({"op": "test", "path": f"{base}/name", "value": route["name"]})
    tests.append({"op": "test", "path": f"{base}/route", "value": route["route"]})
    return tests


def _weights(virtual_service: Mapping[str, Any], found: _Found, new: Mapping[int, int]) -> list[Mapping[str, Any]]:
    return [
        {"op": "add", "path": f"/spec/http/{found.route}/route/{i}/weight", "value": new[i]}
        for i in (found.stable, found.canary)
        if _raw_weight(virtual_service, found.route, i) != new[i]
    ]


def _notes(virtual_service: Mapping[str, Any], found: _Found, wanted: Wanted) -> list[Mapping[str, Any]]:
    metadata = virtual_service.get("metadata") or {}
    ops: list[Mapping[str, Any]] = []
    if metadata.get("annotations") is None:
        ops.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    fences = json.dumps({**_fences(virtual_service), found.name: wanted.fence}, sort_keys=True)
    for name, value in ((FENCE, fences), (ROLLOUT, wanted.rollout)):
        ops.append({"op": "add", "path": f"/metadata/annotations/{name.replace('/', '~1')}", "value": value})
    return ops
