"""The demo as a script would run it: the whole service on the embedded world, one fault each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.main import Fault
from service.lab.demo import EXPECTED, WRONG
from service.lab.world import FAULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("none", "promoted"),
        ("latency", "rolled_back"),
        ("errors", "rolled_back"),
        ("drift", "rolled_back"),
        ("blackout", "held"),
        ("opkernel", "rolled_back"),
        ("memory", "rolled_back"),
        ("gpu-memory", "rolled_back"),
        ("scan", "ended"),
        ("incompatible-model", "ended"),
    ],
)
def test_each_fault_ends_as_it_should(fault: str, outcome: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "demo", "--fault", fault, "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["outcome"], last["right"]) == (outcome, True)
    if fault == "none":
        assert last["weights_seen"] == [10, 30, 60, 100]
        assert last["pages"] == []
    elif fault == "blackout":
        assert last["weights_seen"] == [10]
        assert last["pages"]
    elif outcome == "ended":
        assert last["weights_seen"] == [0]
        assert last["canary_requests"] == 0
        assert ": refused, gate " in last["pages"][0]
    else:
        assert last["weights_seen"][-1] == 0
        assert last["pages"]


def test_every_fault_says_in_one_line_what_is_wrong_with_the_candidate() -> None:
    assert {fault.value for fault in Fault} == WRONG.keys() == EXPECTED.keys() == FAULTS.keys()
    assert max(map(len, WRONG.values())) <= 80


def test_who_watches_in_eighty_columns_reads_what_is_wrong_how_it_ends_and_who_is_paged() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "demo", "--fault", "scan"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    said = [line.strip() for line in done.stdout.splitlines()]
    places = [
        next(i for i, line in enumerate(said) if line.startswith(part))
        for part in (
            WRONG["scan"],
            "-- REFUSED at 0 %",
            "=> refused before any traffic after",
            "paged: tf-model-service",
        )
    ]
    assert places == sorted(places)
