"""Stimuli: past facts, the only way into the core. Time and ids enter here as values.

Each has an ``id`` that is the same when the same fact is delivered again, so that a repeat can be told from news.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from service.model.gates.report import GateReport
from service.model.names import DnsLabel, Mode, RolloutId, ServiceKey, Version
from service.model.observation import Availability
from service.model.policy import Criticality, Percent, Policy
from service.model.target import Place
from service.model.trace import Traceparent
from service.model.value import Utc, Value


class _Fact(Value):
    id: str
    """The same fact has the same id, however often it is delivered."""
    at: Utc
    """When it happened, by the clock of whoever saw it."""


class EventKind(StrEnum):
    """What the event bus says has happened to a service."""

    DEPLOYED = "deployed"
    UPGRADED = "upgraded"
    ROLLED_BACK = "rolledback"
    REMOVED = "removed"


class DeploymentEvent(_Fact):
    """One message of the event bus, whatever its form. ``id`` and ``source`` together are the idempotency key."""

    type: Literal["deployment_event"] = "deployment_event"
    source: str = Field(max_length=1024)
    kind: EventKind
    environment: str = Field(default="", max_length=253)
    namespace: DnsLabel
    service: DnsLabel
    version: Version | None = None
    """The candidate's version or image tag."""
    stable_version: Version | None = None
    """What stable runs, as far as the sender knows."""
    artifact: str = Field(default="", max_length=2048)
    """Package URL or image reference of the candidate."""
    policy: DnsLabel | None = None
    """A policy that the sender would like; used only where the target allows it."""
    first_weight_percent: int | None = Field(default=None, ge=1, le=100)
    chain_id: str = Field(default="", max_length=256)
    traceparent: Traceparent = ""
    """The sender's trace, by the CloudEvents extension for distributed tracing."""


class ReleaseRequested(_Fact):
    """A candidate version is to be judged: everything that the rollout will need, resolved once."""

    type: Literal["release_requested"] = "release_requested"
    rollout: RolloutId
    service: ServiceKey
    version: Version
    stable_version: Version | None
    artifact: str
    event_source: str
    event_id: str
    chain_id: str = ""
    traceparent: Traceparent = ""
    """The release's trace: the sender's, or one that follows from the event."""
    policy: Policy
    place: Place
    criticality: Criticality
    first_weight_percent: Annotated[int, Field(ge=1, le=100)]
    mode: Mode
    fence_floor: int = 0
    """The new rollout's fencing numbers lie above this one (the last of its predecessor)."""
    passed_over: tuple[Version, ...] = Field(default=(), exclude_if=lambda versions: not versions)
    """Older versions whose events came together with this one and were not begun, oldest first, the last 20."""


class ReleaseWithdrawn(_Fact):
    """The bus says that the candidate was rolled back or removed by someone else."""

    type: Literal["release_withdrawn"] = "release_withdrawn"
    kind: EventKind
    version: Version | None = Field(default=None, exclude_if=lambda version: version is None)
    """The only version that is withdrawn; None: whatever runs, and whatever waits."""


class StableUpgraded(_Fact):
    """The bus says that stable now runs the candidate's version."""

    type: Literal["stable_upgraded"] = "stable_upgraded"
    version: Version


class CandidateReady(_Fact):
    """The candidate has ready endpoints."""

    type: Literal["candidate_ready"] = "candidate_ready"
    detail: str = ""
    look: int | None = Field(default=None, exclude_if=lambda look: look is None)
    """The look that this answers, by its order; None where the order's reader did not say."""


class GateAnswered(_Fact):
    """A gate before any traffic has looked at the candidate, or could not."""

    type: Literal["gate_answered"] = "gate_answered"
    report: GateReport
    look: int | None = Field(default=None, exclude_if=lambda look: look is None)
    """The look that this answers, by its order; None where the order's reader did not say."""


class WeightsWritten(_Fact):
    """The mesh was written, or found as asked, and read back."""

    type: Literal["weights_written"] = "weights_written"
    fence: int
    canary_percent: Percent
    """The share that the API server holds after the write."""
    changed: bool = True


class WeightsRefused(_Fact):
    """The write can never succeed as it is: no such route, another owner's destination, a newer fence, no right."""

    type: Literal["weights_refused"] = "weights_refused"
    fence: int
    reason: str = Field(max_length=2000)
    not_ours: bool = False
    """What the candidate serves was not given by this rollout, so none of its weights stands."""


class DriftSeen(_Fact):
    """Somebody else changed the weights: what stands there now."""

    type: Literal["drift_seen"] = "drift_seen"
    canary_percent: Percent | None
    """None: the route or a destination is gone."""
    detail: str = Field(default="", max_length=1000)


class ResourceEvidence(Value):
    """What the comparison of pods adds to a metric's numbers."""

    measures: str
    """How pods are compared; see ``preset.ResourceSeries``."""
    by: str
    """What the evidence is of: ``mean``, ``recent``, ``slope``, ``jump`` or ``events``."""
    pods_canary: int
    pods_stable: int
    unit: str = ""
    slope_per_hour: float | None = None
    """The canary's growth over stable's, as a part of what it uses."""
    to_limit_s: float | None = None
    """Until the canary's fullest pod is at its limit at that slope."""


class MetricEvidence(Value):
    """What one metric says of all windows so far, with the last window's reading."""

    metric: str
    availability: Availability
    detail: str = ""
    safe: bool = False
    log_e: float = 0.0
    effect: float | None = None
    effect_low: float | None = None
    effect_high: float | None = None
    limit: float | None = None
    n_canary: int = 0
    n_stable: int = 0
    events_canary: int | None = None
    events_stable: int | None = None
    value_canary: float | None = None
    value_stable: float | None = None
    cusum: float | None = None
    cusum_line: float | None = None
    p99_low: float | None = None
    p99_high: float | None = None
    """Latency: the canary's 99th percentile to stable's, as a ratio; the ends lie on bounds of buckets."""
    resource: ResourceEvidence | None = Field(default=None, exclude_if=lambda found: found is None)


class GuardReading(Value):
    """One guard in one window: ``breach`` is None where it could not be judged."""

    guard: str
    breach: bool | None
    value: float | None = None


class WindowJudged(_Fact):
    """One window was collected and judged, or found unjudgeable: ``evidence`` says which, metric by metric."""

    type: Literal["window_judged"] = "window_judged"
    window: int = Field(ge=1)
    start: Utc
    end: Utc
    evidence: tuple[MetricEvidence, ...]
    guards: tuple[GuardReading, ...] = ()
    warmup: bool = False
    late: bool = False
    log_evidence: float = 0.0
    """Combined evidence of harm, natural logarithm."""
    log_pause: float = 2.302585092994046
    log_rollback: float = 4.605170185988092
    harmful: bool = False
    """The combined evidence has reached the rollback line, in this window or before."""
    n_canary: int = 0
    """Requests of the window, for exposure."""
    n_stable: int = 0
    notes: tuple[str, ...] = ()
    """What to know of the numbers themselves: another share than asked for, coarse buckets. Never evidence."""
    frozen: bool = False
    """The kill switch was on."""
    rollbacks_left: int = 1_000_000
    """Automatic rollbacks that the hourly limit still allows, over all services."""


class Verb(StrEnum):
    """What a person can order."""

    PAUSE = "pause"
    RESUME = "resume"
    ADVANCE = "advance"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


class PersonActed(_Fact):
    """A person, or a tool in a person's name, ordered something."""

    type: Literal["person_acted"] = "person_acted"
    verb: Verb
    actor: str = Field(min_length=1, max_length=200)
    reason: str = Field(default="", max_length=2000)
    asks_anew: bool = Field(default=False, exclude_if=lambda anew: not anew)
    """A resume after which only new looks count. False in journals from before answers said which look they are of."""


class TimePassed(_Fact):
    """The moment that the state asked to be woken at (``wake_at``) has come."""

    type: Literal["time_passed"] = "time_passed"


Stimulus: TypeAlias = Annotated[
    ReleaseRequested
    | ReleaseWithdrawn
    | StableUpgraded
    | CandidateReady
    | GateAnswered
    | WeightsWritten
    | WeightsRefused
    | DriftSeen
    | WindowJudged
    | PersonActed
    | TimePassed,
    Field(discriminator="type"),
]
"""Everything that can happen to a rollout. A ``DeploymentEvent`` becomes one of these in ``rollout.intake``."""

STIMULUS: TypeAdapter[Stimulus] = TypeAdapter(Stimulus)
"""Reads a stimulus back from its canonical JSON."""
