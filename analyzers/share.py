"""Share check: whether the canary gets the part of requests that was asked for.

A second route, retries, sticky sessions or a mesh that did not follow send another share than the weight says. That is
told with its size, and is never evidence for or against the release: every comparison here is conditional on the
requests that came. Two-sided, sequential, with a tolerance, because sessions and few requests move shares a little.
Source: reference statistics.md 1.2 (sample ratio mismatch); tolerance, cap and robust variance are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzers.boundary import start_share
from analyzers.latency import mixture_radius

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

TOLERANCE = 1.25
"""Odds of coming to the canary that may differ from the weight's by this factor, up or down."""
PSI = np.array([1.25, 2.0, 8.0])[:, None]
"""Odds ratios beyond the tolerance that are bet on."""
LOG_CAP_WINDOW = 2.0
"""One window multiplies no bet by more than e^2, so that a mismatch is told after three windows at the earliest."""
LOG_MISMATCH = float(np.log(100.0))
"""Evidence at which a mismatch is told: a share within the tolerance is ever told so in 1 of 100 rollouts at most."""
FIRST = (0.0, 0.5, 0.5)
LARGEST = 1e200


@dataclass(frozen=True, slots=True)
class ShareVerdict:
    """The canary's share of requests over all windows in which a weight was known; arrays (R,), NaN before the first.

    asked : what the weights asked for. share, low, high : what came, with the ends of a sequence that holds at every
    window at once with 95 % and is widened where the share wanders. log_e : log evidence of a mismatch beyond the
    tolerance. mismatch : told.
    """

    asked: Array
    share: Array
    low: Array
    high: Array
    log_e: Array
    mismatch: Flags


def fields() -> dict[str, tuple[int, ...]]:
    """State of one rollout: field -> shape."""
    numbers = ("judged", "n_canary", "n", "asked", "variance", "squares", "expected_squares", "spent")
    return {**dict.fromkeys(numbers, ()), "bets": (2, len(PSI))}


def update(st: dict[str, Array], canary: Array, total: Array, weight: Array, t: Array, planned: int | None) -> None:
    """Take in one window. canary, total : (R,) requests; weight : (R,) share asked for, NaN or at an end: no look."""
    ok = (total > 0) & (weight > 0) & (weight < 1)
    w, n, x = np.where(ok, weight, 0.5), total * ok, canary * ok
    # Wandering is told apart from a constant mismatch: by how windows differ from the share so far.
    usual = np.minimum(w * (st["n_canary"] + 1.0) / (st["asked"] + 1.0), 1.0)
    share = start_share(np.zeros((1, 1)), t, st["judged"], planned, FIRST)[0] * (1.0 - st["spent"]) * ok
    st["judged"] += ok
    st["spent"] += share
    st["n_canary"] += x
    st["n"] += n
    st["asked"] += n * w
    st["variance"] += n * w * (1.0 - w)
    st["squares"] += (x - n * usual) ** 2 * (st["judged"] > 1)
    st["expected_squares"] += n * usual * (1.0 - usual) * (st["judged"] > 1)
    for side, (count, part) in enumerate(((x, w), (n - x, 1.0 - w))):
        tolerated = TOLERANCE * part / (TOLERANCE * part + 1.0 - part)
        log_e = count * np.log(PSI) - n * np.log1p(tolerated * (PSI - 1.0))
        bets = st["bets"][side]
        bets += share / (2 * len(PSI))
        bets *= np.exp(np.clip(log_e, -50.0, LOG_CAP_WINDOW) * ok)
    np.minimum(st["bets"], LARGEST, out=st["bets"])


def verdict(st: dict[str, Array], log_level: float) -> ShareVerdict:
    """What all windows so far say."""
    n = np.where(st["n"] > 0, st["n"], np.nan)
    spread = np.maximum((st["squares"] + 1.0) / (st["expected_squares"] + 1.0), 1.0)
    radius = mixture_radius(st["variance"] * spread, log_level) / n
    share = st["n_canary"] / n
    log_e = np.log(np.maximum(st["bets"].sum((0, 1)) + 1.0 - st["spent"], 1e-300))
    low, high = np.maximum(share - radius, 0.0), np.minimum(share + radius, 1.0)
    return ShareVerdict(st["asked"] / n, share, low, high, log_e, log_e >= LOG_MISMATCH)
