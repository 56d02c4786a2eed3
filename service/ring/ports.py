"""What the ring needs of the world: one small protocol a concern, and the two errors that matter to a caller.

Each port has a fake beside a contract test that the real adapter passes too. Every call is safe to repeat and safe
to cancel; none retries by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from service.model.gates.report import GateReport
from service.model.instruction import Page, Publish, RunGate
from service.model.observation import Reading, WindowQuery
from service.model.target import Place


class PortError(Exception):
    """Something outside did not do what was asked. The message says what was asked, of what, and what was found."""


class Unavailable(PortError):
    """The same call may succeed later. ``retry_after_s`` is the other side's own wish, where it gave one."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(PortError):
    """Repeating the call is useless until a person changes something."""


class NotOurs(Refused):
    """Refused because what stands there was not given by this rollout, which so gave none."""


@dataclass(frozen=True, slots=True)
class WeightsSeen:
    """What the API server holds of one route."""

    canary_percent: int | None
    """The canary's share, rounded to a whole percent; None when the route or a destination is gone."""
    fence: int | None
    """The fencing number on the object, None when there is none."""
    changed: bool = False
    """True when this call wrote."""
    detail: str = ""
    unseen: bool = False
    """True when this place was not allowed to be looked at: nothing is known of it, and ``detail`` says why."""


class Mesh(Protocol):
    """One cluster's traffic weights. Only actuators implement it."""

    async def set_weights(
        self, place: Place, *, canary_percent: int, fence: int, rollout: str, first: bool = False
    ) -> WeightsSeen:
        """Make the canary's share ``canary_percent``, write ``fence`` beside it, read back and say what was read.

        first : nothing of this rollout stands yet, so a canary that serves traffic which another hand gave is NotOurs
        Already as asked: nothing is written. A newer fence on the object, a missing route or destination, someone
        else's destination with weight, no right: Refused. Conflict past N tries, time-out, 5xx: Unavailable.
        """

    async def get_weights(self, places: Sequence[Place]) -> Sequence[WeightsSeen]:
        """The shares that stand at these places now; a missing object or route is an answer (None), not an error.

        A namespace that refuses to be read is an answer too (``unseen``), so that the others are still looked at.
        The number of requests grows with namespaces and pages of objects, not with places.
        """

    async def ready(self, place: Place) -> tuple[bool, str]:
        """Whether the candidate has ready endpoints, and one clause for people saying what was looked at."""


class Gates(Protocol):
    """What a candidate must pass before it gets any traffic."""

    async def look(self, order: RunGate) -> GateReport:
        """Look once. What could not be looked at is an answer (COULD_NOT_LOOK), never an error; nothing is retried.

        It may take up to ten minutes and may be cut off at any point.
        """


class Source(Protocol):
    """One cluster's metric store."""

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """Readings for each query, in the order of its metrics. Never raises for a store that is away: that is AWAY.

        The number of requests to the store grows with metrics and chunks, not with the number of queries.
        """


class Pager(Protocol):
    """The people on call."""

    async def send(self, page: Page) -> None:
        """Hand the page over.

        Refused: the pager will never take this page (400, too large). Unavailable: everything else, a key that is not
        known and a proxy's answer too, for a person can put that right while the page is owed.
        """


class Bus(Protocol):
    """Where decisions are published."""

    async def publish(self, order: Publish) -> None:
        """Put the decision on the topic under the service's key; returns when the broker has it."""


class Clock(Protocol):
    """Time, so that tests can own it."""

    def now(self) -> datetime:
        """The present moment in UTC."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
