"""`serinus export` and `serinus verify`: beside a running service, in eighty columns, and a changed file is found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.stimulus import Verb
from service.storage import tables as t
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.stories import keep
from tests.stories import SERVICE, Story, lean
from tests.unit.cli.test_cli import serinus


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    """Of a service that runs: open and locked, with an ended and a running rollout."""
    store = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    await keep(store, Story(rollout="r-ended").progressing().window(**lean(2)).person(Verb.ROLLBACK).written())
    await keep(store, running("running"))
    yield store
    await store.close()


def running(name: str) -> Story:
    """A rollout of a service of this name, which its id ends in."""
    service = SERVICE.model_copy(update={"name": name})
    return Story(id=f"e-{name}", rollout=f"r-{name}", service=service).progressing().window(**lean(2))


@pytest.fixture
def config(store: SqlStore, tmp_path: Path) -> Path:
    """The settings of that service."""
    file = tmp_path / "serinus.yaml"
    file.write_text(f"api: {{auth: 'off'}}\ndatabase: {{url: 'sqlite:///{tmp_path / 's.db'}'}}\n")
    return file


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


@pytest.mark.parametrize("to_file", [True, False])
async def test_a_damaged_rollout_is_named_and_left_out_and_the_others_are_exported(
    store: SqlStore, config: Path, tmp_path: Path, to_file: bool
) -> None:
    """It ended the export, in the middle of its own line."""
    for name in ("a", "z"):
        await keep(store, running(name))
    await store.write("damage", [t.windows.update().where(t.windows.c.rollout == "r-ended").values(packed=b"\x01\xff")])
    file = tmp_path / "some.jsonl"
    where = ["-o", str(file)] if to_file else []
    done = serinus("export", "r-a", "r-ended", "r-z", *where, "-c", str(config))
    told = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "r-ended is left out: cannot read the history of rollout r-ended" in told
    assert told.endswith("1 left out")
    assert "Traceback" not in told
    if not to_file:
        file.write_text(done.stdout)
    assert serinus("verify", str(file)).stdout.strip() == "2 rollouts: 2 intact, 2 replayed to the same state, 0 wrong"
