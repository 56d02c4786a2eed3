"""Reports that Trivy itself printed, of many distributions and languages, beside another reading of the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.preflight.security.picking import Malformed
from service.preflight.security.reading import ReportReader
from service.preflight.security.reports import Kind, Nothing, Report
from tests.real.parts.building import trivy_reports

pytestmark = [pytest.mark.real]


def read(file: Path) -> Report:
    reader = ReportReader()
    reader.feed(file.read_bytes())
    return reader.close()


def told(report: Report) -> set[tuple[str, ...]]:
    return {
        (one.id, one.severity.value.upper(), one.package, one.installed, one.fixed)
        for one in report.found
        if one.kind is Kind.VULNERABILITY
    }


def walked(document: Any) -> Iterator[tuple[str, ...]]:
    for result in document.get("Results") or ():
        for one in result.get("Vulnerabilities") or ():
            names = ("VulnerabilityID", "Severity", "PkgName", "InstalledVersion")
            yield (*(one[name] for name in names), one.get("FixedVersion", ""))


def test_every_report_of_packages_is_read_to_its_last_vulnerability() -> None:
    reports_n = findings_n = 0
    for file in sorted(trivy_reports().rglob("*.json.golden")):
        document = json.loads(file.read_bytes())
        if not isinstance(document, dict) or document.get("SchemaVersion") != 2:
            continue
        classes = {result.get("Class") for result in document.get("Results") or ()}
        if not classes & {"os-pkgs", "lang-pkgs"}:
            with pytest.raises(Nothing):
                read(file)
            continue
        found = list(walked(document))
        report = read(file)
        assert told(report) == set(found), file.name
        assert len([one for one in report.found if one.kind is Kind.VULNERABILITY]) == len(found), file.name
        reports_n, findings_n = reports_n + 1, findings_n + len(found)
    print(f"{reports_n} reports, {findings_n} vulnerabilities")
    assert reports_n > 50
    assert findings_n > 100


def test_sarif_and_json_of_one_scan_say_the_same() -> None:
    folder = trivy_reports()
    by_sarif, by_json = (read(folder / f"alpine-310.{form}.golden") for form in ("sarif", "json"))
    assert told(by_sarif) == told(by_json)
    assert len(by_sarif.found) == 4
    assert by_sarif.config_digest == by_json.config_digest != ""
    assert by_sarif.names == by_json.names


def test_sboms_are_told_from_reports() -> None:
    sboms = [
        file
        for file in trivy_reports().rglob("*.golden")
        if file.read_bytes()[:400].lstrip().startswith(b"{") and b'"bomFormat"' in file.read_bytes()[:400]
    ]
    assert len(sboms) > 3
    for file in sboms:
        with pytest.raises(Malformed, match="an SBOM"):
            read(file)
