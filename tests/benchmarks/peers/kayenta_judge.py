"""Kayenta's judge NetflixACAJudge-v1.0, written anew from a description of what it does; one judgement at a time.

It compares per-minute series metric by metric: an interval of the shift by inverting the Mann-Whitney test, a label by
where that interval lies against a quarter of the estimate, and the weighted share of good labels as score. Checked
against verdicts of the real judge in tests/unit/benchmarks/test_kayenta_judge.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

Array = NDArray[np.float64]
Label = Literal["Pass", "High", "Low", "Nodata", "NodataFailMetric", "Error"]

TOLERANCE = 0.25
"""Part of the estimate that the interval must lie beyond."""
CONFIDENCE = 0.98
"""Of the two-sided interval."""
ROOT_TOLERANCE = 1e-4
"""Absolute, whatever the unit of the metric: this makes the real judge depend on the unit."""
ROOT_STEPS = 1000
NOISE = 1e-5
"""Relative spread of what is added to two constant series."""
NODATA_MOST = 0.5
"""From this share of metrics without data on, the score is 0."""


@dataclass(frozen=True)
class Shift:
    """Interval and estimate of how much the experiment lies above the control, in the metric's unit."""

    low: float
    high: float
    estimate: float


@dataclass(frozen=True)
class Metric:
    """How one metric is judged; every field as in the configuration's ``analysisConfigurations.canary``.

    allowed, critical_at : (decrease, increase) effect sizes; None: 1 for mean ratios, .5 for CLES, which is «off».
    """

    name: str = ""
    groups: Sequence[str] = ("all",)
    direction: Literal["increase", "decrease", "either"] = "either"
    replace_nan: bool = False
    critical: bool = False
    must_have_data: bool = False
    muted: bool = False
    measure: Literal["meanRatio", "cles"] = "meanRatio"
    allowed: tuple[float, float] | None = None
    critical_at: tuple[float, float] | None = None
    remove_outliers: bool = False
    outlier_factor: float = 3.0
    tolerance: float = TOLERANCE
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Labelled:
    """One metric's label. critical : it failed critically. deviation : ratio of means. shift : None where not asked."""

    label: Label
    critical: bool = False
    deviation: float = 1.0
    shift: Shift | None = None


@dataclass(frozen=True)
class Judgement:
    """Score from 0 to 100, its label, and the metrics' labels in their order."""

    score: float
    label: Literal["Pass", "Marginal", "Fail"]
    metrics: Sequence[Labelled] = field(default_factory=tuple)


def judge(
    metrics: Sequence[tuple[Metric, ArrayLike, ArrayLike]],
    *,
    weights: Mapping[str, float],
    pass_at: float = 95.0,
    marginal_at: float = 75.0,
) -> Judgement:
    """Judge (metric, control, experiment) triples. weights : group -> percent; the rest is shared by other groups."""
    labelled = [classify(metric, control, experiment) for metric, control, experiment in metrics]
    heard = [(m[0].groups, one) for m, one in zip(metrics, labelled, strict=True) if not m[0].muted]
    total = score([(one.label, groups, one.critical) for groups, one in heard], weights)
    label: Literal["Pass", "Marginal", "Fail"] = (
        "Pass" if total >= pass_at else "Marginal" if total >= marginal_at else "Fail"
    )
    return Judgement(total, label, labelled)


def classify(metric: Metric, control: ArrayLike, experiment: ArrayLike) -> Labelled:
    """Label the experiment's series of points (n,) against the control's (m,)."""
    x, y = (prepared(metric, series) for series in (experiment, control))
    if not len(x) or not len(y):
        if metric.replace_nan:
            return Labelled("Pass")
        if metric.must_have_data and not metric.critical:
            return Labelled("NodataFailMetric")
        return Labelled("Nodata", metric.critical)
    if np.array_equal(np.sort(x), np.sort(y)) or len(np.unique(np.concatenate([x, y]))) == 1:
        return Labelled("Pass")
    deviation = mean_ratio(x, y)
    effect = deviation if metric.measure == "meanRatio" else cles(x, y)
    if len(np.unique(x)) == 1 and len(np.unique(y)) == 1:
        rng = np.random.default_rng(0)  # the real one is not seeded
        x, y = (series + rng.normal(0, abs(NOISE * series[0]), len(series)) for series in (x, y))
    try:
        shift = mann_whitney(x, y, metric.confidence)
    except ZeroDivisionError:
        return Labelled("Error")
    neutral = 1.0 if metric.measure == "meanRatio" else 0.5
    allowed, critical_at = metric.allowed or (neutral, neutral), metric.critical_at or (neutral, neutral)
    band = metric.tolerance * abs(shift.estimate)
    unknown = np.isnan(effect)
    if metric.direction != "decrease" and shift.low > band and (unknown or effect >= allowed[1]):
        worst = metric.critical and bool(unknown or effect >= critical_at[1])
        return Labelled("High", worst, deviation, shift)
    if metric.direction != "increase" and shift.high < -band and (unknown or effect <= allowed[0]):
        worst = metric.critical and bool(unknown or effect <= critical_at[0])
        return Labelled("Low", worst, deviation, shift)
    return Labelled("Pass", False, deviation, shift)


def prepared(metric: Metric, series: ArrayLike) -> Array:
    """The points that are compared: NaN removed or taken as 0, outliers removed where that is asked for."""
    points = np.asarray(series, dtype=float).reshape(-1)
    points = np.nan_to_num(points, nan=0.0, posinf=np.inf, neginf=-np.inf) if metric.replace_nan else _known(points)
    return points[~outliers(points, metric.outlier_factor)] if metric.remove_outliers else points


def outliers(points: Array, factor: float, *, widened: bool = True) -> NDArray[np.bool_]:
    """(n,) outside of the quartiles by more than ``factor`` interquartile ranges; ``widened`` also of the 1st and 99th
    percentile."""
    if not len(points):
        return np.zeros(0, bool)
    p1, q1, q3, p99 = np.percentile(points, [1, 25, 75, 99])
    low, high = q1 - factor * (q3 - q1), q3 + factor * (q3 - q1)
    if widened:
        low, high = min(p1, low), max(p99, high)
    outside: NDArray[np.bool_] = (points < low) | (points > high)
    return outside


def mann_whitney(x: Array, y: Array, confidence: float = CONFIDENCE) -> Shift:
    """Interval and estimate of the shift of ``x`` (n,) above ``y`` (m,) by inverting the test.

    Raises ZeroDivisionError where all points tie. Source: Bauer (1972), as statistics packages construct it.
    """
    least, most = float(np.min(x) - np.max(y)), float(np.max(x) - np.min(y))
    z = float(ndtri(0.5 + confidence / 2))

    def end(quantile: float) -> float:
        if statistic(x, y, least, quantile) <= 0:
            return least
        if statistic(x, y, most, quantile) >= 0:
            return most
        return zero(lambda d: statistic(x, y, d, quantile), least, most)

    return Shift(end(z), end(-z), zero(lambda d: statistic(x, y, d, 0.0), least, most))


def statistic(x: Array, y: Array, shift: float, quantile: float) -> float:
    """Standardised Mann-Whitney statistic of ``x - shift`` over ``y``, continuity and ties corrected, less quantile."""
    n, m = len(x), len(y)
    both = np.concatenate([x - shift, y])
    _, place, ties = np.unique(np.where(np.isnan(both), np.inf, both), return_inverse=True, return_counts=True)
    ranks = np.cumsum(ties) - (ties - 1) / 2
    s = ranks[place[:n]].sum() - n * (n + 1) / 2 - n * m / 2
    total = n + m
    variance = n * m / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
    if variance <= 0:
        raise ZeroDivisionError("all points tie")
    return float((s - np.sign(s) / 2) / np.sqrt(variance) - quantile)


def zero(f: Callable[[float], float], low: float, high: float) -> float:
    """A zero of ``f`` between the ends: Brent's method (1973, Algorithms for Minimization without Derivatives, ch. 4).

    Stops at an absolute tolerance of 1e-4, which decides the last digits that the real judge shows. Where both ends
    have one sign it runs all the same, as the real one does.
    """
    eps = np.finfo(float).eps
    best, other, last = high, low, low  # the best guess, the end beyond the zero, the guess before
    f_best, f_other, f_last = f(high), (f_low := f(low)), f_low
    if f_low == 0:
        return low
    for _ in range(ROOT_STEPS):
        moved = best - last
        if abs(f_other) < abs(f_best):
            last, best, other = best, other, best
            f_last, f_best, f_other = f_best, f_other, f_best
        least = 2 * eps * abs(best) + ROOT_TOLERANCE / 2
        step = (other - best) / 2
        if abs(step) <= least or f_best == 0:
            break
        if abs(moved) >= least and abs(f_last) > abs(f_best):
            to_other, ratio = other - best, f_best / f_last
            if last == other:  # two points: secant
                p, q = to_other * ratio, 1 - ratio
            else:  # three: inverse quadratic
                r, s = f_last / f_other, f_best / f_other
                p = ratio * (to_other * r * (r - s) - (best - last) * (s - 1))
                q = (r - 1) * (s - 1) * (ratio - 1)
            p, q = (p, -q) if p > 0 else (-p, q)
            if p < 0.75 * to_other * q - abs(least * q) / 2 and p < abs(moved * q / 2):
                step = p / q
        if abs(step) < least:
            step = least if step > 0 else -least
        last, f_last = best, f_best
        best += step
        f_best = f(best)
        if f_best * f_other > 0:
            other, f_other = last, f_last
    return best


def mean_ratio(x: Array, y: Array) -> float:
    """Mean of ``x`` over mean of ``y``; NaN where either is 0."""
    top, bottom = float(np.mean(x)), float(np.mean(y))
    return top / bottom if top != 0 and bottom != 0 else float("nan")


def cles(x: Array, y: Array) -> float:
    """P(x > y) + P(tie) / 2, the common language effect size."""
    n, m = len(x), len(y)
    return float((2 * rankdata(np.concatenate([x, y]))[:n].sum() - n * (n + 1)) / (2 * n * m))


def score(labels: Sequence[tuple[str, Sequence[str], bool]], weights: Mapping[str, float]) -> float:
    """Summary score of (label, groups, critical) triples, 0 to 100.

    Weights are not normalised; a group in which nothing counts enters as 100; errors count for nothing.
    """
    if not labels or any(critical and label != "Pass" for label, _, critical in labels):
        return 0.0
    if sum(label == "Nodata" for label, _, _ in labels) >= NODATA_MOST * len(labels):
        return 0.0
    groups = sorted({group for _, of, _ in labels for group in of})
    unweighted = [group for group in groups if group not in weights]
    rest = (100 - sum(weights.values())) / len(unweighted) if unweighted else 0.0
    total = 0.0
    for group in groups:
        counted = [label for label, of, _ in labels if group in of and label not in ("Nodata", "Error")]
        good = 100 * counted.count("Pass") / len(counted) if counted else 100.0
        total += good * weights.get(group, rest) / 100
    return round(total, 2)


def _known(points: Array) -> Array:
    return points[~np.isnan(points)]
