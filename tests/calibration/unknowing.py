"""The best that can be done about class moves by one who does not know which pair of classes moves: beside the floor.

python -m tests.calibration.unknowing [--rollouts 20000] [--first .0167 .2 .5]

Knows what the monitor cannot: the shares of the classes, that five points move at once from one class to one other,
and that nothing else can happen. Does not know which pair, in which output, or when: the likelihood ratios of all pairs
and onsets are averaged (weighted Shiryaev-Roberts sums; the Bayes answer for these priors), and the line is crossed in
``part`` of 1 % of good rollouts, where ``part`` is what predictions have of the evidence. Where its own delay is above
1.5 times the floor's, nobody who expects as much gets there. With ``--counted .9`` it has no more information than one
who must compare with stable's requests of the same window.

Pairs: only classes with so much to lose can be left. «by share»: where the mass comes from and goes to is drawn like a
request; «alike»: all pairs weigh the same. first : weight of «from the first window on»; the others share the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tests.calibration.floor import RATE, floor_windows
from tests.calibration.streams import Law

Array = NDArray[np.float64]

LENGTH, MOVE = 60, 0.05
PARTS = (1.0, 0.5, 0.3, 0.09)
ALIKE, BY_SHARE = "alike", "by share"
CHUNK, MOST = 2_000, 40.0
"""Rollouts side by side; nats beyond which nothing is added, as float32 ends at 88."""
CELLS = {
    "2 classes": Law(classes_n=2),
    "10 classes": Law(),
    "1,000 classes": Law(classes_n=1000),
    "4 outputs of 10": Law(outputs_n=4),
}


def evidence(law: Law, rollouts: int, first: float, way: str, *, seed: int) -> Array:
    """(R, T) log of the averaged likelihood ratios; the law's ``onset`` and ``class_move`` say what really happens."""
    parts = range(0, rollouts, CHUNK)
    return np.concatenate([_chunk(law, min(CHUNK, rollouts - r), first, way, [seed, r]) for r in parts])


def _chunk(law: Law, rollouts: int, first: float, way: str, seed: list[int]) -> Array:
    rng = np.random.default_rng(seed)
    usual, moved = law.class_shares
    left = np.flatnonzero(usual > MOVE)
    weight = np.ones((len(left), len(usual))) if way == ALIKE else usual[left, None] * usual / (1 - usual[left, None])
    weight[np.arange(len(left)), left] = 0.0
    weight /= weight.sum() * law.outputs_n
    loss, gain = np.log1p(-MOVE / usual[left]), np.log1p(MOVE / usual)
    later = (1.0 - first) / (LENGTH - 1)
    sums = np.zeros((law.outputs_n, rollouts, *weight.shape), np.float32)
    out = np.empty((rollouts, LENGTH))
    for t in range(LENGTH):
        for place, one in enumerate(sums):
            # The canary's requests are Poisson, so the counts of its classes are independent.
            shares = moved if t >= law.onset and place == 0 else usual
            counts = rng.poisson(law.canary * shares, (rollouts, len(usual)))
            one += (first if t == 0 else later) * weight.astype(np.float32)
            one *= np.exp(counts[:, left] * loss).astype(np.float32)[:, :, None]
            one *= np.exp(np.minimum(counts * gain, MOST)).astype(np.float32)[:, None, :]
            np.minimum(one, np.exp(MOST), out=one)
        out[:, t] = np.log(sums.sum((0, 2, 3), dtype=np.float64))
    return out


def delays(law: Law, rollouts: int, first: float, way: str) -> dict[int, list[float]]:
    """Onset -> median windows until the move is found, by ``PARTS``, of rollouts that had no alarm before."""
    highest = evidence(law, rollouts, first, way, seed=1).max(1)
    out: dict[int, list[float]] = {}
    for onset in (0, LENGTH // 2):
        found = evidence(replace(law, class_move=MOVE, onset=onset), max(rollouts // 5, 1), first, way, seed=2 + onset)
        out[onset] = []
        for part in PARTS:
            crossed = found >= np.quantile(highest, 1 - RATE * part)
            at = np.where(crossed.any(1), crossed.argmax(1) + 1.0, np.inf)
            out[onset].append(float(np.quantile(at[at > onset] - onset, 0.5, method="inverted_cdf")))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row a cell, onset and prior."""
    parser = argparse.ArgumentParser(prog="python -m tests.calibration.unknowing", description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=20_000, help="good ones, for the line; a fifth for the delays")
    parser.add_argument("--first", type=float, nargs="+", default=[1 / LENGTH, 0.2, 0.5], metavar="WEIGHT")
    parser.add_argument(
        "--counted", type=float, default=1.0, metavar="PART",
        help="part of the canary's requests that is seen: .9 tells as much as a comparison with nine times as many "
        "stable requests of the same window does, for one who has to learn the shares",
    )  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name contains this text")
    given = parser.parse_args(arguments)
    print(f"| cell | pairs | first | onset | floor | {' | '.join(f'{part:.0%}' for part in PARTS)} |", flush=True)
    print("|" + "---|" * (5 + len(PARTS)))
    for name, law in CELLS.items():
        if given.only not in name:
            continue
        least = {at: floor_windows(replace(law, class_move=MOVE, onset=at), LENGTH) for at in (0, LENGTH // 2)}
        seen = replace(law, canary=law.canary * given.counted)
        for way in (BY_SHARE, ALIKE):
            for first in given.first:
                for at, found in delays(seen, given.rollouts, first, way).items():
                    ratios = " | ".join(f"{x:.0f} = {x / least[at]:.2f}" for x in found)
                    print(f"| {name} | {way} | {first:.2f} | {at} | {least[at]:.0f} | {ratios} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
