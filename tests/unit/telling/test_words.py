"""The words: model sentences of the design brief, and something sensible for any state."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model.instruction import Page
from service.model.observation import Availability
from service.model.policy import MetricKind, MetricRule
from service.model.rollout import Phase
from service.model.stimulus import GuardReading, MetricEvidence, ResourceEvidence
from service.telling import words
from service.telling.view import Finding, decision_document, rollout_view, row_view
from tests.stories import START, Story, lean, policy

BANNED = ("!", "p-value", "significant", "healthy", "score", "anomaly", "nan", "inf ")


@pytest.mark.parametrize(
    ("evidence", "text"),
    [(14.9, "14"), (316.0, "310"), (104.0, "100"), (0.87, "0.87"), (3.99, "3.9"), (1e9, "over 1,000,000")],
)
def test_evidence_has_two_digits_and_is_rounded_down(evidence: float, text: str) -> None:
    assert words.evidence_number(math.log(evidence)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (45, "45 s"),
        (60, "1 min"),
        (2220, "37 min"),
        (5400, "1 h 30 min"),
        (86400, "24 h"),
        (259200, "72 h"),
        (604800, "7 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(4051, "4,051"), (201_400, "201,400"), (1_900_000, "1.9 million")])
def test_counts(n: int, text: str) -> None:
    assert words.count(n) == text


@pytest.mark.parametrize(
    ("x", "n", "text"),
    [(3, 4051, "3 of 4,051"), (70, 10_000, "7.0 in 1,000"), (500, 10_000, "5.0 %"), (0, 0, "no requests")],
)
def test_rates_are_counts_while_they_are_few(x: int, n: int, text: str) -> None:
    assert words.share(x, n) == text


def test_one_in_is_never_more_than_the_promise_allows() -> None:
    assert words.one_in(math.log(31.9)) == 31
    assert words.one_in(-5) == 1


def test_effect_interval_limit_and_counts_stand_together() -> None:
    evidence = MetricEvidence(
        metric="errors", availability=Availability.ENOUGH, effect=1.9, effect_low=1.2, effect_high=2.8, limit=1.25,
        n_canary=4051, n_stable=36520, events_canary=98, events_stable=464, log_e=3.0,
    )  # fmt: skip
    clause = words.metric_clause(evidence, MetricRule(name="errors", kind=MetricKind.ERRORS))
    assert clause == "errors 1.9 times stable's (1.2 to 2.8), limit 1.25, 98 of 4,051 against 464 of 36,520"


def test_an_interval_without_an_upper_end_says_at_least() -> None:
    rule = MetricRule(name="latency", kind=MetricKind.LATENCY)
    one = MetricEvidence(metric="latency", availability=Availability.ENOUGH, effect=8.0, effect_low=4.2, log_e=9.0)
    assert "8.0 times stable's (at least 4.2)" in words.metric_clause(one, rule)


def test_a_tail_fault_is_not_told_as_a_shift_of_the_middle() -> None:
    evidence = MetricEvidence(
        metric="latency",
        availability=Availability.ENOUGH,
        effect=1.0,
        effect_low=0.96,
        effect_high=1.1,
        limit=1.1,
        log_e=9.0,
    )
    clause = words.metric_clause(evidence, MetricRule(name="latency", kind=MetricKind.LATENCY))
    assert clause.startswith("the slowest requests are slower than stable's")
    known = evidence.model_copy(update={"p99_low": 1.4, "p99_high": 2.0})
    clause = words.metric_clause(known, MetricRule(name="latency", kind=MetricKind.LATENCY))
    assert clause.startswith("p99 of the canary is 1.4 to 2.0 times stable's")


def pods_use(by: str, measures: str = "memory", **given: object) -> str:
    rule = MetricRule(name="memory", kind=MetricKind.RESOURCE, required=False)
    found = {"slope_per_hour": 0.0192, "to_limit_s": 93_600.0} if by == "slope" else {}
    resource = ResourceEvidence(measures=measures, by=by, pods_canary=2, pods_stable=18, **found)  # type: ignore[arg-type]
    evidence = {"metric": "memory", "availability": Availability.ENOUGH, "limit": 1.1, "effect": 1.42} | given
    return words.metric_clause(MetricEvidence(**evidence, resource=resource), rule)  # type: ignore[arg-type]


def test_what_pods_use_is_told_by_what_was_found() -> None:
    pods = "2 canary pods against 18 stable pods"
    assert pods_use("mean") == f"memory 1.4 times stable's, limit 1.10; {pods}"
    leak = f"memory grows 1.9 % an hour over stable's, at the limit in 26 h; 1.4 times stable's; {pods}"
    assert pods_use("slope") == leak
    assert pods_use("jump") == f"memory jumped to 1.4 times what it was, and stable's did not, limit 1.10; {pods}"
    share = pods_use("mean", "share", effect=0.25, limit=0.05)
    assert share == f"memory 25 points above stable's, limit 5.00; {pods}"
    assert pods_use("mean", effect=None) == f"memory not yet compared at equal age and load; {pods}"
    restarts = pods_use("events", "events", events_canary=5, events_stable=1)
    assert restarts == "memory 5 on 2 canary pods, 1 on 18 stable pods"


def test_restarts_are_not_counted_as_failed_requests() -> None:
    resource = ResourceEvidence(measures="events", by="events", pods_canary=2, pods_stable=18)
    restarts = MetricEvidence(
        metric="restarts", availability=Availability.ENOUGH, effect=9.0, events_canary=5, resource=resource
    )
    state = Story().progressing().state.model_copy(update={"evidence": (restarts,)})
    assert "errors" not in words.harm_so_far(state)


def test_a_blind_metric_says_why() -> None:
    evidence = MetricEvidence(metric="errors", availability=Availability.NO_SERIES, detail='x_total with version="v2"')
    clause = words.metric_clause(evidence, MetricRule(name="errors", kind=MetricKind.ERRORS))
    assert clause == 'errors cannot be judged: the metric store has no such series (x_total with version="v2")'


def test_the_guards_sentence_names_limit_time_and_what_it_waits_for() -> None:
    story = Story().progressing()
    for _ in range(5):
        story.window(breach=True, safe=False)
    assert story.state.reason == (
        "Pause at 10 %: errors over 1.0 % for 5 min, now 3.0 %; waits for a person to confirm the rollback."
    )


def test_the_sentence_of_what_only_the_canary_has_says_what_it_is() -> None:
    metrics = [*policy().model_dump(by_alias=True)["metrics"], {"name": "logs", "kind": "value", "required": False}]
    alone = {"name": "new-lines", "metric": "logs", "only_on_canary": True, "windows": 1, "on_breach": "rollback"}
    story = Story(policy=policy(metrics=metrics, guards=[alone])).progressing()
    found = "missing-opkernel FancyOp: 1 of the canary, none of stable for 1 h"
    evidence = [MetricEvidence(metric=name, availability=Availability.ENOUGH) for name in ("latency", "errors")]
    lines = MetricEvidence(metric="logs", availability=Availability.ENOUGH, detail=found)
    guards = (GuardReading(guard="new-lines", breach=True, value=1.0),)
    story.window(evidence=(*evidence, lines), guards=guards)
    assert story.state.phase is Phase.ROLLING_BACK
    assert story.state.reason == f"Roll back at 10 %: logs only on the canary for 1 min ({found})."
    (page,) = [order for order in story.last.orders if isinstance(order, Page)]
    assert "FancyOp" in page.summary
    logs = rollout_view(story.state, (), (), START).metrics[-1]
    assert (logs.metric, logs.finding) == ("logs", Finding.HARMFUL)
    assert decision_document(story.state, app="a", now=START).signals[-1].verdict == "fail"


@pytest.mark.parametrize(
    ("canary", "stable", "text"),
    [(8.0, 0.0, "logs 8, stable's 0"), (0.25, None, "logs 0.25"), (12_345.0, 9.5, "logs 12,000, stable's 9.5")],
)
def test_a_value_that_is_a_whole_number_is_told_as_one(canary: float, stable: float | None, text: str) -> None:
    evidence = MetricEvidence(metric="logs", availability=Availability.ENOUGH, value_canary=canary, value_stable=stable)
    assert words.metric_clause(evidence, MetricRule(name="logs", kind=MetricKind.VALUE, required=False)) == text


def test_a_pages_title_stands_alone_in_its_first_eighty_characters() -> None:
    story = Story().progressing().window(**lean(14))
    title = words.page_summary(story.state, story.state.reason)
    assert title.startswith("tf-model-service: paused at 10 %, ")
    assert "Pause at" not in title


def test_outside_names_are_cut_in_the_middle() -> None:
    assert words.quoted("a" * 30 + "b" * 30) == "a" * 19 + "..." + "b" * 18
    assert len(words.quoted("x" * 1000)) == 40


@given(
    st.sampled_from(list(Availability)),
    st.none() | st.floats(0, 1e9, allow_nan=False),
    st.floats(-700, 700),
    st.integers(0, 10**12),
    st.sampled_from([14.0, 120.0, 0.2]),
)
def test_any_evidence_gives_sentences_without_banned_words(
    availability: Availability, effect: float | None, log_e: float, n: int, evidence: float
) -> None:
    story = Story(policy=policy()).progressing()
    metrics = tuple(
        MetricEvidence(
            metric=name, availability=availability, effect=effect, effect_low=effect, effect_high=effect, limit=1.1,
            log_e=log_e, n_canary=n, n_stable=n, events_canary=n, events_stable=n,
        )
        for name in ("latency", "errors")
    )  # fmt: skip
    story.window(evidence=metrics, **lean(evidence))
    state = story.state
    sentences = [
        words.continue_sentence(state), words.advance_sentence(state, 30), words.pause_sentence(state),
        words.rollback_sentence(state), words.promote_sentence(state), words.blind_sentence(state),
        words.undecided_sentence(state), words.if_nothing(state), words.harm_so_far(state),
        *words.page_details(state, START).values(),
    ]  # fmt: skip
    for sentence in sentences:
        assert not any(word in sentence for word in BANNED), sentence
    view = rollout_view(state, (), (), START)
    assert {m.finding for m in view.metrics} <= set(Finding)
    assert row_view(state).id == state.id
    assert decision_document(state, app="a", now=START).signals
