"""`serinus export` and `serinus verify`: beside a running service, in eighty columns, and a changed file is found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.stimulus import Verb
from service.storage.opening import open_store
from tests.contract.store.stories import keep
from tests.stories import SERVICE, Story, lean
from tests.unit.cli.test_cli import serinus


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[Path]:
    """The settings of a service that runs: its database is open and locked, with an ended and a running rollout."""
    store = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    await keep(store, Story(rollout="r-ended").progressing().window(**lean(2)).person(Verb.ROLLBACK).written())
    running = SERVICE.model_copy(update={"name": "other"})
    await keep(store, Story(id="e2", rollout="r-running", service=running).progressing().window(**lean(2)))
    file = tmp_path / "serinus.yaml"
    file.write_text(f"api: {{auth: 'off'}}\ndatabase: {{url: 'sqlite:///{tmp_path / 's.db'}'}}\n")
    yield file
    await store.close()


def test_all_that_ended_before_a_moment_goes_to_a_file_that_verifies(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl.gz"
    done = serinus("export", "--ended-before", "2027-01-01", "-o", str(file), "-c", str(config))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "1 rollouts" in done.stderr
    checked = serinus("verify", str(file))
    assert checked.returncode == 0
    assert checked.stdout.strip() == "1 rollouts: 1 intact, 1 replayed to the same state, 0 wrong"
    again = serinus("export", "--ended-before", "2027-01-01", "-o", str(file), "-c", str(config))
    assert (again.returncode, "is there already" in again.stderr) == (2, True)


def test_a_chosen_rollout_goes_to_standard_output_also_while_it_runs(config: Path, tmp_path: Path) -> None:
    done = serinus("export", "r-running", "-c", str(config))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"]["id"] == "r-running"
    file = tmp_path / "one.jsonl"
    file.write_text(done.stdout.replace('"n_canary":60', '"n_canary":61'))
    found = serinus("verify", str(file))
    assert found.returncode == 1
    assert "FAIL line 1, r-running" in found.stdout
    for text in (done.stderr, found.stdout):
        assert max(map(len, text.splitlines())) <= 80


def test_what_cannot_be_exported_is_said_and_leaves_no_file(config: Path, tmp_path: Path) -> None:
    unknown = serinus("export", "r-nope", "-o", str(tmp_path / "x.jsonl"), "-c", str(config))
    assert (unknown.returncode, "no such rollout" in " ".join(unknown.stderr.split())) == (1, True)
    nowhere = serinus("export", "r-ended", "-o", str(tmp_path / "no" / "x.jsonl"), "-c", str(config))
    assert (nowhere.returncode, "create the folder" in nowhere.stderr) == (1, True)
    assert not list(tmp_path.rglob("*x.jsonl*"))
    assert serinus("export", "-c", str(config)).returncode == 2
    assert "is no moment" in " ".join(serinus("export", "--ended-before", "soon", "-c", str(config)).stderr.split())
    other = tmp_path / "other.yaml"
    other.write_text(f"api: {{auth: 'off'}}\ndatabase: {{url: 'sqlite:///{tmp_path / 'none.db'}'}}\n")
    absent = serinus("export", "r-ended", "-c", str(other))
    assert (absent.returncode, "there is no database" in absent.stderr) == (1, True)
    assert not (tmp_path / "none.db").exists()
    assert "Traceback" not in unknown.stderr + nowhere.stderr + absent.stderr
