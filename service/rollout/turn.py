"""One turn of the machine: collects what a stimulus changes, and seals it into a state, journal rows and orders."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from service.model.instruction import Instruction, Page, PageAction, Publish, SetWeights, Severity
from service.model.journal import JournalEntry
from service.model.names import Mode
from service.model.rollout import Decision, Phase, RolloutState
from service.model.stimulus import GateAnswered, PersonActed, ReleaseRequested, ReleaseWithdrawn, Stimulus, WindowJudged
from service.telling import words


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one stimulus. A refused one changes nothing and says why in ``reason``."""

    state: RolloutState
    accepted: bool
    reason: str
    journal: tuple[JournalEntry, ...] = ()
    orders: tuple[Instruction, ...] = ()
    drops: frozenset[str] = frozenset()
    begin: ReleaseRequested | None = None
    """The successor to start now that this rollout has ended."""


class Turn:
    """The state as it changes under one stimulus, and everything that is owed because of it."""

    def __init__(self, state: RolloutState, stimulus: Stimulus) -> None:
        self.state = state
        self.stimulus = stimulus
        self.orders: list[Instruction] = []
        self.drops: set[str] = set()
        self._told: list[tuple[str, str, str]] = []
        self._publish: list[tuple[Decision, str]] = []

    def set(self, **changes: Any) -> None:
        """Change fields of the state."""
        self.state = self.state.model_copy(update=changes)

    def enter(self, phase: Phase, reason: str, **changes: Any) -> None:
        """Go to another phase, or go on in the same one for another reason.

        ``phase_since`` stays in the same phase: a pause's budget runs from when it began, whatever it waits for since.
        """
        same = self.state.phase is phase
        since = self.state.phase_since if same else self.stimulus.at
        changes.setdefault("waiting", None)
        changes.setdefault("proposal", None)
        changes.setdefault("wake_at", None)
        self.set(phase=phase, phase_since=since, reason=reason, **changes)

    def tell(self, kind: str, headline: str, detail: str = "") -> None:
        """Write a journal row."""
        self._told.append((kind, headline, detail))

    def decide(self, decision: Decision, reason: str) -> None:
        """Publish a decision on the bus. Its content is made when the turn is sealed, so that it shows the end."""
        self._publish.append((decision, reason))

    def ask_weight(self, percent: int) -> None:
        """Owe a weight. In observe mode nothing is owed and the weight counts as confirmed at once."""
        at = self.stimulus.at
        fence = max(self.state.fence + 1, int(at.timestamp() * 1000))
        self.set(weight_asked=percent, fence=fence, drift_since=None)
        self.may_serve(percent)
        self.drops |= {"set_weights", "check_ready", "run_gate"}
        if self.state.mode is Mode.OBSERVE:
            self.set(weight_seen=percent, answered_fence=fence, answered_percent=percent)
            return
        self.orders = [o for o in self.orders if not isinstance(o, SetWeights)]
        self.orders.append(
            SetWeights(
                rollout=self.state.id,
                service=self.state.service,
                at=at,
                place=self.state.place,
                canary_percent=percent,
                fence=fence,
                first=self.state.windows_from is None,
            )
        )

    def may_serve(self, percent: int) -> None:
        """Note that the present order may give the candidate traffic."""
        if percent > 0 and self.state.served_from is None:
            self.set(served_from=self.state.fence)

    def page(self, cause: str, severity: Severity, symptom: str) -> None:
        """Wake someone; one incident a cause, however often it is said."""
        key = self._key(cause)
        self.set(paged=(*(k for k in self.state.paged if k != key), key))
        self._order_page(PageAction.TRIGGER, key, severity, symptom)

    def paged(self, cause: str) -> bool:
        """Whether the incident of this cause is open."""
        return self._key(cause) in self.state.paged

    def _key(self, cause: str) -> str:
        return f"serinus/{self.state.id}/{cause}"

    def note_change(self, summary: str) -> None:
        """Tell the pager of a move without waking anyone."""
        self._order_page(PageAction.CHANGE, f"serinus/{self.state.id}", Severity.INFO, summary)

    def resolve(self, *causes: str) -> None:
        """Close the incidents of these causes, or of all when none is named."""
        for key in self.state.paged:
            if not causes or key.rsplit("/", 1)[-1] in causes:
                self._order_page(PageAction.RESOLVE, key, Severity.INFO, self.state.reason)
                self.set(paged=tuple(k for k in self.state.paged if k != key))

    def _order_page(self, action: PageAction, key: str, severity: Severity, symptom: str) -> None:
        self.orders.append(
            Page(
                rollout=self.state.id,
                service=self.state.service,
                at=self.stimulus.at,
                action=action,
                dedup_key=key,
                severity=severity,
                summary=words.page_summary(self.state, symptom),
                details=words.page_details(self.state, self.stimulus.at),
            )
        )

    def sealed(self, begin: ReleaseRequested | None = None) -> Step:
        """The step: revision counted, journal chained, decisions made into orders."""
        revision = self.state.revision + 1
        self.set(revision=revision)
        for number, (decision, reason) in enumerate(self._publish):
            self.orders.append(self._publication(decision, reason, f"{self.state.id}.{revision}.{number}"))
        rows: list[JournalEntry] = []
        for kind, headline, detail in self._told:
            self.set(journal_n=self.state.journal_n + 1)
            digest = hashlib.sha256(self.state.to_json().encode()).hexdigest()
            row = JournalEntry(
                rollout=self.state.id,
                n=self.state.journal_n,
                revision=revision,
                at=self.stimulus.at,
                actor=_actor(self.stimulus),
                kind=kind,
                headline=headline,
                detail=detail,
                window=self.state.window or None,
                stimulus=self.stimulus.to_json(),
                state_digest=digest,
                prev_hash=self.state.journal_hash,
            ).sealed()
            self.set(journal_hash=row.hash)
            rows.append(row)
        headline = rows[-1].headline if rows else self.state.reason
        origin = {"trigger_id": self.state.event_id, "traceparent": self.state.traceparent}
        orders = tuple(order.model_copy(update=origin) for order in self.orders)
        return Step(self.state, True, headline, tuple(rows), orders, frozenset(self.drops), begin)

    def _publication(self, decision: Decision, reason: str, event_id: str) -> Publish:
        state = self.state
        window = self.stimulus if isinstance(self.stimulus, WindowJudged) else None
        content: dict[str, Any] = {
            "decision": decision.value,
            "phase": state.phase.value,
            "reason": reason,
            "mode": state.mode.value,
            "rollout": state.id,
            "service": {"id": state.service.bus_key, "cluster": state.service.cluster},
            "version": state.version,
            "stableVersion": state.stable_version,
            "artifactId": state.artifact,
            "weights": {
                "asked": {"stable": 100 - state.weight_asked, "canary": state.weight_asked},
                "seen": None
                if state.weight_seen is None
                else {"stable": 100 - state.weight_seen, "canary": state.weight_seen},
            },
            "logEvidence": round(state.log_evidence, 4),
            "evidence": [e.model_dump(mode="json", exclude_none=True) for e in state.evidence],
        }
        if window is not None:
            content["window"] = {
                "sequence": window.window,
                "start": window.start.isoformat(),
                "end": window.end.isoformat(),
            }
        return Publish(
            rollout=state.id,
            service=state.service,
            at=self.stimulus.at,
            event_id=event_id,
            content=content,
            rolled_back=state.phase is Phase.ROLLED_BACK and state.mode is not Mode.OBSERVE,
            chain_id=state.chain_id,
        )


def _actor(stimulus: Stimulus) -> str:
    match stimulus:
        case PersonActed():
            return stimulus.actor
        case ReleaseRequested() | ReleaseWithdrawn():
            return "event bus"
        case GateAnswered():
            # Not "serinus": a release that is refused before any traffic is no rollback that the hourly limit counts.
            return "preflight"
        case _:
            return "serinus" if stimulus.type in ("window_judged", "time_passed") else "mesh"
