"""Golden requests on real TensorFlow: one model on several versions, two builds, changed numerics, NaN, cold start."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.model.gates.golden import GoldenGate, GoldenSubject, Tolerance
from service.model.gates.report import Candidate, Finding, GateReport
from service.model.names import ServiceKey
from service.preflight.golden.gate import GoldenReplay
from tests.real.parts.serving import NAME, HttpServer, ModelServer, running
from tests.real.parts.tensorflow import run_in

pytestmark = pytest.mark.real

OF = Candidate(
    service=ServiceKey(cluster="c", namespace="ml", name=NAME), version="2.13.0", stable_version="2.12.0", artifact=""
)
REQUESTS_N = 200
FEATURES = 32

# A classifier of 32 features and 10 classes with fixed weights. What a release may do to it is its third argument.
BUILD = """
import sys
import numpy as np
import tensorflow as tf

folder, change = sys.argv[1:]
drawn = np.random.default_rng(20261126)
w1 = drawn.normal(size=(32, 64)).astype(np.float32) / np.float32(5.65)
w2 = drawn.normal(size=(64, 10)).astype(np.float32) / 8
if change == "one-weight":
    w1[3, 7] *= 1.05
if change == "float16":
    w1, w2 = w1.astype(np.float16).astype(np.float32), w2.astype(np.float16).astype(np.float32)


class Model(tf.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = tf.Variable(w1), tf.Variable(w2)

    @tf.function(input_signature=[tf.TensorSpec([None, 32], tf.float32, name="x")])
    def serve(self, x):
        logits = tf.nn.relu(x @ self.w1) @ self.w2
        if change == "no-kernel":
            # Registered since 2.13 and without a kernel for CPUs: it loads, and the first request fails.
            n = tf.shape(logits)[0]
            logits = tf.raw_ops.SegmentMaxV2(data=logits, segment_ids=tf.range(n), num_segments=n)
        if change == "half-softmax":
            # As a careless port to half precision does it: exp overflows beyond 11.
            halves = tf.exp(tf.cast(logits, tf.float16))
            scores = tf.cast(halves / tf.reduce_sum(halves, axis=-1, keepdims=True), tf.float32)
        else:
            scores = tf.nn.softmax(logits)
        return {"scores": scores, "label": tf.argmax(logits, axis=-1)}


model = Model()
tf.saved_model.save(model, folder, signatures={"serving_default": model.serve})
"""


def built(folder: Path, version: str, change: str = "none") -> Path:
    """A folder that a model server serves, written by a TensorFlow of its own."""
    done = run_in(version, BUILD, str(folder / "1"), change)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model that the tests serve, by what was changed in it."""
    folder = tmp_path_factory.mktemp("models")
    changes = ("none", "one-weight", "float16", "half-softmax")
    made = {change: built(folder / change, "2.12", change) for change in changes}
    made["no-kernel"] = built(folder / "no-kernel", "2.13", "no-kernel")
    return {**made, "again": built(folder / "again", "2.12")}


@pytest.fixture(scope="module")
def stable(models: dict[str, Path]) -> Iterator[ModelServer]:
    """TensorFlow 2.12.0 with the model as it is."""
    with running(ModelServer("2.12", models["none"])) as (server,):
        yield server.wait()


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """200 requests, rows and columns; every fortieth has far larger inputs."""
    drawn = random.Random(7)
    with (tmp_path / "golden.jsonl").open("w") as file:
        for i in range(REQUESTS_N):
            size = 40.0 if i % 40 == 39 else 1.0
            rows = [[round(drawn.gauss(0, size), 4) for _ in range(FEATURES)] for _ in range(1 + i % 3)]
            body: dict[str, Any] = {"inputs": rows} if i % 5 == 4 else {"instances": rows}
            file.write(json.dumps({"id": f"r-{i}", "path": f"/v1/models/{NAME}:predict", "body": body}) + "\n")
    return tmp_path


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as made:
        yield made


async def look(recorded: Path, stable: HttpServer, canary: HttpServer, **rule: Any) -> GateReport:
    subject = GoldenSubject(
        requests="golden.jsonl", stable_url=stable.url, canary_url=canary.url, concurrency=2, timeout_s=60.0
    )
    report = await GoldenReplay(recorded).look(GoldenGate(**rule), subject, OF)
    print(f"\n{report.finding.value}: {report.sentence}")
    for name, value in report.facts.items():
        print(f"  {name}: {value}")
    for line in report.lines:
        print(f"  - {line}")
    return report


async def test_the_same_model_on_2_12_and_2_13_does_not_differ_beyond_the_tolerance(
    recorded: Path, models: dict[str, Path], stable: ModelServer
) -> None:
    # The candidate computes with oneDNN, as its wheels do where nobody says otherwise; stable does not.
    candidate = ModelServer("2.13", models["none"], environment={"TF_ENABLE_ONEDNN_OPTS": "1"})
    with running(candidate):
        report = await look(recorded, stable, candidate)
    assert report.finding is Finding.PASSED
    assert report.facts["difference rate"] == f"0 of {REQUESTS_N} (at most 1.5 %)"
    # It was started a moment before the look, so the look saw all of its cold start.
    assert report.facts["cold start"].endswith(" s")
    assert "stable" in report.facts["first request"]


async def test_the_same_model_on_2_12_and_the_newest_does_not_differ_beyond_the_tolerance(
    recorded: Path, models: dict[str, Path], stable: ModelServer
) -> None:
    candidate = ModelServer("newest", models["none"])
    with running(candidate):
        report = await look(recorded, stable, candidate)
    assert report.finding is Finding.PASSED


async def test_two_builds_of_one_version_do_not_differ(
    recorded: Path, models: dict[str, Path], stable: ModelServer
) -> None:
    candidate = ModelServer("2.12", models["again"])
    with running(candidate):
        report = await look(recorded, stable, candidate, tolerances=(Tolerance(output="*", absolute=0, relative=0),))
    assert report.finding is Finding.PASSED
    assert report.facts["largest difference"] == "none"


@pytest.mark.parametrize("change", ["one-weight", "float16"])
async def test_changed_numerics_are_caught_with_the_rate(
    recorded: Path, models: dict[str, Path], stable: ModelServer, change: str
) -> None:
    candidate = ModelServer("2.13", models[change])
    with running(candidate):
        report = await look(recorded, stable, candidate)
        winners = (Tolerance(output="scores", top_k=1, ranking_only=True), Tolerance(output="label", ignored=True))
        by_winner = await look(recorded, stable, candidate, tolerances=winners, max_difference_rate=0.05)
    assert report.finding is Finding.FAILED
    differing_n = int(report.facts["difference rate"].split()[0])
    assert differing_n > REQUESTS_N / 2
    assert "'scores'" in report.facts["largest difference"]
    # Who only needs the winner says so, and the same candidate passes.
    assert by_winner.finding is Finding.PASSED
    assert "order of classes kept" in by_winner.facts


async def test_nan_is_caught_however_rare(recorded: Path, models: dict[str, Path], stable: ModelServer) -> None:
    candidate = ModelServer("2.13", models["half-softmax"])
    with running(candidate):
        wide = (Tolerance(output="*", absolute=0.02),)
        report = await look(recorded, stable, candidate, tolerances=wide, max_difference_rate=0.5)
    assert report.finding is Finding.FAILED
    assert f"NaN or infinity in {REQUESTS_N // 40} of {REQUESTS_N}" in report.sentence


async def test_an_operator_without_a_kernel_is_caught_by_its_name(
    recorded: Path, models: dict[str, Path], stable: ModelServer
) -> None:
    candidate = ModelServer("2.13", models["no-kernel"])
    with running(candidate):
        report = await look(recorded, stable, candidate)
    assert report.finding is Finding.FAILED
    assert f"error in {REQUESTS_N} of {REQUESTS_N}" in report.sentence
    assert "No OpKernel was registered to support Op 'SegmentMaxV2'" in report.sentence


async def test_the_stand_in_speaks_as_tensorflow_serving_does(
    session: aiohttp.ClientSession, stable: ModelServer
) -> None:
    async def asked(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with session.request(method, f"{stable.url}{path}", json=body) as response:
            return response.status, json.loads(await response.text())

    at = f"/v1/models/{NAME}"
    row = [0.5] * FEATURES
    status, given = await asked("GET", at)
    assert (status, given["model_version_status"][0]["state"]) == (200, "AVAILABLE")
    status, given = await asked("GET", f"{at}/metadata")
    inputs = given["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]
    assert inputs["x"]["dtype"] == "DT_FLOAT"
    assert [one["size"] for one in inputs["x"]["tensor_shape"]["dim"]] == ["-1", "32"]
    status, by_row = await asked("POST", f"{at}:predict", {"instances": [row, row]})
    status, by_column = await asked("POST", f"{at}/versions/1:predict", {"inputs": {"x": [row, row]}})
    assert by_row["predictions"][1]["scores"] == by_column["outputs"]["scores"][0]
    assert by_row["predictions"][0]["label"] == by_column["outputs"]["label"][0]
    for path, body, expected, words in (
        ("/v1/models/half:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(half)"),
        (f"{at}/versions/9:predict", {"instances": [1]}, 404, f"Servable not found for request: Specific({NAME}, 9)"),
        (f"{at}:predict", {"rows": []}, 400, "Missing 'inputs' or 'instances' key"),
        (f"{at}:predict", {"signature_name": "x", "instances": [row]}, 400, 'Serving signature name: "x" not found'),
        (f"{at}:predict", {"instances": ["a"]}, 400, "is not of expected type: float"),
        ("/v1/foo", {}, 400, "Malformed request: POST /v1/foo"),
    ):
        status, given = await asked("POST", path, body)
        assert (status, words in given["error"]) == (expected, True), given
    async with session.get(f"{stable.url}/monitoring/prometheus/metrics") as response:
        page = (await response.text()).splitlines()
    assert any(
        line.startswith(f':tensorflow:serving:request_count{{model_name="{NAME}",status="OK"}} ') for line in page
    )
    labels = f'model_name="{NAME}",API="predict",entrypoint="REST"'
    assert any(line.startswith(f':tensorflow:serving:request_latency_bucket{{{labels},le="10"}} ') for line in page)
    assert any(line.startswith(f":tensorflow:serving:request_latency_count{{{labels}}} ") for line in page)


async def test_a_model_that_cannot_be_loaded_is_never_ready(
    recorded: Path, models: dict[str, Path], stable: ModelServer, tmp_path: Path
) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"\x08\x01\x12")
    candidate = ModelServer("2.13", tmp_path / "broken")
    with running(candidate):
        assert await asyncio.to_thread(candidate.ended) == 1
        subject = GoldenSubject(
            requests="golden.jsonl", stable_url=stable.url, canary_url=candidate.url, ready_within_s=0.0
        )
        report = await GoldenReplay(recorded).look(GoldenGate(), subject, OF)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "canary was not ready" in report.sentence
    assert "Failed to start server" in candidate.log
