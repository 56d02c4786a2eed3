"""A policy: how a release goes through its stages and what stops it. Read from YAML, kept in the rollout's state.

The policy in force when a rollout starts stays in force for it: editing a file never changes a rollout under way,
and a replay needs nothing but the journal.
"""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from service.model.gates.rules import GateRule
from service.model.names import DnsLabel
from service.model.value import Value

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration_s(given: Any) -> Any:
    """Seconds from ``90``, ``"90s"``, ``"5m"`` or ``"1h30m"``; anything else is left for pydantic to refuse."""
    if isinstance(given, timedelta):
        return given.total_seconds()
    if isinstance(given, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", given.strip())
        if parts and "".join(n + u for n, u in parts) == given.strip():
            return sum(float(n) * _UNITS_S[u] for n, u in parts)
        raise ValueError(f"{given!r} is no length of time; write it like 90s, 5m, 24h or 1h30m")
    return given


Seconds = Annotated[float, BeforeValidator(_duration_s), Field(ge=0, le=30 * 86400)]
"""A length of time in seconds; YAML may write it with units (90s, 5m, 24h, 1h30m)."""

Age = Annotated[float, BeforeValidator(_duration_s), Field(ge=86400, le=3650 * 86400)]
"""How long something is kept, in seconds: a day to ten years."""

Percent = Annotated[int, Field(ge=0, le=100)]


class Criticality(StrEnum):
    """How much depends on the service; sets the first weight."""

    CORE = "core"
    STANDARD = "standard"
    AUXILIARY = "auxiliary"


class MetricKind(StrEnum):
    """What a metric's numbers are, and so how the arms are compared."""

    LATENCY = "latency"  # bucket counts: rank and tail evidence
    ERRORS = "errors"  # failures of a total: conditional CUSUM
    PREDICTIONS = "predictions"  # counts by class or score bucket: KL betting
    RESOURCE = "resource"  # what each pod uses: canary pods against stable pods
    VALUE = "value"  # one number an arm (rate, gauge, ratio or lines of a log): only for guards


class MetricRule(Value):
    """One metric that a policy looks at."""

    name: DnsLabel
    """The key of the metric in the metrics preset (latency, errors, predictions, or a custom one)."""
    kind: MetricKind
    label: str = Field(default="", max_length=60)
    """What people call it on screens; the name when empty."""
    required: bool = True
    """A required metric that is blind or not yet safe keeps the rollout from advancing."""
    margin: float | None = Field(default=None, ge=0)
    """What is tolerated before a difference counts as harm: latency a slow-down ratio (1.05 = 5 % slower), errors an
    odds ratio, predictions nats of KL, resources a ratio (1.2 = a fifth more) or, of a share, a difference. None: the
    library's default for the kind."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the combined evidence given to this metric; None: the library's default for the kind."""

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        # A model of several outputs has a metric an output.
        named = self.name == self.kind.value or (
            self.kind is MetricKind.PREDICTIONS and self.name.startswith("predictions-")
        )
        if self.kind not in (MetricKind.VALUE, MetricKind.RESOURCE) and not named:
            raise ValueError(f"metric {self.name!r} of kind {self.kind} must be named {self.kind.value!r}")
        if self.margin is not None and self.kind in (MetricKind.LATENCY, MetricKind.ERRORS) and self.margin < 1:
            raise ValueError(
                f"margin of {self.name!r} is {self.margin:g}, but it is a ratio of at least 1: 1.05 tolerates 5 % more"
            )
        if self.kind is MetricKind.VALUE and self.required:
            raise ValueError(f"metric {self.name!r} is a plain value, which only guards can judge; set required: false")
        return self


class OnHarm(StrEnum):
    """What the policy does when harm is found or a guard fires."""

    PAUSE_AND_CONFIRM = "pause_and_confirm"  # hold the weight, page, wait for a person
    ROLLBACK = "rollback"


class Guard(Value):
    """An absolute limit beside the comparison, simple enough to explain at 3 a.m."""

    name: DnsLabel
    metric: DnsLabel
    above: float | None = None
    """The canary's value (for errors: the error rate, 0 to 1) may not be above this ..."""
    below: float | None = None
    """... nor below this ..."""
    times_stable_above: float | None = Field(default=None, gt=0)
    """... nor above this many times stable's value in the same window ..."""
    only_on_canary: bool = Field(default=False, exclude_if=lambda alone: not alone)
    """... nor above zero while stable's is zero: log lines, restarts, failures that stable knows nothing of ..."""
    windows: int = Field(default=5, ge=1, le=1440)
    """... for this many windows in a row. A window that cannot be judged neither counts nor breaks the row."""
    min_requests: int = Field(default=1, ge=1)
    """A window with fewer canary requests than this cannot be judged (errors only)."""
    on_breach: OnHarm = OnHarm.PAUSE_AND_CONFIRM

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        limits = (self.above, self.below, self.times_stable_above, self.only_on_canary or None)
        if sum(limit is not None for limit in limits) != 1:
            raise ValueError(
                f"guard {self.name!r} needs exactly one of above, below, times_stable_above, only_on_canary"
            )
        return self


class Stage(Value):
    """One weight with its bake time."""

    weight_percent: Annotated[int, Field(ge=1, le=100)] | Literal["first"]
    """Canary weight in percent; ``first`` takes it from the service's criticality."""
    bake_s: Seconds = Field(default=86400.0, alias="bake")
    """How long the stage lasts at least."""
    min_requests: int = Field(default=500, ge=0)
    """Requests that each arm must have served in this stage before it can end."""

    model_config = {**Value.model_config, "populate_by_name": True}


class BudgetEnd(StrEnum):
    """What happens when a budget is used up: keep the weight and page, or retreat."""

    HOLD = "hold"
    ROLLBACK = "rollback"


class Budget(Value):
    """How long a state that nobody wants may last, and what then."""

    budget_s: Seconds = Field(alias="budget")
    then: BudgetEnd = BudgetEnd.HOLD

    model_config = {**Value.model_config, "populate_by_name": True}


class Policy(Value):
    """Stages, metrics, guards and what to do when something is wrong."""

    name: DnsLabel
    description: str = ""
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=20)
    first_weight: dict[Criticality, Annotated[int, Field(ge=1, le=100)]] = {
        Criticality.CORE: 5,
        Criticality.STANDARD: 10,
        Criticality.AUXILIARY: 20,
    }
    """Weight of a stage that says ``first``, by how much depends on the service."""
    window_s: Annotated[Seconds, Field(ge=1, le=3600)] = Field(default=60.0, alias="window")
    """Length of one comparison. Windows of different rollouts end at up to twelve moments within this length."""
    warmup_windows: int = Field(default=0, ge=0, le=1440)
    """Windows after the first weight in which nothing is compared (cold caches); guards stand watch."""
    false_rollback: float = Field(default=0.01, gt=0, lt=0.5)
    """P(a release that behaves like stable is ever rolled back), over the whole rollout."""
    false_pause: float = Field(default=0.10, gt=0, lt=0.9)
    """P(such a release is ever paused)."""
    metrics: tuple[MetricRule, ...] = Field(min_length=1, max_length=50)
    guards: tuple[Guard, ...] = ()
    preflight: tuple[GateRule, ...] = Field(default=(), max_length=10)
    """What the candidate must pass before it gets any traffic. A gate of which the target says nothing cannot look."""
    on_gate_failure: OnHarm = OnHarm.ROLLBACK
    """What happens when a gate fails: end the release (rollback), or hold it for a person (pause_and_confirm)."""
    on_harm: OnHarm = OnHarm.PAUSE_AND_CONFIRM
    """What happens at the rollback line of the comparison."""
    on_pause: Budget = Budget(budget_s=3600.0, then=BudgetEnd.ROLLBACK)
    """How long evidence may stay above the pause line before ``then``; a pause that waits for a person's confirmation
    (a guard, pause_and_confirm) has no end of its own."""
    on_blind: Budget = Budget(budget_s=1800.0, then=BudgetEnd.HOLD)
    """How long a required metric may be blind."""
    on_inconclusive: Budget = Budget(budget_s=86400.0, then=BudgetEnd.HOLD)
    """How long past its bake time a stage may stay undecided."""
    ready_timeout_s: Seconds = Field(default=1800.0, alias="ready_timeout")
    """How long the candidate may take to have ready endpoints before people are told."""
    gate_timeout_s: Seconds = Field(default=600.0, alias="gate_timeout")
    """How long a gate that cannot look is tried again before people are told."""
    confirm_timeout_s: Seconds = Field(default=120.0, alias="confirm_timeout")
    """How long a rollback or a promotion may stay unconfirmed by the mesh before people are told."""
    drift_hold_off_s: Seconds = Field(default=60.0, alias="drift_hold_off")
    """How long somebody else's weights may stand before ours are written again."""
    drift_give_up_n: int = Field(default=3, ge=1, le=100)
    """After putting the weights back this often, somebody else owns them: hold and page."""

    model_config = {**Value.model_config, "populate_by_name": True}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Run whenever a policy is put into another value, which under load is for every event.
        names = [m.name for m in self.metrics]
        if len(set(names)) < len(names):
            twice = {n for n in names if names.count(n) > 1}
            raise ValueError(f"policy {self.name!r} names metrics twice: {', '.join(sorted(twice))}")
        gates = [rule.gate for rule in self.preflight]
        if len(set(gates)) < len(gates):
            raise ValueError(f"policy {self.name!r} names a gate twice; found: {', '.join(gates)}")
        if True not in [m.required for m in self.metrics]:
            raise ValueError(f"policy {self.name!r} has no required metric, so nothing could ever show that it is safe")
        for guard in self.guards:
            if guard.metric not in names:
                raise ValueError(
                    f"guard {guard.name!r} watches metric {guard.metric!r}; this policy has: {', '.join(names)}"
                )
        fixed = [s.weight_percent for s in self.stages if s.weight_percent != "first"]
        if fixed != sorted(fixed) or len(set(fixed)) != len(fixed):
            raise ValueError(f"policy {self.name!r}: stage weights must rise, found {fixed}")
        if any(s.weight_percent == "first" for s in self.stages[1:]):
            raise ValueError(f"policy {self.name!r}: only the first stage may say weight_percent: first")
        return self

    @property
    def planned_windows(self) -> int:
        """Windows from the first weight to the end of the last stage at which both arms have traffic."""
        compared = [s for s in self.stages if s.weight_percent != 100]
        return max(1, round(sum(s.bake_s for s in compared) / self.window_s))
