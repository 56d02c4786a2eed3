"""What past rollouts of a service teach: how much its pods differ, wander and warm up, and how its failures burst.

A rollout that ended well leaves a ``Past``: the log likelihood of everything it saw under each model of «nothing is
wrong». The next one starts from a ``Prior``: the models weighted by what the last ones left, with part of the default
kept, because the next may differ. Source: reference statistics-pods.md section 2, History.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from analyzers import effects, errors, latency, pods
from analyzers.layout import read_layout
from analyzers.windows import Checked, Window, checked

Array = NDArray[np.float64]

MOST_PAST_ERRORS = 30
"""Failures are few, so that many rollouts are needed to know how they cluster."""
KEPT_DEFAULT = 0.05
KEPT_WARM = 0.002
"""Of warm-ups only the learned part is kept, and this much: a service without them pays nothing for them."""


def _usual(name: str) -> Array:
    return pods.default_prior(pods.FILTERS[name])


@dataclass(frozen=True, slots=True)
class Prior:
    """Log prior of the models of «nothing is wrong». Without arguments: for a service that nothing is known of.

    bursts : (2,) of one arm's failures without and with bursts, where arms are the units. rank, p95, p99, errors :
    (noises, half lives, levels), where pods are. rollouts : how many past rollouts it rests on.
    """

    bursts: Array = field(default_factory=errors.LOG_PRIOR.copy)
    rank: Array = field(default_factory=lambda: _usual("rank"))
    p95: Array = field(default_factory=lambda: _usual("p95"))
    p99: Array = field(default_factory=lambda: _usual("p99"))
    errors: Array = field(default_factory=lambda: _usual("errors"))
    rollouts: int = 0

    def warm_up_probability(self) -> float:
        """How likely it is that new pods of this service start slowly."""
        mass = np.exp(self.rank)
        return float(1.0 - mass[:, 0].sum() / mass.sum())


@dataclass(frozen=True, slots=True)
class Past:
    """What one finished, harmless rollout says of its service: log likelihoods, shaped as in ``Prior``.

    None for what it did not count (pods, or arms). Some 2,000 numbers by pod, two by arm.
    """

    bursts: Array | None = None
    rank: Array | None = None
    p95: Array | None = None
    p99: Array | None = None
    errors: Array | None = None


def summarize_past(windows: Iterable[Window], rollouts: int = 1) -> list[Past]:
    """What finished rollouts that were found harmless say of their service, one for each of R = ``rollouts``.

    windows : the same as a monitor saw, with errors; by pod with latency too. By pod about a millisecond a
    rollout-window, by arm some microseconds.
    """
    arms: dict[str, Array] = {}
    by_pod: dict[str, dict[str, Array]] = {}
    for t, window in enumerate(windows):
        counts = checked(window, rollouts)
        if counts.pods is not None:
            _learn_pods(by_pod, counts, t, rollouts)
        elif counts.errors is not None:
            if not arms:
                arms = _zeros(errors.fields(bets=True), rollouts)
                errors.begin(arms, errors.LOG_PRIOR[:, None])
            errors.update(arms, *counts.errors, np.full(rollouts, float(t)), None, 1.0)
        else:
            raise ValueError("past windows must hold errors")
    if by_pod:
        likelihood = {
            name: effects.log_likelihood(grid, by_pod[name]).reshape(*_shape(grid), rollouts)
            for name, grid in _FULL.items()
        }
        return [Past(**{name: x[..., r] for name, x in likelihood.items()}) for r in range(rollouts)]
    return [Past(bursts=np.array([0.0, x])) for x in arms["burst_lik"]] if arms else []


def past_of(state: Array) -> list[Past]:
    """What finished rollouts say of their service, read from the rows (R, D) that ``Monitor.state`` gave at their end.

    Only arms can be read so, equal to ``summarize_past``; rows by pod hold the likeliest models alone and give an empty
    ``Past``. ValueError for what is not a row of this version.
    """
    out = []
    for row in np.asarray(state, dtype=np.float64):
        layout = read_layout(row)
        known = layout.errors and not layout.by_pod
        out.append(Past(bursts=np.append(0.0, row[layout.places()[0]["errors"]["burst_lik"][0]])) if known else Past())
    return out


def learn_prior(past: Sequence[Past], *, last: int = 5) -> Prior:
    """The prior that the ``last`` of the past harmless rollouts of a service give; failures use up to 30 of them."""
    learned: dict[str, Array] = {}
    told = 0
    usual = Prior()
    for name in ("bursts", *pods.FILTERS):
        most = MOST_PAST_ERRORS if name in ("bursts", "errors") else last
        used = [x for x in (getattr(one, name) for one in past) if x is not None][-most:]
        if not used:
            continue
        told = max(told, len(used))
        default = np.exp(getattr(usual, name))
        z = np.log(default) + sum(x - x.max() for x in used)
        mass = np.exp(z - z.max())
        mass /= mass.sum()
        if name == "rank":
            warm = mass.sum((0, 2))
            mass = (1 - KEPT_DEFAULT) * mass + KEPT_DEFAULT * default.sum(1)[:, None] * warm[:, None]
            mass = (1 - KEPT_WARM) * mass + KEPT_WARM * default
        else:
            mass = (1 - KEPT_DEFAULT) * mass + KEPT_DEFAULT * default
        learned[name] = np.log(mass)
    return Prior(**learned, rollouts=told)


_FULL: Mapping[str, effects.Grid] = {
    name: replace(g, slots=len(g.noises) * len(g.half_lives), slot_noises=len(g.noises))
    for name, g in pods.FILTERS.items()
}
"""Every model of each contrast; a rollout under way follows only the likeliest."""


def _shape(grid: effects.Grid) -> tuple[int, int, int]:
    return len(grid.noises), len(grid.half_lives), len(grid.levels)


def _learn_pods(parts: dict[str, dict[str, Array]], counts: Checked, t: int, rollouts: int) -> None:
    if counts.pods is None or not {"latency", "totals"} <= set(counts.by_pod):
        raise ValueError("past windows by pod must hold latency and errors")
    if not parts:
        parts["pods"] = _zeros(pods.fields_of_members(counts.pods), rollouts)
        buckets = counts.by_pod["latency"].canary.shape[1]
        parts["latency"] = _zeros(latency.fields(buckets, None, bets=False), rollouts)
        for name in pods.FILTERS:
            parts[name] = _zeros({"judged": (), **pods.fields(name, counts.pods[1], _FULL)}, rollouts)
            pods.lay_prior(name, parts[name], [_usual(name)], _FULL)
    n, histograms, x = (counts.by_pod[name] for name in ("totals", "latency", "errors"))
    now = np.full(rollouts, float(t))
    who = pods.members(parts["pods"], n.canary, n.stable, counts.ages, now > 0)
    latency.add(parts["latency"], histograms.canary.sum(0), histograms.stable.sum(0))
    pace = pods.Pace(now, None, betting=False)
    tails = parts["rank"], parts["p95"], parts["p99"]
    pods.update_latency(*tails, histograms.canary, histograms.stable, parts["latency"]["hist"], who, pace, _FULL)
    pods.update_count("errors", parts["errors"], x.canary, n.canary, x.stable, n.stable, who, pace, _FULL)


def _zeros(shapes: Mapping[str, tuple[int, ...]], rollouts: int) -> dict[str, Array]:
    return {name: np.zeros((*shape, rollouts)) for name, shape in shapes.items()}
