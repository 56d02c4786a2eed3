"""The demo as a script would run it: the whole service on the embedded world, one fault each way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
