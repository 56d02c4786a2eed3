"""Learned margins: how different stable pods or past good releases look from one another, and so what is no harm.

Split conformal prediction with one number, the scale of all margins: if the next good release is exchangeable with
the past ones, it is rolled back with at most the promised probability, whatever the law. Source: reference
statistics.md 5.3 (Vovk et al. 2005 for the quantile).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analyzers.config import Margins, MonitorConfig
from analyzers.monitor import Monitor
from analyzers.windows import Window

SCALES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Multiples of the default margins that are tried; 1 is the default itself."""


@dataclass(frozen=True, slots=True)
class Learned(Margins):
    """Margins that say in one sentence what they rest on. ``enough`` is False where the given ones were kept."""

    enough: bool = True
    reason: str = ""


def _learned(margins: Margins, enough: bool, reason: str) -> Learned:
    return Learned(margins.latency, margins.errors, margins.predictions, enough, reason)


def scaled(margins: Margins, scale: float) -> Margins:
    """Margins of ``scale`` times the size, on the scale on which each adds up (log for ratios)."""
    return Margins(
        latency=math.exp(scale * math.log(margins.latency)),
        errors=math.exp(scale * math.log(margins.errors)),
        predictions=scale * margins.predictions,
    )


def needed(false_rollback: float) -> int:
    """Past rollouts that the promise takes: 99 for 1 %, 19 for 5 %."""
    return math.ceil(1 / false_rollback - 1e-9) - 1


def learn_margins(past: Sequence[Sequence[Window]], config: MonitorConfig) -> Learned:
    """The smallest margins at which at most the promised share of past good rollouts would have been rolled back.

    past : rollouts, each a sequence of windows with R = 1. Fewer than ``needed`` keep the configured margins.
    Cost: one pass over ``past`` for each scale.
    """
    wanted = needed(config.false_rollback)
    if len(past) < wanted:
        return _learned(
            config.margins,
            False,
            f"{len(past)} past rollouts are too few to promise {config.false_rollback:g} (needs {wanted}); "
            "the configured margins are kept",
        )
    rank = math.ceil((len(past) + 1) * (1 - config.false_rollback))
    quiet_at = sorted(_smallest_quiet_scale(rollout, config) for rollout in past)
    scale = quiet_at[min(rank, len(past)) - 1]
    if math.isinf(scale):
        return _learned(
            scaled(config.margins, SCALES[-1]),
            False,
            f"even {SCALES[-1]:g} times the configured margins would roll back too many past rollouts; "
            "look at what differs between the pods before trusting any margin",
        )
    return _learned(
        scaled(config.margins, scale), True, f"learned from {len(past)} past rollouts: {scale:g} times the default"
    )


def _smallest_quiet_scale(rollout: Sequence[Window], config: MonitorConfig) -> float:
    for scale in SCALES:
        monitor = Monitor(replace(config, margins=scaled(config.margins, scale)), 1)
        if not any(bool(monitor.observe(window).rollback[0]) for window in rollout):
            return scale
    return math.inf
