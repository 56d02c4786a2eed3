"""The gate over HTTP: the three protocols, fairness, and servers that hang, lie, redirect or never end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.model.gates.golden import GoldenGate, GoldenSubject, Protocol
from service.model.gates.report import Candidate, Finding, GateReport
from service.model.names import ServiceKey
from service.preflight.golden.gate import GoldenReplay
from tests.contract.golden.servers import Handler, Model, serving
from tests.processes import free_port

OF = Candidate(
    service=ServiceKey(cluster="c", namespace="ml", name="ranker"), version="v2", stable_version="v1", artifact=""
)
PREDICT = [
    {"id": f"p-{i}", "path": "/v1/models/ranker:predict", "body": {"instances": [i / 4, 1.5]}} for i in range(30)
]
FORMS: dict[str, list[dict[str, Any]]] = {
    "predict": PREDICT,
    "classify": [
        {"id": f"c-{i}", "path": "/v1/models/ranker:classify", "body": {"examples": [{"x": i / 4}]}} for i in range(30)
    ],
    "regress": [
        {"id": f"g-{i}", "path": "/v1/models/ranker:regress", "body": {"examples": [{"x": i / 4}]}} for i in range(30)
    ],
    "infer": [
        {"id": f"i-{i}", "path": "/v2/models/ranker/infer", "body": {
            "inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [i / 4, 1.5]}]}}
        for i in range(30)
    ],
    "plain": [
        {"id": f"h-{i}", **({"path": f"/score?x={i / 4}"} if i % 2 else {"path": "/score", "body": {"x": i / 4}})}
        for i in range(30)
    ],
}  # fmt: skip
PATIENT = {"timeout_s": 5.0, "ready_within_s": 5.0, "within_s": 60.0}


class Rig:
    """A folder of requests, and two models on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stable, self.canary = Model(), Model()

    async def look(self, lines: list[dict[str, Any]], rule: GoldenGate | None = None, **subject: Any) -> GateReport:
        (self.folder / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        given = {"requests": "golden.jsonl", "stable_url": self.stable.url, "canary_url": self.canary.url}
        about = GoldenSubject.model_validate({**given, **PATIENT, **subject})
        return await GoldenReplay(self.folder).look(rule or GoldenGate(), about, OF)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    async with serving(made.stable, made.canary):
        yield made


@pytest.mark.parametrize("form", FORMS)
async def test_the_same_model_passes_in_every_form(rig: Rig, form: str) -> None:
    report = await rig.look(FORMS[form])
    assert report.finding is Finding.PASSED, report
    assert report.facts["difference rate"] == "0 of 30 (at most 9.5 %)"
    assert report.facts["cold start"] == "was ready when first asked"
    assert {"first request", "later requests, median"} <= report.facts.keys()


@pytest.mark.parametrize("form", FORMS)
async def test_another_model_fails_in_every_form_with_the_rate_and_the_largest_difference(rig: Rig, form: str) -> None:
    rig.canary.scale = 1.01
    report = await rig.look(FORMS[form])
    assert report.finding is Finding.FAILED, report
    # x = 0 is scaled to 0; the batches of predict and infer hold another value beside it.
    expected = 30 if form in ("predict", "infer") else 29
    assert report.facts["difference rate"].startswith(f"{expected} of 30 ")
    assert "-29 (7.25 -> 7.3225" in report.facts["largest difference"]


async def test_each_side_gets_every_request_twice_and_one_more_first_in_an_order_that_favours_neither(rig: Rig) -> None:
    order: list[str] = []

    def noting(side: str, model: Model) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            order.append(side)
            return await model._predict(request)

        return handler

    rig.stable.odd[-1] = noting("s", rig.stable)
    rig.canary.odd[-1] = noting("c", rig.canary)
    await rig.look(PREDICT[:4], concurrency=1)
    assert "".join(order) == "sc" + "sccs" + "cssc" + "sccs" + "cssc"
    assert rig.stable.asked[0][1] == rig.canary.asked[0][1] == b'{"instances":[0.0,1.5]}'
    sent = rig.stable.asked[0][2]
    assert (sent["Accept-Encoding"], sent["Connection"], sent["Content-Type"]) == (
        "identity",
        "close",
        "application/json",
    )


async def test_no_connection_is_used_twice_so_that_none_is_found_closed(rig: Rig) -> None:
    ports: list[int] = []

    async def noting(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ports.append(request.transport.get_extra_info("peername")[1])
        return await rig.canary._predict(request)

    rig.canary.odd[-1] = noting
    await rig.look(PREDICT)
    assert len(set(ports)) == len(ports) == 61


async def test_recorded_headers_are_sent_and_take_the_place_of_the_usual_ones(rig: Rig) -> None:
    headers = {"X-Tenant": "a", "content-type": "application/vnd.own+json"}
    await rig.look([{**line, "headers": headers} for line in PREDICT[:2]])
    sent = rig.canary.asked[0][2]
    assert {(name.lower(), value) for name, value in sent.items()} >= {(k.lower(), v) for k, v in headers.items()}
    assert [name.lower() for name in sent].count("content-type") == 1


async def test_no_more_requests_are_under_way_than_are_allowed(rig: Rig) -> None:
    await rig.look(PREDICT, concurrency=3)
    assert 1 <= rig.canary.under_way_most <= 3


async def test_a_candidate_that_is_still_loading_is_waited_for_and_the_wait_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.preflight.golden.replay.READY_EVERY_S", 0.01)
    rig.canary.ready_after_n = 3
    report = await rig.look(PREDICT)
    assert report.finding is Finding.PASSED
    assert report.facts["cold start"].endswith("s")
    limited = await rig.look(PREDICT, GoldenGate(max_cold_start_s=1e-9))
    assert limited.finding is Finding.PASSED, "it is ready by now"
    rig.canary.ready_after_n = 3
    assert (await rig.look(PREDICT, GoldenGate(max_cold_start_s=1e-9))).finding is Finding.FAILED


async def test_kserves_status_at_the_path_of_tensorflow_serving_is_understood(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.preflight.golden.replay.READY_EVERY_S", 0.01)
    rig.stable.of_kserve = rig.canary.of_kserve = True
    assert (await rig.look(PREDICT)).finding is Finding.PASSED
    rig.canary.ready_after_n = 10**9
    assert (await rig.look(PREDICT, ready_within_s=0.1)).finding is Finding.COULD_NOT_LOOK


@pytest.mark.parametrize("form", ["predict", "infer"])
async def test_a_candidate_that_never_loads_could_not_be_looked_at(
    rig: Rig, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.preflight.golden.replay.READY_EVERY_S", 0.01)
    rig.canary.ready_after_n = 10**9
    report = await rig.look(FORMS[form], ready_within_s=0.1)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "canary was not ready after" in report.sentence
    assert rig.canary.asked == []


@pytest.mark.parametrize("side", ["stable", "canary"])
async def test_an_address_where_nobody_listens_could_not_be_looked_at(rig: Rig, side: str) -> None:
    report = await rig.look(PREDICT, **{f"{side}_url": f"http://127.0.0.1:{free_port()}"}, ready_within_s=0.0)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert f"{side} was not ready" in report.sentence
    assert report.to_do


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b"[" * 65536)
    except ConnectionError:
        return response


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)
    except ConnectionError:
        return response


async def deep(_: web.Request) -> web.StreamResponse:
    return web.Response(text="[" * 200_000 + "]" * 200_000, content_type="application/json")


async def redirect(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://169.254.169.254/latest/meta-data")


async def packed(request: web.Request) -> web.StreamResponse:
    """A small body that unpacks to a large one."""
    response = web.Response(body=b" " * 50_000_000)
    response.enable_compression(web.ContentCoding.gzip)
    return response


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"predictions": [')
    assert request.transport is not None
    request.transport.close()
    return response


async def page(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>\x1b[31mSign in</html>", content_type="text/html")


async def refused(_: web.Request) -> web.StreamResponse:
    stack = "Graph execution error: Detected at node 'm' defined at (most recent call last):\n  File ...\n" * 20
    error = f"{stack}No OpKernel was registered to support Op 'SegmentMaxV2' used by {{node m}} with these attrs: []"
    return web.json_response({"error": error}, status=400)


async def not_a_number(request: web.Request) -> web.StreamResponse:
    return web.Response(text='{"predictions": [{"scores": [NaN, 1.0, 0.0], "label": 0}]}')


ODD = {
    hang: "no whole answer within 2 s",
    endless: "answers with more than 4,194,304 bytes",
    dripping: "no whole answer within 2 s",
    deep: "an answer that is nested too deeply",
    redirect: "answers 302; redirects are not followed",
    packed: "answers compressed",
    cut: "no answer: ",
    page: "an answer that is no JSON",
    refused: "answers 400: No OpKernel was registered to support Op 'SegmentMaxV2'",
}


@pytest.mark.parametrize("handler", ODD, ids=lambda handler: handler.__name__)
async def test_a_candidate_that_is_odd_once_fails_and_the_report_says_how(rig: Rig, handler: Handler) -> None:
    rig.canary.odd[7] = handler
    report = await rig.look(PREDICT, timeout_s=2.0)
    assert report.finding is Finding.FAILED
    assert "error in 1 of 30" in report.sentence
    assert ODD[handler] in report.lines[0]
    assert "\x1b" not in report.to_json()
    assert len(rig.canary.asked) == 61, "nothing is tried again"


@pytest.mark.parametrize("handler", ODD, ids=lambda handler: handler.__name__)
async def test_a_stable_version_that_is_always_odd_is_no_pass_and_costs_bounded_time(
    rig: Rig, handler: Handler
) -> None:
    rig.stable.odd[-1] = handler
    began = asyncio.get_running_loop().time()
    report = await rig.look(PREDICT, timeout_s=0.5, first_timeout_s=0.5, max_answer_bytes=65536, within_s=20.0)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert asyncio.get_running_loop().time() - began < 25.0


async def test_nan_on_the_candidate_alone_fails(rig: Rig) -> None:
    lines = [{"id": f"p-{i}", "path": "/v1/models/ranker:predict", "body": {"instances": [2.0]}} for i in range(30)]
    rig.canary.odd[7] = not_a_number
    report = await rig.look(lines, GoldenGate(max_difference_rate=0.5))
    assert report.finding is Finding.FAILED
    assert "NaN or infinity in 1 of 30; 'scores' of p-" in report.sentence


async def test_a_candidate_that_stops_answering_is_left_alone_after_a_few_calls(rig: Rig) -> None:
    rig.canary.odd = dict.fromkeys(range(9, 500), hang)
    lines = [{**PREDICT[0], "id": f"r-{i}"} for i in range(200)]
    report = await rig.look(lines, timeout_s=0.5, concurrency=1)
    assert report.finding is Finding.FAILED
    assert "no whole answer within 0.5 s" in report.sentence
    assert len(rig.canary.asked) < 20
    assert "not replayed" in report.facts["not compared"]


async def test_all_of_it_has_an_end(rig: Rig) -> None:
    rig.stable.odd = dict.fromkeys(range(1, 500), dripping)
    report = await rig.look(PREDICT, timeout_s=30.0, within_s=0.5)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "Replayed 0 of 30" in report.sentence
    assert "the 0.5 s for all of it were over" in report.sentence


async def test_a_look_can_be_cancelled_at_any_time(rig: Rig) -> None:
    rig.stable.odd = dict.fromkeys(range(5, 500), hang)
    task = asyncio.create_task(rig.look(PREDICT))
    while len(rig.stable.asked) < 6:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_missing_file_could_not_be_looked_at_and_is_named_without_its_folder(rig: Rig) -> None:
    report = await rig.look(PREDICT, requests="missing.jsonl")
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "cannot read the golden requests missing.jsonl" in report.sentence
    assert str(rig.folder) not in report.sentence


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("requests", "../secrets.jsonl"),
        ("requests", "/etc/passwd"),
        ("requests", "a/.hidden"),
        ("stable_url", "file:///etc/passwd"),
        ("stable_url", "http://user:password@host"),
        ("canary_url", "http://host/?x=1"),
        ("canary_url", "http://s:8501/prefix/"),
        ("canary_url", "http://host/../x y"),
        ("canary_url", "http://m-${canary_version}.ml:8501"),
        ("canary_url", "http://m-$stable_version/prefix"),
    ],
)
def test_a_target_names_a_file_below_the_folder_and_plain_addresses(key: str, wrong: str) -> None:
    good = {"requests": "a/b.jsonl", "stable_url": "http://s:8501/prefix", "canary_url": "https://[::1]:8501"}
    assert GoldenSubject.model_validate(good).protocol is None
    for url in ("http://${service}-canary.${namespace}.svc", "http://host/${canary_version}", "http://my_version:80"):
        assert GoldenSubject.model_validate({**good, "canary_url": url}).canary_url == url
    assert GoldenSubject.model_validate({**good, "protocol": "kserve-v2"}).protocol is Protocol.KSERVE_V2
    with pytest.raises(ValueError, match=key):
        GoldenSubject.model_validate({**good, key: wrong})
