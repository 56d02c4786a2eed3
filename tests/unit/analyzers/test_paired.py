"""Paired predictions: e-values against closed forms, the promise by simulation, exact continuation, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import betabinom, binom, binomtest

from analyzers import PairedConfig, PairedMonitor
from analyzers.paired import TILTS, rate_sequence

CONFIG = PairedConfig(planned_windows=60, tolerated=0.05)


def pairs(rollouts: int, n: int, disagreeing: float, one_way: float, seed: int, classes: int = 3) -> np.ndarray:
    """(R, C, C) of ``n`` pairs each; ``one_way`` of the disagreements between the first two classes go 0 -> 1."""
    rng = np.random.default_rng(seed)
    table = np.zeros((classes, classes))
    np.fill_diagonal(table, (1 - disagreeing) / classes)
    table[0, 1], table[1, 0] = 0.6 * disagreeing * one_way, 0.6 * disagreeing * (1 - one_way)
    table[0, 2] = table[2, 0] = 0.2 * disagreeing
    return rng.multinomial(n, table.ravel(), rollouts).reshape(rollouts, classes, classes)


def test_the_evidence_of_one_window_is_the_mixture_of_binomial_likelihood_ratios() -> None:
    # Two classes, 9 against 2: McNemar's binomial. First window: half of the start weight is bet.
    verdict = PairedMonitor(PairedConfig(tolerated=0.2), 2).observe([[[40, 9], [2, 30]]])
    ratios = [binom.pmf(x, 11, t) / binom.pmf(x, 11, 0.5) for t in TILTS for x in (9, 2)]
    assert verdict.log_shift[0] == pytest.approx(np.log(0.5 * np.mean(np.minimum(ratios, np.exp(3))) + 0.5))


def test_the_sequence_of_the_rate_solves_robbins_mixture() -> None:
    low, high = (float(x[0]) for x in rate_sequence(np.array([12.0]), np.array([300.0])))

    def gap(p: float) -> float:
        mixture = betabinom.logpmf(12, 300, 0.5, 0.5)
        return float(mixture - binom.logpmf(12, 300, p) - np.log(20))

    assert low == pytest.approx(brentq(gap, 1e-6, 0.04), abs=1e-7)
    assert high == pytest.approx(brentq(gap, 0.04, 0.5), abs=1e-7)


def watch(law: tuple[int, float, float], rollouts: int, seed: int) -> np.ndarray:
    """(R,) window at which each rollout is called harmful, inf where none."""
    monitor, found = PairedMonitor(CONFIG, 3, rollouts), np.full(rollouts, np.inf)
    n, disagreeing, one_way = law
    for t in range(60):
        harmful = monitor.observe(pairs(rollouts, n, disagreeing, one_way, seed + t)).harmful
        found[np.isinf(found) & harmful] = t + 1
    return found


def test_a_version_that_disagrees_with_itself_as_often_is_called_harmful_no_more_often_than_promised() -> None:
    wrong = int(np.isfinite(watch((60, 0.05, 0.5), 1000, seed=100)).sum())
    assert binomtest(wrong, 1000, 0.01, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(
    ("law", "within"),
    [((60, 0.05, 0.95), 20), ((60, 0.15, 0.5), 10)],
    ids=["a shift one way", "more disagreement, both ways"],
)
def test_a_shift_and_too_much_disagreement_are_found(law: tuple[int, float, float], within: int) -> None:
    assert np.median(watch(law, 100, seed=7)) <= within


def test_swapping_the_arms_leaves_the_evidence_as_it_is() -> None:
    one, two = PairedMonitor(CONFIG, 3, 4), PairedMonitor(CONFIG, 3, 4)
    for t in range(5):
        counts = pairs(4, 60, 0.2, 0.8, seed=t)
        a, b = one.observe(counts), two.observe(counts.swapaxes(1, 2))
    np.testing.assert_allclose(a.log_evidence, b.log_evidence, rtol=1e-12)


def test_a_restored_paired_monitor_continues_exactly_and_an_empty_window_is_blind() -> None:
    whole, part = PairedMonitor(CONFIG, 3, 4), PairedMonitor(CONFIG, 3, 4)
    for t in range(6):
        counts = pairs(4, 0 if t == 3 else 60, 0.2, 0.8, seed=t)
        a = whole.observe(counts)
        part = PairedMonitor.restore(CONFIG, part.state())
        b = part.observe(counts)
        assert a.blind.all() == (t == 3)
        np.testing.assert_array_equal(a.log_evidence, b.log_evidence)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.ones((1, 2, 3)), "must have shape"),
        (np.full((1, 3, 3), -1), r"pairs\[0, 0, 0\] is -1"),
        (np.full((1, 3, 3), 0.5), "whole numbers"),
    ],
)
def test_bad_pairs_are_named_and_change_nothing(given: np.ndarray, words: str) -> None:
    monitor = PairedMonitor(CONFIG, 3)
    before = monitor.state()
    with pytest.raises(ValueError, match=words):
        monitor.observe(given)
    np.testing.assert_array_equal(before, monitor.state())


@pytest.mark.parametrize("bad", [{"false_alarm": 0.0}, {"tolerated": 1.0}, {"planned_windows": 0}])
def test_bad_terms_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        PairedConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this version"):
        PairedMonitor.restore(CONFIG, np.zeros((1, 40)))


def test_an_empty_first_window_costs_no_start_weight() -> None:
    nothing, some = np.zeros((1, 2, 2)), np.array([[[50, 1], [6, 40]]])
    late, prompt = (PairedMonitor(PairedConfig(planned_windows=60), 2, 1) for _ in range(2))
    late.observe(nothing)
    for _ in range(3):
        one, other = late.observe(some), prompt.observe(some)
    assert one.log_evidence[0] == pytest.approx(other.log_evidence[0], abs=0.1)
