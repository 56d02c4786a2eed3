"""A circuit breaker: a part outside that keeps failing is left alone for a while, then tried with one call.

Without it, each of a thousand instructions would find out for itself that its cluster is away, by a time-out each.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from service.ring.ports import Clock


class Breaker:
    """Counts failures in a row. Open after ``after_n`` of them for ``pause_s``, twice as long after each failed try."""

    def __init__(self, clock: Clock, *, after_n: int = 5, pause_s: float = 1.0, longest_pause_s: float = 30.0) -> None:
        self._clock = clock
        self._after_n = after_n
        self._first_pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._failed_n = 0
        self._pause_s = pause_s
        self._try_at: datetime | None = None
        self.last_error = ""

    @property
    def open(self) -> bool:
        """True while the part is failing, also while one call tries it."""
        return self._try_at is not None

    def admits(self) -> bool:
        """Whether a call may be made now. While open, true once a pause: whoever is told so makes the trying call."""
        if self._try_at is None:
            return True
        now = self._clock.now()
        if now < self._try_at:
            return False
        self._try_at = now + timedelta(seconds=self._pause_s)
        return True

    def worked(self) -> None:
        """A call was answered."""
        self._failed_n = 0
        self._pause_s = self._first_pause_s
        self._try_at = None
        self.last_error = ""

    def failed(self, error: str) -> None:
        """A call was not answered, or answered that it cannot be served now."""
        self._failed_n += 1
        self.last_error = error
        if self._failed_n < self._after_n:
            return
        if self._try_at is not None:
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        self._try_at = self._clock.now() + timedelta(seconds=self._pause_s)
