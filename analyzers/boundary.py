"""When evidence is enough: the boundary, and how the start weight is spread over the windows.

Evidence of a component is a mixture over the window in which the fault starts. The weights of all starts sum to at
most 1, so the mixture is a nonnegative supermartingale from 1 and Ville's inequality bounds its crossing of 1 / rate.
With a planned length the boundary is lower: the quantile of the maximum that was measured on null rollouts.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NATS_NEEDED = 6.0
"""Evidence that a decision takes, about; turns information a window into windows to detect."""

FIRST = (1.6, 0.08, 0.85)
FIRST_ERRORS = (2.5, 0.08, 0.90)
FIRST_PREDICTIONS = (0.8, 0.08, 0.85)
"""Share of the start weight on «faulty from the first window»: clip(a * windows needed / planned, low, high).
Slow components are bet on from the start; fast ones are spread over all windows."""

UNPLANNED_WINDOWS = 240.0
"""The length that shapes the grids when none is planned."""

_PLANNED = np.log([15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 1440.0])
_LOG_BOUNDARY = {
    0.01: np.array([3.40, 3.58, 3.77, 3.90, 4.00, 4.20, 4.50]),
    0.10: np.array([1.24, 1.48, 1.66, 1.70, 1.74, 1.78, 1.85]),
}
"""log of the null quantile of the combined evidence's maximum, by planned windows. Measured on exchangeable arms;
tests/calibration measures it again on other seeds."""

_ERROR_SHARE = 0.21
_ERROR_EXTRA = 0.25
"""Rare counts overshoot less, so where errors carry more of the weight than usual the boundary lies higher."""

AFTER_PLAN_SHARE = 0.1
"""Past the planned length no new starts are bet on, and a tenth of the rate is kept for it by Ville's inequality."""


def log_boundary(rate: float, planned: int | None, error_share: float) -> float:
    """log of the evidence at which the promised ``rate`` is used up.

    rate : P(a harmless release ever crosses), in (0, 1). planned : windows, None for the provable boundary.
    error_share : part of the combined weight that the errors metric carries.
    """
    ville = -math.log(rate)
    if planned is None:
        return ville
    low, high = (float(np.interp(math.log(planned), _PLANNED, _LOG_BOUNDARY[a])) for a in (0.01, 0.10))
    from_low = math.log(rate) - math.log(0.01)
    # Below 1 % a nat a nat (Ville's slope, the safe side); between and above, the measured line.
    c = low - from_low if from_low < 0 else low + (high - low) * from_low / math.log(10.0)
    extra = _ERROR_EXTRA * max(error_share - _ERROR_SHARE, 0.0) / (1 - _ERROR_SHARE)
    return min(c + extra, ville)


_PLANNED_PODS = np.log([60.0, 240.0, 1440.0])
_LOG_BOUNDARY_PODS = {0.01: np.log([30.0, 55.0, 90.0]), 0.10: np.log([4.8, 5.8, 7.0])}
"""The same with pods as units, for the weights of ``analyzers.pods``: near the largest quantile among the laws of
tests/calibration, on other seeds. The provable boundary holds for an average."""


def log_boundary_pods(rate: float, planned: int | None) -> float:
    """log of the evidence at which the promised ``rate`` is used up where pods are the units; see ``log_boundary``."""
    if planned is None:
        return -math.log(rate)
    low, high = (float(np.interp(math.log(planned), _PLANNED_PODS, _LOG_BOUNDARY_PODS[a])) for a in (0.01, 0.10))
    from_low = math.log(rate) - math.log(0.01)
    return low - from_low if from_low < 0 else low + (high - low) * from_low / math.log(10.0)


def start_share(
    needed: Array, t: Array, judged: Array, planned: int | None, first: tuple[float, float, float]
) -> Array:
    """Share of the unspent start weight that goes to «the fault starts in this window».

    needed : (G, R) or (G, 1) windows that a component needs to be detected. t : (R,) windows before this one.
    judged : (R,) windows in which this metric was compared before. Returns (G, R) in [0, 1].
    """
    length = float(planned or UNPLANNED_WINDOWS)
    at_first = np.clip(first[0] * needed / length, first[1], first[2])
    if planned is None:
        later = np.broadcast_to(0.3 / ((t + 8.0) * np.log(t + 8.0)), np.broadcast_shapes(needed.shape, t.shape))
    else:
        left = np.ceil(np.maximum(planned - 0.6 * needed, 2.0)) - t
        later = np.where(left >= 1.0, 1.0 / np.maximum(left, 1.0), 0.0)
    return np.where(judged == 0, at_first, later)


def detectable(needed: Array, planned: int | None, floor: float, reach: float = 0.6) -> Array:
    """Weight of components by whether they can be detected within ``reach`` of the rollout's length."""
    length = float(planned or UNPLANNED_WINDOWS)
    return np.exp(-2.0 * np.maximum(needed / (reach * length) - 1.0, 0.0)) + floor
