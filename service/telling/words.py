"""The words: the one place where sentences about a rollout are made, for the journal, pages, the bus and every view.

Present tense, subject first; effect, interval, limit and counts together; evidence rounded down; outside names are
quoted data, cut in the middle when long. The rules and the model sentences are in the design brief, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta

from service.model.gates.report import Finding as GateFinding
from service.model.gates.report import GateReport
from service.model.names import Mode
from service.model.observation import Availability
from service.model.policy import BudgetEnd, Guard, MetricKind, MetricRule
from service.model.rollout import Phase, RolloutState, Waiting
from service.model.stimulus import MetricEvidence, ResourceEvidence

REFUSED = "refused before any traffic"
"""How a release ends that a gate has failed."""

LONGEST_NAME = 40
LONGEST_SUMMARY = 1024
SMALLEST = 1e-9
"""Numbers nearer to 0 than this are 0 to a reader."""

LEANS = math.log(3)
"""Evidence above which a metric is worth a word of its own."""


def quoted(name: str) -> str:
    """An outside name, cut in the middle at 40 characters."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 3) // 2
    return f"{name[: LONGEST_NAME - 3 - half]}...{name[-half:]}"


def significant(x: float, digits: int = 2, *, down: bool = False) -> str:
    """``x`` with so many significant digits and no exponent; ``down`` never rounds up."""
    if abs(x) < SMALLEST or not math.isfinite(x):
        return "0" if abs(x) < SMALLEST else "very large" if x > 0 else "very small"
    if not down:
        x = float(f"{x:.{digits - 1}e}")  # rounded first, so that 0.9999 is 1.0 and not 1.00
    places = digits - 1 - math.floor(math.log10(abs(x)))
    scale = 10.0**places
    # A hair is added so that 0.29 * 100 does not become 28.
    shown = math.floor(x * scale + 1e-9) / scale if down else round(x, places)
    return f"{shown:,.{max(places, 0)}f}"


def evidence_number(log_e: float) -> str:
    """Evidence with two significant digits, rounded down: ``14``, ``310``, ``0.8``."""
    if log_e > math.log(1e6):
        return "over 1,000,000"
    if log_e < math.log(0.01):
        return "below 0.01"
    return significant(math.exp(log_e), down=True)


def one_in(log_e: float) -> int:
    """Of releases that behave like stable, at most 1 in this many ever gets evidence so high; at least 1."""
    return max(1, math.floor(math.exp(min(log_e, math.log(1e9))) + 1e-9))


def count(n: int) -> str:
    """``4,051``, ``201,400``, ``1.9 million``."""
    return f"{n / 1e6:.1f} million" if n >= 1_000_000 else f"{n:,}"


def duration(seconds: float) -> str:
    """``45 s``, ``37 min``, ``1 h 30 min``, ``24 h``, ``3 d``."""
    whole = round(seconds)
    if whole < 120 and whole % 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours > 72 and hours % 24 == 0 and not rest:
        return f"{hours // 24} d"
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def share(x: int, n: int) -> str:
    """A rate as people read it: counts below 50 events, ``in 1,000`` below 1 %, percent above."""
    if n == 0:
        return "no requests"
    if x < 50:
        return f"{count(x)} of {count(n)}"
    rate = x / n
    return f"{significant(rate * 1000)} in 1,000" if rate < 0.01 else f"{significant(rate * 100)} %"


def ratio(x: float) -> str:
    """``1.9 times``."""
    return f"{significant(x)} times"


def label(rule: MetricRule) -> str:
    """What people call the metric."""
    by_kind = {"latency": "slow requests", "value": rule.name, "resource": rule.name}
    return rule.label or by_kind.get(rule.kind.value, rule.kind.value)


def metric_clause(evidence: MetricEvidence, rule: MetricRule) -> str:
    """One metric with effect, interval, limit and counts, or why it cannot be said."""
    name = label(rule)
    if not evidence.availability.usable:
        return f"{name} cannot be judged: {unseen(evidence)}"
    if evidence.resource is not None:
        return f"{name} {resource_clause(evidence, evidence.resource)}"
    if evidence.effect is None:
        if evidence.value_canary is not None:
            stable = "" if evidence.value_stable is None else f", stable's {_value(evidence.value_stable)}"
            return f"{name} {_value(evidence.value_canary)}{stable}"
        return f"{name}: no traffic compared yet"
    interval = ""
    if evidence.effect_low is not None and evidence.effect_high is not None:
        interval = f" ({significant(evidence.effect_low)} to {significant(evidence.effect_high)})"
    elif evidence.effect_low:
        interval = f" (at least {significant(evidence.effect_low)})"
    limit = "" if evidence.limit is None else f", limit {significant(evidence.limit, 3)}"
    if rule.kind is MetricKind.PREDICTIONS:
        return f"{name} differ by {significant(evidence.effect)} nats{interval}{limit}"
    if rule.kind is MetricKind.LATENCY and evidence.log_e > LEANS and evidence.effect <= (evidence.limit or 1.0):
        slowest = "the slowest requests are slower than stable's"
        if evidence.p99_low is not None and evidence.p99_low > 1.0:
            upper = "more" if evidence.p99_high is None else significant(evidence.p99_high)
            slowest = f"p99 of the canary is {significant(evidence.p99_low)} to {upper} times stable's"
        return f"{slowest}; {name} {ratio(evidence.effect)} in the middle{interval}"
    counts = ""
    if evidence.events_canary is not None and evidence.events_stable is not None:
        canary = f"{count(evidence.events_canary)} of {count(evidence.n_canary)}"
        counts = f", {canary} against {count(evidence.events_stable)} of {count(evidence.n_stable)}"
    return f"{name} {ratio(evidence.effect)} stable's{interval}{limit}{counts}"


def _value(x: float) -> str:
    """A value of people's own: whole numbers are most often counts, of log lines for example."""
    return f"{round(x):,}" if abs(x) < 1000 and x == round(x) else significant(x)


def resource_clause(evidence: MetricEvidence, found: ResourceEvidence) -> str:
    """What canary pods use, or what happened to them, against stable pods; a leak with its time to the limit."""
    pods = f"{found.pods_canary} canary pods against {found.pods_stable} stable pods"
    if found.by == "events":
        canary, stable = evidence.events_canary or 0, evidence.events_stable or 0
        return f"{count(canary)} on {found.pods_canary} canary pods, {count(stable)} on {found.pods_stable} stable pods"
    if evidence.effect is None:
        return f"not yet compared at equal age and load; {pods}"
    limit = "" if evidence.limit is None else f", limit {significant(evidence.limit, 3)}"
    if found.measures == "share":
        said = (
            f"{significant(100 * abs(evidence.effect))} points {'above' if evidence.effect > 0 else 'below'} stable's"
        )
        limit = "" if evidence.limit is None else f", limit {significant(100 * evidence.limit, 3)}"
    else:
        said = f"{ratio(evidence.effect)} stable's"
    if found.by == "jump":
        said = f"jumped to {ratio(evidence.effect)} what it was, and stable's did not"
    if found.by == "slope" and found.slope_per_hour is not None:
        left = "" if found.to_limit_s is None else f", at the limit in {duration(found.to_limit_s)}"
        return f"grows {significant(100 * found.slope_per_hour)} % an hour over stable's{left}; {said}; {pods}"
    return f"{said}{limit}; {pods}"


def unseen(evidence: MetricEvidence) -> str:
    """Why a metric is blind."""
    what = {
        Availability.NO_SERIES: "the metric store has no such series",
        Availability.STALE: "its last sample is too old",
        Availability.AWAY: "the metric store does not answer",
        Availability.DEGRADED: "the metric store answers with warnings",
    }.get(evidence.availability, "no numbers")
    return f"{what} ({evidence.detail})" if evidence.detail else what


def blame(state: RolloutState) -> tuple[MetricEvidence, MetricRule] | None:
    """The metric that speaks most for harm; None before anything was compared."""
    rules = {m.name: m for m in state.policy.metrics}
    compared = [e for e in state.evidence if e.metric in rules and e.effect is not None]
    if not compared:
        return None
    worst = max(compared, key=lambda e: e.log_e)
    return worst, rules[worst.metric]


def _symptom(state: RolloutState) -> str:
    found = blame(state)
    return metric_clause(*found) if found else "no metric compared yet"


def _line(log_line: float) -> str:
    return significant(math.exp(min(log_line, 20.0)))


def said(state: RolloutState, sentence: str) -> str:
    """The sentence as it is meant in the rollout's mode."""
    return observed(sentence) if state.mode is Mode.OBSERVE else sentence


_CONDITIONAL = {
    "Roll back": "Would have rolled back",
    "Advance": "Would have advanced",
    "Pause": "Would have paused",
    "Promote": "Would have promoted",
    "Continue": "Would have continued",
    "Start": "Would have started",
    "Hold": "Would have held",
    "Refuse": "Would have refused",
}


def observed(sentence: str) -> str:
    """The conditional, for observe mode: what would have been done."""
    for verb, would in _CONDITIONAL.items():
        if sentence.startswith(verb):
            return would + sentence[len(verb) :]
    return sentence if sentence.startswith("Would have") else f"Would have acted: {sentence}"


def passed_over_sentence(versions: Sequence[str]) -> str:
    """Which versions were not begun because a newer one came with them; empty when there are none."""
    if not versions:
        return ""
    named = ", ".join(quoted(version) for version in versions[-5:])
    more = f"{len(versions) - 5} older and " if len(versions) > 5 else ""
    return f"Not begun, because this version's event came together with theirs: {more}{named}."


def first_weight_sentence(state: RolloutState) -> str:
    """The first traffic."""
    gates_n = len(state.policy.preflight) - len(state.overruled_gates)
    passed = f" and passed {gates_n} gate{'s' * (gates_n != 1)}" if gates_n else ""
    without = f", without {_named(state.overruled_gates)}" if state.overruled_gates else ""
    return f"Start at {state.stage_weight(0)} %: the candidate has ready endpoints{passed}{without}."


def waiting_sentence(state: RolloutState) -> str:
    """What is missing before the first weight."""
    missing = [] if state.ready else ["ready endpoints"]
    if state.open_gates:
        gates = [rule.gate for rule in state.open_gates]
        missing.append(f"the gate{'s' * (len(gates) != 1)} {_named(gates)}")
    return f"Waiting for {' and '.join(missing)}." if missing else "Nothing is missing before the first weight."


def not_shown_sentence(state: RolloutState) -> str:
    """The candidate took too long to show what it must show before the first weight."""
    within = f"within {duration(state.policy.ready_timeout_s)}"
    if not state.ready:
        return f"Held at 0 %: no ready endpoints {within}."
    return f"Held at 0 %: no answer of {_named([rule.gate for rule in state.open_gates])} {within}."


def _named(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "none"


def gate_sentence(report: GateReport) -> str:
    """What a gate has answered, in the journal."""
    verb = {
        GateFinding.PASSED: "is passed",
        GateFinding.FAILED: "fails",
        GateFinding.COULD_NOT_LOOK: "could not look",
    }[report.finding]
    return f"Gate {report.gate} {verb}: {ended(report.sentence)}"


def ended(sentence: str) -> str:
    """A sentence of a gate with its full stop, which some leave to whoever shows them."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def gate_findings(report: GateReport, most: int = 3) -> list[str]:
    """The first lines of a gate that did not pass which say what is amiss, such as a vulnerability's id."""
    if report.finding is GateFinding.PASSED:
        return []
    amiss = [line for line in report.lines if not line.startswith("fine: ")]
    more = [f"and {len(amiss) - most} more"] if len(amiss) > most else []
    return amiss[:most] + more


def gate_detail(report: GateReport) -> str:
    """Everything else that a gate says, a line each."""
    facts = [f"{name}: {value}" for name, value in report.facts.items()]
    return "\n".join([*([report.to_do] if report.to_do else []), *report.lines, *facts])


def refused_sentence(report: GateReport) -> str:
    """A failed gate ends the release before any traffic."""
    return f"Refuse before any traffic: gate {report.gate} fails, {ended(report.sentence)}"


def was_refused_sentence(refusal: str, stands: str) -> str:
    """The same when it has ended, with what is known of the traffic."""
    return f"Refused{refusal.removeprefix('Refuse')} {stands[:1].upper()}{stands[1:]}."


def held_by_gate_sentence(report: GateReport) -> str:
    """Held before any traffic, by a gate that failed or could not look."""
    what = "fails" if report.finding is GateFinding.FAILED else "could not look"
    return f"Hold at 0 %: gate {report.gate} {what}, {ended(report.sentence)}"


def continue_sentence(state: RolloutState) -> str:
    """Why nothing moves now."""
    unsafe = sorted({m.name for m in state.policy.metrics if m.required} - {e.metric for e in state.evidence if e.safe})
    rules = {m.name: m for m in state.policy.metrics}
    at = f"Continue at {state.weight_asked} %"
    if state.frozen:
        return f"{at}: the kill switch is on, no weight moves."
    if state.blind_since is not None:
        return f"{at}: {blind_sentence(state)}"
    if state.window < state.policy.warmup_windows:
        return f"{at}: warming up, window {state.window} of {state.policy.warmup_windows} before anything is compared."
    missing = _missing(state)
    if missing:
        return f"{at}: nothing leans to harm after {state.window} windows; {missing}."
    if unsafe and state.weight_asked < 100:
        names = " and ".join(label(rules[name]) for name in unsafe)
        return f"{at}: nothing leans to harm after {state.window} windows; {names} not yet shown to be within limits."
    return f"{at}: nothing leans to harm after {state.window} windows."


def _missing(state: RolloutState) -> str:
    """What of bake time and exposure the stage still lacks; empty when nothing."""
    stage = state.stages[state.stage.index]
    if state.stage.n_canary < stage.min_requests:
        return f"{count(state.stage.n_canary)} of {count(stage.min_requests)} canary requests seen in this stage"
    if state.stage.entered_at is None:
        return "the mesh has not confirmed the weight yet"
    return ""


def advance_sentence(state: RolloutState, to_percent: int) -> str:
    """Why the next stage."""
    bake = duration(state.stages[state.stage.index].bake_s)
    if state.weight_asked == 100:
        return f"Advance to {to_percent} %: {bake} baked."
    return (
        f"Advance to {to_percent} %: every required metric is below its limit, {bake} baked, "
        f"{count(state.stage.n_canary)} canary requests."
    )


def pause_sentence(state: RolloutState) -> str:
    """Why a pause: evidence that leans to harm, or harm that a person must confirm."""
    number, line = evidence_number(state.log_evidence), _line(state.log_pause)
    head = f"Pause at {state.weight_asked} %: {_symptom(state)}; evidence {number}, pause line {line}"
    if state.waiting is Waiting.CONFIRM_ROLLBACK:
        return f"{head}, rollback line {_line(state.log_rollback)}; a person confirms the rollback."
    return f"{head}."


def limit_sentence(state: RolloutState) -> str:
    """Why a page instead of a rollback."""
    return (
        f"Pause at {state.weight_asked} %: {_symptom(state)}; the limit of automatic rollbacks an hour is reached, "
        "a person confirms the rollback."
    )


def rollback_sentence(state: RolloutState) -> str:
    """Why back to zero, with what the evidence means."""
    return (
        f"Roll back from {state.weight_asked} % to 0 %: {_symptom(state)}; "
        f"evidence {evidence_number(state.log_evidence)}. "
        f"At most 1 harmless release in {significant(1 / state.policy.false_rollback)} gets this far."
        if state.log_evidence >= state.log_rollback
        else f"Roll back from {state.weight_asked} % to 0 %: {_symptom(state)}; evidence stayed above the pause line "
        f"{_line(state.log_pause)} for {duration(state.policy.on_pause.budget_s)}."
    )


def promote_sentence(state: RolloutState) -> str:
    """Why all traffic."""
    stages_n = len(state.stages)
    baked = duration(sum(stage.bake_s for stage in state.stages))
    return (
        f"Promote {quoted(state.version)}: {stages_n} stage{'s' * (stages_n != 1)}, {baked}, "
        f"{count(state.n_canary)} canary requests, every required metric below its limit."
    )


def proposal_sentence(state: RolloutState) -> str:
    """Recommend mode's question."""
    last = state.stage.index == len(state.stages) - 1
    what = promote_sentence(state) if last else advance_sentence(state, state.stage_weight(state.stage.index + 1))
    return f"Ready, waits for a person's yes: {what}"


def guard_sentence(state: RolloutState, guard: Guard, value: float | None) -> str:
    """An absolute limit was broken for too long."""
    rule = next(m for m in state.policy.metrics if m.name == guard.metric)
    minutes = duration(guard.windows * state.policy.window_s)
    if guard.only_on_canary:
        limit = "only on the canary"
    elif guard.times_stable_above is not None:
        limit = f"over {significant(guard.times_stable_above)} times stable's"
    else:
        bound = guard.above if guard.above is not None else guard.below
        assert bound is not None
        shown = f"{significant(bound * 100)} %" if rule.kind is MetricKind.ERRORS else significant(bound, 3)
        limit = f"{'over' if guard.above is not None else 'under'} {shown}"
    now = "" if value is None else f", now {significant(value * 100)} %" * (rule.kind is MetricKind.ERRORS)
    verb = "Pause" if state.phase is Phase.PAUSED else "Roll back"
    tail = "; waits for a person to confirm the rollback" if state.phase is Phase.PAUSED else ""
    # What a log says names the fault itself, so it is worth more to whoever is paged than any number.
    found = next((e.detail for e in state.evidence if e.metric == rule.name), "") if guard.only_on_canary else ""
    clause = f" ({found})" if found else ""
    return f"{verb} at {state.weight_asked} %: {label(rule)} {limit} for {minutes}{now}{clause}{tail}."


def blind_sentence(state: RolloutState) -> str:
    """Which metric cannot be judged, why, and what that stops."""
    rules = {m.name: m for m in state.policy.metrics}
    for one in state.evidence:
        if not one.availability.usable and one.metric in rules and rules[one.metric].required:
            name = label(rules[one.metric])
            return f"{name[:1].upper()}{name[1:]} cannot be judged: {unseen(one)}. It is required, so nothing advances."
    return "A required metric was not collected, so nothing advances."


def undecided_sentence(state: RolloutState) -> str:
    """Enough time, not enough certainty."""
    rules = {m.name: m for m in state.policy.metrics}
    open_ones = [e for e in state.evidence if e.metric in rules and rules[e.metric].required and not e.safe]
    clauses = "; ".join(metric_clause(e, rules[e.metric]) for e in open_ones) or "nothing was compared"
    waited = duration(state.policy.on_inconclusive.budget_s)
    return f"Hold at {state.weight_asked} %: too little to tell {waited} past the bake time. {clauses}."


def ordered_sentence(verb: str, state: RolloutState, reason: str) -> str:
    """A person's order, with the reason as quoted data."""
    why = f': "{quoted(reason)}"' if reason else ""
    at = f"from {state.weight_asked} % to 0 %" if verb == "Roll back" else f"at {state.weight_asked} %"
    return f"{verb} {at} by a person's order{why}."


def if_nothing(state: RolloutState) -> str:
    """What happens when nobody acts."""
    match state.phase:
        case Phase.STARTING:
            return f"{waiting_sentence(state)} Then the first weight is set."
        case Phase.PROGRESSING:
            return "Goes on by itself."
        case Phase.PAUSED if state.waiting is Waiting.EVIDENCE:
            by = state.phase_since + timedelta(seconds=state.policy.on_pause.budget_s)
            back = state.policy.on_pause.then is BudgetEnd.ROLLBACK
            end = f"{'rolls back' if back else 'asks a person'} at evidence {_line(state.log_rollback)} or {_clock(by)}"
            resume = significant(math.exp(state.log_pause) * 0.3)
            return f"{end}; resumes below {resume}."
        case Phase.PAUSED | Phase.HELD:
            return "Stays as it is until a person acts" + (
                " or the numbers are back."
                if state.waiting is Waiting.DATA
                else " or the gate passes."
                if state.waiting is Waiting.PREFLIGHT and not _failed_gate(state)
                else "."
            )
        case Phase.ROLLING_BACK | Phase.PROMOTING:
            return "The weight is written again and again until the mesh confirms it."
        case Phase.AWAITING_STABLE:
            return "Traffic returns to stable when the event bus says that stable runs the new version."
        case _:
            return "Nothing more happens."


def _failed_gate(state: RolloutState) -> bool:
    """Whether a gate has failed that nobody looks at any more."""
    return any(one.finding is GateFinding.FAILED and one.gate not in state.overruled_gates for one in state.gates)


def _clock(moment: datetime) -> str:
    return moment.strftime("%H:%M UTC")


def page_summary(state: RolloutState, symptom: str) -> str:
    """The title of a page: service and state first, so that its first 80 characters stand alone."""
    phase = "refused" if state.ended_as == REFUSED else state.phase.value.replace("_", " ")
    at = f" at {state.weight_asked} %" if state.phase.judged else ""
    # The title says the state itself, so a decision's own verb and weight would only repeat it.
    head, colon, tail = symptom.partition(": ")
    symptom = tail if colon and head.startswith(tuple(_CONDITIONAL)) else symptom
    text = f"{quoted(state.service.name)}: {phase}{at}, {symptom}"
    return text if len(text) <= LONGEST_SUMMARY else text[: LONGEST_SUMMARY - 3] + "..."


def page_details(state: RolloutState, now: datetime) -> dict[str, str]:
    """The flat keys of a page, in the order in which they are read at night."""
    stage = f"{state.stage.index + 1} of {len(state.stages)} at {state.weight_asked} %"
    return {
        "why": state.reason,
        "evidence": evidence_number(state.log_evidence),
        "harm_so_far": harm_so_far(state),
        "if_you_do_nothing": if_nothing(state),
        "next_at_utc": "" if state.wake_at is None else state.wake_at.isoformat(timespec="seconds"),
        "service": str(state.service),
        "change": f"{quoted(state.stable_version or 'stable')} -> {quoted(state.version)}",
        "stage": stage,
        "commands": f"serinus rollback {state.id}; serinus resume {state.id} --reason ...",
        "rollout": state.id,
        "window": str(state.window),
        **_gate_details(state),
    }


def _gate_details(state: RolloutState) -> dict[str, str]:
    """What the gates have said, and what changed from one image to the other."""
    out = {
        f"gate {one.gate}": f"{one.finding.value.replace('_', ' ')}: {ended(one.sentence)} {one.to_do}".rstrip()
        for one in state.gates
    }
    out |= {f"gate {one.gate} found": "; ".join(found) for one in state.gates if (found := gate_findings(one))}
    for report in state.gates:
        out |= {name: value for name, value in report.facts.items() if "->" in value}
    return out


def harm_so_far(state: RolloutState) -> str:
    """About how many requests failed that would not have failed on stable."""
    for one in state.evidence:
        if one.events_canary and one.effect and one.effect > 1 and one.resource is None:
            extra = one.events_canary * (1 - 1 / one.effect)
            return f"about {significant(extra)} more errors in {count(state.n_canary)} canary requests"
    return f"{count(state.n_canary)} canary requests served"
