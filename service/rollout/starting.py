"""Before the first weight: what the candidate must show while it serves nobody.

It must be ready, and it must pass the policy's gates. Both are looked at side by side, except for gates that ask the
candidate itself. A gate that could not look is no pass: the rollout is held until it can look after all, or until a
person goes on without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from service.model.gates.report import Candidate, Finding, GateReport
from service.model.gates.rules import GateRule, asks_the_candidate
from service.model.instruction import CheckReady, RunGate, Severity
from service.model.names import Mode
from service.model.policy import OnHarm
from service.model.rollout import Decision, Phase, RolloutState, Waiting
from service.model.stimulus import CandidateReady, GateAnswered
from service.model.value import Utc
from service.rollout.judgement import Cause
from service.rollout.moves import enter_stage, retreat
from service.rollout.turn import Turn
from service.telling import words


def look(turn: Turn, detail: str = "") -> None:
    """Owe a look at all that is missing; where nothing is, the first weight. The phase must be STARTING."""
    turn.drops |= {"check_ready", "run_gate"}
    # What is looked at anew has not answered yet; what it said before must not be taken for its answer.
    turn.set(gates=tuple(one for one in turn.state.gates if one.finding is Finding.PASSED or _closed(turn.state, one)))
    state = turn.state
    if not state.ready:
        turn.orders.append(
            CheckReady(
                rollout=state.id, service=state.service, at=turn.stimulus.at, place=state.place, look=state.looks_n
            )
        )
    _run(turn, (rule for rule in state.open_gates if state.ready or not asks_the_candidate(rule)))
    _go_on(turn, detail)


def on_ready(turn: Turn, fact: CandidateReady) -> str | None:
    """The candidate has ready endpoints."""
    state = turn.state
    waits = state.phase is Phase.STARTING or (state.phase is Phase.HELD and state.windows_from is None)
    if not waits or state.ready:
        return "Nothing was changed: the rollout is not waiting for readiness."
    if _outdated(state, fact):
        return "Nothing was changed: the candidate was ready before it was asked anew."
    turn.set(ready=True)
    if state.waiting is Waiting.READINESS:
        _waits(turn)
    turn.resolve("readiness")
    if state.open_gates:
        turn.tell("ready", "The candidate has ready endpoints.", fact.detail)
    _run(turn, (rule for rule in state.open_gates if asks_the_candidate(rule)))
    _go_on(turn, fact.detail)
    return None


def on_gate(turn: Turn, fact: GateAnswered) -> str | None:
    """A gate has looked, or could not."""
    state, report = turn.state, fact.report
    rule = next((rule for rule in state.open_gates if rule.gate == report.gate), None)
    if state.served_from is not None or rule is None:
        return f"Nothing was changed: the rollout is not waiting for gate {report.gate}."
    if _outdated(state, fact):
        return f"Nothing was changed: gate {report.gate} looked before it was asked anew."
    turn.set(gates=(*(one for one in state.gates if one.gate != report.gate), report))
    turn.tell(f"gate {report.finding.value}", words.gate_sentence(report), words.gate_detail(report))
    match report.finding:
        case Finding.PASSED:
            if state.waiting is Waiting.PREFLIGHT and not _held_by(turn.state):
                _waits(turn)
                turn.resolve(Cause.PREFLIGHT)
            _go_on(turn)
        case Finding.FAILED if state.mode is Mode.OBSERVE and state.policy.on_gate_failure is not OnHarm.ROLLBACK:
            _watch_on(turn, report)
        case Finding.FAILED if state.policy.on_gate_failure is OnHarm.ROLLBACK and state.mode is not Mode.RECOMMEND:
            retreat(turn, words.refused_sentence(report), cause=Cause.PREFLIGHT, ended_as=words.REFUSED)
        case Finding.FAILED:
            _hold(turn, words.held_by_gate_sentence(report))
        case Finding.COULD_NOT_LOOK if state.mode is Mode.OBSERVE:
            _watch_on(turn, report)
        case Finding.COULD_NOT_LOOK:
            _hold(turn, words.held_by_gate_sentence(report))
            # It is tried on, so that a registry that is back needs nobody to come and say so.
            _run(turn, [rule], for_ever=True)
    return None


def _outdated(state: RolloutState, answer: CandidateReady | GateAnswered) -> bool:
    """Whether the look began before a person had mended something and resumed. Times would not tell: clocks differ."""
    return answer.look is not None and answer.look != state.looks_n


def _watch_on(turn: Turn, report: GateReport) -> None:
    """Observe mode: whoever gives the candidate traffic does not wait for us, and what it does is worth seeing."""
    turn.set(overruled_gates=(*turn.state.overruled_gates, report.gate))
    sentence = words.said(turn.state, words.held_by_gate_sentence(report))
    turn.tell("held", sentence)
    turn.decide(Decision.CONTINUE, sentence)
    if turn.state.waiting is Waiting.PREFLIGHT:
        _waits(turn)
    _go_on(turn)


def _closed(state: RolloutState, report: GateReport) -> bool:
    """Whether the gate's last answer is its last word: a person went on without it."""
    return report.gate in state.overruled_gates


def _go_on(turn: Turn, detail: str = "") -> None:
    """The first weight, where nothing is missing any more."""
    state = turn.state
    if state.phase is Phase.STARTING and state.ready and not state.open_gates:
        enter_stage(turn, 0, words.first_weight_sentence(state), detail)


def _waits(turn: Turn) -> None:
    """What was held may wait again: for the rest of what is missing."""
    by = turn.stimulus.at + timedelta(seconds=turn.state.policy.ready_timeout_s)
    turn.enter(Phase.STARTING, words.waiting_sentence(turn.state), wake_at=by)
    turn.decide(Decision.CONTINUE, turn.state.reason)


def _hold(turn: Turn, sentence: str) -> None:
    """Held at 0 %. A person's pause stands; what they resume to is seen then."""
    if turn.state.phase is Phase.PAUSED:
        return
    turn.enter(Phase.HELD, sentence, waiting=Waiting.PREFLIGHT)
    turn.decide(Decision.PAUSE, sentence)
    turn.page(Cause.PREFLIGHT, Severity.WARNING, sentence)


def _held_by(state: RolloutState) -> list[GateReport]:
    """Answers that hold the rollout still."""
    open_gates = {rule.gate for rule in state.open_gates}
    return [one for one in state.gates if one.gate in open_gates]


def overruled(state: RolloutState) -> tuple[str, ...]:
    """The gates that a person goes on without by resuming now: those whose answer held the rollout."""
    held_by = _held_by(state) if state.waiting is Waiting.PREFLIGHT else []
    return (*state.overruled_gates, *(one.gate for one in held_by))


def _run(turn: Turn, rules: Iterable[GateRule], *, for_ever: bool = False) -> None:
    state, at = turn.state, turn.stimulus.at
    candidate = Candidate(
        service=state.service, version=state.version, stable_version=state.stable_version, artifact=state.artifact
    )
    give_up_at: Utc | None = None if for_ever else at + timedelta(seconds=state.policy.gate_timeout_s)
    turn.orders += [
        RunGate(
            rollout=state.id,
            service=state.service,
            at=at,
            rule=rule,
            subjects=state.place.preflight,
            candidate=candidate,
            give_up_at=give_up_at,
            look=state.looks_n,
        )
        for rule in rules
    ]
