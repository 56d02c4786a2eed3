"""Clockwork: what only time or somebody else's hand brings about, turned into facts for the door.

Two loops: rollouts that asked to be woken, and a watch on the weights that stand in the mesh.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from service.model.names import RolloutId
from service.model.rollout import RolloutState
from service.model.stimulus import DriftSeen, TimePassed
from service.ring.door import Door, Told
from service.ring.ports import Clock, Mesh, PortError, Unavailable
from service.ring.store import Store

logger = logging.getLogger(__name__)

PAGE = 200
"""Rollouts read at once."""

WAKE_EVERY_S = 1.0
LOOKS_AT_ONCE = 16
"""API reads under way at once, so that the watch never crowds out a write."""


class Clockwork:
    """Wakes rollouts and watches for drift. Both loops return only by cancellation."""

    def __init__(
        self, store: Store, door: Door, clock: Clock, meshes: Mapping[str, Mesh], *, watch_every_s: float = 15.0
    ) -> None:
        self._store = store
        self._door = door
        self._clock = clock
        self._meshes = meshes
        self._watch_every_s = watch_every_s

    async def wake(self) -> None:
        """Tell each rollout whose moment has come that time has passed."""
        while True:
            try:
                await self.wake_turn()
            except Unavailable as error:
                logger.warning("waking waits: %s", error, extra={"action": "wake_postponed"})
            await self._clock.sleep(WAKE_EVERY_S)

    async def wake_turn(self) -> None:
        """Wake everyone whose moment has come."""
        now = self._clock.now()
        due = await self._store.waking(now, limit=PAGE)
        await self._door.tell([Told(rid, TimePassed(id=f"{rid}/t{now.timestamp():.3f}", at=now)) for rid in due])

    async def watch(self) -> None:
        """Look at the weights of running rollouts, again and again."""
        while True:
            await self._clock.sleep(self._watch_every_s)
            try:
                await self.watch_turn()
            except Unavailable as error:
                logger.warning("the watch waits: %s", error, extra={"action": "watch_postponed"})

    async def watch_turn(self) -> None:
        """Look once at every running rollout's weights; tell the door of those that stand differently."""
        after: RolloutId | None = None
        gate = asyncio.Semaphore(LOOKS_AT_ONCE)
        while page := await self._store.watched(limit=PAGE, after=after):
            async with asyncio.TaskGroup() as group:
                looks = [group.create_task(self._look(state, gate)) for state in page]
            facts = [fact for look in looks if (fact := look.result()) is not None]
            await self._door.tell(facts)
            after = page[-1].id

    async def _look(self, state: RolloutState, gate: asyncio.Semaphore) -> Told | None:
        mesh = self._meshes.get(state.service.cluster)
        if mesh is None:
            return None
        try:
            async with gate:
                seen = await mesh.get_weights(state.place)
        except PortError as error:
            logger.info("weights not seen: %s", error, extra={"action": "watch_failed", "rollout": state.id})
            return None
        if seen.canary_percent == state.weight_asked and state.drift_since is None:
            return None
        now = self._clock.now()
        fact = DriftSeen(
            id=f"{state.id}/d{now.timestamp():.3f}",
            at=now,
            canary_percent=seen.canary_percent,
            detail=seen.detail[:1000],
        )
        return Told(state.id, fact)
