"""`make bench-peers`: everyone on the same streams. Writes TABLE.md and peers.png, prints where Serinus is behind."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.peers import plot, table
from tests.benchmarks.peers.measuring import measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=(__doc__ or "").strip())
    parser.add_argument("--rollouts", type=int, default=500, help="a fault (default 500)")
    parser.add_argument("--nulls", type=int, default=2000, help="a kind of good release (default 2000)")
    parser.add_argument("--tuning", type=int, default=6000, help="good rollouts a law to tune on (default 6000)")
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of TABLE.md and peers.png")
    given = parser.parse_args(arguments)
    for name in ("rollouts", "nulls", "tuning"):
        if getattr(given, name) < 100:
            parser.error(f"--{name} must be at least 100: 1 % of fewer is no rollout at all")
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:.0f} s] {text}", flush=True)

    outcome = measure(given.rollouts, given.nulls, given.tuning, given.seed, say=say)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "TABLE.md").write_text(table.markdown(outcome))
    drawn = plot.draw(outcome, given.out / "peers.png")
    print(table.behind(outcome))
    say(f"wrote {given.out / 'TABLE.md'}" + (" and peers.png" if drawn else "; no plot: matplotlib is not installed"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
