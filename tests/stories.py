"""Stories: short ways to say what happens to a rollout in a test, in the words of the product."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from service.model.catalog import Catalog
from service.model.names import Mode, ServiceKey, rollout_id
from service.model.observation import Availability
from service.model.policy import Criticality, Policy
from service.model.rollout import RolloutState
from service.model.stimulus import (
    CandidateReady,
    DeploymentEvent,
    EventKind,
    GuardReading,
    MetricEvidence,
    PersonActed,
    ReleaseRequested,
    Stimulus,
    Verb,
    WeightsWritten,
    WindowJudged,
)
from service.model.target import Destination, Finish, Place, Readiness, Route, Target
from service.rollout import machine
from service.rollout.turn import Step

START = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
SERVICE = ServiceKey(cluster="default", namespace="ml-serving", name="tf-model-service")


def policy(**changes: Any) -> Policy:
    """Three stages of three one-minute windows, fully automatic unless told otherwise."""
    given: dict[str, Any] = {
        "name": "test",
        "stages": [
            {"weight_percent": "first", "bake": "3m", "min_requests": 100},
            {"weight_percent": 30, "bake": "3m", "min_requests": 100},
            {"weight_percent": 60, "bake": "3m", "min_requests": 100},
        ],
        "metrics": [{"name": "latency", "kind": "latency"}, {"name": "errors", "kind": "errors"}],
        "guards": [{"name": "error-rate", "metric": "errors", "above": 0.01, "windows": 5}],
        "on_harm": "rollback",
        "on_blind": {"budget": "10m", "then": "hold"},
        "on_inconclusive": {"budget": "10m", "then": "hold"},
    }
    return Policy.model_validate(given | changes)


def place(**changes: Any) -> Place:
    """The seed's route: subsets v1 and v2 of one host."""
    given: dict[str, Any] = {
        "virtual_service": "tf-model-route",
        "namespace": "ml-serving",
        "http_route": None,
        "stable": Destination(host="tf-model-service", subset="v1"),
        "canary": Destination(host="tf-model-service", subset="v2"),
        "finish": Finish.CANARY_KEEPS_ALL,
        "readiness": Readiness(deployment="tf-model-v2"),
        "metrics": "http",
        "stable_labels": {"version": "v1"},
        "canary_labels": {"version": "v2"},
    }
    return Place(**(given | changes))


def request(**changes: Any) -> ReleaseRequested:
    """TensorFlow 2.12.0 -> 2.13.0 in enforce mode."""
    event_id = changes.get("id", "e1")
    given: dict[str, Any] = {
        "id": event_id,
        "at": START,
        "rollout": rollout_id(SERVICE, "/ci", event_id),
        "service": SERVICE,
        "version": "2.13.0",
        "stable_version": "2.12.0",
        "artifact": "pkg:oci/tf@sha256%3Aabc?tag=2.13.0",
        "event_source": "/ci",
        "event_id": event_id,
        "policy": policy(),
        "place": place(),
        "criticality": Criticality.STANDARD,
        "first_weight_percent": 10,
        "mode": Mode.ENFORCE,
    }
    return ReleaseRequested(**(given | changes))


class Story:
    """Tells a rollout one fact after another and keeps everything that came of it."""

    def __init__(self, **changes: Any) -> None:
        self.at = changes.get("at", START)
        self.facts: list[Stimulus] = [request(**changes)]
        self.steps: list[Step] = [machine.begin(self.facts[0])]  # type: ignore[arg-type]

    @property
    def state(self) -> RolloutState:
        """As it stands now."""
        return self.steps[-1].state

    @property
    def last(self) -> Step:
        """What came of the last fact."""
        return self.steps[-1]

    def pass_time(self, seconds: float) -> Story:
        """Let time pass without any fact."""
        self.at += timedelta(seconds=seconds)
        return self

    def tell(self, fact: Stimulus) -> Story:
        """Any fact."""
        self.facts.append(fact)
        self.steps.append(machine.step(self.state, fact))
        return self

    def ready(self) -> Story:
        """The candidate has ready endpoints."""
        return self.tell(CandidateReady(id=f"ready{len(self.facts)}", at=self.at, look=self.state.looks_n))

    def written(self, percent: int | None = None, fence: int | None = None) -> Story:
        """The mesh confirms what was asked."""
        state = self.state
        return self.tell(
            WeightsWritten(
                id=f"written{len(self.facts)}",
                at=self.at,
                fence=state.fence if fence is None else fence,
                canary_percent=state.weight_asked if percent is None else percent,
            )
        )

    def window(self, **changes: Any) -> Story:
        """A minute passes and its window is judged; by default a harmless one with evidence of safety."""
        self.at += timedelta(seconds=60)
        availability = changes.pop("availability", Availability.ENOUGH)
        safe = changes.pop("safe", True)
        breach = changes.pop("breach", False)
        evidence = tuple(
            MetricEvidence(metric=m.name, availability=availability, safe=safe and availability.usable)
            for m in self.state.policy.metrics
        )
        given: dict[str, Any] = {
            "id": f"w{self.state.window + 1}-{len(self.facts)}",
            "at": self.at,
            "window": self.state.window + 1,
            "start": self.at - timedelta(seconds=60),
            "end": self.at,
            "evidence": evidence,
            "guards": (GuardReading(guard="error-rate", breach=breach, value=0.03 if breach else 0.001),),
            "n_canary": 60,
            "n_stable": 540,
            "log_evidence": math.log(0.5),
        }
        return self.tell(WindowJudged(**(given | changes)))

    def person(self, verb: Verb, reason: str = "looked at it") -> Story:
        """Somebody orders something."""
        return self.tell(
            PersonActed(
                id=f"p{len(self.facts)}",
                at=self.at,
                verb=verb,
                actor="ana",
                reason=reason,
                asks_anew=verb is Verb.RESUME,
            )
        )

    def progressing(self) -> Story:
        """The first weight is asked for and confirmed."""
        return self.ready().written()


def lean(evidence: float) -> dict[str, float]:
    """Window changes for combined evidence of this size, not logarithmic."""
    return {"log_evidence": math.log(evidence)}


def catalog(mode: Mode = Mode.ENFORCE, **changes: Any) -> Catalog:
    """One target for every service of the namespace, under the policy above, without a readiness check."""
    stable, canary = (Destination(host="${service}", subset=subset) for subset in ("v1", "v2"))
    given: dict[str, Any] = {
        "namespace": SERVICE.namespace,
        "service": "*",
        "route": Route(virtual_service="${service}-route", stable=stable, canary=canary),
        "policy": "test",
    }
    return Catalog(mode=mode, policies={"test": policy()}, targets=(Target(**(given | changes)),))


def event(event_id: str, version: str | None = "2", minute: int = 0, **changes: Any) -> DeploymentEvent:
    """The pipeline says that the service is upgraded from version 1, so many minutes after the start."""
    given: dict[str, Any] = {
        "id": event_id,
        "source": "/ci",
        "at": START + timedelta(minutes=minute),
        "kind": EventKind.UPGRADED,
        "namespace": SERVICE.namespace,
        "service": SERVICE.name,
        "version": version,
        "stable_version": "1",
    }
    return DeploymentEvent.model_validate(given | changes)
