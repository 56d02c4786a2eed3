"""Intake: what a deployment event means, given the catalogue, the newest event known and the running rollout.

Pure, so that a redelivered or late event is judged the same way every time. Operators' targets decide what may
happen; an event only picks among what they allow.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template as Text
from typing import Any

from pydantic import ValidationError

from service.model.catalog import Catalog
from service.model.gates.rules import GateSubjects
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

PASSED_OVER_KEPT = 20
"""Versions that are named; a backlog may hold thousands."""

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
    newest: bool = False
    """Yet it is the newest known of its service: an older one that comes after it is late."""


def service_of(event: DeploymentEvent, catalog: Catalog) -> ServiceKey | None:
    """The service that an event speaks of; None when its environment names no cluster of ours."""
    cluster = catalog.environments.get(event.environment)
    if cluster is None and len(catalog.clusters) == 1 and not catalog.environments:
        cluster = catalog.clusters[0]
    if cluster is None:
        return None
    return ServiceKey(cluster=cluster, namespace=event.namespace, name=event.service)


@dataclass(frozen=True, slots=True)
class Merged:
    """One event of several that came together, and the versions that it made needless to begin."""

    event: DeploymentEvent
    passed_over: tuple[Version, ...] = ()


def merge(
    events: Sequence[DeploymentEvent],
    service: ServiceKey,
    catalog: Catalog,
    newest: Newest | None,
    active: RolloutState | None,
) -> Sequence[Merged]:
    """One service's events that came together, in order, without releases that a newer one of them replaces.

    Nothing was owed for those yet, so they would only be begun to be ended. The outcome is the one of the newest event
    having come first, which may always happen; withdrawals and news of stable keep their place between releases.
    """
    out: list[Merged] = []
    run: list[DeploymentEvent] = []
    for event in events:
        if _is_release(event, active) and not _late(event, newest):
            run.append(event)
        else:
            out += [*_newest_of(run, service, catalog), Merged(event)]
            run = []
    return [*out, *_newest_of(run, service, catalog)]


def _is_release(event: DeploymentEvent, active: RolloutState | None) -> bool:
    """Whether the event is for a release whatever the events just before it bring about."""
    if event.kind not in (EventKind.DEPLOYED, EventKind.UPGRADED) or event.version in (None, event.stable_version):
        return False
    if active is None:
        return True
    known = {active.version, active.successor.version if active.successor else None}
    return not known & {event.version, event.stable_version} and event.stable_version is not None


def _newest_of(run: Sequence[DeploymentEvent], service: ServiceKey, catalog: Catalog) -> Sequence[Merged]:
    """The newest release of a run that can be filled in, with those that cannot after it; the older ones are left."""
    if len(run) < 2:
        return [Merged(event) for event in run]
    out: list[Merged] = []
    older = sorted(run, key=lambda event: (event.at, event.id))
    while older:
        event = older.pop()
        target = _target_of(service, catalog)
        if target is not None and _fits(target, service, event, catalog):
            versions = dict.fromkeys(e.version for e in older if e.version and e.version != event.version)
            return [Merged(event, tuple(versions)[-PASSED_OVER_KEPT:]), *out]
        out.append(Merged(event))
    return out


def _fits(target: Target, service: ServiceKey, event: DeploymentEvent, catalog: Catalog) -> bool:
    try:
        _place(target, service, event, _policy_of(target, event, catalog))
    except (ValidationError, KeyError, ValueError):
        return False
    return True


def apply(
    event: DeploymentEvent,
    service: ServiceKey,
    catalog: Catalog,
    newest: Newest | None,
    active: RolloutState | None,
    *,
    now: Utc,
    passed_over: tuple[Version, ...] = (),
) -> Applied | NotApplied:
    """What the event means. An event that is not newer than the newest known one changes nothing.

    now : when it is taken in. Its own time only says which event is newer: time-outs that ran from there would all be
        over at once for an event that has waited on the topic.
    """
    if _late(event, newest):
        return NotApplied(f"a newer event of {service} came first")
    if event.kind in (EventKind.ROLLED_BACK, EventKind.REMOVED):
        if active is None:
            # Services of no target are left out, so that heads are not kept for everything that ever runs on a cluster.
            ours = _target_of(service, catalog) is not None
            return NotApplied(f"{service} has no running rollout", newest=ours)
        withdrawn = _withdrawn(event, active)
        return Applied(ReleaseWithdrawn(id=event.id, at=now, kind=event.kind, version=withdrawn))
    if active is not None and event.stable_version == active.version and event.version in (None, active.version):
        return Applied(StableUpgraded(id=event.id, at=now, version=active.version))
    if active is not None and _underway(active) == event.version:
        return NotApplied(f"{event.version} of {service} is under way already")
    return _release(event, service, catalog, newest, active, now, passed_over)


def _late(event: DeploymentEvent, newest: Newest | None) -> bool:
    return newest is not None and (event.at, event.id) <= (newest.event_at, newest.event_id)


def _withdrawn(event: DeploymentEvent, active: RolloutState) -> Version | None:
    """The version that a withdrawal means; None for all that comes in.

    A sender that names artifacts alone means the version that came with the same one.
    """
    coming_in = active.successor or active
    named = next((one.version for one in (coming_in, active) if _same(event.artifact, one.artifact)), event.version)
    if event.kind is EventKind.ROLLED_BACK and named != coming_in.version:
        # CDEvents lets its artifact be the one that was gone back to; our own messages name the candidate. Where nobody
        # has said what stable runs, an unknown version is taken for that: going back is the safe side.
        stable_version = event.stable_version or coming_in.stable_version
        if named == stable_version or (stable_version is None and named != active.version):
            return None
    return named


def _same(artifact: str, other: str) -> bool:
    """Whether two package URLs name one content: what stands after ``?`` says only where it lies."""
    return "@" in artifact and artifact.partition("?")[0] == other.partition("?")[0]


def _underway(active: RolloutState) -> Version | None:
    """The version that is coming in; a version on its way back may be released anew."""
    if active.successor is not None:
        return active.successor.version
    return None if active.phase is Phase.ROLLING_BACK else active.version


def _release(
    event: DeploymentEvent,
    service: ServiceKey,
    catalog: Catalog,
    newest: Newest | None,
    active: RolloutState | None,
    now: Utc,
    passed_over: tuple[Version, ...],
) -> Applied | NotApplied:
    if event.version is None:
        return NotApplied(f"the event names no version of {service}")
    if event.version == event.stable_version:
        return NotApplied(f"stable of {service} runs {event.version} already")
    if active is not None and active.phase is Phase.AWAITING_STABLE and event.stable_version is None:
        # Without this, a tool that announces the upgrade of stable by its version alone would start a new canary.
        return NotApplied(f"{service} waits for stable to run {active.version}; the event names no stable version")
    target = _target_of(service, catalog)
    if target is None:
        return NotApplied(f"no target matches {service}")
    policy = _policy_of(target, event, catalog)
    try:
        place = _place(target, service, event, policy)
    except (ValidationError, KeyError, ValueError) as error:
        return NotApplied(f"the target of {service} cannot be filled in for {event.version}: {_brief(error)}")
    return Applied(
        ReleaseRequested(
            id=event.id,
            at=now,
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
            passed_over=passed_over,
        )
    )


def _target_of(service: ServiceKey, catalog: Catalog) -> Target | None:
    return next((target for target in catalog.targets if _matches(target, service)), None)


def _matches(target: Target, service: ServiceKey) -> bool:
    pairs = (
        (service.cluster, target.cluster),
        (service.namespace, target.namespace),
        (service.name, target.service),
    )
    return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs)


def _policy_of(target: Target, event: DeploymentEvent, catalog: Catalog) -> Policy:
    """The policy that the event names, where the target allows it, else the target's own."""
    allowed = event.policy is not None and event.policy in target.allowed_policies
    return catalog.policies[event.policy if allowed and event.policy is not None else target.policy]


def _first_weight(event: DeploymentEvent, target: Target, policy: Policy) -> int:
    """The policy's first weight, or the event's where it is not larger than the target allows."""
    usual = policy.first_weight.get(target.criticality, 5)
    if event.first_weight_percent is None:
        return usual
    return min(event.first_weight_percent, target.max_first_weight_percent or usual)


def _narrower(wide: Mode, narrow: Mode | None) -> Mode:
    return wide if narrow is None or wide.reach <= narrow.reach else narrow


def _place(target: Target, service: ServiceKey, event: DeploymentEvent, policy: Policy) -> Place:
    """The target with its templates filled in; raises KeyError for a version that the event does not give."""
    values = {"service": service.name, "namespace": service.namespace, "canary_version": event.version or ""}
    if event.stable_version is not None:
        values["stable_version"] = event.stable_version

    def fill(given: Any) -> Any:
        match given:
            case str():
                return Text(given).substitute(values) if "$" in given else given
            case dict():
                return {key: fill(value) for key, value in given.items()}
            case list() | tuple():
                return [fill(value) for value in given]
            case _:
                return given

    route = fill(target.route.model_dump(exclude={"http_route"}))
    readiness = None if target.readiness is None else Readiness.model_validate(fill(target.readiness.model_dump()))
    subjects: dict[str, Any] = {}
    for rule in policy.preflight:
        given = getattr(target.preflight, rule.gate)
        # A gate whose subject needs a version that the event does not give finds none, and so could not look; that
        # keeps the release from traffic and not from being begun and told of.
        with contextlib.suppress(KeyError):
            subjects[rule.gate] = given and fill(given.model_dump(mode="json"))
    return Place(
        virtual_service=route["virtual_service"],
        namespace=route["namespace"],
        http_route=target.route.http_route,
        stable=route["stable"],
        canary=route["canary"],
        finish=target.finish,
        readiness=readiness,
        preflight=GateSubjects.model_validate(subjects),
        metrics=target.metrics,
        stable_labels=fill({**target.labels, **target.stable_labels}),
        canary_labels=fill({**target.labels, **target.canary_labels}),
        stable_log_labels=fill({**target.logs.labels, **target.logs.stable_labels}) if target.logs else {},
        canary_log_labels=fill({**target.logs.labels, **target.logs.canary_labels}) if target.logs else {},
    )


def _brief(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it needs {error.args[0]}, which the event does not give"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
    return str(error)
