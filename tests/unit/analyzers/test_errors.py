"""Errors: bursts of one arm as a hidden Markov chain, the CUSUM and its line, and what past rollouts teach of both."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from analyzers import (
    Counts,
    Margins,
    Monitor,
    MonitorConfig,
    Prior,
    Window,
    errors,
    learn_prior,
    past_of,
    summarize_past,
)
from analyzers.errors import BURSTS, ENTER, LOG_PRIOR, STAY
from tests.calibration.streams import Law, windows

COUNTS = ((3, 60, 4, 540), (0, 55, 1, 500), (2, 70, 2, 610), (0, 60, 6, 540))


def likelihood(size: float, odds_ratio: float) -> list[float]:
    """Predictive likelihood of each of COUNTS under a chain of bursts, by summing over all hidden paths.

    The window itself at ``odds_ratio``, the windows before it as harmless; up to each window's likelihood at no burst.
    """
    rest = 1 / (1 + 2 * ENTER / (1 - STAY))
    start = {0: rest, 1: (1 - rest) / 2, -1: (1 - rest) / 2}
    move = {(0, 0): 1 - 2 * ENTER, (0, 1): ENTER, (0, -1): ENTER}
    move |= {(s, s): STAY for s in (1, -1)} | {(s, 0): 1 - STAY for s in (1, -1)} | {(1, -1): 0.0, (-1, 1): 0.0}

    def fit(t: int, sign: int, ratio: float) -> float:
        x, n, y, m = COUNTS[t]
        share = n / (n + m)
        odds = share / (1 - share) * ratio * np.exp(sign * size)
        return float(binom.pmf(x, x + y, odds / (1 + odds)) / binom.pmf(x, x + y, share))

    out = []
    for t in range(len(COUNTS)):
        whole = before = 0.0
        for path in product((0, 1, -1), repeat=t + 1):
            p = start[path[0]] * np.prod([move[a, b] for a, b in pairwise(path)])
            seen = p * np.prod([fit(i, path[i], 1.0) for i in range(t)])
            whole += seen * fit(t, path[t], odds_ratio)
            before += seen
        out.append(whole / before)
    return out


def test_the_evidence_is_that_of_all_hidden_paths_of_bursts() -> None:
    st = {name: np.zeros((*shape, 1)) for name, shape in errors.fields(bets=True).items()}
    errors.begin(st, LOG_PRIOR[:, None])
    of_models = [[0.0] * len(COUNTS)] + [list(np.log(likelihood(size, 1.0))) for size in BURSTS]
    ratios = np.array([likelihood(size, 2.0) for size in (0.0, *BURSTS)]) / np.exp(of_models)
    for t, (x, n, y, m) in enumerate(COUNTS):
        before = st["bets"].copy()
        spent = st["spent"].copy()
        errors.update(st, *(np.array([float(c)]) for c in (x, n, y, m)), np.array([float(t)]), None, 1.0)
        # Bets on twice the odds: what stood there, and what was newly bet, times the window's ratio.
        newly = (st["spent"] - spent)[0]
        grown = st["bets"][:, 1, 0] / ratios[:, t] - before[:, 1, 0]
        assert (grown <= newly + 1e-12).all()
        np.testing.assert_allclose(grown, grown[0], rtol=1e-6)
    np.testing.assert_allclose(st["model"][:, 0], np.sum(of_models, axis=1), rtol=1e-9, atol=1e-12)


def crossing(law: Law, prior: Prior | None, rollouts: int, seed: int) -> np.ndarray:
    """(R,) whether each rollout is ever rolled back."""
    monitor = Monitor(MonitorConfig(planned_windows=60, margins=Margins.none()), rollouts, prior=prior)
    for window in windows(law, rollouts, 60, seed):
        verdict = monitor.observe(Window(errors=window.errors))
    return verdict.rollback


def test_past_rollouts_with_bursts_of_one_arm_make_the_next_one_patient_and_calm_ones_keen() -> None:
    bursty = Law(arm_bursts=10.0, errors=0.005)
    learned = learn_prior(summarize_past(windows(bursty, 20, 60, seed=2), 20))
    calm = learn_prior(summarize_past(windows(Law(errors=0.02), 20, 60, seed=2), 20))
    assert learned.rollouts == calm.rollouts == 20
    assert np.exp(learned.bursts[0]) < 0.1 < 0.95 < np.exp(calm.bursts[0])
    assert crossing(bursty, learned, 500, seed=3).mean() < crossing(bursty, calm, 500, seed=3).mean()
    assert binomtest(int(crossing(bursty, learned, 500, seed=3).sum()), 500, 0.01, alternative="greater").pvalue > 0.01


def test_without_a_past_the_prior_is_the_default_and_windows_without_errors_teach_nothing() -> None:
    assert learn_prior([]).rollouts == 0
    np.testing.assert_array_equal(learn_prior([]).bursts, LOG_PRIOR)
    with pytest.raises(ValueError, match="must hold errors"):
        summarize_past([Window()])


def test_the_cusum_seldom_crosses_its_line_on_a_good_release_and_soon_on_a_bad_one() -> None:
    def crossed(law: Law) -> np.ndarray:
        monitor, ever = Monitor(MonitorConfig(planned_windows=60, margins=Margins.none()), 500), np.zeros(500, bool)
        for window in windows(law, 500, 60, seed=8):
            of = monitor.observe(Window(errors=window.errors)).evidence["errors"]
            assert of.cusum is not None
            assert of.cusum_line is not None
            ever |= of.cusum >= of.cusum_line
        return ever

    assert binomtest(int(crossed(Law(errors=0.01)).sum()), 500, 0.01, alternative="greater").pvalue > 0.01
    assert crossed(Law(errors=0.01, canary_errors=0.05)).mean() > 0.9


def test_one_burst_of_the_canary_however_large_decides_nothing() -> None:
    monitor = Monitor(MonitorConfig(planned_windows=60), 1)
    for t in range(60):
        failed = 60 if t == 30 else 0
        verdict = monitor.observe(Window(errors=Counts([failed], [60], [1], [540])))
    assert not verdict.rollback[0]


def test_the_rows_of_finished_rollouts_teach_what_their_windows_teach() -> None:
    stream = list(windows(Law(errors=0.02, arm_bursts=10.0), 4, 30, seed=8))
    monitor = Monitor(MonitorConfig(planned_windows=60, margins=Margins(errors=1.5)), 4)
    for window in stream:
        monitor.observe(window)
    for one, other in zip(past_of(monitor.state()), summarize_past(stream, 4), strict=True):
        assert one.bursts is not None
        np.testing.assert_allclose(one.bursts, other.bursts, rtol=1e-12)


def test_what_is_not_a_whole_row_of_this_version_teaches_nothing_and_says_so() -> None:
    monitor = Monitor(MonitorConfig(), 1)
    monitor.observe(Window(errors=Counts([1], [60], [5], [540])))
    row = monitor.state()
    with pytest.raises(ValueError, match="numbers, found"):
        past_of(row[:, :-1])
    with pytest.raises(ValueError, match="not a row that this version"):
        past_of(row[:, 1:])
