"""Predictions: betting on how the canary's classes differ from the pool's. Evidence grows like accumulated
Kullback-Leibler divergence.

Bets are moves of mass from one class to another, and one class against the rest, at two strengths that follow the
traffic. The e-values are exact for product-binomial labels given each class's pooled count. Sources: reference
statistics.md 3, statistics-calibrated.md section 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from analyzers.boundary import FIRST_PREDICTIONS, UNPLANNED_WINDOWS, start_share

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

NEEDED = np.array([16.0, 48.0])[:, None]
"""Windows that the two strengths need to be detected where the classes are large."""
PRIOR = (0.9, 0.1)
NATS_NEEDED = 14.0
"""What a move between two classes of a sixth each tells in so many windows; large classes tell less."""
REST_SHARE = 0.1
"""Weight of the one-class-against-the-rest bets; the others move mass between two classes."""
ANYWHERE = 0.05
"""Part of the mass a class loses that may go to any class alike, however rare. The rest of it goes like requests do:
moves between large classes take the most windows, so that weight is worth the most there."""
HELD_BACK = 0.8
SHORT, SHORT_HELD_BACK = (30.0, 60.0), 0.25
"""Parts of the start weight that are never bet: so much over the classes to the power of 1.5, as evidence jumps less
past the boundary where classes are few, or so much in plans of up to 30 windows, falling to none at 60, if that is
more. Else predictions on their own reach the boundary in more good releases than promised. Measured with 2, 3, 4, 10
and 1,000 classes and plans of 15 to 1,440 windows."""
MOST_CLASSES = 12
"""Beyond this, the classes that are rare in the first window are compared as one."""
LARGEST = 1e200


def groups(classes: int) -> int:
    """Classes after lumping."""
    return min(classes, MOST_CLASSES)


def fields(classes: int) -> dict[str, tuple[int, ...]]:
    """State of one rollout: field -> shape."""
    g, strengths = groups(classes), len(NEEDED)
    return {
        "judged": (),
        "flow": (),
        "pool": (g,),
        "own": (g,),
        "score": (g,),
        "spent": (strengths,),
        "pair": (strengths, g, g),
        "rest": (strengths, 2, g),
        "group": (classes if classes > MOST_CLASSES else 0,),
    }


def held_back(classes: int, planned: int | None) -> float:
    """Part of the start weight that is never bet."""
    short = np.interp(np.log(planned or UNPLANNED_WINDOWS), np.log(SHORT), (SHORT_HELD_BACK, 0.0))
    return max(float(HELD_BACK / classes**1.5), float(short))


def lumped(st: dict[str, Array], canary: Array, stable: Array) -> tuple[Array, Array]:
    """The counts with rare classes as one; which ones is fixed at a row's first comparison. (C, R) -> (G, R)."""
    if canary.shape[0] <= MOST_CLASSES:
        return canary, stable
    fresh = (st["judged"] == 0) & (canary.sum(0) > 0) & (stable.sum(0) > 0)
    if fresh.any():
        order = np.argsort(-(canary + stable), axis=0, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(canary.shape[0])[:, None], axis=0)
        st["group"][:, fresh] = np.minimum(rank, MOST_CLASSES - 1)[:, fresh]
    group = st["group"]
    a, b = (np.stack([(x * (group == g)).sum(0) for g in range(MOST_CLASSES)]) for x in (canary, stable))
    return a, b


def update(st: dict[str, Array], canary: Array, stable: Array, t: Array, planned: int | None, margin: float) -> Flags:
    """Take one window into the evidence; (R,) whether the row could be compared. canary, stable : (C, R)."""
    a, b = lumped(st, canary, stable)
    c_n = a.shape[0]
    d = a + b
    n_a, n = a.sum(0), d.sum(0)
    ok: Flags = (n_a > 0) & (n > n_a)
    rho = n_a / np.maximum(n, 1.0) * ok
    a, d = a * ok, d * ok
    judged = st["judged"].copy()
    st["judged"] += ok
    st["pool"] += d
    st["own"] += a
    st["score"] += a - rho * d
    p = st["pool"] + 0.5
    p /= p.sum(0)
    flow = n_a * (1.0 - rho) * ok
    st["flow"] += flow
    mean_flow = np.maximum(st["flow"] / np.maximum(st["judged"], 1.0), 1e-9)
    pair, rest = st["pair"], st["rest"]
    pair_prior = _pair_prior(p, st["group"].size > 0)
    shares = start_share(NEEDED, t, judged, planned, FIRST_PREDICTIONS) * (1.0 - st["spent"]) * ok
    st["spent"] += shares
    other_a, other_d = a.sum(0) - a, d.sum(0) - d
    bet = 1.0 - held_back(c_n, planned)
    for g in range(len(NEEDED)):
        strength = np.sqrt(2.0 * NATS_NEEDED / NEEDED[g, 0] / (12.0 * mean_flow))
        up, down = np.minimum(strength / p, 4.0), np.minimum(strength / p, 0.8)
        gain = a * np.log1p(up) - d * np.log1p(rho * up)
        loss = a * np.log1p(-down) - d * np.log1p(-rho * down)
        shrink, grow = np.minimum(up * p / (1 - p), 0.8), np.minimum(down * p / (1 - p), 4.0)
        rest_up = gain + other_a * np.log1p(-shrink) - other_d * np.log1p(-rho * shrink)
        rest_down = loss + other_a * np.log1p(grow) - other_d * np.log1p(rho * grow)
        if margin > 0:
            # A tolerated move of so many nats gives each bet at most this drift, in its worst direction.
            drift = flow * np.sqrt(2.0 * margin)
            gain = gain - drift * up * np.sqrt(p)
            loss = loss - drift * down * np.sqrt(p)
            rest_up = rest_up - drift * up * np.sqrt(p / (1 - p))
            rest_down = rest_down - drift * down * np.sqrt(p / (1 - p))
        weight = shares[g] * PRIOR[g] * bet
        if weight.any():
            pair[g] += weight * (1 - REST_SHARE) * pair_prior
            rest[g] += weight * REST_SHARE / (2 * c_n)
        pair[g] *= np.exp(np.clip(loss, -30, 30))[:, None]
        pair[g] *= np.exp(np.clip(gain, -30, 30))[None]
        rest[g, 0] *= np.exp(np.clip(rest_up, -50, 50))
        rest[g, 1] *= np.exp(np.clip(rest_down, -50, 50))
    np.minimum(st["pair"], LARGEST, out=st["pair"])
    np.minimum(st["rest"], LARGEST, out=st["rest"])
    return ok


def _pair_prior(p: Array, lumped: bool) -> Array:
    """(G, G, R) weight of «mass moves from the first class to the second», 1 in sum, at the shares (G, R)."""
    if lumped:
        # Many classes as one: none of them is as large, and they do not move together.
        p = np.concatenate([p[:-1], np.minimum(p[-1:], p[:-1].max(0))])
        p = p / p.sum(0)
    c_n = len(p)
    out: Array = (p / (1 - p))[:, None] * (ANYWHERE / (c_n - 1) * (1 - p)[:, None] + (1 - ANYWHERE) * p[None])
    out[np.arange(c_n), np.arange(c_n)] = 0.0
    return out


def interval(st: dict[str, Array], log_level: float) -> tuple[Array, Array, Array]:
    """(effect, low, high) in nats of KL(canary || stable), to second order.

    The score vector's length in information units dominates its projection on any direction, so that the
    normal-mixture bound around it holds for the unknown true one (statistics-calibrated.md, «safe to promote»).
    """
    flow = st["flow"]
    p = st["pool"] + 0.5
    p = p / p.sum(0)
    length = np.sqrt((st["score"] ** 2 / p).sum(0))
    tuning = 40.0
    radius = np.sqrt((flow + tuning) * (np.log1p(flow / tuning) - 2.0 * log_level))
    some = np.where(flow > 0, flow, np.nan)
    # Sampling alone gives each of the C - 1 free directions one unit of squared length.
    unbiased = np.maximum(length**2 - (p.shape[0] - 1) * flow, 0.0)
    low = (np.maximum(length - np.sqrt((p.shape[0] - 1) * flow) - radius, 0.0) / some) ** 2 / 2
    return unbiased / some**2 / 2, low, ((length + radius) / some) ** 2 / 2
