"""Clair v4's vulnerability report (``clairctl report --out json``, or the matcher's HTTP API).

After Clair's JSON schemas, httptransport/types/v1/vulnerability_report.schema.json and those that it names. Tables of
packages and vulnerabilities refer to each other by ids of the document, and stand there in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from service.model.gates.security import Severity
from service.preflight.security.picking import Entries, Fields, Items, Malformed, Shape, Text
from service.preflight.security.reports import MAX_FOUND_N, Found, Nothing, Report, digests_of, once, severity_of, short

_ID = Text(numbers=True)


@dataclass(frozen=True, slots=True)
class _Vulnerability:
    name: str
    severity: Severity
    fixed: str


class ClairReader:
    """See ``reading.Reader``."""

    name = "Clair"

    def __init__(self) -> None:
        self._packages: dict[str, tuple[str, str]] = {}
        self._layers: dict[str, str] = {}
        self._vulnerabilities: dict[str, _Vulnerability] = {}
        self._pairs: list[tuple[str, str]] = []
        self._listed: set[str] = set()
        """Packages whose list of vulnerabilities was read."""
        package = Fields({"name": Text(), "version": Text()})
        vulnerability = Fields(
            {"name": Text(), "severity": Text(40), "normalized_severity": Text(20), "fixed_in_version": Text()}
        )
        environments = Items(Fields({"introduced_in": Text(200), "package_db": Text()}))
        self.members: dict[str, Shape] = {
            "manifest_hash": Text(200),
            "packages": Entries(package, self._package),
            "environments": Entries(environments, self._environment),
            "vulnerabilities": Entries(vulnerability, self._vulnerability),
            "package_vulnerabilities": Entries(Items(_ID, limit_n=MAX_FOUND_N), self._package_vulnerabilities),
        }

    def report(self, root: dict[str, Any]) -> Report:
        """See ``reading.Reader``."""
        if not self._packages:
            raise Nothing("Clair found no packages in the image, so nothing was compared with what is known")
        found: dict[tuple[str, ...], Found] = {}
        for package, vulnerability in self._pairs:
            known, there = self._vulnerabilities.get(vulnerability), self._packages.get(package)
            if known is None or there is None:
                what = f"vulnerability {vulnerability[:40]!r}" if known is None else f"package {package[:40]!r}"
                raise Malformed(f"package_vulnerabilities names {what}, which is not in the report")
            one = Found(known.name, known.severity, *there, known.fixed, self._layers.get(package, ""))
            key = (one.id, one.package, one.installed, one.where)
            # Several updaters may tell of one vulnerability; the graver word counts, and any fix.
            found[key] = one if key not in found else _together(found[key], one)
        return Report(
            scanner="Clair",
            found=once(found.values()),
            digests=digests_of(root.get("manifest_hash")),
            names=(),
        )

    def _package(self, key: str, one: dict[str, Any]) -> None:
        self._new(key, self._packages, "packages")
        self._packages[key] = (one.get("name", ""), one.get("version", ""))

    def _environment(self, key: str, listed: list[dict[str, Any]] | None) -> None:
        self._new(key, self._layers, "environments")
        layers = [one["introduced_in"] for one in listed or () if one.get("introduced_in")]
        self._layers[key] = f"layer {short(layers[0])}" if layers else ""

    def _vulnerability(self, key: str, one: dict[str, Any]) -> None:
        self._new(key, self._vulnerabilities, "vulnerabilities")
        word = one.get("normalized_severity") or one.get("severity")
        self._vulnerabilities[key] = _Vulnerability(
            one.get("name") or "(no id)", severity_of(word), _fixed(one.get("fixed_in_version", ""))
        )

    def _package_vulnerabilities(self, key: str, listed: list[str] | None) -> None:
        if key in self._listed:
            raise Malformed(f"package_vulnerabilities names package {key[:40]!r} twice")
        self._listed.add(key)
        self._pairs += ((key, one) for one in listed or ())
        if len(self._pairs) > MAX_FOUND_N:
            raise Malformed(f"more than {MAX_FOUND_N} findings")

    @staticmethod
    def _new(key: str, table: dict[str, Any], name: str) -> None:
        if key in table:
            raise Malformed(f"{name} has {key[:40]!r} twice")
        if len(table) >= MAX_FOUND_N:
            raise Malformed(f"{name} has more than {MAX_FOUND_N} entries")


def _fixed(text: str) -> str:
    """The version that mends it. Of language packages Clair writes the whole range as a query, with a fix or without:
    ``fixed=70.0.0&introduced=0``, ``introduced=2.2.0&lastAffected=3.0.1``."""
    if not text.startswith(("fixed=", "introduced=", "lastAffected=")):
        return text
    return dict(parse_qsl(text)).get("fixed", "")


def _together(one: Found, other: Found) -> Found:
    graver = min(one, other, key=lambda found: list(Severity).index(found.severity))
    return Found(one.id, graver.severity, one.package, one.installed, one.fixed or other.fixed, one.where)
