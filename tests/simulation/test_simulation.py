"""A few dozen simulated worlds hold every invariant, and the planted faults are caught."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.simulation import mutants
from tests.simulation.database import Database
from tests.simulation.plan import FAULTS, Plan
from tests.simulation.process import Process
from tests.simulation.shrink import live, shortest, told
from tests.simulation.world import Outcome, World

SEEDS = 20
CAUGHT_WITHIN = 30
"""Seeds in which a planted fault has to show."""

ALONE = {
    mutants.FENCING: ["second thoughts"],
    mutants.WITHDRAWALS: ["late words"],
    mutants.LOOKS: ["mending"],
}
"""Mutants that are looked for in worlds with nothing but these faults."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")


@pytest.fixture(scope="module")
def faults() -> Counter[str]:
    """What was injected by all worlds of this module."""
    return Counter()


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_every_invariant_holds_in_a_simulated_world(seed: int, faults: Counter[str]) -> None:
    outcome = live(Plan.of(seed))
    faults.update(outcome.faults)
    assert outcome.broken is None, told(outcome)


def test_every_kind_of_fault_was_injected(faults: Counter[str]) -> None:
    if not faults:
        pytest.skip("the worlds were not run")
    assert {kind for kind in FAULTS if not faults[kind]} == set()


def test_a_world_without_faults_ends_its_rollouts_in_every_way() -> None:
    phases = Counter[str]()
    for seed in range(5, 9):
        outcome = live(replace(Plan.of(seed), replicas=1, services=3, faults=frozenset()))
        assert outcome.broken is None, told(outcome)
        phases += outcome.rollouts
    assert {"promoted", "rolled_back", "paused", "held", "ended"} <= phases.keys()


def test_a_replica_whose_clock_is_ahead_advances_nothing_on_windows_that_are_not_over() -> None:
    world = World(replace(Plan.of(1), replicas=1, services=3, faults=frozenset()))
    world.replicas[0].process = Process(world, replica=1, life=0, skew_s=3600.0)
    outcome = world.run()
    assert outcome.broken is None, told(outcome)
    ill = [sentence for at_s, sentence, _ in outcome.story if at_s < outcome.plan.sick_s]
    assert any("in the metric store's future" in sentence for sentence in ill)
    assert not any("Advance to" in sentence or "Promote" in sentence for sentence in ill)


def _caught(mutant: str) -> Outcome:
    profile = {"faults": frozenset(only), "services": 4} if (only := ALONE.get(mutant)) else {}
    for seed in range(1, CAUGHT_WITHIN + 1):
        outcome = live(replace(Plan.of(seed, mutant), **profile))  # type: ignore[arg-type]
        if outcome.broken is not None:
            return outcome
    pytest.fail(f"«{mutant}» was not noticed in {CAUGHT_WITHIN} seeds")


@pytest.mark.parametrize("mutant", mutants.CAUGHT_BY)
def test_a_fault_that_is_planted_in_the_product_is_caught(mutant: str) -> None:
    outcome = _caught(mutant)
    assert outcome.broken is not None
    assert outcome.broken.invariant in mutants.CAUGHT_BY[mutant], told(outcome)


def test_a_failure_is_told_as_a_short_story_with_the_command_that_repeats_it() -> None:
    outcome = _caught(mutants.OFFSETS)
    small = shortest(outcome, tries=20)
    assert small.broken is not None
    assert small.plan.services == 1
    assert len(small.plan.faults) < len(outcome.plan.faults)
    story = told(small)
    assert "goes by before its effect" in story
    assert f"python -m tests.simulation --seed {outcome.plan.seed}" in story
    assert live(small.plan).story == small.story


def test_the_same_seed_tells_the_same_story_whatever_python_hashes() -> None:
    """Two processes with different orders in every set of texts."""
    code = (
        "import logging; logging.disable(50)\n"
        "from tests.simulation.plan import Plan\n"
        "from tests.simulation.shrink import live\n"
        "import hashlib; outcome = live(Plan.of(7))\n"
        "print(outcome.steps_n, hashlib.sha256(repr(outcome.story).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1, said


def test_a_transaction_is_one_step() -> None:
    """No await of a store's call ever suspends, so nothing comes between its parts."""
    database = Database()

    async def ask() -> None:
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql("update switches set reason = '' where name = ''")

    coroutine = ask()
    with pytest.raises(StopIteration):
        coroutine.send(None)
    database.close()
