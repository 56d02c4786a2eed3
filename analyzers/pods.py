"""Pods as units: what the filters of random effects see of a window, and their grids.

Used where counts carry a pod axis. Three contrasts of canary and stable pods are followed: the mean ridit (Mann-Whitney
per pod), how many requests are slower than the frozen bounds near the 95th and 99th percentile, and failures. Each is
judged against its random effects (``analyzers.effects``), so that pods that differ, wander, warm up or are replaced
cost no false alarm. Source: reference statistics-pods.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzers import effects
from analyzers.boundary import start_share
from analyzers.effects import Grid

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

_CORRELATIONS = (0.4, 0.65, 0.8, 0.92)

RANK = Grid(
    levels=(0.002, 0.005, 0.009, 0.014, 0.02, 0.03, 0.05),
    noises=(
        (0.0, 0.0),
        *((sd, rho) for sd in (0.007, 0.01, 0.014, 0.02, 0.028, 0.04, 0.056, 0.08) for rho in _CORRELATIONS),
    ),
    half_lives=(0.0, 1.0, 2.0, 4.0, 8.0),
    warm_spread=0.2,
    steps=(0.012, 0.025, 0.045, 0.08, 0.14, 0.24),
    slots=20,
    slot_noises=8,
)
"""In ridits (probability of being slower, minus a half); 5 % slower is about .02 at a spread of .6 in log latency.

Spreads of noise lie a factor 1.4 apart: with 1.7 a true spread between two points is taken for the smaller one and a
bit of level, which cost 3 false alarms in 100 four-hour rollouts."""

TAIL = Grid(
    levels=(0.02, 0.05, 0.08, 0.12, 0.2, 0.4),
    noises=((0.0, 0.0), *((sd, rho) for sd in (0.04, 0.08, 0.13, 0.2, 0.4) for rho in _CORRELATIONS)),
    half_lives=(0.0,),
    warm_spread=0.0,
    steps=(0.25, 0.45, 0.8, 1.25, 1.8),
    slots=5,
    slot_noises=5,
)
"""In log odds of being slower than a bound."""

ERRORS = Grid(
    levels=(0.03, 0.08, 0.15, 0.4),
    noises=((0.0, 0.0), (0.4, 0.7), (1.4, 0.5)),
    half_lives=(0.0,),
    warm_spread=0.0,
    steps=(0.25, 0.45, 0.8, 1.25, 1.8),
    slots=3,
    slot_noises=3,
)
"""In log odds of failing; the last noise is bursts of one arm."""


def default_prior(grid: Grid) -> Array:
    """(noises, half lives, levels) log prior of a service without history."""
    if grid is RANK:
        likely = {(0.0, 0.0): 0.28, (0.014, 0.8): 0.12, (0.028, 0.8): 0.12, (0.014, 0.65): 0.1, (0.028, 0.65): 0.1}
        likely |= {(0.056, 0.92): 0.07, (0.08, 0.8): 0.06, (0.02, 0.92): 0.06}
        noise = np.array([likely.get(n, 0.09 / 25) for n in grid.noises])
        warm = np.array([0.5, 0.125, 0.125, 0.125, 0.125])
        level = np.ones(len(grid.levels))
    elif grid is TAIL:
        likely = {(0.0, 0.0): 0.5, (0.13, 0.8): 0.15, (0.4, 0.65): 0.1, (0.2, 0.92): 0.1, (0.08, 0.65): 0.1}
        noise = np.array([likely.get(n, 0.05 / 16) for n in grid.noises])
        warm = np.ones(1)
        level = np.array([0.2, 0.2, 0.2, 0.15, 0.15, 0.1])
    else:
        noise, warm, level = np.array([0.5, 0.25, 0.25]), np.ones(1), np.array([0.3, 0.25, 0.25, 0.2])
    prior = noise[:, None, None] * warm[None, :, None] * level[None, None, :]
    out: Array = np.log(prior / prior.sum())
    return out


FILTERS: dict[str, Grid] = {"rank": RANK, "p95": TAIL, "p99": TAIL, "errors": ERRORS}
OF_LATENCY = ("rank", "p95", "p99")

METRIC_SHARES = {"latency": 0.76, "errors": 0.35, "predictions": 0.2}
METRIC_SHARES_PROVABLE = {"latency": 0.5, "errors": 0.3, "predictions": 0.2}
MOST_SHARES = 1.11
"""Where predictions are compared too, all parts are scaled to this sum, so that the boundary still holds."""
LATENCY_SHARES = {"rank": 0.7, "p95": 0.15, "p99": 0.15}
"""Weights of each metric's evidence, and of the contrasts within latency; the boundary is calibrated for them. The
provable ones are an average, for which Ville's inequality holds."""

MOST_UNITS = 18
"""Stable pods whose own deviations are followed; more are taken in as many groups."""
YOUNG_WINDOWS = 10.0
"""Where new pods may start slowly, canary pods younger than this are left out of the tail contrasts."""
WARM_LIKELY = 0.2
INTERVAL_TUNING = {"rank": 400.0, "errors": 4.0}
"""Information near which an interval is tightest: an effect of .05 in ridits, of .5 in log odds."""
SURELY_THERE = 8.0
"""A pod of which so many requests were expected and none came is gone (probability e^-8 for a pod that is there)."""
SHARE_MEMORY = 0.8
FIRST = (0.0, 0.5, 0.5)
"""Half of the start weight is bet on a fault that is there from the start, the rest evenly on all later windows."""


def fields_of_members(pods: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """State that follows who is there: field -> shape."""
    return {"share": (pods[0],), "canary_age": (pods[0],), "stable_age": (pods[1],)}


def units(stable_pods: int) -> int:
    """Stable pods, or groups of them, that are followed one by one."""
    return min(stable_pods, MOST_UNITS)


def fields(name: str, stable_pods: int, grids: Mapping[str, Grid] = FILTERS) -> dict[str, tuple[int, ...]]:
    """State of one contrast: field -> shape."""
    learned = 0 if name == "errors" else units(stable_pods)
    return grids[name].fields(learned, cumulant=name != "rank")


def lay_prior(
    name: str, st: dict[str, Array], log_priors: Sequence[Array], grids: Mapping[str, Grid] = FILTERS
) -> None:
    """Write the chosen models of each row, one prior a row or one for all."""
    chosen = [effects.choose(grids[name], prior) for prior in log_priors]
    for place, field in enumerate(("slot", "slot_noise", "prior")):
        st[field][...] = np.stack([one[place] for one in chosen], axis=-1)


@dataclass(frozen=True, slots=True)
class Members:
    """Who carried the window's requests; arrays (R,) unless said.

    contrast, moved, young, age : see ``effects.Window``. grown : (Pc, R) canary pods past their possible warm-up.
    replaced : (Ps, R) stable pods that are new in their slot.
    """

    contrast: Array
    moved: Array
    young: Array
    age: Array
    grown: Flags
    replaced: Flags


def members(
    st: dict[str, Array], canary: Array, stable: Array, ages: tuple[Array, Array] | None, started: Flags
) -> Members:
    """Follow which pods are there. canary (Pc, R), stable (Ps, R) : requests; ages likewise, in windows, None unknown.

    Without ages a pod is new when its slot first has requests, and canary pods count as new at the start.
    """
    share, old_canary, old_stable = st["share"], st["canary_age"], st["stable_age"]
    n_c, n_s = np.maximum(canary.sum(0), 1.0), np.maximum(stable.sum(0), 1.0)
    here = canary > 0
    gone = (share > 0) & ~here & (share * n_c >= SURELY_THERE)
    fresh = here & (share <= 0)
    age_c = np.where(fresh, 0.0, old_canary + started) if ages is None else ages[0]
    age_s = old_stable + 1.0 if ages is None else ages[1]
    fell = here & (age_c < old_canary) & (share > 0) & started
    replaced = (stable > 0) & (age_s < old_stable)
    changed = (fresh | gone | fell).any(0)
    present = (share > 0) & ~gone | here
    even = present / np.maximum(present.sum(0), 1.0)
    smooth = np.where(here.any(0), SHARE_MEMORY * share + (1 - SHARE_MEMORY) * canary / n_c, share)
    now = np.where(changed, even, smooth)
    jump = np.where(fell, now**2 + share**2, (now - share) ** 2)
    moved = np.where(changed & started, jump.sum(0), 0.0)
    young = np.where(started, (now * (fresh | fell)).sum(0), 0.0)
    share[...], old_canary[...], old_stable[...] = now, age_c, np.where(stable > 0, age_s, old_stable)
    contrast = (now**2).sum(0) + ((stable / n_s) ** 2).sum(0)
    age = np.where(present, age_c, np.inf).min(0)
    return Members(contrast, moved, young, np.minimum(age, 1e6), age_c >= YOUNG_WINDOWS, replaced)


@dataclass(frozen=True, slots=True)
class Pace:
    """Where the rollouts stand. t : (R,) windows so far. planned : windows, None for unknown. betting : or only
    learning from a rollout that is known to be harmless.
    """

    t: Array
    planned: int | None
    betting: bool = True


def update_latency(
    rank: dict[str, Array], p95: dict[str, Array], p99: dict[str, Array], canary: Array, stable: Array, pooled: Array,
    who: Members, pace: Pace, grids: Mapping[str, Grid] = FILTERS,
) -> None:  # fmt: skip
    """Take one window into the three contrasts of latency.

    canary (Pc, K, R), stable (Ps, K, R); pooled (K, R) all requests so far, which say where the tails begin.
    """
    _rank(grids["rank"], rank, canary, stable, who, pace)
    # Slow starts are a matter of the slowest requests above all.
    warm = (np.exp(rank["prior"]).sum(1) * (rank["slot"] % len(RANK.half_lives) > 0)).sum(0) >= WARM_LIKELY
    counted = ~warm | who.grown
    total = canary.sum(1) * counted, stable.sum(1)
    for name, st, place in zip(("p95", "p99"), (p95, p99), tail_bounds(pooled), strict=True):
        slow = exceeding(canary, place) * counted, exceeding(stable, place)
        update_count(name, st, slow[0], total[0], slow[1], total[1], who, pace, grids)


def _rank(grid: Grid, st: dict[str, Array], canary: Array, stable: Array, who: Members, pace: Pace) -> None:
    """Mean ridit of canary pods against stable pods."""
    pooled = canary.sum(0) + stable.sum(0)
    n = np.maximum(pooled.sum(0), 2.0)
    scores = (np.cumsum(pooled, 0) - 0.5 * pooled) / n - 0.5
    spread = (pooled * scores * scores).sum(0) / (n - 1.0)
    n_c, n_s = canary.sum(1), stable.sum(1)
    ridit_c, ridit_s = (canary * scores).sum(1), (stable * scores).sum(1)
    all_c, all_s = n_c.sum(0), n_s.sum(0)
    ok = (all_c > 0) & (all_s > 0) & (spread > 0)
    one_c, one_s = np.maximum(all_c, 1.0), np.maximum(all_s, 1.0)
    difference = ridit_c.sum(0) / one_c - ridit_s.sum(0) / one_s
    noise = np.where(ok, spread * (1.0 / one_c + 1.0 / one_s), 1.0)
    information = ok / noise

    def observe(expected: Array, variance: Array) -> effects.Seen:
        return effects.Seen((difference - expected) * information, np.broadcast_to(information, expected.shape))

    _follow(grid, st, who, pace, ok, observe)
    present = (n_s > 0) * ok
    each = np.where(present, ridit_s / np.maximum(n_s, 1.0), 0.0)
    middle = each.sum(0) / np.maximum(present.sum(0), 1.0)
    of_one = spread * (present / np.maximum(n_s, 1.0)).sum(0) / np.maximum(present.sum(0), 1.0)
    information = np.where(of_one > 0, 1.0 / np.maximum(of_one, 1e-300), 0.0)
    _learn(grid, st, (each - middle) * present, information, present, who)


def update_count(
    name: str, st: dict[str, Array], x_canary: Array, n_canary: Array, x_stable: Array, n_stable: Array, who: Members,
    pace: Pace, grids: Mapping[str, Grid] = FILTERS,
) -> None:  # fmt: skip
    """How many of the requests of each arm's pods had an event. All (P, R).

    Given the window's total of events the canary's part is binomial, with log odds that the effects move.
    """
    grid = grids[name]
    x_c, x_s, n_c, n_s = x_canary.sum(0), x_stable.sum(0), n_canary.sum(0), n_stable.sum(0)
    ok = (n_c > 0) & (n_s > 0)
    share = np.where(ok, n_c / np.maximum(n_c + n_s, 1.0), 0.5)
    events = (x_c + x_s) * ok
    odds = np.log(share) - np.log1p(-share)

    def observe(expected: Array, variance: Array) -> effects.Seen:
        # The mean of rare events over an uncertain effect lies above the one at its mean: that of a log-normal.
        middle = _logistic(odds + expected)
        fit = x_c * np.log(middle) + x_s * np.log1p(-middle)
        p = _logistic(odds + expected + 0.5 * variance * (1.0 - 2.0 * middle))
        return effects.Seen(x_c - events * p, events * p * (1.0 - p), fit, np.broadcast_to(events, p.shape), p)

    _follow(grid, st, who, pace, ok, observe)
    if "unit_level" in st:
        of_pod = np.where(n_s > 0, n_stable / np.maximum(n_s, 1.0), 0.0)
        present = (of_pod > 0) * ok
        own = x_s * of_pod * (1.0 - of_pod)
        deviation = np.where(own > 0, (x_stable - x_s * of_pod) / np.maximum(own, 1e-300), 0.0)
        _learn(grid, st, deviation * present, own.sum(0) / np.maximum(present.sum(0), 1.0), present, who)


def _logistic(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
    return out


def tail_bounds(pooled: Array) -> tuple[Array, Array]:
    """(R,) places of the buckets above which about 5 % and about 1 % of all requests so far lie. pooled : (K, R)."""
    total = np.maximum(pooled.sum(0), 1.0)
    above = np.maximum(np.cumsum(pooled[::-1], 0)[::-1], 0.5) / total  # share in this bucket or a slower one
    log_above = np.log(above[1:])
    p95, p99 = (1 + np.argmin(np.abs(log_above - np.log(q)), axis=0) for q in (0.05, 0.01))
    return p95, p99


def exceeding(counts: Array, place: Array) -> Array:
    """(P, R) requests at or above bucket ``place`` (R,). counts : (P, K, R)."""
    beyond = np.arange(counts.shape[1])[:, None] >= place
    total: Array = (counts * beyond).sum(1)
    return total


def score(name: str, st: dict[str, Array]) -> tuple[Array, Array]:
    """(e-value (R,), posterior (F, G, R)) of one contrast."""
    grid = FILTERS[name]
    p = effects.posterior(grid, st)
    return effects.evidence(st, effects.values(grid, st, p)), p


def of_latency(rank: Array, p95: Array, p99: Array) -> Array:
    """(R,) the e-value of latency from those of its contrasts."""
    parts = zip(OF_LATENCY, (rank, p95, p99), strict=True)
    return sum((LATENCY_SHARES[name] * e for name, e in parts), start=np.zeros_like(rank))


def interval(name: str, st: dict[str, Array], p: Array, log_level: float) -> tuple[Array, Array, Array]:
    """(effect, low, high) of a constant effect in the contrast's units, random effects included; NaN without data.

    Normal-mixture bound around the posterior mean, with the spread of the models' means in its variance.
    """
    mean, variance = effects.constant_moments(FILTERS[name], st, p)
    seen = np.isfinite(variance)
    information = 1.0 / np.where(seen, variance, 1.0)
    tuning = INTERVAL_TUNING[name]
    radius = np.sqrt((information + tuning) * (np.log1p(information / tuning) - 2.0 * log_level)) / information
    mean = np.where(seen, mean, np.nan)
    return mean, mean - radius, mean + radius


def below(st: dict[str, Array], p: Array, at: Array, name: str, log_level: float) -> Flags:
    """(R,) whether a constant effect as large as ``at`` (R,) is refuted in favour of none."""
    ratio = effects.constant_effect(FILTERS[name], st, p, at)
    out: Flags = (at > 0) & (np.log(np.maximum(ratio, 1e-300)) <= log_level)
    return out


def placebo(st: dict[str, Array]) -> Array:
    """(1 + U, R) log evidence of a constant slow-down of the canary (first) and of each stable pod."""
    p = effects.posterior(RANK, st)
    return np.log(np.maximum(effects.constant_evidence(RANK, st, p), 1e-300))


ODD = 5.0
"""A stable pod whose level lies so many robust standard deviations from the others' is told."""
LEAST_TO_BE_ODD = 5
"""Among fewer stable pods none can be told to be the odd one."""


def odd(st: dict[str, Array]) -> Array:
    """(U, R) how many robust standard deviations each stable pod's level lies from the median one; NaN if replaced.

    Median and median absolute deviation (times 1.4826, for normal pods); what a pod's requests leave unknown is added.
    """
    grid = RANK
    p = effects.posterior(grid, st).sum(1)  # (F, R)
    noise = (st["slot"] // len(grid.half_lives)).astype(np.int64)
    level = np.zeros_like(st["retired"])
    unknown = np.zeros(level.shape[1])
    for f in range(len(noise)):
        at = noise[f][None]
        information = np.maximum(np.take_along_axis(st["unit_information"], at, axis=0)[0], 1e-9)
        data = np.take_along_axis(st["unit_level"], at[:, None], axis=0)[0]
        level += p[f] * data / information
        unknown += p[f] / information
    middle = np.median(level, axis=0)
    spread = 1.4826 * np.median(np.abs(level - middle), axis=0)
    z = (level - middle) / np.sqrt(np.maximum(spread**2, unknown))
    known = (st["retired"] == 0) & (len(level) >= LEAST_TO_BE_ODD)
    return np.where(known, z, np.nan)


def _follow(grid: Grid, st: dict[str, Array], who: Members, pace: Pace, ok: Flags, observe: effects.Observe) -> None:
    judged = st["judged"].copy()
    started = judged > 0
    first = ok & ~started
    if first.any():
        effects.begin(grid, st, who.contrast, who.age, first)
    share = start_share(np.zeros((1, 1)), pace.t, judged, pace.planned, FIRST)[0]
    stake = share * (1.0 - st["spent"]) * (ok & pace.betting)
    window = effects.Window(who.contrast, who.moved, who.young, who.age, pace.t, stake)
    effects.step(grid, st, window, observe, ok, started)
    st["judged"] += ok


def _learn(
    grid: Grid, st: dict[str, Array], deviation: Array, information: Array, present: Array, who: Members
) -> None:
    pods, kept = deviation.shape[0], st["retired"].shape[0]
    replaced = who.replaced
    if pods > kept:
        # Slot i belongs to group i mod kept. A group's mean varies less; in units of one pod it is scaled back.
        def group(x: Array) -> Array:
            padded = np.zeros((-(-pods // kept) * kept, *x.shape[1:]))
            padded[:pods] = x
            summed: Array = padded.reshape(-1, kept, *x.shape[1:]).sum(0)
            return summed

        size = np.maximum(group(present), 1.0)
        deviation, present = group(deviation) / np.sqrt(size), (group(present) > 0).astype(float)
        replaced = group(replaced.astype(float)) > 0
    effects.retire(grid, st, replaced.astype(float))
    effects.learn(grid, st, deviation, information, present)
