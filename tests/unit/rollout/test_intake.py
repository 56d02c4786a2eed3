"""Intake: what events mean, one by one and when many of a service come together."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from service.model.gates.rules import GateSubjects
from service.model.names import Mode
from service.model.rollout import Phase, RolloutState
from service.model.stimulus import (
    DeploymentEvent,
    EventKind,
    ReleaseRequested,
    ReleaseWithdrawn,
    StableUpgraded,
    WeightsWritten,
)
from service.rollout import intake, machine
from service.rollout.intake import Newest, merge
from tests.stories import SERVICE, START, Story, catalog, event, lean, policy

CATALOG = catalog(stable_labels={"version": "${stable_version}"})

TAKEN_IN = START + timedelta(hours=6)


def merged(*events: DeploymentEvent, newest: Newest | None = None, active: RolloutState | None = None) -> list[Any]:
    return [(one.event.id, one.passed_over) for one in merge(events, SERVICE, CATALOG, newest, active)]


def test_of_releases_that_come_together_the_newest_is_begun_and_names_the_others() -> None:
    assert merged(event("a", "2", 1), event("c", "4", 3), event("b", "3", 2)) == [("c", ("2", "3"))]


def test_labels_of_log_lines_are_filled_in_and_left_out_where_the_metrics_labels_serve() -> None:
    logs = {"labels": {"app": "${service}"}, "canary_labels": {"release": "${canary_version}"}}
    for given, canary, stable in (
        (logs, {"app": SERVICE.name, "release": "2"}, {"app": SERVICE.name}),
        (None, {}, {}),
    ):
        meant = intake.apply(event("a", "2"), SERVICE, catalog(logs=given), None, None, now=TAKEN_IN)
        assert isinstance(meant, intake.Applied)
        assert isinstance(meant.fact, ReleaseRequested)
        where = meant.fact.place
        assert (where.canary_log_labels, where.stable_log_labels) == (canary, stable)
        assert ("canary_log_labels" in where.model_dump()) == bool(canary)


def test_the_gates_of_the_policy_are_told_where_to_look_with_the_versions_filled_in() -> None:
    subjects = {
        "image": {"canary": "r.example/m:${canary_version}", "stable": "r.example/m:${stable_version}"},
        "security": {"report": {"file": "${service}/${canary_version}.json"}},
    }
    asks = policy(name="asks", preflight=[{"gate": "image"}, {"gate": "security"}])
    (target,) = catalog(preflight=subjects).targets
    target = target.model_copy(update={"allowed_policies": ("asks",)})
    given = CATALOG.model_copy(update={"policies": {**CATALOG.policies, "asks": asks}, "targets": (target,)})

    def begun(**changes: Any) -> GateSubjects:
        meant = intake.apply(event("a", "2", **changes), SERVICE, given, None, None, now=TAKEN_IN)
        assert isinstance(meant, intake.Applied)
        assert isinstance(meant.fact, ReleaseRequested)
        return meant.fact.place.preflight

    assert begun() == GateSubjects()  # the target's own policy has no gates
    both = begun(policy="asks")
    assert both.image is not None
    assert (both.image.canary, both.image.stable) == ("r.example/m:2", "r.example/m:1")
    assert both.security is not None
    assert both.security.report is not None
    assert both.security.report.file == f"{SERVICE.name}/2.json"
    # Without stable's version the image gate has nothing to look at; the release is begun and told of all the same.
    alone = begun(policy="asks", stable_version=None)
    assert (alone.image, alone.security) == (None, both.security)


def test_a_withdrawal_keeps_its_place_between_releases() -> None:
    gone = event("x", None, 2, kind=EventKind.REMOVED)
    assert [i for i, _ in merged(event("a", "2", 0), event("b", "3", 1), gone, event("c", "4", 3))] == ["b", "x", "c"]


def test_a_newest_release_that_cannot_be_filled_in_does_not_hide_the_one_before() -> None:
    assert merged(event("a", "2", 1), event("b", "3", 2), event("c", "4", 3, stable_version=None)) == [
        ("b", ("2",)),
        ("c", ()),
    ]


def test_late_events_are_neither_begun_nor_named() -> None:
    newest = Newest(START + timedelta(minutes=2), "m", 7)
    assert merged(event("a", "2", 1), event("b", "3", 3), newest=newest) == [("a", ()), ("b", ())]


@pytest.mark.parametrize("kind", [EventKind.REMOVED, EventKind.ROLLED_BACK])
def test_a_withdrawal_that_comes_before_its_older_release_keeps_that_from_beginning(kind: EventKind) -> None:
    gone, older = event("x", None, 2, kind=kind), event("a", "2", 1)
    for service in (Service(Mode.ENFORCE).take(gone).take(older), Service(Mode.ENFORCE).take(gone, older)):
        assert service.state is None
        assert service.take(event("b", "3", 3)).settled() == ("3", Phase.PROGRESSING)


def test_a_withdrawal_of_a_service_without_a_target_is_not_remembered() -> None:
    gone = event("x", None, 2, kind=EventKind.REMOVED)
    meant = intake.apply(gone, SERVICE, CATALOG.model_copy(update={"targets": ()}), None, None, now=TAKEN_IN)
    assert isinstance(meant, intake.NotApplied)
    assert not meant.newest


def test_the_journal_says_which_versions_were_not_begun() -> None:
    (one,) = merge([event(f"e{n}", f"2.{n}.0", n) for n in range(9)], SERVICE, CATALOG, None, None)
    meant = intake.apply(one.event, SERVICE, CATALOG, None, None, now=TAKEN_IN, passed_over=one.passed_over)
    assert isinstance(meant, intake.Applied)
    assert isinstance(meant.fact, ReleaseRequested)
    (row, *_) = machine.begin(meant.fact).journal
    assert row.detail == (
        "Not begun, because this version's event came together with theirs: "
        "3 older and 2.3.0, 2.4.0, 2.5.0, 2.6.0, 2.7.0."
    )


def test_the_canonical_form_of_a_release_that_came_alone_says_nothing_of_others() -> None:
    (fact,) = Story().facts
    assert "passed_over" not in fact.to_json()


def test_an_event_that_waited_for_hours_does_not_find_its_time_outs_over() -> None:
    meant = intake.apply(event("a", "2"), SERVICE, CATALOG, None, None, now=TAKEN_IN)
    assert isinstance(meant, intake.Applied)
    assert meant.fact.at == TAKEN_IN
    story = Story(at=TAKEN_IN)
    assert story.state.wake_at is not None
    assert story.state.wake_at > TAKEN_IN


def test_a_successors_time_outs_run_from_its_predecessors_end() -> None:
    story = Story().progressing()
    fact = story.facts[0].model_copy(
        update={"id": "e2", "event_id": "e2", "rollout": "r-2", "version": "3", "at": story.at}
    )
    story.tell(fact).pass_time(3600).written()
    assert story.state.phase is Phase.ENDED
    assert story.last.begin is not None
    assert story.last.begin.at == story.at


def test_a_new_version_over_the_promoted_one_is_a_release_and_no_news_of_stable() -> None:
    """CI names as stable what the running rollout is still bringing in; the release must not be lost."""
    active = Story().progressing().state
    meant = intake.apply(
        event("n", "2.14.0", stable_version=active.version), SERVICE, CATALOG, None, active, now=TAKEN_IN
    )
    assert isinstance(meant, intake.Applied)
    assert isinstance(meant.fact, ReleaseRequested)
    for version in (None, active.version):
        meant = intake.apply(
            event("n", version, stable_version=active.version), SERVICE, CATALOG, None, active, now=TAKEN_IN
        )
        assert isinstance(meant, intake.Applied)
        assert isinstance(meant.fact, StableUpgraded)


def test_a_version_that_is_on_its_way_back_may_be_released_again() -> None:
    active = Story().progressing().window(harmful=True, **lean(300)).state
    assert active.phase is Phase.ROLLING_BACK
    meant = intake.apply(event("again", active.version), SERVICE, CATALOG, None, active, now=TAKEN_IN)
    assert isinstance(meant, intake.Applied)


WITHDRAWALS = pytest.mark.parametrize("kind", [EventKind.REMOVED, EventKind.ROLLED_BACK])


def superseded() -> Service:
    """Version 2 goes back, and 3 waits for that."""
    service = Service(Mode.ENFORCE).take(event("a", "2", 0)).take(event("b", "3", 1))
    assert service.waits() == ("2", Phase.ROLLING_BACK, "3")
    return service


@WITHDRAWALS
def test_a_withdrawal_of_the_superseded_version_leaves_the_one_that_waits(kind: EventKind) -> None:
    service = superseded().take(event("c", "2", 2, kind=kind))
    assert service.waits() == ("2", Phase.ROLLING_BACK, "3")
    assert service.settled() == ("3", Phase.PROGRESSING)


@WITHDRAWALS
def test_a_withdrawal_of_the_version_that_waits_drops_it_alone(kind: EventKind) -> None:
    service = superseded().take(event("c", "3", 2, kind=kind))
    assert service.waits() == ("2", Phase.ROLLING_BACK, None)
    assert service.settled() is None


@WITHDRAWALS
def test_a_withdrawal_of_a_version_that_is_gone_leaves_the_one_that_runs(kind: EventKind) -> None:
    service = superseded()
    assert service.settled() == ("3", Phase.PROGRESSING)
    service.take(event("c", "2", 2, kind=kind))
    assert service.settled() == ("3", Phase.PROGRESSING)
    service.take(event("d", "3", 3, kind=kind))
    assert service.settled() is None


@WITHDRAWALS
def test_a_withdrawal_that_names_no_version_means_all_that_comes_in(kind: EventKind) -> None:
    assert superseded().take(event("c", None, 2, kind=kind)).waits() == ("2", Phase.ROLLING_BACK, None)
    assert Service(Mode.ENFORCE).take(event("a", "2", 0)).take(event("c", None, 1, kind=kind)).settled() is None


@WITHDRAWALS
def test_a_withdrawal_of_another_version_still_makes_older_events_late(kind: EventKind) -> None:
    """The release that it withdraws may be the one that comes after it."""
    service = Service(Mode.ENFORCE).take(event("a", "2", 0)).take(event("x", "3", 2, kind=kind))
    service.take(event("b", "3", 1))
    assert service.settled() == ("2", Phase.PROGRESSING)


def test_a_rollback_may_name_the_stable_version_that_it_led_back_to() -> None:
    assert superseded().take(event("c", "1", 2, kind=EventKind.ROLLED_BACK)).waits() == ("2", Phase.ROLLING_BACK, None)
    removed = Service(Mode.ENFORCE).take(event("a", "2", 0)).take(event("c", "1", 1, kind=EventKind.REMOVED))
    assert removed.settled() == ("2", Phase.PROGRESSING)


@pytest.mark.parametrize(("said", "known", "ends"), [(None, None, True), (None, "1", False), ("1", None, False)])
def test_a_rollback_to_a_version_that_is_not_known_ends_the_release_only_where_stables_is_not_known(
    said: str | None, known: str | None, ends: bool
) -> None:
    active = Story(stable_version=known).progressing().state
    back = event("c", "0.9", 1, kind=EventKind.ROLLED_BACK, stable_version=said)
    meant = intake.apply(back, SERVICE, CATALOG, None, active, now=TAKEN_IN)
    assert isinstance(meant, intake.Applied)
    assert machine.step(active, meant.fact).accepted is ends


def test_a_withdrawal_may_name_the_candidate_by_its_artifact_alone() -> None:
    active = Story().progressing().state  # version 2.13.0, by its tag
    for digest, ends in (("abc", True), ("def", False)):
        artifact = f"pkg:oci/tf@sha256%3A{digest}?arch=amd64"
        gone = event("c", f"sha256-{digest}", 1, kind=EventKind.ROLLED_BACK, artifact=artifact, stable_version=None)
        meant = intake.apply(gone, SERVICE, CATALOG, None, active, now=TAKEN_IN)
        assert isinstance(meant, intake.Applied)
        assert machine.step(active, meant.fact).accepted is ends


def test_the_canonical_form_of_a_withdrawal_that_names_no_version_says_nothing_of_versions() -> None:
    assert "version" not in ReleaseWithdrawn(id="x", at=START, kind=EventKind.REMOVED).to_json()


class Service:
    """One service that takes events as the door does, and the mesh that confirms whatever is asked."""

    def __init__(self, mode: Mode) -> None:
        self.catalog = catalog(mode, stable_labels={"version": "${stable_version}"})
        self.newest: Newest | None = None
        self.state: RolloutState | None = None

    def take(self, *events: DeploymentEvent) -> Service:
        running = self.state if self.state and not self.state.phase.terminal else None
        for one in merge(events, SERVICE, self.catalog, self.newest, running):
            running = self.state if self.state and not self.state.phase.terminal else None
            meant = intake.apply(one.event, SERVICE, self.catalog, self.newest, running, now=TAKEN_IN)
            if isinstance(meant, intake.Applied) or meant.newest:
                self.newest = Newest(one.event.at, one.event.id, 0)
            if isinstance(meant, intake.NotApplied):
                continue
            if running is None:
                assert isinstance(meant.fact, ReleaseRequested)
                self.state = machine.begin(meant.fact).state
            else:
                self._step(running, meant.fact)
        return self

    def _step(self, state: RolloutState, fact: Any) -> None:
        step = machine.step(state, fact)
        self.state = machine.begin(step.begin).state if step.begin else step.state

    def waits(self) -> tuple[str, Phase, str | None]:
        """Version and phase of what runs, and the version that waits for its end."""
        assert self.state is not None
        waiting = self.state.successor
        return self.state.version, self.state.phase, waiting.version if waiting else None

    def settled(self) -> tuple[str, Phase] | None:
        """Version and phase once the mesh has confirmed everything; an ended rollout is none."""
        for _ in range(5):
            if self.state is None or self.state.phase.terminal or self.state.weight_seen == self.state.weight_asked:
                break
            at: datetime = TAKEN_IN
            self._step(
                self.state,
                WeightsWritten(id="w", at=at, fence=self.state.fence, canary_percent=self.state.weight_asked),
            )
        return None if self.state is None or self.state.phase.terminal else (self.state.version, self.state.phase)


@pytest.mark.parametrize("mode", list(Mode))
def test_events_that_come_together_lead_where_they_lead_one_by_one(mode: Mode) -> None:
    rng = random.Random(20261126)
    different = 0
    for _ in range(3000):
        events = []
        for n in range(rng.randrange(2, 9)):
            kind = rng.choice([EventKind.DEPLOYED] * 4 + [EventKind.UPGRADED, EventKind.REMOVED, EventKind.ROLLED_BACK])
            version = rng.choice(["2", "3", "4", "5", None])
            stable = rng.choice(["1", "1", "1", "1", "2", None])
            events.append(event(f"e{n}", version, n, kind=kind, stable_version=stable))
        before = events[: rng.randrange(3)]
        alone, together = Service(mode).take(*before), Service(mode).take(*before)
        for one in events[len(before) :]:
            alone.take(one)
        together.take(*events[len(before) :])
        assert alone.settled() == together.settled(), [(e.kind, e.version, e.stable_version) for e in events]
        different += alone.state != together.state
    assert different > 300, "nothing was merged, so nothing was tested"
