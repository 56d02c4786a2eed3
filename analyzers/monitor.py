"""The monitor: many rollouts side by side, one call a window, one promise for each whole rollout.

Evidence of the metrics is averaged with fixed weights, which is valid whatever their dependence; it is never reset
between stages, because every window is compared within itself. All hot loops run over arrays with the rollouts as
their last axis, a chunk at a time so that a chunk stays in the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from analyzers import errors, latency, predictions
from analyzers.boundary import AFTER_PLAN_SHARE, log_boundary
from analyzers.config import METRICS, MonitorConfig
from analyzers.layout import HEADER, Layout, read_layout
from analyzers.windows import Checked, Window, checked

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

FAMILY = {"rank": 0.255, "tail": 0.41, "errors": 0.225, "predictions": 0.11}
"""Default shares of the evidence; rank and tail together are latency's."""

CHUNK = 512
"""Rollouts worked on at once."""

LOG_SAFE = float(np.log(0.05))
"""Level of the sequences behind «safe»: a release at its margin is ever called safe with probability 5 % at most."""

TINY = 1e-300
_T, _HIT = HEADER.index("t"), HEADER.index("hit")


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """What one metric says of all windows so far; arrays (R,). NaN where nothing is known yet.

    log_e : log of its own evidence of harm. effect, effect_low, effect_high : latency as a slow-down ratio, errors as
    an odds ratio, predictions as nats, with the ends of a sequence that holds at every window at once with 95 %.
    slower_probability : latency only, the probability that a canary request is slower than a stable one.
    cusum : errors only. blind : this window could not be compared. safe : shown to be below its margin.
    """

    log_e: Array
    effect: Array
    effect_low: Array
    effect_high: Array
    n_canary: Array
    n_stable: Array
    blind: Flags
    safe: Flags
    events_canary: Array | None = None
    events_stable: Array | None = None
    slower_probability: Array | None = None
    cusum: Array | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one window; arrays (R,). ``rollback`` is sticky, ``pause`` may fall again."""

    rollback: Flags
    pause: Flags
    safe: Flags
    blind: Flags
    log_evidence: Array
    log_threshold_rollback: Array
    log_threshold_pause: Array
    evidence: dict[str, MetricVerdict]


class Monitor:
    """Compares canary with stable, window by window, for ``rollouts`` rollouts of one configuration."""

    def __init__(self, config: MonitorConfig, rollouts: int = 1) -> None:
        if rollouts < 1:
            raise ValueError(f"rollouts must be at least 1, found {rollouts}")
        self.config = config
        self.rollouts = rollouts
        self._layout: Layout | None = None
        self._state: Array = np.zeros((len(HEADER), rollouts))

    @classmethod
    def restore(cls, config: MonitorConfig, state: Array) -> Self:
        """A monitor that continues exactly where the rows of ``state`` (R, D) stand. Rows must share one layout."""
        rows = np.asarray(state, dtype=np.float64)
        if rows.ndim != 2 or len(rows) < 1:
            raise ValueError(f"state must have shape (R, D), found {rows.shape}")
        monitor = cls(config, len(rows))
        if rows.shape[1] == len(HEADER):
            return monitor
        layout = read_layout(rows[0])
        head = len(HEADER) + len(layout.edges)
        same = [i for i in range(head) if i not in (_T, _HIT)]
        if (rows[:, same] != rows[0, same]).any():
            raise ValueError("state holds rows of different layouts; restore each layout by itself")
        if rows.shape[1] != layout.places(config.planned_windows)[1]:
            raise ValueError("state was written under another configuration (planned_windows differs)")
        monitor._layout = layout
        monitor._state = np.ascontiguousarray(rows.T)
        return monitor

    def state(self) -> Array:
        """(R, D) float64, one row a rollout; all that a continuation needs."""
        return np.ascontiguousarray(self._state.T)

    def observe(self, window: Window) -> Verdict:
        """Take in one window of all rollouts. Bad input raises ValueError and changes nothing."""
        counts = checked(window, self.rollouts)
        layout = self._check_layout(counts)
        if self._layout is None:
            self._layout = layout
            places, size = layout.places(self.config.planned_windows)
            self._state = np.zeros((size, self.rollouts))
            self._state[: len(HEADER) + len(layout.edges)] = layout.header()[:, None]
            if "errors" in places:
                self._state[places["errors"]["log_lik"]] = 0.0
        parts = {metric: np.zeros(self.rollouts) for metric in layout.fields(self.config.planned_windows)}
        compared = {metric: np.zeros(self.rollouts, bool) for metric in parts}
        for begin in range(0, self.rollouts, CHUNK):
            self._observe_chunk(layout, counts, slice(begin, min(begin + CHUNK, self.rollouts)), parts, compared)
        self._state[_T] += 1
        return self._verdict(layout, parts, compared)

    def explain(self) -> str:
        """Which promise holds, and what it rests on."""
        c = self.config
        promise = (
            f"At most 1 in {round(1 / c.false_rollback)} releases that behave like stable is rolled back, "
            "over its whole rollout and all metrics"
        )
        if c.planned_windows is None:
            how = f"proven by Ville's inequality at evidence {1 / c.false_rollback:.0f}"
        else:
            how = f"the boundary is calibrated by simulation for {c.planned_windows} windows"
        rests = "requests are routed at random within each window and pods differ by no more than the margins"
        return f"{promise}; {how}, provided that {rests}."

    # --- inside -----------------------------------------------------------------------------------------------------

    def _check_layout(self, counts: Checked) -> Layout:
        known = self._layout
        if known is None:
            k = 0 if counts.latency is None else counts.latency[0].shape[0]
            c = 0 if counts.predictions is None else counts.predictions[0].shape[0]
            edges = () if counts.edges is None else tuple(float(x) for x in counts.edges)
            if not k and not c and counts.errors is None:
                raise ValueError("the first window must hold at least one metric")
            return Layout(k, c, counts.errors is not None, edges)
        if counts.edges is not None and known.edges != tuple(float(x) for x in counts.edges):
            raise ValueError("latency.edges changed since the first window; counts of other buckets cannot be added")
        if counts.predictions is not None and known.classes != counts.predictions[0].shape[0]:
            raise ValueError(
                f"predictions has {counts.predictions[0].shape[0]} classes, the first window had {known.classes}"
            )
        if counts.errors is not None and not known.errors:
            raise ValueError("errors was not collected in the first window, so it cannot join the comparison")
        return known

    def _observe_chunk(
        self, layout: Layout, counts: Checked, rows: slice, parts: dict[str, Array], compared: dict[str, Flags]
    ) -> None:
        planned, margins = self.config.planned_windows, self.config.margins
        places, _ = layout.places(planned)
        chunk = np.ascontiguousarray(self._state[:, rows])
        t = chunk[_T]
        warm = t >= self.config.warmup_windows

        def views(metric: str) -> dict[str, Array]:
            wide = layout.fields(planned)[metric]
            multi = (
                "hist",
                "rank",
                "rank_spent",
                "tail",
                "bets",
                "log_lik",
                "pool",
                "own",
                "score",
                "pair",
                "rest",
                "group",
            )
            return {
                name: chunk[place] if name in multi or wide[name] != 1 else chunk[place.start]
                for name, place in places[metric].items()
            }

        def part(array: Array) -> Array:
            warm_part: Array = np.ascontiguousarray(array[..., rows]) * warm
            return warm_part

        if counts.latency is not None:
            st = views("latency")
            compared["latency"][rows] = latency.update(
                st,
                part(counts.latency[0]),
                part(counts.latency[1]),
                t,
                planned,
                margins.latency,
                np.array(layout.edges),
            )
        if counts.errors is not None:
            st = views("errors")
            xc, nc, xs, ns = (part(x) for x in counts.errors)
            compared["errors"][rows] = errors.update(st, xc, nc, xs, ns, t, planned, margins.errors)
        if counts.predictions is not None:
            st = views("predictions")
            compared["predictions"][rows] = predictions.update(
                st, part(counts.predictions[0]), part(counts.predictions[1]), t, planned, margins.predictions
            )
        self._state[:, rows] = chunk
        rank, tail = FAMILY["rank"], FAMILY["tail"]
        for metric in parts:
            st = views(metric)
            if metric == "latency":
                parts[metric][rows] = (rank * st["rank"].sum(0) + tail * st["tail"].sum(0)) / (rank + tail)
            elif metric == "errors":
                parts[metric][rows] = st["bets"].sum(0)
            else:
                parts[metric][rows] = st["pair"].sum(0) + st["rest"].sum(0)

    def _weights(self, metrics: list[str]) -> dict[str, float]:
        usual = {
            "latency": FAMILY["rank"] + FAMILY["tail"],
            "errors": FAMILY["errors"],
            "predictions": FAMILY["predictions"],
        }
        wished = {m: (self.config.weights or {}).get(m, usual[m]) for m in metrics}
        total = sum(wished.values())
        return {m: w / total for m, w in wished.items()}

    def _verdict(self, layout: Layout, parts: dict[str, Array], compared: dict[str, Flags]) -> Verdict:
        config = self.config
        metrics = [m for m in METRICS if m in parts]
        weights = self._weights(metrics)
        log_m = np.log(np.maximum(sum(weights[m] * parts[m] for m in metrics), TINY))
        after_plan = self._state[_T] > (config.planned_windows or np.inf)

        def line(rate: float) -> Array:
            usual = log_boundary(rate, config.planned_windows, weights.get("errors", 0.0))
            return np.where(after_plan, -np.log(rate * AFTER_PLAN_SHARE), usual)

        log_rollback, log_pause = line(config.false_rollback), line(config.false_pause)
        self._state[_HIT] = np.maximum(self._state[_HIT], log_m >= log_rollback)
        rollback = self._state[_HIT] > 0
        evidence = {m: self._metric_verdict(layout, m, parts[m], compared[m]) for m in metrics}
        required = [m for m in metrics if config.required is None or m in config.required]
        asked = set(config.required or ())
        safe = np.logical_and.reduce([evidence[m].safe for m in required] or [np.zeros(self.rollouts, bool)])
        blind = np.logical_or.reduce([~compared[m] for m in required] or [np.ones(self.rollouts, bool)])
        if not asked <= set(metrics):
            safe, blind = np.zeros(self.rollouts, bool), np.ones(self.rollouts, bool)
        return Verdict(rollback, log_m >= log_pause, safe & ~rollback, blind, log_m, log_rollback, log_pause, evidence)

    def _metric_verdict(self, layout: Layout, metric: str, part: Array, compared: Flags) -> MetricVerdict:
        planned, margins = self.config.planned_windows, self.config.margins
        places, _ = layout.places(planned)
        single = {
            name
            for name, size in layout.fields(planned)[metric].items()
            if size == 1 and name not in ("hist", "rank", "rank_spent")
        }
        st = {n: self._state[p.start] if n in single else self._state[p] for n, p in places[metric].items()}
        log_e = np.log(np.maximum(part, TINY))
        blind = ~compared
        if metric == "latency":
            effect, low, high, slower = latency.interval(st, np.array(layout.edges), LOG_SAFE)
            safe = st["safe"] >= -LOG_SAFE
            return MetricVerdict(
                log_e, effect, low, high, st["n_a"].copy(), st["n_b"].copy(), blind, safe, slower_probability=slower
            )
        if metric == "errors":
            effect, low, high = errors.interval(st, LOG_SAFE)
            safe = st["safe"] >= -LOG_SAFE
            return MetricVerdict(
                log_e, effect, low, high, st["n_a"].copy(), st["n_b"].copy(), blind, safe,
                events_canary=st["x_a"].copy(), events_stable=st["x_b"].copy(), cusum=st["cusum"].copy(),
            )  # fmt: skip
        effect, low, high = predictions.interval(st, LOG_SAFE)
        with np.errstate(invalid="ignore"):  # NaN high (no data) is not safe
            safe = high < margins.predictions
        n_a = st["own"].sum(0)
        return MetricVerdict(log_e, effect, low, high, n_a, st["pool"].sum(0) - n_a, blind, safe)
