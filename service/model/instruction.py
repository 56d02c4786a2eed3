"""Instructions: orders of the core, owed until they are carried out. Each is safe to carry out twice."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from service.model.gates.report import Candidate
from service.model.gates.rules import GateRule, GateSubjects
from service.model.names import RolloutId, ServiceKey
from service.model.policy import Percent
from service.model.target import Place
from service.model.trace import Traceparent
from service.model.value import Utc, Value


class Lane(StrEnum):
    """Instructions of different lanes never wait for each other; a rollback has a lane of its own."""

    WEIGHTS = "weights"
    RETREAT = "retreat"
    READINESS = "readiness"
    PAGES = "pages"
    NOTES = "notes"
    PUBLISH = "publish"
    PREFLIGHT = "preflight"


class _Order(Value):
    rollout: RolloutId
    service: ServiceKey
    at: Utc
    """When it was decided."""
    trigger_id: str = ""
    """The deployment event with which the rollout began."""
    traceparent: Traceparent = ""
    """The release's trace, the same for everything that it owes."""


class SetWeights(_Order):
    """Write this share for the canary. The latest fence of a route wins; older ones are dropped unwritten."""

    type: Literal["set_weights"] = "set_weights"
    place: Place
    canary_percent: Percent
    fence: int
    first: bool = False
    """Nothing of this rollout was confirmed yet: a canary that has traffic from elsewhere must not be touched."""

    @property
    def lane(self) -> Lane:
        """Going to zero never queues behind going up."""
        return Lane.RETREAT if self.canary_percent == 0 else Lane.WEIGHTS


class CheckReady(_Order):
    """Look whether the candidate has ready endpoints, until it has or the rollout moves on."""

    type: Literal["check_ready"] = "check_ready"
    place: Place
    look: int = Field(default=0, exclude_if=lambda look: not look)
    """Said again by the answer: it counts only while no later look was ordered."""

    @property
    def lane(self) -> Lane:
        """Looking never delays writing."""
        return Lane.READINESS


class RunGate(_Order):
    """Look whether the candidate passes one gate, before any traffic."""

    type: Literal["run_gate"] = "run_gate"
    rule: GateRule
    subjects: GateSubjects
    candidate: Candidate
    give_up_at: Utc | None
    """From this moment on a gate that cannot look answers so; until then it is tried again. None: for ever."""
    look: int = Field(default=0, exclude_if=lambda look: not look)
    """As in CheckReady."""

    @property
    def lane(self) -> Lane:
        """A gate may take minutes; nothing else waits behind it."""
        return Lane.PREFLIGHT


class Severity(StrEnum):
    """PagerDuty's words."""

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class PageAction(StrEnum):
    """Trigger or resolve an incident, or note a change without waking anyone."""

    TRIGGER = "trigger"
    RESOLVE = "resolve"
    CHANGE = "change"


class Page(_Order):
    """Tell the people on call."""

    type: Literal["page"] = "page"
    action: PageAction
    dedup_key: str = Field(max_length=255)
    severity: Severity = Severity.INFO
    summary: str = Field(max_length=1024)
    details: dict[str, str] = {}

    @property
    def lane(self) -> Lane:
        """Pages wait for nothing but pages: not for notes of a thousand releases that began in the same second."""
        return Lane.NOTES if self.action is PageAction.CHANGE else Lane.PAGES


class Publish(_Order):
    """Put a decision on the bus; ``content`` is the CDEvent subject's content."""

    type: Literal["publish"] = "publish"
    event_id: str
    content: dict[str, Any]
    rolled_back: bool = False
    """Also publish the standard service.rolledback event, for tools that know only CDEvents."""
    chain_id: str = ""

    @property
    def lane(self) -> Lane:
        """Decisions of a rollout keep their order among themselves."""
        return Lane.PUBLISH


Instruction: TypeAlias = Annotated[SetWeights | CheckReady | RunGate | Page | Publish, Field(discriminator="type")]

INSTRUCTION: TypeAdapter[Instruction] = TypeAdapter(Instruction)
"""Reads an instruction back from its canonical JSON."""
