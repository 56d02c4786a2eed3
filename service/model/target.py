"""A target: where a service's traffic is split, where its numbers are, and how far a release may go there.

Operators write targets; events only pick among what they allow. Nothing in an event can widen a target.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from service.model.gates.rules import GateSubjects
from service.model.names import DnsLabel, DnsName, Mode
from service.model.policy import Criticality
from service.model.value import Value

Template = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._${}*-]+$")]
"""Text that may hold ``${service}``, ``${namespace}``, ``${stable_version}`` or ``${canary_version}``."""


class Destination(Value):
    """One destination of a route, as the VirtualService names it."""

    host: Template
    subset: Template | None = None
    port: int | None = Field(default=None, ge=1, le=65535)


class Finish(StrEnum):
    """How a promoted release ends."""

    CANARY_KEEPS_ALL = "canary_keeps_all"  # versioned subsets: the canary destination keeps 100
    RETURN_TO_STABLE = "return_to_stable"  # fixed subsets: back to stable once it runs the new version


class Route(Value):
    """The one route that Serinus may edit, and its two destinations."""

    virtual_service: Template
    namespace: Template = "${namespace}"
    http_route: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Name of the HTTP route; None: the only HTTP route, if there is exactly one and it is unnamed."""
    stable: Destination
    canary: Destination


class Readiness(Value):
    """What must be ready before the first weight: a Deployment's status, or endpoints of a Service. Exactly one."""

    deployment: Template | None = None
    service: Template | None = None
    """EndpointSlices of this Service must hold at least ``min_endpoints`` ready addresses."""
    namespace: Template = "${namespace}"
    min_endpoints: int = Field(default=1, ge=1)


class LogLabels(Value):
    """What tells the arms' log lines apart: labels of streams in a log store, labels of pods where there is none."""

    labels: dict[str, Template] = {}
    """Shared by both arms."""
    stable_labels: dict[str, Template] = {}
    canary_labels: dict[str, Template] = {}


class Target(Value):
    """What a service pattern resolves to. ``*`` matches any run of characters inside one name."""

    cluster: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.*-]+$")] = "*"
    namespace: Annotated[str, StringConstraints(pattern=r"^[a-z0-9*-]+$")]
    service: Annotated[str, StringConstraints(pattern=r"^[a-z0-9*-]+$")]
    route: Route
    finish: Finish = Finish.CANARY_KEEPS_ALL
    readiness: Readiness | None = None
    """None: the candidate is taken for ready as soon as its event arrives (said in the journal)."""
    preflight: GateSubjects = GateSubjects()
    """Where the gates before any traffic find what they look at."""
    metrics: DnsLabel = "istio"
    """Name of the metrics preset in ``config/metrics``."""
    labels: dict[str, Template] = {}
    """Label matchers shared by both arms, added to those of the preset."""
    stable_labels: dict[str, Template] = {}
    canary_labels: dict[str, Template] = {}
    logs: LogLabels | None = None
    """None: log lines are told apart by the same labels as the metrics."""
    policy: DnsLabel
    allowed_policies: tuple[DnsLabel, ...] = ()
    """Policies that an event may name beside ``policy``."""
    criticality: Criticality = Criticality.STANDARD
    max_first_weight_percent: int | None = Field(default=None, ge=1, le=100)
    """The largest first weight that an event may ask for; None: the policy's own first weight, so only smaller ones."""
    mode: Mode | None = None
    """Narrows the service-wide mode for this target; it can never widen it."""


NOWHERE = GateSubjects()
"""What a release without gates is told of them; compared with at every writing of a state."""


class Place(Value):
    """A target with all templates filled in: what one rollout uses, kept in its state."""

    virtual_service: DnsName
    namespace: DnsLabel
    http_route: str | None
    stable: Destination
    canary: Destination
    finish: Finish
    readiness: Readiness | None
    preflight: GateSubjects = Field(default=NOWHERE, exclude_if=lambda subjects: subjects == NOWHERE)
    metrics: DnsLabel
    stable_labels: dict[str, str]
    canary_labels: dict[str, str]
    stable_log_labels: dict[str, str] = Field(default={}, exclude_if=lambda labels: not labels)
    """Empty: those of the metrics."""
    canary_log_labels: dict[str, str] = Field(default={}, exclude_if=lambda labels: not labels)
