"""The dispatcher: one loop a lane, each taking owed instructions by lease, trying them side by side, a bounded number.

Everything owed is safe to do twice, so a crash after the effect and before the outcome costs one repetition. What
fails for now is tried again with growing pauses, for as long as it is owed; what is refused is answered to the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta

from service.model.instruction import CheckReady, Lane, Page, Publish, SetWeights
from service.model.stimulus import CandidateReady, Stimulus, WeightsRefused, WeightsWritten
from service.ring.door import Door, Told
from service.ring.ports import Bus, Clock, Mesh, Pager, Refused, Unavailable
from service.ring.store import Owed, Postponed, Store

logger = logging.getLogger(__name__)

BATCH = {Lane.RETREAT: 32, Lane.WEIGHTS: 16, Lane.READINESS: 64, Lane.PAGES: 8, Lane.PUBLISH: 64}
"""Instructions of a lane under way at once."""

LEASE_S = 60.0
"""How long an instruction is hidden from other replicas; every try is cut off well before it."""

TRY_S = 30.0
IDLE_S = 1.0
READY_POLL_S = 2.0
FROZEN_POLL_S = 2.0
LONGEST_PAUSE_S = 30.0


class Dispatcher:
    """Carries out instructions for ever. Safe to stop at any point: what was not settled is owed still."""

    def __init__(
        self,
        store: Store,
        door: Door,
        clock: Clock,
        *,
        meshes: Mapping[str, Mesh],
        pager: Pager,
        bus: Bus,
        done: Callable[[str, str], None] | None = None,
    ) -> None:
        self._store = store
        self._door = door
        self._clock = clock
        self._meshes = meshes
        self._pager = pager
        self._bus = bus
        self._done = done or (lambda kind, outcome: None)
        self._news = {lane: asyncio.Event() for lane in Lane}

    def poke(self, lanes: frozenset[Lane]) -> None:
        """There is new work in these lanes."""
        for lane in lanes:
            self._news[lane].set()

    async def run(self, lane: Lane) -> None:
        """Carry out one lane's instructions. Returns only by cancellation."""
        while True:
            self._news[lane].clear()
            try:
                carried_n = await self.turn(lane)
            except Unavailable as error:
                logger.warning("lane %s waits: %s", lane, error, extra={"action": "lane_postponed", "lane": lane.value})
                carried_n = 0
                await self._clock.sleep(IDLE_S)
            if carried_n < BATCH[lane]:
                await self._idle(lane)

    async def _idle(self, lane: Lane) -> None:
        """Until there is news, or a postponed instruction may have come due."""
        waits = {asyncio.create_task(self._news[lane].wait()), asyncio.create_task(self._clock.sleep(IDLE_S))}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def turn(self, lane: Lane) -> int:
        """Try what is owed in a lane now; how many there were."""
        owed = await self._store.owed(lane, self._clock.now(), limit=BATCH[lane], lease_s=LEASE_S)
        if not owed:
            return 0
        if lane in (Lane.WEIGHTS, Lane.RETREAT) and (await self._store.kill_switch()).frozen:
            for one in owed:
                await self._postpone(one, FROZEN_POLL_S, "the kill switch is on: all weights are frozen")
            return 0
        if lane is Lane.PUBLISH:
            # One after the other: decisions of a service must reach the topic in the order they were made.
            for one in owed:
                if not await self._carry(one):
                    break
            return len(owed)
        async with asyncio.TaskGroup() as group:
            for one in owed:
                group.create_task(self._carry(one), name=f"{lane} {one.id}")
        return len(owed)

    async def _carry(self, owed: Owed) -> bool:
        """Try one instruction and bring the outcome back; False when it is owed still."""
        kind = owed.instruction.type
        try:
            async with asyncio.timeout(TRY_S):
                outcome = await self._do(owed)
        except Refused as refused:
            self._done(kind, "refused")
            await self._refused(owed, str(refused))
            return True
        except (Unavailable, TimeoutError) as error:
            self._done(kind, "unavailable")
            wished_s = error.retry_after_s if isinstance(error, Unavailable) else None
            pause_s = min(LONGEST_PAUSE_S, 0.25 * 2 ** min(owed.attempts, 10))
            await self._postpone(owed, max(pause_s, wished_s or 0.0), str(error) or "timed out")
            return False
        if outcome is None:
            await self._postpone(owed, READY_POLL_S, "not ready yet")
            return True
        self._done(kind, "done")
        await self._door.tell([Told(owed.instruction.rollout, fact) for fact in outcome], settled=[owed.id])
        return True

    async def _do(self, owed: Owed) -> tuple[Stimulus, ...] | None:
        """The facts that came of it; None: not yet, without anything having failed."""
        order = owed.instruction
        match order:
            case SetWeights():
                seen = await self._mesh(order.service.cluster).set_weights(
                    order.place,
                    canary_percent=order.canary_percent,
                    fence=order.fence,
                    rollout=order.rollout,
                    first=order.first,
                )
                return (
                    WeightsWritten(
                        id=f"{order.rollout}/f{order.fence}",
                        at=self._clock.now(),
                        fence=order.fence,
                        canary_percent=seen.canary_percent or 0,
                        changed=seen.changed,
                    ),
                )
            case CheckReady():
                ready, detail = await self._mesh(order.service.cluster).ready(order.place)
                if not ready:
                    return None
                return (CandidateReady(id=f"{order.rollout}/ready/{owed.id}", at=self._clock.now(), detail=detail),)
            case Page():
                await self._pager.send(order)
                return ()
            case Publish():
                await self._bus.publish(order)
                return ()

    async def _refused(self, owed: Owed, reason: str) -> None:
        order = owed.instruction
        logger.error(
            "%s refused: %s", order.type, reason, extra={"action": "refused", "rollout": order.rollout, "owed": owed.id}
        )
        facts: list[Told] = []
        if isinstance(order, SetWeights):
            fact = WeightsRefused(
                id=f"{order.rollout}/f{order.fence}", at=self._clock.now(), fence=order.fence, reason=reason[:2000]
            )
            facts.append(Told(order.rollout, fact))
        elif isinstance(order, CheckReady):
            # The right or the object may still come; the rollout's own time-out tells people.
            await self._postpone(owed, LONGEST_PAUSE_S, reason)
            return
        await self._door.tell(facts, settled=[owed.id])

    async def _postpone(self, owed: Owed, pause_s: float, error: str) -> None:
        until = self._clock.now() + timedelta(seconds=pause_s)
        await self._store.postpone([Postponed(owed.id, until, error[:2000])])

    def _mesh(self, cluster: str) -> Mesh:
        mesh = self._meshes.get(cluster)
        if mesh is None:
            raise Refused(f"no API server is set for cluster {cluster}; known: {', '.join(sorted(self._meshes))}")
        return mesh
