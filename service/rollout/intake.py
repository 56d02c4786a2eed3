"""Intake: what a deployment event means, given the catalogue, the newest event known and the running rollout.

Pure, so that a redelivered or late event is judged the same way every time. Operators' targets decide what may
happen; an event only picks among what they allow.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from string import Template as Text
from typing import Any

from pydantic import ValidationError

from service.model.catalog import Catalog
from service.model.names import Mode, ServiceKey, Version, rollout_id
from service.model.policy import Policy
from service.model.rollout import Phase, RolloutState
from service.model.stimulus import (
    DeploymentEvent,
    EventKind,
    ReleaseRequested,
    ReleaseWithdrawn,
    StableUpgraded,
)
from service.model.target import Place, Readiness, Target
from service.model.trace import made_traceparent
from service.model.value import Utc

Fact = ReleaseRequested | ReleaseWithdrawn | StableUpgraded


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest event that has been applied to a service."""

    event_at: Utc
    event_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The event means this, for the running rollout or for a new one."""

    fact: Fact


@dataclass(frozen=True, slots=True)
class NotApplied:
    """The event changes nothing, and why."""

    reason: str


def service_of(event: DeploymentEvent, catalog: Catalog) -> ServiceKey | None:
    """The service that an event speaks of; None when its environment names no cluster of ours."""
    cluster = catalog.environments.get(event.environment)
    if cluster is None and len(catalog.clusters) == 1 and not catalog.environments:
        cluster = catalog.clusters[0]
    if cluster is None:
        return None
    return ServiceKey(cluster=cluster, namespace=event.namespace, name=event.service)


def apply(
    event: DeploymentEvent,
    service: ServiceKey,
    catalog: Catalog,
    newest: Newest | None,
    active: RolloutState | None,
) -> Applied | NotApplied:
    """What the event means. An event that is not newer than the newest known one changes nothing."""
    if newest is not None and (event.at, event.id) <= (newest.event_at, newest.event_id):
        return NotApplied(f"a newer event of {service} came first")
    if event.kind in (EventKind.ROLLED_BACK, EventKind.REMOVED):
        if active is None:
            return NotApplied(f"{service} has no running rollout")
        return Applied(ReleaseWithdrawn(id=event.id, at=event.at, kind=event.kind))
    if active is not None and event.stable_version == active.version:
        return Applied(StableUpgraded(id=event.id, at=event.at, version=active.version))
    if active is not None and _underway(active) == event.version:
        return NotApplied(f"{event.version} of {service} is under way already")
    return _release(event, service, catalog, newest, active)


def _underway(active: RolloutState) -> Version | None:
    return active.successor.version if active.successor is not None else active.version


def _release(
    event: DeploymentEvent,
    service: ServiceKey,
    catalog: Catalog,
    newest: Newest | None,
    active: RolloutState | None,
) -> Applied | NotApplied:
    if event.version is None:
        return NotApplied(f"the event names no version of {service}")
    if event.version == event.stable_version:
        return NotApplied(f"stable of {service} runs {event.version} already")
    if active is not None and active.phase is Phase.AWAITING_STABLE and event.stable_version is None:
        # Without this, a tool that announces the upgrade of stable by its version alone would start a new canary.
        return NotApplied(f"{service} waits for stable to run {active.version}; the event names no stable version")
    target = next((t for t in catalog.targets if _matches(t, service)), None)
    if target is None:
        return NotApplied(f"no target matches {service}")
    policy_name = event.policy if event.policy in (target.policy, *target.allowed_policies) else target.policy
    policy = catalog.policies[policy_name or target.policy]
    try:
        place = _place(target, service, event)
    except (ValidationError, KeyError, ValueError) as error:
        return NotApplied(f"the target of {service} cannot be filled in for {event.version}: {_brief(error)}")
    return Applied(
        ReleaseRequested(
            id=event.id,
            at=event.at,
            rollout=rollout_id(service, event.source, event.id),
            service=service,
            version=event.version,
            stable_version=event.stable_version,
            artifact=event.artifact,
            event_source=event.source,
            event_id=event.id,
            chain_id=event.chain_id,
            traceparent=event.traceparent or made_traceparent(event.source, event.id),
            policy=policy,
            place=place,
            criticality=target.criticality,
            first_weight_percent=_first_weight(event, target, policy),
            mode=_narrower(catalog.mode, target.mode),
            fence_floor=newest.fence if newest else 0,
        )
    )


def _matches(target: Target, service: ServiceKey) -> bool:
    pairs = (
        (service.cluster, target.cluster),
        (service.namespace, target.namespace),
        (service.name, target.service),
    )
    return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs)


def _first_weight(event: DeploymentEvent, target: Target, policy: Policy) -> int:
    """The policy's first weight, or the event's where it is not larger than the target allows."""
    usual = policy.first_weight.get(target.criticality, 5)
    if event.first_weight_percent is None:
        return usual
    return min(event.first_weight_percent, target.max_first_weight_percent or usual)


def _narrower(wide: Mode, narrow: Mode | None) -> Mode:
    return wide if narrow is None or wide.reach <= narrow.reach else narrow


def _place(target: Target, service: ServiceKey, event: DeploymentEvent) -> Place:
    """The target with its templates filled in; raises KeyError for a version that the event does not give."""
    values = {"service": service.name, "namespace": service.namespace, "canary_version": event.version or ""}
    if event.stable_version is not None:
        values["stable_version"] = event.stable_version

    def fill(given: Any) -> Any:
        match given:
            case str():
                return Text(given).substitute(values)
            case dict():
                return {key: fill(value) for key, value in given.items()}
            case _:
                return given

    route = fill(target.route.model_dump(exclude={"http_route"}))
    readiness = None if target.readiness is None else Readiness.model_validate(fill(target.readiness.model_dump()))
    return Place(
        virtual_service=route["virtual_service"],
        namespace=route["namespace"],
        http_route=target.route.http_route,
        stable=route["stable"],
        canary=route["canary"],
        finish=target.finish,
        readiness=readiness,
        metrics=target.metrics,
        stable_labels=fill({**target.labels, **target.stable_labels}),
        canary_labels=fill({**target.labels, **target.canary_labels}),
    )


def _brief(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it needs {error.args[0]}, which the event does not give"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
    return str(error)
