"""What each instruction does to the world, and what comes of it. No store, no lanes: one try of one instruction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from service.model.gates.report import Finding, GateReport
from service.model.instruction import CheckReady, Lane, Page, Publish, RunGate, SetWeights
from service.model.stimulus import CandidateReady, GateAnswered, Stimulus, WeightsRefused, WeightsWritten
from service.ring.ports import Bus, Clock, Gates, Mesh, NotOurs, Pager, Refused, Unavailable
from service.ring.store import LONGEST_HIDDEN_S, Owed

logger = logging.getLogger(__name__)

TRY_S = 12.0
"""One try is cut off after this time."""

GATE_TRY_S = 600.0
"""A look at a gate reads whole models, waits for a Job or replays requests, and may take so long."""

LONGEST_PAUSE_S = 15.0
READY_POLL_S = 2.0
REFUSED_LOOK_S = 30.0
"""Where readiness may not be looked at: the right or the object may still come."""

UNKNOWN_CLUSTER_S = 60.0
"""An instruction for a cluster that is not in this replica's settings waits so long for a replica that knows it."""

GATE_AGAIN_S = 30.0
"""A gate that could not look is tried again after at most this time, until people were told of it ..."""

GATE_LATER_S = 300.0
"""... and afterwards after at most this one, so that what stays away for days takes little of the lane."""


@dataclass(frozen=True, slots=True)
class Done:
    """Carried out, or never to be: settled with the facts that came of it."""

    facts: tuple[Stimulus, ...] = ()
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """Owed still."""

    pause_s: float
    why: str
    failed: bool
    """False where the other side answered well, and only what was hoped for is not there yet."""


Outcome: TypeAlias = Done | Later


def try_s(lane: Lane) -> float:
    """How long one try of an instruction of this lane may take."""
    return GATE_TRY_S if lane is Lane.PREFLIGHT else TRY_S


def _pause_s(owed: Owed) -> float:
    """Until the next try; longer from try to try."""
    return min(LONGEST_PAUSE_S, 0.25 * 2.0 ** min(owed.attempts, 10))


class Effects:
    """Carries out single instructions. Every effect is safe to repeat, and safe to be cut off at any point."""

    def __init__(self, clock: Clock, *, meshes: Mapping[str, Mesh], gates: Gates, pager: Pager, bus: Bus) -> None:
        self._clock = clock
        self._meshes = meshes
        self._gates = gates
        self._pager = pager
        self._bus = bus

    async def carry_out(self, owed: Owed) -> Outcome:
        """Try one instruction, for at most ``try_s``. Never raises: what nobody foresaw of one instruction, such as an
        answer of a form that no server should give, must not end the others with the process."""
        order = owed.instruction
        if isinstance(order, SetWeights | CheckReady | RunGate) and order.service.cluster not in self._meshes:
            # While settings change from replica to replica, another one may know it; nobody is refused anything.
            known = ", ".join(sorted(self._meshes)) or "none"
            why = f"no API server is set for cluster {order.service.cluster} in this replica's settings; known: {known}"
            logger.warning("%s waits: %s", order.type, why, extra={"action": "waits", "rollout": order.rollout})
            return Later(UNKNOWN_CLUSTER_S, why, failed=False)
        try:
            async with asyncio.timeout(try_s(order.lane)):
                return await self._do(owed)
        except Refused as refused:
            return self._refused(owed, refused)
        except (Unavailable, TimeoutError) as error:
            wished_s = error.retry_after_s if isinstance(error, Unavailable) else None
            why = str(error) or f"no answer within {try_s(order.lane):g} s"
            return Later(min(LONGEST_HIDDEN_S, max(_pause_s(owed), wished_s or 0.0)), why[:2000], failed=True)
        except Exception as error:
            extra = {"action": "effect_failed", "rollout": order.rollout, "owed": owed.id}
            logger.exception("%s failed in a way that nobody foresaw and is tried again", order.type, extra=extra)
            return Later(_pause_s(owed), f"unforeseen: {error!r}"[:2000], failed=True)

    async def _do(self, owed: Owed) -> Outcome:
        order = owed.instruction
        match order:
            case SetWeights():
                seen = await self._meshes[order.service.cluster].set_weights(
                    order.place,
                    canary_percent=order.canary_percent,
                    fence=order.fence,
                    rollout=order.rollout,
                    first=order.first,
                )
                written = WeightsWritten(
                    id=f"{order.rollout}/f{order.fence}",
                    at=self._clock.now(),
                    fence=order.fence,
                    canary_percent=seen.canary_percent or 0,
                    changed=seen.changed,
                )
                return Done((written,))
            case CheckReady():
                ready, detail = await self._meshes[order.service.cluster].ready(order.place)
                if not ready:
                    # A candidate that takes minutes to load is asked less and less often.
                    pause_s = min(LONGEST_PAUSE_S, READY_POLL_S * 1.3 ** min(owed.attempts, 20))
                    return Later(pause_s, f"not ready yet: {detail}"[:2000], failed=False)
                ready_id = f"{order.rollout}/ready/{owed.id}"
                return Done((CandidateReady(id=ready_id, at=self._clock.now(), detail=detail, look=order.look),))
            case RunGate():
                return await self._look(owed, order)
            case Page():
                await self._pager.send(order)
                return Done()
            case Publish():
                await self._bus.publish(order)
                return Done()

    async def _look(self, owed: Owed, order: RunGate) -> Outcome:
        """One look at a gate. What could not look is tried again, until the core wants to hear of it."""
        try:
            async with asyncio.timeout(GATE_TRY_S - 1.0):
                report = await self._gates.look(order)
        except TimeoutError:
            report = GateReport(
                gate=order.rule.gate,
                finding=Finding.COULD_NOT_LOOK,
                sentence=f"the look was cut off after {GATE_TRY_S - 1:g} s.",
                to_do="See which of its parts does not answer; serinus preflight runs the same look by hand.",
            )
        now = self._clock.now()
        # One look does not show that nothing can be seen, however long it had to wait for its turn.
        told = order.give_up_at is None
        if report.finding is Finding.COULD_NOT_LOOK and (
            order.give_up_at is None or now < order.give_up_at or not owed.attempts
        ):
            longest_s = GATE_LATER_S if told else GATE_AGAIN_S
            pause_s = min(longest_s, READY_POLL_S * 1.3 ** min(owed.attempts, 20))
            return Later(pause_s, f"could not look: {report.sentence}"[:2000], failed=False)
        answer_id = f"{order.rollout}/gate/{order.rule.gate}/{owed.id}"
        return Done((GateAnswered(id=answer_id, at=now, report=report, look=order.look),))

    def _refused(self, owed: Owed, refused: Refused) -> Outcome:
        order, reason = owed.instruction, str(refused)
        logger.error(
            "%s refused: %s", order.type, reason, extra={"action": "refused", "rollout": order.rollout, "owed": owed.id}
        )
        match order:
            case SetWeights():
                fact = WeightsRefused(
                    id=f"{order.rollout}/f{order.fence}",
                    at=self._clock.now(),
                    fence=order.fence,
                    reason=reason[:2000],
                    not_ours=isinstance(refused, NotOurs),
                )
                return Done((fact,), refused=True)
            case CheckReady():
                # The rollout's own time-out tells people.
                return Later(REFUSED_LOOK_S, reason[:2000], failed=False)
            case _:
                return Done(refused=True)
