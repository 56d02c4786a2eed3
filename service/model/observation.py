"""What telemetry said of one window: exact counts for both arms, or why there are none.

No data, too little, stale numbers and a store that is away are four different things from end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from service.model.names import RolloutId
from service.model.target import Place


class Availability(StrEnum):
    """How much a reading is worth."""

    ENOUGH = "enough"
    FEW = "few"  # both arms have series, but an arm had no requests in this window
    NO_SERIES = "no_series"  # the store answered, and an arm has no such series
    STALE = "stale"  # series exist, but their last sample is older than the window allows
    AWAY = "away"  # the store did not answer, or answered with an error
    DEGRADED = "degraded"  # the store answered with warnings: the numbers may be partial

    @property
    def usable(self) -> bool:
        """True when the numbers may be compared; only FEW and ENOUGH are complete."""
        return self in (Availability.ENOUGH, Availability.FEW)


@dataclass(frozen=True, slots=True)
class HistogramCounts:
    """Requests by latency bucket in the window, not cumulative. The last bucket is +Inf.

    edges_s : upper bounds in seconds, ascending, one fewer than the counts.
    """

    edges_s: tuple[float, ...]
    canary: tuple[int, ...]
    stable: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FailureCounts:
    """Failed and all requests in the window."""

    canary: int
    canary_total: int
    stable: int
    stable_total: int


@dataclass(frozen=True, slots=True)
class CategoryCounts:
    """Predictions by class or score bucket in the window, in the order of ``names``."""

    names: tuple[str, ...]
    canary: tuple[int, ...]
    stable: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ArmValues:
    """One number an arm, for guards; None where an arm has none."""

    canary: float | None
    stable: float | None


@dataclass(frozen=True, slots=True)
class LineCounts:
    """Log lines of the canary that a pattern matches, by pattern and by what they are about, with the same of stable.

    Kinds of lines that the canary has none of are not looked for in stable, so empty means: none of the canary.
    """

    names: tuple[str, ...]
    """For example ``missing-opkernel FancyOp``."""
    canary: tuple[int, ...]
    """In the window and, as the preset says, some time before it."""
    stable: tuple[int, ...]
    """In the same time."""
    stable_before: tuple[int, ...]
    """Before that, for as long as the preset says: what stable prints when it starts is known of it."""

    def only_on_canary(self) -> tuple[int, ...]:
        """The canary's lines of kinds that stable has none of, in the order of ``names``; zero for the others."""
        kinds = zip(self.canary, self.stable, self.stable_before, strict=True)
        return tuple(0 if stable or before else canary for canary, stable, before in kinds)


@dataclass(frozen=True, slots=True)
class PodValue:
    """What one pod used in the window."""

    pod: str
    value: float | None
    """None where the exporter has none, which is not 0."""
    limit: float | None = None
    age_s: float | None = None
    """Since the pod's start; None where that is not told."""


@dataclass(frozen=True, slots=True)
class PodValues:
    """One resource of the pods of both arms, of which each has a value of one pod at least."""

    measures: str
    """How pods are compared; see ``preset.ResourceSeries``."""
    unit: str
    canary: tuple[PodValue, ...]
    stable: tuple[PodValue, ...]
    settled_s: float = 600.0
    """Pods younger than this are still starting."""
    canary_n: int | None = None
    """Pods of the arm in all, where only some are listed; None: those that are listed."""
    stable_n: int | None = None

    @property
    def serving_n(self) -> tuple[float, float]:
        """About how many pods share each arm's requests: all but the share that has no value (ended, evicted)."""
        listed = ((self.canary, self.canary_n), (self.stable, self.stable_n))
        canary, stable = (
            sum(one.value is not None for one in arm) / len(arm) * (len(arm) if n is None else n) if arm else 0.0
            for arm, n in listed
        )
        return canary, stable

    @property
    def means(self) -> tuple[float | None, float | None]:
        """(canary, stable) over the pods that have a value."""
        known = [[one.value for one in arm if one.value is not None] for arm in (self.canary, self.stable)]
        canary, stable = (sum(values) / len(values) if values else None for values in known)
        return canary, stable


Counts: TypeAlias = HistogramCounts | FailureCounts | CategoryCounts | ArmValues | LineCounts | PodValues


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric in one window. ``counts`` is None unless ``availability.usable``."""

    metric: str
    availability: Availability
    counts: Counts | None = None
    detail: str = ""
    """One clause for people: which series, what was missing, what the store said."""


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """Ask for the metrics of one rollout in ``(start_s, end_s]``, seconds since the epoch."""

    rollout: RolloutId
    cluster: str
    place: Place
    metrics: tuple[str, ...]
    start_s: float
    end_s: float
