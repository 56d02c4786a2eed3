"""The model gate against real TensorFlow 2.12.0, 2.13.0 and the newest: its verdict against what real loaders do.

Every model of tests/real/models is written by every version that can build it, loaded and run by every version, as
Python does and as TensorFlow Serving's C++ loader does, and looked at by the gate, which asks that version's own
interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.model.gates.model import Device, Entry, ModelGate, RuntimeJob
from service.model.gates.report import Finding, GateReport
from service.preflight.saved_model.gate import Ask, by_dump, by_python, inspect
from service.preflight.saved_model.job import MESSAGE_BYTES, MESSAGE_PATH, manifest
from service.preflight.saved_model.reading import read_saved_model
from service.preflight.saved_model.runtime import Script, run
from service.preflight.saved_model.wire import FileSource, Reader
from tests.real.parts.tensorflow import ENVIRONMENTS, run_in

pytestmark = pytest.mark.real

MODELS = Path(__file__).parent / "models"
VERSIONS = tuple(ENVIRONMENTS)
USUAL = ModelGate()
NUMBERS = {"2.12": "2.12.0", "2.13": "2.13.0", "newest": "2.21.0"}


@dataclass(frozen=True)
class World:
    """All models, what happened to each in each version, and a dump of each version."""

    folder: Path
    written: dict[str, list[str]]
    """Writer -> names of models."""
    happened: dict[str, dict[str, dict[str, str]]]
    """Loader -> model's path -> python, server, run: "" or the error."""

    def path(self, writer: str, name: str) -> Path:
        return self.folder / writer / name

    def outcome(self, loader: str, writer: str, name: str) -> dict[str, str]:
        return self.happened[loader][str(self.path(writer, name))]

    def ask(self, loader: str, device: str = "CPU") -> Ask:
        return by_dump(self.folder / f"{loader}.json", device=device)

    def look(self, loader: str, path: Path, rule: ModelGate = USUAL, stable: Path | None = None) -> GateReport:
        return asyncio.run(inspect(rule, path, stable=stable, ask=self.ask(loader, rule.device.value)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("models")

    def build(version: str) -> list[str]:
        (folder / version).mkdir()
        done = run_in(version, (MODELS / "build.py").read_text(), str(folder / version))
        assert done.returncode == 0, done.stderr[-3000:]
        names: list[str] = json.loads(done.stdout.splitlines()[-1])
        return names

    def load(version: str, paths: list[str]) -> dict[str, dict[str, str]]:
        done = run_in(version, (MODELS / "load.py").read_text(), *paths)
        assert done.returncode == 0, done.stderr[-3000:]
        happened: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
        return happened

    def dump(version: str) -> None:
        said = run(ENVIRONMENTS[version].python(), Script.dumping(), within_s=180)
        (folder / f"{version}.json").write_bytes(asyncio.run(said))

    with ThreadPoolExecutor(2) as pool:
        written = dict(zip(VERSIONS, pool.map(build, VERSIONS), strict=True))
        paths = [str(folder / writer / name) for writer, names in written.items() for name in names]
        happened = dict(zip(VERSIONS, pool.map(lambda version: load(version, paths), VERSIONS), strict=True))
        list(pool.map(dump, VERSIONS))
    return World(folder, written, happened)


def cases(world: World) -> list[tuple[str, str, str]]:
    """Loader, writer, name of every SavedModel."""
    return [
        (loader, writer, name)
        for loader in VERSIONS
        for writer, names in world.written.items()
        for name in names
        if not name.endswith(".keras")
    ]


def test_every_model_that_was_meant_to_be_built_was(world: World):
    added_by_2_13 = {"new_op", "no_kernel", "no_kernel_in_a_branch", "dead_function", "index_type", "refused_index"}
    added_by_2_13 |= {"refused_string", "compiled_without_cpu_kernel"}
    assert set(world.written["newest"]) - set(world.written["2.13"]) == {"ignored_attribute"}
    assert set(world.written["2.13"]) - set(world.written["2.12"]) == added_by_2_13


def test_what_the_gate_lets_pass_loads_and_runs_and_what_it_fails_does_not(world: World):
    """Both directions, every writer on every loader; the signature is compared elsewhere."""
    rows = []
    for loader, writer, name in cases(world):
        report = world.look(loader, world.path(writer, name))
        outcome = dict(world.outcome(loader, writer, name))
        if name == "renamed_signature":
            outcome.pop("run")
        rows.append((loader, writer, name, report.finding, any(outcome.values()), outcome))
    wrong = [row for row in rows if (row[3] is Finding.PASSED) is row[4]]
    assert not wrong, "\n".join(map(str, wrong))
    print(f"\n{len(rows)} loads: {sum(row[4] for row in rows)} really fail, and the gate fails exactly those")


def test_a_plain_model_passes_everywhere_and_runs_everywhere(world: World):
    for loader in VERSIONS:
        for writer in VERSIONS:
            for name in ("plain", "conv", "table", "mapped", "keras", "compiled", "v1"):
                report = world.look(loader, world.path(writer, name))
                assert report.finding is Finding.PASSED, (loader, writer, name, report)
                assert not any(world.outcome(loader, writer, name).values())


@pytest.mark.parametrize(
    ("name", "op", "words", "error"),
    [
        ("new_op", "RaggedFillEmptyRows", "is not registered", "Op type not registered 'RaggedFillEmptyRows'"),
        ("no_kernel", "SegmentMaxV2", "op SegmentMaxV2 is not registered", "Op type not registered 'SegmentMaxV2'"),
        ("no_kernel_in_a_branch", "SegmentMaxV2", "is not registered", "Op type not registered 'SegmentMaxV2'"),
        ("dead_function", "SegmentMaxV2", "in nobody_calls_this", "Op type not registered 'SegmentMaxV2'"),
        ("index_type", "TopKV2", "has the outputs [float, int32] instead of [float, int64]", "was passed int32"),
        (
            "refused_index",
            "UnsortedSegmentSum",
            "takes no Tindices=int16; allowed: int32, int64",
            "'Tindices' of int16",
        ),
        ("refused_string", "AsString", "takes no T=string", "'T' of string"),
    ],
)
def test_what_2_13_can_and_2_12_cannot_fails_with_the_ops_name_and_really_does_not_load(
    world: World, name: str, op: str, words: str, error: str
):
    report = world.look("2.12", world.path("2.13", name))
    assert report.finding is Finding.FAILED
    assert f"TensorFlow 2.12.0: op {op} " in report.sentence
    assert words in report.sentence
    assert error in world.outcome("2.12", "2.13", name)["python"]


@pytest.mark.parametrize("loader", ["2.13", "newest"])
@pytest.mark.parametrize("name", ["no_kernel", "no_kernel_in_a_branch"])
def test_an_op_that_is_registered_without_a_kernel_loads_well_and_is_failed(world: World, loader: str, name: str):
    report = world.look(loader, world.path("2.13", name))
    assert report.finding is Finding.FAILED
    assert "op SegmentMaxV2 has no kernel for CPU with T=float, Tindices=int32" in report.sentence
    outcome = world.outcome(loader, "2.13", name)
    assert outcome["python"] == outcome["server"] == ""
    assert "No OpKernel was registered to support Op 'SegmentMaxV2'" in outcome["run"]


def test_an_op_that_2_12_lacks_passes_and_runs_in_2_13(world: World):
    assert world.look("2.13", world.path("2.13", "new_op")).finding is Finding.PASSED
    assert not any(world.outcome("2.13", "2.13", "new_op").values())


def test_an_op_for_gpus_only_is_failed_on_a_cpu(world: World):
    for loader in VERSIONS:
        report = world.look(loader, world.path("2.12", "cudnn"))
        assert report.sentence.startswith(f"TensorFlow {NUMBERS[loader]}: op CudnnRNNV3 has no kernel for CPU")
        assert "No OpKernel was registered to support Op 'CudnnRNNV3'" in world.outcome(loader, "2.12", "cudnn")["run"]


def test_a_dead_function_with_an_op_without_a_kernel_passes_and_xla_may_have_one(world: World):
    for name in ("dead_function", "compiled_without_cpu_kernel"):
        assert world.look("2.13", world.path("2.13", name)).finding is Finding.PASSED
        assert not any(world.outcome("2.13", "2.13", name).values())


def test_an_attribute_that_an_older_version_would_silently_ignore_is_failed(world: World):
    for loader in ("2.12", "2.13"):
        report = world.look(loader, world.path("newest", "ignored_attribute"))
        assert "op GatherNd does not know the attribute bad_indices_policy=IGNORE" in report.sentence
        outcome = world.outcome(loader, "newest", "ignored_attribute")
        assert outcome["python"] == outcome["server"] == ""
        assert "does not index into param shape" in outcome["run"]
    assert world.look("newest", world.path("newest", "ignored_attribute")).finding is Finding.PASSED


def test_a_server_looks_at_the_versions_of_any_graph_and_python_at_those_of_v1_graphs(world: World):
    called_by_python = ModelGate(entry=Entry.FUNCTIONS)
    for loader in VERSIONS:
        for name in ("v1_min_consumer", "v2_min_consumer"):
            assert world.look(loader, world.path(loader, name)).finding is Finding.FAILED
            outcome = world.outcome(loader, loader, name)
            assert "min consumer version 99999" in outcome["server"]
            by_python = world.look(loader, world.path(loader, name), called_by_python)
            assert (by_python.finding is Finding.PASSED) is (outcome["python"] == "")
        for name in ("v1_bad_consumer", "v2_bad_consumer"):
            failed = world.look(loader, world.path(loader, name)).finding is Finding.FAILED
            assert (
                failed is (loader == "2.12") is ("disallows consumer" in world.outcome(loader, loader, name)["server"])
            )


def test_a_renamed_signature_is_found_though_every_loader_is_content(world: World):
    for loader in VERSIONS:
        report = world.look(loader, world.path(loader, "renamed_signature"), stable=world.path(loader, "plain"))
        assert report.finding is Finding.FAILED
        assert report.sentence == "signature 'serving_default' is gone; the candidate has: score"
        assert world.outcome(loader, loader, "renamed_signature")["python"] == ""


@pytest.mark.parametrize(
    ("name", "words", "error"),
    [
        ("other_dtype", "as float, the checkpoint holds double", "expected dtype float does not equal original dtype"),
        ("other_name", "w/.ATTRIBUTES/VARIABLE_VALUE, which the checkpoint does not hold", "not found in checkpoint"),
        ("flipped_bit", "checksum of its 48 bytes does not match", "Checksum does not match"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_type_name_or_with_a_flipped_bit_is_found_before_it_is_restored(
    world: World, name: str, words: str, error: str
):
    for loader in VERSIONS:
        report = world.look(loader, world.path("2.13", name))
        assert report.finding is Finding.FAILED
        assert words in report.sentence
        assert error in world.outcome(loader, "2.13", name)["server"]


def test_a_checkpoint_of_another_shape_is_found_before_it_is_restored(world: World):
    for loader in VERSIONS:
        report = world.look(loader, world.path("2.13", "other_shape"))
        assert report.finding is Finding.FAILED
        assert "variable w is float[4, 3], the checkpoint holds float[3, 4]" in report.sentence
        assert world.outcome(loader, "2.13", "other_shape")["python"]


def test_two_builds_of_the_same_version_do_not_differ(world: World, tmp_path: Path):
    for version in VERSIONS:
        done = run_in(version, (MODELS / "build.py").read_text(), str(tmp_path), "plain", "keras")
        assert done.returncode == 0, done.stderr[-3000:]
        for name in ("plain", "keras"):
            report = world.look(version, tmp_path / name, stable=world.path(version, name))
            assert report.finding is Finding.PASSED
            first = world.look(version, world.path(version, name), stable=tmp_path / name)
            assert (first.sentence, first.lines, first.facts) == (report.sentence, report.lines, report.facts)
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_a_wheel_for_cpu_says_nothing_of_gpus(world: World):
    report = world.look("2.13", world.path("2.13", "plain"), ModelGate(device=Device.GPU))
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "built without GPUs" in report.sentence


def test_keras_files_are_called_supported_only_where_they_load(world: World):
    for loader in VERSIONS:
        for writer in VERSIONS:
            finding = world.look(loader, world.path(writer, "archive.keras")).finding
            error = world.outcome(loader, writer, "archive.keras")["python"]
            print(f"\nKeras of {writer} in {loader}: {finding.value}, {error[:100] or 'loads'}", end="")
            assert finding is not Finding.PASSED or not error
            assert finding is not Finding.FAILED or error
    assert world.look("2.13", world.path("newest", "archive.keras")).finding is Finding.FAILED


def test_the_interpreter_itself_is_asked_and_its_versions_are_said(world: World):
    ask = by_python(ENVIRONMENTS["2.12"].python(), device="CPU")
    report = asyncio.run(inspect(ModelGate(), world.path("2.13", "no_kernel"), stable=None, ask=ask))
    assert report.finding is Finding.FAILED
    wanted = {"TensorFlow": "2.12.0", "NumPy": "1.23.5", "Keras": "2.12.0"}
    assert {key: report.facts[key] for key in wanted} == wanted


def test_what_a_job_runs_answers_within_a_termination_message(world: World, tmp_path: Path):
    """The Job's own command, in the real interpreter, without a cluster."""
    with FileSource(world.path("2.13", "no_kernel") / "saved_model.pb") as source:
        (graph,) = read_saved_model(Reader(source))
    needs = graph.needs(entry=Entry.SIGNATURES, device="CPU")
    job = manifest(needs, RuntimeJob(image="tensorflow:2.12", namespace="n"), device="CPU")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    message = tmp_path / "termination-log"
    _, *arguments = container["command"]
    arguments[-1] = arguments[-1].replace(MESSAGE_PATH, str(message))
    environment = {one["name"]: one["value"] for one in container["env"]} | {"PATH": os.environ["PATH"]}
    subprocess.run([str(ENVIRONMENTS["2.12"].python()), *arguments], env=environment, check=True, timeout=180)
    answer: dict[str, Any] = json.loads(message.read_text())
    assert message.stat().st_size <= MESSAGE_BYTES
    assert [(one["code"], one["op"]) for one in answer["found"]] == [("op_unknown", "SegmentMaxV2")]
    assert answer["versions"]["TensorFlow"] == NUMBERS["2.12"]


def test_help_imports_no_tensorflow_although_it_is_installed() -> None:
    packages = ENVIRONMENTS["newest"].python().parents[1] / "lib" / "python3.11" / "site-packages"
    look = (
        f"import importlib.util, sys\nsys.path.append({str(packages)!r})\n"
        "from service.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(importlib.util.find_spec('tensorflow') is not None, "
        "[m for m in ('tensorflow', 'keras', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "True []"
