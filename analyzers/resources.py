"""What each pod uses: canary pods against stable pods at equal age and load, with a promise for the whole rollout.

One row is one resource of one rollout. Whatever is looked at is first made one number a pod, the same function of each
pod's own values over the same windows: their mean, the slope of their floor, or how far they jumped. If the release is
harmless, canary pods are further pods of the same law, so the difference of the arms' means over its standard error,
with the spread between the stable pods, is Student's t with (stable pods - 1) degrees of freedom (normal pods; the law
of what the pods share, of noise and of its correlation over time does not matter). So one look has an exact
p-value, and Bonferroni's inequality over a number of looks that is fixed in advance gives
P(a harmless release is ever called harmful) <= false_alarm, however the looks depend on each other.
Source: reference statistics-calibrated.md, «pod-t»; the looks at growing distances, the guards of the slope and the
bound of what load explains are our own.

Looks: at the mean of all windows, and at the slope, whenever their number has grown by a fifth (``looks_growing``); at
the mean of the last few windows each time that so many are over; at a jump in every window. Past the planned number
of looks, look j more spends a tenth of the rate times 1 / (j (j + 1)).

What would be mistaken for harm, and is not:

- A young pod warms up. A pod counts once it is ``settled_s`` old, or while all pods of both arms are about equally
  young. A slope counts a pod from ``LEAK_SETTLED`` times that age on. What still fills up then rises ever more slowly,
  and towards what stable pods use: a second test must agree that this is none, at the same rate of false alarms. It
  adds up the scores of two t-tests: that the canary uses more than stable pods, and that its later half rises at least
  ``STILL_RISING`` as fast as its earlier one. A fill so slow that it rises evenly lies far below. A jump is what lies
  above the rise of the windows before it.
- A pod is replaced: what was known of it is forgotten, and arms are only compared over windows that both have.
- Load differs. If use is a + b * load with a, b >= 0, the most that a harmless canary can use is known from the range
  of b that stable's own windows leave open; only what lies above that counts. Without known load, what grows with load
  is not compared, and memory is compared as it is. Where the canary's share of the traffic is changed, slopes and jumps
  begin anew.
- Garbage collection makes saw teeth. Slopes are taken of block minima.

Few pods say little of their own spread. Below nine stable pods canary pods are asked for it as well, which makes one
odd canary pod of several harder to see; and below ten in all, the missing degrees of freedom are filled with pods that
differ by ``SPREAD`` (8 %), so that the promise rests on pods that differ by no more.

Events are rare, so no spread can be learned. Given that one happened, it happened to a canary pod with the canary's
share of exposure; bets that the odds are higher multiply (a nonnegative martingale), so that Ville's inequality holds
at every window. A pod has at most one event a window, because a crash loop is one fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analyzers.boundary import start_share

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Measures: TypeAlias = Literal["load", "share", "memory", "device-memory", "events", "ready"]

CANARY_PODS, STABLE_PODS = 8, 16
"""Pods of a row that are followed; of more, any fixed subset may be given."""
PODS = CANARY_PODS + STABLE_PODS
_CANARY, _STABLE = slice(0, CANARY_PODS), slice(CANARY_PODS, PODS)
_IS_CANARY = np.arange(PODS) < CANARY_PODS

MARGINS: dict[Measures, float] = {
    "load": 1.2, "share": 0.05, "memory": 1.1, "device-memory": 1.05, "events": 1.0, "ready": 1.0,
}  # fmt: skip
"""What is tolerated where nothing is said: a ratio, or a difference of shares."""

SETTLED_S = 600.0
"""Age from which what a pod uses is its own and no longer its start's, where nothing else is said."""
LEAK_SETTLED = 6.0
"""So many times that age until a pod's slope is."""
COHORT = 2.0
"""Pods whose ages lie within this factor start together and can be compared at once."""

LEAST_FREEDOM = 8.0
SPREAD = {True: 0.08, False: 0.03}
FLOOR = {True: 0.01, False: 0.01}
"""By whether values are compared as ratios: the spread between pods that is assumed where few pods show it, and the
least that is believed (in log, or as a share)."""

GROWTH = 1.2
FIRST_LOOK = 5
"""Windows before the first look at a mean."""
UNPLANNED = 4320
"""Windows for which looks are planned where no length is: three days of minutes."""
AFTER_PLAN = 0.1
SHARES: dict[Measures, tuple[float, ...]] = {
    "load": (0.5, 0.5, 0.0, 0.0),
    "share": (0.5, 0.5, 0.0, 0.0),
    "memory": (0.2, 0.2, 0.6, 0.0),
    "device-memory": (0.2, 0.2, 0.3, 0.3),
    "events": (0.0, 0.0, 0.0, 1.0),
    "ready": (0.0, 0.0, 0.0, 1.0),
}
"""Parts of the rate for: the mean of all windows, the mean of the last ones, the slope, the jump (or the events)."""
MEAN, RECENT, LEAK, LAST = range(4)

BLOCKS = 24
BLOCK, LONGEST_BLOCK = 4, 32
"""Windows of a slope's block at first and at most: full, neighbours are merged until they are this long."""
LEAST_BLOCKS = 6
SLOPE_MARGIN = 0.001
"""A rise by this part of what is used, an hour, is tolerated: 2.4 % a day."""
SLOPE_NOISE = 0.8
HALF_NOISE = 2.0**1.5
"""Spread of slopes (a window) over a span of one window, assumed where few pods show it: it falls with the span's power
of 3/2, and that of a half is so much larger. SLOPE_FLOOR is the least that is believed, an hour."""
SLOPE_FLOOR = 0.0005
STILL_RISING = 1 / 3
"""A leak's later half rises at least by this part of its earlier half. A quarter finds a few more of the leaks of 1 %
an hour from 80 % of the limit, and calls twice as many canaries leaks that fill with a half-life of half an hour."""
FILL_LOOKS = 4.0
"""Looks at whether it is a fill that count as different ones: how pods' levels differ stays the same."""

JUMP_WINDOWS = 2
"""A jump is the mean of so many windows over what was before the window ahead of them."""
BASE_MEMORY = 0.85
BASE_WINDOWS = 8
JUMP_MEMORY = 0.99
JUMP_FLOOR = 0.005
LEAST_JUMPS = 10

ODDS = np.array([3.0, 10.0, 30.0])
LOG_CAP_WINDOW = 3.5
FIRST = (0.0, 0.5, 0.5)
LARGEST = 1e200
UNREADY_AGAIN = 10
"""Windows after which a pod that is still not ready counts again."""

LOAD_MEMORY = 0.998
LOAD_LEAST = 30.0
LOAD_CORRELATED = 10.0
"""Neighbouring windows repeat each other: so many count as one in the error of load's slope."""
LOAD_ERRORS = 3.0

FORMAT = 1.0


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    """The promise and its terms, the same for all rows.

    measures : how pods are compared; see ``preset.ResourceSeries``. margin : a ratio of at least 1, for ``share`` a
    difference; None for the default. false_alarm : P(a harmless release is ever called harmful by one row).
    planned_windows : None where no length is planned. settled_s : a pod younger than this is still starting.
    """

    measures: Measures
    false_alarm: float
    margin: float | None = None
    planned_windows: int | None = None
    window_s: float = 60.0
    settled_s: float = SETTLED_S

    def __post_init__(self) -> None:
        if self.measures not in MARGINS:
            raise ValueError(f"measures must be one of {', '.join(MARGINS)}, found {self.measures!r}")
        if not 0 < self.false_alarm < 0.5:
            raise ValueError(f"false_alarm must lie between 0 and 0.5, found {self.false_alarm!r}")
        least = 0.0 if self.measures == "share" else 1.0
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= least):
            raise ValueError(f"margin of {self.measures!r} must be at least {least:g}, found {self.margin!r}")
        if self.planned_windows is not None and self.planned_windows < 1:
            raise ValueError(f"planned_windows must be at least 1 or None, found {self.planned_windows!r}")
        if not self.window_s > 0:
            raise ValueError(f"window_s must be above 0, found {self.window_s!r}")
        if not 0 <= self.settled_s < math.inf:
            raise ValueError(f"settled_s must be at least 0, found {self.settled_s!r}")

    @property
    def tolerated(self) -> float:
        """The margin that holds."""
        return MARGINS[self.measures] if self.margin is None else self.margin

    @property
    def as_ratio(self) -> bool:
        """Whether values are compared as ratios; otherwise as differences."""
        return self.measures in ("load", "memory", "device-memory")

    @property
    def counts(self) -> bool:
        """Whether values are events."""
        return self.measures in ("events", "ready")

    @property
    def leaks(self) -> bool:
        """Whether a slope is watched."""
        return self.measures in ("memory", "device-memory")

    @property
    def jumps(self) -> bool:
        """Whether a sudden step is watched."""
        return self.measures == "device-memory"

    @property
    def recent_windows(self) -> int:
        """Windows of a recent mean."""
        return round(min(max((self.planned_windows or UNPLANNED) / 60, 5), 30))


@dataclass(frozen=True, slots=True)
class PodWindow:
    """One window of all rows. Slots are pods; a slot keeps its pod until ``new`` says that another one has it.

    values : (R, PODS), canary pods first; NaN where the pod is not there or its exporter has no value, which is never
    taken for 0. age_s : likewise; inf for a pod that is old, NaN where nothing is known: it is then never compared.
    new : (R, PODS). load : (R, 2) requests a pod of canary and stable; NaN where unknown. limit : (R, PODS), NaN for
    none. stepped : (R,) rows whose canary's share of the traffic was changed since the window before.
    """

    values: ArrayLike
    age_s: ArrayLike
    new: ArrayLike
    load: ArrayLike | None = None
    limit: ArrayLike | None = None
    stepped: ArrayLike | None = None


@dataclass(frozen=True, slots=True)
class ResourceVerdict:
    """What all windows so far say; arrays (R,). NaN where nothing is known yet.

    harmful : sticky. blind : no canary pod or no stable pod has a value in this window. waiting : there are values, but
    no pods of equal age, or no load, to compare. log_p : minus the log of the p-value for the whole rollout, as of the
    last look; harmful is when it reaches -log(false_alarm). by : which test it is of (MEAN, RECENT, LEAK, LAST).
    effect : canary to stable at equal load, a ratio or a difference of shares, in the windows that ``by`` is of; of
    events, the ratio of rates.
    canary, stable : means of this window, in the resource's unit. slope_per_hour : the canary's growth over stable's,
    as a part of what it uses. to_limit_s : until the canary's fullest pod is at its limit at that slope.
    events_canary, events_stable, exposure_canary, exposure_stable : so far; exposure in pods times windows.
    compared : windows in which pods were compared. safe : compared, and neither effect nor slope above what is
    tolerated.
    """

    harmful: Flags
    blind: Flags
    waiting: Flags
    log_p: Array
    by: NDArray[np.int64]
    effect: Array
    canary: Array
    stable: Array
    slope_per_hour: Array
    to_limit_s: Array
    events_canary: Array
    events_stable: Array
    exposure_canary: Array
    exposure_stable: Array
    compared: Array
    safe: Flags


def _fields(config: ResourceConfig) -> dict[str, tuple[int, ...]]:
    """State of one row: field -> shape; () is one number."""
    out: dict[str, tuple[int, ...]] = {
        "format": (), "t": (), "hit": (), "compared": (), "log_p": (4,), "looks": (4,), "looked": (4,),
        "effect": (4,),
    }  # fmt: skip
    if config.counts:
        out |= {"bets": (len(ODDS),), "spent": (), "events": (2,), "exposure": (2,)}
        if config.measures == "ready":
            out["unready"] = (PODS,)
        return out
    out |= {"n": (PODS,), "total": (PODS,), "block_n": (PODS,), "block_total": (PODS,), "block_t": ()}
    if config.as_ratio:
        out |= {"load": (6,), "load_known": ()}
    if config.leaks:
        out |= {"ring": (PODS, BLOCKS), "floor": (PODS,), "filled": (), "length": (), "in_block": (), "since_step": ()}
        out |= {"slope": (), "to_limit": ()}
    if config.jumps:
        out |= {
            "last": (PODS, JUMP_WINDOWS),
            "base": (PODS,),
            "base_n": (PODS,),
            "drift": (PODS,),
            "jump_square": (),
            "jump_n": (),
        }
    return out


class ResourceMonitor:
    """Follows rows side by side. Rows of different resources share a monitor where their configuration is the same."""

    def __init__(self, config: ResourceConfig, rows: int = 1) -> None:
        if rows < 1:
            raise ValueError(f"needs at least one row, found {rows}")
        self.config, self.rows = config, rows
        self._state = np.zeros((rows, row_length(config)))
        st = self._view()
        st["format"][...] = FORMAT
        if config.leaks:
            st["ring"][...] = st["floor"][...] = st["slope"][...] = st["to_limit"][...] = np.nan
            st["length"][...] = BLOCK
        if config.jumps:
            st["last"][...] = np.nan
        st["effect"][...] = np.nan

    @classmethod
    def restore(cls, config: ResourceConfig, state: Array) -> Self:
        """A monitor that continues exactly where the rows of ``state`` (R, D) stand."""
        rows = np.asarray(state, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != row_length(config) or (rows[:, 0] != FORMAT).any():
            raise ValueError("state does not hold rows that this version of the resource monitor wrote")
        monitor = cls(config, len(rows))
        monitor._state = rows.copy()
        return monitor

    def state(self) -> Array:
        """(R, D) float64, one row a resource of a rollout; all that a continuation needs."""
        return self._state.copy()

    def observe(self, window: PodWindow) -> ResourceVerdict:
        """Take in one window."""
        config, st = self.config, self._view()
        values, age_s, new, load, limit = self._checked(window)
        seen = np.isfinite(values)
        both: Flags = np.asarray(seen[:, _CANARY].any(1) & seen[:, _STABLE].any(1))
        st["t"] += 1
        self._forget(st, new)
        if config.counts:
            self._count(st, values, seen, age_s, both)
            waiting = np.zeros(self.rows, dtype=bool)
        else:
            if config.leaks:
                self._begin_anew(st, np.asarray(False if window.stepped is None else window.stepped, dtype=bool))
            waiting = self._compare(st, values, age_s, load, limit) & both
        p = st["log_p"]
        st["hit"][...] = np.maximum(st["hit"], p.max(1) >= -math.log(config.false_alarm))
        return self._verdict(st, values, seen, ~both, waiting)

    def _verdict(
        self, st: dict[str, Array], values: Array, seen: Flags, blind: Flags, waiting: Flags
    ) -> ResourceVerdict:
        nothing = np.full(self.rows, np.nan)
        means = [_mean(values, seen & arm) for arm in (_IS_CANARY, ~_IS_CANARY)]
        slope, to_limit = (st[name].copy() if name in st else nothing for name in ("slope", "to_limit"))
        by = np.full(self.rows, LAST) if self.config.counts else st["log_p"].argmax(1)
        effect = st["effect"][np.arange(self.rows), np.where(by == LEAK, MEAN, by)]
        with np.errstate(invalid="ignore"):
            tame = (st["effect"][:, MEAN] <= self.config.tolerated) & ~(slope > SLOPE_MARGIN) | self.config.counts
        events, exposure = (
            st[name].copy() if name in st else np.full((self.rows, 2), np.nan) for name in ("events", "exposure")
        )
        return ResourceVerdict(
            harmful=st["hit"] > 0,
            blind=blind,
            waiting=waiting,
            log_p=st["log_p"].max(1),
            by=by,
            effect=effect,
            canary=means[0],
            stable=means[1],
            slope_per_hour=slope,
            to_limit_s=to_limit,
            events_canary=events[:, 0],
            events_stable=events[:, 1],
            exposure_canary=exposure[:, 0],
            exposure_stable=exposure[:, 1],
            compared=st["compared"].copy(),
            safe=(st["hit"] == 0) & ~blind & (st["compared"] >= FIRST_LOOK) & tame,
        )

    def _view(self) -> dict[str, Array]:
        """The state's fields as views, rows first."""
        out, at = {}, 0
        for name, shape in _fields(self.config).items():
            size = math.prod(shape)
            part = self._state[:, at : at + size]
            out[name] = part.reshape(self.rows, *shape) if shape else part[:, 0]
            at += size
        return out

    def _checked(self, window: PodWindow) -> tuple[Array, Array, Flags, Array, Array]:
        shape = (self.rows, PODS)
        values, age_s = (np.array(x, dtype=np.float64) for x in (window.values, window.age_s))
        new = np.asarray(window.new, dtype=bool)
        load = np.full((self.rows, 2), np.nan) if window.load is None else np.asarray(window.load, dtype=np.float64)
        limit = np.full(shape, np.nan) if window.limit is None else np.asarray(window.limit, dtype=np.float64)
        named = {"values": values, "age_s": age_s, "new": new, "limit": limit}
        for name, array in named.items():
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, found {array.shape}")
        if load.shape != (self.rows, 2):
            raise ValueError(f"load must have shape {(self.rows, 2)}, found {load.shape}")
        values[np.isinf(values)] = np.nan
        if (values < 0).any():
            raise ValueError(f"values holds {np.nanmin(values):g}; what a pod uses is never below 0")
        return values, age_s, new, load, limit

    def _forget(self, st: dict[str, Array], new: Flags) -> None:
        """What was known of pods whose slot another one has taken."""
        if not new.any():
            return
        for name in ("n", "total", "block_n", "block_total", "base", "base_n", "drift", "unready"):
            if name in st:
                st[name][new] = 0.0
        for name in ("floor", "ring", "last"):
            if name in st:
                st[name][new] = np.nan

    def _compare(self, st: dict[str, Array], values: Array, age_s: Array, load: Array, limit: Array) -> Flags:
        """Means, slopes and jumps; True for rows that had nothing to compare."""
        config = self.config
        seen = np.isfinite(values) & ((values > 0) | (not config.as_ratio))
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.log(values) if config.as_ratio else values.copy()
        here = seen & _of_one_age(seen, age_s, config.settled_s)
        if config.as_ratio:
            explained = self._explained(st, values, here, load)
            if config.leaks:  # memory may grow with load; it is not known to shrink with it
                explained = np.fmax(explained, 0.0)
            here &= np.isfinite(explained)[:, None]
            y[:, _CANARY] -= explained[:, None]
        both: Flags = np.asarray(here[:, _CANARY].any(1) & here[:, _STABLE].any(1))
        here &= both[:, None]
        self._means(st, np.where(here, y, 0.0), here)
        if config.jumps:
            self._jump(st, y, here)
        if config.leaks:
            settled_s = LEAK_SETTLED * config.settled_s
            late = (st["since_step"] * config.window_s >= settled_s) | (st["since_step"] == st["t"])
            self._leak(st, y, seen & (age_s >= settled_s) & late[:, None], values, limit)
        return ~both

    # Means

    def _means(self, st: dict[str, Array], y: Array, here: Flags) -> None:
        config = self.config
        st["compared"] += here.any(1)
        for windows_n, total in (("n", "total"), ("block_n", "block_total")):
            st[windows_n] += here
            st[total] += y
        # A pod that came later says nothing of the windows before, so it waits until it has half of them. Where no pod
        # of an arm has, all begin again.
        n = st["n"]
        counted = (n > 0) & (2 * n >= n.max(1, keepdims=True))
        stale = ~(counted[:, _CANARY] & here[:, _CANARY]).any(1) & here[:, _CANARY].any(1)
        stale |= ~(counted[:, _STABLE] & here[:, _STABLE]).any(1) & here[:, _STABLE].any(1)
        if stale.any():
            n[stale], st["total"][stale] = here[stale], y[stale]
            st["looked"][stale, MEAN] = 0.0
            counted = (n > 0) & (2 * n >= n.max(1, keepdims=True))
        counted &= here
        of_pod = st["total"] / np.maximum(n, 1.0)
        difference, _, log_p = _student(
            of_pod, counted, self._margin(), SPREAD[config.as_ratio], FLOOR[config.as_ratio]
        )
        windows = n.max(1)
        shown = here.any(1) & (windows >= FIRST_LOOK)
        st["effect"][shown, MEAN] = (np.exp(difference) if config.as_ratio else difference)[shown]
        due = shown & (windows >= np.maximum(GROWTH * st["looked"][:, MEAN], FIRST_LOOK))
        self._look(st, MEAN, due, log_p, _looks_growing(config.planned_windows, FIRST_LOOK))
        st["looked"][due, MEAN] = windows[due]
        # The last windows by themselves: a fault that begins late is not thinned out by what was before.
        st["block_t"] += here.any(1)
        due = st["block_t"] >= config.recent_windows
        if due.any():
            of_pod = st["block_total"] / np.maximum(st["block_n"], 1.0)
            counted = 2 * st["block_n"] >= config.recent_windows
            difference, _, log_p = _student(
                of_pod, counted, self._margin(), SPREAD[config.as_ratio], FLOOR[config.as_ratio]
            )
            st["effect"][due, RECENT] = (np.exp(difference) if config.as_ratio else difference)[due]
            self._look(st, RECENT, due, log_p, max(1, (config.planned_windows or UNPLANNED) // config.recent_windows))
            st["block_n"][due] = st["block_total"][due] = 0.0
            st["block_t"][due] = 0.0

    def _margin(self) -> float:
        return math.log(self.config.tolerated) if self.config.as_ratio else self.config.tolerated

    def _look(
        self, st: dict[str, Array], test: int, due: Flags, log_p: Array, planned: int, at_most: Array | float = np.inf
    ) -> None:
        """Take in a look's -log p, made one for the whole rollout; ``at_most`` is that of a test that must agree.

        NaN is a look that could not be taken.
        """
        due = due & np.isfinite(log_p)
        j = st["looks"][:, test]
        after = np.maximum(j - planned, 0.0)
        spent = np.where(j < planned, (1.0 - AFTER_PLAN) / planned, AFTER_PLAN / ((after + 1.0) * (after + 2.0)))
        whole = np.minimum(np.maximum(log_p + np.log(spent * SHARES[self.config.measures][test]), 0.0), at_most)
        st["log_p"][due, test] = whole[due]
        st["looks"][due, test] += 1

    # Load

    def _explained(self, st: dict[str, Array], values: Array, here: Flags, load: Array) -> Array:
        """(R,) log of the most that load explains of canary over stable; NaN where load is not known.

        With use = a + b * load, a >= 0 and b >= 0, b lies between 0 and use / load of stable. Least squares over
        stable's own windows, forgetting slowly, narrow that to ``LOAD_ERRORS`` standard errors.
        """
        v = _mean(values, here & ~_IS_CANARY)
        at_canary, at_stable = load[:, 0], load[:, 1]
        ok = np.isfinite(v) & (v > 0) & (at_stable > 0) & (at_canary >= 0)
        n, ml, mv, cll, clv, cvv = st["load"].T
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(cll > 0, clv / np.where(cll > 0, cll, 1.0), 0.0)
            rest = np.maximum(cvv - slope * clv, 0.0)
            error = np.sqrt(rest / np.where(cll > 0, cll, 1.0) / np.maximum(n / LOAD_CORRELATED - 2.0, 0.1))
            known = (st["load_known"] > 0) | (n >= LOAD_LEAST) & (cll > 1e-4 * n * ml * ml)
            most = np.where(ok, v / np.where(ok, at_stable, 1.0), 0.0)
            low = np.where(known, np.clip(slope - LOAD_ERRORS * error, 0.0, most), 0.0)
            high = np.where(known, np.clip(slope + LOAD_ERRORS * error, 0.0, most), most)
            away = at_canary - at_stable
            expected = v + np.where(away < 0, low, high) * away
            out = np.where(ok & (expected > 0), np.log(np.maximum(expected, 1e-300) / v), np.nan)
        self._learned_load(st, known & (st["load_known"] == 0))
        for field in (n, cll, clv, cvv):
            field *= np.where(ok, LOAD_MEMORY, 1.0)
        n += ok
        dl, dv = np.where(ok, at_stable - ml, 0.0), np.where(ok, v - mv, 0.0)
        ml += dl / np.maximum(n, 1.0)
        mv += dv / np.maximum(n, 1.0)
        left_l, left_v = np.where(ok, at_stable - ml, 0.0), np.where(ok, v - mv, 0.0)
        cll += dl * left_l
        clv += dl * left_v
        cvv += dv * left_v
        return out

    def _begin_anew(self, st: dict[str, Array], rows: Flags) -> None:
        """Load was moved between the arms: what memory does about it is neither a leak nor a jump."""
        rows = np.broadcast_to(rows, (self.rows,))
        st["since_step"] += 1
        st["since_step"][rows] = 0.0
        self._forget_course(st, rows)

    def _learned_load(self, st: dict[str, Array], now: Flags) -> None:
        """From now on load explains less, which must not look like a jump or a rise of the canary."""
        st["load_known"] += now
        if self.config.leaks:
            self._forget_course(st, now)

    def _forget_course(self, st: dict[str, Array], rows: Flags) -> None:
        if not rows.any():
            return
        st["ring"][rows] = st["floor"][rows] = np.nan
        if self.config.jumps:
            st["base_n"][rows] = st["base"][rows] = st["drift"][rows] = 0.0
            st["last"][rows] = np.nan

    # Slopes

    def _leak(self, st: dict[str, Array], y: Array, here: Flags, values: Array, limit: Array) -> None:
        """Theil and Sen's slope (the median of the slopes between all pairs) of each pod's block minima."""
        st["floor"][...] = np.fmin(st["floor"], np.where(here, y, np.nan))
        st["in_block"] += 1
        done = np.flatnonzero(st["in_block"] >= st["length"])
        if not done.size:
            return
        full = done[st["filled"][done] >= BLOCKS]
        if full.size:
            short = full[st["length"][full] < LONGEST_BLOCK]
            if short.size:
                # The block that is over has the old length; it becomes the first half of a longer one.
                pairs = st["ring"][short].reshape(len(short), PODS, BLOCKS // 2, 2)
                st["ring"][short, :, : BLOCKS // 2] = np.where(np.isnan(pairs).any(-1), np.nan, pairs.min(-1))
                st["ring"][short, :, BLOCKS // 2 :] = np.nan
                st["filled"][short] = BLOCKS // 2
                st["length"][short] *= 2
                done = np.setdiff1d(done, short)
            long = np.setdiff1d(full, short)
            st["ring"][long, :, :-1] = st["ring"][long, :, 1:]
            st["filled"][long] = BLOCKS - 1
        if not done.size:
            return
        place = st["filled"][done].astype(np.int64)
        st["ring"][done, :, place] = st["floor"][done]
        st["filled"][done] += 1
        st["floor"][done] = np.nan
        st["in_block"][done] = 0.0
        age = st["t"][done]
        due = done[(age >= GROWTH * st["looked"][done, LEAK]) & (st["filled"][done] >= LEAST_BLOCKS)]
        if due.size:
            self._slopes(st, due, values, limit)

    def _slopes(self, st: dict[str, Array], due: NDArray[np.int64], values: Array, limit: Array) -> None:
        config = self.config
        ring = st["ring"][due]  # (N, PODS, BLOCKS)
        known = np.isfinite(ring)
        # Only the blocks that most canary pods have are looked at, so that all slopes are of the same windows.
        canary = known[:, _CANARY]
        used = 2 * canary.sum(1) >= np.maximum(canary.any(2).sum(1, keepdims=True), 1)
        used &= canary.any(1)
        blocks = used.sum(1)
        counted = 4 * (known & used[:, None]).sum(2) >= 3 * np.maximum(blocks, 1)[:, None]
        ready = (blocks >= LEAST_BLOCKS) & counted[:, _CANARY].any(1) & counted[:, _STABLE].any(1)
        due, ring, used, counted = due[ready], ring[ready], used[ready], counted[ready]
        if not due.size:
            return
        points = np.where(used[:, None] & counted[:, :, None], ring, np.nan)
        per_hour = 3600.0 / (st["length"][due] * config.window_s)
        slopes = theil_sen(points) * per_hour[:, None]
        span = blocks[ready] * st["length"][due]
        assumed = SLOPE_NOISE * span**-1.5 * 3600.0 / config.window_s
        difference, _, log_p = _student(slopes, counted, SLOPE_MARGIN, assumed, SLOPE_FLOOR)
        # What fills up rises ever more slowly, and towards what stable pods use; a leak does neither. Both are asked at
        # once, each a t-test between the pods, so that much of one makes up for little of the other.
        order = np.cumsum(used, axis=1)
        late_half = (2 * order > order[:, -1:])[:, None]
        early, late = (
            theil_sen(np.where(half, points, np.nan)) * per_hour[:, None] for half in (~late_half, late_half)
        )
        assumed_turn = HALF_NOISE * assumed * math.hypot(1.0, STILL_RISING)
        rising = _student(late - STILL_RISING * early, counted, 0.0, assumed_turn, SLOPE_FLOOR)[2]
        last = np.where(used, np.arange(BLOCKS), -1).max(1)
        level = np.take_along_axis(points, last[:, None, None], axis=2)[:, :, 0]
        above = _student(level, counted & np.isfinite(level), 0.0, SPREAD[True], FLOOR[True])[2]
        no_fill = _together(rising, above)
        of_row, at_most = np.full(self.rows, np.nan), np.full(self.rows, np.inf)
        of_row[due], at_most[due] = log_p, no_fill - math.log(FILL_LOOKS)
        looks = _looks_growing(config.planned_windows, BLOCK * LEAST_BLOCKS)
        self._look(st, LEAK, np.isfinite(of_row), of_row, looks, at_most)
        st["looked"][due, LEAK] = st["t"][due]
        st["slope"][due] = difference
        # Of the canary pods the one that has least left, at the slope of the canary's own pods.
        used_now = values[due, _CANARY]
        grows = _mean(slopes[:, _CANARY], counted[:, _CANARY])
        room = limit[due, _CANARY] - used_now
        with np.errstate(invalid="ignore", divide="ignore"):
            hours = np.where(counted[:, _CANARY], room / (used_now * grows[:, None]), np.nan)
            hours = np.where((room > 0) & (grows > 0)[:, None], hours, np.where(room <= 0, 0.0, np.nan))
        st["to_limit"][due] = 3600.0 * np.fmin.reduce(hours, axis=1)

    # Jumps

    def _jump(self, st: dict[str, Array], y: Array, here: Flags) -> None:
        """How far each pod's last windows lie above what it used before; the noise of that is learned over time."""
        last, base, n = st["last"], st["base"], st["base_n"]
        now = (np.where(here, y, np.nan) + last[:, :, : JUMP_WINDOWS - 1].sum(2)) / JUMP_WINDOWS
        whole = here & np.isfinite(now) & np.isfinite(last).all(2) & (n >= BASE_WINDOWS)
        # What has been rising for long lies above its own past too: by as much as it did before.
        raw = np.where(whole, now - base, 0.0)
        jump = raw - np.maximum(st["drift"], 0.0) * whole
        st["drift"] += (1.0 - BASE_MEMORY) * (raw - st["drift"]) * whole
        stable, canary = whole[:, _STABLE], whole[:, _CANARY]
        k, m = canary.sum(1), stable.sum(1)
        middle = np.where(m >= 3, _mean(jump[:, _STABLE], stable), 0.0)
        squares = np.where(stable, (jump[:, _STABLE] - middle[:, None]) ** 2, 0.0).sum(1)
        freedom = np.where(m >= 3, m - 1, m)
        ok = (k > 0) & (m > 0)
        difference = np.where(ok, _mean(jump[:, _CANARY], canary) - _mean(jump[:, _STABLE], stable), 0.0)
        # Before this window is taken into the noise, so that it cannot hide itself.
        seen = st["jump_n"]
        variance = st["jump_square"] / np.maximum(seen, 1.0)
        spread = np.maximum(np.sqrt(np.maximum(variance, 0.0)), JUMP_FLOOR)
        error = spread * np.sqrt(1.0 / np.maximum(k, 1) + 1.0 / np.maximum(m, 1))
        level = [_mean(np.where(here, y, 0.0)[:, part], whole[:, part]) for part in (_CANARY, _STABLE)]
        level_spread = _spread(np.where(here, y, 0.0)[:, _STABLE], stable)
        above = np.where(ok, level[0] - level[1] - level_spread, -1.0) > 0
        log_p = -_log_t_tail((difference - self._margin()) / error, np.maximum(seen / 4.0, 3.0))
        due = ok & (seen >= LEAST_JUMPS)
        latest = np.where(whole, y - base, 0.0)  # without the window in which it may have begun
        shown = _mean(latest[:, _CANARY], canary) - _mean(latest[:, _STABLE], stable)
        st["effect"][due, LAST] = np.exp(shown[due])
        self._look(st, LAST, due, np.where(above, log_p, 0.0), self.config.planned_windows or UNPLANNED)
        st["jump_square"][...] = np.where(ok, JUMP_MEMORY * st["jump_square"] + squares, st["jump_square"])
        seen[...] = np.where(ok, JUMP_MEMORY * seen + freedom, seen)
        # The window ahead of the last ones belongs to neither, so a jump in its midst does not count twice.
        oldest = last[:, :, -1]
        take = here & np.isfinite(oldest)
        weight = np.where(take, 1.0 - np.where(n < BASE_WINDOWS, n / (n + 1.0), BASE_MEMORY), 0.0)
        base += weight * np.where(take, oldest - base, 0.0)
        n += take
        last[:, :, 1:] = last[:, :, :-1].copy()
        last[:, :, 0] = np.where(here, y, last[:, :, 0])

    # Events

    def _count(self, st: dict[str, Array], values: Array, seen: Flags, age_s: Array, ok: Flags) -> None:
        if self.config.measures == "ready":
            away = seen & (values < 0.5)
            run = st["unready"]
            run[...] = np.where(away, run + 1.0, np.where(seen, 0.0, run))
            # A pod that never was ready yet is starting.
            events = away & ((run - 1.0) % UNREADY_AGAIN == 0) & (age_s >= self.config.settled_s)
        else:
            events = seen & (values >= 0.5)
        events = events & ok[:, None]
        seen = seen & ok[:, None]
        x = np.stack([(events & arm).sum(1) for arm in (_IS_CANARY, ~_IS_CANARY)]).astype(float)
        exposed = np.stack([(seen & arm).sum(1) for arm in (_IS_CANARY, ~_IS_CANARY)]).astype(float)
        share = np.where(ok, exposed[0] / np.maximum(exposed.sum(0), 1.0), 0.5)
        psi = ODDS[:, None] * self.config.tolerated
        tolerated = share * self.config.tolerated / (1.0 - share + share * self.config.tolerated)
        bet_on = share * psi / (1.0 - share + share * psi)
        with np.errstate(divide="ignore"):
            log_e = x[0] * np.log(bet_on / tolerated) + x[1] * np.log((1.0 - bet_on) / (1.0 - tolerated))
        start = start_share(np.zeros((1, 1)), st["t"] - 1.0, st["compared"], self.config.planned_windows, FIRST)[0]
        start = start * (1.0 - st["spent"]) * ok
        st["spent"] += start
        st["bets"] += start[:, None] / len(ODDS)
        st["bets"] *= np.exp(np.clip(np.where(ok, log_e, 0.0), -50.0, LOG_CAP_WINDOW)).T
        np.minimum(st["bets"], LARGEST, out=st["bets"])
        st["compared"] += ok
        st["events"] += x.T
        st["exposure"] += exposed.T
        evidence = st["bets"].sum(1) + 1.0 - st["spent"]
        st["log_p"][:, LAST] = np.maximum(np.log(evidence), 0.0)
        (xc, xs), (ec, es) = st["events"].T, st["exposure"].T
        with np.errstate(divide="ignore", invalid="ignore"):
            st["effect"][:, LAST] = np.where((xc + xs > 0) & (ec > 0) & (es > 0), (xc / ec) / ((xs + 0.5) / es), np.nan)


def row_length(config: ResourceConfig) -> int:
    """Numbers in a state row."""
    return sum(math.prod(shape) for shape in _fields(config).values())


def theil_sen(points: Array) -> Array:
    """The median of the slopes between all pairs of points, along the last axis; NaN points are left out."""
    n = points.shape[-1]
    i, j = np.triu_indices(n, 1)
    slopes = np.sort((points[..., j] - points[..., i]) / (j - i), axis=-1)  # NaN last
    known = np.isfinite(slopes).sum(-1)
    low, high = (np.maximum(known - 1, 0) // 2, known // 2)
    high = np.minimum(high, len(i) - 1)
    ends = [np.take_along_axis(slopes, at[..., None], axis=-1)[..., 0] for at in (low, high)]
    return np.where(known > 0, 0.5 * (ends[0] + ends[1]), np.nan)


def _of_one_age(seen: Flags, age_s: Array, settled_s: float) -> Flags:
    """Pods that can be compared: those that are settled, or all, where all are about equally young."""
    settled = age_s >= settled_s
    oldest = np.where(seen, age_s, -np.inf).max(1)
    youngest = np.where(seen, age_s, np.inf).min(1)
    together = (oldest < np.inf) & (oldest <= COHORT * youngest)
    out: Flags = settled | together[:, None]
    return out


def _mean(x: Array, counted: Flags) -> Array:
    n = counted.sum(1)
    out: Array = np.where(n > 0, np.where(counted, x, 0.0).sum(1) / np.maximum(n, 1), np.nan)
    return out


def _spread(x: Array, counted: Flags) -> Array:
    """Standard deviation between pods; 0 for one."""
    n = counted.sum(1)
    middle = _mean(x, counted)
    squares = np.where(counted, (x - np.where(n > 0, middle, 0.0)[:, None]) ** 2, 0.0).sum(1)
    out: Array = np.sqrt(squares / np.maximum(n - 1, 1))
    return out


def _student(
    of_pod: Array, counted: Flags, margin: float, assumed: Array | float, floor: float
) -> tuple[Array, Array, Array]:
    """(difference, its standard error, -log p) of canary pods against stable pods, from one number a pod.

    t = (mean canary - mean stable - margin) / (s sqrt(1/k + 1/m)), s of the stable pods; where they are too few for
    ``LEAST_FREEDOM`` degrees of freedom, of the pods within both arms, and with ``assumed`` as the spread of those that
    are still missing. NaN where an arm has no pod.
    """
    arms = [(of_pod[:, arm], counted[:, arm]) for arm in (_CANARY, _STABLE)]
    k, m = (here.sum(1) for _, here in arms)
    difference = _mean(*arms[0]) - _mean(*arms[1])
    of_stable = np.maximum(m - 1.0, 0.0)
    of_canary = np.maximum(k - 1.0, 0.0) * (of_stable < LEAST_FREEDOM)
    own = of_canary + of_stable
    missing = np.maximum(LEAST_FREEDOM - own, 0.0)
    squares = sum(n * _spread(x, here) ** 2 for n, (x, here) in zip((of_canary, of_stable), arms, strict=True))
    s = np.sqrt((squares + missing * assumed**2) / (own + missing))
    error = np.maximum(s, floor) * np.sqrt(1.0 / np.maximum(k, 1) + 1.0 / np.maximum(m, 1))
    return difference, error, -_log_t_tail((difference - margin) / error, own + missing)


def _log_t_tail(t: Array, freedom: Array) -> Array:
    """log P(T > t)."""
    from scipy.special import stdtr  # half a second to import, which only a rollout with resources needs

    with np.errstate(divide="ignore"):
        out: Array = np.where(np.isfinite(t), np.log(np.maximum(stdtr(freedom, -t), 1e-300)), np.nan)
    return out


def _together(*log_p: Array) -> Array:
    """-log p of independent tests of one null by the sum of their normal scores (Stouffer)."""
    from scipy.special import log_ndtr, ndtri_exp

    scores = sum(np.clip(-ndtri_exp(-one), -10.0, 10.0) for one in log_p)
    out: Array = -log_ndtr(-scores / math.sqrt(len(log_p)))
    return out


def _looks_growing(planned_windows: int | None, first: int) -> int:
    """How many looks there are until the planned length where each comes a fifth later than the one before."""
    planned = planned_windows or UNPLANNED
    return 1 + max(0, math.ceil(math.log(max(planned / first, 1.0)) / math.log(GROWTH)))
