"""A scan report, whichever scanner printed it: what was found, of which image, when."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from service.model.gates.security import Severity

MAX_FOUND_N = 100_000
"""Findings of one report, and entries of the tables that lead to them. Large images have some ten thousand. With texts
of at most 100 characters, a report made to fill the memory takes some 250 MiB."""

_DIGEST = re.compile(r"\b(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\b")
_SEVERITIES = {severity.value: severity for severity in Severity} | {
    "moderate": Severity.MEDIUM,
    "important": Severity.HIGH,
    "minor": Severity.LOW,
}


class Kind(StrEnum):
    """What was found."""

    VULNERABILITY = "vulnerability"
    SECRET = "secret"  # noqa: S105  # a word, no password
    OTHER = "other"  # misconfigurations, licences, code


@dataclass(frozen=True, slots=True)
class Found:
    """One finding. Texts are the scanner's, cut to length, empty where it names none."""

    id: str
    severity: Severity
    package: str = ""
    installed: str = ""
    fixed: str = ""
    """The version that mends it; empty: there is none, or none is known."""
    where: str = ""
    """The layer, file or target in which it was found."""
    kind: Kind = Kind.VULNERABILITY


@dataclass(slots=True)
class Report:
    """What a report says."""

    scanner: str
    """Name and version, for people."""
    found: list[Found] = field(default_factory=list)
    digests: frozenset[str] = frozenset()
    """Of the image that was scanned: of its manifest or its index."""
    config_digest: str = ""
    """Of its configuration, by which a scan before the push knows the image."""
    names: tuple[str, ...] = ()
    """How the scanner calls the image; the first is the one that it was given."""
    image_user: str | None = None
    """The user of the image's configuration, where the report repeats it."""
    created: datetime | None = None
    part: str = ""
    """What was scanned, where that was no image and no operating system: a lock file, a source tree."""
    suppressed_n: int = 0
    """Findings that the scanner's own configuration took out."""
    remarks: tuple[str, ...] = ()
    """What else people should know of it."""


class Nothing(Exception):
    """The report is well-formed and shows that nothing was looked at. The message says by what."""


def severity_of(word: str | None) -> Severity:
    """The severity that a scanner's word means; what is not known is UNKNOWN."""
    return _SEVERITIES.get((word or "").strip().lower(), Severity.UNKNOWN)


def digests_of(*texts: str | None) -> frozenset[str]:
    """The digests in references such as ``registry/name@sha256:...``, in package URLs, or alone."""
    return frozenset(match.group(0) for text in texts if text for match in _DIGEST.finditer(text.replace("%3A", ":")))


def moment_of(text: str | None) -> datetime | None:
    """A moment in UTC from RFC 3339, with any number of decimals; None for anything else, also for year 1."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return at if at.year > 1970 else None


def short(digest: str) -> str:
    """A digest as people write it: its first twelve characters."""
    return digest.removeprefix("sha256:").removeprefix("sha512:")[:12]


def once(found: Iterable[Found]) -> list[Found]:
    """Each finding once, in their order."""
    return list(dict.fromkeys(found))
