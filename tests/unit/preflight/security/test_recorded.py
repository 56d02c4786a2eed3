"""The gate on reports that Trivy's own binary wrote; ``recorded/README.md`` says how."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from service.model.gates.report import Candidate, Finding, GateReport
from service.model.gates.security import ReportPlace, SecurityGate, SecuritySubject, Severity
from service.model.names import ServiceKey
from service.preflight.security.gate import SecurityLook
from service.preflight.security.reading import ReportReader
from service.preflight.security.reports import Kind, Report
from service.preflight.security.sources import ReportSources
from service.preflight.security.workload import Workload
from tests.unit.preflight.security.recorded.image import image

RECORDED = Path(__file__).parent / "recorded"
SCANS = ("image.json", "image.sarif")
IMAGE = "registry.example/ml/ranker:2.12.0"
OF = Candidate(
    service=ServiceKey(cluster="default", namespace="ml", name="ranker"),
    version="2.12.0",
    stable_version="2.11.0",
    artifact="",
)
WHERE = SecuritySubject(report=ReportPlace(file="scan"), image=IMAGE)
FOUND = {
    ("CVE-2023-45853", "critical", "zlib1g", ""),
    ("CVE-2024-3660", "critical", "keras", "2.13.1rc0"),
    ("CVE-2023-4911", "high", "libc6", "2.36-9+deb12u3"),
    ("CVE-2024-2961", "high", "libc6", "2.36-9+deb12u6"),
    ("CVE-2023-33976", "high", "tensorflow", "2.12.1"),
    ("CVE-2024-6345", "high", "setuptools", "70.0.0"),
}


def read(name: str) -> Report:
    reader = ReportReader()
    reader.feed((RECORDED / name).read_bytes())
    return reader.close()


class NoCluster:
    """Nobody asks."""

    async def workload(self, namespace: str, deployment: str) -> Workload:
        raise AssertionError(f"{namespace}/{deployment} was asked for")


async def look(name: str, folder: Path, **rule: object) -> GateReport:
    """What the gate says of a recorded report at the moment when it was written."""
    written = read("image.json").created
    assert written is not None
    shutil.copy(RECORDED / name, folder / "scan")
    os.utime(folder / "scan", (written.timestamp(), written.timestamp()))
    gate = SecurityLook(ReportSources(folder=folder), NoCluster(), now=lambda: written)
    asked = SecurityGate.model_validate({"posture": None, "secrets": None, **rule})
    return await gate.look(asked, WHERE, OF)


@pytest.mark.parametrize("name", SCANS)
def test_findings_severities_and_fixes_are_those_of_the_scan(name: str) -> None:
    report = read(name)
    found = [one for one in report.found if one.kind is Kind.VULNERABILITY]
    assert {(one.id, one.severity.value, one.package, one.fixed) for one in found} == FOUND
    assert len(found) == len(FOUND)
    assert all(one.installed and one.where for one in found)
    (secret,) = (one for one in report.found if one.kind is Kind.SECRET)
    assert (secret.id, secret.severity) == ("private-key", Severity.HIGH)
    assert "app/deploy.pem" in secret.where


def test_the_report_is_known_as_the_images_by_its_configuration_and_its_tag() -> None:
    """Of an archive Trivy knows no digest of a manifest, and calls the file first."""
    for report in map(read, SCANS):
        assert report.config_digest == "sha256:" + json.loads(members(image())["manifest.json"])[0]["Config"][:64]
        assert report.names == ("image.tar", IMAGE)
        assert report.digests == frozenset()
        assert report.scanner == "Trivy 0.74.0"
    assert read("image.json").image_user == "1000:1000"
    assert read("image.json").suppressed_n == 1


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SCANS)
async def test_the_gate_counts_by_severity_and_fixability(name: str, tmp_path: Path) -> None:
    report = await look(name, tmp_path)
    assert report.finding is Finding.FAILED
    assert report.sentence == "2 critical (limit 0); 4 high with a fix (limit 0)."
    counted = {"critical": "2 (limit 0)", "critical, fixable": "1", "high": "4", "high, fixable": "4 (limit 0)"}
    assert counted.items() <= report.facts.items()
    assert report.lines[0].startswith("critical: CVE-2024-3660 in keras 2.12.0 (fixed in 2.13.1rc0)")
    assert report.lines[1].startswith("critical: CVE-2023-45853 in zlib1g 1:1.2.13.dfsg-1 (no fix)")
    only_mendable = await look(name, tmp_path, limits={"critical": {"fixable": 0}})
    assert only_mendable.sentence == "1 critical with a fix (limit 0)."
    secrets = await look(name, tmp_path, limits={}, secrets=0)
    assert secrets.sentence == "1 secret in the image (limit 0)."


@pytest.mark.parametrize("name", SCANS)
async def test_what_the_policy_allows_is_let_through_until_its_last_day(name: str, tmp_path: Path) -> None:
    allowed = [
        {"id": "CVE-2023-45853", "reason": "MiniZip is not built", "until": "2026-12-31"},
        {"id": "CVE-2024-3660", "package": "keras", "reason": "no models of others", "until": "2026-12-31"},
    ]
    limits = {"critical": {"total": 0}}
    report = await look(name, tmp_path, limits=limits, allow=allowed)
    assert report.finding is Finding.PASSED
    assert f"the report is of {IMAGE} and names no digest to compare" in report.sentence
    elsewhere = [allowed[0], {**allowed[1], "package": "tensorflow"}]
    assert (await look(name, tmp_path, limits=limits, allow=elsewhere)).finding is Finding.FAILED
    over = [allowed[0], {**allowed[1], "until": "2026-11-25"}]
    assert (await look(name, tmp_path, limits=limits, allow=over)).finding is Finding.FAILED


async def test_a_scan_of_a_lock_file_is_no_evidence_of_the_image(tmp_path: Path) -> None:
    """What it finds counts all the same."""
    found = await look("requirements.json", tmp_path)
    assert found.finding is Finding.FAILED
    assert found.sentence == "1 critical (limit 0); 1 high with a fix (limit 0)."
    nothing_asked = await look("requirements.json", tmp_path, limits={"low": {"total": 0}})
    assert nothing_asked.finding is Finding.COULD_NOT_LOOK
    assert "is of the filesystem requirements.txt, where no operating system was looked at" in nothing_asked.sentence
    assert "scan the image itself" in nothing_asked.to_do


async def test_sarif_of_something_that_trivy_calls_no_image_is_no_evidence_either(tmp_path: Path) -> None:
    document = json.loads((RECORDED / "image.sarif").read_bytes())
    run = document["runs"][0]
    del run["properties"]
    limits = {"low": {"total": 0}}

    async def asked() -> GateReport:
        (tmp_path / "changed").write_text(json.dumps(document))
        return await look(str(tmp_path / "changed"), tmp_path, limits=limits)

    # An unpacked image has an operating system.
    assert (await asked()).finding is Finding.PASSED
    system = [at for at, rule in enumerate(run["tool"]["driver"]["rules"]) if rule["name"] == "OsPackageVulnerability"]
    run["tool"]["driver"]["rules"] = run["tool"]["driver"]["rules"][len(system) :]
    run["results"] = run["results"][len(system) :]
    report = await asked()
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "no operating system was looked at" in report.sentence
