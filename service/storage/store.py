"""The store: every question and the one way to write, in SQL that both databases speak.

The number of statements of a commit does not grow with the number of rollouts in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from service.model.instruction import INSTRUCTION, Lane
from service.model.journal import JournalEntry
from service.model.names import Mode, RolloutId, ServiceKey
from service.model.rollout import Phase, RolloutState, WatchedRollout
from service.model.stimulus import WindowJudged
from service.model.value import from_epoch_s
from service.ring.store import (
    ANYWHERE,
    LONGEST_HIDDEN_S,
    Change,
    Conflict,
    Due,
    KillSwitch,
    Owed,
    Postponed,
    RollbackLimit,
    RolloutFilter,
    RolloutPage,
    ServiceHead,
    TooManyRollbacks,
    Unreadable,
    Where,
)
from service.storage import tables as t
from service.storage.errors import reaching
from service.storage.packing import pack, unpack

CHUNK = 500
"""Keys in one IN (...) list; SQLite allows 32,766 variables, PostgreSQL plans long lists badly."""

KEY_BYTES = 1024
"""A longer source or id of an event is kept as its digest."""

ROLLBACKS_LOCK = 0x5E21_0001
"""PostgreSQL's advisory lock for counting rollbacks against the hourly limit."""

CLAIM_LOCKS = {lane: 0x5E21_0100 + place for place, lane in enumerate(Lane)}
"""PostgreSQL's advisory locks for claiming instructions of a lane."""

ROWS_PAGE = 1000
"""Rows of one rollout's journal or windows in one question; a month of one-minute windows is 43,000."""

YIELD_EVERY = 50
"""States decoded before other tasks get a turn; decoding one takes about 0.1 ms."""

_READABLE = t.rollouts.c.format <= t.FORMAT
"""Rollouts that this release can carry on; those written in a newer format are left to the replicas that know it."""

_STATES = sa.select(t.rollouts.c.id, t.rollouts.c.state, t.rollouts.c.format)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_K = TypeVar("_K", ServiceKey, RolloutId)
_S = TypeVar("_S", RolloutState, WatchedRollout)


class SqlStore:
    """Implements ``ring.store.Store``."""

    def __init__(self, engine: AsyncEngine, *, patience_s: float, lock: IO[str] | None = None) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._lock_file = lock
        self._one_writer = engine.dialect.name == "sqlite"
        # SQLite has one writer. Waiting here is fair and ends; waiting on its lock polls and may time out.
        self._writing = asyncio.Lock()
        self._told_of: set[str] = set()

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
    ) -> None:
        """See ``Store.commit``."""
        async with self._write("commit") as connection:
            await self._check_revisions(connection, changes)
            await self._check_limit(connection, changes, limit)
            await self._update(connection, [c for c in changes if c.was_revision is not None])
            await self._insert(connection, [c for c in changes if c.was_revision is None])
            await self._record(connection, changes)
            await self._lock_owed(connection, changes, [*settled, *(one.owed_id for one in postponed)])
            await self._owe(connection, changes)
            await self._settle(connection, settled)
            await self._postpone(connection, postponed)
            await self._heads_and_seen(connection, heads, seen)

    def _reach(self, what: str) -> AbstractAsyncContextManager[None]:
        return reaching(what, self._patience_s)

    @asynccontextmanager
    async def _write(self, what: str) -> AsyncIterator[AsyncConnection]:
        one_at_a_time = self._writing if self._one_writer else nullcontext()
        async with self._reach(what), one_at_a_time, self._engine.begin() as connection:
            yield connection

    async def _check_revisions(self, connection: AsyncConnection, changes: Sequence[Change]) -> None:
        wanted = {c.state.id: c.was_revision for c in changes if c.was_revision is not None}
        found: dict[str, int] = {}
        for ids in _chunks(sorted(wanted)):
            query = sa.select(t.rollouts.c.id, t.rollouts.c.revision).where(t.rollouts.c.id.in_(ids)).order_by("id")
            rows = await connection.execute(query if self._one_writer else query.with_for_update())
            found.update({row.id: row.revision for row in rows})
        for rollout, revision in wanted.items():
            if found.get(rollout) != revision:
                raise Conflict(f"rollout {rollout} was read at revision {revision}, now it is {found.get(rollout)}")

    async def _check_limit(
        self, connection: AsyncConnection, changes: Sequence[Change], limit: RollbackLimit | None
    ) -> None:
        begun_n = sum(change.retreated_at is not None for change in changes)
        if limit is None or not begun_n:
            return
        if not self._one_writer:
            # Two commits at the same moment would both see the other's rollbacks not yet counted.
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ROLLBACKS_LOCK)))
        query = sa.select(sa.func.count()).where(t.rollouts.c.retreated_at >= limit.since.timestamp())
        used = int((await connection.execute(query)).scalar_one())
        if used + begun_n > limit.at_most:
            raise TooManyRollbacks(f"{begun_n} more automatic rollbacks after {used}; at most {limit.at_most} are set")

    async def _update(self, connection: AsyncConnection, changes: Sequence[Change]) -> None:
        rows = [_columns(c) | _of_window(c) for c in changes]
        if not rows:
            return
        names = [name for name in rows[0] if name not in ("id", "started_at")]
        values: dict[str, Any] = {name: sa.bindparam(f"new_{name}", type_=t.rollouts.c[name].type) for name in names}
        # The first retreat counts; later changes of the rollout must not forget it.
        values["retreated_at"] = sa.func.coalesce(t.rollouts.c.retreated_at, values["retreated_at"])
        for name in ("monitor", "window_not_before"):
            values[name] = sa.func.coalesce(values[name], t.rollouts.c[name])
        statement = t.rollouts.update().where(t.rollouts.c.id == sa.bindparam("key")).values(values)
        await connection.execute(statement, [{"key": r["id"], **{f"new_{n}": r[n] for n in names}} for r in rows])

    async def _insert(self, connection: AsyncConnection, changes: Sequence[Change]) -> None:
        # In one order everywhere: two commits that start rollouts of the same services must not wait for each other.
        in_order = sorted(changes, key=lambda c: str(c.state.service))
        rows = [_columns(c) | {"monitor": c.monitor or b""} for c in in_order]
        if rows:
            await connection.execute(t.rollouts.insert(), rows)

    async def _record(self, connection: AsyncConnection, changes: Sequence[Change]) -> None:
        entries = [
            {"rollout": e.rollout, "n": e.n, "revision": e.revision, "body": e.to_json(), "stimulus": e.stimulus}
            for c in changes
            for e in c.journal
        ]
        judged = [
            {"rollout": c.state.id, "n": w.window, "revision": revision, "body": "", "packed": pack(w.to_json())}
            for c in changes
            for revision, w in c.windows
        ]
        if entries:
            await connection.execute(t.journal.insert(), entries)
        if judged:
            await connection.execute(t.windows.insert(), judged)

    async def _lock_owed(self, connection: AsyncConnection, changes: Sequence[Change], ids: Sequence[int]) -> None:
        """Take every instruction that the commit touches, in one order: who drops some by their rollout and who
        postpones the same by their ids would wait for each other."""
        rollouts = [c.state.id for c in changes if c.drops]
        if self._one_writer or not (rollouts or ids):
            return
        o = t.outbox.c
        mine = o.id == sa.any_(sa.literal(list(ids), postgresql.ARRAY(sa.BigInteger)))
        theirs = (o.rollout == sa.any_(sa.literal(rollouts, postgresql.ARRAY(sa.String)))) & o.settled_at.is_(None)
        await connection.execute(sa.select(o.id).where(mine | theirs).order_by(o.id).with_for_update())

    async def _owe(self, connection: AsyncConnection, changes: Sequence[Change]) -> None:
        replaced = [
            {"of": c.state.id, "kind": kind, "now": c.state.phase_since.timestamp()}
            for c in sorted(changes, key=lambda c: c.state.id)
            for kind in sorted(c.drops)
        ]
        if replaced:
            await connection.execute(
                t.outbox.update()
                .where(
                    t.outbox.c.rollout == sa.bindparam("of"),
                    t.outbox.c.type == sa.bindparam("kind"),
                    t.outbox.c.settled_at.is_(None),
                )
                .values(settled_at=sa.bindparam("now"), last_error="replaced by a newer decision"),
                replaced,
            )
        orders = [
            {
                "rollout": order.rollout,
                "lane": order.lane.value,
                "type": order.type,
                "body": order.to_json(),
                "owed_since": order.at.timestamp(),
                "not_before": 0.0,
                "attempts": 0,
                "last_error": "",
            }
            for c in changes
            for order in c.orders
        ]
        if orders:
            await connection.execute(t.outbox.insert(), orders)

    async def _settle(self, connection: AsyncConnection, settled: Mapping[int, datetime]) -> None:
        if settled:
            await connection.execute(
                t.outbox.update()
                .where(t.outbox.c.id == sa.bindparam("key"))
                .values(settled_at=sa.bindparam("at"), last_error=""),
                [{"key": key, "at": at.timestamp()} for key, at in settled.items()],
            )

    async def _heads_and_seen(
        self,
        connection: AsyncConnection,
        heads: Sequence[ServiceHead],
        seen: Sequence[tuple[str, str, datetime]],
    ) -> None:
        if heads:
            insert: Any = self._insert_into(t.heads)
            # Another replica may have been told of a newer event since these heads were read.
            new, known = insert.excluded, t.heads.c
            newer = {
                name: sa.case((new[by] >= known[by], new[name]), else_=known[name])
                for name, by in (("event_at", "event_at"), ("event_id", "event_at"), ("fence", "fence"))
            }
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["cluster", "namespace", "service"], set_=newer),
                [
                    {
                        "cluster": h.service.cluster,
                        "namespace": h.service.namespace,
                        "service": h.service.name,
                        "event_at": h.event_at.timestamp(),
                        "event_id": _short(h.event_id),
                        "fence": h.fence,
                    }
                    for h in sorted(heads, key=lambda h: str(h.service))
                ],
            )
        if seen:
            rows = [
                {"source": source, "id": event_id, "at": at.timestamp()}
                for (source, event_id), at in sorted(
                    (_event_key(source, event_id), at) for source, event_id, at in seen
                )
            ]
            await connection.execute(self._insert_into(t.seen_events).on_conflict_do_nothing(), rows)

    def _insert_into(self, table: sa.Table) -> Any:
        return (sqlite if self._one_writer else postgresql).insert(table)

    async def _postpone(self, connection: AsyncConnection, postponed: Sequence[Postponed]) -> None:
        if not postponed:
            return
        statement = (
            t.outbox.update()
            .where(t.outbox.c.id == sa.bindparam("key"))
            .values(
                not_before=sa.bindparam("until"),
                attempts=t.outbox.c.attempts + sa.bindparam("tries_n"),
                last_error=sa.bindparam("error"),
            )
        )
        rows = [
            {"key": one.owed_id, "until": one.until.timestamp(), "error": _text(one.error), "tries_n": one.tries_n}
            for one in postponed
        ]
        await connection.execute(statement, rows)

    async def lease(self, name: str, holder: str, now: datetime, *, lease_s: float) -> bool:
        """See ``Store.lease``."""
        until = t.leases.c.until
        insert = self._insert_into(t.leases).values(name=name, holder=holder, until=now.timestamp() + lease_s)
        take = insert.on_conflict_do_update(
            index_elements=["name"],
            set_={"holder": insert.excluded.holder, "until": insert.excluded.until},
            where=sa.or_(t.leases.c.holder == holder, ~_believed(until, now, 2 * lease_s)),
        ).returning(t.leases.c.holder)
        async with self._write(f"take the lease {name}") as connection:
            return (await connection.execute(take)).first() is not None

    async def set_kill_switch(self, switch: KillSwitch) -> None:
        """See ``Store.set_kill_switch``."""
        values = {
            "frozen": switch.frozen,
            "actor": _text(switch.actor),
            "reason": _text(switch.reason),
            "at": switch.at.timestamp() if switch.at else 0.0,
        }
        insert = self._insert_into(t.switches).values(name="kill", **values)
        async with self._write("set the kill switch") as connection:
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
            .order_by(*([o.attempts] if least_tried else []), o.id)
            .limit(limit)
        )
        # An order's rollout may have been written in a newer format since; its outcome could not be told here.
        theirs = sa.select(t.rollouts.c.id).where(t.rollouts.c.id == o.rollout, _READABLE, *_in(where))
        query = query.where(theirs.exists(), ~waits)
        what = "read what is owed"
        if not await self.read(what, query.limit(1)):
            return []
        async with self._write(what) as connection:
            if not self._one_writer:
                # Two claims at the same moment would not see each other's, and part a rollout's instructions.
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(CLAIM_LOCKS[lane])))
            rows = (await connection.execute(query.with_for_update(skip_locked=True, of=t.outbox))).all()
            for ids in _chunks([row.id for row in rows]):
                await connection.execute(
                    t.outbox.update().where(o.id.in_(ids)).values(not_before=now.timestamp() + lease_s)
                )
            owed, damaged = _orders(rows)
            later = now + timedelta(seconds=LONGEST_HIDDEN_S)
            await self._postpone(connection, [Postponed(one, later, "its stored body is damaged") for one in damaged])
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
        async with self._write("claim due windows") as connection:
            rows = (await connection.execute(query.with_for_update(skip_locked=True))).all()
            for ids in _chunks([row.id for row in rows]):
                await connection.execute(
                    t.rollouts.update().where(r.id.in_(ids)).values(window_not_before=now.timestamp() + lease_s)
                )
        return [Due(state, bytes(row.monitor)) async for state, row in self._states(rows) if state is not None]

    async def past_monitors(self, services: Collection[ServiceKey], *, last: int) -> Mapping[ServiceKey, list[bytes]]:
        """See ``Store.past_monitors``."""
        r = t.rollouts.c
        out: dict[ServiceKey, list[bytes]] = {}
        for keys in _chunks(sorted(services, key=str)):
            place = sa.func.row_number().over(
                partition_by=(r.cluster, r.namespace, r.service), order_by=(r.started_at.desc(), r.id.desc())
            )
            newest = (
                sa.select(r.cluster, r.namespace, r.service, r.monitor, place.label("place"))
                .where(r.phase == Phase.PROMOTED.value, _is_service(t.rollouts, keys))
                .subquery()
            )
            query = sa.select(newest).where(newest.c.place <= last).order_by(newest.c.place)
            for row in await self.read("read past rollouts", query):
                out.setdefault(_service_of(row), []).append(bytes(row.monitor))
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
        return [state for row in rows if (state := self._decoded(row, WatchedRollout)) is not None]

    # --- questions --------------------------------------------------------------------------------------------------

    async def unseen(self, events: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        """See ``Store.unseen``."""
        keys = {event: _event_key(*event) for event in events}
        known: set[tuple[str, str]] = set()
        for pairs in _chunks(sorted(set(keys.values()))):
            query = sa.select(t.seen_events.c.source, t.seen_events.c.id).where(
                _is_one_of((t.seen_events.c.source, t.seen_events.c.id), pairs)
            )
            known |= {(row.source, row.id) for row in await self.read("look up events", query)}
        return frozenset(event for event, key in keys.items() if key not in known)

    async def heads(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, ServiceHead]:
        """See ``Store.heads``."""
        out: dict[ServiceKey, ServiceHead] = {}
        for keys in _chunks(sorted(services, key=str)):
            query = sa.select(t.heads).where(_is_service(t.heads, keys))
            for row in await self.read("look up services", query):
                key = _service_of(row)
                out[key] = ServiceHead(key, from_epoch_s(row.event_at), row.event_id, row.fence)
        return out

    async def active(self, services: Collection[ServiceKey]) -> Mapping[ServiceKey, RolloutState]:
        """See ``Store.active``."""
        r = t.rollouts.c
        rows: list[Any] = []
        for keys in _chunks(sorted(services, key=str)):
            query = _STATES.add_columns(r.cluster, r.namespace, r.service).where(
                r.active, _is_service(t.rollouts, keys)
            )
            rows += await self.read("look up running rollouts", query)
        return await self._by_key(rows, _service_of)

    async def load(self, rollouts: Collection[RolloutId]) -> Mapping[RolloutId, RolloutState]:
        """See ``Store.load``."""
        rows: list[Any] = []
        for ids in _chunks(sorted(rollouts)):
            rows += await self.read("load rollouts", _STATES.where(t.rollouts.c.id.in_(ids)))
        return await self._by_key(rows, lambda row: RolloutId(row.id))

    async def owed_summary(self) -> Mapping[Lane, tuple[int, datetime | None]]:
        """See ``Store.owed_summary``."""
        query = (
            sa.select(t.outbox.c.lane, sa.func.count(), sa.func.min(t.outbox.c.owed_since))
            .where(t.outbox.c.settled_at.is_(None))
            .group_by(t.outbox.c.lane)
        )
        found = {
            Lane(lane): (n, from_epoch_s(since)) for lane, n, since in await self.read("count what is owed", query)
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
        states = [state async for state, _ in self._states(rows[:limit]) if state is not None]
        more = len(rows) > limit
        next_after = f"{rows[limit - 1].started_at!r}~{rows[limit - 1].id}" if more else None
        counted = await self.read("count rollouts", sa.select(r.phase, sa.func.count()).group_by(r.phase))
        return RolloutPage(tuple(states), next_after, {Phase(phase): n for phase, n in counted})

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
        is wanted of it, in a thread."""
        after = 0
        query = sa.select(table).where(table.c.rollout == rollout).order_by(table.c.n).limit(ROWS_PAGE)
        while rows := await self.read(what, query.where(table.c.n > after)):
            after = rows[-1].n
            async with self._reach(what):
                wanted = await asyncio.to_thread(list, map(read, rows))
            for one in wanted:
                yield one
            if len(rows) < ROWS_PAGE:
                return

    async def check(self) -> None:
        """See ``Store.check``."""
        async with self._write("reach the database") as connection:
            await connection.execute(t.switches.update().where(t.switches.c.name == "").values(reason=""))

    async def close(self) -> None:
        """See ``Store.close``."""
        await self._engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()

    async def write(self, what: str, statements: Sequence[sa.Executable]) -> Sequence[int]:
        """Carry out short statements of this room in one transaction; the number of rows that each changed."""
        async with self._write(what) as connection:
            results: list[Any] = [await connection.execute(statement) for statement in statements]
            return [result.rowcount for result in results]

    async def read(self, what: str, query: sa.Select[Any]) -> Sequence[Any]:
        """The rows of a question of this room."""
        async with self._reach(what), self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
            return rows

    async def _states(self, rows: Iterable[Any]) -> AsyncIterator[tuple[RolloutState | None, Any]]:
        """Each row with its state; none where it cannot be read, which is nobody else's matter."""
        for i, row in enumerate(rows):
            if i % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            yield self._decoded(row, RolloutState), row

    async def _by_key(self, rows: Iterable[Any], key: Callable[[Any], _K]) -> Mapping[_K, RolloutState]:
        read = [(key(row), state, row.id, row.format) async for state, row in self._states(rows)]
        states = {one: state for one, state, _, _ in read if state is not None}
        unreadable = [(one, rollout, format_) for one, state, rollout, format_ in read if state is None]
        if unreadable:
            _, rollout, format_ = unreadable[0]
            raise Unreadable(
                f"{len(unreadable)} rollout(s) cannot be read, the first: {_why_unreadable(rollout, format_)}",
                readable=states,
                newer=frozenset(one for one, _, format_ in unreadable if format_ > t.FORMAT),
                damaged=frozenset(one for one, _, format_ in unreadable if format_ <= t.FORMAT),
            )
        return states

    def _decoded(self, row: Any, kind: type[_S]) -> _S | None:
        """The row's state; None, said once, where this release cannot read it."""
        why = ""
        if row.format <= t.FORMAT:
            try:
                return kind.from_json(row.state)
            except ValidationError as error:
                why = f" ({error.error_count()} errors, the first: {error.errors()[0]['msg']})"
        if row.id not in self._told_of:
            # Whoever asks is told again and again; the log is not.
            self._told_of = {*(self._told_of if len(self._told_of) < CHUNK else ()), row.id}
            level = logging.ERROR if why else logging.WARNING
            logger.log(
                level,
                "%s%s",
                _why_unreadable(row.id, row.format),
                why,
                extra={"action": "unreadable", "rollout": row.id},
            )
        return None


def _why_unreadable(rollout: str, format_: int) -> str:
    if format_ > t.FORMAT:
        return (
            f"rollout {rollout} was written by a newer release (format {format_}, this one reads up to {t.FORMAT}); "
            "a replica of that release carries it on"
        )
    return (
        f"the stored state of rollout {rollout} is damaged; it is left alone, with its weights as they stand: set them "
        "by hand if need be, and restore its row from a backup"
    )


def _orders(rows: Iterable[Any]) -> tuple[Sequence[Owed], Sequence[int]]:
    """What is owed, and the ids of what cannot be read; what its rollout owes after that is left out too."""
    owed: list[Owed] = []
    damaged: dict[str, int] = {}
    for row in rows:
        if row.rollout in damaged:
            continue
        try:
            order = INSTRUCTION.validate_json(row.body)
        except ValidationError:
            damaged[row.rollout] = row.id
            logger.error(
                "%s %s of rollout %s is damaged and is not carried out, nor what the lane %s owes for it after that; "
                "restore the row of the outbox from a backup, or settle it and set the weights by hand",
                row.type,
                row.id,
                row.rollout,
                row.lane,
                extra={"action": "unreadable", "rollout": row.rollout, "owed": row.id},
            )
        else:
            owed.append(Owed(row.id, order, row.attempts, from_epoch_s(row.owed_since)))
    return owed, list(damaged.values())


def _believed(until: sa.ColumnElement[float], now: datetime, longest_s: float) -> sa.ColumnElement[bool]:
    """Whether something is hidden until a moment; one too far away was set by a clock that is ahead."""
    now_s = now.timestamp()
    return (until > now_s) & (until <= now_s + longest_s)


def _columns(change: Change) -> dict[str, Any]:
    """One rollout's row."""
    state = change.state
    due_at = None
    if state.phase.judged and state.windows_from is not None:
        due_at = state.windows_from.timestamp() + (state.window + 1) * state.policy.window_s
    columns: dict[str, Any] = {
        "id": state.id,
        "cluster": state.service.cluster,
        "namespace": state.service.namespace,
        "service": state.service.name,
        "version": state.version,
        "phase": state.phase.value,
        "active": not state.phase.terminal,
        "watched": (state.phase.judged or state.phase is Phase.AWAITING_STABLE)
        and state.mode is not Mode.OBSERVE
        and state.weight_seen is not None,
        "revision": state.revision,
        "state": state.to_json(),
        "window_due_at": due_at,
        "wake_at": state.wake_at.timestamp() if state.wake_at else None,
        "started_at": state.event_at.timestamp(),
        "retreated_at": change.retreated_at.timestamp() if change.retreated_at else None,
        "format": t.FORMAT,
    }
    return columns


def _body(window: Any) -> str:
    """A window's JSON; rows from before revision 0004 hold it as it is."""
    return window.body if window.packed is None else unpack(bytes(window.packed))


def _of_window(change: Change) -> dict[str, Any]:
    """What only a judged window changes; None leaves a column as it is."""
    not_before = change.rest_until.timestamp() if change.rest_until else 0.0
    return {"monitor": change.monitor, "window_not_before": not_before if change.windows else None}


def _cursor(after: str | None) -> tuple[float, str] | None:
    if not after:
        return None
    at, _, rollout = after.partition("~")
    try:
        return float(at), rollout
    except ValueError:
        return None


def _service_of(row: Any) -> ServiceKey:
    return ServiceKey(cluster=row.cluster, namespace=row.namespace, name=row.service)


def _is_service(table: sa.Table, keys: Sequence[ServiceKey]) -> sa.ColumnElement[bool]:
    columns = (table.c.cluster, table.c.namespace, table.c.service)
    return _is_one_of(columns, [(k.cluster, k.namespace, k.name) for k in keys])


def _is_one_of(columns: Sequence[sa.Column[Any]], keys: Iterable[tuple[str, ...]]) -> sa.ColumnElement[bool]:
    """The columns are one of the keys, by an IN for each prefix: for lists of rows SQLite reads the whole table."""
    by_prefix: dict[tuple[str, ...], list[str]] = {}
    for *prefix, last in keys:
        by_prefix.setdefault(tuple(prefix), []).append(last)
    return sa.or_(
        sa.false(),
        *(
            sa.and_(*(c == v for c, v in zip(columns[:-1], prefix, strict=True)), columns[-1].in_(lasts))
            for prefix, lasts in by_prefix.items()
        ),
    )


def _in(where: Where) -> list[sa.ColumnElement[bool]]:
    # Not the bare column: SQLite would then go through the index of all rollouts that the cluster ever had, instead of
    # the one of those that are due.
    cluster = t.rollouts.c.cluster.concat("")
    clauses = [] if where.only is None else [cluster == where.only]
    return [*clauses, cluster.not_in(sorted(where.but))] if where.but else clauses


def _event_key(source: str, event_id: str) -> tuple[str, str]:
    return _short(source), _short(event_id)


def _short(name: str) -> str:
    """A sender's text as a key: PostgreSQL indexes no more than 2,700 bytes, and knows no NUL."""
    data = name.encode()
    return name if len(data) <= KEY_BYTES and b"\0" not in data else f"sha256:{hashlib.sha256(data).hexdigest()}"


def _text(said: str) -> str:
    """Somebody's words: PostgreSQL's text knows no NUL."""
    return said.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _chunks(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
