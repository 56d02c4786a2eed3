"""Driver errors, said in the ring's two words, and a limit on how long any of them may take to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import ValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.ring.ports import Unavailable
from service.ring.store import Conflict
from service.storage.packing import NotPacked

try:
    # While it connects, the driver's own errors come through SQLAlchemy as they are.
    from asyncpg import InterfaceError, PostgresError
except ImportError:
    InterfaceError = PostgresError = OSError

_OTHER_WRITER = frozenset({"40001", "40P01"})
"""SQLSTATEs of a serialization failure and a deadlock: read again and repeat."""

_DATA = "22"
"""The class of SQLSTATEs of data exceptions, which SQLAlchemy does not tell from other errors of asyncpg."""

_NOT_GRANTED = "42501"

_WHAT_TO_DO = {
    "disk is full": "free space on the database's disk; work goes on by itself then",
    "No space left": "free space on the database's disk; work goes on by itself then",
    "readonly database": "the database's file or disk is read-only; make it writable, work goes on by itself then",
    "read-only transaction": "this PostgreSQL is a standby; connect to the primary",
    "unable to open database file": "the database's folder is missing or not writable",
    "password authentication failed": "check database.user and its password",
}


@asynccontextmanager
async def reaching(what: str, patience_s: float) -> AsyncIterator[None]:
    """Anything that the database cannot do within ``patience_s`` is Unavailable; a second writer's row is a Conflict.

    What a statement can never do is neither: it goes through as it is, to be found as the fault of this program or of
    the event that brought the value, and not to be tried for ever.

    Whatever was sent either takes effect as a whole or not at all; after Unavailable it is unknown which, as when the
    answer to a commit is lost.
    """
    try:
        async with asyncio.timeout(patience_s):
            yield
    except IntegrityError as error:
        raise Conflict(f"cannot {what}: another writer was first ({type(error.orig).__name__})") from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _OTHER_WRITER:
            raise Conflict(f"cannot {what}: another writer was in the way ({_first_line(error)})") from error
        if _is_ours(error):
            raise
        raise Unavailable(f"cannot {what}: {_first_line(error)}") from error
    except TimeoutError as error:
        raise Unavailable(f"cannot {what}: the database did not answer within {patience_s:g} s") from error
    except PoolTimeout as error:
        raise Unavailable(f"cannot {what}: all connections to the database are busy") from error
    except ValidationError as error:
        raise Unavailable(
            f"cannot {what}: a stored {error.title} is not readable by this release ({error.error_count()} errors, "
            f"the first: {error.errors()[0]['msg']}); a newer release wrote it, or it is damaged"
        ) from error
    except NotPacked as error:
        raise Unavailable(f"cannot {what}: {error}; a newer release wrote it, or it is damaged") from error
    except (OSError, InterfaceError, PostgresError) as error:
        raise Unavailable(f"cannot {what}: {_first_line(error)}") from error


def _is_ours(error: DBAPIError) -> bool:
    """Whether the same statement would fail for ever: a value that the database cannot hold, or SQL that it cannot
    carry out. Not what a person may still grant."""
    state = getattr(error.orig, "sqlstate", None) or ""
    # The driver's own complaint about a value is a ValueError, whatever SQLAlchemy calls it.
    of_a_value = isinstance(getattr(error.orig, "__cause__", None), ValueError)
    return state != _NOT_GRANTED and (
        isinstance(error, DataError | ProgrammingError) or state.startswith(_DATA) or of_a_value
    )


def _first_line(error: Exception) -> str:
    """What the database itself said, without the statement and its parameters."""
    said = next(iter(str(getattr(error, "orig", None) or error).splitlines()), type(error).__name__)
    hint = next((hint for part, hint in _WHAT_TO_DO.items() if part in said), "")
    return f"{said}; {hint}" if hint else said
