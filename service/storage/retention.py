"""Retention: what has ended goes after its time, a little at once, and where it is wished only once it is exported.

What goes, each by its own age: carried-out instructions, ids of read events, the windows of ended rollouts, and later
their journals and the rollouts themselves. What stays, whatever its age: every running rollout; whatever has an
instruction that is still owed; the newest event of each service (``heads``); and the state and statistics' row of a
service's last promoted rollouts, from which the next release learns.

Ids of events may go although Kafka can deliver an event again, for two reasons. An event that changed a rollout has
moved its service's head, and an event that is not newer than the head changes nothing: heads stay for ever, one row a
service. An event that changed nothing could mean something by now (its target is in the catalogue today), so its id is
kept for longer than the topic keeps the record; only a topic that keeps records for ever is left to the heads alone.

Nothing waits for this: a transaction deletes at most ``ROWS_AT_ONCE`` rows, queues like every other writer, and is
followed by a pause. Deleting is by key and may be done twice, so the lease that one replica holds saves work and is
not needed for safety.

An export is on the disk, under its name, before the first row of what it holds is deleted; then that is remembered. A
crash between gives a second copy, never a loss. A folder that cannot be written stops the deleting, with a warning. A
rollout that cannot be read is named in the log and kept; the others go.

SQLite's file does not shrink: freed pages are used again, so it stays at the size of its busiest time. Incremental
vacuum would have to be set before the first table, costs a page map, and moves pages that the next hour needs again.
Who wants a smaller file stops the service and runs VACUUM. PostgreSQL's autovacuum makes room in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from service.model.names import RolloutId
from service.model.rollout import Phase, RolloutState
from service.ring.lease import HeldLease
from service.ring.ports import Clock, PortError
from service.ring.store import Damaged, Unreadable
from service.storage import tables as t
from service.storage.archive import ArchiveError, ArchiveFile, line_of, tidy
from service.storage.store import SqlStore

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 500
"""Rows deleted in one transaction: a few milliseconds of the one writer that SQLite has."""

PAUSE_S = 0.05
"""After each transaction; some thousand rows a second are still deleted, far more than come."""

PAGE = 100
"""Rollouts looked at together, and at most in one export file."""

PREFIX = "serinus-rollouts-"
"""Of the names of export files."""


@dataclass(frozen=True, slots=True)
class Ages:
    """How long each kind is kept, in seconds from its end."""

    windows_s: float
    rollouts_s: float
    seen_events_s: float
    instructions_s: float


class Told(Protocol):
    """What is measured of it."""

    def pruned(self, kind: str, rows_n: int) -> None:
        """Rows of a table were deleted."""

    def exported(self, rollouts_n: int) -> None:
        """Rollouts are safe in a file."""

    def export_fails(self, fails: bool) -> None:
        """Whether the last try to export failed, so that nothing is deleted that should be exported."""

    def looked(self, at: datetime, oldest: Mapping[str, float]) -> None:
        """A whole turn is done; the oldest kept row by kind, in seconds since 1970."""


class _LeaseLost(Exception):
    """Another replica goes on with it."""


class Retention:
    """Deletes what is too old, one replica at a time.

    teaching_n : the last so many promoted rollouts of a service keep their state and their statistics' row.
    """

    def __init__(
        self,
        store: SqlStore,
        clock: Clock,
        ages: Ages,
        told: Told,
        *,
        replica: str,
        every_s: float,
        teaching_n: int,
        export_dir: Path | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ages = ages
        self._told = told
        self._every_s = every_s
        self._teaching_n = teaching_n
        self._export_dir = export_dir
        self._lease = HeldLease(store, clock, "retention", replica, lease_s=every_s)

    async def run(self) -> None:
        """A turn every ``every_s``; returns only by cancellation."""
        if self._export_dir is None:
            logger.info(
                "ended rollouts are deleted after %g days and not exported; retention.export_dir would keep them",
                self._ages.rollouts_s / 86400,
                extra={"action": "export_off"},
            )
        while True:
            try:
                await self.turn()
            except ArchiveError as error:
                self._told.export_fails(True)
                logger.warning(
                    "nothing of ended rollouts is deleted until they can be exported: %s",
                    error,
                    extra={"action": "export_failed"},
                )
            except PortError as error:
                logger.warning("retention waits: %s", error, extra={"action": "retention_postponed"})
            except Exception:
                # A service that keeps too much is better than none.
                logger.exception(
                    "retention waits for a reason that nobody foresaw", extra={"action": "retention_postponed"}
                )
            await self._clock.sleep(self._every_s)

    async def turn(self) -> None:
        """Everything that is too old now. Raises ArchiveError when an export fails, and Unavailable."""
        try:
            await self._stay()
            await self._instructions()
            await self._seen_events()
            await self._tidy()
            async for ended in self._too_old(self._ages.windows_s, t.pruned.c.windows_at.is_(None)):
                safe = await self._exported(ended)
                await self._delete(t.windows, t.windows.c.rollout.in_(safe))
                await self._note(safe, "windows_at")
            bare = t.pruned.c.windows_at.is_not(None)
            async for ended in self._too_old(self._ages.rollouts_s, bare, t.pruned.c.journal_at.is_(None)):
                await self._journals(ended)
            async for ended in self._too_old(self._ages.rollouts_s, bare, t.pruned.c.journal_at.is_not(None)):
                await self._rollouts(ended)
        except _LeaseLost:
            return
        if self._export_dir is not None:
            self._told.export_fails(False)
        self._told.looked(self._clock.now(), await self._oldest())

    # --- one kind each ----------------------------------------------------------------------------------------------

    async def _instructions(self) -> None:
        # «is not null» is what the partial index asks for.
        settled_at = t.outbox.c.settled_at
        before = self._before(self._ages.instructions_s)
        await self._delete(t.outbox, settled_at.is_not(None), settled_at < before)

    async def _seen_events(self) -> None:
        await self._delete(t.seen_events, t.seen_events.c.at < self._before(self._ages.seen_events_s))

    async def _journals(self, ended: Sequence[RolloutId]) -> None:
        """The journals and instructions of those that owe nothing any more."""
        o = t.outbox.c
        owed = sa.select(o.rollout).where(o.rollout.in_(ended), o.settled_at.is_(None)).distinct()
        owing = {row.rollout for row in await self._store.read("read what is owed", owed)}
        done = await self._exported([rollout for rollout in ended if rollout not in owing])
        await self._delete(t.journal, t.journal.c.rollout.in_(done))
        await self._delete(t.outbox, o.rollout.in_(done), o.settled_at.is_not(None))
        await self._note(done, "journal_at")

    async def _rollouts(self, ended: Sequence[RolloutId]) -> None:
        """The rollouts themselves, but for those whose statistics still teach."""
        teaching = await self._teaching(ended)
        gone = [rollout for rollout in ended if rollout not in teaching]
        if gone:
            whole = t.rollouts.delete().where(t.rollouts.c.id.in_(gone), sa.not_(t.rollouts.c.active))
            noted = t.pruned.delete().where(t.pruned.c.rollout.in_(gone))
            self._told.pruned("rollouts", (await self._change("delete old rollouts", [whole, noted]))[0])

    async def _teaching(self, rollouts: Sequence[RolloutId]) -> set[str]:
        """Those of the rollouts that are among the last promoted ones of their service."""
        r = t.rollouts.c
        of = r.cluster, r.namespace, r.service
        services = sa.select(*of).where(r.id.in_(rollouts), r.phase == Phase.PROMOTED.value).distinct()
        place = sa.func.row_number().over(partition_by=of, order_by=(r.started_at.desc(), r.id.desc()))
        promoted = (
            sa.select(r.id, place.label("place"))
            .where(r.phase == Phase.PROMOTED.value, sa.tuple_(*of).in_(services))
            .subquery()
        )
        query = sa.select(promoted.c.id).where(promoted.c.place <= self._teaching_n, promoted.c.id.in_(rollouts))
        return {row.id for row in await self._store.read("read past rollouts", query)}

    # --- exporting --------------------------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        """Remove what a crash has left of a file; another replica that still writes it fails, and deletes nothing."""
        if self._export_dir is not None:
            await asyncio.to_thread(tidy, self._export_dir, PREFIX)

    async def _exported(self, ended: Sequence[RolloutId]) -> Sequence[RolloutId]:
        """Put those that are not exported yet into one file, and remember it. What may be deleted: all but those that
        cannot be read, which are named, and kept for whoever mends them."""
        if self._export_dir is None or not ended:
            return ended
        query = sa.select(t.pruned.c.rollout).where(t.pruned.c.rollout.in_(ended), t.pruned.c.exported_at.is_not(None))
        done = {row.rollout for row in await self._store.read("read what is exported", query)}
        now = self._clock.now()
        name = f"{PREFIX}{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.jsonl.gz"
        file = ArchiveFile(self._export_dir / name)
        kept: set[RolloutId] = set()
        try:
            for rollout in ended:
                if rollout not in done and not await self._added(file, rollout, now):
                    kept.add(rollout)
            await asyncio.to_thread(file.finish)
        except BaseException:
            file.abandon()
            raise
        if file.rollouts_n:
            self._told.exported(file.rollouts_n)
            logger.info("exported %d rollouts to %s", file.rollouts_n, name, extra={"action": "exported"})
        safe = [rollout for rollout in ended if rollout not in kept]
        await self._note([rollout for rollout in safe if rollout not in done], "exported_at")
        return safe

    async def _added(self, file: ArchiveFile, rollout: RolloutId, now: datetime) -> bool:
        """Whether the rollout's line is in the file; nothing of it is where it cannot be read."""
        try:
            async for piece in line_of(self._store, rollout, now):
                await asyncio.to_thread(file.add, piece)
        except (Damaged, Unreadable) as error:
            await asyncio.to_thread(file.take_back)
            logger.error(
                "rollout %s is kept with all that belongs to it, it cannot be exported: %s",
                rollout,
                error,
                extra={"action": "not_exported", "rollout": rollout},
            )
            return False
        return True

    # --- small steps ------------------------------------------------------------------------------------------------

    async def _too_old(self, age_s: float, *which: sa.ColumnElement[bool]) -> AsyncIterator[list[RolloutId]]:
        """Ended rollouts that ended at least ``age_s`` ago, a page at a time, the oldest first."""
        before = self._before(age_s)
        r = t.rollouts.c
        started = sa.tuple_(r.started_at, r.id)
        query = (
            sa.select(r.id, r.started_at)
            .outerjoin(t.pruned, t.pruned.c.rollout == r.id)
            .where(r.started_at < before, *which)
            .order_by(r.started_at, r.id)
            .limit(PAGE)
        )
        after: Any = None
        while rows := await self._store.read(
            "look for old rollouts", query if after is None else query.where(started > sa.tuple_(*after))
        ):
            try:
                states = await self._store.load([row.id for row in rows])
            except Unreadable as error:
                states = error.readable  # the others are kept
            ended = [row.id for row in rows if row.id in states and _ended_before(states[row.id], before)]
            if ended:
                yield ended
            after = (sa.literal(rows[-1].started_at), sa.literal(rows[-1].id))

    async def _delete(self, table: sa.Table, *which: sa.ColumnElement[bool]) -> None:
        """Delete the rows, ``ROWS_AT_ONCE`` in a transaction."""
        key = list(table.primary_key.columns)
        some = sa.select(*key).where(*which).limit(ROWS_AT_ONCE)
        chosen = (key[0] if len(key) == 1 else sa.tuple_(*key)).in_(some)
        # Looking first: nothing to delete is the usual case, and it must not queue behind a writer.
        while await self._store.read(f"look for old rows of {table.name}", some.limit(1)):
            (rows_n,) = await self._change(f"delete old rows of {table.name}", [table.delete().where(chosen)])
            self._told.pruned(table.name, rows_n)

    async def _note(self, rollouts: Sequence[RolloutId], what: str) -> None:
        """Remember that ``what`` was done to these."""
        if not rollouts:
            return
        known = sa.select(t.pruned.c.rollout)
        new = sa.select(t.rollouts.c.id).where(t.rollouts.c.id.in_(rollouts), t.rollouts.c.id.not_in(known))
        at = self._clock.now().timestamp()
        await self._change(
            "remember what was deleted",
            [
                t.pruned.insert().from_select(["rollout"], new),
                t.pruned.update()
                .where(t.pruned.c.rollout.in_(rollouts), t.pruned.c[what].is_(None))
                .values({what: at}),
            ],
        )

    async def _change(self, what: str, statements: Sequence[sa.Executable]) -> Sequence[int]:
        """One short transaction and a pause, while the lease is ours."""
        await self._stay()
        rows = await self._store.write(what, statements)
        await self._clock.sleep(PAUSE_S)
        return rows

    async def _stay(self) -> None:
        if not await self._lease.mine():
            raise _LeaseLost

    async def _oldest(self) -> Mapping[str, float]:
        ages = {"rollouts": t.rollouts.c.started_at, "seen_events": t.seen_events.c.at}
        found = {
            kind: (await self._store.read("read the oldest row", sa.select(sa.func.min(column))))[0][0]
            for kind, column in ages.items()
        }
        return {kind: at for kind, at in found.items() if at is not None}

    def _before(self, age_s: float) -> float:
        return (self._clock.now() - timedelta(seconds=age_s)).timestamp()


def _ended_before(state: RolloutState, before: float) -> bool:
    return state.phase.terminal and state.phase_since.timestamp() < before
