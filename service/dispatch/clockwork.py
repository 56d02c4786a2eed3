"""Clockwork: what only time or somebody else's hand brings about, turned into facts for the door.

Rollouts that asked to be woken, and, cluster by cluster, a watch on the weights that stand in the mesh. One replica
watches a cluster for all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

from service.model.names import RolloutId
from service.model.rollout import WatchedRollout
from service.model.stimulus import DriftSeen, TimePassed
from service.ring.door import Door, Told
from service.ring.halving import Halving
from service.ring.lease import HeldLease
from service.ring.ports import Clock, Mesh, PortError, Refused, Unavailable, WeightsSeen
from service.ring.seen import UNSEEN, Observer
from service.ring.store import Store, Where

logger = logging.getLogger(__name__)

PAGE = 500
"""Rollouts read at once."""

WAKE_EVERY_S = 1.0

WATCH_EVERY_S = 30.0
"""How often the weights that stand in a cluster are looked at; half of the usual hold-off for somebody else's."""


class Clockwork:
    """Wakes rollouts and watches for drift. The loops return only by cancellation."""

    def __init__(
        self,
        store: Store,
        door: Door,
        clock: Clock,
        meshes: Mapping[str, Mesh],
        *,
        replica: str = "",
        seen: Observer = UNSEEN,
    ) -> None:
        self._store = store
        self._door = door
        self._clock = clock
        self._meshes = meshes
        self._replica = replica
        self._seen = seen
        self._waking = Halving(clock, "wake")
        self._watching = Halving(clock, "watch")

    async def wake(self) -> None:
        """Tell each rollout whose moment has come that time has passed."""
        while True:
            self._seen.turned("wake")
            try:
                await self.wake_turn()
            except Unavailable as error:
                logger.warning("waking waits: %s", error, extra={"action": "wake_postponed"})
            await self._clock.sleep(WAKE_EVERY_S)

    async def wake_turn(self) -> None:
        """Wake everyone whose moment has come."""
        now = self._clock.now()
        due = await self._store.waking(now, limit=PAGE)

        async def tell(part: Sequence[RolloutId]) -> None:
            await self._door.tell([Told(rid, TimePassed(id=f"{rid}/t{now.timestamp():.3f}", at=now)) for rid in part])

        await self._waking.each(due, tell, rollout_of=lambda rid: rid)

    async def watch(self, cluster: str) -> None:
        """Look at the weights of a cluster's running rollouts, again and again."""
        lease = HeldLease(self._store, self._clock, f"watch {cluster}", self._replica, lease_s=2 * WATCH_EVERY_S)
        while True:
            self._seen.turned(f"watch {cluster}")
            await self._clock.sleep(WATCH_EVERY_S)
            try:
                if await lease.mine():
                    await self.watch_turn(cluster)
            except PortError as error:
                logger.warning("the watch waits: %s", error, extra={"action": "watch_postponed", "cluster": cluster})
                # Perhaps only this replica cannot see the cluster.
                with suppress(Unavailable):
                    await lease.let_go()

    async def watch_turn(self, cluster: str) -> None:
        """Look once at every running rollout's weights; tell the door of those that stand differently.

        Raises Refused when nothing at all may be looked at, and what the mesh and the store raise.
        """
        looked_n = 0
        unseen: list[str] = []

        async def look(part: Sequence[WatchedRollout]) -> None:
            nonlocal looked_n
            seen = await self._meshes[cluster].get_weights([state.place for state in part])
            facts = [self._fact(state, one) for state, one in zip(part, seen, strict=True)]
            await self._door.tell([fact for fact in facts if fact is not None])
            looked_n += len(part)
            unseen.extend(one.detail for one in seen if one.unseen)

        after: RolloutId | None = None
        while page := await self._store.watched(limit=PAGE, after=after, where=Where(only=cluster)):
            await self._watching.each(page, look, rollout_of=lambda state: state.id)
            after = page[-1].id
            self._seen.turned(f"watch {cluster}")
        if not unseen:
            return
        said = f"{len(unseen)} of {looked_n} routes of cluster {cluster} may not be read, such as: {unseen[0]}"
        if len(unseen) == looked_n:
            raise Refused(said)
        logger.warning("the watch is blind: %s", said, extra={"action": "watch_blind", "cluster": cluster})

    def _fact(self, state: WatchedRollout, seen: WeightsSeen) -> Told | None:
        if seen.unseen or (seen.canary_percent == state.weight_asked and state.drift_since is None):
            return None
        now = self._clock.now()
        fact = DriftSeen(
            id=f"{state.id}/d{now.timestamp():.3f}",
            at=now,
            canary_percent=seen.canary_percent,
            detail=seen.detail[:1000],
        )
        return Told(state.id, fact)
