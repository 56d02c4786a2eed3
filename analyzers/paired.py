"""Paired predictions: the same requests answered by both versions (mirrored traffic), compared answer by answer.

Only pairs that disagree say anything about a shift: if it is harmless, «stable says i, canary says j» is as likely as
the reverse (McNemar; Bowker for more than two classes). How often they disagree at all is held against the rate at
which one version disagrees with itself. Both are sequential and hold over the whole rollout. Far fewer requests are
needed than for two independent samples. Source: reference statistics.md 3 (paired shadow traffic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzers.boundary import start_share
from analyzers.errors import share_at

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

TILTS = np.array([0.62, 0.75, 0.9])
"""Shares of one direction among the disagreements of two classes that are bet on, each way."""
PSI = np.array([1.3, 2.0, 4.0])[:, None]
"""Odds ratios of disagreeing, beyond what is tolerated, that are bet on."""
SHIFT_WEIGHT = 0.5
"""Of the evidence, on a shift; the rest is on the disagreement rate."""
FIRST = (0.0, 0.5, 0.5)
"""Half of the start weight on a fault from the first window, the rest evenly on the later ones."""
LOG_CAP_WINDOW = 3.0
"""One window multiplies no bet by more than e^3 = 20, so that one odd batch decides nothing."""
LARGEST = 1e200
FORMAT = 1.0
_HEAD = ("format", "classes", "t", "hit", "pairs", "disagreed", "spent")


@dataclass(frozen=True, slots=True)
class PairedConfig:
    """The promise and its terms.

    false_alarm : P(a harmless release is ever called harmful), over all windows. tolerated : share of requests on
    which two runs of the same version disagree; measure it with stable mirrored to itself. planned_windows : None
    where no length is planned.
    """

    false_alarm: float = 0.01
    tolerated: float = 0.01
    planned_windows: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm < 0.5:
            raise ValueError(f"false_alarm must lie between 0 and 0.5, found {self.false_alarm!r}")
        if not 0 < self.tolerated < 1:
            raise ValueError(f"tolerated must lie between 0 and 1, found {self.tolerated!r}")
        if self.planned_windows is not None and self.planned_windows < 1:
            raise ValueError(f"planned_windows must be at least 1 or None, found {self.planned_windows!r}")


@dataclass(frozen=True, slots=True)
class PairedVerdict:
    """What all windows so far say; arrays (R,). NaN where nothing is known yet.

    harmful : sticky. log_evidence : of a shift or of too much disagreement. log_shift, log_disagreement : their parts.
    rate, rate_low, rate_high : share of pairs that disagree, with a sequence that holds at every window with 95 %.
    blind : no pairs in this window.
    """

    harmful: Flags
    log_evidence: Array
    log_shift: Array
    log_disagreement: Array
    rate: Array
    rate_low: Array
    rate_high: Array
    blind: Flags


class PairedMonitor:
    """Follows ``rollouts`` rollouts of ``classes`` classes side by side."""

    def __init__(self, config: PairedConfig, classes: int, rollouts: int = 1) -> None:
        if classes < 2 or rollouts < 1:
            raise ValueError(f"needs at least two classes and one rollout, found {classes} and {rollouts}")
        self.config, self.classes, self.rollouts = config, classes, rollouts
        self._upper = np.triu_indices(classes, 1)
        self._state = np.zeros((len(_HEAD) + len(PSI) + 2 * len(TILTS) * len(self._upper[0]), rollouts))
        self._state[0], self._state[1] = FORMAT, classes

    @classmethod
    def restore(cls, config: PairedConfig, state: Array) -> Self:
        """A monitor that continues exactly where the rows of ``state`` (R, D) stand."""
        rows = np.asarray(state, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] < len(_HEAD) or (rows[:, 0] != FORMAT).any():
            raise ValueError("state does not hold rows that this version of the paired monitor wrote")
        monitor = cls(config, int(rows[0, 1]), len(rows))
        if rows.shape[1] != len(monitor._state) or (rows[:, 1] != rows[0, 1]).any():
            raise ValueError("state holds rows of different numbers of classes")
        monitor._state = rows.T.copy()
        return monitor

    def state(self) -> Array:
        """(R, D) float64, one row a rollout; all that a continuation needs."""
        return self._state.T.copy()

    def observe(self, pairs: ArrayLike) -> PairedVerdict:
        """Take in one window: (R, C, C) counts of requests that stable put in class i (first) and the canary in j."""
        counts = self._checked(pairs)
        st = dict(zip(_HEAD, self._state[: len(_HEAD)], strict=True))
        rate_bets = self._state[len(_HEAD) : len(_HEAD) + len(PSI)]
        shift_bets = self._state[len(_HEAD) + len(PSI) :].reshape(2, len(TILTS), -1, self.rollouts)
        n = counts.sum((1, 2))
        forth = counts[:, self._upper[0], self._upper[1]].T  # (pairs of classes, R)
        back = counts[:, self._upper[1], self._upper[0]].T
        differ = forth.sum(0) + back.sum(0)
        ok = n > 0
        compared = (st["pairs"] > 0).astype(float)
        share = start_share(np.zeros((1, 1)), st["t"], compared, self.config.planned_windows, FIRST)[0]
        share = share * (1.0 - st["spent"]) * ok
        st["spent"] += share
        for way, (one, other) in enumerate(((forth, back), (back, forth))):
            for g, tilt in enumerate(TILTS):
                log_e = one * math.log(2 * tilt) + other * math.log(2 * (1 - tilt))
                shift_bets[way, g] += share / (2 * len(TILTS) * len(forth))
                shift_bets[way, g] *= np.exp(np.clip(log_e, -50.0, LOG_CAP_WINDOW))
        more = share_at(np.full(1, self.config.tolerated), PSI)
        log_e = differ * np.log(more / self.config.tolerated) + (n - differ) * np.log(
            (1 - more) / (1 - self.config.tolerated)
        )
        rate_bets += share / len(PSI)
        rate_bets *= np.exp(np.clip(log_e, -50.0, LOG_CAP_WINDOW))
        np.minimum(self._state[len(_HEAD) :], LARGEST, out=self._state[len(_HEAD) :])
        st["t"] += 1
        st["pairs"] += n
        st["disagreed"] += differ
        rest = 1.0 - st["spent"]
        shift, disagreement = shift_bets.sum((0, 1, 2)) + rest, rate_bets.sum(0) + rest
        log_e = np.log(SHIFT_WEIGHT * shift + (1 - SHIFT_WEIGHT) * disagreement)
        st["hit"][...] = np.maximum(st["hit"], log_e >= -math.log(self.config.false_alarm))
        low, high = rate_sequence(st["disagreed"], st["pairs"])
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = np.where(st["pairs"] > 0, st["disagreed"] / st["pairs"], np.nan)
        return PairedVerdict(st["hit"] > 0, log_e, np.log(shift), np.log(disagreement), rate, low, high, ~ok)

    def _checked(self, pairs: ArrayLike) -> Array:
        counts = np.asarray(pairs, dtype=np.float64)
        wanted = (self.rollouts, self.classes, self.classes)
        if counts.shape != wanted:
            raise ValueError(f"pairs must have shape {wanted}, found {counts.shape}")
        bad = np.argwhere(~((counts >= 0) & (counts == np.floor(counts)) & np.isfinite(counts)))
        if len(bad):
            place = tuple(int(i) for i in bad[0])
            raise ValueError(f"pairs{list(place)} is {counts[place]:g}; counts are whole numbers of at least 0")
        return counts


def rate_sequence(events: Array, of: Array, log_level: float = math.log(0.05)) -> tuple[Array, Array]:
    """(low, high) of a rate, at every window at once: what a mixture over all rates does not refute.

    Robbins' mixture with a Beta(1/2, 1/2) prior; the ends by bisection, rounded outward to 1e-9.
    """
    from scipy.special import betaln  # half a second to import, and the only use of it here

    rest = of - events
    mixture = betaln(events + 0.5, rest + 0.5) - betaln(0.5, 0.5)

    def refuted(p: Array) -> Flags:
        with np.errstate(divide="ignore", invalid="ignore"):
            fit = np.where(events > 0, events * np.log(p), 0.0) + np.where(rest > 0, rest * np.log1p(-p), 0.0)
        out: Flags = mixture - fit >= -log_level
        return out

    middle = np.where(of > 0, events / np.maximum(of, 1.0), 0.5)
    ends = []
    for outer in (np.zeros_like(middle), np.ones_like(middle)):
        inside, outside = middle.copy(), outer.copy()
        for _ in range(30):
            half = 0.5 * (inside + outside)
            out = refuted(half)
            outside, inside = np.where(out, half, outside), np.where(out, inside, half)
        ends.append(outside)
    return ends[0], ends[1]
