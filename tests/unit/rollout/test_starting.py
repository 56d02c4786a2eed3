"""Before the first weight: readiness and the gates, in any order, and what people can do about a gate."""

from __future__ import annotations

from typing import Any

import pytest

from service.model.gates.report import Finding, GateReport
from service.model.instruction import CheckReady, Instruction, Page, PageAction, RunGate, SetWeights
from service.model.names import Mode
from service.model.rollout import Decision, Phase, Waiting
from service.model.stimulus import CandidateReady, GateAnswered, PersonActed, TimePassed, Verb
from service.telling.words import if_nothing
from tests.stories import Story, place, policy

GATED = policy(preflight=[{"gate": "model"}, {"gate": "golden"}])
"""A gate that reads files, and one that asks the running candidate."""


def answer(story: Story, gate: str, finding: Finding = Finding.PASSED, **changes: Any) -> Story:
    look = changes.pop("look", story.state.looks_n)
    report = GateReport(gate=gate, finding=finding, sentence="as seen.", **changes)
    return story.tell(GateAnswered(id=f"{gate}{len(story.facts)}", at=story.at, report=report, look=look))


def gates(orders: tuple[Instruction, ...]) -> list[str]:
    return [one.rule.gate for one in orders if isinstance(one, RunGate)]


def pages(story: Story) -> list[tuple[PageAction, str]]:
    return [
        (one.action, one.dedup_key.rsplit("/", 1)[-1])
        for step in story.steps
        for one in step.orders
        if isinstance(one, Page) and one.action is not PageAction.CHANGE
    ]


def weights(story: Story) -> list[int]:
    return [one.canary_percent for step in story.steps for one in step.orders if isinstance(one, SetWeights)]


def test_gates_that_need_no_running_candidate_are_looked_at_beside_readiness() -> None:
    story = Story(policy=GATED)
    assert gates(story.last.orders) == ["model"]
    assert any(isinstance(one, CheckReady) for one in story.last.orders)
    assert story.state.reason == "Waiting for ready endpoints and the gates model and golden."


@pytest.mark.parametrize("ready_first", [True, False])
def test_the_first_weight_comes_when_the_candidate_is_ready_and_every_gate_is_passed(ready_first: bool) -> None:
    story = Story(policy=GATED)
    for look in (story.ready, lambda: answer(story, "model"))[:: 1 if ready_first else -1]:
        look()
    assert (story.state.phase, weights(story)) == (Phase.STARTING, [])
    assert [gates(step.orders) for step in story.steps].count(["golden"]) == 1
    answer(story, "golden")
    assert (story.state.phase, weights(story)) == (Phase.PROGRESSING, [10])
    assert story.state.reason == "Start at 10 %: the candidate has ready endpoints and passed 2 gates."


def test_a_failed_gate_ends_the_release_before_any_traffic_and_says_what_to_do() -> None:
    story = Story(policy=GATED)
    answer(story, "model", Finding.FAILED, to_do="Build the op in.", lines=("SegmentMaxV2 is missing",))
    told = [row for row in story.last.journal if row.kind == "gate failed"]
    assert [row.detail for row in told] == ["Build the op in.\nSegmentMaxV2 is missing"]
    assert story.state.phase is Phase.ROLLING_BACK
    story.written()
    assert (story.state.phase, story.state.ended_as) == (Phase.ENDED, "refused before any traffic")
    assert story.state.reason == (
        "Refused before any traffic: gate model fails, as seen. All traffic is on 2.12.0, confirmed by the mesh."
    )
    assert weights(story) == [0]
    assert pages(story) == [(PageAction.TRIGGER, "rollback"), (PageAction.RESOLVE, "rollback")]
    assert story.state.decision is Decision.ROLLBACK


@pytest.mark.parametrize(
    "changes", [{"policy": policy(preflight=[{"gate": "model"}], on_gate_failure="pause_and_confirm")},
                {"policy": policy(preflight=[{"gate": "model"}]), "mode": Mode.RECOMMEND}],
)  # fmt: skip
def test_where_people_are_asked_a_failed_gate_holds_the_release(changes: dict[str, Any]) -> None:
    story = answer(Story(**changes).ready(), "model", Finding.FAILED)
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.PREFLIGHT)
    assert weights(story) == []
    story.person(Verb.RESUME)
    assert story.state.overruled_gates == ("model",)
    story.ready()
    assert weights(story) == [10]
    assert story.state.reason.endswith("the candidate has ready endpoints, without model.")


def test_a_gate_that_could_not_look_is_no_pass_and_is_tried_on_until_it_passes() -> None:
    story = answer(Story(policy=policy(preflight=[{"gate": "model"}])).ready(), "model", Finding.COULD_NOT_LOOK)
    assert (story.state.phase, story.state.waiting, weights(story)) == (Phase.HELD, Waiting.PREFLIGHT, [])
    assert gates(story.last.orders) == ["model"]
    assert pages(story) == [(PageAction.TRIGGER, "preflight")]
    answer(story, "model")
    assert weights(story) == [10]
    assert pages(story)[-1] == (PageAction.RESOLVE, "preflight")


def test_a_person_goes_on_without_a_gate_that_could_not_look_and_only_without_that_one() -> None:
    story = answer(Story(policy=GATED), "model", Finding.COULD_NOT_LOOK)
    story.person(Verb.RESUME)
    assert story.state.overruled_gates == ("model",)
    assert story.state.phase is Phase.STARTING
    assert "run_gate" in story.last.drops
    story.ready()
    assert (gates(story.last.orders), weights(story)) == (["golden"], [])
    refused = answer(story, "model")
    assert not refused.last.accepted
    answer(story, "golden")
    assert weights(story) == [10]


def test_a_gate_that_answers_while_a_person_has_paused_is_kept_and_the_pause_stands() -> None:
    story = Story(policy=policy(preflight=[{"gate": "model"}])).person(Verb.PAUSE)
    answer(story, "model")
    assert (story.state.phase, story.state.waiting) == (Phase.PAUSED, Waiting.PERSON)
    story.person(Verb.RESUME)
    assert gates(story.last.orders) == []
    story.ready()
    assert weights(story) == [10]


def test_what_was_ready_before_a_pause_is_looked_at_anew() -> None:
    story = Story(policy=GATED).ready().person(Verb.PAUSE).person(Verb.RESUME)
    assert not story.state.ready
    assert any(isinstance(one, CheckReady) for one in story.last.orders)


def test_an_answer_of_a_look_that_began_before_a_resume_is_not_taken_for_the_new_ones() -> None:
    story = Story(policy=GATED).person(Verb.PAUSE).person(Verb.RESUME)
    asked = [one.look for one in story.last.orders if isinstance(one, CheckReady | RunGate)]
    assert (asked, story.state.looks_n) == ([1, 1], 1)
    before = story.state
    old = answer(story, "model", Finding.FAILED, look=0).last
    assert (old.accepted, old.reason) == (False, "Nothing was changed: gate model looked before it was asked anew.")
    assert not story.tell(CandidateReady(id="old", at=story.at, look=0)).last.accepted
    assert story.state == before
    answer(story.ready(), "model")
    assert [one.look for step in story.steps for one in step.orders if isinstance(one, RunGate)] == [0, 1, 1]
    assert answer(story, "golden").state.phase is Phase.PROGRESSING


def test_an_answer_that_does_not_say_of_which_look_it_is_counts_as_before() -> None:
    story = answer(Story(policy=GATED).person(Verb.PAUSE).person(Verb.RESUME), "model", Finding.FAILED, look=None)
    assert story.state.phase is Phase.ROLLING_BACK


def test_a_resume_of_an_earlier_journal_gives_the_state_that_it_gave() -> None:
    story = Story(policy=GATED).person(Verb.PAUSE)
    story.tell(PersonActed(id="old", at=story.at, verb=Verb.RESUME, actor="ana"))
    assert "looks_n" not in story.state.to_json()
    assert "look" not in "".join(one.to_json() for one in story.last.orders if isinstance(one, CheckReady | RunGate))
    assert "asks_anew" not in story.facts[-1].to_json()


def test_a_candidate_that_is_late_is_waited_for_after_its_gates_are_passed() -> None:
    story = answer(Story(policy=policy(preflight=[{"gate": "model"}], ready_timeout="10m")), "model")
    story.pass_time(601)
    story.tell(TimePassed(id="late", at=story.at))
    assert (story.state.phase, story.state.waiting) == (Phase.HELD, Waiting.READINESS)
    story.ready()
    assert weights(story) == [10]
    assert pages(story) == [(PageAction.TRIGGER, "readiness"), (PageAction.RESOLVE, "readiness")]


def test_a_gate_that_never_answers_holds_the_release_and_says_which() -> None:
    story = Story(policy=policy(preflight=[{"gate": "model"}], ready_timeout="10m")).ready()
    story.pass_time(601)
    story.tell(TimePassed(id="late", at=story.at))
    assert story.state.reason == "Held at 0 %: no answer of model within 10 min."
    answer(story, "model")
    assert weights(story) == [10]


def test_without_a_readiness_check_and_gates_the_first_weight_comes_at_once() -> None:
    assert weights(Story(place=place(readiness=None))) == [10]
    story = Story(place=place(readiness=None), policy=GATED)
    assert (gates(story.last.orders), weights(story)) == (["model", "golden"], [])


def test_an_answer_that_comes_after_the_first_weight_changes_nothing() -> None:
    story = answer(Story(policy=GATED), "model", Finding.COULD_NOT_LOOK).person(Verb.RESUME).ready()
    answer(story, "golden")
    late = answer(story, "golden", Finding.FAILED)
    assert not late.last.accepted


def test_in_observe_mode_a_failed_gate_says_what_would_have_been_done() -> None:
    story = answer(Story(policy=GATED, mode=Mode.OBSERVE), "model", Finding.FAILED)
    assert story.state.phase is Phase.ENDED
    assert story.state.reason.startswith("Would have refused before any traffic: gate model fails")
    assert weights(story) == []


def test_in_observe_mode_a_gate_that_could_not_look_is_told_and_the_release_is_watched_all_the_same() -> None:
    story = answer(Story(policy=GATED, mode=Mode.OBSERVE).ready(), "model", Finding.COULD_NOT_LOOK)
    assert story.last.journal[-1].headline.startswith("Would have held at 0 %: gate model could not look")
    answer(story, "golden")
    assert story.state.phase is Phase.PROGRESSING
    assert pages(story) == []


def test_in_observe_mode_no_gate_holds_for_ever() -> None:
    asks = policy(preflight=[{"gate": "model"}], on_gate_failure="pause_and_confirm", ready_timeout="10m")
    story = answer(Story(policy=asks, mode=Mode.OBSERVE).ready(), "model", Finding.FAILED)
    assert story.state.phase is Phase.PROGRESSING
    late = Story(policy=asks, mode=Mode.OBSERVE).ready().pass_time(601)
    late.tell(TimePassed(id="late", at=late.at))
    assert late.state.phase is Phase.HELD
    answer(late, "model", Finding.COULD_NOT_LOOK)
    assert late.state.phase is Phase.PROGRESSING


def test_an_old_answer_is_not_overruled_in_place_of_the_look_that_a_person_asked_for() -> None:
    asks = policy(preflight=[{"gate": "model"}], on_gate_failure="pause_and_confirm", ready_timeout="10m")
    story = answer(Story(policy=asks).ready(), "model", Finding.FAILED)
    assert "or the gate passes" not in if_nothing(story.state)  # nobody looks again
    story.person(Verb.PAUSE).person(Verb.RESUME).ready().pass_time(601)
    story.tell(TimePassed(id="late", at=story.at))
    story.person(Verb.RESUME).ready()
    assert (story.state.overruled_gates, weights(story)) == ((), [])


def test_a_policy_names_each_gate_once() -> None:
    with pytest.raises(ValueError, match="names a gate twice; found: model, model"):
        policy(preflight=[{"gate": "model"}, {"gate": "model"}])
