"""A named lease that this replica tries to keep: for work that one replica does for all."""

from __future__ import annotations

from datetime import datetime, timedelta

from service.ring.ports import Clock
from service.ring.store import Store


class HeldLease:
    """Asks the store as seldom as it may. A replica that stood still for longer than the lease asks before it acts."""

    def __init__(self, store: Store, clock: Clock, name: str, holder: str, *, lease_s: float) -> None:
        self._store = store
        self._clock = clock
        self._name = name
        self._holder = holder
        self._lease_s = lease_s
        self._renew_at: datetime | None = None
        self._ask_at: datetime | None = None

    async def mine(self) -> bool:
        """Whether this replica may do the work now; raises Unavailable."""
        now = self._clock.now()
        if self._renew_at is not None and now < self._renew_at:
            return True
        if self._ask_at is not None and now < self._ask_at:
            return False
        mine = await self._store.lease(self._name, self._holder, now, lease_s=self._lease_s)
        self._renew_at = now + timedelta(seconds=self._lease_s / 2) if mine else None
        return mine

    async def let_go(self) -> None:
        """Give it up, and do not ask for it for its length: another replica may be able to do what this one cannot.
        Raises Unavailable; the lease then runs out by itself."""
        now = self._clock.now()
        held = self._renew_at is not None
        self._renew_at, self._ask_at = None, now + timedelta(seconds=self._lease_s)
        if held:
            await self._store.lease(self._name, self._holder, now, lease_s=0)
