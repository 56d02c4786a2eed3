"""Golden requests on the real servers of the v2 protocol: KServe's and Triton."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.model.gates.golden import GoldenGate, GoldenSubject, Tolerance
from service.model.gates.report import Finding
from service.preflight.golden.gate import GoldenReplay
from tests.real.parts.kserve import KServeServer
from tests.real.parts.serving import NAME, running
from tests.real.parts.triton import TritonServer
from tests.real.test_golden import OF, look

pytestmark = pytest.mark.real

KINDS = {"kserve": KServeServer, "triton": TritonServer}
REQUESTS_N = 80
LARGE_EVERY = 20
"""Every so many requests one has far larger features, by which a half-precision softmax overflows."""
EXACT = (Tolerance(output="*", absolute=0, relative=0),)

Server = KServeServer | TritonServer


@pytest.fixture(scope="module", params=KINDS)
def stable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the model as it is."""
    with running(KINDS[request.param](tmp_path_factory.mktemp("stable"))) as (server,):
        yield server.wait()


def record(folder: Path, version: str = "v2") -> Path:
    """Requests of one to three rows, in either protocol."""
    drawn = random.Random(11)
    with (folder / "golden.jsonl").open("w") as file:
        for i in range(REQUESTS_N):
            size = 20.0 if i % LARGE_EVERY == LARGE_EVERY - 1 else 1.0
            rows = [[round(size * drawn.uniform(1, 2), 4) for _ in range(4)] for _ in range(1 + i % 3)]
            path, body = f"/v1/models/{NAME}:predict", {"instances": rows}
            if version == "v2":
                path, body = f"/v2/models/{NAME}/infer", {"inputs": [tensor(rows)]}
            file.write(json.dumps({"id": f"r-{i}", "path": path, "body": body}) + "\n")
    return folder


def tensor(rows: list[list[float]]) -> Any:
    """In the v2 protocol."""
    data = [x for row in rows for x in row]
    return {"name": "x", "shape": [len(rows), 4], "datatype": "FP32", "data": data}


async def test_the_same_model_on_two_servers_does_not_differ(stable: Server, tmp_path: Path) -> None:
    with running(type(stable)(tmp_path)) as (candidate,):
        report = await look(record(tmp_path), stable, candidate, tolerances=EXACT)
    assert report.finding is Finding.PASSED
    assert report.facts["difference rate"].startswith(f"0 of {REQUESTS_N} ")
    assert report.facts["largest difference"] == "none"
    # It was started a moment before the look, so the look saw all of its cold start.
    assert report.facts["cold start"].endswith(" s")


async def test_changed_numerics_are_caught_with_the_rate(stable: Server, tmp_path: Path) -> None:
    with running(type(stable)(tmp_path, "one-weight")) as (candidate,):
        report = await look(record(tmp_path), stable, candidate)
    assert report.finding is Finding.FAILED
    assert int(report.facts["difference rate"].split()[0]) > REQUESTS_N / 2
    assert "'scores'" in report.facts["largest difference"]


async def test_nan_is_caught_in_the_form_that_the_server_gives_it(stable: Server, tmp_path: Path) -> None:
    """KServe writes null, Triton NaN."""
    with running(type(stable)(tmp_path, "half-softmax")) as (candidate,):
        wide = (Tolerance(output="*", absolute=0.02),)
        report = await look(record(tmp_path), stable, candidate, tolerances=wide, max_difference_rate=0.5)
    assert report.finding is Finding.FAILED
    assert f"NaN or infinity in {REQUESTS_N // LARGE_EVERY} of {REQUESTS_N}" in report.sentence


async def test_a_changed_type_is_caught_though_no_value_changed(stable: Server, tmp_path: Path) -> None:
    with running(type(stable)(tmp_path, "int32-label")) as (candidate,):
        report = await look(record(tmp_path), stable, candidate)
    assert report.finding is Finding.FAILED
    assert "INT64" in report.sentence
    assert "INT32" in report.sentence


async def test_what_a_server_says_of_a_failure_is_in_the_report(stable: Server, tmp_path: Path) -> None:
    with running(type(stable)(tmp_path, "raises")) as (candidate,):
        report = await look(record(tmp_path), stable, candidate)
    assert report.finding is Finding.FAILED
    assert f"error in {REQUESTS_N} of {REQUESTS_N}" in report.sentence
    assert "No OpKernel was registered to support Op 'SegmentMaxV2'" in report.sentence


async def test_kserve_is_ready_for_requests_of_its_v1_protocol(tmp_path: Path) -> None:
    """Its path is TensorFlow Serving's; what it says of a model is not."""
    versions = KServeServer(tmp_path), KServeServer(tmp_path), KServeServer(tmp_path, "one-weight")
    with running(*versions) as (server, again, changed):
        await asyncio.to_thread(server.wait)
        same = await look(record(tmp_path, "v1"), server, again, tolerances=EXACT)
        other = await look(tmp_path, server, changed)
    assert same.finding is Finding.PASSED
    assert other.finding is Finding.FAILED
    assert "'scores'" in other.facts["largest difference"]


async def test_a_model_that_is_not_there_is_not_ready(stable: Server, tmp_path: Path) -> None:
    asked = {"path": "/v2/models/other/infer", "body": {"inputs": [tensor([[1.0, 1.0, 1.0, 1.0]])]}}
    (tmp_path / "golden.jsonl").write_text(json.dumps(asked) + "\n")
    canary_url = stable.url.replace("127.0.0.1", "localhost")
    subject = GoldenSubject(requests="golden.jsonl", stable_url=stable.url, canary_url=canary_url, ready_within_s=0.0)
    report = await GoldenReplay(tmp_path).look(GoldenGate(), subject, OF)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "was not ready after" in report.sentence
    assert {KServeServer: "does not exist", TritonServer: "not ready"}[type(stable)] in report.sentence
