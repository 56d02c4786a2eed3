"""The gate as a whole: every kind of model, every way of asking, and that what cannot be seen is never a pass."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.model.gates.model import Device, ModelGate, ModelSubject, RuntimeJob
from service.model.gates.report import Candidate, Finding, GateReport
from service.model.names import ServiceKey
from service.preflight.saved_model import gate
from service.preflight.saved_model.check import Runtime
from service.preflight.saved_model.gate import ModelPreflight, by_dump, inspect
from service.ring.ports import Unavailable
from tests.unit.preflight.saved_model.test_check import attr, op, runtime
from tests.unit.preflight.saved_model.test_job import ANSWER, FakeJobs, said
from tests.unit.preflight.saved_model.test_kinds import archive
from tests.unit.preflight.saved_model.writing import (
    FLOAT,
    STRING,
    dtype,
    dtypes,
    func,
    function,
    meta_graph,
    msg,
    node,
    saved_model,
    signature,
    simple,
    strings,
    tensor_info,
    write_checkpoint,
    write_model,
)

OF = Candidate(
    service=ServiceKey(cluster="c", namespace="ml", name="tf"), version="2", stable_version="1", artifact="image"
)
ONES = struct.pack("<12f", *[1.0] * 12)
KINDS = attr("list(type)", default=["list", []])
HAS = runtime(
    {
        "Relu": op(T=attr(allowed=["float"])),
        "Placeholder": op(dtype=attr(), shape=attr("shape", default=["shape", None])),
        "PartitionedCall": op(Tin=KINDS, Tout=KINDS, f=attr("func")),
        "RestoreV2": op(dtypes=KINDS),
        "Const": op(dtype=attr(), value=attr("tensor")),
    }
)


def dump(folder: Path, has: Runtime = HAS, **versions: str) -> Path:
    path = folder / "runtime.json"
    path.write_text(json.dumps(has | {"versions": has["versions"] | versions}))
    return path


async def look(tmp_path: Path, rule: ModelGate | None = None, **subject: Any) -> GateReport:
    if not {"python", "job", "dump"} & subject.keys():
        dump(tmp_path)
        subject["dump"] = "runtime.json"
    looking = ModelPreflight(models=tmp_path, jobs=subject.pop("jobs", None))
    return await looking.look(rule or ModelGate(), ModelSubject(**subject), OF)


def restoring(*names: str) -> bytes:
    """A model that restores these tensors as float."""
    nodes = [
        node("names", "Const", attrs={"dtype": dtype(STRING), "value": strings(*names)}, field=3),
        node("it", "RestoreV2", "p", "names:output:0", "s", attrs={"dtypes": dtypes(*[FLOAT] * len(names))}, field=3),
    ]
    call = {"Tin": dtypes(STRING), "Tout": dtypes(STRING), "f": func("load")}
    return saved_model(
        meta_graph(
            node("restore", "PartitionedCall", attrs=call),
            functions=[function("load", *nodes)],
            more=msg(3, msg(3, "restore")),
        )
    )


async def test_a_model_that_fits_passes_and_says_what_was_compared(tmp_path: Path):
    write_model(tmp_path / "m" / "7", simple())
    report = await look(tmp_path, path="m/7")
    assert report.finding is Finding.PASSED
    assert report.sentence == "TensorFlow 2.13.0 has every op and kernel that the model uses"
    assert report.lines == ("signatures were not compared: no stable model is named",)
    assert report.facts["written by"] == "TensorFlow 2.13.0"
    assert report.facts["ops"] == "3 in 3 different uses"
    assert report.facts["signatures"] == "serving_default"


async def test_an_op_that_the_runtime_lacks_fails_with_its_name_and_what_to_do(tmp_path: Path):
    write_model(tmp_path / "m", simple("SegmentMaxV2"))
    report = await look(tmp_path, path="m")
    assert report.finding is Finding.FAILED
    assert report.sentence == "TensorFlow 2.13.0: op SegmentMaxV2 is not registered (it in serve)"
    assert "SegmentMaxV2" in report.to_do


async def test_a_gpu_that_the_runtime_was_not_built_for_is_no_pass(tmp_path: Path):
    write_model(tmp_path / "m", simple())
    report = await look(tmp_path, ModelGate(device=Device.GPU), path="m")
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "built without GPUs" in report.sentence


async def test_what_is_wrong_goes_before_what_could_not_be_seen(tmp_path: Path):
    write_model(tmp_path / "m", simple("Gone"))
    report = await look(tmp_path, ModelGate(device=Device.GPU), path="m")
    assert report.finding is Finding.FAILED
    assert "Gone" in report.sentence
    assert report.sentence.endswith("; and 1 more")
    assert "built without GPUs" in report.lines[0]


async def test_a_signature_that_stable_has_and_the_candidate_lacks_fails(tmp_path: Path):
    write_model(tmp_path / "old", simple())
    renamed = [signature("score", {"x": tensor_info("x:0", FLOAT, -1, 4)}, {"y": tensor_info("call:0")})]
    write_model(tmp_path / "new", simple(signatures=renamed))
    report = await look(tmp_path, path="new", stable_path="old")
    assert report.finding is Finding.FAILED
    assert report.sentence == "signature 'serving_default' is gone; the candidate has: score"
    assert (await look(tmp_path, ModelGate(signatures=False), path="new", stable_path="old")).finding is Finding.PASSED
    assert (await look(tmp_path, path="old", stable_path="old")).finding is Finding.PASSED


async def test_a_stable_model_that_cannot_be_read_is_no_pass(tmp_path: Path):
    write_model(tmp_path / "new", simple())
    report = await look(tmp_path, path="new", stable_path="gone")
    assert report.finding is Finding.COULD_NOT_LOOK
    assert report.sentence.startswith(
        "reading the stable model's signatures failed: gone/saved_model.pb cannot be opened"
    )


async def test_a_graph_without_the_tags_that_are_served_fails(tmp_path: Path):
    write_model(tmp_path / "m", simple(tags=["train"]))
    report = await look(tmp_path, path="m")
    assert report.finding is Finding.FAILED
    assert report.sentence == "m has no graph with the tags {serve}; it has: {train}"
    assert (await look(tmp_path, path="m", tags=("train",))).finding is Finding.PASSED


async def test_a_tf1_hub_module_is_said_to_be_one(tmp_path: Path):
    write_model(tmp_path / "hub", simple(tags=[]))
    (tmp_path / "hub" / "tfhub_module.pb").write_bytes(b"")
    report = await look(tmp_path, path="hub")
    assert report.finding is Finding.FAILED
    assert report.facts["model"] == "TF1 Hub module"
    assert report.lines[0].startswith("a TF1 Hub module: hub.load takes it")


async def test_variables_of_another_type_missing_ones_and_damaged_ones_fail(tmp_path: Path):
    prefix = tmp_path / "m" / "variables" / "variables"
    write_model(tmp_path / "m", restoring("w"))
    assert "is not there" in (await look(tmp_path, path="m")).sentence
    write_checkpoint(prefix, {"w": (FLOAT, (4, 3), ONES)})
    assert (await look(tmp_path, path="m")).finding is Finding.PASSED
    write_checkpoint(prefix, {"w": (2, (2, 3), ONES)})
    assert "as float, the checkpoint holds double" in (await look(tmp_path, path="m")).sentence
    write_checkpoint(prefix, {"w": (FLOAT, (4, 3), ONES)})
    (prefix.parent / "variables.data-00000-of-00001").write_bytes(ONES[:-1] + b"\1")
    damaged = await look(tmp_path, path="m")
    assert damaged.finding is Finding.FAILED
    assert "checksum" in damaged.sentence
    unseen = await look(tmp_path, ModelGate(data=False), path="m")
    assert unseen.finding is Finding.PASSED
    assert "checksums of the variables' data were not looked at (data: false)" in unseen.lines
    assert not any("checksums" in line for line in damaged.lines)
    (prefix.parent / "variables.data-00000-of-00001").write_bytes(ONES[:-1])
    cut_off = await look(tmp_path, path="m")
    assert cut_off.finding is Finding.FAILED
    assert not any("the checkpoint holds" in line for line in cut_off.lines)
    (prefix.parent / "variables.index").write_bytes(b"cut off")
    assert (await look(tmp_path, path="m")).finding is Finding.COULD_NOT_LOOK


async def test_a_bare_checkpoint_is_held_against_stables_and_alone_is_no_pass(tmp_path: Path):
    write_checkpoint(tmp_path / "old" / "ckpt-1", {"w": (FLOAT, (4, 3), ONES)})
    write_checkpoint(tmp_path / "new" / "ckpt-2", {"w": (FLOAT, (3, 4), ONES)})
    alone = await look(tmp_path, path="new/ckpt-2")
    assert alone.finding is Finding.COULD_NOT_LOOK
    assert "is whole, and nothing says" in alone.sentence
    other = await look(tmp_path, path="new/ckpt-2", stable_path="old/ckpt-1")
    assert other.finding is Finding.FAILED
    assert other.sentence == "w is float[3, 4] instead of float[4, 3]"
    same = await look(tmp_path, path="old/ckpt-1", stable_path="old/ckpt-1")
    assert same.finding is Finding.PASSED


@pytest.mark.parametrize(
    ("wrote", "has", "finding"),
    [
        ("3.15.1", "3.15.1", Finding.PASSED),
        ("3.4.0", "3.15.1", Finding.PASSED),
        ("3.15.1", "3.4.0", Finding.COULD_NOT_LOOK),
        ("3.15.1", "2.13.1", Finding.FAILED),
        ("2.13.1", "3.15.1", Finding.COULD_NOT_LOOK),
        ("2.13.1", "", Finding.COULD_NOT_LOOK),
        ("x", "3.15.1", Finding.COULD_NOT_LOOK),
    ],
)
async def test_a_keras_file_is_said_to_be_supported_or_not(tmp_path: Path, wrote: str, has: str, finding: Finding):
    archive(tmp_path / "m.keras", version=wrote)
    dump(tmp_path, **({"Keras": has} if has else {}))
    report = await look(tmp_path, path="m.keras", dump="runtime.json")
    assert report.finding is finding
    assert wrote in report.sentence or not has


async def test_a_keras_file_with_classes_that_keras_does_not_have_is_no_pass(tmp_path: Path):
    layer = {"module": "shop.layers", "class_name": "Crossed", "registered_name": "shop>Crossed", "config": {}}
    archive(tmp_path / "m.keras", config={"class_name": "Sequential", "config": {"layers": [layer]}})
    dump(tmp_path, HAS, Keras="3.15.1")
    report = await look(tmp_path, path="m.keras", dump="runtime.json")
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "shop.layers.Crossed" in report.sentence


async def test_a_keras_file_with_code_of_its_own_fails(tmp_path: Path):
    archive(tmp_path / "m.keras", config={"class_name": "Lambda", "config": {"name": "twice"}})
    dump(tmp_path, Keras="3.15.1")
    report = await look(tmp_path, path="m.keras", dump="runtime.json")
    assert report.finding is Finding.FAILED
    assert "(twice)" in report.sentence


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 8, "HDF5"),
        ("m.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite model: this gate does not read it, and TensorFlow Serving"),
        ("m/saved_model.cpb", b"", "in chunks (saved_model.cpb), which this gate does not read"),
        ("m/saved_model.pbtxt", b"", "as text"),
        ("m/1", b"", "folder of versions"),
        ("m/readme", b"", "holds no saved_model.pb"),
        ("m/saved_model.pb", b"\xff" * 30, "reading the candidate's model failed"),
    ],
)
async def test_what_is_not_read_is_no_pass_and_says_what_to_do(tmp_path: Path, name: str, content: bytes, words: str):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    report = await look(tmp_path, path=name.split("/")[0])
    assert report.finding is Finding.COULD_NOT_LOOK
    assert words in report.sentence
    assert report.to_do


async def test_a_model_or_a_runtime_that_is_not_there_is_no_pass(tmp_path: Path):
    assert (await look(tmp_path, path="gone")).finding is Finding.COULD_NOT_LOOK
    write_model(tmp_path / "m", simple())
    for subject in ({"python": "/nowhere/python"}, {"dump": "gone.json"}):
        report = await look(tmp_path, path="m", **subject)
        assert report.finding is Finding.COULD_NOT_LOOK
        assert report.to_do


async def test_a_job_is_asked_and_what_it_finds_decides(tmp_path: Path):
    write_model(tmp_path / "m", simple("Gone"))
    found = {"code": "op_unknown", "op": "Gone", "attr": "", "seen": "", "wanted": "", "where": "it in serve"}
    job = RuntimeJob(image="tensorflow:2", namespace="serinus")
    bad = FakeJobs(said(json.dumps(ANSWER | {"found": [found], "found_n": 3})))
    report = await look(tmp_path, path="m", job=job, jobs=bad)
    assert report.finding is Finding.FAILED
    assert report.sentence == "TensorFlow 2.13.0: op Gone is not registered (it in serve)"
    assert "and 2 findings that the answer had no room for" in report.lines
    good = FakeJobs(said(json.dumps(ANSWER)))
    assert (await look(tmp_path, path="m", job=job, jobs=good)).finding is Finding.PASSED


async def test_a_job_that_counts_findings_and_names_none_that_fails_is_no_pass(tmp_path: Path):
    write_model(tmp_path / "m", simple("Gone"))
    job = RuntimeJob(image="tensorflow:2", namespace="serinus")
    report = await look(tmp_path, path="m", job=job, jobs=FakeJobs(said(json.dumps(ANSWER | {"found_n": 3}))))
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "3 findings" in report.sentence


async def test_a_cluster_that_is_away_or_not_set_is_no_pass(tmp_path: Path):
    class Away(FakeJobs):
        async def create(self, namespace: str, manifest: Any) -> None:
            raise Unavailable("the API server does not answer")

    write_model(tmp_path / "m", simple())
    job = RuntimeJob(image="tensorflow:2", namespace="serinus")
    away = await look(tmp_path, path="m", job=job, jobs=Away(said("")))
    assert away.finding is Finding.COULD_NOT_LOOK
    assert "the API server does not answer" in away.sentence
    assert (await look(tmp_path, path="m", job=job)).finding is Finding.COULD_NOT_LOOK


async def test_reading_that_takes_too_long_is_no_pass_and_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = threading.Event()

    def slow(*arguments: Any) -> None:
        arguments[-1].wait(60)
        seen.set()

    monkeypatch.setattr(gate, "_read", slow)
    report = await inspect(
        ModelGate(), tmp_path / "m", stable=None, ask=by_dump(tmp_path / "none", device="CPU"), within_s=0.05
    )
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "took longer than 0.05 s" in report.sentence
    assert seen.wait(10)


async def test_names_from_the_model_cannot_break_out_of_the_report(tmp_path: Path):
    write_model(tmp_path / "m", simple("\x1b[31mGone\n" + "x" * 200))
    report = await look(tmp_path, path="m")
    assert "\x1b" not in report.model_dump_json()
    assert "\n" not in report.sentence
    many = [function("f", *(node(f"n{n}", f"Gone{n}", field=3) for n in range(200)))]
    write_model(tmp_path / "many", simple(functions=many))
    report = await look(tmp_path, path="many")
    assert len(report.lines) == 40
    assert report.lines[-1].startswith("and ")


@pytest.mark.parametrize("path", ["../m", "/etc", "a/../b", ".hidden", "a//b", "a\n"])
def test_a_path_that_leads_out_of_the_folder_of_models_is_no_subject(path: str):
    with pytest.raises(ValidationError):
        ModelSubject(path=path, python="/usr/bin/python3")


def test_exactly_one_way_of_asking_is_named():
    for ways in ({}, {"python": "/p", "dump": "d"}):
        with pytest.raises(ValidationError, match="exactly one of python, dump, job"):
            ModelSubject(path="m", **ways)


def test_a_version_from_an_event_cannot_name_the_registry_of_a_jobs_image():
    with pytest.raises(ValidationError, match="must not be part of a registry's host"):
        RuntimeJob(image="r${canary_version}.example/tensorflow", namespace="n")
    assert RuntimeJob(image="tensorflow:${canary_version}", namespace="n").image


def test_reading_and_asking_together_must_end_before_a_look_is_cut_off():
    job = RuntimeJob(image="tensorflow:2", namespace="n", within_s=540)
    with pytest.raises(ValidationError, match="together at most 590 s"):
        ModelSubject(path="m", job=job)
    assert ModelSubject(path="m", job=job, within_s=20)
    with pytest.raises(ValidationError, match="together at most 590 s"):
        ModelSubject(path="m", python="/p", python_within_s=400)
    assert ModelSubject(path="m", dump="d", within_s=540)
