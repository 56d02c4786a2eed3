"""What one commit writes: all that came of some stimuli, in a number of statements that does not grow with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from service.model.names import Mode, ServiceKey
from service.model.rollout import Phase
from service.model.value import from_epoch_s
from service.ring.store import Change, Conflict, Postponed, RollbackLimit, ServiceHead, TooManyRollbacks
from service.storage import tables as t
from service.storage.database import Database, chunks, event_key, is_service, service_of, short, text
from service.storage.packing import pack

ROLLBACKS_LOCK = 0x5E21_0001
"""PostgreSQL's advisory lock for counting rollbacks against the hourly limit."""


class Commit:
    """One transaction that is being written."""

    def __init__(self, database: Database, connection: AsyncConnection) -> None:
        self._database = database
        self._connection = connection

    async def write(
        self,
        changes: Sequence[Change],
        *,
        seen: Sequence[tuple[str, str, datetime]],
        heads: Sequence[ServiceHead],
        settled: Mapping[int, datetime],
        postponed: Sequence[Postponed],
        limit: RollbackLimit | None,
        idle: Collection[ServiceKey],
    ) -> None:
        """See ``ring.store.Store.commit``."""
        await self._check_revisions(changes)
        await self._check_limit(changes, limit)
        await self._update([c for c in changes if c.was_revision is not None])
        await self._insert([c for c in changes if c.was_revision is None])
        await self._record(changes)
        await self._lock_owed(changes, [*settled, *(one.owed_id for one in postponed)])
        await self._owe(changes)
        await self._settle(settled)
        await self.postpone(postponed)
        await self._heads_and_seen(heads, seen)
        await self._check_begun(changes, heads)
        await self._check_idle(idle)

    async def _check_revisions(self, changes: Sequence[Change]) -> None:
        wanted = {c.state.id: c.was_revision for c in changes if c.was_revision is not None}
        found: dict[str, int] = {}
        for ids in chunks(sorted(wanted)):
            query = sa.select(t.rollouts.c.id, t.rollouts.c.revision).where(t.rollouts.c.id.in_(ids)).order_by("id")
            rows = await self._connection.execute(query if self._database.one_writer else query.with_for_update())
            found.update({row.id: row.revision for row in rows})
        for rollout, revision in wanted.items():
            if found.get(rollout) != revision:
                raise Conflict(f"rollout {rollout} was read at revision {revision}, now it is {found.get(rollout)}")

    async def _check_begun(self, changes: Sequence[Change], heads: Sequence[ServiceHead]) -> None:
        """A rollout begins with the newest event of its service. Told of a newer one meanwhile, another replica found
        no rollout that it was for. Asked once the heads are written, and so held: of two commits one sees the other."""
        begun = {c.state.service for c in changes if c.was_revision is None}
        ours = {head.service: head for head in heads if head.service in begun}
        for keys in chunks(sorted(ours, key=str)):
            for row in await self._connection.execute(sa.select(t.heads).where(is_service(t.heads, keys))):
                head = ours[service_of(row)]
                # Of years far away a float is no exact moment: neither form alone tells newer from the same.
                newer = row.event_at > head.event_at.timestamp() and from_epoch_s(row.event_at) > head.event_at
                if newer or row.fence > head.fence:
                    raise Conflict(f"a newer event of {head.service} than the one that its rollout begins with came")

    async def _check_idle(self, idle: Collection[ServiceKey]) -> None:
        """The other way round: what was told of a service without a rollout is for the one that has begun since."""
        r = t.rollouts.c
        for keys in chunks(sorted(idle, key=str)):
            query = sa.select(r.id).where(r.active, is_service(t.rollouts, keys)).limit(1)
            row = (await self._connection.execute(query)).first()
            if row is not None:
                raise Conflict(f"rollout {row.id} has begun since its service was found without one")

    async def _check_limit(self, changes: Sequence[Change], limit: RollbackLimit | None) -> None:
        begun_n = sum(change.retreated_at is not None for change in changes)
        if limit is None or not begun_n:
            return
        if not self._database.one_writer:
            # Two commits at the same moment would both see the other's rollbacks not yet counted.
            await self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ROLLBACKS_LOCK)))
        query = sa.select(sa.func.count()).where(t.rollouts.c.retreated_at >= limit.since.timestamp())
        used = int((await self._connection.execute(query)).scalar_one())
        if used + begun_n > limit.at_most:
            raise TooManyRollbacks(f"{begun_n} more automatic rollbacks after {used}; at most {limit.at_most} are set")

    async def _update(self, changes: Sequence[Change]) -> None:
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
        await self._connection.execute(statement, [{"key": r["id"], **{f"new_{n}": r[n] for n in names}} for r in rows])

    async def _insert(self, changes: Sequence[Change]) -> None:
        # In one order everywhere: two commits that start rollouts of the same services must not wait for each other.
        in_order = sorted(changes, key=lambda c: str(c.state.service))
        rows = [_columns(c) | {"monitor": c.monitor or b""} for c in in_order]
        if rows:
            await self._connection.execute(t.rollouts.insert(), rows)

    async def _record(self, changes: Sequence[Change]) -> None:
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
            await self._connection.execute(t.journal.insert(), entries)
        if judged:
            await self._connection.execute(t.windows.insert(), judged)

    async def _lock_owed(self, changes: Sequence[Change], ids: Sequence[int]) -> None:
        """Take every instruction that the commit touches, in one order: who drops some by their rollout and who
        postpones the same by their ids would wait for each other."""
        rollouts = [c.state.id for c in changes if c.drops]
        if self._database.one_writer or not (rollouts or ids):
            return
        o = t.outbox.c
        mine = o.id == sa.any_(sa.literal(list(ids), postgresql.ARRAY(sa.BigInteger)))
        theirs = (o.rollout == sa.any_(sa.literal(rollouts, postgresql.ARRAY(sa.String)))) & o.settled_at.is_(None)
        await self._connection.execute(sa.select(o.id).where(mine | theirs).order_by(o.id).with_for_update())

    async def _owe(self, changes: Sequence[Change]) -> None:
        replaced = [
            {"of": c.state.id, "kind": kind, "now": c.state.phase_since.timestamp()}
            for c in sorted(changes, key=lambda c: c.state.id)
            for kind in sorted(c.drops)
        ]
        if replaced:
            await self._connection.execute(
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
            await self._connection.execute(t.outbox.insert(), orders)

    async def _settle(self, settled: Mapping[int, datetime]) -> None:
        if settled:
            await self._connection.execute(
                t.outbox.update()
                .where(t.outbox.c.id == sa.bindparam("key"))
                .values(settled_at=sa.bindparam("at"), last_error=""),
                [{"key": key, "at": at.timestamp()} for key, at in settled.items()],
            )

    async def _heads_and_seen(
        self,
        heads: Sequence[ServiceHead],
        seen: Sequence[tuple[str, str, datetime]],
    ) -> None:
        if heads:
            insert: Any = self._database.insert_into(t.heads)
            # Another replica may have been told of a newer event since these heads were read.
            new, known = insert.excluded, t.heads.c
            newer = {
                name: sa.case((new[by] >= known[by], new[name]), else_=known[name])
                for name, by in (("event_at", "event_at"), ("event_id", "event_at"), ("fence", "fence"))
            }
            await self._connection.execute(
                insert.on_conflict_do_update(index_elements=["cluster", "namespace", "service"], set_=newer),
                [
                    {
                        "cluster": h.service.cluster,
                        "namespace": h.service.namespace,
                        "service": h.service.name,
                        "event_at": h.event_at.timestamp(),
                        "event_id": short(h.event_id),
                        "fence": h.fence,
                    }
                    for h in sorted(heads, key=lambda h: str(h.service))
                ],
            )
        if seen:
            # Plainly: that it was found unseen must hold still, or it would take effect twice.
            first = {event_key(source, event_id): at for source, event_id, at in reversed(seen)}
            rows = [
                {"source": source, "id": event_id, "at": at.timestamp()}
                for (source, event_id), at in sorted(first.items())
            ]
            await self._connection.execute(t.seen_events.insert(), rows)

    async def postpone(self, postponed: Sequence[Postponed]) -> None:
        """Hide instructions until their moments."""
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
            {"key": one.owed_id, "until": one.until.timestamp(), "error": text(one.error), "tries_n": one.tries_n}
            for one in postponed
        ]
        await self._connection.execute(statement, rows)


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


def _of_window(change: Change) -> dict[str, Any]:
    """What only a judged window changes; None leaves a column as it is."""
    not_before = change.rest_until.timestamp() if change.rest_until else 0.0
    return {"monitor": change.monitor, "window_not_before": not_before if change.windows else None}
