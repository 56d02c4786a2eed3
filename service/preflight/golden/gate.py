"""The gate ``golden``: reads the recorded requests, replays them to both versions, and reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.model.gates.golden import GoldenGate, GoldenSubject
from service.model.gates.report import Candidate, GateReport
from service.model.names import Arm
from service.preflight.golden import answers, requests, verdict
from service.preflight.golden.replay import Raw, Replay, session
from service.preflight.golden.requests import GoldenRequest, RequestsError
from service.preflight.golden.tally import Look, Reply, Tally, look_at
from service.preflight.report import could_not_look
from service.preflight.threads import in_thread

Progress = Callable[[int, int], None]
"""Told after every request how many of how many are done."""


class GoldenReplay:
    """Looks at the answers of both versions to recorded requests. Safe to repeat and to cancel."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds the files of requests; none outside it is read."""
        self._folder = folder

    async def look(self, rule: GoldenGate, subject: GoldenSubject, of: Candidate) -> GateReport:
        """The report; never raises for what the file or the servers do."""
        file = self._folder / subject.requests
        try:
            recorded = await in_thread(requests.read, file, subject.protocol, below=self._folder)
        except RequestsError as error:
            return could_not_look("golden", f"{error}.", "put the file of golden requests right")
        return await replayed(rule, subject, recorded)


async def replayed(
    rule: GoldenGate,
    subject: GoldenSubject,
    recorded: tuple[GoldenRequest, ...],
    progress: Progress = lambda done, total: None,
) -> GateReport:
    """Replay to both and report."""
    tally = Tally()

    def examine(request: GoldenRequest, stable: tuple[Raw, Raw], canary: tuple[Raw, Raw]) -> Look:
        stables = (_reply(stable[0], request), _reply(stable[1], request))
        canaries = (_reply(canary[0], request), _reply(canary[1], request))
        return look_at(request.id, stables, canaries, rule.tolerances)

    def heard(look: Look) -> None:
        tally.add(look)
        progress(tally.requests_n, len(recorded))

    async with session() as connections:
        result = await Replay(connections, subject, examine, heard).run(recorded)
    if result.away:
        return could_not_look(
            "golden",
            f"Could not replay {len(recorded)} golden requests: {result.away}.",
            "see whether both addresses of the target are right and both versions run",
        )
    times = verdict.Times(
        cold_start_s=result.cold_start_s,
        first_stable_s=result.first[Arm.STABLE].seconds if Arm.STABLE in result.first else None,
        first_canary_s=result.first[Arm.CANARY].seconds if Arm.CANARY in result.first else None,
        stable_s=result.seconds[Arm.STABLE],
        canary_s=result.seconds[Arm.CANARY],
    )
    return verdict.judge(tally, rule, times, asked_n=len(recorded), cut_short=result.cut_short)


def _reply(raw: Raw, request: GoldenRequest) -> Reply:
    if raw.failure:
        return Reply(failure=raw.failure)
    try:
        return Reply(answers.read(raw.body, request.protocol))
    except answers.Unreadable as error:
        return Reply(failure=f"an answer that {error}")
