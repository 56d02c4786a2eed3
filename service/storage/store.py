"""The store: every claim and every question, in SQL that both databases speak; ``commit`` writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.model.instruction import Lane
from service.model.journal import JournalEntry
from service.model.names import RolloutId, ServiceKey
from service.model.rollout import Phase, RolloutState, WatchedRollout
from service.model.stimulus import WindowJudged
from service.model.value import from_epoch_s
from service.ring.store import (
    ANYWHERE,
    LONGEST_HIDDEN_S,
    Change,
    Damaged,
    Due,
    KillSwitch,
    Owed,
    Postponed,
    RollbackLimit,
    RolloutFilter,
    RolloutPage,
    ServiceHead,
    Where,
)
from service.storage import tables as t
from service.storage.commit import Commit
from service.storage.database import Database, chunks, event_key, is_service, one_of, service_of, text
from service.storage.decoding import Decoder, orders
from service.storage.packing import NotPacked, unpack

CLAIM_LOCKS = {lane: 0x5E21_0100 + place for place, lane in enumerate(Lane)}
"""PostgreSQL's advisory locks for claiming instructions of a lane."""

ROWS_PAGE = 1000
"""Rows of one rollout's journal or windows in one question; a month of one-minute windows is 43,000."""

_READABLE = t.rollouts.c.format <= t.FORMAT
"""Rollouts that this release can carry on; those written in a newer format are left to the replicas that know it."""

_STATES = sa.select(t.rollouts.c.id, t.rollouts.c.state, t.rollouts.c.format)

_T = TypeVar("_T")


class SqlStore(Database):
    """Implements ``ring.store.Store``."""

    def __init__(self, engine: AsyncEngine, *, patience_s: float, lock: IO[str] | None = None) -> None:
        super().__init__(engine, patience_s=patience_s, lock=lock)
        self._decoder = Decoder()

    # --- writing ----------------------------------------------------------------------------------------------------

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
        """See ``Store.commit``."""
        async with self.writing("commit") as connection:
            await Commit(self, connection).write(
                changes, seen=seen, heads=heads, settled=settled, postponed=postponed, limit=limit, idle=idle
            )

    async def lease(self, name: str, holder: str, now: datetime, *, lease_s: float) -> bool:
        """See ``Store.lease``."""
        until = t.leases.c.until
        insert = self.insert_into(t.leases).values(name=name, holder=holder, until=now.timestamp() + lease_s)
        take = insert.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": insert.excluded.holder, "until": insert.excluded.until},
            where=sa.or_(t.leases.c.holder == holder, ~_believed(until, now, 2 * lease_s)),
        ).returning(t.leases.c.holder)
        async with self.writing(f"take the lease {name}") as connection:
            return (await connection.execute(take)).first() is not None

    async def set_kill_switch(self, switch: KillSwitch) -> None:
        """See ``Store.set_kill_switch``."""
        values = {
            "frozen": switch.frozen,
            "actor": text(switch.actor),
            "reason": text(switch.reason),
            "at": switch.at.timestamp() if switch.at else 0.0,
        }
        insert = self.insert_into(t.switches).values(name="kill", **values)
        async with self.writing("set the kill switch") as connection:
            await connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))

    # --- what is due ------------------------------------------------------------------------------------------------

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
        """See ``Store.owed``."""
        o, older = t.outbox.c, t.outbox.alias("older")
        hidden = _believed(o.not_before, now, LONGEST_HIDDEN_S + lease_s)
        waits = (
            sa.select(older.c.id)
            .where(
                older.c.rollout == o.rollout,
                # Not the bare column: SQLite would look through everything older of the lane, for each instruction,
                # instead of through the few of the rollout.
                older.c.lane.concat("") == o.lane,
                older.c.settled_at.is_(None),
                older.c.id < o.id,
                sa.true() if least_tried else _believed(older.c.not_before, now, LONGEST_HIDDEN_S + lease_s),
            )
            .exists()
        )
        query = (
            sa.select(t.outbox)
            .where(o.lane == lane.value, o.settled_at.is_(None), ~hidden)
            .order_by(*([o.attempts] if least_tried or not in_order else []), o.id)
            .limit(limit)
        )
        # An order's rollout may have been written in a newer format since; its outcome could not be told here.
        theirs = sa.select(t.rollouts.c.id).where(t.rollouts.c.id == o.rollout, _READABLE, *_in(where))
        query = query.where(theirs.exists(), ~waits if in_order else sa.true())
        what = "read what is owed"
        if not await self.read(what, query.limit(1)):
            return []
        async with self.writing(what) as connection:
            if not self.one_writer:
                # Two claims at the same moment would not see each other's, and part a rollout's instructions.
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CLAIM_LOCKS[lane])))
            rows = (await connection.execute(query.with_for_update(skip_locked=True, of=t.outbox))).all()
            for ids in chunks([row.id for row in rows]):
                await connection.execute(
                    t.outbox.update().where(o.id.in_(ids)).values(not_before=now.timestamp() + lease_s)
                )
            owed, damaged = orders(rows)
            later = now + timedelta(seconds=LONGEST_HIDDEN_S)
            await Commit(self, connection).postpone(
                [Postponed(one, later, "its stored body is damaged") for one in damaged]
            )
        return owed

    async def due(
        self, now: datetime, *, grace_s: float, limit: int, lease_s: float, where: Where = ANYWHERE
    ) -> Sequence[Due]:
        """See ``Store.due``."""
        r = t.rollouts.c
        query = (
            _STATES.add_columns(r.monitor)
            .where(_READABLE, r.window_due_at <= now.timestamp() - grace_s, *_in(where))
            .where(~_believed(r.window_not_before, now, LONGEST_HIDDEN_S + lease_s))
            .order_by(r.window_due_at)
            .limit(limit)
        )
        # Nothing due is the usual case, and it must not queue behind a writer.
        if not await self.read("read due windows", query.limit(1)):
            return []
        async with self.writing("claim due windows") as connection:
            rows = (await connection.execute(query.with_for_update(skip_locked=True))).all()
            for ids in chunks([row.id for row in rows]):
                await connection.execute(
                    t.rollouts.update().where(r.id.in_(ids)).values(window_not_before=now.timestamp() + lease_s)
                )
        return [Due(state, bytes(row.monitor)) async for state, row in self._decoder.states(rows) if state is not None]

    async def past_monitors(self, services: Collection[ServiceKey], *, last: int) -> Mapping[ServiceKey, list[bytes]]:
        """See ``Store.past_monitors``."""
        r = t.rollouts.c
        out: dict[ServiceKey, list[bytes]] = {}
        for keys in chunks(sorted(services, key=str)):
            place = sa.func.row_number().over(
                partition_by=(r.cluster, r.namespace, r.service), order_by=(r.started_at.desc(), r.id.desc())
            )
            newest = (
                sa.select(r.cluster, r.namespace, r.service, r.monitor, place.label("place"))
                .where(r.phase == Phase.PROMOTED.value, is_service(t.rollouts, keys))
                .subquery()
            )
            query = sa.select(newest).where(newest.c.place <= last).order_by(newest.c.place)
            for row in await self.read("read past rollouts", query):
                out.setdefault(service_of(row), []).append(bytes(row.monitor))
        return out

    async def waking(self, now: datetime, *, limit: int) -> Sequence[RolloutId]:
        """See ``Store.waking``."""
        r = t.rollouts.c
        query = sa.select(r.id).where(_READABLE, r.wake_at <= now.timestamp()).order_by(r.wake_at).limit(limit)
        return [RolloutId(row.id) for row in await self.read("read who wakes", query)]

    async def watched(
        self, *, limit: int, after: RolloutId | None = None, where: Where = ANYWHERE
    ) -> Sequence[WatchedRollout]:
        """See ``Store.watched``."""
        query = _STATES.where(t.rollouts.c.watched, _READABLE, *_in(where)).order_by(t.rollouts.c.id).limit(limit)
        if after is not None:
            query = query.where(t.rollouts.c.id > after)
        rows = await self.read("read whom to watch", query)
        return [state for row in rows if (state := self._decoder.decoded(row, WatchedRollout)) is not None]

    # --- questions --------------------------------------------------------------------------------------------------

    async def unseen(self, events: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """See ``Store.unseen``."""
        keys = {event: event_key(*event) for event in events}
        known: set[tuple[str, str]] = set()
        for pairs in chunks(sorted(set(keys.values()))):
            query = sa.select(t.seen_events.c.source, t.seen_events.c.id).where(
                one_of((t.seen_events.c.source, t.seen_events.c.id), pairs)
            )
            known |= {(row.source, row.id) for row in await self.read("look up events", query)}
        return frozenset(event for event, key in keys.items() if key not in known)

    async def heads(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, ServiceHead]:
        """See ``Store.heads``."""
        out: dict[ServiceKey, ServiceHead] = {}
        for keys in chunks(sorted(services, key=str)):
            query = sa.select(t.heads).where(is_service(t.heads, keys))
            for row in await self.read("look up services", query):
                key = service_of(row)
                out[key] = ServiceHead(key, from_epoch_s(row.event_at), row.event_id, row.fence)
        return out

    async def active(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, RolloutState]:
        """See ``Store.active``."""
        r = t.rollouts.c
        rows: list[Any] = []
        for keys in chunks(sorted(services, key=str)):
            query = _STATES.add_columns(r.cluster, r.namespace, r.service).where(r.active, is_service(t.rollouts, keys))
            rows += await self.read("look up running rollouts", query)
        return await self._decoder.by_key(rows, service_of)

    async def load(self, rollouts: Collection[RolloutId]) -> Mapping[RolloutId, RolloutState]:
        """See ``Store.load``."""
        rows: list[Any] = []
        for ids in chunks(sorted(rollouts)):
            rows += await self.read("load rollouts", _STATES.where(t.rollouts.c.id.in_(ids)))
        return await self._decoder.by_key(rows, lambda row: RolloutId(row.id))

    async def owed_summary(self) -> Mapping[Lane, tuple[int, datetime | None]]:
        """See ``Store.owed_summary``."""
        query = (
            sa.select(t.outbox.c.lane, sa.func.count(), sa.func.min(t.outbox.c.owed_since))
            .where(t.outbox.c.settled_at.is_(None))
            .group_by(t.outbox.c.lane)
        )
        found = {
            self._decoder.word(lane, Lane, "the lane"): (n, from_epoch_s(since))
            for lane, n, since in await self.read("count what is owed", query)
        }
        return {lane: found.get(lane, (0, None)) for lane in Lane}

    async def overdue(self, before: datetime) -> tuple[int, datetime | None]:
        """See ``Store.overdue``."""
        due_at = t.rollouts.c.window_due_at
        counts: list[Any] = [sa.func.count(), sa.func.min(due_at)]
        query = sa.select(*counts).where(due_at <= before.timestamp())
        n, oldest = (await self.read("count overdue windows", query))[0]
        return n, None if oldest is None else from_epoch_s(oldest)

    async def rollbacks_since(self, moment: datetime) -> int:
        """See ``Store.rollbacks_since``."""
        query = sa.select(sa.func.count()).where(t.rollouts.c.retreated_at >= moment.timestamp())
        return int((await self.read("count rollbacks", query))[0][0])

    async def kill_switch(self) -> KillSwitch:
        """See ``Store.kill_switch``."""
        for row in await self.read("read the kill switch", sa.select(t.switches)):
            return KillSwitch(row.frozen, row.actor, row.reason, from_epoch_s(row.at) if row.at else None)
        return KillSwitch()

    async def rollouts(self, which: RolloutFilter, *, after: str | None = None, limit: int = 50) -> RolloutPage:
        """See ``Store.rollouts``."""
        r = t.rollouts.c
        query = _STATES.add_columns(r.started_at).where(_READABLE).order_by(r.started_at.desc(), r.id.desc())
        for column, wanted in ((r.cluster, which.cluster), (r.namespace, which.namespace), (r.service, which.service)):
            if wanted:
                query = query.where(column == wanted)
        if which.phases:
            query = query.where(r.phase.in_([phase.value for phase in which.phases]))
        if which.active is not None:
            query = query.where(r.active == which.active)
        if which.text:
            query = query.where(
                sa.or_(*(c.contains(which.text, autoescape=True) for c in (r.service, r.namespace, r.version)))
            )
        cursor = _cursor(after)
        if cursor is not None:
            at, rollout = cursor
            query = query.where(sa.or_(r.started_at < at, sa.and_(r.started_at == at, r.id < rollout)))
        rows = await self.read("list rollouts", query.limit(limit + 1))
        states = [state async for state, _ in self._decoder.states(rows[:limit]) if state is not None]
        more = len(rows) > limit
        next_after = f"{rows[limit - 1].started_at!r}~{rows[limit - 1].id}" if more else None
        counted = {
            self._decoder.word(phase, Phase, "the phase"): n
            for phase, n in await self.read("count rollouts", sa.select(r.phase, sa.func.count()).group_by(r.phase))
        }
        counts = {phase: n for phase, n in counted.items() if phase is not None}
        return RolloutPage(tuple(states), next_after, counts)

    async def journal(self, rollout: RolloutId, *, limit: int = 1000) -> Sequence[JournalEntry]:
        """See ``Store.journal``."""
        query = sa.select(t.journal.c.body).where(t.journal.c.rollout == rollout).order_by(t.journal.c.n.desc())
        rows = await self.read("read the journal", query.limit(limit))
        async with self._reach("read the journal"):
            return [JournalEntry.from_json(row.body) for row in reversed(rows)]

    async def windows(self, rollout: RolloutId, *, limit: int = 240) -> Sequence[WindowJudged]:
        """See ``Store.windows``."""
        query = sa.select(t.windows).where(t.windows.c.rollout == rollout).order_by(t.windows.c.n.desc())
        rows = await self.read("read windows", query.limit(limit))
        async with self._reach("read windows"):
            return [WindowJudged.from_json(_body(row)) for row in reversed(rows)]

    async def history(self, rollout: RolloutId) -> Sequence[tuple[int, str]]:
        """See ``Store.history``."""
        return [one async for one in self.stimuli(rollout)]

    async def stimuli(self, rollout: RolloutId) -> AsyncIterator[tuple[int, str]]:
        """``history``, one by one: neither a question nor what is held in memory grows with the rollout's length."""
        what = "read the history"
        told = self.pages(what, t.journal, rollout, lambda row: (row.revision, str(row.stimulus)))
        judged = self.pages(what, t.windows, rollout, lambda row: (row.revision, _body(row)))
        # Both go up in revisions. A window that left a journal row as well is taken from the windows.
        row, window = await anext(told, None), await anext(judged, None)
        last: tuple[int, str] | None = None
        while row is not None or window is not None:
            if window is None or (row is not None and row[0] <= window[0]):
                assert row is not None
                one, row = row, await anext(told, None)
            else:
                one, window = window, await anext(judged, None)
            if last is not None and last[0] != one[0]:
                yield last
            last = one
        if last is not None:
            yield last

    async def pages(
        self, what: str, table: sa.Table, rollout: RolloutId, read: Callable[[Any], _T]
    ) -> AsyncIterator[_T]:
        """A rollout's rows of the journal or the windows, by ``n`` and a page at a time. ``read`` turns a row into what
        is wanted of it, in a thread. Raises Damaged where it cannot, beside Unavailable."""
        after = 0
        query = sa.select(table).where(table.c.rollout == rollout).order_by(table.c.n).limit(ROWS_PAGE)
        while rows := await self.read(what, query.where(table.c.n > after)):
            after = rows[-1].n
            async with self._reach(what):
                try:
                    wanted = await asyncio.to_thread(list, map(read, rows))
                except (ValidationError, NotPacked) as error:
                    raise Damaged(
                        f"cannot {what} of rollout {rollout}: one of the rows {rows[0].n} to {after} of {table.name} "
                        "is damaged, or a newer release wrote it; restore it from a backup"
                    ) from error
            for one in wanted:
                yield one
            if len(rows) < ROWS_PAGE:
                return

    async def check(self) -> None:
        """See ``Store.check``."""
        async with self.writing("reach the database") as connection:
            await connection.execute(t.switches.update().where(t.switches.c.name == "").values(reason=""))


def _believed(until: sa.ColumnElement[float], now: datetime, longest_s: float) -> sa.ColumnElement[bool]:
    """Whether something is hidden until a moment; one too far away was set by a clock that is ahead."""
    now_s = now.timestamp()
    return (until > now_s) & (until <= now_s + longest_s)


def _body(window: Any) -> str:
    """A window's JSON; rows from before revision 0004 hold it as it is."""
    return window.body if window.packed is None else unpack(bytes(window.packed))


def _cursor(after: str | None) -> tuple[float, str] | None:
    if not after:
        return None
    at, _, rollout = after.partition("~")
    try:
        return float(at), rollout
    except ValueError:
        return None


def _in(where: Where) -> list[sa.ColumnElement[bool]]:
    # Not the bare column: SQLite would then go through the index of all rollouts that the cluster ever had, instead of
    # the one of those that are due.
    cluster = t.rollouts.c.cluster.concat("")
    clauses = [] if where.only is None else [cluster == where.only]
    return [*clauses, cluster.not_in(sorted(where.but))] if where.but else clauses
