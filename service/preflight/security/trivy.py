"""Trivy's JSON (``trivy image --format json``), schema version 2.

After the types in Trivy's pkg/types/report.go, vulnerability.go and finding.go, which are what it prints.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.preflight.security.picking import Fields, Flag, Items, Malformed, Shape, Text
from service.preflight.security.reports import (
    MAX_FOUND_N,
    Found,
    Kind,
    Nothing,
    Report,
    digests_of,
    moment_of,
    once,
    severity_of,
    short,
)

SYSTEM_CLASS = "os-pkgs"
PACKAGE_CLASSES = (SYSTEM_CLASS, "lang-pkgs")
"""Results in which vulnerabilities are looked for."""
IMAGE = "container_image"


class TrivyReader:
    """See ``reading.Reader``."""

    name = "Trivy"

    def __init__(self) -> None:
        self._found: list[Found] = []
        self._pending: list[Found] = []
        """Findings of the result that is being read, whose target may stand behind them."""
        self._packages_n = self._systems_n = 0
        self._suppressed_n = 0
        layer = Fields({"Digest": Text(200), "DiffID": Text(200)})
        vulnerability = Fields(
            {
                "VulnerabilityID": Text(),
                "PkgName": Text(),
                "PkgPath": Text(),
                "InstalledVersion": Text(),
                "FixedVersion": Text(),
                "Severity": Text(20),
                "Layer": layer,
            }
        )
        secret = Fields({"RuleID": Text(), "Severity": Text(20), "Title": Text(), "Layer": layer})
        misconfiguration = Fields({"ID": Text(), "Severity": Text(20), "Status": Text(20)})
        result = Fields(
            {
                "Target": Text(),
                "Class": Text(20),
                "Vulnerabilities": Items(vulnerability, self._vulnerability),
                "Secrets": Items(secret, self._secret),
                "Misconfigurations": Items(misconfiguration, self._misconfiguration),
                "ExperimentalModifiedFindings": Items(Fields({"Type": Text(20)}), self._suppressed),
            }
        )
        metadata = Fields(
            {
                "OS": Fields({"Family": Text(40), "Name": Text(40), "EOSL": Flag()}),
                "ImageID": Text(200),
                "RepoTags": Items(Text(300)),
                "RepoDigests": Items(Text(500)),
                "ImageConfig": Fields({"config": Fields({"User": Text()})}),
            }
        )
        self.members: dict[str, Shape] = {
            "SchemaVersion": Text(20, numbers=True),
            "Trivy": Fields({"Version": Text(40)}),
            "CreatedAt": Text(60),
            "ArtifactName": Text(300),
            "ArtifactType": Text(40),
            "Metadata": metadata,
            "Results": Items(result, self._result),
        }

    def report(self, root: dict[str, Any]) -> Report:
        """See ``reading.Reader``."""
        version = root.get("SchemaVersion")
        if version != "2":
            raise Malformed(f"Trivy's schema version {version or '(none)'}; version 2 is read, from Trivy 0.20 on")
        if not self._packages_n:
            raise Nothing(
                "Trivy looked at no packages (no result of class os-pkgs or lang-pkgs); scan the image with "
                "`--scanners vuln`"
            )
        metadata = root.get("Metadata", {})
        # Nothing in the image's configuration means root; no configuration means that nobody knows.
        config = metadata.get("ImageConfig")
        name = root.get("ArtifactName", "")
        system = metadata.get("OS", {})
        # An unpacked image is a file system, too, and has an operating system as a rule.
        is_part = root.get("ArtifactType", IMAGE) != IMAGE and not self._systems_n
        remarks: tuple[str, ...] = ()
        if system.get("EOSL"):
            remarks = (
                f"{system.get('Family', 'the distribution')} {system.get('Name', '')} gets no security fixes any more, "
                f"so that fewer vulnerabilities are known to be fixable",
            )
        return Report(
            scanner=f"Trivy {root.get('Trivy', {}).get('Version', '')}".strip(),
            found=once(self._found),
            digests=digests_of(name, *metadata.get("RepoDigests", ())),
            config_digest="".join(digests_of(metadata.get("ImageID"))),
            names=tuple(filter(None, (name, *metadata.get("RepoTags", ())))),
            image_user=config.get("config", {}).get("User", "") if config else None,
            created=moment_of(root.get("CreatedAt")),
            part=f"the {root['ArtifactType']} {name}" if is_part else "",
            suppressed_n=self._suppressed_n,
            remarks=remarks,
        )

    def _vulnerability(self, one: dict[str, Any]) -> None:
        self._keep(Kind.VULNERABILITY, one.get("VulnerabilityID"), one)

    def _secret(self, one: dict[str, Any]) -> None:
        self._keep(Kind.SECRET, one.get("RuleID"), one)

    def _misconfiguration(self, one: dict[str, Any]) -> None:
        if one.get("Status", "FAIL") == "FAIL":
            self._keep(Kind.OTHER, one.get("ID"), one)

    def _suppressed(self, _: dict[str, Any]) -> None:
        self._suppressed_n += 1

    def _keep(self, kind: Kind, name: str | None, one: dict[str, Any]) -> None:
        if len(self._found) + len(self._pending) >= MAX_FOUND_N:
            raise Malformed(f"more than {MAX_FOUND_N} findings")
        layer = one.get("Layer", {})
        digest = layer.get("Digest") or layer.get("DiffID")
        self._pending.append(
            Found(
                id=name or "(no id)",
                severity=severity_of(one.get("Severity")),
                package=one.get("PkgName", ""),
                installed=one.get("InstalledVersion", ""),
                fixed=one.get("FixedVersion", ""),
                where=one.get("PkgPath") or (f"layer {short(digest)}" if digest else ""),
                kind=kind,
            )
        )

    def _result(self, result: dict[str, Any]) -> None:
        self._packages_n += result.get("Class") in PACKAGE_CLASSES
        self._systems_n += result.get("Class") == SYSTEM_CLASS
        target = result.get("Target", "")
        # A secret's file is the target; its layer alone would not say where to look.
        self._found += (
            one if one.where and one.kind is Kind.VULNERABILITY else replace(one, where=target or one.where)
            for one in self._pending
        )
        self._pending.clear()
