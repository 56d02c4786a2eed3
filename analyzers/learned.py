"""Betting on a classifier that was trained on past windows to tell the arms apart.

Whatever the classifier says of a request, g in [-1, 1], it was chosen before this window. If both arms behave alike and
a window's requests are independent, a canary's g and a stable's g are distributed alike; (g(canary) - g(stable)) / 2 is
then a fair game, and the wealth of whoever bets on it an e-process (Podkopaev and Ramdas 2023; reference statistics.md
1.4). A classifier that learns nothing wins nothing, and none raises the rate of false alarms. For outputs that are
neither classes nor numbers: embeddings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BETS = np.array([0.1, 0.3, 0.6, 0.9])
"""Shares of the wealth that are staked, each with as much of it."""
LARGEST = 1e200


@dataclass(frozen=True, slots=True)
class LearnedEvidence:
    """How the bets stand. wealth : by stake, of what has begun. windows : compared so far."""

    wealth: tuple[float, ...] = (0.0,) * len(BETS)
    windows: int = 0

    @property
    def log_evidence(self) -> float:
        """Nats; P(ever >= log(1/a)) <= a for a harmless release. What has not begun yet is still there."""
        return math.log(sum(self.wealth) / len(BETS) + 1.0 / (self.windows + 1))


def bet(before: LearnedEvidence, canary: ArrayLike, stable: ArrayLike) -> LearnedEvidence:
    """Take in one window: what the classifier, trained on windows before it, said of each arm's requests.

    canary, stable : (n,) and (m,) in [-1, 1], high for «canary». Each canary request is held against as many stable
    ones as there are for it. A window that lacks an arm changes nothing.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (canary, stable))
    for name, said in (("canary", a), ("stable", b)):
        if said.ndim != 1 or not (np.abs(said) <= 1.0).all():
            raise ValueError(f"{name} must be a row of numbers between -1 and 1, found shape {said.shape}")
    pairs_n = min(len(a), len(b))
    if not pairs_n:
        return before
    # The larger arm is cut into as many parts as the smaller one has requests; a part counts by its mean.
    one, other = (np.array([part.mean() for part in np.array_split(x, pairs_n)]) for x in (a, b))
    game = (one - other) / 2.0
    # A part of the start weight enters at each window, 1/2, 1/6, 1/12, ..., so that a late fault finds stakes too.
    begun = 1.0 / ((before.windows + 1) * (before.windows + 2))
    won = np.exp(np.log1p(BETS[:, None] * game[None]).sum(1))
    wealth = np.minimum((np.array(before.wealth) + begun) * won, LARGEST)
    return LearnedEvidence(tuple(float(x) for x in wealth), before.windows + 1)
