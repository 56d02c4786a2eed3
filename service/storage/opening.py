"""Opening a store: the right engine for the URL, one process for a SQLite file, and the schema at its newest."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from service.ring.ports import Refused
from service.storage.errors import translated
from service.storage.store import SqlStore

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 10


class InUse(Refused):
    """Another process, most likely a running Serinus, has the SQLite file."""


async def open_store(url: str, *, password: SecretStr | None = None) -> SqlStore:
    """The store behind ``url`` (``sqlite:///file.db``, ``sqlite://`` in memory, ``postgresql://...``), migrated.

    Raises Refused when the URL means nothing or another process has the SQLite file, Unavailable when it is away.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise Refused(
            f"database url is no URL; write sqlite:///serinus.db or postgresql://user@host/name: {error}"
        ) from None
    if parsed.get_backend_name() == "sqlite":
        lock = _lock(parsed)
        engine = _sqlite(parsed)
    elif parsed.get_backend_name() == "postgresql":
        lock = None
        if password is not None:
            parsed = parsed.set(password=password.get_secret_value())
        engine = create_async_engine(parsed.set(drivername="postgresql+asyncpg"), pool_size=10, pool_pre_ping=True)
    else:
        raise Refused(f"database url names {parsed.get_backend_name()!r}; known: sqlite, postgresql")
    with translated("open the database"):
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    return SqlStore(engine, lock=lock)


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to ``revision``, or down to it when it is older."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    if revision == "head":
        command.upgrade(config, revision)
    else:
        command.downgrade(config, revision)


def _lock(url: URL) -> IO[str] | None:
    """Hold the lock file beside a SQLite file; a second process is told who has it."""
    if not url.database or url.database == ":memory:":
        return None
    file = Path(url.database + ".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.open("a+", encoding="ascii")
    except OSError as error:
        raise Refused(f"cannot open the lock file {file}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        other = lock.read(32).strip() or "unknown"
        lock.close()
        raise InUse(
            f"the database {url.database} is in use by process {other}; SQLite serves one replica. "
            "Stop that process, or use PostgreSQL for more than one."
        ) from None
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _sqlite(url: URL) -> AsyncEngine:
    in_memory = not url.database or url.database == ":memory:"
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        connect_args={"timeout": BUSY_TIMEOUT_S},
        **({"poolclass": StaticPool} if in_memory else {"pool_size": 5}),
    )

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _set_up(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        # WAL lets the API read while the tick writes. FULL waits for the disk at each commit: a weight is owed only
        # once it is certain to be remembered, even if the machine loses power.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    return engine
