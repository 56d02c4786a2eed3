"""The shortest story that still breaks the same invariant: fewer faults, replicas and services, and an earlier end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.simulation import mutants
from tests.simulation.plan import Plan
from tests.simulation.world import Outcome, World

TRIES = 60
"""Worlds that may be lived through in search of a shorter story."""


def live(plan: Plan, until_s: float = float("inf")) -> Outcome:
    """One world from its beginning to its end, or to a moment."""
    with mutants.planted(plan.mutant):
        return World(plan, until_s).run()


def shortest(failed: Outcome, tries: int = TRIES) -> Outcome:
    """The smallest plan found that breaks the same invariant as ``failed`` does."""
    assert failed.broken is not None
    best = failed
    left = tries
    found = True
    while found and left:
        found = False
        assert best.broken is not None
        for plan in _smaller(best):
            if not left:
                break
            left -= 1
            # What is not broken a little later than before would only cost time.
            outcome = live(plan, until_s=1.2 * best.broken.at_s + 60.0)
            if outcome.broken is not None and outcome.broken.invariant == failed.broken.invariant:
                best, found = outcome, True
                break
    return best


def _smaller(outcome: Outcome) -> Iterator[Plan]:
    """Plans with a little less in them, the largest cuts first."""
    plan = outcome.plan
    assert outcome.broken is not None
    # What never struck cannot be missed; then half of the rest at a time, then one by one.
    struck = sorted(kind for kind in plan.faults if outcome.faults[kind])
    if len(struck) < len(plan.faults):
        yield replace(plan, faults=frozenset(struck))
    if len(struck) > 2:
        for half in (struck[::2], struck[1::2]):
            yield replace(plan, faults=frozenset(half))
    if plan.services > 1:
        yield replace(plan, services=1)
        yield replace(plan, services=plan.services - 1)
    if plan.replicas > 1:
        yield replace(plan, replicas=1)
        yield replace(plan, replicas=plan.replicas - 1)
    if outcome.broken.at_s < plan.sick_s * 0.9:
        yield replace(plan, sick_s=round(outcome.broken.at_s + 1.0))
    elif plan.sick_s > 100:
        yield replace(plan, sick_s=round(plan.sick_s / 2))
    for kind in struck:
        yield plan.without(kind)


def told(outcome: Outcome, lines: int = 60) -> str:
    """The story as sentences in the order of time, what concerns other rollouts left out."""
    broken = outcome.broken
    if broken is None:
        return f"Seed {outcome.plan.seed}: every invariant held over {outcome.steps_n} steps."
    chosen = [
        (at_s, sentence)
        for at_s, sentence, rollout in outcome.story
        if not rollout or not broken.rollout or rollout == broken.rollout
    ]
    dropped = max(0, len(chosen) - lines)
    plan = outcome.plan
    head = [
        f"Seed {plan.seed} breaks «{broken.invariant}» after {outcome.steps_n} steps: {broken.sentence}",
        f"{plan.replicas} replicas, {plan.services} services, faults: {', '.join(sorted(plan.faults)) or 'none'}.",
        *([f"({dropped} earlier sentences left out)"] if dropped else []),
    ]
    body = [f"{at_s:9.2f} s  {sentence}" for at_s, sentence in chosen[dropped:]]
    return "\n".join([*head, *body, f"Again: {plan.command}"])
