"""One database behind its engine: who may write when, how long anybody waits, and the forms that both kinds share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from service.model.names import ServiceKey
from service.storage.errors import reaching

CHUNK = 500
"""Keys in one IN (...) list; SQLite allows 32,766 variables, PostgreSQL plans long lists badly."""

KEY_BYTES = 1024
"""A longer source or id of an event is kept as its digest."""

CLOSING_S = 0.01
"""Between looks at whether a connection that is in use has come back."""

_T = TypeVar("_T")


class Database:
    """Transactions and questions, each within ``patience_s``."""

    def __init__(self, engine: AsyncEngine, *, patience_s: float, lock: IO[str] | None = None) -> None:
        self._engine = engine
        self._patience_s = patience_s
        self._lock_file = lock
        self.one_writer = engine.dialect.name == "sqlite"
        """SQLite has one writer and no locks on rows."""
        # Waiting here is fair and ends; waiting on SQLite's own lock polls and may time out.
        self._writing = asyncio.Lock()

    def _reach(self, what: str) -> AbstractAsyncContextManager[None]:
        return reaching(what, self._patience_s)

    @asynccontextmanager
    async def writing(self, what: str) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed when the block ends and rolled back when it raises."""
        one_at_a_time = self._writing if self.one_writer else nullcontext()
        async with self._reach(what), one_at_a_time, self._engine.begin() as connection:
            yield connection

    async def write(self, what: str, statements: Sequence[sa.Executable]) -> Sequence[int]:
        """Carry out short statements in one transaction; the number of rows that each changed."""
        async with self.writing(what) as connection:
            results: list[Any] = [await connection.execute(statement) for statement in statements]
            return [result.rowcount for result in results]

    async def read(self, what: str, query: sa.Select[Any]) -> Sequence[Any]:
        """The rows of a question."""
        async with self._reach(what), self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
            return rows

    def insert_into(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT, in this database's dialect."""
        return (sqlite if self.one_writer else postgresql).insert(table)

    async def close(self) -> None:
        """Let go of every connection, and of the lock file; whoever is still within a transaction may end it first."""
        # One that comes back to a pool that is disposed of is closed by nobody.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                # A pool tells nobody of what comes back.
                while isinstance(pool := self._engine.pool, QueuePool) and pool.checkedout():  # noqa: ASYNC110
                    await asyncio.sleep(CLOSING_S)
        await self._engine.dispose()
        if self._lock_file is not None:
            self._lock_file.close()


def event_key(source: str, event_id: str) -> tuple[str, str]:
    return short(source), short(event_id)


def short(name: str) -> str:
    """A sender's text as a key: PostgreSQL indexes no more than 2,700 bytes, and knows no NUL."""
    data = name.encode()
    return name if len(data) <= KEY_BYTES and b"\0" not in data else f"sha256:{hashlib.sha256(data).hexdigest()}"


def text(said: str) -> str:
    """Somebody's words: PostgreSQL's text knows no NUL."""
    return said.replace("\0", "\N{REPLACEMENT CHARACTER}")


def chunks(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def one_of(columns: Sequence[sa.Column[Any]], keys: Iterable[tuple[str, ...]]) -> sa.ColumnElement[bool]:
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


def is_service(table: sa.Table, keys: Iterable[ServiceKey]) -> sa.ColumnElement[bool]:
    """The row is of one of the services."""
    return one_of(
        (table.c.cluster, table.c.namespace, table.c.service), [(k.cluster, k.namespace, k.name) for k in keys]
    )


def service_of(row: Any) -> ServiceKey:
    """The service that a row is of."""
    return ServiceKey(cluster=row.cluster, namespace=row.namespace, name=row.service)
