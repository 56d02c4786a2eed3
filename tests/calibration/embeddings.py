"""The learned detector: false alarms, and how soon arms that differ are told apart (analyzers/learned.py).

python -m tests.calibration.embeddings [--rollouts 4000] [--keras 0]     embeddings of 16 numbers, 60 canary and 200
stable requests a window, 30 windows. Two learners, each trained before every window on all windows so far: a straight
direction, which is quick enough for thousands of rollouts, and with ``--keras N`` the service's own worker process on
N rollouts (a second or so a window; an interpreter that has the extra `tensorflow`).
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analyzers.learned import LearnedEvidence, bet
from service.predictions.learned import MOST_N, KerasLearner
from tests.calibration.measuring import found_after

DIMS, CANARY, STABLE, WINDOWS = 16, 60, 200, 30
LINE = math.log(100)
"""A rollback wants so much evidence where the detector is alone: 1 % a rollout."""

Rows = NDArray[np.float32]
Say = Callable[[Rows, Rows, Rows, int], Awaitable[Rows]]


@dataclass(frozen=True)
class Story:
    """What the canary's embeddings do from a window on: they move along one axis, or spread in all of them."""

    name: str
    moved: float = 0.0
    spread: float = 1.0
    onset: int = 0


STORIES = (
    Story("both versions alike"),
    *(Story(f"moved by .5 of a deviation at {at}", moved=0.5, onset=at) for at in (0, 15)),
    Story("spread by 1.3, which no direction shows", spread=1.3),
)


async def straight(canary: Rows, stable: Rows, new: Rows, _seed: int) -> Rows:
    """How far each new row lies along the direction from one arm's mean to the other's."""
    towards = canary.mean(0) - stable.mean(0)
    middle = (canary.mean(0) + stable.mean(0)) / 2
    return np.tanh(4.0 * (new - middle) @ towards).astype(np.float32)


async def first_found(story: Story, say: Say, rng: np.random.Generator) -> float:
    """The window in which one rollout's line is passed, infinite where it never is."""
    evidence = LearnedEvidence()
    canaries, stables = (np.zeros((0, DIMS), np.float32) for _ in range(2))
    for t in range(1, WINDOWS + 1):
        changed = t > story.onset
        canary = rng.normal(size=(CANARY, DIMS)).astype(np.float32) * (story.spread if changed else 1.0)
        canary[:, 0] += story.moved * changed
        stable = rng.normal(size=(STABLE, DIMS)).astype(np.float32)
        if len(canaries):
            said = await say(canaries[-MOST_N:], stables[-MOST_N:], np.concatenate([canary, stable]), t)
            evidence = bet(evidence, said[:CANARY], said[CANARY:])
            if evidence.log_evidence >= LINE:
                return float(t)
        canaries, stables = np.concatenate([canaries, canary]), np.concatenate([stables, stable])
    return math.inf


async def measure(learner: str, say: Say, rollouts: int) -> None:
    """Print a row a story."""
    for place, story in enumerate(STORIES):
        rng = np.random.default_rng((20261126, place))
        found = np.array([await first_found(story, say, rng) for _ in range(rollouts)])
        print(f"| {learner} | {story.name} | {found_after(found, story.onset)} |", flush=True)


async def main() -> None:
    """Measure both learners."""
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.embeddings", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=4000)
    parser.add_argument("--keras", type=int, default=0, metavar="N", help="rollouts with the service's own worker")
    parser.add_argument("--python", default="", help="an interpreter with Keras, where this one has none")
    given = parser.parse_args()
    print("| learner | embeddings | found | median windows |\n|---|---|---|---|")
    await measure("a direction", straight, given.rollouts)
    if given.keras:
        from service.predictions import keras_worker

        worker = KerasLearner((given.python, keras_worker.__file__) if given.python else (), answer_s=120.0)

        async def keras(canary: Rows, stable: Rows, new: Rows, seed: int) -> Rows:
            return await worker.say(canary, stable, new, seed=seed)

        try:
            await measure("Keras", keras, given.keras)
        finally:
            await worker.close()


if __name__ == "__main__":
    asyncio.run(main())
