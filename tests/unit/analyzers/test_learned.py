"""Betting on a classifier: false alarms stay within the promise whatever it learned, and a real difference is won
on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analyzers.learned import LearnedEvidence, bet

LINE = math.log(100)


def highest(rng: np.random.Generator, windows: int, *, shift: float, onset: int = 0) -> float:
    """The most evidence in a rollout of 60 canary and 200 stable requests a window. The classifier is a direction in
    five dimensions, learned from the windows so far."""
    evidence, top = LearnedEvidence(), -math.inf
    sums = np.zeros((2, 5))
    seen = np.zeros(2)
    for t in range(windows):
        canary, stable = rng.normal(size=(60, 5)), rng.normal(size=(200, 5))
        canary[:, 0] += shift * (t >= onset)
        if t:
            towards = sums[0] / seen[0] - sums[1] / seen[1]
            evidence = bet(evidence, np.tanh(5 * canary @ towards), np.tanh(5 * stable @ towards))
            top = max(top, evidence.log_evidence)
        sums += np.stack([canary.sum(0), stable.sum(0)])
        seen += (60, 200)
    return top


def test_a_harmless_release_passes_the_line_in_at_most_one_of_a_hundred_rollouts() -> None:
    rng = np.random.default_rng(1)
    assert np.mean([highest(rng, 30, shift=0.0) >= LINE for _ in range(600)]) <= 0.01


@pytest.mark.parametrize("onset", [0, 15])
def test_a_shift_is_found_from_the_start_and_late(onset: int) -> None:
    rng = np.random.default_rng(2)
    assert np.mean([highest(rng, 30, shift=0.7, onset=onset) >= LINE for _ in range(40)]) > 0.9


def test_before_anything_is_seen_there_is_no_evidence_and_a_lacking_arm_changes_nothing() -> None:
    fresh = LearnedEvidence()
    assert fresh.log_evidence == 0.0
    assert bet(fresh, [], [0.5]) == bet(fresh, [0.5], []) == fresh


def test_a_classifier_that_says_the_same_of_all_neither_wins_nor_loses() -> None:
    evidence = LearnedEvidence()
    for _ in range(20):
        evidence = bet(evidence, np.full(60, 0.3), np.full(540, 0.3))
    assert evidence.log_evidence == pytest.approx(0.0, abs=1e-9)


def test_what_is_no_score_is_refused() -> None:
    with pytest.raises(ValueError, match="canary must be a row of numbers between -1 and 1"):
        bet(LearnedEvidence(), [1.5], [0.0])
    with pytest.raises(ValueError, match="stable must be"):
        bet(LearnedEvidence(), [0.5], [math.nan])
