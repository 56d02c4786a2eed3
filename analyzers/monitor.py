"""The monitor: many rollouts side by side, one call a window, one promise for each whole rollout.

Evidence of the metrics is averaged with fixed weights, which is valid whatever their dependence; it is never reset
between stages, because every window is compared within itself. All hot loops run over arrays with the rollouts as
their last axis, a chunk at a time so that a chunk stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from analyzers import errors, latency, pods, predictions
from analyzers import share as shares
from analyzers.boundary import AFTER_PLAN_SHARE, UNPLANNED_WINDOWS, log_boundary, log_boundary_pods
from analyzers.config import METRICS, MonitorConfig, output_name
from analyzers.history import Prior
from analyzers.inputs import COARSE
from analyzers.layout import HEADER, Layout, Shape, read_layout
from analyzers.share import ShareVerdict
from analyzers.windows import Checked, Window, checked

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Index = slice | NDArray[np.int64]
Said: TypeAlias = dict[str, Any]
"""What one metric says of some rows: "e", its e-value, and the arrays of ``MetricVerdict`` by their names."""

FAMILY = {"rank": 0.285, "tail": 0.415, "errors": 0.21, "predictions": 0.09}
"""Default shares of the evidence; rank and tail together are latency's."""

CHUNK = 1024
CHUNK_PODS = 64
"""Rollouts worked on at once; with pods a row is ten times as long."""
LANES = 8
"""Chunks are padded to a multiple of it, the widest vector register in float64."""

LOG_INTERVAL = float(np.log(0.05))
"""Level of the intervals that are shown: each holds at every window at once with 95 %."""

TINY = 1e-300
ARM_SHARES = {
    "latency": FAMILY["rank"] + FAMILY["tail"],
    "errors": FAMILY["errors"],
    "predictions": FAMILY["predictions"],
}
BLAME_RATE = 0.1
"""Of the metrics that are named harmful, at most this part is named wrongly."""
_T, _HIT = HEADER.index("t"), HEADER.index("hit")


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """What one metric says of all windows so far; arrays (R,). NaN where nothing is known yet.

    log_e : log of its own evidence of harm. effect, effect_low, effect_high : latency as a slow-down ratio, errors as
    an odds ratio, predictions as nats, with the ends of a sequence that holds at every window at once with 95 %.
    blamed : named as harmful, with at most every tenth such naming wrong (e-BH over the metrics).
    slower_probability : latency only, the probability that a canary request is slower than a stable one.
    coarse : latency only, most requests lie in one bucket, so that shifts stay hidden.
    cusum, cusum_line : errors only, for the chart: the CUSUM of log likelihood ratios at twice the odds, and the line
    that it crosses in at most ``false_rollback`` of harmless rollouts (P(max >= h in T windows) <= T e^-h).
    blind : this window could not be compared. safe : shown to be below its margin.
    """

    log_e: Array
    effect: Array
    effect_low: Array
    effect_high: Array
    n_canary: Array
    n_stable: Array
    blind: Flags
    safe: Flags
    blamed: Flags
    events_canary: Array | None = None
    events_stable: Array | None = None
    slower_probability: Array | None = None
    coarse: Flags | None = None
    cusum: Array | None = None
    cusum_line: Array | None = None


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
    share: ShareVerdict


class Monitor:
    """Compares canary with stable, window by window, for ``rollouts`` rollouts of one configuration.

    prior : what past rollouts of the service teach (``learn_prior``), one for all rollouts or one each.
    """

    def __init__(
        self, config: MonitorConfig, rollouts: int = 1, *, prior: Prior | Sequence[Prior] | None = None
    ) -> None:
        if rollouts < 1:
            raise ValueError(f"rollouts must be at least 1, found {rollouts}")
        priors = [prior or Prior()] if prior is None or isinstance(prior, Prior) else list(prior)
        if len(priors) not in (1, rollouts):
            raise ValueError(f"prior must be one for all rollouts or one for each of {rollouts}, found {len(priors)}")
        self.config = config
        self.rollouts = rollouts
        self._log_safe = float(np.log(config.false_safe))
        self._priors = priors
        self._layout: Layout | None = None
        self._state: Array = np.zeros((len(HEADER), rollouts))

    @classmethod
    def restore(cls, config: MonitorConfig, state: Array) -> Self:
        """A monitor that continues exactly where the rows of ``state`` (R, D) stand. Rows must share one layout."""
        rows = np.asarray(state, dtype=np.float64)
        if rows.ndim != 2 or len(rows) < 1:
            raise ValueError(f"state must have shape (R, D), found {rows.shape}")
        if np.isnan(rows).any():
            raise ValueError(f"state holds NaN in row {int(np.isnan(rows).any(1).argmax())}; it was not written so")
        monitor = cls(config, len(rows))
        if rows.shape[1] == len(HEADER):
            return monitor
        layout = read_layout(rows[0])
        head = layout.head_n
        same = [i for i in range(head) if i not in (_T, _HIT)]
        if (rows[:, same] != rows[0, same]).any():
            raise ValueError("state holds rows of different layouts; restore each layout by itself")
        if layout.planned != config.planned_windows:
            raise ValueError(
                f"state was written for planned_windows={layout.planned}, "
                f"the configuration has {config.planned_windows}"
            )
        monitor._layout = layout
        monitor._state = rows.T.copy()
        return monitor

    def state(self) -> Array:
        """(R, D) float64, one row a rollout; all that a continuation needs."""
        return self._state.T.copy()

    def observe(self, window: Window) -> Verdict:
        """Take in one window of all rollouts. Bad input raises ValueError and changes nothing."""
        counts = checked(window, self.rollouts)
        layout = self._check_layout(counts)
        if self._layout is None:
            self._begin(layout)
        chunk = CHUNK_PODS if layout.by_pod else CHUNK
        said: list[dict[str, Said]] = []
        for first in range(0, self.rollouts, chunk):
            said.append(self._observe_chunk(layout, counts, first, min(first + chunk, self.rollouts)))
        if counts.weight is not None:
            known = counts.weight * np.where(self._state[_T] >= self.config.warmup_windows, 1.0, np.nan)
            st = self._views(self._state, "share")
            shares.update(st, *counts.requests(), known, self._state[_T], self.config.planned_windows)
        self._state[_T] += 1
        joined = {m: {name: np.concatenate([s[m][name] for s in said]) for name in said[0][m]} for m in said[0]}
        return self._verdict(layout, joined)

    def quantiles(self, q: float) -> tuple[Array, Array, Array]:
        """(ratio, low, high), each (R,): the canary's ``q`` quantile of latency to stable's, with the ends of a
        sequence that holds at every window at once with 95 %.

        Both ends lie on bounds of buckets. Windows are matched, so that a changing weight does not tilt it. Requests
        are the units, also where the evidence takes pods. NaN where there is no latency.
        """
        if not 0 < q < 1:
            raise ValueError(f"q must lie between 0 and 1, found {q!r}")
        if self._layout is None or not self._layout.buckets:
            nothing = np.full(self.rollouts, np.nan)
            return nothing, nothing, nothing
        st = self._views(self._state, "latency")
        return latency.quantile_ratio(st, np.array(self._layout.edges), q, LOG_INTERVAL)

    def placebo(self) -> Array:
        """(R, 1 + U) log evidence of «slower since the first window» for the canary and for each stable pod playing it.

        The same evidence with the same random effects, from the same windows. NaN for pods that were replaced. U is 0
        where counts do not come by pod.
        """
        if self._layout is None or not self._layout.by_pod or not self._layout.buckets:
            return np.full((self.rollouts, 1), np.nan)
        return pods.placebo(self._views(self._state, "rank")).T

    @property
    def grouped(self) -> bool:
        """Whether there are so many stable pods that they are followed in groups."""
        return self._layout is not None and self._layout.pods[1] > pods.MOST_UNITS

    def odd_pods(self) -> Array:
        """(R, U) how many robust standard deviations each stable pod is slower than the median stable pod.

        One odd pod makes all seem to differ, so that a canary slow from the start is found late or not at all; it is
        never left out silently, because canary pods are as likely to be odd. Beyond ``pods.ODD`` it is worth a look.
        NaN for pods that were replaced, among fewer than five, and where pods beyond 18 are followed in groups. U is 0
        where counts do not come by pod.
        """
        if self._layout is None or not self._layout.by_pod or not self._layout.buckets:
            return np.full((self.rollouts, 0), np.nan)
        if self.grouped:
            return np.full((self.rollouts, self._layout.pods[1]), np.nan)
        return pods.odd(self._views(self._state, "rank")).T

    def explain(self) -> str:
        """Which promise holds, and what it rests on."""
        c = self.config
        promise = (
            f"At most 1 in {round(1 / c.false_rollback)} releases that behave like stable is rolled back, "
            "over its whole rollout and all metrics"
        )
        if self._layout is not None and self._layout.by_pod:
            canary, stable = self._layout.pods
            how = (
                f"proven under the model at evidence {1 / c.false_rollback:.0f}"
                if c.planned_windows is None
                else f"the boundary is calibrated by simulation for {c.planned_windows} windows"
            )
            past = min(prior.rollouts for prior in self._priors)
            history = f"{past} past rollouts" if past else "defaults, until past rollouts are given"
            rests = (
                f"the {canary} canary pods are drawn like the {stable} stable ones; how much the latency of pods "
                f"differs, wanders and warms up is learned from the stable pods and from {history}, how their failures "
                f"differ from {history} alone"
            )
        else:
            how = (
                f"proven by Ville's inequality at evidence {1 / c.false_rollback:.0f}"
                if c.planned_windows is None
                else f"the boundary is calibrated by simulation for {c.planned_windows} windows"
            )
            past = min(prior.rollouts for prior in self._priors)
            bursts = f"as in {past} past rollouts" if past else "rare, as long as no past rollouts are given"
            rests = (
                "requests are routed at random within each window, pods differ by no more than the margins, and bursts "
                f"of failures of one arm are {bursts}"
            )
        return f"{promise}; {how}, provided that {rests}."

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _places(self) -> dict[str, dict[str, tuple[slice, Shape]]]:
        assert self._layout is not None
        return self._layout.places()[0]

    def _views(self, state: Array, part: str) -> dict[str, Array]:
        """The fields of one part of the rows, as views (shape, R) into ``state`` (D, R)."""
        rows = state.shape[1]
        return {name: state[at].reshape(*shape, rows) for name, (at, shape) in self._places[part].items()}

    def _begin(self, layout: Layout) -> None:
        size = layout.places()[1]
        self._layout = layout
        self._state = np.zeros((size, self.rollouts))
        self._state[: layout.head_n] = layout.header()[:, None]
        if not layout.by_pod:
            if layout.errors:
                bursts = np.stack([p.bursts for p in self._priors], axis=-1)
                errors.begin(self._views(self._state, "errors"), bursts)
            return
        for part, field in (("rank", "rank"), ("p95", "p95"), ("p99", "p99"), ("failures", "errors")):
            if part in self._places:
                pods.lay_prior(field, self._views(self._state, part), [getattr(p, field) for p in self._priors])

    def _check_layout(self, counts: Checked) -> Layout:
        known = self._layout
        if known is None:
            k = 0 if counts.latency is None else counts.latency[0].shape[0]
            c, *further = [a.shape[0] for a, _ in counts.by_output] or [0]
            edges = () if counts.edges is None else tuple(float(x) for x in counts.edges)
            if not k and not c and counts.errors is None:
                raise ValueError("the first window must hold at least one metric")
            planned, slots = self.config.planned_windows, counts.pods or (0, 0)
            return Layout(k, c, counts.errors is not None, edges, planned, slots, tuple(further))
        if counts.edges is not None and known.edges != tuple(float(x) for x in counts.edges):
            raise ValueError("latency.edges changed since the first window; counts of other buckets cannot be added")
        classes = tuple(a.shape[0] for a, _ in counts.by_output)
        if classes and classes != known.by_output:
            said, was = (", ".join(map(str, one)) or "no" for one in (classes, known.by_output))
            raise ValueError(f"predictions has {said} classes, the first window had {was}")
        if counts.errors is not None and not known.errors:
            raise ValueError("errors was not collected in the first window, so it cannot join the comparison")
        if (counts.latency is not None or counts.errors is not None) and (counts.pods or (0, 0)) != known.pods:
            raise ValueError(f"the window holds {counts.pods or 'no'} pod slots, the first window had {known.pods}")
        return known

    def _observe_chunk(self, layout: Layout, counts: Checked, first: int, end: int) -> dict[str, Said]:
        """Take in some rows; metric -> what is said of it."""
        # Sums round differently in arrays of other widths; padded to whole lanes, a row never depends on its batch.
        missing = -(end - first) % LANES
        rows = np.minimum(np.arange(first, end + missing), end - 1) if missing else slice(first, end)
        chunk = np.ascontiguousarray(self._state[:, rows])
        t = chunk[_T]
        warm = t >= self.config.warmup_windows

        def part(array: Array) -> Array:
            counted: Array = np.ascontiguousarray(array[..., rows]) * warm
            return counted

        say = self._by_pod if layout.by_pod else self._by_arm
        said = say(layout, chunk, counts, part, rows)
        for place in range(len(layout.by_output)):
            st = self._views(chunk, output_name(place))
            margin = self.config.margins.predictions
            compared = np.zeros(chunk.shape[1], bool)
            if counts.by_output:
                a, b = (part(x) for x in counts.by_output[place])
                compared = predictions.update(st, a, b, t, self.config.planned_windows, margin)
            effect, low, high = predictions.interval(st, LOG_INTERVAL)
            _, _, surely = predictions.interval(st, self._log_safe)
            n_a = st["own"].sum(0)
            with np.errstate(invalid="ignore"):  # NaN high (no data) is not safe
                said[output_name(place)] = {
                    "e": st["pair"].sum((0, 1, 2)) + st["rest"].sum((0, 1, 2)), "effect": effect, "effect_low": low,
                    "effect_high": high, "n_canary": n_a, "n_stable": st["pool"].sum(0) - n_a, "blind": ~compared,
                    "safe": surely < margin,
                }  # fmt: skip
        self._state[:, first:end] = chunk[:, : end - first]
        return {m: {name: array[: end - first] for name, array in of.items()} for m, of in said.items()}

    def _by_arm(
        self, layout: Layout, chunk: Array, counts: Checked, part: Callable[[Array], Array], rows: Index
    ) -> dict[str, Said]:
        planned, margins, t = self.config.planned_windows, self.config.margins, chunk[_T]
        said: dict[str, Said] = {}
        nothing = np.zeros(chunk.shape[1], bool)
        if layout.buckets:
            st, edges = self._views(chunk, "latency"), np.array(layout.edges)
            compared = nothing
            if counts.latency is not None:
                a, b = (part(x) for x in counts.latency)
                compared = latency.update(st, a, b, t, planned, margins.latency, edges)
            delta, low, high = latency.interval(st, LOG_INTERVAL)
            e = latency.evidence(st, FAMILY["rank"], FAMILY["tail"])
            said["latency"] = _latency(st, edges, (delta, low, high), e, compared, st["safe"] >= -self._log_safe)
        if layout.errors:
            st, compared = self._views(chunk, "errors"), nothing
            if counts.errors is not None:
                xc, nc, xs, ns = (part(x) for x in counts.errors)
                compared = errors.update(st, xc, nc, xs, ns, t, planned, margins.errors)
            safe = st["safe"] >= -self._log_safe
            said["errors"] = self._errors(st, errors.interval(st, LOG_INTERVAL), errors.evidence(st), compared, safe)
        return said

    def _by_pod(
        self, layout: Layout, chunk: Array, counts: Checked, part: Callable[[Array], Array], rows: Index
    ) -> dict[str, Said]:
        margins, t = self.config.margins, chunk[_T]
        pace = pods.Pace(t, self.config.planned_windows)
        said: dict[str, Said] = {}
        nothing = np.zeros(chunk.shape[1], bool)
        who = None
        if "requests" in counts.by_pod:
            n = counts.by_pod["requests"]
            ages = None if counts.ages is None else (counts.ages[0][:, rows], counts.ages[1][:, rows])
            started = t > self.config.warmup_windows
            who = pods.members(self._views(chunk, "pods"), part(n.canary), part(n.stable), ages, started)
        if layout.buckets:
            st, edges = self._views(chunk, "latency"), np.array(layout.edges)
            rank, p95, p99 = (self._views(chunk, name) for name in pods.OF_LATENCY)
            compared = nothing
            if "latency" in counts.by_pod and who is not None:
                one = counts.by_pod["latency"]
                a, b = part(one.canary), part(one.stable)
                compared = latency.add(st, a.sum(0), b.sum(0))
                pods.update_latency(rank, p95, p99, a, b, st["hist"], who, pace)
            e_rank, p = pods.score("rank", rank)
            tails = [pods.score(name, view)[0] for name, view in (("p95", p95), ("p99", p99))]
            interval = pods.interval("rank", rank, p, LOG_INTERVAL)
            at = np.log(margins.latency) * latency.ratio_slope(st["hist"], edges)
            safe = pods.below(rank, p, at, "rank", self._log_safe)
            said["latency"] = _latency(st, edges, interval, pods.of_latency(e_rank, *tails), compared, safe)
        if layout.errors:
            st, odds, compared = self._views(chunk, "errors"), self._views(chunk, "failures"), nothing
            if "errors" in counts.by_pod and who is not None:
                x, n = counts.by_pod["errors"], counts.by_pod["totals"]
                four = part(x.canary), part(n.canary), part(x.stable), part(n.stable)
                xc, nc, xs, ns = (y.sum(0) for y in four)
                compared, _, _ = errors.add(st, xc, nc, xs, ns, margins.errors)
                pods.update_count("errors", odds, *four, who, pace)
            e, p = pods.score("errors", odds)
            _, low, high = (np.exp(np.clip(x, -7, 7)) for x in pods.interval("errors", odds, p, LOG_INTERVAL))
            safe = pods.below(odds, p, np.full(len(t), np.log(margins.errors)), "errors", self._log_safe)
            said["errors"] = self._errors(st, (errors.odds_ratio(st), low, high), e, compared, safe)
        return said

    def _errors(
        self, st: dict[str, Array], interval: tuple[Array, Array, Array], e: Array, compared: Flags, safe: Flags
    ) -> Said:
        effect, low, high = interval
        line = np.log((self.config.planned_windows or UNPLANNED_WINDOWS) / self.config.false_rollback)
        return {
            "e": e, "effect": effect, "effect_low": low, "effect_high": high, "n_canary": st["n_a"].copy(),
            "n_stable": st["n_b"].copy(), "blind": ~compared, "safe": safe, "events_canary": st["x_a"].copy(),
            "events_stable": st["x_b"].copy(), "cusum": st["cusum"].copy(), "cusum_line": np.full_like(e, line),
        }  # fmt: skip

    def _weights(self, layout: Layout, metrics: list[str]) -> dict[str, float]:
        """Each metric's part of the evidence. With pods the parts of metrics that are not there are not given away."""
        usual = pods.METRIC_SHARES if layout.by_pod else ARM_SHARES
        if layout.by_pod and self.config.planned_windows is None:
            usual = pods.METRIC_SHARES_PROVABLE
        wished = {m: usual[m] * (self.config.weights or {}).get(m, ARM_SHARES[m]) / ARM_SHARES[m] for m in metrics}
        whole = min(sum(usual[m] for m in metrics), pods.MOST_SHARES) if layout.by_pod else 1.0
        total = sum(wished.values())
        weights = {m: w / total * whole for m, w in wished.items()}
        # A model's outputs say much the same, and an average holds whatever their dependence.
        outputs_n = max(len(layout.by_output), 1)
        return weights | {
            output_name(place): weights["predictions"] / outputs_n for place in range(len(layout.by_output))
        }

    def _verdict(self, layout: Layout, said: dict[str, Said]) -> Verdict:
        config = self.config
        further = [output_name(place + 1) for place in range(len(layout.outputs))]
        metrics = [m for m in (*METRICS, *further) if m in said]
        weights = self._weights(layout, [m for m in METRICS if m in said])
        log_m = np.log(np.maximum(sum(weights[m] * said[m]["e"] for m in metrics), TINY))
        after_plan = self._state[_T] > (config.planned_windows or np.inf)

        def line(rate: float) -> Array:
            usual = (
                log_boundary_pods(rate, config.planned_windows)
                if layout.by_pod
                else log_boundary(rate, config.planned_windows, weights.get("errors", 0.0))
            )
            return np.where(after_plan, -np.log(rate * AFTER_PLAN_SHARE), usual)

        log_rollback, log_pause = line(config.false_rollback), line(config.false_pause)
        self._state[_HIT] = np.maximum(self._state[_HIT], log_m >= log_rollback)
        rollback = self._state[_HIT] > 0
        blamed = to_blame(np.log(np.maximum(np.stack([said[m]["e"] for m in metrics]), TINY)))
        evidence: dict[str, MetricVerdict] = {}
        for place, m in enumerate(metrics):
            rest = {name: array for name, array in said[m].items() if name != "e"}
            log_e = np.log(np.maximum(said[m]["e"], TINY))
            evidence[m] = MetricVerdict(log_e=log_e, blamed=blamed[place], **rest)
        required = [m for m in metrics if config.required is None or m in config.required]
        safe = np.logical_and.reduce([evidence[m].safe for m in required] or [np.zeros(self.rollouts, bool)])
        blind = np.logical_or.reduce([evidence[m].blind for m in required] or [np.ones(self.rollouts, bool)])
        if not set(config.required or ()) <= set(metrics):
            safe, blind = np.zeros(self.rollouts, bool), np.ones(self.rollouts, bool)
        told = shares.verdict(self._views(self._state, "share"), LOG_INTERVAL)
        return Verdict(
            rollback, log_m >= log_pause, safe & ~rollback, blind, log_m, log_rollback, log_pause, evidence, told
        )


def to_blame(log_e: Array) -> Flags:
    """(M, R) which of M metrics are named harmful, at a false discovery rate of 10 % whatever their dependence.

    e-BH (Wang and Ramdas 2022): the k largest e-values are named for the largest k whose k-th is at least M / (0.1 k).
    """
    m = len(log_e)
    place = np.argsort(np.argsort(-log_e, axis=0, kind="stable"), axis=0, kind="stable")
    ordered = -np.sort(-log_e, axis=0)
    k = np.arange(1, m + 1)[:, None]
    named = np.where(ordered >= np.log(m / (BLAME_RATE * k)), k, 0).max(0)
    out: Flags = place < named
    return out


def _latency(
    st: dict[str, Array], edges: Array, delta: tuple[Array, Array, Array], e: Array, compared: Flags, safe: Flags
) -> Said:
    slope = latency.ratio_slope(st["hist"], edges)
    effect, low, high = (latency.as_ratio(x, slope) for x in delta)
    return {
        "e": e, "effect": np.minimum(effect, latency.MOST_RATIO), "effect_low": low, "effect_high": high,
        "n_canary": st["n_a"].copy(), "n_stable": st["n_b"].copy(), "blind": ~compared, "safe": safe,
        "slower_probability": 0.5 + np.clip(delta[0], -0.5, 0.5),
        "coarse": st["hist"].max(0) > COARSE * np.maximum(st["hist"].sum(0), 1.0),
    }  # fmt: skip
