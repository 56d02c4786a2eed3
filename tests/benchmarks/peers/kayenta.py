"""Kayenta as documented: every ten minutes all points so far, against a baseline as large as the canary.

Metrics: p50, p99 and error rate a minute, direction «increase», one group; pass 95, marginal 75. One High of three
gives 66.67, which is at or below marginal, so any High stops the canary at once. High is where the lower end of the
shift's interval lies above a quarter of its estimate; that ratio is the score, and «a quarter» is what is tuned.

This is the judge of ``kayenta_judge`` for many series at once. Without ties the interval's ends are order statistics
of the pairwise differences. With ties the judge's root finder decides them, down to its residue, so it is run as it
is, all series in step. A run compares its labels with those of that judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tests.benchmarks.peers import kayenta_judge
from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.stream import Arm, Stream

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Index = NDArray[np.int64]

LOOK_EVERY = 10
"""Windows between judgements."""
Z = float(ndtri(0.5 + kayenta_judge.CONFIDENCE / 2))
HIGH = float(np.nextafter(kayenta_judge.TOLERANCE, 1))
"""Least score that is High: the lower end must lie strictly above the band."""
FEW_PAIRS = 64
"""Of points; with fewer the middle differences lie so far apart that the root finder decides where between them."""
ROWS = 64
"""Series worked on at once, so that their differences stay in the cache."""


def scores(stream: Stream) -> Scores:
    """By metric the lower end of the shift as a part of its estimate, (R, T), at most 1; -inf between looks."""
    canary, baseline = series(stream.canary), series(stream.baseline)
    rollouts, length = stream.shape
    out = {}
    for name, x in canary.items():
        score = np.full((rollouts, length), -np.inf)
        for t in looks(length):
            score[:, t] = high_scores(x[:, : t + 1], baseline[name][:, : t + 1])
        out[name] = score
    return out


def looks(length: int) -> range:
    """Windows after which it judges."""
    return range(LOOK_EVERY - 1, length, LOOK_EVERY)


def series(arm: Arm) -> dict[str, Array]:
    """(R, T) points a minute by metric: latencies in milliseconds, failures in percent; NaN without requests."""
    return {
        "p50": 1e3 * arm.quantile(0.5),
        "p99": 1e3 * arm.quantile(0.99),
        "error rate": 100 * arm.error_rate,
    }


def high_scores(x: Array, y: Array) -> Array:
    """(R,) lower end of the shift of the experiment (R, n) over the control (R, m) as a part of the estimate's size.

    -inf where the judge says Pass, Nodata or Error whatever the tolerance. NaN points are left out.
    """
    out = np.empty(len(x))
    for first in range(0, len(x), ROWS):
        out[first : first + ROWS] = _high_scores(x[first : first + ROWS], y[first : first + ROWS])
    return out


def check(stream: Stream, judgements: int) -> tuple[int, int, float]:
    """(labels compared, of them different, CPU seconds a judgement by the whole judge), on some of the rollouts."""
    canary, baseline, fast = series(stream.canary), series(stream.baseline), scores(stream)
    metric = kayenta_judge.Metric(direction="increase")
    compared = different = 0
    spent_s = 0.0
    for r in range(max(1, min(stream.shape[0], judgements // len(canary) // len(looks(stream.shape[1]))))):
        for t in looks(stream.shape[1]):
            for name in canary:
                began = time.process_time()
                label = kayenta_judge.classify(metric, *(arm[name][r, : t + 1] for arm in (baseline, canary))).label
                spent_s += time.process_time() - began
                compared += 1
                different += (label == "High") != bool(fast[name][r, t] >= HIGH)
    return compared, different, spent_s / compared


def _high_scores(x: Array, y: Array) -> Array:
    n, m = (~np.isnan(x)).sum(1), (~np.isnan(y)).sum(1)
    sum_x, sum_y = np.nansum(x, axis=1), np.nansum(y, axis=1)
    smaller = (sum_x != 0) & (sum_y != 0) & (sum_x * m < sum_y * n)
    open_ = (n > 0) & (m > 0) & ~smaller & ~((n == m) & _same(x, y))
    constant = _constant(x) & _constant(y)
    out = np.full(len(x), -np.inf)
    for r in np.flatnonzero(open_ & constant):  # rare, and rounding alone decides some of them
        label = kayenta_judge.classify(kayenta_judge.Metric(direction="increase"), y[r], x[r]).label
        out[r] = 1.0 if label == "High" else -np.inf
    tied = _tied(x, y) | (n * m < FEW_PAIRS)
    for rows, ends in ((open_ & ~constant & ~tied, _by_order), (open_ & ~constant & tied, _by_roots)):
        at = np.flatnonzero(rows)
        if len(at):
            low, estimate = ends(x[at], y[at])
            with np.errstate(divide="ignore", invalid="ignore"):  # no estimate: all that counts is the end's sign
                part = low / np.abs(estimate)
            out[at] = np.where(np.isnan(part), -np.inf, part)
    return out


def _by_order(x: Array, y: Array) -> tuple[Array, Array]:
    """(lower end, estimate), each (R,), of series without ties: order statistics of the pairwise differences."""
    n, m = (~np.isnan(x)).sum(1), (~np.isnan(y)).sum(1)
    pairs = n * m
    ordered = np.sort((x[:, :, None] - y[:, None, :]).reshape(len(x), -1), axis=1)  # NaN last
    rows = np.arange(len(x))
    estimate = (ordered[rows, pairs // 2] + ordered[rows, (pairs - 1) // 2]) / 2
    above = np.floor(pairs / 2 + 0.5 + Z * np.sqrt(pairs / 12 * (n + m + 1))).astype(int)
    return ordered[rows, np.maximum(pairs - above - 1, 0)], estimate


def _by_roots(x: Array, y: Array) -> tuple[Array, Array]:
    """(lower end, estimate), each (R,), by the judge's root finder; NaN where it fails because all points tie."""
    n, m = (~np.isnan(x)).sum(1), (~np.isnan(y)).sum(1)
    failed = np.zeros(len(x), bool)
    alike_x, alike_y = _alike(x), _alike(y)

    def statistic(shift: Array, rows: Index) -> Array:
        moved, fixed = x[rows] - shift[:, None], y[rows]
        over = (moved[:, :, None] > fixed[:, None, :]).sum((1, 2))
        level = moved[:, :, None] == fixed[:, None, :]
        by_x, by_y = level.sum(2), level.sum(1)
        total = n[rows] + m[rows]
        s = over + by_x.sum(1) / 2 - n[rows] * m[rows] / 2
        # t^3 - t of a group of t is t^2 - 1 of each of its points; missing points are 0 of them.
        of_x, of_y = alike_x[rows], alike_y[rows]
        ties = (((of_x + by_x) ** 2 - 1) * (of_x > 0)).sum(1) + (((of_y + by_y) ** 2 - 1) * (of_y > 0)).sum(1)
        variance = n[rows] * m[rows] / 12 * (total + 1 - ties / (total * (total - 1.0)))
        failed[rows[variance <= 0]] = True
        value: Array = (s - np.sign(s) / 2) / np.sqrt(np.where(variance > 0, variance, 1.0))
        return value

    least, most = np.nanmin(x, 1) - np.nanmax(y, 1), np.nanmax(x, 1) - np.nanmin(y, 1)
    every = np.arange(len(x))
    low = _zeros(lambda d, rows: statistic(d, rows) - Z, least, most)
    low = np.where(statistic(least, every) - Z <= 0, least, np.where(statistic(most, every) - Z >= 0, most, low))
    estimate = _zeros(statistic, least, most)
    return np.where(failed, np.nan, low), np.where(failed, np.nan, estimate)


def _zeros(f: Callable[[Array, Index], Array], low: Array, high: Array) -> Array:
    """(R,) what ``kayenta_judge.zero`` finds, in step for all rows; ``f`` takes points and the rows they are of."""
    eps, tolerance = np.finfo(float).eps, kayenta_judge.ROOT_TOLERANCE
    every = np.arange(len(low))
    best, other, last = high.copy(), low.copy(), low.copy()
    f_best, f_other = f(high, every), f(low, every)
    f_last = f_other.copy()
    best = np.where(f_other == 0, low, best)
    live = every[f_other != 0]
    for _ in range(kayenta_judge.ROOT_STEPS):
        if not len(live):
            break
        b, o, a, f_b, f_o, f_a = best[live], other[live], last[live], f_best[live], f_other[live], f_last[live]
        moved = b - a
        swap = np.abs(f_o) < np.abs(f_b)
        a, b, o = np.where(swap, b, a), np.where(swap, o, b), np.where(swap, b, o)
        f_a, f_b, f_o = np.where(swap, f_b, f_a), np.where(swap, f_o, f_b), np.where(swap, f_b, f_o)
        least = 2 * eps * np.abs(b) + tolerance / 2
        step = (o - b) / 2
        done = (np.abs(step) <= least) | (f_b == 0)
        with np.errstate(divide="ignore", invalid="ignore"):  # interpolation that fails is not used
            ratio, r, s = f_b / f_a, f_a / f_o, f_b / f_o
            secant = a == o
            p = np.where(secant, (o - b) * ratio, ratio * ((o - b) * r * (r - s) - (b - a) * (s - 1)))
            q = np.where(secant, 1 - ratio, (r - 1) * (s - 1) * (ratio - 1))
            p, q = np.abs(p), np.where(p > 0, -q, q)
            good = (p < 0.75 * (o - b) * q - np.abs(least * q) / 2) & (p < np.abs(moved * q / 2))
            tried = (np.abs(moved) >= least) & (np.abs(f_a) > np.abs(f_b))
            step = np.where(tried & good, p / q, step)
        step = np.where(np.abs(step) < least, np.where(step > 0, least, -least), step)
        best[live] = b  # what is done stays here
        going = ~done
        live, a, f_a = live[going], b[going], f_b[going]
        b, o, f_o = b[going] + step[going], o[going], f_o[going]
        f_b = f(b, live)
        beyond = f_b * f_o > 0
        best[live], f_best[live], last[live], f_last[live] = b, f_b, a, f_a
        other[live], f_other[live] = np.where(beyond, a, o), np.where(beyond, f_a, f_o)
    return best


def _alike(x: Array) -> Index:
    """(R, n) how many points of its series equal each point, itself too; 0 for NaN."""
    alike: Index = (x[:, :, None] == x[:, None, :]).sum(2)
    return alike


def _tied(x: Array, y: Array) -> Flags:
    both = np.sort(np.concatenate([x, y], axis=1), axis=1)
    tied: Flags = (both[:, 1:] == both[:, :-1]).any(1)
    return tied


def _constant(x: Array) -> Flags:
    ordered = np.sort(x, axis=1)
    constant: Flags = ((ordered == ordered[:, :1]) | np.isnan(ordered)).all(1)
    return constant


def _same(x: Array, y: Array) -> Flags:
    if x.shape != y.shape:
        return np.zeros(len(x), bool)
    a, b = np.sort(x, axis=1), np.sort(y, axis=1)
    equal: Flags = ((a == b) | (np.isnan(a) & np.isnan(b))).all(1)
    return equal


TOOL = Tool(
    "Kayenta judge",
    scores,
    {"pass 95, marginal 75": dict.fromkeys(("p50", "p99", "error rate"), HIGH)},
    frozenset({"latency", "tail", "errors"}),
)
