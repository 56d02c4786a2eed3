"""The moves: what it means to go to a stage, to the end, or back. Told, decided, paged and owed in one place each."""

from __future__ import annotations

import math
import zlib
from datetime import datetime, timedelta
from typing import Any

from service.model.instruction import Severity
from service.model.names import Mode
from service.model.rollout import Decision, Phase, RolloutState, StageProgress
from service.model.target import Finish
from service.rollout.judgement import ALL_TRAFFIC, Cause
from service.rollout.turn import Turn
from service.telling import words

WINDOW_PHASES = 12
"""Moments within a window's length at which windows end; a minute's windows end every five seconds."""


def enter_stage(turn: Turn, index: int, sentence: str, detail: str = "") -> None:
    """Ask for a stage's weight. Its bake time runs from the mesh's confirmation."""
    turn.enter(Phase.PROGRESSING, sentence, stage=StageProgress(index=index), undecided_since=None, blind_since=None)
    turn.ask_weight(turn.state.stage_weight(index))
    turn.tell("advanced", words.said(turn.state, sentence), detail)
    turn.decide(Decision.ADVANCE if index else Decision.CONTINUE, turn.state.reason)
    if turn.state.mode is Mode.OBSERVE:
        confirmed(turn, turn.stimulus.at)


def confirmed(turn: Turn, at: datetime) -> None:
    """The stage's weight stands: its clock starts, and with the first one the windows start."""
    stage = turn.state.stage
    if stage.entered_at is None:
        turn.set(stage=stage.model_copy(update={"entered_at": at}))
    if turn.state.windows_from is None:
        turn.set(windows_from=_first_window(turn.state, at))


def _first_window(state: RolloutState, after: datetime) -> datetime:
    """When the first window begins: within one window's length, at a phase of the rollout's own.

    Rollouts that start in the same second are so judged evenly over the window's length, and those of one phase share
    their windows' ends and with them their queries.
    """
    window_s = state.policy.window_s
    step_s = max(1.0, window_s / WINDOW_PHASES)
    phase_s = zlib.crc32(state.id.encode()) % max(1, int(window_s // step_s)) * step_s
    start_s = (math.floor((after.timestamp() - phase_s) / window_s) + 1) * window_s + phase_s
    return datetime.fromtimestamp(start_s, after.tzinfo)


def advance(turn: Turn, sentence: str, detail: str = "") -> None:
    """Go to the next stage, by evidence or by a person's word."""
    turn.resolve()
    enter_stage(turn, turn.state.stage.index + 1, sentence, detail)
    turn.note_change(sentence)


def promote(turn: Turn, sentence: str, detail: str = "") -> None:
    """All traffic to the candidate; the end comes with the mesh's confirmation."""
    turn.resolve()
    turn.enter(Phase.PROMOTING, sentence, wake_at=confirm_by(turn))
    turn.ask_weight(ALL_TRAFFIC)
    turn.tell("promoted", words.said(turn.state, sentence), detail)
    turn.decide(Decision.PROMOTE, sentence)
    turn.note_change(sentence)
    if turn.state.mode is Mode.OBSERVE:
        finish_promotion(turn)


def promote_on(turn: Turn, sentence: str, **changes: Any) -> None:
    """Go on with a promotion that was stopped: its weight is owed anew."""
    turn.enter(Phase.PROMOTING, sentence, wake_at=confirm_by(turn), **changes)
    turn.ask_weight(turn.state.weight_asked)


def finish_promotion(turn: Turn) -> None:
    """The promotion stands: the end, or a wait until stable runs the new version."""
    state = turn.state
    if state.place.finish is Finish.RETURN_TO_STABLE and state.weight_asked == ALL_TRAFFIC and state.version != "":
        if state.mode is Mode.OBSERVE:
            _end(turn, Phase.PROMOTED, state.reason, "promoted")
            return
        if state.stable_caught_up:
            return_to_stable(turn)
            return
        sentence = f"{words.quoted(state.version)} serves all traffic; it returns to stable when stable runs it."
        turn.enter(Phase.AWAITING_STABLE, sentence)
        turn.tell("awaiting stable", sentence)
        return
    _end(turn, Phase.PROMOTED, state.reason, "promoted")


def confirm_by(turn: Turn) -> datetime:
    """When people are told that the mesh has not confirmed what was asked now."""
    return turn.stimulus.at + timedelta(seconds=turn.state.policy.confirm_timeout_s)


def retreat(turn: Turn, sentence: str, *, cause: str, ended_as: str = "rolled back", detail: str = "") -> None:
    """All traffic back to stable. A page tells people, and the end comes with the mesh's confirmation."""
    by_itself = cause in (Cause.PREFLIGHT, Cause.HARM, Cause.GUARD, Cause.BLIND, Cause.INCONCLUSIVE, Cause.LEANING)
    turn.enter(Phase.ROLLING_BACK, sentence, ended_as=ended_as, wake_at=confirm_by(turn))
    turn.ask_weight(0)
    turn.tell("rolling back", words.said(turn.state, sentence), detail)
    turn.decide(Decision.ROLLBACK, sentence)
    if by_itself:
        before_traffic = turn.state.served_from is None
        turn.page("rollback", Severity.WARNING if before_traffic else Severity.ERROR, sentence)
    if turn.state.mode is Mode.OBSERVE:
        finish_retreat(turn, "nothing was touched")


def finish_retreat(turn: Turn, stands: str) -> None:
    """The end of the way back. ``stands`` says what is known of the traffic."""
    state = turn.state
    rolled_back = state.ended_as == "rolled back"
    if state.mode is Mode.OBSERVE:
        sentence = words.said(state, state.reason)
    elif state.ended_as == words.REFUSED:
        sentence = words.was_refused_sentence(state.reason, stands)
    else:
        sentence = f"{'Rolled back' if rolled_back else 'Ended, ' + state.ended_as}: {stands}. {state.reason}"
    _end(turn, Phase.ROLLED_BACK if rolled_back else Phase.ENDED, sentence, state.ended_as)


def _end(turn: Turn, phase: Phase, sentence: str, ended_as: str) -> None:
    turn.enter(phase, sentence, ended_as=ended_as)
    turn.tell(phase.value.replace("_", " "), sentence)
    turn.decide(turn.state.decision, sentence)
    turn.resolve()


def return_to_stable(turn: Turn) -> None:
    """Stable runs the new version, so its traffic goes back to it."""
    sentence = f"Stable runs {words.quoted(turn.state.version)}: traffic returns to it."
    turn.enter(Phase.PROMOTING, sentence, wake_at=confirm_by(turn))
    turn.ask_weight(0)
    turn.tell("returning", sentence)
