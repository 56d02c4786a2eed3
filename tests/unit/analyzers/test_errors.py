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


def likelihood(odds_ratio: float) -> list[float]:
    """Predictive likelihood of each of COUNTS under the chain of bursts, by summing over all hidden paths.

    The window itself at ``odds_ratio`` where it is calm, the windows before it as harmless; a burst's size is drawn
    anew in each window; everything relative to the window's likelihood without a burst.
    """
    rest = 1 / (1 + 2 * ENTER / (1 - STAY))
    start = {0: rest, 1: (1 - rest) / 2, -1: (1 - rest) / 2}
    move = {(0, 0): 1 - 2 * ENTER, (0, 1): ENTER, (0, -1): ENTER}
    move |= {(s, s): STAY for s in (1, -1)} | {(s, 0): 1 - STAY for s in (1, -1)} | {(1, -1): 0.0, (-1, 1): 0.0}

    def fit(t: int, sign: int, ratio: float) -> float:
        x, n, y, m = COUNTS[t]
        share = n / (n + m)
        odds = np.array([ratio] if sign == 0 else BURSTS) ** (sign or 1) * share / (1 - share)
        return float(binom.pmf(x, x + y, odds / (1 + odds)).mean() / binom.pmf(x, x + y, share))

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
    plain = [
        binom.pmf(x, x + y, 2 * n / (2 * n + m)) / binom.pmf(x, x + y, n / (n + m)) for x, n, y, m in COUNTS
    ]  # fmt: skip
    harmless = likelihood(1.0)
    ratios = np.array([plain, np.array(likelihood(2.0)) / harmless])
    for t, (x, n, y, m) in enumerate(COUNTS):
        before = st["bets"].copy()
        spent = st["spent"].copy()
        errors.update(st, *(np.array([float(c)]) for c in (x, n, y, m)), np.array([float(t)]), None, 1.0)
        # Bets on twice the odds: what stood there, and what was newly bet, times the window's ratio.
        newly = (st["spent"] - spent)[0]
        grown = st["bets"][:, 1, 0] / ratios[:, t] - before[:, 1, 0]
        assert (grown <= newly + 1e-12).all()
        np.testing.assert_allclose(grown, grown[0], rtol=1e-6)
    assert st["burst_lik"][0] == pytest.approx(np.log(harmless).sum(), rel=1e-9)


@pytest.mark.parametrize("requests", [600.0, 10_000.0, 100_000.0])
@pytest.mark.parametrize("times", [3.3, 5.0, 10.0, 20.0])
def test_failures_that_stay_many_times_as_frequent_are_found_at_any_traffic(requests: float, times: float) -> None:
    law = Law(canary=0.1 * requests, stable=0.9 * requests, errors=0.005, canary_errors=0.005 * times)
    assert crossing(law, None, 60, seed=21).mean() > 0.9


@pytest.mark.parametrize("requests", [6000.0, 60_000.0])
@pytest.mark.parametrize("times", [6.0, 20.0])
def test_bursts_of_one_arm_of_any_size_seldom_roll_back_a_busy_service(requests: float, times: float) -> None:
    monitor = Monitor(MonitorConfig(planned_windows=60, margins=Margins.none()), 300)
    for window in windows(Law(canary=0.1 * requests, stable=0.9 * requests, arm_bursts=times), 300, 60, seed=22):
        verdict = monitor.observe(window)
    rolled = int(verdict.rollback.sum())
    assert binomtest(rolled, 300, 0.02, alternative="greater").pvalue > 0.01


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


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_a_margin_in_odds_is_kept_where_failures_are_frequent(rate: float) -> None:
    odds = 1.2 * rate / (1 - rate)
    at_margin = Law(errors=rate, canary_errors=odds / (1 + odds))
    monitor = Monitor(MonitorConfig(planned_windows=240, margins=Margins(errors=1.2)), 300)
    ever = np.zeros(300, bool)
    for window in windows(at_margin, 300, 240, seed=23):
        verdict = monitor.observe(Window(errors=window.errors))
        ever |= verdict.safe
    assert binomtest(int(ever.sum()), 300, 0.01, alternative="greater").pvalue > 0.01
    of = verdict.evidence["errors"]
    assert ((of.effect_low <= 1.2) & (of.effect_high >= 1.2)).mean() > 0.9


def test_what_lies_beyond_the_grid_of_odds_ratios_is_not_told_as_a_bound() -> None:
    monitor = Monitor(MonitorConfig(), 1)
    of = monitor.observe(Window(errors=Counts([0], [60], [0], [540]))).evidence["errors"]
    assert (of.effect_low[0], of.effect_high[0]) == (0.0, np.inf)
