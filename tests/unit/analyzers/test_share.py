"""The share check: told with its size, seldom wrongly, and never part of the evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from analyzers import Counts, Monitor, MonitorConfig, Window, warnings
from tests.calibration.streams import Law, windows

CONFIG = MonitorConfig(planned_windows=30)


def told(asked: float, came: float, rollouts: int, *, requests: float = 600.0, wander: float = 0.0) -> np.ndarray:
    """(R,) whether a mismatch was told at any of 30 windows."""
    rng = np.random.default_rng(4)
    monitor, ever = Monitor(CONFIG, rollouts), np.zeros(rollouts, bool)
    walk = np.zeros(rollouts)
    for _ in range(30):
        walk = 0.8 * walk + 0.6 * rng.normal(size=rollouts)
        odds = came / (1 - came) * np.exp(wander * walk)
        n_c, n_s = rng.poisson(requests * odds / (1 + odds)), rng.poisson(requests / (1 + odds))
        none = np.zeros(rollouts, int)
        verdict = monitor.observe(Window(errors=Counts(none, n_c, none, n_s), weight=np.full(rollouts, asked)))
        ever |= verdict.share.mismatch
    return ever


def test_the_share_that_was_asked_for_is_told_wrong_no_more_often_than_promised() -> None:
    assert binomtest(int(told(0.1, 0.1, 1000).sum()), 1000, 0.01, alternative="greater").pvalue > 0.01


def test_wandering_within_the_tolerance_is_no_mismatch() -> None:
    assert binomtest(int(told(0.1, 0.1, 500, wander=0.1).sum()), 500, 0.01, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("came", [0.2, 0.05, 0.0001], ids=["twice", "half", "hardly any"])
def test_a_share_of_twice_or_half_what_was_asked_for_is_told(came: float) -> None:
    assert told(0.1, came, 100).mean() > 0.95


def test_the_size_of_a_mismatch_is_told_with_its_interval_and_counts_for_nothing() -> None:
    with_weight, without = Monitor(CONFIG, 3), Monitor(CONFIG, 3)
    for window in windows(Law(), 3, 20, seed=3):
        one = with_weight.observe(replace(window, weight=np.array([0.1, 0.05, np.nan])))
        two = without.observe(window)
    np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
    np.testing.assert_array_equal(one.share.mismatch, [False, True, False])
    assert 0.05 < one.share.low[1] < 0.1 < one.share.high[1] < 0.12
    assert np.isnan(one.share.share[2])
    assert not two.share.mismatch.any()
    assert "5 % was asked for" in warnings(with_weight, one, 1)[0]
    assert not warnings(with_weight, one, 0)


def test_shares_follow_a_weight_that_changes() -> None:
    monitor = Monitor(CONFIG, 50)
    for t, window in enumerate(windows(Law(ramp=True), 50, 30, seed=6)):
        verdict = monitor.observe(replace(window, weight=np.full(50, Law(ramp=True).share(t, 30))))
    assert not verdict.share.mismatch.any()
    np.testing.assert_allclose(verdict.share.share, verdict.share.asked, rtol=0.05)


@pytest.mark.parametrize(("weight", "words"), [([1.5], r"weight\[0\] is 1.5"), ([0.1, 0.1], "shape")])
def test_a_weight_that_is_none_is_refused(weight: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Monitor(CONFIG, 1).observe(Window(errors=Counts([0], [5], [0], [5]), weight=weight))
