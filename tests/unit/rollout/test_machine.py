"""The state machine: what each fact leads to, phase by phase."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from typing import Any

import pytest

from service.model.gates.report import Finding, GateReport
from service.model.instruction import CheckReady, Page, PageAction, Publish, SetWeights, Severity
from service.model.journal import first_broken_row
from service.model.names import Mode
from service.model.observation import Availability
from service.model.rollout import Phase, Waiting
from service.model.stimulus import (
    CandidateReady,
    DriftSeen,
    EventKind,
    GateAnswered,
    PersonActed,
    ReleaseRequested,
    ReleaseWithdrawn,
    StableUpgraded,
    Stimulus,
    TimePassed,
    Verb,
    WeightsRefused,
    WeightsWritten,
    WindowJudged,
)
from service.model.target import Finish
from service.rollout import machine
from service.rollout.turn import Step
from tests.stories import Story, lean, place, policy, request


def weights(step: Step) -> list[int]:
    return [o.canary_percent for o in step.orders if isinstance(o, SetWeights)]


def pages(step: Step, action: PageAction = PageAction.TRIGGER) -> list[Page]:
    return [o for o in step.orders if isinstance(o, Page) and o.action is action]


def decisions(step: Step) -> list[str]:
    return [o.content["decision"] for o in step.orders if isinstance(o, Publish)]


def refused(story: Story) -> Story:
    return story.tell(
        WeightsRefused(id=f"r{len(story.facts)}", at=story.at, fence=story.state.fence, reason="no such route")
    )


def test_a_new_rollout_looks_for_ready_endpoints_before_any_weight() -> None:
    story = Story()
    assert story.state.phase is Phase.STARTING
    assert [type(o) for o in story.last.orders if isinstance(o, (CheckReady, SetWeights))] == [CheckReady]


def test_without_a_readiness_check_the_first_weight_is_asked_at_once() -> None:
    story = Story(place=place(readiness=None))
    assert story.state.phase is Phase.PROGRESSING
    assert weights(story.last) == [10]


def test_a_good_release_goes_through_its_stages_and_is_promoted() -> None:
    story = Story().progressing()
    for expected in (30, 60):
        story.window().window().window()
        assert weights(story.last) == [expected]
        assert decisions(story.last) == ["advance"]
        story.written()
    story.window().window().window()
    assert story.state.phase is Phase.PROMOTING
    assert weights(story.last) == [100]
    story.written()
    assert story.state.phase is Phase.PROMOTED
    assert decisions(story.last) == ["promote"]


def test_bake_time_runs_from_the_confirmation_of_the_weight() -> None:
    story = Story().ready().pass_time(600).written()
    story.window().window()
    assert story.state.stage.index == 0
    story.window()
    assert story.state.stage.index == 1


def test_nothing_advances_without_evidence_of_safety() -> None:
    story = Story().progressing()
    for _ in range(8):
        story.window(safe=False)
    assert (story.state.phase, story.state.stage.index) == (Phase.PROGRESSING, 0)


def test_nothing_advances_below_the_minimum_exposure() -> None:
    story = Story().progressing()
    for _ in range(8):
        story.window(n_canary=10)
        if story.state.stage.n_canary < 100:
            assert story.state.stage.index == 0


def test_windows_that_began_before_the_stages_weight_stood_are_no_exposure_of_the_stage() -> None:
    story = Story().progressing().window().window().window().pass_time(240).written()
    entered_at = story.state.stage.entered_at
    assert (story.state.weight_seen, entered_at) == (30, story.at)
    for minutes in (4, 3, 1):
        start = story.at - timedelta(minutes=minutes, seconds=-30)
        story.tell(
            WindowJudged(
                id=f"late{minutes}",
                at=story.at + timedelta(seconds=40),
                window=story.state.window + 1,
                start=start,
                end=start + timedelta(seconds=60),
                evidence=story.state.evidence,
                n_canary=500,
                n_stable=500,
            )
        )
        assert story.last.accepted
    assert (story.state.stage.n_canary, story.state.stage.n_stable) == (0, 0)
    story.window()
    assert (story.state.stage.n_canary, story.state.n_canary) == (60, 240 + 1500)


@pytest.mark.parametrize("availability", [a for a in Availability if not a.usable])
def test_a_blind_window_never_advances(availability: Availability) -> None:
    story = Story().progressing().window().window()
    for _ in range(9):
        story.window(availability=availability, safe=True)
    assert story.state.stage.index == 0
    assert story.state.phase is Phase.PROGRESSING


def test_blindness_is_paged_at_half_its_budget_and_held_at_its_end() -> None:
    story = Story().progressing()
    paged_at = held_at = None
    for minute in range(1, 15):
        story.window(availability=Availability.AWAY)
        if paged_at is None and pages(story.last):
            paged_at = minute
            assert pages(story.last)[0].severity is Severity.WARNING
        if held_at is None and story.state.phase is Phase.HELD:
            held_at = minute
    assert (paged_at, held_at) == (6, 11)
    assert story.state.waiting is Waiting.DATA
    assert story.state.weight_asked == 10


def test_a_held_blind_rollout_goes_on_when_the_numbers_come_back() -> None:
    story = Story().progressing()
    for _ in range(12):
        story.window(availability=Availability.AWAY)
    assert story.state.phase is Phase.HELD
    story.window()
    assert story.state.phase is Phase.PROGRESSING
    assert [p.action for p in story.last.orders if isinstance(p, Page)] == [PageAction.RESOLVE]


def test_blindness_can_retreat_when_the_policy_says_so() -> None:
    story = Story(policy=policy(on_blind={"budget": "2m", "then": "rollback"})).progressing()
    for _ in range(3):
        story.window(availability=Availability.STALE)
    assert story.state.phase is Phase.ROLLING_BACK
    assert weights(story.last) == [0]


def test_little_traffic_is_undecided_and_not_blind() -> None:
    story = Story().progressing()
    for _ in range(12):
        story.window(availability=Availability.FEW, safe=False, n_canary=0)
    assert story.state.blind_since is None
    assert story.state.phase is Phase.PROGRESSING


def test_an_undecided_stage_is_held_past_its_budget_and_advances_once_it_is_safe() -> None:
    story = Story().progressing()
    for _ in range(14):
        story.window(safe=False)
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.SAFETY)
    assert pages(story.steps[-1]) or any(pages(s) for s in story.steps)
    story.window()
    assert weights(story.last) == [30]


def test_a_safe_stage_whose_traffic_has_dried_up_is_held_past_its_budget() -> None:
    story = Story().progressing()
    for _ in range(14):
        story.window(n_canary=0, n_stable=0)
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.SAFETY)
    story.window(n_canary=500, n_stable=500)
    assert weights(story.last) == [30]


def test_harm_rolls_back_with_a_page_and_ends_at_the_meshs_confirmation() -> None:
    story = Story().progressing().window()
    story.window(harmful=True, **lean(120))
    assert story.state.phase is Phase.ROLLING_BACK
    assert weights(story.last) == [0]
    assert decisions(story.last) == ["rollback"]
    assert len(pages(story.last)) == 1
    story.written()
    assert story.state.phase is Phase.ROLLED_BACK
    assert len(pages(story.last, PageAction.RESOLVE)) == 1
    assert story.state.paged == ()
    published = [o for o in story.last.orders if isinstance(o, Publish)]
    assert published[-1].rolled_back


def test_harm_waits_for_a_person_where_the_policy_says_so() -> None:
    story = Story(policy=policy(on_harm="pause_and_confirm")).progressing()
    story.window(harmful=True, **lean(120))
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.CONFIRM_ROLLBACK)
    for _ in range(90):
        story.window(harmful=True, **lean(500))
    assert story.state.phase is Phase.PAUSED
    assert sum(len(pages(s)) for s in story.steps) == 1
    story.person(Verb.ROLLBACK).written()
    assert story.state.phase is Phase.ROLLED_BACK


def test_leaning_evidence_pauses_and_resumes_below_its_line() -> None:
    story = Story().progressing().window(**lean(14))
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.EVIDENCE)
    assert weights(story.last) == []
    story.window(**lean(5))
    assert story.state.phase is Phase.PAUSED
    story.window(**lean(2.9))
    assert story.state.phase is Phase.PROGRESSING
    assert len(pages(story.last, PageAction.RESOLVE)) == 1


def test_a_pause_on_evidence_ends_in_a_rollback_when_its_budget_is_used_up() -> None:
    story = Story(policy=policy(on_pause={"budget": "3m", "then": "rollback"})).progressing()
    for _ in range(4):
        story.window(**lean(20))
    assert story.state.phase is Phase.ROLLING_BACK


def test_a_pause_keeps_the_moment_when_it_began_though_it_waits_for_something_else() -> None:
    story = Story(policy=policy(on_pause={"budget": "3m", "then": "hold"})).progressing().window(**lean(20))
    began_at = story.at
    for _ in range(3):
        assert (story.state.waiting, story.state.phase_since) == (Waiting.EVIDENCE, began_at)
        story.window(**lean(20))
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.CONFIRM_ROLLBACK)
    assert story.state.phase_since == began_at
    story.person(Verb.RESUME)
    assert story.state.phase_since == story.at


def test_the_guard_fires_after_five_windows_in_a_row_and_waits_for_a_person() -> None:
    story = Story().progressing()
    for _ in range(4):
        story.window(breach=True)
    story.window(breach=False)
    for _ in range(4):
        story.window(breach=True)
        assert story.state.phase is not Phase.PAUSED
    story.window(breach=True)
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.CONFIRM_ROLLBACK)
    assert pages(story.last)[0].severity is Severity.CRITICAL
    story.person(Verb.ROLLBACK, reason="")
    assert weights(story.last) == [0]


def test_a_guard_window_that_cannot_be_judged_neither_counts_nor_breaks_the_row() -> None:
    story = Story().progressing()
    for breach in (True, True, None, True, True, None, True):
        story.window(breach=breach)
    assert story.state.phase is Phase.PAUSED


def test_a_person_can_overrule_the_guard_and_it_is_armed_again_when_its_row_breaks() -> None:
    story = Story().progressing()
    for _ in range(5):
        story.window(breach=True, safe=False)
    story.person(Verb.RESUME)
    story.window(breach=True, safe=False)
    assert story.state.phase is Phase.PROGRESSING
    story.window(breach=False, safe=False)
    for _ in range(5):
        story.window(breach=True, safe=False)
    assert story.state.phase is Phase.PAUSED


def test_the_rollback_limit_turns_actions_into_pages() -> None:
    story = Story().progressing().window(harmful=True, rollbacks_left=0, **lean(200))
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.CONFIRM_ROLLBACK)
    assert weights(story.last) == []
    assert pages(story.last)


def test_a_frozen_world_advances_nothing() -> None:
    story = Story().progressing()
    for _ in range(6):
        story.window(frozen=True)
    assert story.state.stage.index == 0
    story.window()
    assert story.state.stage.index == 1


def test_recommend_mode_asks_before_each_move_and_before_a_rollback() -> None:
    story = Story(mode=Mode.RECOMMEND).progressing().window().window().window()
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.CONFIRM_MOVE)
    assert weights(story.last) == []
    story.person(Verb.ADVANCE)
    assert weights(story.last) == [30]
    story.written().window(harmful=True, **lean(300))
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.CONFIRM_ROLLBACK)
    assert weights(story.last) == []


def test_observe_mode_owes_no_weight_and_says_what_it_would_have_done() -> None:
    story = Story(mode=Mode.OBSERVE).ready().window().window().window()
    assert story.state.stage.index == 1
    story.window(harmful=True, **lean(200))
    assert story.state.phase is Phase.ROLLED_BACK
    assert all(weights(s) == [] for s in story.steps)
    assert story.last.reason.startswith("Would have")
    assert not any(o.rolled_back for s in story.steps for o in s.orders if isinstance(o, Publish))


def test_observe_mode_takes_no_orders() -> None:
    story = Story(mode=Mode.OBSERVE).ready().person(Verb.ROLLBACK)
    assert not story.last.accepted
    assert "only observes" in story.last.reason


def test_a_candidate_that_is_not_ready_in_time_is_held_and_paged_and_goes_on_when_it_is() -> None:
    story = Story()
    assert story.state.wake_at is not None
    story.at = story.state.wake_at
    story.tell(TimePassed(id="t", at=story.at))
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.READINESS)
    assert len(pages(story.last)) == 1
    story.ready()
    assert story.state.phase is Phase.PROGRESSING
    assert weights(story.last) == [10]
    assert len(pages(story.last, PageAction.RESOLVE)) == 1


def test_time_that_comes_too_early_changes_nothing() -> None:
    story = Story().tell(TimePassed(id="t", at=request().at + timedelta(seconds=1)))
    assert not story.last.accepted


def test_an_unconfirmed_rollback_pages_and_tries_again_with_a_newer_fence() -> None:
    story = Story().progressing().window(harmful=True, **lean(200))
    fence = story.state.fence
    assert story.state.wake_at is not None
    story.at = story.state.wake_at
    story.tell(TimePassed(id="t", at=story.at))
    assert pages(story.last)[0].severity is Severity.CRITICAL
    assert weights(story.last) == [0]
    assert story.state.fence > fence
    story.written()
    assert story.state.phase is Phase.ROLLED_BACK


def test_a_refused_weight_holds_and_a_person_can_try_again() -> None:
    story = Story().ready()
    story.tell(WeightsRefused(id="r", at=story.at, fence=story.state.fence, reason="the route is gone"))
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.MESH)
    assert pages(story.last)
    story.person(Verb.RESUME)
    assert weights(story.last) == [10]


def test_a_refused_weight_is_asked_for_again_by_who_resumes_after_a_pause() -> None:
    """Nothing else would ask again: without a first weight there are no windows, and no time to wake at."""
    story = Story().ready()
    story.tell(WeightsRefused(id="r", at=story.at, fence=story.state.fence, reason="the canary serves 100 %"))
    story.person(Verb.PAUSE)
    assert weights(story.last) == []
    story.person(Verb.RESUME)
    assert weights(story.last) == [10]


@pytest.mark.parametrize("first_weight_refused", [False, True])
def test_a_refused_rollback_without_any_traffic_given_ends_and_claims_no_confirmation(
    first_weight_refused: bool,
) -> None:
    story = refused(Story().ready()) if first_weight_refused else Story()
    refused(story.tell(ReleaseWithdrawn(id="x", at=story.at, kind=EventKind.REMOVED)))
    assert story.state.phase is Phase.ENDED
    assert "confirmed" not in story.last.reason
    assert "no traffic was given" in story.last.reason


def test_a_retreat_ends_where_what_stands_was_not_given_by_the_rollout() -> None:
    story = Story().ready().person(Verb.ROLLBACK)
    fence = story.state.fence
    story.tell(WeightsRefused(id="r", at=story.at, fence=fence, reason="serves 100 %", not_ours=True))
    assert story.state.phase is Phase.ROLLED_BACK
    assert "confirmed" not in story.last.reason


@pytest.mark.parametrize("lost", ["the answer to the first weight", "that, with the next one refused", "the route"])
def test_a_refused_rollback_whose_candidate_may_serve_traffic_pages_until_the_mesh_confirms(lost: str) -> None:
    story = Story().ready()
    if lost == "that, with the next one refused":
        refused(story.person(Verb.PAUSE).person(Verb.RESUME))
    if lost == "the route":
        story.written().tell(DriftSeen(id="d", at=story.at, canary_percent=None))
    refused(story.person(Verb.ROLLBACK))
    assert story.state.phase is Phase.ROLLING_BACK
    assert [page.severity for page in pages(story.last)] == [Severity.CRITICAL]
    assert story.state.wake_at is not None
    story.at = story.state.wake_at
    assert weights(story.tell(TimePassed(id="t", at=story.at)).last) == [0]
    story.written()
    assert story.state.phase is Phase.ROLLED_BACK
    assert "confirmed by the mesh" in story.last.reason


def test_every_write_before_the_first_confirmation_is_marked_as_the_first() -> None:
    def firsts(step: Step) -> list[bool]:
        return [o.first for o in step.orders if isinstance(o, SetWeights)]

    story = Story().ready()
    assert firsts(story.last) == [True]
    story.tell(WeightsRefused(id="r", at=story.at, fence=story.state.fence, reason="already serves 100 %"))
    story.person(Verb.ROLLBACK)
    assert firsts(story.last) == [True]
    assert firsts(Story().progressing().person(Verb.ROLLBACK).last) == [False]


def test_an_answer_for_an_older_fence_changes_nothing() -> None:
    story = Story().progressing()
    before = story.state
    story.written(fence=before.fence - 1)
    assert not story.last.accepted
    assert story.state == before


def test_an_order_that_was_confirmed_takes_no_second_answer_of_any_kind() -> None:
    story = Story().progressing()
    before = story.state
    for again in (story.written, lambda: story.written(50), lambda: refused(story)):
        assert again().last.reason.endswith("has been answered already.")
        assert (story.last.accepted, story.state) == (False, before)


@pytest.mark.parametrize("promoted", [False, True])
def test_a_refusal_that_comes_twice_pages_and_publishes_once(promoted: bool) -> None:
    story = Story(place=place(finish=Finish.RETURN_TO_STABLE)).progressing()
    if not promoted:
        story.window().window().window()
    else:
        story.person(Verb.PROMOTE).written()
        story.tell(DriftSeen(id="d1", at=story.at, canary_percent=50)).pass_time(61)
        story.tell(DriftSeen(id="d2", at=story.at, canary_percent=50))
    assert len(pages(refused(story).last)) == 1
    before = story.state
    assert not refused(story).last.accepted
    assert story.state == before


def test_a_late_confirmation_does_not_resume_what_is_held_for_somebody_elses_weights() -> None:
    story = Story(policy=policy(drift_give_up_n=1)).progressing()
    for _ in range(2):
        story.written()
        story.tell(DriftSeen(id="d1", at=story.at, canary_percent=50)).pass_time(61)
        story.tell(DriftSeen(id="d2", at=story.at, canary_percent=50))
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.MESH)
    assert not story.written().last.accepted
    assert story.state.phase is Phase.HELD


def test_a_write_that_went_through_beside_a_refusal_or_another_share_still_counts() -> None:
    story = refused(Story().ready()).written()
    assert (story.state.phase, story.state.weight_seen) == (Phase.PROGRESSING, 10)
    story = Story().ready().written(50)
    assert (story.last.accepted, story.written(50).last.accepted) == (True, False)
    assert (story.written().last.accepted, story.state.weight_seen) == (True, 10)
    assert story.state.windows_from is not None


def test_a_weight_that_is_read_back_otherwise_is_put_right_like_any_drift() -> None:
    story = Story().ready().written(50)
    story.pass_time(61).tell(DriftSeen(id="d", at=story.at, canary_percent=50))
    assert weights(story.last) == [10]
    assert story.written().state.windows_from is not None
    assert story.state.drift_since is None


def test_a_weight_that_is_read_back_otherwise_and_comes_right_by_itself_is_confirmed_then() -> None:
    story = Story().ready().written(50)
    story.pass_time(10).tell(DriftSeen(id="d", at=story.at, canary_percent=10))
    assert story.state.windows_from is not None
    assert story.state.stage.entered_at == story.at


@pytest.mark.parametrize("verb", [Verb.ROLLBACK, Verb.PROMOTE])
def test_on_the_way_to_an_end_a_weight_that_is_read_back_otherwise_is_asked_for_until_it_stands(verb: Verb) -> None:
    story = Story().progressing().person(verb)
    asked = story.state.weight_asked
    for _ in range(3):
        story.written(30)
        assert story.state.wake_at is not None
        story.at = story.state.wake_at
        story.tell(TimePassed(id=f"t{len(story.facts)}", at=story.at))
        assert weights(story.last) == [asked]
    assert story.written().state.phase.terminal


def test_an_answer_before_any_order_is_none() -> None:
    story = Story()
    assert story.state.wake_at is not None
    story.at = story.state.wake_at
    story.tell(TimePassed(id="t", at=story.at))
    assert not story.written().last.accepted
    assert not refused(story).last.accepted


def test_drift_is_reported_put_back_after_the_hold_off_and_given_up_after_n() -> None:
    story = Story(policy=policy(drift_give_up_n=2)).progressing()

    def see(percent: int) -> None:
        story.tell(DriftSeen(id=f"d{len(story.facts)}", at=story.at, canary_percent=percent))

    see(10)
    assert not story.last.accepted
    for _ in range(2):
        see(50)
        assert weights(story.last) == []
        story.pass_time(30)
        see(50)
        assert not story.last.accepted
        story.pass_time(31)
        see(50)
        assert weights(story.last) == [10]
        story.written()
    see(50)
    story.pass_time(61)
    see(50)
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.MESH)
    assert len(pages(story.last)) == 1


def test_foreign_weights_that_keep_coming_back_after_the_promotion_page_once_and_change_no_phase() -> None:
    story = Story(policy=policy(drift_give_up_n=2), place=place(finish=Finish.RETURN_TO_STABLE)).progressing()
    story.person(Verb.PROMOTE).written()

    def see(percent: int) -> Step:
        return story.pass_time(61).tell(DriftSeen(id=f"d{len(story.facts)}", at=story.at, canary_percent=percent)).last

    for _ in range(2):
        see(50)
        assert weights(see(50)) == [100]
        story.written()
    see(50)
    given_up = see(50)
    assert (story.state.phase, weights(given_up), len(pages(given_up))) == (Phase.AWAITING_STABLE, [], 1)
    assert not see(50).accepted
    assert len(pages(see(100), PageAction.RESOLVE)) == 1
    story.tell(StableUpgraded(id="s", at=story.at, version="2.13.0")).written()
    assert story.state.phase is Phase.PROMOTED


def test_a_refused_correction_after_the_promotion_leaves_ears_for_what_is_done_to_the_weights() -> None:
    story = returning(policy=policy(drift_give_up_n=3)).person(Verb.PROMOTE).written()

    def see(percent: int) -> Step:
        return story.pass_time(61).tell(DriftSeen(id=f"d{len(story.facts)}", at=story.at, canary_percent=percent)).last

    see(40)
    assert weights(see(40)) == [100]
    assert not see(40).accepted  # not answered yet
    refused(story)
    assert len(pages(story.last)) == 1
    assert see(40).accepted
    assert weights(see(40)) == [100]
    refused(story)
    assert len(pages(story.last)) == 1
    see(40)
    assert len(pages(see(100), PageAction.RESOLVE)) == 1
    assert (story.state.phase, story.state.weight_seen) == (Phase.AWAITING_STABLE, 100)


def test_nothing_advances_while_somebody_elses_weights_stand() -> None:
    story = Story().progressing().window().window()
    story.tell(DriftSeen(id="d", at=story.at, canary_percent=0))
    story.window().window()
    assert story.state.stage.index == 0


@pytest.mark.parametrize("kind", [EventKind.ROLLED_BACK, EventKind.REMOVED])
def test_the_bus_can_end_a_rollout(kind: EventKind) -> None:
    story = Story().progressing()
    story.tell(ReleaseWithdrawn(id="x", at=story.at, kind=kind))
    assert weights(story.last) == [0]
    story.written()
    assert story.state.phase is Phase.ENDED


def test_a_newer_version_starts_only_after_the_old_canary_is_at_zero() -> None:
    story = Story().progressing()
    newer = request(id="e2", version="2.14.0", at=story.at + timedelta(seconds=5))
    story.tell(newer)
    assert story.state.phase is Phase.ROLLING_BACK
    assert story.last.begin is None
    story.written()
    assert story.state.phase is Phase.ENDED
    begun = story.last.begin
    assert begun is not None
    assert begun.version == "2.14.0"
    assert begun.fence_floor >= story.state.fence


def test_the_newest_of_several_successors_wins() -> None:
    story = Story().progressing().tell(request(id="e2", version="2.14.0")).tell(request(id="e3", version="2.15.0"))
    story.written()
    assert story.last.begin is not None
    assert story.last.begin.version == "2.15.0"


def test_a_stable_that_is_upgraded_before_the_promotion_is_confirmed_is_not_forgotten() -> None:
    story = Story(place=place(finish=Finish.RETURN_TO_STABLE)).progressing().person(Verb.PROMOTE)
    upgraded = StableUpgraded(id="u", at=story.at, version="2.13.0")
    assert story.tell(upgraded).last.accepted
    assert not story.tell(upgraded).last.accepted
    story.written()
    assert (story.state.phase, story.state.weight_asked) == (Phase.PROMOTING, 0)
    assert story.written().state.phase is Phase.PROMOTED


def returning(**changes: Any) -> Story:
    """In its first stage, and to return to stable in the end."""
    return Story(place=place(finish=Finish.RETURN_TO_STABLE), **changes).progressing()


def upgraded(story: Story) -> Story:
    return story.tell(StableUpgraded(id=f"u{len(story.facts)}", at=story.at, version="2.13.0"))


@pytest.mark.parametrize("paused", [False, True])
def test_a_promotion_that_the_mesh_refuses_is_gone_on_with_by_who_resumes(paused: bool) -> None:
    story = refused(returning().person(Verb.PROMOTE))
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.MESH)
    if paused:
        story.person(Verb.PAUSE)
    story.person(Verb.RESUME)
    assert (story.state.phase, weights(story.last), decisions(story.last)) == (Phase.PROMOTING, [100], ["promote"])
    assert story.state.wake_at is not None
    assert story.written().state.phase is Phase.AWAITING_STABLE


@pytest.mark.parametrize("paused", [False, True])
def test_a_stable_that_is_upgraded_while_the_promotion_is_held_is_not_forgotten(paused: bool) -> None:
    story = refused(returning().person(Verb.PROMOTE))
    if paused:
        story.person(Verb.PAUSE)
    assert upgraded(story).last.accepted
    assert not upgraded(story).last.accepted
    story.person(Verb.RESUME).written()
    assert (story.state.phase, story.state.weight_asked) == (Phase.PROMOTING, 0)
    assert story.written().state.phase is Phase.PROMOTED


def test_a_stable_that_is_upgraded_before_any_promotion_is_no_news() -> None:
    story = refused(Story(place=place(finish=Finish.RETURN_TO_STABLE)).ready())
    assert story.state.phase is Phase.HELD
    before = story.state
    assert not upgraded(story).last.accepted
    assert not upgraded(story.person(Verb.PAUSE)).last.accepted
    assert before.stable_caught_up is story.state.stable_caught_up is False


@pytest.mark.parametrize("paused", [False, True])
def test_a_refused_return_to_stable_is_gone_on_with_and_never_a_rollback(paused: bool) -> None:
    blind = policy(on_blind={"budget": "10m", "then": "rollback"})
    story = refused(upgraded(returning(policy=blind).person(Verb.PROMOTE).written()))
    assert (story.state.phase, story.state.weight_asked) == (Phase.HELD, 0)
    if paused:
        story.person(Verb.PAUSE)
    for _ in range(14):
        story.window(availability=Availability.NO_SERIES, n_canary=0, breach=True, harmful=True, **lean(300))
    for verb in (Verb.ADVANCE, Verb.PROMOTE):
        before = story.state
        assert "is promoted already" in story.person(verb).last.reason
        assert story.state == before
    assert story.state.phase is (Phase.PAUSED if paused else Phase.HELD)
    story.person(Verb.RESUME)
    assert (story.state.phase, weights(story.last), decisions(story.last)) == (Phase.PROMOTING, [0], ["promote"])
    assert story.written().state.phase is Phase.PROMOTED
    assert "rollback" not in [one for step in story.steps for one in decisions(step)]


def test_a_promotion_that_went_through_beside_its_refusal_stands() -> None:
    story = refused(returning().person(Verb.PROMOTE)).written()
    assert (story.state.phase, decisions(story.last)) == (Phase.AWAITING_STABLE, ["promote"])
    story = refused(Story().progressing().person(Verb.PROMOTE)).written()
    assert story.state.phase is Phase.PROMOTED
    story = upgraded(refused(returning().person(Verb.PROMOTE))).written()
    assert (story.state.phase, story.state.weight_asked) == (Phase.PROMOTING, 0)


def test_harm_while_a_promotion_is_held_rolls_back_and_a_pause_on_evidence_resumes_to_the_promotion() -> None:
    story = refused(returning().person(Verb.PROMOTE))
    story.window(**lean(20))
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.EVIDENCE)
    story.window(**lean(1))
    assert (story.state.phase, weights(story.last), decisions(story.last)) == (Phase.PROMOTING, [100], ["promote"])
    refused(story).window(harmful=True, **lean(300))
    assert (story.state.phase, weights(story.last)) == (Phase.ROLLING_BACK, [0])


def test_a_promotion_that_keeps_the_canary_takes_no_notice_of_stable() -> None:
    story = Story().progressing().person(Verb.PROMOTE)
    assert not story.tell(StableUpgraded(id="u", at=story.at, version="2.13.0")).last.accepted
    assert story.written().state.phase is Phase.PROMOTED


def test_with_fixed_subsets_traffic_returns_when_stable_runs_the_new_version() -> None:
    story = Story(place=place(finish=Finish.RETURN_TO_STABLE)).progressing()
    story.person(Verb.PROMOTE).written()
    assert story.state.phase is Phase.AWAITING_STABLE
    story.tell(StableUpgraded(id="other", at=story.at, version="2.99.0"))
    assert not story.last.accepted
    story.tell(StableUpgraded(id="s", at=story.at, version="2.13.0"))
    assert weights(story.last) == [0]
    story.written()
    assert story.state.phase is Phase.PROMOTED


def test_the_last_stage_at_all_traffic_is_watched_by_the_guard_alone() -> None:
    stages = [{"weight_percent": 50, "bake": "2m"}, {"weight_percent": 100, "bake": "2m"}]
    story = Story(policy=policy(stages=stages)).progressing()
    for _ in range(10):
        story.window()
        if weights(story.last):
            break
    assert weights(story.last) == [100]
    story.written()
    for _ in range(10):
        story.window(availability=Availability.NO_SERIES, safe=False, n_canary=600, n_stable=0)
        if story.state.phase is not Phase.PROGRESSING:
            break
    assert story.state.phase is Phase.PROMOTING


def test_a_window_out_of_order_changes_nothing() -> None:
    story = Story().progressing().window()
    before = story.state
    story.window(window=1)
    assert not story.last.accepted
    assert story.state == before


@pytest.mark.parametrize("verb", list(Verb))
def test_an_ended_rollout_takes_no_orders_and_says_so(verb: Verb) -> None:
    story = Story().progressing().window(harmful=True, **lean(200)).written().person(verb)
    assert not story.last.accepted
    assert story.last.reason.startswith("Nothing was changed")


def test_an_order_that_does_not_fit_the_phase_is_refused_with_a_sentence() -> None:
    story = Story().person(Verb.ADVANCE)
    assert not story.last.accepted
    assert "starting" in story.last.reason


def test_the_same_history_gives_the_same_state_byte_for_byte() -> None:
    def tell() -> Story:
        story = Story().progressing().window().window(**lean(12)).window(**lean(2)).person(Verb.PAUSE)
        return story.person(Verb.RESUME).window(harmful=True, **lean(150)).written()

    one, two = tell(), tell()
    assert one.state.to_json() == two.state.to_json()
    replayed = machine.begin(one.facts[0]).state  # type: ignore[arg-type]
    for fact in one.facts[1:]:
        replayed = machine.step(replayed, fact).state
    assert replayed.to_json() == one.state.to_json()


def test_the_journal_is_a_chain_and_a_changed_row_shows() -> None:
    story = Story().progressing().window().window().window().written().window(harmful=True, **lean(150)).written()
    rows = [row for step in story.steps for row in step.journal]
    assert first_broken_row(rows) is None
    assert rows[-1].hash == story.state.journal_hash
    rows[2] = rows[2].model_copy(update={"headline": "nothing to see"})
    assert first_broken_row(rows) == rows[2].n


def test_a_plain_window_leaves_no_journal_row() -> None:
    assert Story().progressing().window().last.journal == ()


def test_fences_only_ever_grow_even_when_the_clock_goes_back() -> None:
    story = Story().progressing()
    fence = story.state.fence
    story.pass_time(-3600).person(Verb.ROLLBACK)
    assert story.state.fence > fence


def test_harm_overruled_by_a_person_is_left_to_guards_and_people() -> None:
    story = Story(policy=policy(on_harm="pause_and_confirm")).progressing().window(harmful=True, **lean(120))
    story.person(Verb.RESUME).window(harmful=True, safe=False, **lean(150))
    assert story.state.phase is Phase.PROGRESSING
    for _ in range(5):
        story.window(harmful=True, breach=True, safe=False, **lean(150))
    assert story.state.phase is Phase.PAUSED


def test_every_row_of_the_table_names_phases_only_and_ends_lead_nowhere() -> None:
    assert set(machine.TRANSITIONS) == set(Phase)
    for phase in Phase:
        assert (machine.TRANSITIONS[phase] == {}) is phase.terminal


def anything(rng: random.Random, story: Story) -> None:
    """Any fact, whether or not it fits the phase."""
    state = story.state
    story.pass_time(rng.choice([0, 1, 31, 61, 400]))
    name = f"{len(story.facts)}"
    at = max(story.at, state.wake_at or story.at) if rng.random() < 0.1 else story.at
    fence = state.fence - (rng.random() < 0.1)
    percent = rng.choice([state.weight_asked, state.weight_asked, 0, 50, 100])
    ends = (ReleaseWithdrawn, ReleaseRequested, StableUpgraded, PersonActed)
    kind = rng.choice([kind for kind in machine._HANDLERS if kind not in ends or rng.random() < 0.2])
    if kind is WindowJudged:
        story.window(
            safe=rng.random() < 0.9,
            breach=rng.choice([False, False, True, None]),
            harmful=rng.random() < 0.05,
            frozen=rng.random() < 0.05,
            availability=rng.choice([Availability.ENOUGH] * 6 + list(Availability)),
            rollbacks_left=rng.choice([0, 9]),
            **lean(rng.choice([0.5, 0.5, 0.5, 14])),
        )
        return
    report = GateReport(gate="model", finding=rng.choice(list(Finding)), sentence="as seen.")
    look = rng.choice([None, state.looks_n, state.looks_n, 0])
    verb, named = rng.choice(list(Verb)), rng.choice([None, state.version, "2.14.0", "1"])
    facts: dict[type[Stimulus], Stimulus] = {
        CandidateReady: CandidateReady(id=name, at=at, look=look),
        GateAnswered: GateAnswered(id=name, at=at, report=report, look=look),
        WeightsWritten: WeightsWritten(id=name, at=at, fence=fence, canary_percent=percent),
        WeightsRefused: WeightsRefused(id=name, at=at, fence=fence, reason="no such route"),
        DriftSeen: DriftSeen(id=name, at=at, canary_percent=rng.choice([percent, 50, 50, None])),
        PersonActed: PersonActed(id=name, at=at, verb=verb, actor="ana", asks_anew=verb is Verb.RESUME),
        ReleaseWithdrawn: ReleaseWithdrawn(id=name, at=at, kind=EventKind.REMOVED, version=named),
        ReleaseRequested: request(id=name, at=at, version="2.14.0"),
        StableUpgraded: StableUpgraded(id=name, at=at, version=rng.choice([state.version, "1"])),
        TimePassed: TimePassed(id=name, at=at),
    }
    story.tell(facts[kind])


def moved(story: Story, phase: Phase) -> Story:
    """The story told on until it stands in ``phase``."""
    match phase:
        case Phase.PROGRESSING:
            story.progressing()
        case Phase.PAUSED:
            story.progressing().person(Verb.PAUSE)
        case Phase.HELD:
            story.ready().tell(WeightsRefused(id="r", at=story.at, fence=story.state.fence, reason="no such route"))
        case Phase.ROLLING_BACK:
            story.progressing().person(Verb.ROLLBACK)
        case Phase.ROLLED_BACK:
            story.progressing().person(Verb.ROLLBACK).written()
        case Phase.PROMOTING:
            story.progressing().person(Verb.PROMOTE)
        case Phase.AWAITING_STABLE:
            story.progressing().person(Verb.PROMOTE).written()
        case Phase.PROMOTED:
            story.progressing().person(Verb.PROMOTE).written()
            story.tell(StableUpgraded(id="s", at=story.at, version=story.state.version)).written()
        case Phase.ENDED:
            story.progressing().tell(ReleaseWithdrawn(id="x", at=story.at, kind=EventKind.REMOVED)).written()
    assert story.state.phase is phase
    return story


@pytest.mark.parametrize("phase", list(Phase))
def test_no_facts_in_any_order_lead_off_the_table(phase: Phase) -> None:
    rng = random.Random(f"off the table, {phase}")
    taken = 0
    for _ in range(60):
        gates = [{"gate": "model"}] if phase is Phase.STARTING and rng.random() < 0.7 else []
        changes = policy(
            drift_give_up_n=rng.choice([1, 3]),
            preflight=gates,
            on_gate_failure=rng.choice(["rollback", "pause_and_confirm"]),
        )
        mode = rng.choice([Mode.ENFORCE, Mode.RECOMMEND] if phase is not Phase.STARTING else list(Mode))
        story = moved(Story(policy=changes, place=place(finish=Finish.RETURN_TO_STABLE), mode=mode), phase)
        promoted = phase is Phase.AWAITING_STABLE
        for _ in range(50):
            before = story.state
            anything(rng, story)
            taken += story.last.accepted
            assert story.last.accepted or story.state == before
            promoted = promoted or story.state.phase is Phase.AWAITING_STABLE
            if story.state.promotion_stopped:
                assert any(step.state.phase is Phase.PROMOTING for step in story.steps)
            if promoted and isinstance(story.facts[-1], WindowJudged):
                assert "rollback" not in decisions(story.last)
    assert (taken > 0) is not phase.terminal


def test_evidence_lines_come_from_the_policy_until_the_statistics_say_otherwise() -> None:
    state = Story(policy=policy(false_rollback=0.02, false_pause=0.2)).state
    assert state.log_rollback == pytest.approx(math.log(50))
    assert state.log_pause == pytest.approx(math.log(5))


@pytest.mark.parametrize("kind", ["latency", "errors"])
def test_a_margin_below_one_is_refused_where_the_policy_is_read(kind: str) -> None:
    with pytest.raises(ValueError, match="a ratio of at least 1"):
        policy(metrics=[{"name": kind, "kind": kind, "margin": 0.05}], guards=[])
