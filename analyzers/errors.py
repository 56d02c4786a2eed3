"""Errors: the conditional count. Given a window's total of failures, the canary's share of them follows its share of
the requests when the release is harmless, so the base rate and bursts of both arms cancel.

One e-value a window and odds ratio, start-weighted like a CUSUM that was promised a rate; the CUSUM itself is kept for
the chart. Sources: reference statistics.md 4, statistics-calibrated.md section 1; interval: likelihood-ratio mixture
over a grid of odds ratios (Robbins).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from analyzers.boundary import FIRST_ERRORS, NATS_NEEDED, detectable, start_share

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

PSI = np.array([1.25, 2.0, 5.0])[:, None]
"""Odds ratios that are bet on."""

GRID = np.exp(np.linspace(np.log(1 / 64), np.log(64), 65))[:, None]
"""Odds ratios among which the interval lies."""

LOG_CAP_WINDOW = 3.0
"""One window multiplies no bet by more than e^3 = 20, so that one burst decides nothing. Capping an e-value from above
keeps it one."""

CUSUM_PSI = 2.0
LARGEST = 1e200


def share_at(rho: Array, odds: Array | float) -> Array:
    """Canary's expected share of the failures at an odds ratio; rho is its share of the requests."""
    return odds * rho / (odds * rho + 1.0 - rho)


def fields(*, bets: bool) -> dict[str, tuple[int, ...]]:
    """State of one rollout: field -> shape. bets : with the evidence of the arms; without, only what is shown."""
    out: dict[str, tuple[int, ...]] = dict.fromkeys(("judged", "x_a", "n_a", "x_b", "n_b", "cusum"), ())
    if bets:
        out |= {"safe": (), "spent": (), "bets": (len(PSI),), "log_lik": (len(GRID),)}
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
    prior = detectable(needed, planned, 1e-3)
    prior = prior / prior.sum(0)
    spent = prior * start_share(needed, t, judged, planned, FIRST_ERRORS) * (1.0 - st["spent"]) * ok
    st["spent"] += spent.sum(0)
    log_e = np.clip(xc * np.log(PSI) - (xc + xs) * norm, -50.0, LOG_CAP_WINDOW)
    r = st["bets"]
    r += spent
    r *= np.exp(log_e * ok)
    np.minimum(r, LARGEST, out=r)
    shares = np.clip(share_at(raw, GRID), 1e-12, 1 - 1e-12)
    st["log_lik"] += xc * np.log(shares) + xs * np.log1p(-shares)
    st["log_lik"] -= st["log_lik"].max(0)
    if margin > 1.0:
        inside = ok & (raw > 0) & (raw < 1)
        r0 = np.where(inside, raw, 0.5)
        r1 = np.where(inside, rho, 0.5)
        st["safe"] += xc * np.log(r0 / r1) + xs * np.log((1 - r0) / (1 - r1))
    return ok


def interval(st: dict[str, Array], log_level: float) -> tuple[Array, Array, Array]:
    """(effect, low, high) as odds ratios: all of the grid that the mixture of the others does not refute.

    Ends are moved outward to the next grid point, so the sequence is never too short. NaN effect without failures.
    """
    log_lik = st["log_lik"]
    inside = logsumexp(log_lik, axis=0) - np.log(len(GRID)) - log_lik < -log_level
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
