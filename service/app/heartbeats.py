"""Heartbeats: when each loop last went round, so that a stuck one shows while one that waits for an outage does not.

A loop's retry path goes round as well. Time is the machine's own since it started, so that a clock that is set
forward or back makes nobody look stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Heartbeats:
    """The last turn of every loop of this process."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = monotonic_s
        self._at_s: dict[str, float] = {}

    def turned(self, loop: str) -> None:
        """The loop has gone round; the first time, from when on it is expected to."""
        self._at_s[loop] = self._now_s()

    def silent_s(self) -> Mapping[str, float]:
        """Seconds since each loop's last turn."""
        now_s = self._now_s()
        return {loop: now_s - at_s for loop, at_s in self._at_s.items()}
