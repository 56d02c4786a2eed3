"""The dispatcher: carries out what the outbox owes, and brings each outcome back by the door.

Every lane is worked on its own, and the lanes of a cluster apart from those of every other: a page never waits for a
mesh write, a rollback never for another write, and nobody for a cluster that hangs. Within a lane many instructions
are under way at once, one after the other only for each rollout, so that its page is resolved after it was sent. What
fails is tried again with growing pauses, for as long as it is owed; what is refused is answered to the core.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from service.dispatch.effects import Done, Effects, Later, Outcome, try_s
from service.dispatch.outcomes import Outcomes
from service.model.instruction import Lane
from service.ring.breaker import Breaker
from service.ring.door import Door, Told
from service.ring.ports import Bus, Clock, Gates, Mesh, Pager, Unavailable
from service.ring.seen import UNSEEN, About, Observer
from service.ring.stopping import Stopping
from service.ring.store import ANYWHERE, Owed, Postponed, Store, Where

logger = logging.getLogger(__name__)

AT_ONCE = {
    Lane.RETREAT: 64,
    Lane.WEIGHTS: 32,
    Lane.READINESS: 64,
    Lane.PREFLIGHT: 8,
    Lane.PAGES: 8,
    Lane.NOTES: 4,
    Lane.PUBLISH: 64,
}
"""Instructions of a lane under way at once, for each cluster where the lane belongs to one."""

OF_A_CLUSTER = frozenset({Lane.RETREAT, Lane.WEIGHTS, Lane.READINESS, Lane.PREFLIGHT})
"""Lanes that are worked cluster by cluster; the others lead to one place for all."""

LEASE_S = 30.0
"""How long an instruction is hidden from other replicas; every try is cut off well before it."""

GATE_LEASE_S = 630.0
"""The same for a look at a gate, one of which may take ten minutes."""

IDLE_S = 1.0
GATHER_S = 0.02
"""After one instruction is done the lane waits so long before it claims more, so that it claims several at once."""

FROZEN_POLL_S = 2.0


def lease_s(lane: Lane) -> float:
    """How long an instruction of this lane is hidden from other replicas."""
    return GATE_LEASE_S if lane is Lane.PREFLIGHT else LEASE_S


class Dispatcher:
    """Carries out instructions for ever. Safe to stop at any point: what was not settled is owed still."""

    def __init__(
        self,
        store: Store,
        door: Door,
        clock: Clock,
        *,
        meshes: Mapping[str, Mesh],
        gates: Gates,
        pager: Pager,
        bus: Bus,
        seen: Observer = UNSEEN,
        stopping: Stopping | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._clusters = frozenset(meshes)
        self._effects = Effects(clock, meshes=meshes, gates=gates, pager=pager, bus=bus)
        self._outcomes = Outcomes(door, clock)
        self._seen = seen
        self._stopping = stopping or Stopping()
        self._news: dict[Lane, list[asyncio.Event]] = {lane: [] for lane in Lane}
        self._under_way: dict[int, Lane] = {}

    def poke(self, lanes: frozenset[Lane]) -> None:
        """There is new work in these lanes."""
        for lane in lanes:
            for news in self._news[lane]:
                news.set()

    def lanes(self) -> Sequence[tuple[Lane, Where]]:
        """What ``run`` must be called with so that everything owed is worked on, whatever cluster it is for."""
        elsewhere = Where(but=self._clusters)
        places = [*(Where(only=cluster) for cluster in sorted(self._clusters)), elsewhere]
        return [(lane, where) for lane in Lane for where in (places if lane in OF_A_CLUSTER else [ANYWHERE])]

    async def run(self, lane: Lane, where: Where = ANYWHERE) -> None:
        """Carry out one lane's instructions until a stop is asked; then finish those that are under way."""
        news = asyncio.Event()
        self._news[lane].append(news)
        breaker = Breaker(self._clock, longest_pause_s=5.0)
        chains: set[asyncio.Task[None]] = set()
        try:
            while not self._stopping.asked:
                self._seen.turned(f"lane {lane} {where}")
                self._seen.left_alone(lane.value, str(where), breaker.open)
                news.clear()
                pause_s = IDLE_S
                try:
                    if await self._frozen(lane):
                        pause_s = FROZEN_POLL_S
                    else:
                        chains |= await self._start(lane, where, breaker, room=AT_ONCE[lane] - len(chains))
                except Unavailable as error:
                    logger.warning("lane %s waits: %s", lane, error, extra={"action": "lane_postponed", "lane": lane})
                chains = await self._until_room(chains, news, pause_s)
            if lane is Lane.PREFLIGHT:
                await self._given_back(chains)
            await asyncio.gather(*chains, return_exceptions=lane is Lane.PREFLIGHT)
        finally:
            self._news[lane].remove(news)
            for chain in chains:
                # Once: a second time would cut off how it lets go of the database.
                if not chain.cancelling():
                    chain.cancel()
            await asyncio.gather(*chains, return_exceptions=True)

    async def _given_back(self, chains: Collection[asyncio.Task[None]]) -> None:
        """Looks at gates take minutes and change nothing: a stop cuts them off and leaves them to others at once."""
        looks = [one for one, lane in self._under_way.items() if lane is Lane.PREFLIGHT]
        for chain in chains:
            chain.cancel()
        now = self._clock.now()
        if looks:
            await self._outcomes.postpone([Postponed(one, now, "cut off by a stop", 0) for one in looks])

    async def settled(self) -> None:
        """Return once every outcome that was brought home is written; to be awaited before the store is closed."""
        await self._outcomes.written()

    async def turn(self, lane: Lane, where: Where = ANYWHERE) -> int:
        """Try once what is owed in a lane now, to the end; how many rollouts it was for."""
        if await self._frozen(lane):
            return 0
        chains = await self._start(lane, where, Breaker(self._clock), room=AT_ONCE[lane])
        await asyncio.gather(*chains)
        return len(chains)

    async def _until_room(
        self, chains: set[asyncio.Task[None]], news: asyncio.Event, pause_s: float
    ) -> set[asyncio.Task[None]]:
        """Until something ended, there is news, or a postponed instruction may have come due; what is under way."""
        waits = {asyncio.create_task(one) for one in (news.wait(), self._clock.sleep(pause_s), self._stopping.wait())}
        try:
            await asyncio.wait({*chains, *waits}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if any(chain.done() for chain in chains):
            await self._clock.sleep(GATHER_S)
        for chain in chains:
            if chain.done():
                chain.result()  # a bug in carrying out must not be swallowed
        return {chain for chain in chains if not chain.done()}

    async def _frozen(self, lane: Lane) -> bool:
        """Whether the kill switch keeps this lane's instructions where they are."""
        return lane in (Lane.WEIGHTS, Lane.RETREAT) and (await self._store.kill_switch()).frozen

    async def _start(self, lane: Lane, where: Where, breaker: Breaker, *, room: int) -> set[asyncio.Task[None]]:
        """Claim what there is room for and begin it, one task for each rollout."""
        if room <= 0 or not breaker.admits():
            return set()
        now = self._clock.now()
        # While the breaker is open, one call tries the other side: never only those that would fail on any day.
        trying = breaker.open
        in_order = lane is not Lane.PREFLIGHT
        owed = await self._store.owed(
            lane,
            now,
            limit=1 if trying else room,
            lease_s=lease_s(lane),
            where=where,
            least_tried=trying,
            in_order=in_order,
        )
        chains: dict[str | int, list[Owed]] = {}
        for one in owed:
            # The gates of a rollout are nothing to one another: each is looked at side by side with the others.
            chains.setdefault(one.instruction.rollout if in_order else one.id, []).append(one)
        for key, chain in list(chains.items()):
            # A lease that ran out while the database was away: it is being carried out here all the same, and what
            # the rollout owes after it waits for it.
            if any(one.id in self._under_way for one in chain):
                del chains[key]
        return {
            asyncio.create_task(
                self._carry(chain, now + timedelta(seconds=lease_s(lane)), breaker), name=f"{lane} {rollout}"
            )
            for rollout, chain in chains.items()
        }

    async def _carry(self, chain: Sequence[Owed], leased_until: datetime, breaker: Breaker) -> None:
        """One rollout's instructions in their order. The first that has to wait makes the later ones wait with it."""
        self._under_way |= {one.id: one.instruction.lane for one in chain}
        try:
            for place, owed in enumerate(chain):
                if self._clock.now() + timedelta(seconds=try_s(owed.instruction.lane)) > leased_until or (
                    place and self._stopping.asked
                ):
                    return  # somebody else may have them by now; what they find owed, they carry out
                outcome = await self._try(owed)
                match outcome:
                    case Done(facts=facts):
                        breaker.worked()
                        await self._outcomes.settle(owed.id, [Told(owed.instruction.rollout, fact) for fact in facts])
                    case Later(pause_s=pause_s, why=why, failed=failed):
                        if failed:
                            breaker.failed(why)
                        else:
                            breaker.worked()
                        until = self._clock.now() + timedelta(seconds=pause_s)
                        later = [Postponed(one.id, until, "waits for an earlier one", 0) for one in chain[place + 1 :]]
                        await self._outcomes.postpone([Postponed(owed.id, until, why), *later])
                        return
        finally:
            for one in chain:
                self._under_way.pop(one.id, None)

    async def _try(self, owed: Owed) -> Outcome:
        """Carry out one instruction, seen by whoever measures and traces."""
        order = owed.instruction
        began_s = time.perf_counter()
        with self._seen.handling(order.type, About.order(order, owed.id)):
            outcome = await self._effects.carry_out(owed)
            match outcome:
                case Done(refused=refused):
                    said = "refused" if refused else "done"
                case Later(failed=failed):
                    said = "unavailable" if failed else "not_yet"
            logger.log(
                logging.DEBUG if said == "not_yet" else logging.INFO,
                "%s: %s",
                order.type,
                said,
                extra={"action": "tried", "tries": owed.attempts + 1}
                | ({"why": outcome.why} if isinstance(outcome, Later) else {}),
            )
        self._seen.tried(order.type, said, time.perf_counter() - began_s)
        return outcome
