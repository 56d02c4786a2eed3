"""Planning: how many canary requests and minutes an effect takes to be found, before anything is started.

A plan plays the very monitor that will judge, on seeded streams that look like the service, and reads off when it
finds the effect: no formula of its own that could disagree. What pods that differ make impossible is said by the floor
below which no amount of traffic helps (reference statistics-pods.md section 6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzers.config import MonitorConfig
from analyzers.history import Prior
from analyzers.monitor import Monitor
from analyzers.windows import Categories, Counts, Histogram, Window

Array = NDArray[np.float64]

LADDER = (1, 2, 5, 10, 20, 30, 50)
"""First weights in percent that are considered."""

ROLLOUTS, ROLLOUTS_BY_POD = 400, 128
"""Played for one plan; a median of 400 is known to some 5 %. About a second for an hour of one-minute windows."""
MOST_REQUESTS, MOST_PODS = 1e9, 1000
"""A minute; more would not be drawn in time."""
LONGEST_WINDOWS = 1440
"""Played at most where no length is planned."""
FLOOR_SIGMA = 3.85
"""3.0 to be believed at the usual boundary and .85 for four findings out of five."""
HOPELESS_SIGMA = 3.0
"""Below so many standard deviations not even half of the rollouts find an effect."""

_EDGES_S = tuple(float(x) for x in np.geomspace(0.005, 5.0, 19))

MOST_SLOWER = 1000.0
"""Beyond it every slow-down is the same one: found at once."""
NEARLY_ALL = 0.99
"""Share of the rollouts in which an effect is found, beyond which no more windows are played."""


@dataclass(frozen=True, slots=True)
class Stable:
    """What stable looks like, from its own history.

    edges_s : (K-1,) bucket bounds in seconds. buckets : (K,) requests by bucket. errors : share of failures. classes :
    (C,) requests by predicted class, empty without predictions. pods : (canary, stable) where counts come by pod;
    pod_spread : standard deviation of log latency between pods; pod_noise : (standard deviation, correlation from
    window to window) of a pod's wandering.
    """

    edges_s: tuple[float, ...] = _EDGES_S
    buckets: tuple[float, ...] = ()
    errors: float = 0.001
    classes: tuple[float, ...] = ()
    pods: tuple[int, int] | None = None
    pod_spread: float = 0.0
    pod_noise: tuple[float, float] = (0.0, 0.8)

    def __post_init__(self) -> None:
        if not 0 < self.errors < 1:
            raise ValueError(f"stable's errors are a share between 0 and 1 (0.001: .1 %), found {self.errors:g}")
        if self.pods is not None and not (1 <= self.pods[0] <= MOST_PODS and 2 <= self.pods[1] <= MOST_PODS):
            raise ValueError(
                f"pods are 1 to {MOST_PODS} of the canary and 2 to {MOST_PODS} of stable, found {self.pods}"
            )
        if not 0 <= self.pod_spread <= 1:
            raise ValueError(f"pod_spread is a standard deviation of log latency, 0 to 1, found {self.pod_spread:g}")
        if not (0 <= self.pod_noise[0] <= 1 and 0 <= self.pod_noise[1] < 1):
            raise ValueError(f"pod_noise is (0 to 1, correlation 0 up to 1), found {self.pod_noise}")

    @staticmethod
    def log_normal(median_s: float = 0.05, log_sd: float = 0.6, **rest: object) -> Stable:
        """A service of which only the median and the spread of log latency are known."""
        if not (0 < log_sd <= 5 and 0 < median_s < math.inf):
            raise ValueError(f"the spread of log latency lies above 0 and up to 5, found {log_sd:g}")
        z = (np.log(_EDGES_S) - math.log(median_s)) / log_sd
        below = [0.5 * math.erfc(-x / math.sqrt(2)) for x in z]  # the normal distribution function
        return Stable(buckets=tuple(np.diff(np.concatenate([[0.0], below, [1.0]]))), **rest)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a user wants found. Give exactly one.

    slower : ratio of all latencies. tail : (share of requests, factor by which they become slower). errors : the
    canary's share of failures. moved : share of predictions that go from the commonest class to the next one.
    onset : window at which it begins.
    """

    slower: float | None = None
    tail: tuple[float, float] | None = None
    errors: float | None = None
    moved: float | None = None
    onset: int = 0

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.slower, self.tail, self.errors, self.moved)) != 1:
            raise ValueError("an effect names exactly one of slower, tail, errors and moved")
        if self.slower is not None and not 1 < self.slower <= MOST_SLOWER:
            raise ValueError(f"slower is a ratio above 1 and up to {MOST_SLOWER:g} (1.2: 20 %), found {self.slower:g}")
        if self.tail is not None and not (0 < self.tail[0] <= 1 < self.tail[1] <= MOST_SLOWER):
            raise ValueError(f"tail is a share in (0, 1] and a factor above 1, found {self.tail!r}")
        for name, part in (("errors", self.errors), ("moved", self.moved)):
            if part is not None and not 0 < part < 1:
                raise ValueError(f"{name} is a share between 0 and 1 (0.005: .5 %), found {part:g}")
        if self.onset < 0:
            raise ValueError(f"onset must not be negative, found {self.onset}")

    def __str__(self) -> str:
        if self.slower is not None:
            return f"latency x{self.slower:g}"
        if self.tail is not None:
            return f"{100 * self.tail[0]:g} % of requests x{self.tail[1]:g} slower"
        if self.errors is not None:
            return f"errors at {100 * self.errors:g} %"
        return f"{100 * (self.moved or 0):g} % of predictions moved"


@dataclass(frozen=True, slots=True)
class Plan:
    """Median cost of finding one effect; None where it cannot be found, and ``reason`` says why and what would help.

    found : probability that it is found within the planned windows; playing ends at ``NEARLY_ALL``, which is then the
    least. minutes_p90 : of nine rollouts in ten, None where fewer find it.
    """

    canary_requests: int | None
    minutes: float | None
    minutes_p90: float | None
    found: float
    reason: str


def plan(
    effect: Effect,
    *,
    weight_percent: float,
    requests_per_minute: float,
    stable: Stable | None = None,
    config: MonitorConfig | None = None,
    prior: Prior | None = None,
    seed: int = 0,
) -> Plan:
    """Canary requests and minutes (one-minute windows) until ``effect`` is found at this weight and traffic.

    weight_percent in (0, 100); requests_per_minute : both arms together. stable : by default a log-normal service.
    config : the monitor's, by default the shipped promise and margins. prior : what past rollouts taught.
    Cost: a second or so; deterministic for a seed.
    """
    if not 0 < weight_percent < 100:
        raise ValueError(f"the weight must lie between 0 and 100 percent, found {weight_percent:g}")
    if not 0 < requests_per_minute <= MOST_REQUESTS:
        raise ValueError(
            f"requests a minute must lie above 0 and up to {MOST_REQUESTS:g}, found {requests_per_minute:g}"
        )
    stable, config = stable or Stable.log_normal(), config or MonitorConfig()
    within = _within_margin(effect, stable, config)
    if within:
        return Plan(None, None, None, 0.0, f"{effect} cannot be found at any weight: {within}")
    length = config.planned_windows or LONGEST_WINDOWS
    too_few = _too_few_pods(effect, stable, length)
    if too_few:
        return Plan(None, None, None, 0.0, f"{effect} cannot be found at any traffic: {too_few}")
    rollouts = ROLLOUTS_BY_POD if stable.pods else ROLLOUTS
    monitor = Monitor(config, rollouts, prior=prior)
    found = np.full(rollouts, np.inf)
    rate = requests_per_minute * weight_percent / 100
    stream = simulate(stable, effect, weight_percent / 100, requests_per_minute, rollouts, length, seed)
    for t, window in enumerate(stream, start=1):
        fresh = monitor.observe(window).rollback & np.isinf(found)
        found[fresh] = t - effect.onset
        if np.isfinite(found).mean() > NEARLY_ALL:
            break
    share = float(np.isfinite(found).mean())
    median, late = (float(np.quantile(found, q, method="inverted_cdf")) for q in (0.5, 0.9))
    if not math.isfinite(median):
        limit = f"{length} min" if config.planned_windows else f"{LONGEST_WINDOWS} min"
        return Plan(
            None, None, None, share,
            f"{effect} is found within {limit} in only {100 * share:.0f} % of rollouts at {rate:g} canary requests a "
            "minute: give it a higher weight or more time",
        )  # fmt: skip
    requests = math.ceil(median * rate)
    return Plan(
        requests, median, late if math.isfinite(late) else None, share,
        f"{effect}: about {requests} canary requests, {median:.0f} min",
    )  # fmt: skip


def recommend(
    effects: Sequence[Effect],
    *,
    bake_minutes: float,
    requests_per_minute: float,
    stable: Stable | None = None,
    config: MonitorConfig | None = None,
    prior: Prior | None = None,
    seed: int = 0,
) -> tuple[int | None, str]:
    """(smallest first weight in percent at which half of all rollouts find every effect within the bake time, why).

    None where none does.
    """
    config = config or MonitorConfig(planned_windows=max(1, math.ceil(bake_minutes)))
    slowest = "no effect was named"
    for weight in LADDER:
        plans = [
            plan(
                effect, weight_percent=weight, requests_per_minute=requests_per_minute, stable=stable, config=config,
                prior=prior, seed=seed,
            )
            for effect in effects
        ]  # fmt: skip
        missing = [p for p in plans if p.minutes is None or p.minutes > bake_minutes]
        if plans and not missing:
            slowest_min = max(p.minutes or 0.0 for p in plans)
            return weight, f"{weight} %: half of all rollouts find every named effect within {slowest_min:.0f} min"
        if missing:
            slowest = missing[0].reason
    return None, f"no first weight finds every named effect within {bake_minutes:.0f} min; at {LADDER[-1]} %: {slowest}"


def floor(stable: Stable, windows: int) -> float:
    """Smallest constant log slow-down that pods which differ and wander let anyone see, with 80 % probability.

    3.85 sqrt((1/k + 1/m)(tau^2 + sigma^2 (1 + rho) / ((1 - rho) T))), statistics-pods.md section 6; 0 without pods.
    """
    if stable.pods is None:
        return 0.0
    k, m = stable.pods
    return FLOOR_SIGMA * math.sqrt((1 / k + 1 / m) * _pod_variance(stable, windows))


def simulate(
    stable: Stable, effect: Effect | None, share: float, requests: float, rollouts: int, length: int, seed: int
) -> Iterator[Window]:
    """Windows of ``rollouts`` rollouts of this service with the effect (None: a good release).

    share : the canary's part of ``requests``, which come to both arms in each window.
    """
    rng = np.random.default_rng(seed)
    k, m = stable.pods or (1, 1)
    canary = np.arange(k + m) < k
    rate = requests * np.where(canary, share / k, (1 - share) / m)
    level = rng.normal(0, 1, (rollouts, k + m)) * stable.pod_spread
    sd, rho = stable.pod_noise
    wander = rng.normal(0, 1, (rollouts, k + m))
    classes = np.array(stable.classes) / max(sum(stable.classes), 1e-300)
    for t in range(length):
        at = effect if effect is not None and t >= effect.onset else None
        log_slower = level + sd * wander if stable.pods else np.zeros((1, 2))
        below = _below(stable, log_slower)
        failing = np.full(k + m, stable.errors)
        shares = [classes, classes]
        if at is not None and at.slower is not None:
            below[:, canary] = _below(stable, log_slower[:, canary] + math.log(at.slower))
        elif at is not None and at.tail is not None:
            part, factor = at.tail
            slow = _below(stable, log_slower[:, canary] + math.log(factor))
            below[:, canary] = (1 - part) * below[:, canary] + part * slow
        elif at is not None and at.errors is not None:
            failing[canary] = at.errors
        elif at is not None and at.moved is not None and len(classes) > 1:
            first, second = np.argsort(-classes, kind="stable")[:2]
            moved = min(at.moved, classes[first])
            shares[0] = classes.copy()
            shares[0][first] -= moved
            shares[0][second] += moved
        counts = rng.poisson(rate[:, None] * np.diff(below, axis=-1), (rollouts, k + m, below.shape[-1] - 1))
        total = counts.sum(-1)
        failed = rng.binomial(total, failing)
        if not stable.pods:
            counts, total, failed = (x[:, [0, 1]] for x in (counts, total, failed))
        pick = (slice(0, k), slice(k, None)) if stable.pods else (0, 1)
        yield Window(
            Histogram(stable.edges_s, *(counts[:, p] for p in pick)),
            Counts(failed[:, pick[0]], total[:, pick[0]], failed[:, pick[1]], total[:, pick[1]]),
            Categories(
                *(rng.multinomial(total[:, w].sum(-1), s) for w, s in zip((canary, ~canary), shares, strict=True))
            )
            if len(classes) > 1
            else None,
        )
        wander = rho * wander + math.sqrt(1 - rho * rho) * rng.normal(0, 1, wander.shape)


def _below(stable: Stable, log_slower: Array) -> Array:
    """(R, P, K + 1) distribution function at 0, each bound and infinity, all requests slower by ``log_slower``.

    Log-linear inside buckets, the open ones as wide as their neighbours.
    """
    log_edges = np.log(np.maximum(stable.edges_s, 1e-9))
    gaps = np.diff(log_edges) if len(log_edges) > 1 else np.ones(1)
    knots = np.concatenate([[log_edges[0] - gaps[0]], log_edges, [log_edges[-1] + gaps[-1]]])
    shares = np.array(stable.buckets or Stable.log_normal().buckets, dtype=np.float64)
    if len(shares) != len(log_edges) + 1:
        raise ValueError(f"buckets has {len(shares)} numbers, but edges_s names {len(log_edges)} bounds")
    cumulative = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
    inside = np.interp(log_edges - log_slower[..., None], knots, cumulative)
    ends = np.ones((*log_slower.shape, 1))
    return np.concatenate([0 * ends, inside, ends], axis=-1)


def _within_margin(effect: Effect, stable: Stable, config: MonitorConfig) -> str:
    margins = config.margins
    if effect.slower is not None and effect.slower <= margins.latency:
        return f"x{margins.latency:g} is tolerated"
    if effect.errors is not None:
        odds = effect.errors / (1 - effect.errors) / (stable.errors / (1 - stable.errors))
        if odds <= margins.errors:
            return f"{margins.errors:g} times the odds of stable's {100 * stable.errors:g} % is tolerated"
    if effect.moved is not None and len(stable.classes) < 2:
        return "no classes of predictions are known"
    return ""


def _pod_variance(stable: Stable, windows: int) -> float:
    sd, rho = stable.pod_noise
    return stable.pod_spread**2 + sd * sd * (1 + rho) / ((1 - rho) * windows)


def _too_few_pods(effect: Effect, stable: Stable, windows: int) -> str:
    if stable.pods is None or effect.slower is None or effect.onset > 0:
        return ""
    wanted = math.log(effect.slower)
    least = floor(stable, windows)
    if least * HOPELESS_SIGMA / FLOOR_SIGMA <= wanted:
        return ""
    k, m = stable.pods
    rest = (wanted / FLOOR_SIGMA) ** 2 / _pod_variance(stable, windows) - 1 / m
    most = f"pods differ so much that {k} canary and {m} stable pods show x{math.exp(least):.3g} at the least"
    if rest <= 0:
        need = math.ceil(2 * _pod_variance(stable, windows) * (FLOOR_SIGMA / wanted) ** 2)
        return f"{most}; it needs {need} pods in each arm"
    return f"{most}; it needs {math.ceil(1 / rest)} canary pods"
