"""`serinus preflight model` and `runtime`: exit status, words and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.unit.preflight.saved_model.test_gate import dump
from tests.unit.preflight.saved_model.test_runtime import GOOD, shell
from tests.unit.preflight.saved_model.writing import simple, write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dump(tmp_path)
    write_model(tmp_path / "good", simple())
    write_model(tmp_path / "bad", simple("SegmentMaxV2"))
    return tmp_path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["preflight", *map(str, arguments)])
    return result.exit_code, result.output


def test_a_model_that_passes_exits_with_0(folder: Path):
    code, output = run("model", folder / "good", "--runtime", folder / "runtime.json")
    assert code == 0
    assert output.startswith("PASSED  TensorFlow 2.13.0 has every op")


def test_a_model_that_fails_exits_with_1_and_says_what_to_do(folder: Path):
    code, output = run("model", folder / "bad", "--runtime", folder / "runtime.json")
    assert code == 1
    assert output.startswith("FAILED  TensorFlow 2.13.0: op SegmentMaxV2 is not registered")
    assert "To do: " in output


def test_a_gate_that_could_not_look_exits_with_3(folder: Path):
    code, output = run("model", folder / "gone", "--runtime", folder / "runtime.json")
    assert code == 3
    assert output.startswith("COULD NOT LOOK  ")


def test_a_folder_as_runtime_is_a_wrong_argument_that_names_its_interpreter(folder: Path):
    code, output = run("model", folder / "good", "--runtime", folder)
    assert code == 2
    assert f"{folder.name}/bin/python" in "".join(output.split())


def test_a_stable_model_that_is_not_there_is_named(folder: Path):
    code, output = run("model", folder / "good", "--runtime", folder / "runtime.json", "--stable", folder / "gone")
    assert code == 3
    assert "gone/saved_model.pb cannot be opened" in " ".join(output.split())


def test_the_report_comes_as_json(folder: Path):
    code, output = run("model", folder / "bad", "--runtime", folder / "runtime.json", "--json")
    assert code == 1
    assert json.loads(output)["finding"] == "failed"


def test_what_is_executable_is_asked_as_an_interpreter(folder: Path):
    says = shell(folder / "python", f"cat {folder / 'runtime.json'}")
    assert run("model", folder / "good", "--runtime", says)[0] == 0


def test_a_runtime_is_printed_and_its_script_too(tmp_path: Path):
    says = shell(tmp_path / "python", f"echo '{json.dumps(GOOD)}'")
    code, output = run("runtime", says)
    assert code == 0
    assert json.loads(output) == GOOD
    code, output = run("runtime", "--script", "--import", "tensorflow_text")
    assert code == 0
    assert output.endswith("dump(['tensorflow_text'])\n")
    compile(output, "script", "exec")


def test_a_runtime_that_cannot_be_asked_exits_with_3(tmp_path: Path):
    assert run("runtime", tmp_path / "gone")[0] == 3
    assert run("runtime")[0] == 2


def test_module_names_that_are_none_do_not_reach_the_script(tmp_path: Path):
    code, output = run("runtime", "--script", "--import", "os'); print('x")
    assert code == 0
    # A name is data in it, quoted.
    assert "dump([\"os'); print('x\"])" in output


def test_help_teaches_in_80_columns():
    result = CliRunner().invoke(app, ["preflight", "model", "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "serinus preflight model models/7" in result.output
    assert max(map(len, result.output.splitlines())) <= 80
