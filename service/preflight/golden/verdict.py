"""What the counted answers mean for the gate, and the report that says so. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

from service.model.gates.golden import GoldenGate
from service.model.gates.report import Finding, GateReport
from service.preflight.golden.compare import DEFAULT, Difference, Distance, Kind, shown
from service.preflight.golden.tally import Tally
from service.preflight.report import gate_report
from service.telling.words import ratio

CONFIDENCE = 0.95
SHOWN_N = 20
"""Differences that are told one by one; the others are counted."""


@dataclass(frozen=True, slots=True)
class Times:
    """What was measured beside the answers; seconds, None: not measured."""

    cold_start_s: float | None = None
    """From the look's beginning until the canary said that it is ready; 0: it was when first asked."""
    first_stable_s: float | None = None
    first_canary_s: float | None = None
    stable_s: Sequence[float] = ()
    """Of every later answer."""
    canary_s: Sequence[float] = ()


def judge(tally: Tally, rule: GoldenGate, times: Times, *, asked_n: int, cut_short: str = "") -> GateReport:
    """The gate's answer.

    asked_n : requests in the file
    cut_short : why not all of them were replayed; empty when they were
    """
    rewritten = tally.rewritten()
    finding, sentence, to_do = _decided(tally, rule, times, rewritten, asked_n, cut_short)
    lines, facts = _lines(tally, rewritten), _facts(tally, rule, times, asked_n)
    return gate_report("golden", finding, sentence, to_do, lines=lines, facts=facts)


def at_most(differing_n: int, compared_n: int) -> float:
    """Upper limit of the rate at 95 % confidence, one-sided and exact (Clopper and Pearson); 1 with no requests."""
    from scipy.special import betaincinv  # half a second to import, which only a release with golden requests needs

    if differing_n >= compared_n:
        return 1.0
    return float(betaincinv(differing_n + 1, compared_n - differing_n, CONFIDENCE))


def _decided(
    tally: Tally, rule: GoldenGate, times: Times, rewritten: Sequence[Difference], asked_n: int, cut_short: str
) -> tuple[Finding, str, str]:
    n = tally.requests_n
    if grave := [kind for kind in Kind if tally.by_kind[kind] and not kind.excused]:
        what = ", ".join(f"{kind} in {tally.by_kind[kind]}" for kind in grave)
        return (
            Finding.FAILED,
            f"The candidate answers golden requests as stable never does: {what} of {n}; {_example(tally, grave[0])}.",
            _TO_DO[grave[0]],
        )
    if rewritten:
        one = rewritten[0]
        return (
            Finding.FAILED,
            f"The candidate writes the numbers of {shown(one.output)} otherwise: {one.said} in every answer.",
            _TO_DO[Kind.DTYPE],
        )
    rate = tally.differing_n / max(1, tally.compared_n)
    enough = tally.compared_n >= rule.min_requests
    if rate > rule.max_difference_rate and (enough or rule.max_difference_rate == 0):
        return (
            Finding.FAILED,
            f"Answers to {tally.differing_n} of {tally.compared_n} golden requests differ beyond the tolerance "
            f"({_percent(rate)}, limit {_percent(rule.max_difference_rate)}); {_largest(tally)}.",
            "see whether the change is meant; if it is, record it as such by a wider tolerance of that output or a "
            "higher max_difference_rate, else take the candidate back",
        )
    for what, took_s, limit_s in (
        ("first request", times.first_canary_s, rule.max_first_request_s),
        ("cold start", times.cold_start_s, rule.max_cold_start_s),
    ):
        if took_s is not None and limit_s is not None and took_s > limit_s:
            return (
                Finding.FAILED,
                f"The candidate's {what} took {_seconds(took_s)}, more than the {_seconds(limit_s)} allowed.",
                "warm the model up before it is called ready (assets.extra/tf_serving_warmup_requests), or raise the "
                "limit",
            )
    if cut_short:
        return (
            Finding.COULD_NOT_LOOK,
            f"Replayed {n} of {asked_n} golden requests, with no more differences than allowed; then {cut_short}.",
            "see whether both versions answer, keep fewer requests, or give it more time (within_s)",
        )
    if tally.unsteady_n > rule.max_unsteady_rate * n:
        return (
            Finding.COULD_NOT_LOOK,
            f"Stable itself answers {tally.unsteady_n} of {n} golden requests in two ways (limit "
            f"{_percent(rule.max_unsteady_rate)}); {tally.first_unsteady}.",
            "fix the model's seed in the requests, or ignore or widen the tolerance of that output",
        )
    if not enough:
        why = (
            f"; stable fails on {tally.stable_failed_n}: {tally.first_stable_failure}" if tally.stable_failed_n else ""
        )
        return (
            Finding.COULD_NOT_LOOK,
            f"Could compare {tally.compared_n} of {n} golden requests, {rule.min_requests} are needed{why}.",
            "record requests that stable answers, or record more",
        )
    differ = f"{tally.differing_n} of {tally.compared_n}" if tally.differing_n else "None"
    of = "" if tally.differing_n else f" of {tally.compared_n}"
    return (
        Finding.PASSED,
        f"{differ}{of} golden requests differ beyond the tolerance "
        f"(at most {_percent(at_most(tally.differing_n, tally.compared_n))} of such requests do); {_largest(tally)}.",
        "",
    )


_TO_DO = {
    Kind.ERROR: "send that request to the candidate and read its log; an operator that it lacks or another input "
    "signature answers so",
    Kind.NON_FINITE: "look for overflow in reduced precision (float16, XLA, another kernel) and for inputs at the edge",
    Kind.MISSING: "export the model with the outputs that stable has",
    Kind.DTYPE: "see what clients do with the new type; export the model with the old one, or release with the clients",
    Kind.SHAPE: "see what clients do with the new shape; export the model with the old one, or release with the "
    "clients",
}


def _lines(tally: Tally, rewritten: Sequence[Difference]) -> list[str]:
    order = {kind: i for i, kind in enumerate(Kind)}
    keys = sorted(tally.by_output, key=lambda key: (order[key[0]], -tally.by_output[key], key[1]))
    lines = [
        f"{kind}{f' in {shown(output)}' if output else ''}: {_requests(tally.by_output[kind, output])}, "
        f"first {tally.firsts[kind, output]}"
        for kind, output in keys[:SHOWN_N]
    ]
    if len(keys) > SHOWN_N:
        lines.append(f"{len(keys) - SHOWN_N} further kinds of differences")
    lines += [f"type in {shown(one.output)}: {one.said} in every answer" for one in rewritten[:5]]
    lines += [f"new output {shown(name)} in {_requests(n)}" for name, n in tally.new_outputs.most_common(5)]
    if tally.unsteady_n:
        lines.append(f"stable answers {_requests(tally.unsteady_n)} in two ways, first {tally.first_unsteady}")
    if tally.canary_unsteady_n:
        lines.append(f"the candidate answers {_requests(tally.canary_unsteady_n)} in two ways, and stable does not")
    if tally.stable_failed_n:
        lines.append(
            f"stable fails on {_requests(tally.stable_failed_n)}, the candidate on {tally.both_failed_n} of these; "
            f"first {tally.first_stable_failure}"
        )
    if tally.both_non_finite_n:
        lines.append(f"NaN or infinity in both answers alike: {_requests(tally.both_non_finite_n)}")
    return lines


def _facts(tally: Tally, rule: GoldenGate, times: Times, asked_n: int) -> dict[str, str]:
    bound = _percent(at_most(tally.differing_n, tally.compared_n))
    facts = {"difference rate": f"{tally.differing_n} of {tally.compared_n} (at most {bound})"}
    if tally.largest:
        facts["largest difference"] = _where(*tally.largest)
    if not rule.tolerances:
        facts["tolerance"] = f"{DEFAULT.absolute:g} + {DEFAULT.relative:g} of stable's value"
    if tally.ranked_n:
        kept = tally.ranked_n - tally.reordered_n
        facts["order of classes kept"] = f"{kept} of {tally.ranked_n} rows"
    if tally.compared_n != asked_n:
        apart = {"unsteady on stable": tally.unsteady_n, "failed on stable": tally.stable_failed_n}
        apart["not replayed"] = asked_n - tally.requests_n
        facts["not compared"] = ", ".join(f"{n} {what}" for what, n in apart.items() if n)
    if times.cold_start_s is not None:
        facts["cold start"] = f"{_seconds(times.cold_start_s)}" if times.cold_start_s else "was ready when first asked"
    if times.first_canary_s is not None and times.first_stable_s is not None:
        facts["first request"] = f"{_seconds(times.first_canary_s)}, stable {_seconds(times.first_stable_s)}"
    if times.canary_s and times.stable_s:
        facts["later requests, median"] = (
            f"{_seconds(median(times.canary_s))}, stable {_seconds(median(times.stable_s))}"
        )
    return facts


def _example(tally: Tally, kind: Kind) -> str:
    (_, output), said = next((key, said) for key, said in tally.firsts.items() if key[0] is kind)
    return f"{shown(output)} of {said}" if output else said


def _largest(tally: Tally) -> str:
    if tally.largest is None:
        return "no numbers were compared"
    return f"largest difference of numbers: {_where(*tally.largest)}"


def _where(distance: Distance, request_id: str) -> str:
    if not distance.absolute:
        return "none"
    of = "" if distance.of_tolerance == inf else f", {ratio(distance.of_tolerance)} the tolerance"
    return f"{distance.absolute:.2g} in {shown(distance.output)} of {request_id} ({distance.said}{of})"


def _requests(n: int) -> str:
    return f"{n:,} request{'s' if n != 1 else ''}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.2g} %" if rate < 0.995 else "100 %"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
