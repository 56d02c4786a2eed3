"""Reads a scan report of any of the three forms, in pieces and in bounded memory.

The form is told by content: the names of the members at the top of the three have nothing in common.
"""

from __future__ import annotations

from typing import Any, Protocol

from service.preflight.report import readable
from service.preflight.security.clair import ClairReader
from service.preflight.security.picking import Fields, Malformed, Picker, Shape
from service.preflight.security.reports import Report
from service.preflight.security.sarif import SarifReader
from service.preflight.security.trivy import TrivyReader

MAX_TOLD_MEMBERS_N = 5
SBOM_MEMBERS = frozenset({"bomFormat", "spdxVersion"})


class Reader(Protocol):
    """Reads one of the forms."""

    name: str
    members: dict[str, Shape]
    """Of the document's root; no other form has one of the same name."""

    def report(self, root: dict[str, Any]) -> Report:
        """The report, from the members of the root that were there. Raises Malformed or Nothing."""


class ReportReader:
    """Takes a report in pieces: ``feed`` each, then ``close``. Both raise Malformed; ``close`` also raises Nothing."""

    def __init__(self) -> None:
        self._readers: tuple[Reader, ...] = (TrivyReader(), ClairReader(), SarifReader())
        self._others: list[str] = []
        members = {name: shape for reader in self._readers for name, shape in reader.members.items()}
        self._picker = Picker(Fields(members, others=self._told))

    def feed(self, data: bytes) -> None:
        """The next piece."""
        try:
            self._picker.feed(data)
        except Malformed as error:
            raise self._better(error) from error

    def close(self) -> Report:
        """The report."""
        try:
            return self._close()
        except Malformed as error:
            raise self._better(error) from error

    def _close(self) -> Report:
        root = self._picker.close()
        forms = [reader for reader in self._readers if reader.members.keys() & root.keys()]
        if not forms:
            there = ", ".join(self._others) or "none"
            raise Malformed(
                f"neither Trivy JSON nor Clair nor SARIF: the members at its top are {there}; print it with "
                f"`trivy image --format json`, `clairctl report --out json` or as SARIF"
            )
        if len(forms) > 1:
            raise Malformed(f"at once {' and '.join(reader.name for reader in forms)}: members of both are at its top")
        return forms[0].report(root)

    def _better(self, error: Malformed) -> Malformed:
        """A document that people often take for a report has some members of the same names, of other types."""
        if SBOM_MEMBERS.isdisjoint(self._others):
            return error
        return Malformed(
            "an SBOM (CycloneDX or SPDX), which lists packages and not what is known of them; print the report with "
            "`trivy sbom --format json`"
        )

    def _told(self, member: str) -> None:
        if len(self._others) < MAX_TOLD_MEMBERS_N:
            self._others.append(readable(member, 40))
