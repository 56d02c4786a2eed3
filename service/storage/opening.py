"""Opening a store: the right engine for the URL, one process for a SQLite file, and the schema at its newest."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from service.model.value import from_epoch_s
from service.ring.ports import Refused
from service.storage import tables as t
from service.storage.errors import reaching
from service.storage.store import SqlStore

MIGRATIONS = Path(__file__).parent / "migrations"

PATIENCE_S = 10.0
"""How long any method of the store waits for the database before it is Unavailable. Below a window's lease."""

MIGRATE_WITHIN_S = 600.0
"""A replica waits this long for its own or another one's migration."""

MIGRATIONS_LOCK = 0x5E21_0002
"""PostgreSQL's advisory lock for migrating: replicas that start together migrate once."""


CLOCKS_APART_S = 10.0
"""A replica starts with a clock that differs from the database's by at most this much.

Below what an instruction's lease (30 s) leaves beside a whole try (12 s): a clock that is further ahead would take what
others are still carrying out for run out, and a page's trigger might land after its resolve.
"""


class NewerSchema(Refused):
    """A newer release has changed the schema in a way that this one cannot live with."""


class InUse(Refused):
    """Another process, most likely a running Serinus, has the SQLite file."""


async def open_store(url: str, *, password: SecretStr | None = None, patience_s: float = PATIENCE_S) -> SqlStore:
    """The store behind ``url`` (``sqlite:///file.db``, ``sqlite://`` in memory, ``postgresql://...``), migrated.

    patience_s : how long any method waits for the database.
    Raises Refused when the URL means nothing, another process has the SQLite file or the schema is too new,
    or this machine's clock is not the database's, and Unavailable when the database is away.
    """
    parsed = _parsed(url)
    lock = _lock(parsed) if parsed.get_backend_name() == "sqlite" else None
    engine = _engine(parsed, password, patience_s)
    try:
        async with reaching("open the database", patience_s), engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                said = await connection.execute(sa.select(sa.func.extract("epoch", sa.func.clock_timestamp())))
                _same_time(time.time(), float(said.scalar_one()))
        async with reaching("migrate the database", MIGRATE_WITHIN_S), engine.begin() as connection:
            await connection.run_sync(migrate)
    except TypeError as error:
        # The driver's connect function got an option of the URL that it does not have.
        raise Refused(f"database url has an option that the driver does not know: {error}") from None
    except BaseException:
        await engine.dispose()
        if lock is not None:
            lock.close()
        raise
    return SqlStore(engine, patience_s=patience_s, lock=lock)


async def open_to_read(url: str, *, password: SecretStr | None = None, patience_s: float = PATIENCE_S) -> SqlStore:
    """The same store beside a running service, for reading alone: the database itself refuses to write.

    Raises Refused when the URL means nothing, there is no such file or its schema is of another release.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and not os.path.isfile(parsed.database or ""):  # noqa: ASYNC240
        raise Refused(
            f"there is no database {parsed.database}; see database.url in the settings, and from which folder"
        )
    engine = _engine(parsed, password, patience_s).execution_options(postgresql_readonly=True)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine.sync_engine, "connect")
        def _only_read(connection: Any, _record: object) -> None:
            connection.execute("PRAGMA query_only=ON")

    try:
        async with reaching("open the database", patience_s), engine.connect() as connection:
            found = await connection.run_sync(lambda c: MigrationContext.configure(c).get_current_revision())
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        ours = ScriptDirectory.from_config(config).get_current_head()
        if found != ours:
            raise Refused(f"the database's schema is {found or 'none'}, this release reads {ours}; use that release")
    except BaseException:
        await engine.dispose()
        raise
    return SqlStore(engine, patience_s=patience_s)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise Refused(
            f"database url is no URL; write sqlite:///serinus.db or postgresql://user@host/name: {error}"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise Refused(f"database url names {parsed.get_backend_name()!r}; known: sqlite, postgresql")
    return parsed


def _engine(url: URL, password: SecretStr | None, patience_s: float) -> AsyncEngine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, patience_s)
    return _postgres(url if password is None else url.set(password=password.get_secret_value()), patience_s)


def _same_time(ours_s: float, theirs_s: float) -> None:
    """Raise Refused unless this machine's clock and the database's agree.

    Replicas share one database, so it is what they can all hold their clocks against. One that is ahead would claim
    windows before the metric store has them, and take its own haste for a store without numbers; what it stamps, bake
    times and time-outs, would come late for everybody. This is the moment to look: a clock that is set later does not
    make the service's time jump (``app.clock``).
    """
    if abs(ours_s - theirs_s) > CLOCKS_APART_S:
        ours, theirs = (from_epoch_s(one).strftime("%Y-%m-%d %H:%M:%S UTC") for one in (ours_s, theirs_s))
        raise Refused(
            f"this machine's clock says {ours} and the database's {theirs}; at most {CLOCKS_APART_S:g} s apart, a "
            "replica may start. Set the clock that is wrong."
        )


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the schema to ``revision``, up or down; "head" also leaves a newer schema that serves this release."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    if connection.dialect.name == "postgresql":
        # An ALTER that waits for a reader holds up everything behind it, so it does not wait for long.
        for name, value in (("lock_timeout", "60s"), ("statement_timeout", "0")):
            connection.execute(sa.text(f"SET LOCAL {name} = '{value}'"))
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATIONS_LOCK)))
    found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(config)
    if revision == "head" and found is not None and found not in {s.revision for s in scripts.walk_revisions()}:
        _serves(connection, found, scripts.get_current_head() or "")
    elif revision == "base" or (found is not None and revision != "head" and revision < found):
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


def _serves(connection: Connection, found: str, ours: str) -> None:
    """Raise NewerSchema unless the newer schema says that it serves code of revision ``ours``."""
    oldest = connection.execute(sa.select(t.compatibility.c.oldest)).scalar_one()
    if oldest > ours:
        raise NewerSchema(
            f"the database's schema {found} is of a newer release and serves releases from schema {oldest} on; this "
            f"release is of schema {ours}. Start the newer release."
        )


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


def _sqlite(url: URL, patience_s: float) -> AsyncEngine:
    in_memory = not url.database or url.database == ":memory:"
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        # Its own message, «locked», comes before patience ends.
        connect_args={"timeout": patience_s / 2},
        **({"poolclass": StaticPool} if in_memory else {"pool_size": 5, "pool_timeout": patience_s}),
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


def _postgres(url: URL, patience_s: float) -> AsyncEngine:
    within_ms = str(round(patience_s * 1000))
    settings = {
        "application_name": "serinus",
        # A replica that is stopped in the middle of a transaction must not keep its row locks.
        "idle_in_transaction_session_timeout": within_ms,
        "statement_timeout": within_ms,
        "lock_timeout": str(round(patience_s * 500)),
        # A machine that vanishes leaves no goodbye; the server forgets it within half a minute.
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "4",
        # Compiling a plan costs more than any of these short statements.
        "jit": "off",
    }
    try:
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            pool_size=10,
            max_overflow=0,
            pool_timeout=patience_s,
            pool_pre_ping=True,
            connect_args={"timeout": patience_s / 2, "server_settings": settings},
        )
    except ModuleNotFoundError as error:
        raise Refused(f"PostgreSQL needs the {error.name} package: pip install 'serinus[postgres]'") from None
