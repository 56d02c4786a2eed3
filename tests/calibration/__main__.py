"""The full measurement: `make calibrate`. Prints a row a cell with its binomial interval; fails where a bound breaks.

python -m tests.calibration                    all groups, two processes
python -m tests.calibration nulls-by-arm       one group; --part .1 a tenth of the rollouts, --only TEXT some cells
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from tests.calibration import cells
from tests.calibration.floor import floor_windows
from tests.calibration.measuring import Cell, Outcome, measure, share
from tests.calibration.resource_cells import FAULTS_RESOURCES, NULLS_RESOURCES, ResourceCell, measure_resources
from tests.calibration.streams import Law

Array = NDArray[np.float64]

PROMISED, HIGHEST = 0.01, 0.015
"""Share of false rollbacks, or of wrong promotions, that is promised; upper end of its 95 % interval at most."""


@dataclass(frozen=True)
class Group:
    """Cells that are told in one table. rollouts : by planned windows. row : the words of a cell's row."""

    cells: Sequence[Cell] | Sequence[ResourceCell]
    rollouts: dict[int, int]
    columns: str
    row: Callable[[Any, Outcome], str]
    promised: Callable[[Any, Outcome], Array | None] = lambda _cell, _outcome: None
    measured: Callable[[Any, int, int], Outcome] = measure


def _null(_: Cell, outcome: Outcome) -> str:
    rolled, paused = (int(np.isfinite(x).sum()) for x in (outcome.rollback, outcome.pause))
    return f"{share(rolled, len(outcome.rollback))} | {share(paused, len(outcome.pause))}"


def _false_rollbacks(cell: Cell, outcome: Outcome) -> Array | None:
    return None if "no past" in cell.name else outcome.rollback


def _fault(cell: Cell, outcome: Outcome) -> str:
    late = outcome.rollback > cell.law.onset
    delays, requests = outcome.rollback[late] - cell.law.onset, outcome.requests[late]
    found = share(int(np.isfinite(delays).sum()), len(delays))
    median, p90 = (_number(np.quantile(delays, q, method="inverted_cdf")) for q in (0.5, 0.9))
    return f"{found} | {median} | {p90} | {_number(np.quantile(requests, 0.5, method='inverted_cdf'))}"


def _against_floor(cell: Cell, outcome: Outcome) -> str:
    assert isinstance(cell.law, Law)
    late = outcome.rollback > cell.law.onset
    median = float(np.quantile(outcome.rollback[late] - cell.law.onset, 0.5, method="inverted_cdf"))
    least = floor_windows(cell.law, cell.length)
    return f"{_fault(cell, outcome)} | {_number(least)} | {median / least:.2f}"


def _null_resource(_: ResourceCell, outcome: Outcome) -> str:
    return share(int(np.isfinite(outcome.rollback).sum()), len(outcome.rollback))


def _found_resource(cell: ResourceCell, outcome: Outcome) -> str:
    late = outcome.rollback[outcome.rollback > cell.law.onset] - cell.law.onset
    median, p90 = (_number(np.quantile(late, q, method="inverted_cdf")) for q in (0.5, 0.9))
    return f"{share(int(np.isfinite(late).sum()), len(late))} | {median} | {p90}"


def _margin(_: Cell, outcome: Outcome) -> str:
    safe = int(np.isfinite(outcome.safe).sum())
    return f"{share(safe, len(outcome.safe))} | {_number(np.quantile(outcome.safe, 0.5, method='inverted_cdf'))}"


def _wrong_promotions(_: Cell, outcome: Outcome) -> Array:
    return outcome.safe


def _kept(promised: Array | None, rate: float, full: bool) -> bool:
    """Whether the promise held: not shown to be broken and, in a full run of the whole promise, shown to be near."""
    if promised is None:
        return True
    ends = binomtest(int(np.isfinite(promised).sum()), len(promised)).proportion_ci(0.95)
    return float(ends.low) <= rate and (not full or rate < PROMISED or float(ends.high) <= HIGHEST)


def _number(value: float) -> str:
    return f"{value:.0f}" if np.isfinite(value) else "-"


NULL_COLUMNS = "rolled back (95 % interval) | paused"
FAULT_COLUMNS = "found | median windows | p90 | median canary requests"
GROUPS = {
    "nulls-by-arm": Group(
        cells.NULLS_BY_ARM,
        {**dict.fromkeys((15, 30, 60, 120), 10_000), 240: 6000, 480: 6000, 1440: 4000},
        NULL_COLUMNS,
        _null,
        _false_rollbacks,
    ),
    "nulls-learned": Group(cells.NULLS_LEARNED, {60: 4000}, NULL_COLUMNS, _null, _false_rollbacks),
    "nulls-by-pod": Group(cells.NULLS_BY_POD, {60: 4000, 240: 2000, 1440: 1000}, NULL_COLUMNS, _null, _false_rollbacks),
    "faults-by-arm": Group(cells.FAULTS_BY_ARM, {60: 2500}, FAULT_COLUMNS, _fault),
    "faults-by-pod": Group(cells.FAULTS_BY_POD, {60: 600}, FAULT_COLUMNS, _fault),
    "predictions-nulls": Group(cells.PREDICTION_NULLS, {60: 6000}, NULL_COLUMNS, _null, _false_rollbacks),
    "predictions-faults": Group(
        cells.PREDICTION_FAULTS, {60: 2000}, f"{FAULT_COLUMNS} | floor, median windows | ratio", _against_floor
    ),
    "at-margin": Group(
        cells.AT_MARGIN, {60: 1500, 240: 4000}, "called safe, wrongly | median windows", _margin, _wrong_promotions
    ),
    "nulls-resources": Group(
        NULLS_RESOURCES,
        {60: 8000, 240: 4000, 480: 2000, 1440: 2400},
        "called harmful (95 % interval)",
        _null_resource,
        lambda _, outcome: outcome.rollback,
        measure_resources,
    ),
    "faults-resources": Group(
        FAULTS_RESOURCES,
        {240: 1000, 600: 300, 1440: 200, 1500: 200, 1740: 200},
        "found | median windows | p90",
        _found_resource,
        measured=measure_resources,
    ),
    "good": Group(cells.GOOD, {60: 600, 240: 1000}, "called safe | median windows", _margin),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.calibration", description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name contains this text")
    parser.add_argument("--part", type=float, default=1.0, help="share of the rollouts (default 1)")
    parser.add_argument("--seed", type=int, default=20261125)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, help="also write the tables as Markdown to this file")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.groups if name not in GROUPS]
    if unknown:
        parser.error(f"unknown group {unknown[0]!r}; known: {', '.join(GROUPS)}")
    if not any(given.only in cell.name for name in given.groups or GROUPS for cell in GROUPS[name].cells):
        parser.error(f"no cell's name contains {given.only!r}")
    broken, tables = [], []
    for name in given.groups or GROUPS:
        group = GROUPS[name]
        began, rows = time.monotonic(), {}
        with ProcessPoolExecutor(given.jobs) as pool:
            todo = {}
            for i, cell in sorted(enumerate(group.cells), key=lambda one: -one[1].length):  # the long ones first
                if given.only not in cell.name:
                    continue
                rollouts = max(100, round(group.rollouts[cell.length] * given.part))
                todo[pool.submit(group.measured, cell, rollouts, given.seed + 31 * i)] = cell
            for done in as_completed(todo):
                cell, outcome = todo[done], done.result()
                kept = _kept(group.promised(cell, outcome), getattr(cell, "rate", PROMISED), given.part >= 1)
                rows[cell] = (
                    f"{cell.name} | {cell.length} | {group.row(cell, outcome)}{'' if kept else ' | **broken**'}"
                )
                broken += [] if kept else [f"{name}: {rows[cell]}"]
                print(f"[{name} {len(rows)}/{len(todo)} {time.monotonic() - began:.0f}s] {rows[cell]}", flush=True)
        head = f"| scenario | windows | {group.columns} |"
        rule = "|" + "---|" * (head.count("|") - 1)
        tables.append("\n".join([f"### {name}", "", head, rule, *(f"| {rows[c]} |" for c in group.cells if c in rows)]))
    if given.out:
        given.out.write_text("\n\n".join(tables) + "\n")
    print("\n".join(["", f"{len(broken)} bounds broken", *broken]))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
