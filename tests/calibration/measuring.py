"""How often and how soon: whole rollouts of one law through one monitor, and what became of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from analyzers import (
    Counts,
    Histogram,
    Margins,
    Monitor,
    MonitorConfig,
    Past,
    Prior,
    Window,
    learn_margins,
    learn_prior,
    summarize_past,
)
from analyzers.margins import needed
from tests.calibration.pod_streams import PodLaw, pod_windows
from tests.calibration.streams import Law, windows

Array = NDArray[np.float64]

NO_MARGINS = Margins.none()
PAST_POOL = 100
"""Past rollouts of a law among which each rollout's own history is drawn."""
PAST_LENGTH = 240
"""Windows of a past rollout at most."""
ROLLOUTS_A_LEARNING = 100
"""Rollouts that share one learned margin."""


@dataclass(frozen=True)
class Cell:
    """One thing that is measured: what happens, for how long, and under which configuration.

    weights : shares of the evidence; none: the library's own.
    past : good rollouts of the same law that each rollout knows of; 0: none, the default prior. learn : counts by pod
    are given by arm, with margins learned from 99 past rollouts, anew for each hundred rollouts.
    """

    name: str
    law: Law | PodLaw
    length: int = 60
    past: int = 0
    margins: Margins = NO_MARGINS
    required: frozenset[str] | None = None
    warmup: int = 0
    rate: float = 0.01
    planned: bool = True
    learn: bool = False
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def by_pod(self) -> bool:
        """Whether the monitor is given counts by pod."""
        return isinstance(self.law, PodLaw)

    @property
    def config(self) -> MonitorConfig:
        """What the monitor is told."""
        return MonitorConfig(
            planned_windows=self.length if self.planned else None, margins=self.margins, required=self.required,
            warmup_windows=self.warmup, false_rollback=self.rate, weights=dict(self.weights) or None,
        )  # fmt: skip

    def stream(self, rollouts: int, seed: int) -> Iterator[Window]:
        """The windows of this cell."""
        if isinstance(self.law, Law):
            return windows(self.law, rollouts, self.length, seed)
        stream = pod_windows(self.law, rollouts, self.length, seed)
        return map(by_arm, stream) if self.learn else stream


@dataclass(frozen=True)
class Outcome:
    """First window (1 is the first) of each rollout's rollback, pause and being safe; infinite where there was none.

    requests : canary requests until the rollback, counted from the fault's onset.
    """

    rollback: Array
    pause: Array
    safe: Array
    requests: Array

    @staticmethod
    def join(parts: list[Outcome]) -> Outcome:
        """The outcomes of all parts."""
        return Outcome(*(np.concatenate([getattr(p, f) for p in parts]) for f in Outcome.__dataclass_fields__))


def measure(cell: Cell, rollouts: int, seed: int) -> Outcome:
    """Watch ``rollouts`` rollouts of the cell from the first to the last window."""
    if cell.learn and rollouts > ROLLOUTS_A_LEARNING:
        blocks = range(0, rollouts, ROLLOUTS_A_LEARNING)
        return Outcome.join([measure(cell, ROLLOUTS_A_LEARNING, seed + 1000 * (1 + i)) for i in blocks])
    config = replace(cell.config, margins=_learned(cell, seed)) if cell.learn else cell.config
    prior = priors(cell, rollouts, seed) if cell.past else None
    monitor = Monitor(config, rollouts, prior=prior)
    first = {name: np.full(rollouts, np.inf) for name in ("rollback", "pause", "safe")}
    served, found_after = np.zeros(rollouts), np.full(rollouts, np.inf)
    for t, window in enumerate(cell.stream(rollouts, seed), start=1):
        verdict = monitor.observe(window)
        canary = window.predictions and window.predictions.canary
        canary = window.errors.canary_total if window.errors is not None else canary
        if canary is not None and t > cell.law.onset:
            served += np.asarray(canary).reshape(rollouts, -1).sum(1)
        fresh = np.isinf(first["rollback"]) & verdict.rollback
        found_after[fresh] = served[fresh]
        for name, at in first.items():
            at[np.isinf(at) & getattr(verdict, name)] = t
    return Outcome(**first, requests=found_after)


def by_arm(window: Window) -> Window:
    """Counts by pod as counts by arm."""
    latency, errors = window.latency, window.errors
    return Window(
        latency and Histogram(latency.edges, *(np.asarray(x).sum(1) for x in (latency.canary, latency.stable))),
        errors and Counts(*(np.asarray(getattr(errors, n)).sum(1) for n in Counts.__slots__)),
    )


def _learned(cell: Cell, seed: int) -> Margins:
    wanted = needed(cell.rate)
    past = [list(x) for x in zip(*(_rows(w) for w in cell.stream(wanted, seed + 500)), strict=True)]
    learned = learn_margins(past, replace(cell.config, margins=Margins()))
    assert learned.enough, learned.reason
    return learned


def _rows(window: Window) -> list[Window]:
    """The window of each rollout by itself."""
    latency, errors = window.latency, window.errors
    assert latency
    assert errors
    hist = [np.asarray(x) for x in (latency.canary, latency.stable)]
    four = [np.asarray(getattr(errors, n)) for n in Counts.__slots__]
    return [
        Window(Histogram(latency.edges, *(h[r : r + 1] for h in hist)), Counts(*(x[r : r + 1] for x in four)))
        for r in range(len(hist[0]))
    ]


@lru_cache(maxsize=4)
def past_of(law: Law | PodLaw, length: int) -> list[Past]:
    """What good rollouts of this law leave behind."""
    n = min(length, PAST_LENGTH)
    stream = (windows if isinstance(law, Law) else pod_windows)(law.without_fault(), PAST_POOL, n, 777 + n)  # type: ignore[arg-type]
    return summarize_past(stream, PAST_POOL)


def priors(cell: Cell, rollouts: int, seed: int) -> list[Prior]:
    pool, rng = past_of(cell.law, cell.length), np.random.default_rng(seed + 7)
    picks = [rng.choice(len(pool), cell.past, replace=False) for _ in range(rollouts)]
    return [learn_prior([pool[i] for i in pick]) for pick in picks]


def share(count: int, of: int) -> str:
    """A count as a percentage with its 95 % binomial interval."""
    ends = binomtest(count, of).proportion_ci(0.95)
    return f"{100 * count / of:.2f} % [{100 * ends.low:.2f}, {100 * ends.high:.2f}] of {of}"


def found_after(first: Array, onset: int) -> str:
    """Cells of a row: the share of rollouts without an earlier alarm in which something is found, and the median
    windows from ``onset`` until then. first : (R,) the window in which each is, infinite where it never is."""
    late = first[first > onset] - onset
    median = np.quantile(late, 0.5, method="inverted_cdf")
    shown = f"{median:.0f}" if np.isfinite(median) else "-"
    return f"{share(int(np.isfinite(late).sum()), len(late))} | {shown}"
