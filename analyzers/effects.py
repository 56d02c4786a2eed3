"""Random effects: what pods do to a comparison when nothing is wrong, made part of the null hypothesis.

Pods of one version differ (a level each), wander (autocorrelated noise), start slowly (warm-up) and are replaced. The
comparison of two arms is judged against a mixture of Gaussian models of all that; stable pods say, while the rollout
runs, which of the models is likely, and past rollouts said it before. The evidence is the Bayes factor of «a step of
size delta began in window s» against «only such effects», mixed over sizes and beginnings.

One observation a window, in score form: ``score`` = (observed - expected) * information and ``information`` = 1 /
variance, so that a window without requests is simply information 0. The level is marginalised in closed form over a
whole grid of spreads; only noise and warm-up need a Kalman filter each (a «slot»). Beginnings share at most ``COPIES``
copies; a copy that is given up is sold at its value and the next one bought, which keeps the mixture a martingale.
Source: reference statistics-pods.md section 2; the closed form, the score form with its exact binomial cumulant and
the sale at the mixture's value are our own.

Everywhere: F slots, A noises, G level spreads, S copies, D step sizes, R rollouts (always the last axis).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Flags = NDArray[np.bool_]

COPIES = 8
"""Beginnings that are followed at once; twenty instead change no result (statistics-pods.md section 2)."""
JUMP, NOISE, WARM = 0, 1, 2
"""Places in a slot's filter: change of level by new pods, autocorrelated noise, warm-up."""
WARM_RESHAPING = 0.1
"""A warm-up need not be exponential: it is redrawn a little in each window, by this part of its spread."""
LARGEST_EXPONENT = 300.0


@dataclass(frozen=True, slots=True)
class Grid:
    """The models of one metric, in its own units (ridits, or log odds).

    levels : (G,) spreads between pods. noises : (spread, correlation from window to window), the first one none.
    half_lives : of a warm-up, in windows; 0 is none and comes first. warm_spread : of a warm-up's size.
    steps : (D,) sizes of a fault that are bet on. slots, slot_noises : how many filters and noises a rollout runs.
    """

    levels: tuple[float, ...]
    noises: tuple[tuple[float, float], ...]
    half_lives: tuple[float, ...]
    warm_spread: float
    steps: tuple[float, ...]
    slots: int
    slot_noises: int

    @property
    def states(self) -> int:
        """Numbers in a slot's filter; without warm-ups there is no third."""
        return 3 if len(self.half_lives) > 1 else 2

    def fields(self, units: int, cumulant: bool) -> dict[str, tuple[int, ...]]:
        """State of one rollout: field -> shape. units : stable pods (or groups). cumulant : counts need theirs."""
        n, g, s = self.states, len(self.levels), COPIES
        f, a = self.slots, self.slot_noises
        out: dict[str, tuple[int, ...]] = {
            "slot": (f,),
            "slot_noise": (a,),
            "prior": (f, g),
            "contrast": (),
            "covariance": (n * (n + 1) // 2, f),
            "mean": (n, f),
            "level_response": (n, f),
            "likelihood": (f,),
            "level_level": (f,),
            "level_data": (f,),
            "onset": (s,),
            "stake": (s,),
            "spent": (),
            "response": (n, f, s),
            "copy_level": (f, s),
            "copy_copy": (f, s),
            "copy_data": (f, s),
        }
        if cumulant:
            out["excess"] = (len(self.steps), f, s)
        if units:
            out |= {
                "unit_mean": (a, units),
                "unit_level": (a, units),
                "unit_response": (a,),
                "unit_information": (a,),
                "unit_variance": (a,),
                "unit_likelihood": (a, g),
                "retired": (units,),
            }
        return out


def choose(grid: Grid, log_prior: Array) -> tuple[Array, Array, Array]:
    """(slot, slot_noise, prior) of one rollout from a log prior (noises, half lives, levels): the likeliest ones.

    slot (F,) holds noise place * number of half lives + half life, where the noise place counts in slot_noise (A,).
    """
    mass = np.exp(log_prior - log_prior.max())
    noises = np.sort(np.argsort(-mass.sum((1, 2)), kind="stable")[: grid.slot_noises])
    kept = mass[noises].reshape(len(noises) * len(grid.half_lives), -1)
    slots = np.sort(np.argsort(-kept.sum(1), kind="stable")[: grid.slots])
    prior = kept[slots]
    return slots.astype(float), noises.astype(float), np.log(np.maximum(prior / prior.sum(), 1e-300))


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation at an expected effect; arrays (F, R).

    score, information : about the expected effect; the score's mean is 0 under the null.
    fit : log likelihood at the expected effect, up to what all models share; None for a Gaussian observation.
    trials, share : of a count, whose cumulant is binomial; None for a Gaussian observation.
    """

    score: Array
    information: Array
    fit: Array | None = None
    trials: Array | None = None
    share: Array | None = None


Observe: TypeAlias = Callable[[Array, Array], Seen]
"""Expected effect (F, R) and its variance -> what was seen."""


@dataclass(frozen=True, slots=True)
class Window:
    """One window as the filters see it; arrays (R,) unless said.

    contrast : sum of squared shares of the pods in both arms; the variance of the arms' difference when each pod
        varies by 1. moved : sum of squared changes of those shares by pods that came or went since the last window.
    young : share of the canary's requests on pods new in this window, and age : windows since the last of them.
    now : number of this window.
    stake : part of the start weight that is bet on a fault beginning now; 0 keeps the copies as they are.
    """

    contrast: Array
    moved: Array
    young: Array
    age: Array
    now: Array
    stake: Array


def begin(grid: Grid, st: dict[str, Array], contrast: Array, age: Array, first: Flags) -> None:
    """Lay the initial uncertainty of rows whose first window this is. age : windows since the newest pod began."""
    sd, _, decay = _slot_parameters(grid, st)
    cov = st["covariance"]
    place = _pairs(grid.states)
    cov[place[NOISE, NOISE]] = np.where(first, sd**2 * contrast, cov[place[NOISE, NOISE]])
    if grid.states > 2:
        start = np.where(decay > 0, grid.warm_spread * decay**age, 0.0) ** 2
        cov[place[WARM, WARM]] = np.where(first, start, cov[place[WARM, WARM]])
    st["contrast"][...] = np.where(first, contrast, st["contrast"])
    if "unit_variance" in st:
        st["unit_variance"][...] = np.where(first, _noise_parameters(grid, st)[0] ** 2, st["unit_variance"])


def step(
    grid: Grid,
    st: dict[str, Array],
    window: Window,
    observe: Observe,
    ok: Flags,
    started: Flags,
) -> None:
    """Take one observation into all slots.

    ok : rows with an observation. started : rows past their first window, whose state moves on first.
    """
    n = grid.states
    place = _pairs(n)
    sd, rho, decay = _slot_parameters(grid, st)
    cov, mean, lev, resp = st["covariance"], st["mean"], st["level_response"], st["response"]
    turn = [np.ones_like(rho), rho, decay][:n]
    for a in range(n):
        f = np.where(started, turn[a], 1.0)
        if a != JUMP:
            mean[a] *= f
            lev[a] *= f
            resp[a] *= f[:, None]
        for b in range(a, n):
            cov[place[a, b]] *= f * np.where(started, turn[b], 1.0)
    if (window.moved > 0).any():
        cov[place[JUMP, JUMP]] += window.moved * level_variance(grid, posterior(grid, st))
    cov[place[NOISE, NOISE]] += np.where(started, sd**2 * window.contrast * (1.0 - rho**2), 0.0)
    if n > 2:
        fresh = window.young**2 + np.where(started, WARM_RESHAPING**2 * decay ** (2.0 * window.age), 0.0)
        cov[place[WARM, WARM]] += np.where(decay > 0, grid.warm_spread**2 * fresh, 0.0)
    _open(grid, st, window.stake, window.now)

    column = [np.sum([cov[place[min(a, b), max(a, b)]] for b in range(n)], axis=0) for a in range(n)]
    variance = np.sum(column, axis=0)  # of the effect, before this observation
    seen = observe(mean.sum(0), variance)
    score, info = seen.score * ok, seen.information * ok
    widened = 1.0 + variance * info  # information * predictive variance
    e, i = score / widened, info / widened  # innovation and 1, each over the predictive variance
    h = 1.0 - resp.sum(0)  # (F, S, R) what is left of a step after the filter took its part for an effect
    h *= (st["stake"] > 0)[None]
    h_level = 1.0 - lev.sum(0)
    if seen.trials is not None and seen.share is not None:
        trials, share = seen.trials, seen.share
        reach = h / widened[:, None]
        for d, size in enumerate(grid.steps):
            z = size * reach
            gauss = (z + 0.5 * (1.0 - share[:, None]) * z * z) * share[:, None]
            # Never below the Gaussian cumulant: the level's part is taken from that one only.
            st["excess"][d] += np.maximum(trials[:, None] * (np.log1p(share[:, None] * np.expm1(z)) - gauss), 0.0) * ok
    st["copy_data"] += h * e[:, None]
    st["copy_copy"] += h * h * i[:, None]
    st["copy_level"] += h * (h_level * i)[:, None]
    st["level_data"] += h_level * e
    st["level_level"] += h_level * h_level * i
    fit = (
        np.where(info > 0, -0.5 * score * score / np.maximum(info, 1e-300), 0.0) if seen.fit is None else seen.fit * ok
    )
    st["likelihood"] += fit + 0.5 * (score * e * variance - np.log(widened))
    for a in range(n):
        resp[a] += (column[a] * i)[:, None] * h
        lev[a] += column[a] * i * h_level
        mean[a] += column[a] * e
    for a in range(n):
        for b in range(a, n):
            cov[place[a, b]] -= column[a] * column[b] * i


def learn(grid: Grid, st: dict[str, Array], deviation: Array, information: Array, present: Array) -> None:
    """Take the stable pods' own deviations from their mean: they say how large the effects are.

    deviation, present : (U, R), 0 where the pod had no requests; information (R,) of one pod's deviation, the same for
    all. A pod that is ``retired`` (it was replaced) says no more; what it said is kept.
    """
    sd, rho = _noise_parameters(grid, st)
    alive = present * (1.0 - st["retired"])
    var = st["unit_variance"]
    widened = 1.0 + var * information
    i = information / widened
    e = (deviation[None] - st["unit_mean"]) * alive
    h = 1.0 - st["unit_response"]
    st["unit_level"] += (h * i)[:, None] * e
    st["unit_information"] += h * h * i
    st["unit_mean"] += (var * i)[:, None] * e
    st["unit_response"] += var * i * h
    # The deviations sum to zero, so that one pod's is told by the others'.
    free = np.maximum(alive.sum(0) - 1.0, 0.0) * (information > 0)
    st["unit_likelihood"] += (-0.5 * ((e * e).sum(1) * i + free * np.log(widened)))[:, None]
    var -= var * var * i
    st["unit_mean"] *= rho[:, None]
    st["unit_response"] *= rho
    var *= rho**2
    var += sd**2 * (1.0 - rho**2)


def retire(grid: Grid, st: dict[str, Array], replaced: Array) -> None:
    """Close the account of stable pods that were replaced, (U, R) flags: their level is gone."""
    leaving = replaced * (1.0 - st["retired"])
    if leaving.any():
        st["unit_likelihood"] += _level_terms(grid, st, leaving)
        st["retired"] += leaving


def log_likelihood(grid: Grid, st: dict[str, Array]) -> Array:
    """(F, G, R) of everything seen under each null model: stable pods, and the canary as if it were harmless."""
    tau2 = st["contrast"] * (np.array(grid.levels) ** 2)[:, None]
    level = 1.0 + tau2[None] * st["level_level"][:, None]
    out: Array = st["likelihood"][:, None] + 0.5 * (tau2[None] / level * st["level_data"][:, None] ** 2 - np.log(level))
    if "unit_level" in st:
        stable = st["unit_likelihood"] + _level_terms(grid, st, 1.0 - st["retired"])
        noise = (st["slot"] // len(grid.half_lives)).astype(np.int64)
        out += np.take_along_axis(stable, noise[:, None], axis=0)
    return out


def posterior(grid: Grid, st: dict[str, Array]) -> Array:
    """(F, G, R) probabilities of the null models after all windows so far."""
    z = st["prior"] + log_likelihood(grid, st)
    z -= z.max((0, 1))
    p = np.exp(z)
    p /= p.sum((0, 1))
    return p


def level_variance(grid: Grid, p: Array) -> Array:
    """(R,) expected square of the spread between pods: the change that a new pod brings."""
    square: Array = (p.sum(0) * (np.array(grid.levels) ** 2)[:, None]).sum(0)
    return square


def values(grid: Grid, st: dict[str, Array], p: Array) -> Array:
    """(S, R) what one unit on each copy is worth now: the Bayes factor of «a step began then», mixed over sizes."""
    tau2 = st["contrast"] * (np.array(grid.levels) ** 2)[:, None]
    shrink = tau2[None] / (1.0 + tau2[None] * st["level_level"][:, None])  # (F, G, R)
    by_level = shrink * st["level_data"][:, None]
    out: Array = np.zeros_like(st["stake"])
    for s in range(COPIES):
        cl = st["copy_level"][:, None, s]
        data = st["copy_data"][:, None, s] - by_level * cl
        info = 0.5 * (st["copy_copy"][:, None, s] - shrink * cl * cl)
        total = np.zeros_like(data)
        for d, size in enumerate(grid.steps):
            exponent = size * data - size * size * info
            if "excess" in st:
                exponent -= st["excess"][d][:, None, s]
            total += np.exp(np.minimum(exponent, LARGEST_EXPONENT))
        out[s] = (p * total).sum((0, 1)) / len(grid.steps)
    return out


def evidence(st: dict[str, Array], value: Array) -> Array:
    """(R,) e-value: all stakes at their value, and what was not bet."""
    out: Array = (st["stake"] * value).sum(0) + 1.0 - st["spent"]
    return out


def constant_effect(grid: Grid, st: dict[str, Array], p: Array, at: Array) -> Array:
    """(R,) likelihood ratio of «an effect of size ``at`` (R,) since the first window» to none."""
    data, info = _from_start(grid, st)
    exponent = at * data - 0.5 * at * at * info
    if "excess" in st:  # the cumulant grows with the cube of a small step
        exponent = exponent - st["excess"][0][:, None, 0] * (at / grid.steps[0]) ** 3
    out: Array = (p * np.exp(np.clip(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT))).sum((0, 1))
    return out


def constant_moments(grid: Grid, st: dict[str, Array], p: Array) -> tuple[Array, Array]:
    """(mean, variance) (R,) of an effect since the first window, mixed over the models; infinite without data."""
    data, info = _from_start(grid, st)
    known = info > 0
    mean = np.where(known, data / np.where(known, info, 1.0), 0.0)
    middle = (p * mean).sum((0, 1))
    spread = np.where(known, 1.0 / np.where(known, info, 1.0), np.inf) + (mean - middle) ** 2
    with np.errstate(invalid="ignore"):  # 0 probability of an infinite variance
        return middle, np.where(known.all((0, 1)), (p * spread).sum((0, 1)), np.inf)


def constant_evidence(grid: Grid, st: dict[str, Array], p: Array) -> Array:
    """(1 + U, R) e-values of «a step since the first window» for the canary and for each stable unit in its place.

    NaN for units that were replaced.
    """
    data, info = _from_start(grid, st)
    steps = np.array(grid.steps)[:, None, None, None]
    canary = (p * np.exp(np.minimum(steps * data - 0.5 * steps**2 * info, LARGEST_EXPONENT)).mean(0)).sum((0, 1))
    tau2 = (np.array(grid.levels) ** 2)[:, None]
    noise = (st["slot"] // len(grid.half_lives)).astype(np.int64)
    own = np.take_along_axis(st["unit_information"], noise, axis=0)[:, None]
    shrunk = 1.0 + tau2 * own  # a unit's own level is confounded with a step that was always there
    out = [canary]
    for unit in range(st["unit_level"].shape[1]):
        of_unit = np.take_along_axis(st["unit_level"][:, unit], noise, axis=0)[:, None] / shrunk
        exponent = steps * of_unit - 0.5 * steps**2 * (own / shrunk)
        value = (p * np.exp(np.minimum(exponent, LARGEST_EXPONENT)).mean(0)).sum((0, 1))
        out.append(np.where(st["retired"][unit] > 0, np.nan, value))
    return np.stack(out)


def _from_start(grid: Grid, st: dict[str, Array]) -> tuple[Array, Array]:
    """(F, G, R) data and information on a step that began in the first window, the level marginalised."""
    tau2 = st["contrast"] * (np.array(grid.levels) ** 2)[:, None]
    shrink = tau2[None] / (1.0 + tau2[None] * st["level_level"][:, None])
    cl = st["copy_level"][:, None, 0]
    data = st["copy_data"][:, None, 0] - shrink * st["level_data"][:, None] * cl
    return data, st["copy_copy"][:, None, 0] - shrink * cl * cl


def _open(grid: Grid, st: dict[str, Array], stake: Array, now: Array) -> None:
    """Open a copy for a fault that begins now; where all are taken, sell the one whose neighbour is nearest."""
    opening = stake > 0
    full = np.flatnonzero(opening & (st["stake"] > 0).all(0))
    if full.size:
        _sell(grid, st, full, now[full])
    rows = np.flatnonzero(opening)
    free = np.argmax(st["stake"][:, rows] <= 0, axis=0)
    st["onset"][free, rows] = now[rows]
    st["stake"][free, rows] = stake[rows]
    st["spent"][rows] += stake[rows]


def _sell(grid: Grid, st: dict[str, Array], rows: Index, now: Array) -> None:
    """Make room in rows whose copies are all taken; copies stand in the order of their beginning."""
    held = {name: field[..., rows] for name, field in st.items()}
    value = values(grid, held, posterior(grid, held))
    when, cols = held["onset"], np.arange(len(rows))
    # The first copy is never sold: a fault that is there from the start is the likeliest one.
    sold = 1 + np.argmin((when[2:] - when[1:-1]) / (now - when[2:] + 1.0), axis=0)
    price = value[sold, cols] / np.maximum(value[sold + 1, cols], 1e-300)
    held["stake"][sold + 1, cols] += held["stake"][sold, cols] * price
    place = np.arange(COPIES)[:, None]
    order = np.minimum(place + (place >= sold), COPIES - 1)
    for name in ("onset", "stake", "response", "copy_level", "copy_copy", "copy_data", "excess"):
        if name in st:
            field = held[name]
            index = np.broadcast_to(order.reshape((1,) * (field.ndim - 2) + order.shape), field.shape)
            moved = np.take_along_axis(field, index, axis=field.ndim - 2)
            moved[..., -1, :] = 0.0
            st[name][..., rows] = moved


def _pairs(n: int) -> dict[tuple[int, int], int]:
    """Place of each pair of a symmetric matrix in its upper triangle."""
    both = [(a, b) for a in range(n) for b in range(a, n)]
    return {pair: place for place, pair in enumerate(both)}


def _noise_parameters(grid: Grid, st: dict[str, Array]) -> tuple[Array, Array]:
    noise = st["slot_noise"].astype(np.int64)
    table = np.array(grid.noises)
    return table[noise, 0], table[noise, 1]


def _slot_parameters(grid: Grid, st: dict[str, Array]) -> tuple[Array, Array, Array]:
    """(spread, correlation, decay a window) of each slot, (F, R)."""
    slot = st["slot"].astype(np.int64)
    noise = np.take_along_axis(st["slot_noise"].astype(np.int64), slot // len(grid.half_lives), axis=0)
    decays = np.array([0.0 if h == 0 else 2.0 ** (-1.0 / h) for h in grid.half_lives])
    table = np.array(grid.noises)
    return table[noise, 0], table[noise, 1], decays[slot % len(grid.half_lives)]


def _level_terms(grid: Grid, st: dict[str, Array], counted: Array) -> Array:
    """(A, G, R) log likelihood that the counted pods' own levels add, marginalised over them. counted : (U, R)."""
    tau2 = (np.array(grid.levels) ** 2)[:, None]
    widened = 1.0 + tau2 * st["unit_information"][:, None]
    squares = (st["unit_level"] ** 2 * counted).sum(1)
    pods, units = counted.sum(0), counted.shape[0]
    free = pods * (units - 1.0) / units
    out: Array = 0.5 * (tau2 / widened * squares[:, None] - free * np.log(widened))
    return out
