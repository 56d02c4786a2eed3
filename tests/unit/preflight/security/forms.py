"""One list of findings in the form of each scanner.

Written after what the scanners print: Trivy 0.74 (pkg/types/report.go, pkg/types/vulnerability.go, pkg/report/json.go,
pkg/report/sarif.go), Clair 4 (httptransport/types/v1/*.schema.json), Grype's SARIF presenter, clair-action's template.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

DIGEST = "sha256:" + "a1" * 32
CONFIG = "sha256:" + "b2" * 32
OTHER = "sha256:" + "c3" * 32
LAYER = "sha256:" + "d4" * 32
IMAGE = "ghcr.io/ml/tf:2.13.0"


@dataclass(frozen=True)
class One:
    """A finding, in Trivy's words for the severity."""

    id: str
    severity: str
    package: str
    installed: str
    fixed: str = ""
    language: bool = False


FOUND = (
    One("CVE-2024-3094", "CRITICAL", "xz-utils", "5.6.0-0.2", "5.6.1+really5.4.5-1"),
    One("CVE-2023-4911", "HIGH", "libc6", "2.36-9"),
    One("CVE-2024-6345", "HIGH", "setuptools", "65.5.1", "70.0.0", language=True),
    One("GHSA-4g4c-8gqh-m4vm", "MEDIUM", "ray", "2.2.0", language=True),
    One("CVE-2016-2781", "LOW", "coreutils", "9.1-1"),
    One("CVE-2024-99999", "UNKNOWN", "libc6", "2.36-9"),
)


def trivy(found: tuple[One, ...] = FOUND, **changes: Any) -> dict[str, Any]:
    def vulnerability(one: One) -> dict[str, Any]:
        return {
            "VulnerabilityID": one.id,
            "PkgID": f"{one.package}@{one.installed}",
            "PkgName": one.package,
            **({"PkgPath": f"usr/lib/python3/{one.package}.dist-info/METADATA"} if one.language else {}),
            "PkgIdentifier": {"PURL": f"pkg:deb/debian/{one.package}@{one.installed}", "UID": "5f3c"},
            "InstalledVersion": one.installed,
            **({"FixedVersion": one.fixed} if one.fixed else {}),
            "Status": "fixed" if one.fixed else "affected",
            "Layer": {"Digest": LAYER, "DiffID": LAYER},
            "SeveritySource": "nvd",
            "PrimaryURL": f"https://avd.aquasec.com/nvd/{one.id.lower()}",
            "DataSource": {"ID": "debian", "Name": "Debian Security Tracker", "URL": "https://example.org"},
            "Title": "A title",
            "Description": "Words about Severity: CRITICAL things, and\nPackage: other",
            "Severity": one.severity,
            "CweIDs": ["CWE-506"],
            "VendorSeverity": {"nvd": 4, "redhat": 2},
            "CVSS": {"nvd": {"V3Vector": "CVSS:3.1/AV:N", "V3Score": 10}, "redhat": {"V3Score": 3.1}},
            "References": ["https://example.org/1", "https://example.org/2"],
            "PublishedDate": "2024-03-29T17:15:21.15Z",
            "LastModifiedDate": "2024-11-21T09:28:49.803Z",
        }

    system = [vulnerability(one) for one in found if not one.language]
    language = [vulnerability(one) for one in found if one.language]
    return {
        "SchemaVersion": 2,
        "Trivy": {"Version": "0.74.0"},
        "ReportID": "0198f0a1-0000-7000-8000-000000000000",
        "CreatedAt": "2026-11-25T12:00:00.123456789Z",
        "ArtifactName": IMAGE,
        "ArtifactType": "container_image",
        "Metadata": {
            "Size": 1234567,
            "OS": {"Family": "debian", "Name": "12.5"},
            "ImageID": CONFIG,
            "DiffIDs": [LAYER],
            "RepoTags": [IMAGE],
            "RepoDigests": [f"ghcr.io/ml/tf@{DIGEST}"],
            "ImageConfig": {
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [LAYER]},
                "config": {"Cmd": ["serve"], "Env": ["PATH=/usr/bin"], "User": "1000:1000"},
            },
        },
        "Results": [
            {
                "Target": f"{IMAGE} (debian 12.5)",
                "Class": "os-pkgs",
                "Type": "debian",
                "Packages": [{"Name": "libc6", "Version": "2.36-9", "Licenses": ["GPL-2.0"]}],
                **({"Vulnerabilities": system} if system else {}),
            },
            {
                "Target": "Python",
                "Class": "lang-pkgs",
                "Type": "python-pkg",
                **({"Vulnerabilities": language} if language else {}),
            },
        ],
        **changes,
    }


def _range(one: One) -> str:
    """As claircore's OSV updater encodes it."""
    return f"fixed={one.fixed}&introduced=0" if one.fixed else "introduced=0&lastAffected=3.0.1"


def clair(found: tuple[One, ...] = FOUND, **changes: Any) -> dict[str, Any]:
    words = {"CRITICAL": "Critical", "HIGH": "High", "MEDIUM": "Medium", "LOW": "Low", "UNKNOWN": "Unknown"}
    packages = list(dict.fromkeys((one.package, one.installed) for one in found)) or [("libc6", "2.36-9")]
    ids = {package: str(at) for at, package in enumerate(packages, start=10)}
    affected: dict[str, list[str]] = {}
    for at, one in enumerate(found, start=100):
        affected.setdefault(ids[one.package, one.installed], []).append(str(at))
    return {
        "manifest_hash": DIGEST,
        "packages": {
            key: {
                "id": key,
                "name": name,
                "version": version,
                "kind": "BINARY",
                "source": {"id": "9", "name": f"{name}-source", "version": version, "kind": "SOURCE"},
                "arch": "amd64",
            }
            for (name, version), key in ids.items()
        },
        "distributions": {"1": {"id": "1", "did": "debian", "name": "Debian GNU/Linux", "version": "12 (bookworm)"}},
        "repository": {},
        "environments": {
            key: [{"package_db": "var/lib/dpkg/status", "introduced_in": LAYER, "distribution_id": "1"}]
            for key in ids.values()
        },
        "vulnerabilities": {
            str(at): {
                "id": str(at),
                "updater": "debian/updater",
                "name": one.id,
                "description": "A description",
                "issued": "2024-03-29T00:00:00Z",
                "links": f"https://security-tracker.debian.org/tracker/{one.id}",
                "severity": "unimportant",
                "normalized_severity": words[one.severity],
                "package": {"id": "", "name": one.package, "version": "", "kind": "SOURCE"},
                "distribution": {"id": "1", "did": "debian"},
                "repository": {},
                "fixed_in_version": _range(one) if one.language else one.fixed,
                "arch_op": "equals",
            }
            for at, one in enumerate(found, start=100)
        },
        "package_vulnerabilities": affected,
        "enrichments": {"message/vnd.clair.map.vulnerability; enricher=clair.cvss": [{"100": [{"baseScore": 9.8}]}]},
        **changes,
    }


def sarif(
    results: list[dict[str, Any]], rules: list[dict[str, Any]], /, *, tool: str = "Trivy", **changes: Any
) -> dict[str, Any]:
    run = {
        "tool": {"driver": {"name": tool, "version": "0.74.0", "informationUri": "https://x.org", "rules": rules}},
        "results": results,
        "columnKind": "utf16CodeUnits",
        **changes,
    }
    return {
        "version": "2.1.0",
        "$schema": "https://raw.githubusercontent.com/oasis-tcs/sarif-spec/main/sarif-2.1/schema/sarif-schema-2.1.0.json",
        "runs": [run],
    }


_LEVELS = {"CRITICAL": "error", "HIGH": "error", "MEDIUM": "warning"}


def trivy_sarif(found: tuple[One, ...] = FOUND, **changes: Any) -> dict[str, Any]:
    rules = [
        {
            "id": one.id,
            "name": "LanguageSpecificPackageVulnerability" if one.language else "OsPackageVulnerability",
            "shortDescription": {"text": "A title"},
            "fullDescription": {"text": "A description"},
            "defaultConfiguration": {"level": _LEVELS.get(one.severity, "note")},
            "helpUri": f"https://avd.aquasec.com/nvd/{one.id.lower()}",
            "help": {
                "text": f"Vulnerability {one.id}\nSeverity: {one.severity}\nPackage: {one.package}\n"
                f"Fixed Version: {one.fixed}\nLink: [{one.id}](https://x.org)\nA description",
                "markdown": f"**Vulnerability {one.id}**\n| Severity | Package |\n",
            },
            # The score is NVD's, and need not fit the severity, which is the distribution's.
            "properties": {
                "precision": "very-high",
                "security-severity": "9.8",
                "tags": ["vulnerability", "security", one.severity],
            },
        }
        for one in found
    ]
    results = [
        {
            "ruleId": one.id,
            "ruleIndex": at,
            "level": _LEVELS.get(one.severity, "note"),
            "message": {
                "text": f"Package: {one.package}\nInstalled Version: {one.installed}\nVulnerability {one.id}\n"
                f"Severity: {one.severity}\nFixed Version: {one.fixed}\nLink: [{one.id}](https://x.org)"
            },
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": "ml/tf", "uriBaseId": "ROOTPATH"},
                        "region": {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 1},
                    },
                    "message": {"text": f"ml/tf: {one.package}@{one.installed}"},
                }
            ],
        }
        for at, one in enumerate(found)
    ]
    properties = {
        "imageID": CONFIG,
        "imageName": IMAGE,
        "repoDigests": [f"ghcr.io/ml/tf@{DIGEST}"],
        "repoTags": [IMAGE],
    }
    return sarif(results, rules, properties=properties, **changes)


def grype_sarif(found: tuple[One, ...] = FOUND) -> dict[str, Any]:
    # Grype calls low what it does not know.
    found = tuple(replace(one, severity="LOW") if one.severity == "UNKNOWN" else one for one in found)
    rules = [
        {
            "id": f"{one.id}-{one.package}",
            "name": "DpkgMatcherExactDirectMatch",
            "shortDescription": {"text": f"{one.id} {one.severity.lower()} vulnerability for {one.package} package"},
            "fullDescription": {"text": "A description"},
            "helpUri": "https://github.com/anchore/grype",
            "help": {
                "text": f"Vulnerability {one.id}\nSeverity: {one.severity.lower()}\nPackage: {one.package}\n"
                f"Version: {one.installed}\nFix Version: {one.fixed}\nType: deb\nLocation: /var/lib/dpkg/status\n"
                f"Data Namespace: debian:distro:debian:12\nLink: {one.id}",
                "markdown": "**Vulnerability**",
            },
            "properties": {"security-severity": "5.0", "purls": [f"pkg:deb/debian/{one.package}"]},
        }
        for one in found
    ]
    results = [
        {
            "ruleId": f"{one.id}-{one.package}",
            "message": {
                "text": f"A {one.severity.lower()} vulnerability in deb package: {one.package}, version "
                f"{one.installed} was found in image {IMAGE} at: /var/lib/dpkg/status"
            },
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": "/var/lib/dpkg/status"}}}],
        }
        for one in found
    ]
    return sarif(results, rules, tool="grype")


def clair_action_sarif(found: tuple[One, ...] = FOUND) -> dict[str, Any]:
    results = [
        {
            "ruleId": one.id,
            "ruleIndex": at,
            "level": "error",
            "message": {"text": f'[{one.package} - {one.installed} - {one.severity.title()}] "A description."'},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": "Dockerfile"}}}],
        }
        for at, one in enumerate(found)
    ]
    whole = sarif(results, [], tool="Clair V4")
    del whole["runs"][0]["tool"]["driver"]["rules"]
    return whole


def text(document: Any) -> bytes:
    return json.dumps(document, indent=2).encode()
