"""One thing that was looked at, and what came of it; a gate's answer is put together of these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """Of one check."""

    GOOD = "good"
    BAD = "bad"
    UNSEEN = "unseen"  # could not be told, which is no pass


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``said`` is a clause that can stand alone; ``to_do`` is empty where it is good."""

    outcome: Outcome
    said: str
    to_do: str = ""
