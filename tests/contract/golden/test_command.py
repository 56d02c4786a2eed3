"""`serinus preflight golden`: three exit states, eighty columns, JSON, and errors that say what to change."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from service.model.gates.report import Finding, GateReport
from tests.contract.golden.servers import Model, serving
from tests.unit.cli.test_cli import serinus


async def asked(file: Path, stable: str, canary: str, *options: str) -> CompletedProcess[str]:
    given = ("preflight", "golden", str(file), "--stable", stable, "--canary", canary, *options)
    return await asyncio.to_thread(serinus, *given)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "golden requests.jsonl"
    lines = [{"id": f"r-{i}", "path": "/v1/models/ranker:predict", "body": {"instances": [i / 8]}} for i in range(40)]
    made.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


async def test_the_same_model_passes_with_exit_0_in_eighty_columns(file: Path) -> None:
    stable, canary = Model(), Model()
    async with serving(stable, canary):
        done = await asked(file, stable.url, canary.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PASSED  None of 40 golden requests differ")
    assert "difference rate          0 of 40 (at most 7.2 %)" in done.stdout
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80


async def test_another_model_fails_with_exit_1_and_says_what_to_do(file: Path) -> None:
    stable, canary = Model(), Model(1.01)
    async with serving(stable, canary):
        done = await asked(file, stable.url, canary.url)
        allowed = await asked(file, stable.url, canary.url, "--relative", "0.02")
        as_json = await asked(file, stable.url, canary.url, "--json", "--max-rate", "50")
    assert done.returncode == 1
    assert done.stdout.startswith("FAILED  Answers to 39 of 40 golden requests differ")
    assert "To do: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert (allowed.returncode, as_json.returncode) == (0, 1)
    report = GateReport.from_json(as_json.stdout)
    assert (report.gate, report.finding) == ("golden", Finding.FAILED)
    assert "limit 50 %" in report.sentence


async def test_a_version_that_is_away_is_exit_3(file: Path) -> None:
    stable = Model()
    async with serving(stable):
        done = await asked(file, stable.url, "http://127.0.0.1:1", "--ready-within", "0")
    assert done.returncode == 3
    assert done.stdout.startswith("COULD NOT LOOK  ")


async def test_wrong_arguments_are_exit_2_with_a_sentence(file: Path, tmp_path: Path) -> None:
    good, other = "http://127.0.0.1:1", "http://127.0.0.1:2"
    for done, said in (
        (await asked(tmp_path / "missing", good, other), "cannot read the golden requests"),
        (await asked(file, "127.0.0.1:8501", other), "--stable: expected an address such as http://host:8501, found"),
        (await asked(file, good, other, "--protocol", "grpc"), "--protocol: "),
        (await asked(file, good, other, "--relative", "-1"), "--relative: "),
        (await asked(file, good, other, "--max-rate", "100"), "--max-rate: expected a percentage"),
        (await asked(file, good, f"{good}/"), "--stable and --canary are both http://127.0.0.1:1, so the same server"),
    ):
        assert (done.returncode, done.stdout) == (2, "")
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


async def test_the_help_teaches_the_form_of_a_request_in_eighty_columns() -> None:
    done = await asyncio.to_thread(serinus, "preflight", "golden", "--help")
    assert done.returncode == 0
    assert '"path": "/v1/models/ranker:predict"' in done.stdout
    assert "Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
