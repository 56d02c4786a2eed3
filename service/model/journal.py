"""The journal: what a person would want to read of a rollout, chained by hashes so that a change shows.

A row's hash covers the row before it, the stimulus, and a digest of the state that came of it; windows between two
rows are covered through that digest.
"""

from __future__ import annotations

import hashlib

from service.model.names import RolloutId
from service.model.value import Utc, Value

GENESIS = "0" * 64
"""The hash that stands before a rollout's first row."""


class JournalEntry(Value):
    """One row. ``n`` counts from 1 within the rollout; ``revision`` is the stimulus's place among all of them."""

    rollout: RolloutId
    n: int
    revision: int
    at: Utc
    actor: str
    """Who caused it: ``serinus``, ``event bus``, ``mesh`` or a person."""
    kind: str
    """The stimulus's type, or what came of it when that is more telling (``paused``, ``advanced``, ...)."""
    headline: str
    detail: str = ""
    window: int | None = None
    stimulus: str
    """Canonical JSON of the stimulus."""
    state_digest: str
    """SHA-256 of the new state's canonical JSON, its own journal hash left as it was before."""
    prev_hash: str
    hash: str = ""

    def sealed(self) -> JournalEntry:
        """The same row with its hash."""
        body = self.model_copy(update={"hash": ""}).to_json()
        return self.model_copy(update={"hash": hashlib.sha256(body.encode()).hexdigest()})


def first_broken_row(rows: list[JournalEntry]) -> int | None:
    """``n`` of the first row, in order, whose hash or predecessor does not fit; None for an untouched chain."""
    prev = GENESIS
    for row in rows:
        if row.prev_hash != prev or row.sealed().hash != row.hash:
            return row.n
        prev = row.hash
    return None
