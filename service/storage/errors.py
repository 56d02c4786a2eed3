"""Driver errors, said in the ring's two words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.ring.ports import Unavailable
from service.ring.store import Conflict


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Anything that the database cannot do now is Unavailable; a second writer's row is a Conflict."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict(f"cannot {what}: another writer was first ({type(error.orig).__name__})") from error
    except (DBAPIError, PoolTimeout, OSError) as error:
        raise Unavailable(f"cannot {what}: {str(error).splitlines()[0]}") from error
