"""Bets on classes: what the pairs weigh, that a good release earns nothing, and what rare classes weigh as one."""

from __future__ import annotations

import numpy as np
import pytest

from analyzers import predictions
from analyzers.predictions import _pair_prior

USUAL = np.array([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("lumped", [False, True])
def test_the_bets_on_pairs_weigh_one_together_and_none_is_on_a_class_against_itself(lumped: bool) -> None:
    p = np.random.default_rng(3).dirichlet(np.ones(5), 7).T
    weights = _pair_prior(p, lumped)
    np.testing.assert_allclose(weights.sum((0, 1)), 1.0)
    assert (weights >= 0).all()
    assert (weights[np.arange(5), np.arange(5)] == 0).all()


def test_mass_is_bet_to_go_where_requests_go_and_a_little_of_it_anywhere() -> None:
    weights = _pair_prior(USUAL[:, None], lumped=False)[..., 0]
    np.testing.assert_allclose(weights.sum(1), USUAL)
    to = weights[0] / weights[0].sum()
    np.testing.assert_allclose(to[1:], 0.95 * USUAL[1:] / USUAL[1:].sum() + 0.05 / 3)


def test_many_rare_classes_as_one_weigh_no_more_than_the_largest_class() -> None:
    p = np.array([0.2, 0.1, 0.7])[:, None]
    together = _pair_prior(p, lumped=True)[..., 0]
    assert together[2].sum() == pytest.approx(together[0].sum())
    assert together[0, 1] > 3 * _pair_prior(p, lumped=False)[0, 1, 0]


def test_more_weight_is_held_back_where_classes_are_few_and_plans_short() -> None:
    held = [[predictions.held_back(classes, planned) for classes in (2, 4, 10)] for planned in (15, 60, None)]
    assert held[0] == pytest.approx([0.283, 0.25, 0.25], abs=1e-3)
    assert held[1] == held[2] == pytest.approx([0.283, 0.1, 0.025], abs=1e-3)


def test_the_evidence_of_good_releases_averages_to_the_weight_that_was_bet() -> None:
    rng, rollouts = np.random.default_rng(11), 20_000
    st = {name: np.zeros((*shape, rollouts)) for name, shape in predictions.fields(4).items()}
    for t in range(4):
        canary, stable = (rng.multinomial(n, USUAL, rollouts).T.astype(float) for n in (60, 540))
        predictions.update(st, canary, stable, np.full(rollouts, float(t)), 60, 0.0)
    e = st["pair"].sum((0, 1, 2)) + st["rest"].sum((0, 1, 2))
    bet = float(np.array(predictions.PRIOR) @ st["spent"][:, 0]) * (1 - predictions.held_back(4, 60))
    assert 0.0 < bet < 1.0
    assert e.mean() == pytest.approx(bet, abs=4 * e.std() / np.sqrt(rollouts))
