"""The state of one rollout: a value, changed only by ``rollout.machine.step``."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from service.model.gates.report import Finding, GateReport
from service.model.gates.rules import GateRule
from service.model.journal import GENESIS
from service.model.names import DnsLabel, Mode, RolloutId, ServiceKey, Version
from service.model.policy import Criticality, Percent, Policy, Stage
from service.model.stimulus import MetricEvidence, ReleaseRequested
from service.model.target import Place
from service.model.trace import Traceparent
from service.model.value import Utc, Value


class Phase(StrEnum):
    """Where a rollout stands. The last three are ends."""

    STARTING = "starting"  # waiting for ready endpoints; weight 0
    PROGRESSING = "progressing"  # in a stage
    PAUSED = "paused"  # harm leaning or found, or a person's wish; the weight is kept
    HELD = "held"  # cannot go on and has no reason to go back; the weight is kept
    ROLLING_BACK = "rolling_back"  # weight 0 is owed
    PROMOTING = "promoting"  # the last weight is owed
    AWAITING_STABLE = "awaiting_stable"  # canary keeps 100 until stable runs the new version
    ROLLED_BACK = "rolled_back"
    PROMOTED = "promoted"
    ENDED = "ended"  # superseded, withdrawn, or refused before any traffic

    @property
    def terminal(self) -> bool:
        """True when nothing will happen any more."""
        return self in (Phase.ROLLED_BACK, Phase.PROMOTED, Phase.ENDED)

    @property
    def judged(self) -> bool:
        """True when windows are collected."""
        return self in (Phase.PROGRESSING, Phase.PAUSED, Phase.HELD)


class Decision(StrEnum):
    """What Serinus says to other tools."""

    CONTINUE = "continue"
    ADVANCE = "advance"
    PROMOTE = "promote"
    PAUSE = "pause"
    ROLLBACK = "rollback"


class Waiting(StrEnum):
    """What a paused or held rollout waits for."""

    EVIDENCE = "evidence"  # leaning to harm: goes on by itself when evidence falls
    CONFIRM_ROLLBACK = "confirm_rollback"  # a person confirms the rollback, or resumes
    CONFIRM_MOVE = "confirm_move"  # recommend mode: a person confirms the next step
    PERSON = "person"  # paused by a person
    DATA = "data"  # blind
    SAFETY = "safety"  # undecided past its budget
    MESH = "mesh"  # the weights cannot be written, or somebody keeps changing them
    READINESS = "readiness"  # the candidate is not ready in time
    PREFLIGHT = "preflight"  # a gate before any traffic has failed or could not look; a person goes on or back


class StageProgress(Value):
    """How far the present stage has come."""

    index: int = 0
    entered_at: Utc | None = None
    """When the stage's weight was confirmed by the mesh; None: not yet."""
    n_canary: int = 0
    """Requests of the windows that began when the stage's weight stood already; of stable as well."""
    n_stable: int = 0


class RolloutState(Value):
    """All that the core knows of a rollout. Equal histories give equal states, byte for byte."""

    id: RolloutId
    service: ServiceKey
    version: Version
    stable_version: Version | None
    artifact: str
    event_source: str
    event_id: str
    event_at: Utc
    """When the event was taken in and the rollout begun."""
    chain_id: str
    traceparent: Traceparent = ""
    policy: Policy
    place: Place
    criticality: Criticality
    first_weight_percent: int
    mode: Mode

    phase: Phase
    phase_since: Utc
    revision: int = 0
    """Stimuli that changed the state so far; the journal's and the windows' common order."""
    waiting: Waiting | None = None
    reason: str = ""
    """One sentence: why this phase."""
    proposal: Decision | None = None
    """In recommend mode: the move that waits for a person's yes."""

    ready: bool = False
    """The candidate has ready endpoints; before the first weight it may still wait for gates."""
    gates: tuple[GateReport, ...] = ()
    """What the gates before any traffic have answered, the last answer of each."""
    overruled_gates: tuple[DnsLabel, ...] = ()
    """Gates that a person has gone on without."""
    looks_n: int = Field(default=0, exclude_if=lambda n: not n)
    """Times that a person had the candidate looked at anew before any traffic."""

    weight_asked: Percent = 0
    weight_seen: Percent | None = None
    fence: int
    answered_fence: int = 0
    """The last fence that the mesh gave an answer for, and in ``answered_percent`` what it was: None for a refusal."""
    answered_percent: Percent | None = None
    served_from: int | None = None
    """The first fence at which a weight above 0 was ordered or read back and not refused; from it on only the mesh can
    say that the candidate serves nothing. None: no traffic was given."""
    drift_n: int = 0
    drift_since: Utc | None = None

    stage: StageProgress = StageProgress()
    windows_from: Utc | None = None
    """Start of window 1; None until the first weight is confirmed."""
    window: int = 0
    """Windows judged so far."""
    n_canary: int = 0
    n_stable: int = 0
    log_evidence: float = 0.0
    log_evidence_max: float = 0.0
    log_pause: float = 2.302585092994046
    log_rollback: float = 4.605170185988092
    evidence: tuple[MetricEvidence, ...] = ()
    notes: tuple[str, ...] = ()
    """What to know of the last window's numbers themselves; never a reason for a move."""
    guard_rows: dict[str, int] = {}
    """Breaching windows in a row, by guard."""
    confirmed_guards: tuple[str, ...] = ()
    """Guards that a person has overruled by resuming."""
    harm_overruled: bool = False
    """A person resumed above the rollback line: only a guard or a person stops it now."""
    blind_since: Utc | None = None
    undecided_since: Utc | None = None
    frozen: bool = False

    paged: tuple[str, ...] = ()
    """Dedup keys of incidents that are open."""
    wake_at: Utc | None = None
    """When time alone changes something."""
    successor: ReleaseRequested | None = None
    """A newer version that starts when this rollout has ended."""
    stable_caught_up: bool = False
    """Stable was said to run the candidate's version before the mesh had confirmed the promotion."""
    ended_as: str = Field(default="", max_length=200)
    journal_n: int = 0
    journal_hash: str = GENESIS

    @property
    def open_gates(self) -> tuple[GateRule, ...]:
        """Gates of the policy that neither passed nor were overruled."""
        closed = {report.gate for report in self.gates if report.finding is Finding.PASSED} | {*self.overruled_gates}
        return tuple(rule for rule in self.policy.preflight if rule.gate not in closed)

    @property
    def decision(self) -> Decision:
        """What other tools are told now; ``advance`` is only ever said at the moment of the move."""
        if self.phase in (Phase.PROMOTING, Phase.AWAITING_STABLE, Phase.PROMOTED):
            return Decision.PROMOTE
        if self.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ENDED):
            return Decision.ROLLBACK
        if self.phase in (Phase.PAUSED, Phase.HELD):
            return Decision.PAUSE
        return Decision.CONTINUE

    @property
    def weight_now(self) -> int:
        """The canary's weight of the present stage, in percent."""
        return self.stage_weight(self.stage.index)

    @property
    def promotion_stopped(self) -> bool:
        """Paused or held out of the promotion: the weight that is asked is then none of the present stage's.

        A last stage of 100 % has the promotion's own weight: there the stage goes on, and promotes anew.
        """
        return self.phase.judged and self.windows_from is not None and self.weight_asked != self.weight_now

    @property
    def return_stopped(self) -> bool:
        """Paused or held on the way back to a stable that runs the new version: nothing is left to be judged."""
        return self.promotion_stopped and self.weight_asked == 0

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The policy's stages."""
        return self.policy.stages

    def stage_weight(self, index: int) -> int:
        """Canary weight in percent of the stage at ``index``."""
        weight = self.policy.stages[index].weight_percent
        return self.first_weight_percent if weight == "first" else weight


class WatchedRollout(Value):
    """The few parts of a stored RolloutState that the watch on the weights looks at: read in a fifth of the time."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: RolloutId
    place: Place
    weight_asked: Percent
    drift_since: Utc | None
