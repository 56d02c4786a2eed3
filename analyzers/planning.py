"""Planning: how many canary requests and minutes an effect takes to be found, before anything is started.

From the expected evidence a request against the boundary (Wald); the constant for a start-weighted grid was fitted to
simulated medians. Sources: reference statistics.md section 6; Noether (1987) for ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtr

from analyzers.boundary import log_boundary
from analyzers.config import Margins

GRID_NATS = 2.1
"""Price of not knowing strength, metric and start, in nats; fitted to simulated medians (tests/unit/analyzers)."""

LADDER = (1, 2, 5, 10, 20, 30, 50)
"""First weights in percent that are considered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Median cost of finding one effect; None where it cannot be found, and ``reason`` says why."""

    canary_requests: int | None
    minutes: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Effect:
    """What a user wants found. Give exactly one.

    slower : ratio of all latencies, with ``log_sd`` of the service's latency. errors : (stable rate, canary rate).
    """

    slower: float | None = None
    log_sd: float = 0.6
    errors: tuple[float, float] | None = None


def plan(
    effect: Effect,
    *,
    weight_percent: float,
    requests_per_minute: float,
    false_rollback: float = 0.01,
    planned_windows: int | None = None,
    margins: Margins | None = None,
) -> Plan:
    """Median canary requests and minutes until ``effect`` is found at this weight and traffic.

    weight_percent in (0, 100); requests_per_minute : both arms together.
    """
    if not 0 < weight_percent < 100 or requests_per_minute <= 0:
        raise ValueError(f"weight_percent must lie between 0 and 100 and traffic be positive, found {weight_percent!r}")
    if (effect.slower is None) == (effect.errors is None):
        raise ValueError("an effect names either slower or errors")
    tolerated = margins or Margins()
    share = weight_percent / 100
    nats = log_boundary(false_rollback, planned_windows, 0.225) + GRID_NATS
    if effect.slower is not None:
        information = _rank_information(effect.slower, tolerated.latency, effect.log_sd, share)
        limit = f"latency x{effect.slower:g} lies within the limit x{tolerated.latency:g}"
    else:
        assert effect.errors is not None
        stable, canary = effect.errors
        information = _error_information(stable, canary, tolerated.errors, share)
        limit = f"errors {stable:g} to {canary:g} lie within the limit of {tolerated.errors:g} times the odds"
    if information <= 0:
        return Plan(None, None, f"cannot be found at any weight: {limit}")
    requests = nats / information
    minutes = requests / (requests_per_minute * share)
    return Plan(math.ceil(requests), minutes, f"about {math.ceil(requests)} canary requests, {minutes:.0f} min")


def recommend(
    effects: list[Effect],
    *,
    bake_minutes: float,
    requests_per_minute: float,
    false_rollback: float = 0.01,
    margins: Margins | None = None,
) -> tuple[int | None, str]:
    """(smallest first weight in percent that finds every effect within the bake time, why); None where none does."""
    missing = ""
    for weight in LADDER:
        plans = [
            plan(
                e,
                weight_percent=weight,
                requests_per_minute=requests_per_minute,
                false_rollback=false_rollback,
                margins=margins,
            )
            for e in effects
        ]
        missing = next((p.reason for p in plans if p.minutes is None), "")
        if not missing and all(p.minutes is not None and p.minutes <= bake_minutes for p in plans):
            slowest = max(p.minutes or 0.0 for p in plans)
            return weight, f"{weight} % finds every named effect in about {slowest:.0f} min"
    return None, missing or f"no first weight finds every named effect within {bake_minutes:.0f} min at this traffic"


def _rank_information(slower: float, tolerated: float, log_sd: float, share: float) -> float:
    """Nats a canary request of the rank statistic; 0 where the effect lies within the margin."""
    excess = math.log(slower) - math.log(tolerated)
    if excess <= 0:
        return 0.0
    delta = float(ndtr(excess / (log_sd * math.sqrt(2)))) - 0.5
    return 6.0 * (1.0 - share) * delta * delta


def _error_information(stable: float, canary: float, tolerated: float, share: float) -> float:
    """Nats a canary request of the conditional count; 0 where the effect lies within the margin."""
    odds = (canary / (1 - canary)) / (stable / (1 - stable))
    if odds <= tolerated:
        return 0.0
    rate = (1 - share) * stable + share * canary
    q, c = share * canary / rate, tolerated * share / (tolerated * share + 1 - share)
    return rate * (q * math.log(q / c) + (1 - q) * math.log((1 - q) / (1 - c))) / share
