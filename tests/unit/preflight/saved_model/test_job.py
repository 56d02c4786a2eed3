"""The Job: what it asks for, what it may do, and what becomes of whatever it answers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.model.gates.model import RuntimeJob
from service.preflight.saved_model.check import Needs, Runtime, check
from service.preflight.saved_model.job import MESSAGE_BYTES, Ended, Standing, asked_in_job, manifest, source
from service.preflight.saved_model.runtime import NoAnswer
from tests.unit.preflight.saved_model.test_check import RELU, kernel, needs, runtime, use

OF = RuntimeJob(image="registry.example/tensorflow:2.13.0", namespace="serinus")
ANSWER = {"format": 1, "versions": {"TensorFlow": "2.13.0"}, "found_n": 0, "found": []}

UNHEARD_OF = {"code": "fine", "op": "", "attr": "", "seen": "", "wanted": "", "where": ""}


class FakeJobs:
    """Jobs that stand as they are told, one after the other."""

    def __init__(self, *standings: Standing) -> None:
        self.standings = list(standings)
        self.created: list[tuple[str, Mapping[str, Any]]] = []
        self.deleted: list[str] = []

    async def create(self, namespace: str, manifest: Mapping[str, Any]) -> None:
        self.created.append((namespace, manifest))

    async def standing(self, namespace: str, name: str) -> Standing:
        return self.standings.pop(0) if len(self.standings) > 1 else self.standings[0]

    async def delete(self, namespace: str, name: str) -> None:
        self.deleted.append(name)


async def no_sleep(_: float) -> None:
    pass


def said(message: str, exit_code: int = 0, reason: str = "Completed") -> Standing:
    return Standing(Ended(exit_code, reason, message), failed=bool(exit_code), waiting="")


WAITING = Standing(None, failed=False, waiting="ImagePullBackOff")


async def ask(jobs: FakeJobs, wanted: Needs | None = None) -> Any:
    return await asked_in_job(jobs, wanted or needs(use("Relu")), OF, device="CPU", sleep=no_sleep)


def pod_of(job: Mapping[str, Any]) -> Any:
    return job["spec"]["template"]["spec"]


def test_the_job_may_do_nothing_but_compute():
    job = manifest(needs(use("Relu")), OF, device="CPU")
    pod = pod_of(job)
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    assert container["resources"]["limits"]["memory"] == "2Gi"
    assert job["spec"]["activeDeadlineSeconds"] == OF.within_s
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    assert job["spec"]["backoffLimit"] == 0
    assert [one["mountPath"] for one in container["volumeMounts"]] == ["/tmp"]


def test_the_same_question_has_the_same_name_and_another_one_has_another():
    def name(wanted: Needs, of: RuntimeJob = OF, device: str = "CPU") -> str:
        return str(manifest(wanted, of, device=device)["metadata"]["name"])

    first = name(needs(use("Relu")))
    assert first == name(needs(use("Relu")))
    others = [
        str(manifest(needs(use("Relu")), OF, device="CPU", whose="c/ml/tf 2")["metadata"]["name"]),
        name(needs(use("Relu6"))),
        name(needs(use("Relu")), device="GPU"),
        name(needs(use("Relu")), OF.model_copy(update={"image": "other"})),
    ]
    assert len({first, *others}) == 5


def test_more_needs_than_a_variable_holds_are_told_and_not_cut():
    import random

    letters = random.Random(3)
    uses = [use("".join(letters.choices("abcdefghijklmnop", k=200))) for _ in range(1200)]
    with pytest.raises(NoAnswer, match="1,200 different ways"):
        manifest(needs(*uses), OF, device="CPU")


def answered_inside(wanted: Needs, has: Runtime, path: Path) -> Any:
    """What the text that is sent writes when a real interpreter runs it, with a stand-in for what TensorFlow has
    registered."""
    asked = {"device": "CPU", "imports": [], "path": str(path), "limit_bytes": MESSAGE_BYTES - 96}
    script = source(asked).replace("\nimport base64", f"\ndescribe = lambda imports: {has!r}\nimport base64", 1)
    packed = next(
        one["value"]
        for one in pod_of(manifest(wanted, OF, device="CPU"))["containers"][0]["env"]
        if one["name"] == "SERINUS_NEEDS"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True, env={"SERINUS_NEEDS": packed}, timeout=60)
    assert path.stat().st_size <= MESSAGE_BYTES
    return json.loads(path.read_text())


def test_what_the_job_runs_gives_the_answer_that_is_given_here(tmp_path: Path):
    wanted = needs(use("Relu", T=["type", "int16"]), *(use(f"Gone{n}") for n in range(200)))
    has = runtime({"Relu": RELU}, {"Relu": [kernel()]})
    answer = answered_inside(wanted, has, tmp_path / "message")
    here = check(wanted, has, "CPU")
    assert answer["found_n"] == len(here) == 201
    assert 10 < len(answer["found"]) < 201
    assert answer["found"] == here[: len(answer["found"])]


def test_a_finding_too_long_for_the_message_is_cut_and_not_left_out(tmp_path: Path):
    """An op's name and a node's may be of signs that JSON writes in twelve bytes each."""
    gone = use("\N{DROMEDARY CAMEL}" * 64)
    gone["where"] = "\N{DROMEDARY CAMEL}" * 300
    answer = answered_inside(needs(gone), runtime({"Relu": RELU}), tmp_path / "message")
    (found,) = answer["found"]
    assert found["code"] == "op_unknown"
    assert found["op"].startswith("\N{DROMEDARY CAMEL}")


async def test_the_answer_is_taken_from_the_termination_message_and_the_job_taken_away():
    jobs = FakeJobs(WAITING, WAITING, said(json.dumps(ANSWER)))
    assert await ask(jobs) == ANSWER
    ((namespace, job),) = jobs.created
    assert namespace == "serinus"
    assert jobs.deleted == [job["metadata"]["name"]]


@pytest.mark.parametrize(
    ("standing", "what"),
    [
        (WAITING, r"did not run to its end within 300 s \(ImagePullBackOff\)"),
        (Standing(None, failed=True, waiting=""), "did not run to its end"),
        (said("Traceback\nModuleNotFoundError: No module named 'tensorflow'", 1, "Error"), r"ended with 1 \(Error\)"),
        (said("", 137, "OOMKilled"), r"ended with 137 \(OOMKilled\): it said nothing"),
        (said("hello"), "answered in another form"),
        (said(json.dumps(ANSWER | {"format": 9})), "another format"),
        (said(json.dumps(ANSWER | {"found": [UNHEARD_OF]})), "another format"),
    ],
)  # fmt: skip
async def test_a_job_that_gives_no_answer_is_told_and_taken_away(standing: Standing, what: str):
    jobs = FakeJobs(standing)
    with pytest.raises(NoAnswer, match=what) as told:
        await ask(jobs)
    assert told.value.to_do
    assert len(jobs.deleted) == 1


async def test_an_api_server_that_is_slow_does_not_make_the_look_longer_than_it_may(monkeypatch: pytest.MonkeyPatch):
    class Slow(FakeJobs):
        async def standing(self, namespace: str, name: str) -> Standing:
            await asyncio.Event().wait()
            raise AssertionError("never")

    monkeypatch.setattr(RuntimeJob, "longest_s", 0.05)
    jobs = Slow(WAITING)
    with pytest.raises(NoAnswer, match="did not run to its end"):
        await ask(jobs)
    assert len(jobs.deleted) == 1
