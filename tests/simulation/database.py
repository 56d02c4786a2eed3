"""The real store's database in memory, driven inline: no thread, no wait, so that a transaction is one step.

SQLAlchemy's aiosqlite dialect is handed an object with aiosqlite's interface whose coroutines never suspend.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from service.storage.opening import migrate


class _Cursor:
    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    async def __aenter__(self) -> _Cursor:
        return self

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    async def execute(self, *args: Any) -> None:
        self._cursor.execute(*args)

    async def executemany(self, *args: Any) -> None:
        self._cursor.executemany(*args)

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        self._cursor.close()


class _Inline:
    """A connection as aiosqlite's, without its thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def cursor(self) -> _Cursor:
        return _Cursor(self._connection.cursor())

    async def create_function(self, *args: Any, **options: Any) -> None:
        self._connection.create_function(*args, **options)

    async def commit(self) -> None:
        self._connection.commit()

    async def rollback(self) -> None:
        self._connection.rollback()

    async def close(self) -> None:
        """The world owns the database; it goes with it."""

    def stop(self) -> None:
        """Nothing runs."""


@functools.cache
def _template() -> bytes:
    """A database that the migrations have made, once for all worlds."""
    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    with engine.begin() as connection:
        migrate(connection)
    raw = engine.raw_connection()
    image: bytes = raw.driver_connection.serialize()  # type: ignore[union-attr]
    raw.close()
    engine.dispose()
    return image


class _AtOnce(AsyncConnection):
    """Given back at once; SQLAlchemy would do it in a task of its own, and so part a call's effect from its answer."""

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Engine(AsyncEngine):
    _connection_cls = _AtOnce


class Database:
    """One database for every replica of a world, and a plain connection to look at it between two transactions."""

    def __init__(self) -> None:
        self.raw = sqlite3.connect(":memory:", check_same_thread=False)
        self.raw.deserialize(_template())
        made = create_async_engine("sqlite+aiosqlite://", async_creator=self._connect, poolclass=StaticPool)
        self.engine: AsyncEngine = _Engine(made.sync_engine)

    async def _connect(self, *_: Any, **__: Any) -> Any:
        return _Inline(self.raw)

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What stands there now; only for whoever watches."""
        return self.raw.execute(query, values).fetchall()

    def close(self) -> None:
        """Let go of it."""
        self.raw.close()
