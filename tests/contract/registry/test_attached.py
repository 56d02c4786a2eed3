"""Reports that are attached to images, from the registry to the gate's answer: on a registry of our own that wants a
login, and on a real one with the referrers API."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from service.model.gates.report import Candidate, Finding, GateReport
from service.model.gates.security import ReportPlace, SecurityGate, SecuritySubject
from service.model.names import ServiceKey
from service.preflight.image.credentials import Credentials
from service.preflight.outside import Allowed, Outside
from service.preflight.registries import RegistryImages
from service.preflight.security.gate import SecurityLook
from service.preflight.security.sources import ReportSources
from service.preflight.security.workload import Workload
from service.ring.ports import Refused
from tests.contract.registry.serving import OCI_MANIFEST, TOKEN, LoopbackRegistry, Pusher, served
from tests.real.parts.registry import PASSWORD, USER, GoRegistry, with_referrers
from tests.unit.preflight.security.forms import FOUND, text, trivy_sarif

SARIF = "application/sarif+json"
PLATFORM = "linux/amd64"
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CLEAN = tuple(one for one in FOUND if one.severity == "LOW")


@dataclass
class Place:
    """A registry with what a test needs to fill and to read it."""

    host: str
    push: Pusher
    credentials: Credentials

    @asynccontextmanager
    async def images(self) -> AsyncIterator[RegistryImages]:
        async with Outside(Allowed.listed([f"http://{self.host}"])) as outside:
            yield RegistryImages(outside, lambda: self.credentials)

    async def report(
        self, subject: dict[str, Any], body: bytes, created: str = "", *, layers_n: int = 1, kind: str = SARIF
    ) -> None:
        empty = await self.push.blob("ml/tf", b"{}")
        layer = {"mediaType": kind, **await self.push.blob("ml/tf", body)}
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", **empty},
            "layers": [layer] * layers_n,
            "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
            "annotations": {"org.opencontainers.image.created": created} if created else {},
        }
        await self.push.manifest("ml/tf", "", document)


@pytest.fixture(params=["loopback with tokens", pytest.param("go-containerregistry", marks=pytest.mark.real)])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    if request.param == "go-containerregistry":
        real = GoRegistry(with_referrers())
        try:
            yield Place(real.host, Pusher(real.host), Credentials())
        finally:
            real.stop()
        return
    async with served(LoopbackRegistry("token")) as ours:
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        logins = Credentials.from_docker_config(json.dumps({"auths": {ours.host: {"auth": auth}}}))
        yield Place(ours.host, Pusher(ours.host, f"Bearer {TOKEN}"), logins)


class NoWorkloads:
    """No gate here asks for a Deployment."""

    async def workload(self, namespace: str, deployment: str) -> Workload:
        raise AssertionError


async def gate(place: Place, images: RegistryImages, artifact: str = "") -> GateReport:
    look = SecurityLook(ReportSources(images=images), NoWorkloads(), images=images, now=lambda: NOW)
    subject = SecuritySubject(report=ReportPlace(referrer=SARIF), image=f"{place.host}/ml/tf:2.13.0")
    service = ServiceKey(cluster="c", namespace="ml", name="tf")
    of = Candidate(service=service, version="2.13.0", stable_version=None, artifact=artifact)
    return await look.look(SecurityGate(posture=None), subject, of)


def sarif_of(digest: str, *, clean: bool) -> bytes:
    document = trivy_sarif(CLEAN if clean else FOUND)
    document["runs"][0]["properties"] |= {"repoDigests": [f"x/tf@{digest}"], "imageID": ""}
    return text(document)


async def test_what_is_known_of_an_image_are_its_digests_and_its_user(place: Place) -> None:
    image = await place.push.image("ml/tf", "", config={"User": "1000:1000"})
    index = await place.push.index("ml/tf", "2.13.0", image)
    async with place.images() as images:
        known = await images.known(f"{place.host}/ml/tf:2.13.0", PLATFORM)
    assert known.user == "1000:1000"
    assert known.digests > {image["digest"], index["digest"]}
    assert len(known.digests) == 3


@pytest.mark.parametrize("to_index", [False, True])
async def test_the_newest_report_attached_to_the_image_or_its_index_is_judged(place: Place, to_index: bool) -> None:
    image = await place.push.image("ml/tf", "")
    index = await place.push.index("ml/tf", "2.13.0", image)
    subject = index if to_index else image
    digest = subject["digest"]
    async with place.images() as images:
        assert (await gate(place, images)).finding is Finding.COULD_NOT_LOOK
        await place.report(subject, sarif_of(digest, clean=False), "2026-11-25T00:00:00Z")
        await place.report(subject, b"{}", "2026-11-26T00:00:00Z", kind="application/other")
        report = await gate(place, images, f"{place.host}/ml/tf@{index['digest']}")
        assert (report.finding, report.facts["critical"]) == (Finding.FAILED, "1 (limit 0)")
        await place.report(subject, sarif_of(digest, clean=True), "2026-11-26T00:00:00Z")
        await place.report(subject, sarif_of(digest, clean=False), "2026-11-24T00:00:00Z")
        report = await gate(place, images)
        assert report.finding is Finding.PASSED
        assert "the report is of this image" in report.sentence


async def test_a_report_of_another_image_and_an_old_one_are_no_pass(place: Place) -> None:
    image = await place.push.image("ml/tf", "2.13.0")
    async with place.images() as images:
        await place.report(image, sarif_of("sha256:" + "e" * 64, clean=True), "2026-11-25T00:00:00Z")
        assert "The report is of image eeeeeeeeeeee" in (await gate(place, images)).sentence
    other = await place.push.image("ml/tf", "2.13.0", config={"User": "2"})
    async with place.images() as images:
        await place.report(other, sarif_of(other["digest"], clean=True), "2026-11-01T00:00:00Z")
        report = await gate(place, images)
        assert (report.finding, "longer ago than 7 d" in report.sentence) == (Finding.COULD_NOT_LOOK, True)


async def test_an_artifact_that_is_no_single_report_or_too_large_is_refused(place: Place) -> None:
    image = await place.push.image("ml/tf", "2.13.0")
    reference = f"{place.host}/ml/tf:2.13.0"
    async with place.images() as images:
        with pytest.raises(Refused, match="nothing of type"):
            await images.attached(reference, PLATFORM, SARIF, limit_bytes=100)
        await place.report(image, b"{}", layers_n=2)
        with pytest.raises(Refused, match="holds 2 contents"):
            await images.attached(reference, PLATFORM, SARIF, limit_bytes=100)
        await place.report(image, b"{" + b" " * 200 + b"}", "2026-11-26T00:00:00Z")
        with pytest.raises(Refused, match="at most 100 are read"):
            await images.attached(reference, PLATFORM, SARIF, limit_bytes=100)
        with pytest.raises(Refused, match="is no repository"):
            await images.attached("UPPER case", PLATFORM, SARIF, limit_bytes=100)
