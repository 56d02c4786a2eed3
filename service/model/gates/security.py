"""The security gate: known vulnerabilities of the candidate's image, and with which rights its pods run."""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from service.model.gates.report import event_names_no_registry
from service.model.value import Value

Named = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._${}-]+$")]
"""The name of an object in the cluster. May hold ``${service}`` and the other names of a target's templates."""

ReportPath = Annotated[
    str,
    StringConstraints(
        max_length=500, pattern=r"^[A-Za-z0-9_${}][A-Za-z0-9._${}+-]*(/[A-Za-z0-9_${}][A-Za-z0-9._${}+-]*)*$"
    ),
]
"""A file below the folder of reports: relative, no part begins with a dot. May hold templates."""

ReportUrl = Annotated[
    str,
    StringConstraints(
        max_length=2000,
        pattern=r"^https?://[A-Za-z0-9.${}_:\[\]-]+(/[A-Za-z0-9._~${}+%@:-]*)*(\?[A-Za-z0-9._~${}+%@:/=&-]*)?$",
    ),
]
"""Where a report is served. No user and no password: such an address would end up in logs. May hold templates."""

ImageName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9._/:@+${}-]+$")]
"""An image reference. May hold templates."""

MediaType = Annotated[
    str,
    StringConstraints(max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*$"),
]

Capability = Annotated[str, StringConstraints(max_length=40, pattern=r"^[A-Z_]+$")]

Count = Annotated[int, Field(ge=0, le=1_000_000)]


class Severity(StrEnum):
    """How grave a vulnerability is, in the words that scanners share; the gravest first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    NEGLIGIBLE = "negligible"
    UNKNOWN = "unknown"


class Limit(Value):
    """How many vulnerabilities of one severity are tolerated."""

    total: Count | None = None
    """At most so many, with and without a fix."""
    fixable: Count | None = None
    """At most so many for which a fixed version exists."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.total is None and self.fixable is None:
            raise ValueError("a limit needs total, fixable or both; leave the severity out to tolerate any number")
        return self


class Allowance(Value):
    """One vulnerability that somebody has looked at and accepted, until a day."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """As the scanner names it: CVE-2024-3094, GHSA-..., in any case."""
    package: Annotated[str, StringConstraints(max_length=200)] = ""
    """Only in this package; empty: in all."""
    reason: Annotated[str, StringConstraints(min_length=3, max_length=300)]
    """Why it is accepted, and by whom; shown beside the finding."""
    until: datetime.date
    """The last day (UTC) on which it is accepted. Afterwards the vulnerability counts again, and the gate says so."""


class Posture(Value):
    """With which rights the candidate may run. Pods are judged where some run already, else the Deployment's template.

    Privileged containers fail always. What cannot be seen is said and is no pass.
    """

    non_root: bool = True
    """The user must be another one than root, by the image and the security contexts together."""
    read_only_root: bool = True
    """The root file system must be read-only."""
    no_privilege_escalation: bool = True
    """``allowPrivilegeEscalation`` must be false."""
    no_host: bool = True
    """No host network, process or IPC namespace, host port or hostPath volume."""
    seccomp: bool = False
    """A seccomp profile must be set: RuntimeDefault or Localhost."""
    drop_all: bool = False
    """All capabilities must be dropped before any is added."""
    capabilities: Annotated[tuple[Capability, ...], Field(max_length=50)] = ("NET_BIND_SERVICE",)
    """Capabilities that may be added."""
    runtime_classes: Annotated[tuple[Named, ...], Field(max_length=20)] = ()
    """The pods must name one of these runtime classes, for example gvisor; empty: any, or none."""


class SecurityGate(Value):
    """What the policy tolerates."""

    gate: Literal["security"] = "security"
    limits: dict[Severity, Limit] = {Severity.CRITICAL: Limit(total=0), Severity.HIGH: Limit(fixable=0)}
    """Severities that are not named are counted and told. Empty, with ``secrets: null``: no report is needed."""
    secrets: Count | None = 0
    """Secrets that the scanner may have found in the image; null: they are told."""
    allow: Annotated[tuple[Allowance, ...], Field(max_length=500)] = ()
    allow_soon_days: Annotated[int, Field(ge=0, le=365)] = 14
    """Allowances that end within so many days are told."""
    only_new: bool = False
    """Count only what stable's report does not show too (the same id in the same package)."""
    max_report_age_days: Annotated[float, Field(gt=0, le=3650)] | None = 7.0
    """An older report says nothing of what has become known since; null: any age."""
    require_digest: bool = False
    """The report must name the digest of the very image. A report that names another one is never taken."""
    posture: Posture | None = Posture()
    """null: the Deployment is not looked at."""
    within_s: float = Field(default=100.0, gt=0, le=110)
    """Longest time for all that is read, in seconds. A whole look may take two minutes."""

    @property
    def needs_report(self) -> bool:
        """Whether anything is asked that only a report can answer."""
        return bool(self.limits) or self.secrets is not None


class ReportPlace(Value):
    """Where a report is: Trivy JSON, Clair or SARIF, told apart by content. Exactly one of the three."""

    file: ReportPath | None = None
    """A file below the folder that the operator gave for reports."""
    url: ReportUrl | None = None
    """An address that answers with the report."""
    referrer: MediaType | None = None
    """The newest artifact of this type that the registry holds for the image, for example application/sarif+json."""

    @field_validator("url")
    @classmethod
    def _no_event_makes_a_host(cls, url: str | None) -> str | None:
        host = (url or "").partition("://")[2].partition("/")[0].partition("?")[0]
        if "_version" in host:
            raise ValueError(
                "a version comes from an event and may hold dots, so it must not be part of a host; write the host "
                "out, or with ${service} and ${namespace}"
            )
        return url

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(place is not None for place in (self.file, self.url, self.referrer)) != 1:
            raise ValueError("a report needs exactly one of file, url, referrer")
        return self


class SecuritySubject(Value):
    """Where the reports and the candidate's Deployment are."""

    report: ReportPlace | None = None
    stable_report: ReportPlace | None = None
    """Stable's report, for ``only_new``."""
    deployment: Named | None = None
    """The candidate's Deployment."""
    namespace: Named = "${namespace}"
    container: Named | None = None
    """The container that is the candidate; None: every container of the Deployment's template."""
    image: ImageName | None = None
    """The candidate's image, for example ``registry.example/ml/ranker:${canary_version}``; None: as the Deployment has
    it. Registries are asked about images that the target or the Deployment names, never about one that only an event
    names; of the event's artifact the digest is taken where it is of the same repository."""
    platform: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$", max_length=40)] = (
        "linux/amd64"
    )
    """What the nodes are; picks from a multi-arch index."""

    @field_validator("image")
    @classmethod
    def _no_event_makes_a_registry(cls, image: str | None) -> str | None:
        event_names_no_registry(image or "")
        return image

    @model_validator(mode="after")
    def _stable_by_place(self) -> Self:
        if self.stable_report is not None and self.stable_report.referrer is not None:
            raise ValueError("stable_report needs file or url: a referrer is looked for at the candidate's image")
        return self
