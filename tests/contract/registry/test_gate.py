"""The image gate on a registry: what it answers, and that nothing outside makes it raise."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from service.model.gates.image import ImageGate, ImageSubject, Risk
from service.model.gates.report import Candidate, Finding, GateReport
from service.model.names import ServiceKey
from service.preflight.image import gate
from service.preflight.image.credentials import Credentials, Login
from service.preflight.image.gate import ImageLook
from service.preflight.image.identity import Identity, identify
from service.preflight.image.manifest import Image
from service.preflight.image.reference import ImageReference
from service.preflight.outside import Allowed, Outside
from service.ring.ports import Refused
from tests.contract.registry.serving import LoopbackRegistry, Pusher, fails, hang, redirect, sends, served

KEY = ServiceKey(cluster="default", namespace="ml", name="ranker")


def step(version: str) -> str:
    return f"RUN pip install tensorflow=={version}"


@pytest.fixture
async def registry() -> AsyncIterator[LoopbackRegistry]:
    async with served(LoopbackRegistry()) as ours:
        push = Pusher(ours.host)
        await push.image("ml/ranker", "2.3.1", history=(step("2.12.0"),), config={"User": "1000"})
        await push.image(
            "ml/ranker", "2.4.0", history=(step("2.13.0"),), config={"User": "1000"}, layers=(b"base", b"new")
        )
        yield ours


async def look(
    registry: LoopbackRegistry,
    *,
    rule: ImageGate | None = None,
    version: str = "2.4.0",
    artifact: str = "",
    listed: bool = True,
    **subject: Any,
) -> GateReport:
    places = {"canary": f"{registry.host}/ml/ranker:{version}", "stable": f"{registry.host}/ml/ranker:2.3.1"}
    candidate = Candidate(service=KEY, version=version, stable_version="2.3.1", artifact=artifact)
    async with Outside(Allowed.listed([f"http://{registry.host}"] if listed else [])) as outside:
        return await ImageLook(outside).look(rule or ImageGate(), ImageSubject(**{**places, **subject}), candidate)


async def test_both_images_are_read_and_what_changed_is_told(registry: LoopbackRegistry) -> None:
    report = await look(registry)
    assert report.finding is Finding.PASSED
    assert report.facts["TensorFlow"] == "2.12.0 -> 2.13.0"
    assert report.facts["Layers"] == "1 of 2 shared, 0.0 kB new"
    assert report.facts["User"] == "1000"
    assert report.facts["Canary image"] == f"{registry.host}/ml/ranker:2.4.0"
    assert report.facts["Canary digest"].startswith("sha256:")


async def test_a_risk_that_the_policy_forbids_fails_with_what_to_do(registry: LoopbackRegistry) -> None:
    report = await look(registry, rule=ImageGate(fail_on=(Risk.TENSORFLOW_OPS,)))
    assert report.finding is Finding.FAILED
    assert "TensorFlow 2.12.0 -> 2.13.0" in report.sentence
    assert "model gate" in report.to_do


async def test_versions_are_looked_for_in_a_thread(registry: LoopbackRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build steps that are full of versions take a second, in which nothing else of the service would move."""
    seen: set[int] = set()

    def noted(found: Image) -> Identity:
        seen.add(threading.get_ident())
        return identify(found)

    monkeypatch.setattr(gate, "identify", noted)
    assert (await look(registry)).finding is Finding.PASSED
    assert seen
    assert threading.get_ident() not in seen


async def test_an_image_for_another_platform_fails(registry: LoopbackRegistry) -> None:
    report = await look(registry, platform="linux/arm64")
    assert report.finding is Finding.FAILED
    assert "linux/arm64" in report.to_do


async def test_the_events_digest_of_the_same_repository_is_the_one_that_is_read(registry: LoopbackRegistry) -> None:
    pushed = await Pusher(registry.host).image("ml/ranker", "later", history=(step("2.14.0"),))
    report = await look(registry, artifact=f"{registry.host}/ml/ranker@{pushed['digest']}")
    assert report.facts["TensorFlow"] == "2.12.0 -> 2.14.0"


@pytest.mark.parametrize(
    "artifact", ["evil.example/ml/ranker:2.4.0", "http://169.254.169.254/", "pkg:pypi/x@1", "x" * 5000, "\x1b[2J"]
)
async def test_an_event_cannot_choose_another_repository(registry: LoopbackRegistry, artifact: str) -> None:
    report = await look(registry, artifact=artifact)
    assert report.finding is Finding.PASSED
    assert report.facts["TensorFlow"] == "2.12.0 -> 2.13.0"
    assert report.lines[0].startswith("The event names ")
    assert "\x1b" not in report.to_json()


async def test_a_stable_image_that_is_not_known_leaves_the_candidates_facts(registry: LoopbackRegistry) -> None:
    for stable in (f"{registry.host}/ml/ranker:0.0.0", f"{registry.host}/ml/ranker:${{stable_version}}"):
        report = await look(registry, stable=stable)
        assert report.finding is Finding.COULD_NOT_LOOK
        assert report.sentence.startswith("Nothing to compare with, for stable: ")
        assert report.facts["TensorFlow"] == "2.13.0"


async def test_a_candidate_that_is_not_there_could_not_be_looked_at(registry: LoopbackRegistry) -> None:
    report = await look(registry, version="9.9.9")
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "does not exist" in report.sentence
    assert report.to_do


async def test_a_registry_that_nobody_listed_could_not_be_looked_at(registry: LoopbackRegistry) -> None:
    report = await look(registry, listed=False)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "allowed hosts" in report.sentence


async def test_a_registry_that_hangs_is_left_in_time_and_the_tag_is_still_told(registry: LoopbackRegistry) -> None:
    await Pusher(registry.host).image("ml/ranker", "1-tf2.13.0")
    registry.faults["/manifests/1-tf2.13.0"] = hang
    report = await look(registry, rule=ImageGate(within_s=0.3), version="1-tf2.13.0")
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "within 0.3 s" in report.sentence
    assert report.facts["TensorFlow"] == "2.13.0"


@pytest.mark.parametrize("path", ["/manifests/2.4.0", "/manifests/2.3.1"])
@pytest.mark.parametrize(
    "fault",
    [
        redirect("http://169.254.169.254/latest/"),
        redirect("http://[::bad"),
        redirect("\\\\"),
        sends(b"["),
        sends(b"x" * 5_000_000),
        sends(b"\x1f\x8b", Content_Encoding="gzip"),
        fails(401, WWW_Authenticate="Bearer realm=\"http://10.0.0.1/\""),
        fails(401),
        fails(404),
        fails(429),
        fails(500),
        fails(302),
        fails(204),
    ],
    ids=range(13),
)  # fmt: skip
async def test_nothing_that_a_registry_does_passes_or_raises(registry: LoopbackRegistry, fault: Any, path: str) -> None:
    registry.faults[path] = fault
    report = await look(registry)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert report.sentence
    assert report.to_do


@pytest.mark.parametrize("canary", ["$x", "${unknown}/a", "r.example/A:1", "ranker:2.4.0:", "a//b"])
async def test_a_template_that_makes_no_reference_is_said_to_be_so(registry: LoopbackRegistry, canary: str) -> None:
    report = await look(registry, canary=canary)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "image reference" in report.sentence


async def test_logins_are_read_at_every_look_and_may_be_mended_meanwhile() -> None:
    async with served(LoopbackRegistry("basic")) as ours, Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        await Pusher(ours.host, ours.basic).image("a", "1")
        reads = 0

        def logins() -> Credentials:
            nonlocal reads
            reads += 1
            if reads == 1:
                raise Refused("the file of registry logins is not there")
            return Credentials({ours.host: Login("anna", SecretStr("word"))})

        image = ImageLook(outside, logins)
        reference = ImageReference.parse(f"{ours.host}/a:1")
        first = await image.alone(reference, "linux/amd64", within_s=10)
        second = await image.alone(reference, "linux/amd64", within_s=10)
    assert first.finding is Finding.COULD_NOT_LOOK
    assert "is not there" in first.sentence
    assert second.finding is Finding.PASSED
