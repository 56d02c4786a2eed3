"""Errors: the conditional count. Given a window's total of failures, the canary's share of them follows its share of
the requests when the release is harmless, so the base rate and bursts of both arms cancel.

Bursts of one arm (a bad client, a retry storm) do not cancel. They are part of the null hypothesis: beside «no bursts»
stand models in which the odds jump up or down for some windows, a hidden Markov chain each, and the evidence is mixed
over the models by how well they explain what was seen as harmless. Evidence is start-weighted like a CUSUM that was
promised a rate; the CUSUM itself is kept for the chart. Sources: reference statistics.md 4, statistics-calibrated.md
section 1; interval: likelihood-ratio mixture over a grid of odds ratios (Robbins); bursts: our own.

Everywhere: N models, P odds ratios, R rollouts (always the last axis).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analyzers.boundary import FIRST_ERRORS, NATS_NEEDED, detectable, start_share

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

PSI = np.array([1.25, 2.0, 5.0])[:, None]
"""Odds ratios that are bet on."""
PSI_PRIOR = np.array([0.2, 0.6, 0.2])[:, None]
REACH = 1.5
"""A bet is laid on what this many times the planned length would surely show: half of such faults are found in it,
and there is nothing weaker that the weight could be better spent on."""

GRID = np.exp(np.linspace(np.log(1 / 64), np.log(64), 49))[:, None]
LOG_GRID = np.log(GRID)
"""Odds ratios among which the interval lies."""

LOG_CAP_WINDOW = 3.0
"""One window multiplies no bet by more than e^3 = 20, so that one burst decides nothing. Capping an e-value from above
keeps it one."""

BURSTS = (2.3, 1.2)
"""Log odds by which a burst of one arm moves the canary's part: tenfold and threefold, up or down."""
ENTER, STAY = 0.05, 0.6
"""Probabilities that a burst of an arm begins in a window, and that one goes on."""
LOG_PRIOR = np.log([0.95, 0.025, 0.025])
"""Of no bursts and of each size, for a service that nothing is known of."""
_AT_REST = np.array([1.0, ENTER / (1 - STAY), ENTER / (1 - STAY)])
_AT_REST /= _AT_REST.sum()
_MOVES = np.array([0.0, *(sign * size for size in BURSTS for sign in (1.0, -1.0))])
_LOG_ODDS = (_MOVES[:, None] + np.concatenate([[0.0], np.log(PSI[:, 0])]))[..., None]
_EXPM1 = np.expm1(_LOG_ODDS)
"""(moves, harmless and each odds ratio bet on, 1)."""

CUSUM_PSI = 2.0
LARGEST = 1e200


def share_at(rho: Array, odds: Array | float) -> Array:
    """Canary's expected share of the failures at an odds ratio; rho is its share of the requests."""
    return odds * rho / (odds * rho + 1.0 - rho)


def fields(*, bets: bool) -> dict[str, tuple[int, ...]]:
    """State of one rollout: field -> shape. bets : with the evidence of the arms; without, only what is shown."""
    out: dict[str, tuple[int, ...]] = dict.fromkeys(("judged", "x_a", "n_a", "x_b", "n_b", "cusum"), ())
    if bets:
        models = len(BURSTS) + 1
        out |= {"safe": (), "spent": (), "log_lik": (len(GRID),)}
        out |= {"bets": (models, len(PSI)), "model": (models,), "prior": (models,), "bursting": (len(BURSTS), 2)}
    return out


def add(st: dict[str, Array], xc: Array, nc: Array, xs: Array, ns: Array, margin: float) -> Flags:
    """Add one window to the sums that are shown and to the CUSUM; (R,) whether the row could be compared."""
    ok: Flags = (nc > 0) & (ns > 0)
    xc, xs = xc * ok, xs * ok
    st["x_a"] += xc
    st["n_a"] += nc * ok
    st["x_b"] += xs
    st["n_b"] += ns * ok
    rho = share_at(np.where(ok, nc / np.maximum(nc + ns, 1.0), 0.5), margin)
    step = xc * np.log(CUSUM_PSI) - (xc + xs) * np.log1p(rho * (CUSUM_PSI - 1.0))
    st["cusum"] += np.minimum(step, LOG_CAP_WINDOW)
    np.maximum(st["cusum"], 0.0, out=st["cusum"])
    return ok


def update(
    st: dict[str, Array], xc: Array, nc: Array, xs: Array, ns: Array, t: Array, planned: int | None, margin: float
) -> Flags:
    """Take one window into the evidence; (R,) whether the row could be compared. All counts (R,)."""
    ok = add(st, xc, nc, xs, ns, margin)
    raw = np.where(ok, nc / np.maximum(nc + ns, 1.0), 0.5)
    xc, xs = xc * ok, xs * ok
    judged = st["judged"].copy()
    st["judged"] += ok
    mean = (st["x_a"] + st["x_b"] + 1.0) / (st["judged"] + 2.0)
    rho = share_at(raw, margin)
    norm = np.log1p(rho * (PSI - 1.0))
    needed = 0.85 * NATS_NEEDED / np.maximum(mean * (rho * PSI * np.log(PSI) - norm * (1.0 + rho * (PSI - 1.0))), 1e-9)
    prior = PSI_PRIOR * detectable(needed, planned, 1e-3, REACH)
    prior = prior / prior.sum(0)
    spent = prior * start_share(needed, t, judged, planned, FIRST_ERRORS) * (1.0 - st["spent"]) * ok
    st["spent"] += spent.sum(0)
    st["bets"] += spent
    st["bets"] *= np.exp(np.clip(_follow_bursts(st, xc, xc + xs, raw, rho, ok), -50.0, LOG_CAP_WINDOW))
    np.minimum(st["bets"], LARGEST, out=st["bets"])
    # log likelihood up to what all odds ratios share
    st["log_lik"] += xc * LOG_GRID - (xc + xs) * np.log1p(raw * (GRID - 1.0))
    st["log_lik"] -= st["log_lik"].max(0)
    if margin > 1.0:
        inside = ok & (raw > 0) & (raw < 1)
        r0 = np.where(inside, raw, 0.5)
        r1 = np.where(inside, rho, 0.5)
        st["safe"] += xc * np.log(r0 / r1) + xs * np.log((1 - r0) / (1 - r1))
    return ok


def _follow_bursts(st: dict[str, Array], xc: Array, events: Array, raw: Array, rho: Array, ok: Flags) -> Array:
    """(N, P, R) log likelihood ratios of the window, each odds ratio to harmless, given what each model saw before.

    raw : the canary's share of the requests, which the models are weighed by. rho : the share of failures that is
    still tolerated, which the bets are against. The chains stand still in windows without a comparison.
    """
    log_lik = xc * _LOG_ODDS - events * np.log1p(rho * _EXPM1)
    seen = xc * _LOG_ODDS[:, 0] - events * np.log1p(raw * _EXPM1[:, 0])
    out = np.empty((len(BURSTS) + 1, len(PSI), xc.shape[0]))
    out[0] = log_lik[0, 1:]
    for b, weights in enumerate(st["bursting"], start=1):
        up, down = weights
        places = (0, 2 * b - 1, 2 * b)
        mix = (1.0 - up - down, up, down)
        log_whole, _ = _mixed(mix, [log_lik[i] for i in places])
        out[b] = log_whole[1:] - log_whole[0]
        log_seen, (calm, rising, falling) = _mixed(mix, [seen[i] for i in places])
        st["model"][b] += log_seen * ok
        weights[0] = np.where(ok, calm * ENTER + rising * STAY, up)
        weights[1] = np.where(ok, calm * ENTER + falling * STAY, down)
    out *= ok
    return out


def _mixed(mix: tuple[Array, Array, Array], logs: list[Array]) -> tuple[Array, list[Array]]:
    """(log of the mixture of three likelihoods, probability of each)."""
    top = np.maximum(np.maximum(logs[0], logs[1]), logs[2])
    parts = [w * np.exp(x - top) for w, x in zip(mix, logs, strict=True)]
    whole = np.maximum(parts[0] + parts[1] + parts[2], 1e-300)
    return np.log(whole) + top, [part / whole for part in parts]


def begin(st: dict[str, Array], log_prior: Array) -> None:
    """Lay the models' prior, (N, R) or (N, 1), and let their chains rest, before the first window."""
    st["prior"][...] = log_prior
    st["bursting"][...] = _AT_REST[1:, None]


def evidence(st: dict[str, Array]) -> Array:
    """(R,) the metric's e-value: the bets under each model, mixed by how well the model explains it all as harmless.

    Bursts may explain failures away but never be evidence: a canary that is better than its margin allows looks like
    one that always bursts downward, and each return from such a burst would look like harm.
    """
    z = st["prior"] + st["model"]
    p = np.exp(z - z.max(0))
    bets = st["bets"].sum(1)
    out: Array = (p * np.minimum(bets, bets[0])).sum(0) / p.sum(0)
    return out


def interval(st: dict[str, Array], log_level: float) -> tuple[Array, Array, Array]:
    """(effect, low, high) as odds ratios: all of the grid that the mixture of the others does not refute.

    Ends are moved outward to the next grid point, so the sequence is never too short. NaN effect without failures.
    """
    log_lik = st["log_lik"]  # its largest is 0
    inside = np.log(np.exp(log_lik).mean(0)) - log_lik < -log_level
    first = np.maximum(inside.argmax(0) - 1, 0)
    last = np.minimum(len(GRID) - 1 - inside[::-1].argmax(0) + 1, len(GRID) - 1)
    seen = st["n_a"] > 0
    low, high = (np.where(seen, GRID[i, 0], np.nan) for i in (first, last))
    effect = odds_ratio(st)
    return effect, np.minimum(low, effect, where=~np.isnan(effect), out=low), np.fmax(high, effect)


def odds_ratio(st: dict[str, Array]) -> Array:
    """(R,) odds of failing of the canary to stable's, half a failure added; NaN without requests or failures."""
    with np.errstate(divide="ignore", invalid="ignore"):  # such rows become NaN
        odds_a = (st["x_a"] + 0.5) / (st["n_a"] - st["x_a"] + 0.5)
        odds_b = (st["x_b"] + 0.5) / (st["n_b"] - st["x_b"] + 0.5)
        return np.where((st["n_a"] > 0) & (st["x_a"] + st["x_b"] > 0), odds_a / odds_b, np.nan)
