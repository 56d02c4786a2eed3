"""GrowthBook's sequential test (Safe Rollouts): mean latency and failed share, one-sided at 1 % a metric.

gbstats has the two-sided test alone, so it is used at twice the level and only its lower end counts. In form of
evidence: the relative difference d of the canary with variance v over N requests is above 0 just where

    rho^2 d^2 N / (2 v (N rho^2 + 1)) - log(N rho^2 + 1) / 2 >= log(1 / alpha),
    rho^2 = (-2 log alpha + log(1 - 2 log alpha)) / 5000

(Waudby-Smith et al., Annals of Statistics 2024, equations 9 and 161; 5000 is gbstats' default). This is computed for
all looks at once, and a run compares a sample of looks with gbstats itself. Requests are the units.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peers.contest import Scores, Tool
from tests.benchmarks.peers.stream import Arm, Stream

Array = NDArray[np.float64]

VERSION = "0.8.0"
ALPHA = 2 * 0.01
"""Two-sided level, for one side at 1 %."""
TUNED_FOR = 5000.0
RHO2 = (-2 * np.log(ALPHA) + np.log(-2 * np.log(ALPHA) + 1)) / TUNED_FOR
CLOSE = 1e-9

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".cache" / "peers"
"""Its own environment: gbstats pins numpy 1.26 and pandas 1.5."""
WORKER = Path(__file__).with_name("growthbook_worker.py")


def one_to_one(stream: Stream) -> Scores:
    """Log evidence at each look against a baseline as large as the canary, as its docs set it up, (R, T)."""
    return _scores(stream.canary, stream.baseline)


def all_of_stable(stream: Stream) -> Scores:
    """The same against all stable requests."""
    return _scores(stream.canary, stream.stable)


def sufficient(arm: Arm) -> dict[str, Array]:
    """(R, T) sums over all windows so far: n, sum and squares of latency in seconds, failed."""
    total, squares = arm.moments
    return {
        "n": np.cumsum(arm.total, 1, dtype=float),
        "sum": np.cumsum(total, 1),
        "squares": np.cumsum(squares, 1),
        "failed": np.cumsum(arm.failed, 1, dtype=float),
    }


def relative(b: dict[str, Array], a: dict[str, Array]) -> dict[str, tuple[Array, Array, Array]]:
    """(difference, its variance, requests) by metric, of b relative to a's mean; variance NaN where there is none."""
    out = {}
    for metric in ("latency", "errors"):
        mean_a, var_a = _mean(a, metric)
        mean_b, var_b = _mean(b, metric)
        with np.errstate(divide="ignore", invalid="ignore"):  # an arm without requests or failures cannot be told
            difference = (mean_b - mean_a) / mean_a
            variance = var_b / (mean_a**2 * b["n"]) + var_a * mean_b**2 / (mean_a**4 * a["n"])
        told = (mean_a > 0) & (var_a > 0) & (var_b > 0)
        out[metric] = difference, np.where(told, variance, np.nan), a["n"] + b["n"]
    return out


def check(stream: Stream, looks: int) -> str:
    """Compare ``looks`` looks with gbstats itself; says what was compared, raises AssertionError where they differ.

    Where its environment cannot be made, says that nothing was compared.
    """
    rng = np.random.default_rng([stream.seed, 2])
    rollouts, length = stream.shape
    r, t = rng.integers(0, rollouts, looks), rng.integers(0, length, looks)
    arms = {"a": sufficient(stream.baseline), "b": sufficient(stream.canary)}
    sample = {f"{arm}_{name}": sums[r, t] for arm, of in arms.items() for name, sums in of.items()}
    HOME.mkdir(parents=True, exist_ok=True)
    try:
        python = _environment()
    except (OSError, subprocess.CalledProcessError) as exc:
        why = type(exc).__name__
        return f"gbstats {VERSION} could not be installed ({why}), so its formula was NOT checked in this run"
    asked, told = HOME / "asked.npz", HOME / "told.npz"
    np.savez(asked, allow_pickle=False, alpha=np.array(ALPHA), tuned_for=np.array(TUNED_FOR), **sample)
    subprocess.run([python, WORKER, asked, told], check=True)
    low, log_e, difference = {}, {}, {}
    for metric, (d, v, n) in relative(arms["b"], arms["a"]).items():
        low[metric] = (d - _half_width(v, n))[r, t]
        log_e[metric], difference[metric] = _log_e(d, v, n)[r, t], d[r, t]
    compared = 0
    with np.load(told) as real:
        for metric in low:
            sure = ~np.isnan(low[metric])
            compared += int(sure.sum())
            np.testing.assert_allclose(low[metric][sure], real[f"{metric}_low"][sure], rtol=CLOSE, atol=CLOSE)
            np.testing.assert_array_equal(real[f"{metric}_p"][~sure], 1.0)
            p = np.minimum(1.0, np.exp(-log_e[metric][sure]))
            np.testing.assert_allclose(p, real[f"{metric}_p"][sure], rtol=CLOSE, atol=CLOSE)
            above, by_evidence = low[metric][sure] > 0, (log_e[metric] >= -np.log(ALPHA))[sure]
            np.testing.assert_array_equal(above, by_evidence & (difference[metric][sure] > 0))
    same = f"gbstats {VERSION} itself gave the same lower end and p-value to 1e-9"
    return f"{same} on {compared:,} sampled tests of this run"


def _scores(canary: Arm, baseline: Arm) -> Scores:
    out = {}
    for metric, (d, v, n) in relative(sufficient(canary), sufficient(baseline)).items():
        with np.errstate(invalid="ignore"):  # NaN is no evidence
            out[metric] = np.where(d > 0, np.nan_to_num(_log_e(d, v, n), nan=-np.inf), -np.inf)
    return out


def _mean(sums: dict[str, Array], metric: str) -> tuple[Array, Array]:
    n = np.maximum(sums["n"], 1)
    if metric == "errors":
        mean = sums["failed"] / n
        return mean, mean * (1 - mean)
    mean = sums["sum"] / n
    return mean, np.where(sums["n"] > 1, (sums["squares"] - sums["sum"] ** 2 / n) / np.maximum(n - 1, 1), 0.0)


def _log_e(d: Array, v: Array, n: Array) -> Array:
    spread = n * RHO2 + 1
    log_e: Array = RHO2 * d**2 * n / v / (2 * spread) - np.log(spread) / 2
    return log_e


def _half_width(v: Array, n: Array) -> Array:
    spread = n * RHO2 + 1
    width: Array = np.sqrt(v * n * 2 * spread * np.log(np.sqrt(spread) / ALPHA) / (n**2 * RHO2))
    return width


def _environment() -> Path:
    """The interpreter that has gbstats; made with uv where it is missing."""
    python = HOME / "bin" / "python"
    if not (HOME / f"gbstats-{VERSION}").exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--allow-existing", "--python", "3.11", HOME], check=True)
        wanted = f"gbstats=={VERSION}"
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, wanted], check=True)
        (HOME / f"gbstats-{VERSION}").touch()
    return python


_SEES = frozenset({"latency", "tail", "errors"})
_DEFAULTS = dict.fromkeys(("latency", "errors"), -float(np.log(ALPHA)))
ONE_TO_ONE = Tool("GrowthBook sequential, 1:1", one_to_one, {"alpha .01 a metric": _DEFAULTS}, _SEES)
ALL_OF_STABLE = Tool("GrowthBook sequential, all of stable", all_of_stable, {"alpha .01 a metric": _DEFAULTS}, _SEES)
