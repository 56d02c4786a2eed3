"""Errors: the conditional count. Given a window's total of failures, the canary's share of them follows its share of
the requests when the release is harmless, so the base rate and bursts of both arms cancel.

Bursts of one arm (a bad client, a retry storm) do not cancel. They are part of the null hypothesis: beside «no bursts»
stands a hidden Markov chain in which the odds jump up or down for some windows, and the evidence is mixed over the two
by how well each explains what was seen as harmless. A jump that lasts is not a burst: each further window costs the
chain what a burst's going on costs. Evidence is start-weighted like a CUSUM that was promised a rate; the CUSUM itself
is kept for the chart. Sources: reference statistics.md 4, statistics-calibrated.md section 1; interval:
likelihood-ratio mixture over a grid of odds ratios (Robbins); bursts: our own.

Everywhere: P odds ratios, R rollouts (always the last axis).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analyzers.boundary import FIRST_ERRORS, NATS_NEEDED, detectable, start_share

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

PSI = np.array([1.25, 2.0, 5.0, 12.0, 50.0])[:, None]
"""Odds ratios that are bet on."""
PSI_PRIOR = np.array([0.15, 0.58, 0.19, 0.05, 0.03])[:, None]
REACH = 1.5
"""A bet is laid on what this many times the planned length would surely show: half of such faults are found in it,
and there is nothing weaker that the weight could be better spent on."""

GRID = np.exp(np.linspace(np.log(1 / 64), np.log(64), 49))[:, None]
LOG_GRID = np.log(GRID)
"""Odds ratios among which the interval lies."""

LOG_CAP_WINDOW = 3.0
"""One window multiplies no bet by more than e^3 = 20, so that one burst decides nothing. Capping an e-value from above
keeps it one."""

BURSTS = (5.0, 12.0)
"""Odds ratios of a burst of one arm, up or down; each is also bet on, so that a fault that lasts is told from it. The
largest bet is beyond any burst: what is that bad is found in some windows."""
ENTER, STAY = 0.05, 0.5
"""Probabilities that a burst of an arm begins in a window, and that one goes on."""
LOG_PRIOR = np.log([0.95, 0.05])
"""Of a service without and with bursts, for one that nothing is known of."""
_AT_REST = np.array([1.0, ENTER / (1 - STAY), ENTER / (1 - STAY)])
_AT_REST /= _AT_REST.sum()
_LOG_ODDS = np.log(np.concatenate([PSI[:, 0], BURSTS, 1 / np.array(BURSTS)]))[:, None]
_EXPM1 = np.expm1(_LOG_ODDS)
"""(P bets, bursts up, bursts down; 1)."""

CUSUM_PSI = 2.0
LARGEST, TINY = 1e200, 1e-300


def share_at(rho: Array, ratio: Array | float) -> Array:
    """Canary's expected share of the failures at a ratio of the failure rates; rho is its share of the requests."""
    return ratio * rho / (ratio * rho + 1.0 - rho)


def as_rates(odds: float, stable_rate: Array) -> Array:
    """An odds ratio as a ratio of failure rates where stable fails at ``stable_rate``; the same while that is small."""
    return odds / (1.0 + stable_rate * (odds - 1.0))


def as_odds(ratio: Array, stable_rate: Array) -> Array:
    """A ratio of failure rates as an odds ratio; infinite where the canary would fail always."""
    rest = 1.0 - ratio * stable_rate
    return np.where(rest > 0, ratio * (1.0 - stable_rate) / np.where(rest > 0, rest, 1.0), np.inf)


def _stable_rate(st: dict[str, Array]) -> Array:
    rate: Array = st["x_b"] / np.maximum(st["n_b"], 1.0)
    return rate


def fields(*, bets: bool) -> dict[str, tuple[int, ...]]:
    """State of one rollout: field -> shape. bets : with the evidence of the arms; without, only what is shown."""
    out: dict[str, tuple[int, ...]] = dict.fromkeys(("judged", "x_a", "n_a", "x_b", "n_b", "cusum"), ())
    if bets:
        out |= {"safe": (), "spent": (), "log_lik": (len(GRID),)}
        out |= {"bets": (2, len(PSI)), "burst_lik": (), "prior": (), "bursting": (2,)}
    return out


def add(st: dict[str, Array], xc: Array, nc: Array, xs: Array, ns: Array, margin: float) -> tuple[Flags, Array, Array]:
    """Add one window to the sums that are shown and to the CUSUM.

    (R,) each: whether the row could be compared, the canary's share of the requests, and the share of the failures
    that is still tolerated.
    """
    ok: Flags = (nc > 0) & (ns > 0)
    xc, xs = xc * ok, xs * ok
    raw = np.where(ok, nc / np.maximum(nc + ns, 1.0), 0.5)
    rho = share_at(raw, as_rates(margin, _stable_rate(st)))
    st["x_a"] += xc
    st["n_a"] += nc * ok
    st["x_b"] += xs
    st["n_b"] += ns * ok
    step = xc * np.log(CUSUM_PSI) - (xc + xs) * np.log1p(rho * (CUSUM_PSI - 1.0))
    st["cusum"] += np.minimum(step, LOG_CAP_WINDOW)
    np.maximum(st["cusum"], 0.0, out=st["cusum"])
    return ok, raw, rho


def update(
    st: dict[str, Array], xc: Array, nc: Array, xs: Array, ns: Array, t: Array, planned: int | None, margin: float
) -> Flags:
    """Take one window into the evidence; (R,) whether the row could be compared. All counts (R,)."""
    ok, raw, rho = add(st, xc, nc, xs, ns, margin)
    xc, xs = xc * ok, xs * ok
    judged = st["judged"].copy()
    st["judged"] += ok
    mean = (st["x_a"] + st["x_b"] + 1.0) / (st["judged"] + 2.0)
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
    """(2, P, R) log likelihood ratios of the window, each bet to harmless: without bursts, and with them.

    With bursts a bet says that calm windows have its odds, and that in a burst nothing else shows; so small bets gain
    nothing from a burst, and a fault that lasts gains what a burst of that length costs. raw : the canary's share of
    the requests, which the chain and the models are weighed by. rho : the share of failures that is still tolerated,
    which the bets are against. The chain stands still in windows without a comparison.
    """
    bets, sizes = len(PSI), len(BURSTS)
    against = xc * _LOG_ODDS - events * np.log1p(rho * _EXPM1)
    seen = xc * _LOG_ODDS[bets:] - events * np.log1p(raw * _EXPM1[bets:])
    up, down = st["bursting"]
    calm = 1.0 - up - down

    def relative(log_lik: Array) -> tuple[Array, Array, Array, Array]:
        """(largest log likelihood or that of calm, all, rising, falling), the last three as parts of the largest."""
        top = np.maximum(log_lik.max(0), 0.0)
        part = np.exp(log_lik - top)
        return top, part, up * part[-2 * sizes : -sizes].mean(0), down * part[-sizes:].mean(0)

    top, ratio, rising, falling = relative(against)
    burst = rising + falling
    harmless = np.maximum(calm * np.exp(-top) + burst, TINY)
    out = np.stack([against[:bets], np.log(np.maximum(calm * ratio[:bets] + burst, TINY) / harmless)])
    top, _, rising, falling = relative(seen)
    still = calm * np.exp(-top)
    whole = np.maximum(still + rising + falling, TINY)
    st["burst_lik"] += (np.log(whole) + top) * ok
    for weight, part in ((up, rising), (down, falling)):
        weight[...] = np.where(ok, (still * ENTER + part * STAY) / whole, weight)
    out *= ok
    return out


def begin(st: dict[str, Array], log_prior: Array) -> None:
    """Lay the prior of no bursts and of bursts, (2, R) or (2, 1), and let the chain rest, before the first window."""
    st["prior"][...] = log_prior[1] - log_prior[0]
    st["bursting"][...] = _AT_REST[1:, None]


def evidence(st: dict[str, Array]) -> Array:
    """(R,) the metric's e-value: the bets without and with bursts, mixed by how well each explains it all as harmless.

    Bursts may explain failures away but never be evidence: a canary that is better than its margin allows looks like
    one that always bursts downward, and each return from such a burst would look like harm.
    """
    with_bursts = 1.0 / (1.0 + np.exp(np.clip(-st["prior"] - st["burst_lik"], -700.0, 700.0)))
    plain, patient = st["bets"].sum(1)
    out: Array = (1.0 - with_bursts) * plain + with_bursts * np.minimum(plain, patient)
    return out


def interval(st: dict[str, Array], log_level: float) -> tuple[Array, Array, Array]:
    """(effect, low, high) as odds ratios: all of the grid that the mixture of the others does not refute.

    Ends are moved outward to the next grid point, so the sequence is never too short; beyond the grid they are 0 and
    infinite. NaN effect without failures.
    """
    log_lik = st["log_lik"]  # its largest is 0
    inside = np.log(np.exp(log_lik).mean(0)) - log_lik < -log_level
    first = np.maximum(inside.argmax(0) - 1, 0)
    last = np.minimum(len(GRID) - 1 - inside[::-1].argmax(0) + 1, len(GRID) - 1)
    seen = st["n_a"] > 0
    rate = _stable_rate(st)
    low = np.where(seen, np.where(first > 0, as_odds(GRID[first, 0], rate), 0.0), np.nan)
    high = np.where(seen, np.where(last < len(GRID) - 1, as_odds(GRID[last, 0], rate), np.inf), np.nan)
    effect = odds_ratio(st)
    return effect, np.minimum(low, effect, where=~np.isnan(effect), out=low), np.fmax(high, effect)


def odds_ratio(st: dict[str, Array]) -> Array:
    """(R,) odds of failing of the canary to stable's, half a failure added; NaN without requests or failures."""
    with np.errstate(divide="ignore", invalid="ignore"):  # such rows become NaN
        odds_a = (st["x_a"] + 0.5) / (st["n_a"] - st["x_a"] + 0.5)
        odds_b = (st["x_b"] + 0.5) / (st["n_b"] - st["x_b"] + 0.5)
        return np.where((st["n_a"] > 0) & (st["x_a"] + st["x_b"] > 0), odds_a / odds_b, np.nan)
