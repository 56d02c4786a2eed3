"""What many requests mean: the rate with its limit, what no rate excuses, and what stable's own unsteadiness does."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from service.model.gates.golden import GoldenGate, Protocol, Tolerance
from service.model.gates.report import Finding, GateReport
from service.preflight.golden.answers import Unreadable, read
from service.preflight.golden.compare import Kind
from service.preflight.golden.tally import Look, Reply, Tally, look_at
from service.preflight.golden.verdict import Times, at_most, judge


def reply(body: Any) -> Reply:
    """A body, or a failure where it is a text that begins with an exclamation mark."""
    if isinstance(body, str) and body.startswith("!"):
        return Reply(failure=body[1:])
    text = body if isinstance(body, str) else json.dumps({"y": body})
    return Reply(read(text.encode(), Protocol.HTTP_JSON))


def look(stable: tuple[Any, Any], canary: tuple[Any, Any], *tolerances: Tolerance, name: str = "r-1") -> Look:
    return look_at(name, (reply(stable[0]), reply(stable[1])), (reply(canary[0]), reply(canary[1])), tolerances)


def tally_of(*looks: Look) -> Tally:
    tally = Tally()
    for one in looks:
        tally.add(one)
    return tally


def judged(*looks: Look, rule: GoldenGate | None = None, times: Times | None = None, **more: Any) -> GateReport:
    tally = tally_of(*looks)
    return judge(tally, rule or GoldenGate(), times or Times(), asked_n=more.pop("asked_n", tally.requests_n), **more)


def same(n: int) -> list[Look]:
    return [look(([0.5], [0.5]), ([0.5], [0.5]), name=f"r-{i}") for i in range(n)]


def differing(n: int, by: float = 0.25) -> list[Look]:
    return [look(([0.5], [0.5]), ([0.5 + by], [0.5 + by]), name=f"d-{i}") for i in range(n)]


NAN = '{"y": [NaN]}'


def test_equal_answers_pass_and_say_how_little_that_may_mean() -> None:
    report = judged(*same(200))
    assert report.finding is Finding.PASSED
    assert report.facts["difference rate"] == "0 of 200 (at most 1.5 %)"
    assert report.sentence.startswith("None of 200 golden requests differ beyond the tolerance (at most 1.5 %")
    assert report.to_do == ""


# Clopper and Pearson's upper limit, one-sided: 1 - 0.05^(1/n) for k = 0, and for any k what the second check defines.
@pytest.mark.parametrize(("k", "n", "limit"), [(0, 200, 0.01487), (0, 1, 0.95), (1, 20, 0.21611), (5, 100, 0.10225)])
def test_the_limit_of_the_rate_is_the_exact_one(k: int, n: int, limit: float) -> None:
    assert at_most(k, n) == pytest.approx(limit, abs=1e-5)
    # By its definition: so few or fewer would be seen in 5 of 100 files of requests.
    p = at_most(k, n)
    assert sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)) == pytest.approx(0.05)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (7, 7)])
def test_without_a_request_that_agrees_nothing_is_excluded(k: int, n: int) -> None:
    assert at_most(k, n) == 1.0


def test_one_difference_fails_where_none_is_allowed_and_names_request_output_and_size() -> None:
    report = judged(*same(199), *differing(1))
    assert report.finding is Finding.FAILED
    assert "1 of 200 golden requests differ beyond the tolerance (0.5 %, limit 0 %)" in report.sentence
    largest = "0.25 in 'y' of d-0 (0.5 -> 0.75 at [0], 4,200 times the tolerance)"
    assert f"largest difference of numbers: {largest}" in report.sentence
    assert report.facts["largest difference"] == largest
    assert report.lines == ("value in 'y': 1 request, first d-0: 1 of 1 values, most 0.5 -> 0.75 at [0]",)
    assert report.to_do


def test_the_rate_is_held_against_the_policys_limit_on_both_sides() -> None:
    rule = GoldenGate(max_difference_rate=0.05)
    assert judged(*same(95), *differing(5), rule=rule).finding is Finding.PASSED
    assert judged(*same(94), *differing(6), rule=rule).finding is Finding.FAILED


def test_a_rate_is_not_judged_by_fewer_requests_than_the_policy_wants() -> None:
    rule = GoldenGate(max_difference_rate=0.05, min_requests=20)
    few = judged(*same(9), *differing(1), rule=rule)
    assert (few.finding, "Could compare 10 of 10" in few.sentence) == (Finding.COULD_NOT_LOOK, True)
    assert judged(*same(9), *differing(1)).finding is Finding.FAILED
    assert judged(*same(19)).finding is Finding.COULD_NOT_LOOK
    assert judged(*same(20)).finding is Finding.PASSED


@pytest.mark.parametrize(
    ("stable", "canary", "kind"),
    [
        ([0.5], NAN, "NaN or infinity"),
        ([0.5], "!answers 500: Op type not registered 'X'", "error"),
        ([0.5], [0.5, 0.5], "shape"),
        ([0.5], ["0.5"], "type"),
        ([0.5], '{"z": [0.5]}', "missing output"),
    ],
)
def test_what_stable_never_shows_fails_whatever_rate_is_allowed(stable: Any, canary: Any, kind: str) -> None:
    rule = GoldenGate(max_difference_rate=0.9)
    odd = look((stable, stable), (canary, canary), name="odd")
    report = judged(*same(99), odd, rule=rule)
    assert report.finding is Finding.FAILED
    assert f"{kind} in 1 of 100" in report.sentence
    assert "odd" in report.sentence
    assert report.to_do


def test_a_candidate_that_fails_one_time_of_two_fails_the_gate() -> None:
    report = judged(*same(99), look(([0.5], [0.5]), ([0.5], "!answers 503: away"), name="odd"))
    assert (report.finding, "error in 1 of 100; odd: answers 503" in report.sentence) == (Finding.FAILED, True)
    assert any("in two ways, and stable does not" in line for line in report.lines)


def test_the_gravest_is_told_first() -> None:
    report = judged(
        *same(10), *differing(9), look(([0.5], [0.5]), (NAN, NAN)), look(([0.5], [0.5]), ("!answers 500: x", NAN))
    )
    assert [line.split(":")[0] for line in report.lines[:3]] == ["error", "NaN or infinity in 'y'", "value in 'y'"]


def test_requests_that_stable_answers_in_two_ways_are_counted_apart() -> None:
    unsteady = [look(([0.5], [0.9]), ([0.1], [0.2]), name=f"u-{i}") for i in range(3)]
    report = judged(*same(97), *unsteady)
    assert report.finding is Finding.PASSED
    assert report.facts["difference rate"] == "0 of 97 (at most 3 %)"
    assert report.facts["not compared"] == "3 unsteady on stable"
    assert "stable answers 3 requests in two ways, first u-0: 'y': 1 of 1 values" in report.lines[0]


def test_a_model_that_is_unsteady_everywhere_could_not_be_looked_at() -> None:
    unsteady = [look(([0.5], [0.9]), ([0.5], [0.9])) for _ in range(30)]
    report = judged(*same(70), *unsteady)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "Stable itself answers 30 of 100" in report.sentence


def test_unsteadiness_excuses_values_and_nothing_else() -> None:
    stable = ([0.5], [0.9])
    assert look(stable, ([0.1], [0.1])).differences == ()
    assert [str(one.kind) for one in look(stable, (NAN, [0.1])).differences] == ["NaN or infinity"]
    assert [str(one.kind) for one in look(stable, ("!answers 500: x", [0.1])).differences] == ["error"]
    # What one of stable's own answers shows too is no news.
    assert look(([0.5], NAN), (NAN, NAN)).differences == ()
    assert look(([0.5], "!answers 503: away"), ("!answers 503: away", [0.5])).differences == ()
    assert look(([0.5], [0.5, 0.5]), ([0.5, 0.5], [0.5])).differences == ()


def test_a_candidate_that_differs_in_either_of_its_answers_differs() -> None:
    for canary in (([0.5], [0.9]), ([0.9], [0.5])):
        one = look(([0.5], [0.5]), canary)
        assert (len(one.differences), one.canary_unsteady) == (1, True)


def test_what_stable_fails_on_says_nothing_of_the_candidate() -> None:
    broken = [look(("!answers 400: bad input",) * 2, ("!answers 400: bad input",) * 2, name="b")] * 3
    better = [look(("!answers 400: bad input",) * 2, ([0.5], [0.5]), name="c")] * 2
    report = judged(*same(30), *broken, *better)
    assert report.finding is Finding.PASSED
    assert report.facts["not compared"] == "5 failed on stable"
    assert "stable fails on 5 requests, the candidate on 3 of these; first b: answers 400: bad input" in report.lines


def test_a_file_that_stable_does_not_answer_could_not_be_looked_at_and_says_why() -> None:
    report = judged(*[look(("!answers 404: no model 'x'",) * 2, ([0.5], [0.5]))] * 50)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "Could compare 0 of 50 golden requests, 20 are needed; stable fails on 50" in report.sentence
    assert "answers 404: no model 'x'" in report.sentence


def test_numbers_that_one_side_always_writes_as_whole_ones_are_another_type() -> None:
    def pair(a: str, b: str, *tolerances: Tolerance) -> Look:
        return look((f'{{"y": {a}}}',) * 2, (f'{{"y": {b}}}',) * 2, *tolerances)

    always = judged(*[pair("1", "1.0")] * 30)
    assert (always.finding, "integer -> number" in always.sentence) == (Finding.FAILED, True)
    ignored = Tolerance(output="y", ignored=True)
    assert judged(*[pair("1", "1.0", ignored)] * 30).finding is Finding.PASSED
    # A server that writes 1.0 as 1 writes 1.5 as 1.5.
    assert judged(*[pair("1", "1.0")] * 30, pair("1.5", "1.5")).finding is Finding.PASSED


def test_new_outputs_are_told_and_do_not_fail() -> None:
    report = judged(*[look(([0.5], [0.5]), ('{"y": [0.5], "z": 1}',) * 2)] * 30)
    assert (report.finding, report.lines) == (Finding.PASSED, ("new output 'z' in 30 requests",))


def test_nan_on_both_sides_is_told_and_does_not_fail() -> None:
    report = judged(*same(29), look((NAN, NAN), (NAN, NAN)))
    assert (report.finding, report.lines) == (Finding.PASSED, ("NaN or infinity in both answers alike: 1 request",))


def test_the_order_of_classes_is_told() -> None:
    tolerance = Tolerance(output="*", absolute=0.5, top_k=1, ranking_only=True)
    kept = [look(([[1.0, 3.0]], [[1.0, 3.0]]), ([[1.2, 2.0]], [[1.2, 2.0]]), tolerance)] * 29
    lost = look(([[1.0, 3.0]], [[1.0, 3.0]]), ([[3.0, 1.0]], [[3.0, 1.0]]), tolerance)
    report = judged(*kept, lost)
    assert report.facts["order of classes kept"] == "29 of 30 rows"
    assert report.finding is Finding.FAILED
    assert "ranking in 'y': 1 request, first r-1: 1 of 1 rows, rank 1: class 1 -> 0" in report.lines


def test_times_are_told_and_judged_only_where_the_policy_has_a_limit() -> None:
    times = Times(cold_start_s=8.2, first_stable_s=1.4, first_canary_s=1.9, stable_s=[0.01, 0.012], canary_s=[0.02])
    report = judged(*same(30), times=times)
    assert report.finding is Finding.PASSED
    assert report.facts["first request"] == "1.9 s, stable 1.4 s"
    assert report.facts["cold start"] == "8.2 s"
    assert report.facts["later requests, median"] == "20 ms, stable 11 ms"
    slow = judged(*same(30), times=times, rule=GoldenGate(max_first_request_s=1.8))
    assert (slow.finding, "first request took 1.9 s, more than the 1.8 s" in slow.sentence) == (Finding.FAILED, True)
    assert judged(*same(30), times=times, rule=GoldenGate(max_cold_start_s=8.3)).finding is Finding.PASSED
    assert judged(*same(30), times=times, rule=GoldenGate(max_cold_start_s=8.1)).finding is Finding.FAILED
    assert judged(*same(30), times=Times(cold_start_s=0.0)).facts["cold start"] == "was ready when first asked"


def test_a_replay_that_was_cut_short_passes_never_and_fails_on_what_it_saw() -> None:
    clean = judged(*same(50), asked_n=80, cut_short="canary left 5 calls in a row unanswered: x")
    assert clean.finding is Finding.COULD_NOT_LOOK
    assert "Replayed 50 of 80" in clean.sentence
    assert clean.facts["not compared"] == "30 not replayed"
    assert judged(*same(50), *differing(1), asked_n=80, cut_short="x").finding is Finding.FAILED


def test_a_hostile_answer_fills_neither_the_tally_nor_the_report() -> None:
    tally = Tally()
    for i in range(50):
        names = json.dumps({f"{i}-{j}-\x1b[31m" + "n" * 150: 1 for j in range(250)})
        tally.add(look(([0.5], [0.5]), (names, names), name=f"r-{i}"))
        tally.add(look((names, names), ([0.5], [0.5]), name=f"s-{i}"))
    assert len(tally.firsts) <= 1000
    assert len(tally.new_outputs) <= 1000
    report = judge(tally, GoldenGate(), Times(), asked_n=100)
    assert len(report.to_json()) < 20_000
    assert "\\u001b" not in report.to_json()


def test_no_pair_of_answers_raises_whatever_they_hold() -> None:
    chosen = random.Random(20261127)
    leaves = [0, 1, -3, 0.5, 1e308, -1e308, 2**70, None, True, "a", "NaN", "inf", {"b64": "aGk="}, [], {}, [[1.5], [2]]]

    def drawn(depth: int = 0) -> Any:
        match chosen.randrange(4 if depth < 3 else 1):
            case 1:
                return [drawn(depth + 1) for _ in range(chosen.randrange(4))]
            case 2:
                return [chosen.choice([0.1, 0.9, 0.5, 1, None, "NaN"]) for _ in range(2)]
            case 3:
                return {chosen.choice("abc"): drawn(depth + 1) for _ in range(chosen.randrange(3))}
            case _:
                return chosen.choice(leaves)

    def some() -> Reply:
        if chosen.random() < 0.1:
            return Reply(failure="answers 503")
        try:
            return Reply(read(json.dumps({"y": drawn()}).encode(), Protocol.HTTP_JSON))
        except Unreadable as error:
            return Reply(failure=str(error))

    tolerances = (Tolerance(output="y.a*", top_k=2), Tolerance(output="*", absolute=0, relative=0, top_k=1))
    tally = Tally()
    for i in range(3000):
        stable, canary = some(), some()
        pair = (stable, stable) if i % 2 else (stable, some())
        tally.add(look_at(f"r-{i}", pair, (canary, canary if i % 3 else some()), tolerances))
    assert tally.compared_n > 500
    assert set(Kind) == set(tally.by_kind)
    assert judge(tally, GoldenGate(), Times(), asked_n=3000).finding is Finding.FAILED
