"""The filters of random effects against dense Gaussian likelihoods (scipy) and exact binomial ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal

from analyzers import effects
from analyzers.effects import Grid

GRID = Grid(
    levels=(0.01, 0.04),
    noises=((0.0, 0.0), (0.03, 0.7)),
    half_lives=(0.0, 3.0),
    warm_spread=0.2,
    steps=(0.05, 0.2),
    slots=4,
    slot_noises=2,
)
PODS = 6
CONTRAST = 0.5 + 1 / PODS


def state(grid: Grid, rollouts: int, units: int, *, counts: bool = False) -> dict[str, np.ndarray]:
    """An empty state with a uniform prior over all models."""
    st = {name: np.zeros((*shape, rollouts)) for name, shape in grid.fields(units, counts).items()}
    prior = np.zeros((len(grid.noises), len(grid.half_lives), len(grid.levels)))
    for name, value in zip(("slot", "slot_noise", "prior"), effects.choose(grid, prior), strict=True):
        st[name][...] = value[..., None]
    return st


def run(grid: Grid, seen: np.ndarray, noise: np.ndarray, stakes: np.ndarray, missing: set[int] = frozenset()) -> dict:
    """Observations (T,) of the difference, with variances ``noise`` (T,), one rollout."""
    st = state(grid, 1, 0)
    for t, (d, v) in enumerate(zip(seen, noise, strict=True)):
        ok = np.array([t not in missing])
        if t == 0:
            effects.begin(grid, st, np.array([CONTRAST]), np.zeros(1), np.array([True]))
        window = effects.Window(
            np.array([CONTRAST]), np.zeros(1), np.zeros(1), np.array([float(t)]), np.array([float(t)]),
            np.array([stakes[t]]),
        )  # fmt: skip
        info = np.array([1.0 / v])
        effects.step(
            grid, st, window, lambda x, _, d=d, info=info: effects.Seen((d - x) * info, np.broadcast_to(info, x.shape)),
            ok, np.array([t > 0]),
        )  # fmt: skip
    return st


def covariance(times: np.ndarray, tau: float, noise: tuple[float, float], half_life: float) -> np.ndarray:
    """Of the difference under one model, written down directly."""
    lag = np.abs(times[:, None] - times[None])
    k = CONTRAST * tau**2 + CONTRAST * noise[0] ** 2 * noise[1] ** lag * (noise[0] > 0)
    if half_life:
        # A decaying start, redrawn a little in each window: x_t = f x_{t-1} + w_t.
        f = 2.0 ** (-1.0 / half_life)
        variance = [GRID.warm_spread**2]
        for t in range(1, int(times.max()) + 1):
            variance.append(f * f * variance[-1] + (0.1 * GRID.warm_spread) ** 2 * f ** (2.0 * t))
        earlier = np.minimum(times[:, None], times[None]).astype(int)
        k = k + np.array(variance)[earlier] * f**lag
    return k


def test_the_bayes_factor_equals_that_of_dense_gaussian_likelihoods() -> None:
    rng = np.random.default_rng(7)
    length, onset = 12, 5
    noise = rng.uniform(0.0004, 0.002, length)
    seen = rng.normal(0, 0.04, length) + 0.1 * (np.arange(length) >= onset)
    stakes = np.zeros(length)
    stakes[[0, onset]] = 0.5, 0.2
    missing = {3, 8}
    st = run(GRID, seen, noise, stakes, missing)
    times = np.array([t for t in range(length) if t not in missing], float)
    kept = times.astype(int)
    null, shifted = [], {0: [], onset: []}
    for spread in GRID.noises:
        for half_life in GRID.half_lives:
            for tau in GRID.levels:
                k = covariance(times, tau, spread, half_life) + np.diag(noise[kept])
                null.append(multivariate_normal.pdf(seen[kept], np.zeros(len(kept)), k))
                for s, of in shifted.items():
                    means = [size * (times >= s) for size in GRID.steps]
                    of.append(np.mean([multivariate_normal.pdf(seen[kept], m, k) for m in means]))
    p = effects.posterior(GRID, st)
    np.testing.assert_allclose(p.ravel(), np.array(null) / np.sum(null), rtol=1e-8)
    value = effects.values(GRID, st, p)[:, 0]
    np.testing.assert_allclose(value[0], np.sum(shifted[0]) / np.sum(null), rtol=1e-8)
    np.testing.assert_allclose(value[1], np.sum(shifted[onset]) / np.sum(null), rtol=1e-8)
    np.testing.assert_allclose(
        effects.evidence(st, value[:, None])[0], 0.5 * value[0] + 0.2 * value[1] + 0.3, rtol=1e-8
    )


def test_stable_pods_say_how_likely_each_model_is_as_dense_likelihoods_do() -> None:
    """Centred deviations of U pods have U - 1 degrees of freedom."""
    grid = replace(GRID, half_lives=(0.0,), slots=2)
    rng = np.random.default_rng(11)
    length, noise = 9, 0.001
    raw = rng.normal(0, 0.03, PODS) + rng.normal(0, 0.03, (length, PODS))
    seen = raw - raw.mean(1, keepdims=True)
    st = state(grid, 1, PODS)
    effects.begin(grid, st, np.array([CONTRAST]), np.zeros(1), np.array([True]))
    for t in range(length):
        effects.learn(grid, st, seen[t][:, None], np.array([1 / noise]), np.ones((PODS, 1)))
    times = np.arange(length, dtype=float)
    lag = np.abs(times[:, None] - times[None])
    expected = []
    for sd, rho in grid.noises:
        for tau in grid.levels:
            k = tau**2 + (sd**2 * rho**lag if sd else 0.0) + noise * np.eye(length)
            quadratic = sum(seen[:, u] @ np.linalg.solve(k, seen[:, u]) for u in range(PODS))
            expected.append(-0.5 * quadratic - 0.5 * (PODS - 1) * np.linalg.slogdet(k)[1])
    found = effects.log_likelihood(grid, st).ravel()
    np.testing.assert_allclose(found - found[0], np.array(expected) - expected[0], rtol=1e-6)


def test_without_effects_the_evidence_of_counts_is_the_exact_binomial_one() -> None:
    grid = replace(GRID, levels=(1e-9,), noises=((0.0, 0.0),), half_lives=(0.0,), slots=1, slot_noises=1, steps=(0.7,))
    rng = np.random.default_rng(5)
    st = state(grid, 1, 0, counts=True)
    effects.begin(grid, st, np.array([CONTRAST]), np.zeros(1), np.array([True]))
    log_ratio = 0.0
    for t in range(20):
        m, share = int(rng.integers(0, 6)), 0.1
        x = int(rng.binomial(m, share))
        tilted = share * np.exp(0.7) / (1 - share + share * np.exp(0.7))
        log_ratio += binom.logpmf(x, m, tilted) - binom.logpmf(x, m, share)

        def observe(expected: np.ndarray, _: np.ndarray, m: int = m, x: int = x, share: float = share):
            p = 1 / (1 + np.exp(-(np.log(share / (1 - share)) + expected)))
            return effects.Seen(x - m * p, m * p * (1 - p), binom.logpmf(x, m, p), np.full_like(p, m), p)

        stake = np.array([1.0 if t == 0 else 0.0])
        window = effects.Window(np.array([CONTRAST]), np.zeros(1), np.zeros(1), np.zeros(1), np.array([t * 1.0]), stake)
        effects.step(grid, st, window, observe, np.array([True]), np.array([t > 0]))
    value = effects.values(grid, st, effects.posterior(grid, st))
    np.testing.assert_allclose(np.log(value[0, 0]), log_ratio, rtol=1e-6)


def test_selling_a_copy_keeps_what_the_evidence_is_worth() -> None:
    rng = np.random.default_rng(3)
    length = effects.COPIES
    noise, seen = np.full(length, 0.001), rng.normal(0.05, 0.03, length)
    st = run(GRID, seen, noise, np.full(length, 0.05))
    before = effects.evidence(st, effects.values(GRID, st, effects.posterior(GRID, st)))
    effects._sell(GRID, st, np.array([0]), np.array([float(length)]))
    after = effects.evidence(st, effects.values(GRID, st, effects.posterior(GRID, st)))
    np.testing.assert_allclose(after, before, rtol=1e-10)
    assert (st["stake"][:, 0] > 0).sum() == effects.COPIES - 1
    assert st["onset"][0, 0] == 0


@pytest.mark.parametrize("spread", [0.0, 0.03])
def test_under_its_own_null_the_mean_evidence_is_one(spread: float) -> None:
    """A martingale from 1: its mean over rollouts drawn from the prior stays 1 at every look."""
    grid = replace(
        GRID, levels=(0.02,), noises=((spread, 0.7),), half_lives=(0.0,), slots=1, slot_noises=1, steps=(0.03,)
    )
    rng = np.random.default_rng(13)
    rollouts, length, v = 40_000, 15, 0.002
    st = state(grid, rollouts, 0)
    effects.begin(grid, st, np.full(rollouts, CONTRAST), np.zeros(rollouts), np.ones(rollouts, bool))
    level = rng.normal(0, 0.02 * np.sqrt(CONTRAST), rollouts)
    wander = rng.normal(0, spread * np.sqrt(CONTRAST), rollouts)
    info = np.full(rollouts, 1 / v)
    for t in range(length):
        d = level + wander + rng.normal(0, np.sqrt(v), rollouts)
        one = np.ones(rollouts)
        window = effects.Window(CONTRAST * one, 0 * one, 0 * one, t * one, t * one, (0.5 if t == 0 else 0.5 / 14) * one)
        effects.step(
            grid, st, window, lambda x, _, d=d: effects.Seen((d - x) * info, np.broadcast_to(info, x.shape)),
            one > 0, np.full(rollouts, t > 0),
        )  # fmt: skip
        wander = 0.7 * wander + rng.normal(0, spread * np.sqrt(CONTRAST * (1 - 0.49)), rollouts)
    e = effects.evidence(st, effects.values(grid, st, effects.posterior(grid, st)))
    assert abs(e.mean() - 1) < 4 * e.std() / np.sqrt(rollouts)
