"""Many simulated worlds, one seed each: ``make simulate SEEDS=n``. Says how many faults of each kind were injected."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from tests.simulation.plan import FAULTS, Plan
from tests.simulation.shrink import live, shortest, told
from tests.simulation.world import Outcome


def main() -> int:
    """0 when every invariant held in every world."""
    logging.disable(logging.CRITICAL)
    given = _arguments()
    if given.seed is not None:
        return _one(given)
    first = given.first
    plans = [Plan.of(seed, given.mutant) for seed in range(first, first + given.seeds)]
    total = Counter[str]()
    faults = Counter[str]()
    rollouts = Counter[str]()
    failed: list[Outcome] = []
    begun = time.monotonic()
    done = 0
    for done, outcome in enumerate(_outcomes(plans, given.jobs), 1):
        total.update(steps=outcome.steps_n, windows=outcome.windows_n, virtual_s=round(outcome.virtual_s))
        faults.update(outcome.faults)
        rollouts.update(outcome.rollouts)
        if outcome.broken is not None:
            failed.append(outcome)
            print(f"seed {outcome.plan.seed}: «{outcome.broken.invariant}» {outcome.broken.sentence}", flush=True)
            if len(failed) >= given.most_failures:
                break
        if sys.stderr.isatty() or done % 50 == 0:
            rate = total["steps"] / max(1e-9, time.monotonic() - begun)
            print(
                f"{done} of {len(plans)} seeds, {total['steps']} steps, {rate:.0f} steps/s", file=sys.stderr, flush=True
            )
    took_s = time.monotonic() - begun
    for kind, sentence in FAULTS.items():
        print(f"{faults[kind]:8}  {kind}: {sentence}")
    print(
        f"{done} seeds, {total['steps']} steps, {sum(faults.values())} faults of {len(faults)} kinds, "
        f"{total['virtual_s'] / 3600:.0f} simulated hours in {took_s:.0f} s; "
        f"{sum(rollouts.values())} rollouts ({', '.join(f'{n} {phase}' for phase, n in sorted(rollouts.items()))}), "
        f"{total['windows']} windows judged; {len(failed)} seeds broke an invariant."
    )
    if failed:
        print()
        print(told(shortest(failed[0], given.tries)))
    return 1 if failed else 0


def _one(given: argparse.Namespace) -> int:
    plan = Plan.of(given.seed, given.mutant)
    for name in ("replicas", "services", "clusters", "sick"):
        value = getattr(given, name)
        if value is not None:
            plan = replace(plan, **{"sick_s" if name == "sick" else name: value})
    if given.faults is not None:
        kinds = frozenset() if given.faults == "none" else frozenset(given.faults.split(","))
        if unknown := kinds - FAULTS.keys():
            raise SystemExit(f"unknown faults: {', '.join(sorted(unknown))}; known: {', '.join(FAULTS)}")
        plan = replace(plan, faults=kinds)
    outcome = live(plan)
    if outcome.broken is not None and given.shrink:
        outcome = shortest(outcome, given.tries)
    print(told(outcome, given.lines))
    return 0 if outcome.broken is None else 1


def _outcomes(plans: list[Plan], jobs: int) -> Iterable[Outcome]:
    if jobs == 1:
        yield from map(live, plans)
        return
    with multiprocessing.Pool(jobs) as pool:
        yield from pool.imap(live, plans, chunksize=4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many worlds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--mutant", default="", help="a fault planted in the product (tests/simulation/mutants.py)")
    parser.add_argument("--most-failures", type=int, default=5, help="stop after so many broken seeds")
    parser.add_argument("--tries", type=int, default=60, help="worlds to live through in search of a shorter story")
    parser.add_argument("--seed", type=int, help="one world, told in sentences when it breaks")
    parser.add_argument("--shrink", action="store_true", help="with --seed: look for a shorter story first")
    parser.add_argument("--lines", type=int, default=60, help="sentences of a story")
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--services", type=int)
    parser.add_argument("--clusters", type=int)
    parser.add_argument("--sick", type=float, help="seconds in which faults happen")
    parser.add_argument("--faults", help="only these, comma-separated, or none")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
