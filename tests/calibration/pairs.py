"""Mirrored requests judged pair by pair: false alarms, and how soon a class move is found (analyzers/paired.py).

python -m tests.calibration.pairs [--rollouts 4000]     60 pairs a window, 60 windows, without a planned length, which
is how a rollout's guard reads them; the same requests judged as two separate samples need the windows of group
``predictions-faults``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from analyzers import PairedConfig, PairedMonitor
from tests.calibration.measuring import found_after

CLASSES = 10
PAIRS, WINDOWS = 60.0, 60
CONFIG = PairedConfig(tolerated=0.01)


@dataclass(frozen=True)
class Story:
    """Shares of all requests that the canary moves from the first class to the second and back."""

    name: str
    forth: float
    back: float
    onset: int = 0


STORIES = (
    Story("both versions agree", 0.0, 0.0),
    Story("1 % differ, as often one way as the other", 0.005, 0.005),
    Story("1 point moves, 1 % differ besides", 0.015, 0.005),
    *(Story(f"5 points move at {at}, 1 % differ besides", 0.055, 0.005, at) for at in (0, 30)),
)


def first_found(story: Story, rollouts: int, seed: int) -> np.ndarray:
    """(R,) the window in which each rollout is found harmful, infinite where it is not."""
    rng = np.random.default_rng(seed)
    monitor = PairedMonitor(CONFIG, CLASSES, rollouts)
    found = np.full(rollouts, np.inf)
    for t in range(1, WINDOWS + 1):
        forth, back = (story.forth, story.back) if t > story.onset else (story.back, story.back)
        n = rng.poisson(PAIRS, rollouts)
        moved = rng.multinomial(n, [forth, back, 1.0 - forth - back])
        counts = np.zeros((rollouts, CLASSES, CLASSES))
        counts[:, 0, 1], counts[:, 1, 0], counts[:, 2, 2] = moved.T
        harmful = monitor.observe(counts).harmful
        found[np.isinf(found) & harmful] = t
    return found


def main() -> None:
    """Measure and print a row a story."""
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.pairs", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=4000)
    given = parser.parse_args()
    print("| mirrored requests | found | median windows |\n|---|---|---|")
    for place, story in enumerate(STORIES):
        found = first_found(story, given.rollouts, 20261126 + place)
        print(f"| {story.name} | {found_after(found, story.onset)} |")


if __name__ == "__main__":
    main()
