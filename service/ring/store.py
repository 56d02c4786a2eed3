"""What the ring needs of a store: one transaction in, and the questions that the rooms ask.

Everything that one stimulus changes goes in by ``commit``, together with the event ids and the owed instructions that
it settles: there is no second way to write a rollout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from service.model.instruction import Instruction, Lane
from service.model.journal import JournalEntry
from service.model.names import Mode, RolloutId, ServiceKey
from service.model.rollout import Phase, RolloutState, WatchedRollout
from service.model.stimulus import WindowJudged
from service.ring.ports import PortError, Unavailable

LONGEST_HIDDEN_S = 600.0
"""No instruction is postponed and no window rests for longer.

Every replica compares with its own clock. What seems hidden for longer than this and a claim's lease was hidden by one
whose clock is far ahead; it is offered at once, or a replica with a clock of next year would hide it until then.
"""


class Conflict(PortError):
    """Someone else changed the rollout, started another one for the service, or was told of a newer event of it, since
    it was read. Read again."""


class Unreadable(Unavailable):
    """Of the running rollouts that were asked for, some cannot be read: newer replicas carry those on, or a person
    mends their rows. ``readable`` are the others."""

    def __init__(
        self,
        message: str,
        *,
        readable: Mapping[Any, RolloutState],
        newer: frozenset[Any] = frozenset(),
        damaged: frozenset[Any] = frozenset(),
    ) -> None:
        super().__init__(message)
        self.readable = readable
        self.newer = newer
        self.damaged = damaged


class Damaged(PortError):
    """What was asked needs a stored row that no release can read; waiting does not help."""


class TooManyRollbacks(PortError):
    """The commit would have begun more automatic rollbacks than the limit allows; nothing was written."""


@dataclass(frozen=True, slots=True)
class RollbackLimit:
    """Automatic rollbacks that may have begun since a moment, over all services and replicas."""

    at_most: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Where:
    """Rollouts of one cluster, or of every cluster but some; by default all. Lets a slow cluster wait alone."""

    only: str | None = None
    but: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """For names of tasks and logs."""
        return self.only or ("elsewhere" if self.but else "everywhere")


ANYWHERE = Where()


@dataclass(frozen=True, slots=True)
class ServiceHead:
    """The newest event known of a service, so that one that comes late changes nothing."""

    service: ServiceKey
    event_at: datetime
    event_id: str
    fence: int
    """The last fencing number of any of the service's rollouts."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one rollout's stimuli changed. ``state.revision`` is new; ``was_revision`` is what it was read with."""

    state: RolloutState
    was_revision: int | None
    """None: the rollout is new."""
    journal: tuple[JournalEntry, ...] = ()
    windows: tuple[tuple[int, WindowJudged], ...] = ()
    """(revision, stimulus) of windows, kept so that the journal can be replayed."""
    orders: tuple[Instruction, ...] = ()
    drops: frozenset[str] = frozenset()
    """Types of older owed instructions of this rollout that these orders replace (``set_weights`` and others)."""
    monitor: bytes | None = None
    """The sequential statistics' row, when it changed."""
    rest_until: datetime | None = None
    """The next window is not offered before this moment, at most ``LONGEST_HIDDEN_S`` away; None: once it is due."""

    @property
    def retreated_at(self) -> datetime | None:
        """When Serinus itself began to roll back, which the hourly limit counts; people's rollbacks do not count, nor
        those that are only told."""
        if self.state.mode is Mode.OBSERVE:
            return None
        mine = (row.at for row in self.journal if row.kind == "rolling back" and row.actor == "serinus")
        return next(mine, None)


@dataclass(frozen=True, slots=True)
class Due:
    """A rollout with a window to judge, leased to the caller."""

    state: RolloutState
    monitor: bytes


@dataclass(frozen=True, slots=True)
class Owed:
    """One instruction from the outbox, leased to the caller."""

    id: int
    instruction: Instruction
    attempts: int
    owed_since: datetime


@dataclass(frozen=True, slots=True)
class Postponed:
    """An instruction that is to be tried again later."""

    owed_id: int
    until: datetime
    """At most ``LONGEST_HIDDEN_S`` away."""
    error: str
    tries_n: int = 1
    """Tries to count; 0 where it only waits for another."""


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """Whether all weights are frozen, and who said so."""

    frozen: bool = False
    actor: str = ""
    reason: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RolloutFilter:
    """Which rollouts a list shows. Empty collections and texts mean any."""

    phases: Collection[Phase] = ()
    active: bool | None = None
    cluster: str = ""
    namespace: str = ""
    service: str = ""
    text: str = ""
    """A part of the service's name, the namespace or the version."""


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """One page of a list, newest start first; ``next_after`` continues it."""

    rollouts: tuple[RolloutState, ...]
    next_after: str | None
    counts: Mapping[Phase, int] = field(default_factory=dict)
    """Rollouts by phase over the whole store, whatever the filter; those in a phase that this release does not know are
    left out."""


class Store(Protocol):
    """Where everything is kept. Any method may raise Unavailable (locked, full, away); nothing is then half done."""

    async def commit(
        self,
        changes: Sequence[Change],
        *,
        seen: Sequence[tuple[str, str, datetime]] = (),
        heads: Sequence[ServiceHead] = (),
        settled: Mapping[int, datetime] = MappingProxyType({}),
        postponed: Sequence[Postponed] = (),
        limit: RollbackLimit | None = None,
        idle: Collection[ServiceKey] = (),
    ) -> None:
        """All of it in one transaction, or nothing. A judged window gives back its rollout's lease.

        seen : (source, id, when it was read) of events that were found unseen, each perhaps more than once.
        settled : ids of owed instructions that are done, and when they were.
        postponed : owed instructions whose tries are counted and messages kept; none is offered before its ``until``.
        limit : how many automatic rollbacks there may be; exact, whoever else commits at the same moment.
        idle : services that were found without a running rollout, for which that must hold still.
        Raises Conflict when a ``was_revision`` no longer holds, a service would get a second active rollout, an event
        was seen by now, a rollout would begin though a newer event of its service than its head in ``heads`` is known
        by now, or an idle service has a running rollout; and TooManyRollbacks.
        """

    async def unseen(self, events: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """Those of the (source, id) pairs that were never committed as seen."""

    async def heads(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, ServiceHead]:
        """The newest event of each service that has one."""

    async def active(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, RolloutState]:
        """The running rollout of each service that has one. Raises Unreadable, with those that can be read."""

    async def load(self, rollouts: Collection[RolloutId]) -> Mapping[RolloutId, RolloutState]:
        """The states of those that exist. Raises Unreadable, with those that can be read."""

    async def due(
        self, now: datetime, *, grace_s: float, limit: int, lease_s: float, where: Where = ANYWHERE
    ) -> Sequence[Due]:
        """Rollouts in a judged phase whose next window ended at least ``grace_s`` before ``now``, the most overdue
        first, hidden from other callers for ``lease_s``."""

    async def past_monitors(self, services: Collection[ServiceKey], *, last: int) -> Mapping[ServiceKey, list[bytes]]:
        """The statistics' rows of the ``last`` promoted rollouts of each service that has any, the newest first."""

    async def waking(self, now: datetime, *, limit: int) -> Sequence[RolloutId]:
        """Rollouts whose ``wake_at`` has come."""

    async def watched(
        self, *, limit: int, after: RolloutId | None = None, where: Where = ANYWHERE
    ) -> Sequence[WatchedRollout]:
        """Active rollouts in enforce or recommend mode whose weight is confirmed, for the watch on drift, by id."""

    async def owed(
        self,
        lane: Lane,
        now: datetime,
        *,
        limit: int,
        lease_s: float,
        where: Where = ANYWHERE,
        least_tried: bool = False,
        in_order: bool = True,
    ) -> Sequence[Owed]:
        """Instructions of a lane whose time has come, oldest first, hidden from others for ``lease_s``.

        An instruction is not offered while an older one of its lane and rollout is postponed or with somebody else.
        least_tried : of each rollout the oldest only, and the least tried of them first; for a call that is to show
            whether the other side works, which a few that always fail must not keep for themselves.
        in_order : False for instructions that are nothing to one another, which then do not wait for each other, and
            of which the least tried are offered first.
        """

    async def lease(self, name: str, holder: str, now: datetime, *, lease_s: float) -> bool:
        """Whether ``holder`` has the lease ``name`` until ``lease_s`` from now: for work that one replica does for
        all. Asking again renews it; another holder gets it once it has run out.

        One that seems to last for more than twice ``lease_s`` was taken by a clock that is ahead, and counts as run
        out; clocks that differ by less make nobody lose what he holds."""

    async def owed_summary(self) -> Mapping[Lane, tuple[int, datetime | None]]:
        """Per lane the number owed and since when the oldest is; lanes that this release does not know are left
        out."""

    async def overdue(self, before: datetime) -> tuple[int, datetime | None]:
        """How many windows that ended before then are not judged yet, and when the oldest of them ended."""

    async def rollbacks_since(self, moment: datetime) -> int:
        """Automatic rollbacks begun since then, over all services."""

    async def kill_switch(self) -> KillSwitch:
        """The switch as it stands."""

    async def set_kill_switch(self, switch: KillSwitch) -> None:
        """Set it; kept over restarts."""

    async def rollouts(self, which: RolloutFilter, *, after: str | None = None, limit: int = 50) -> RolloutPage:
        """One page of rollouts."""

    async def journal(self, rollout: RolloutId, *, limit: int = 1000) -> Sequence[JournalEntry]:
        """The rollout's rows, oldest first (the last ``limit``)."""

    async def windows(self, rollout: RolloutId, *, limit: int = 240) -> Sequence[WindowJudged]:
        """The last ``limit`` judged windows, oldest first."""

    async def history(self, rollout: RolloutId) -> Sequence[tuple[int, str]]:
        """(revision, canonical JSON) of every stimulus that changed the rollout, in order: what a replay needs."""

    async def check(self) -> None:
        """Raise Unavailable unless a read and a write work."""

    async def close(self) -> None:
        """Let go of everything."""
