"""SARIF 2.1.0 as image scanners print it: Trivy, Grype, Clair's action and others.

After the OASIS standard (results, rules, invocations) and the scanners' own writers: Trivy's
pkg/report/sarif.go, Grype's SARIF presenter, clair-action's template. SARIF has no member for a package, its versions
or a severity. Scanners write them as lines ``Name: value`` into a result's message or its rule's help, and a CVSS score
into the property ``security-severity`` of GitHub. A level (error, warning, note) is no severity of a vulnerability, and
is not taken for one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from service.model.gates.security import Severity
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
)

_LINE = re.compile(r"^ ?(Package|Installed Version|Version|Fixed Version|Fix Version|Severity): *(.*)$", re.MULTILINE)
_ADVISORY = re.compile(
    r"(?<![a-z0-9])(CVE-\d{4}-\d{3,12}(?!\d)|GHSA(?:-[0-9a-z]{4}){3}(?![0-9a-z]))", re.IGNORECASE | re.ASCII
)
_GRYPE = re.compile(r"^A ([a-z]{1,20}) vulnerability in \S{1,60} package: (\S{1,200}), version (\S{1,200}) was found ")
_CLAIR_ACTION = re.compile(r"^\[(\S{1,200}) - (\S{0,200}) - ([A-Za-z]{1,20})\] ")
_SECRET_RULES = frozenset({"Secret"})
_TRIVY, _SYSTEM_RULE = "Trivy", "OsPackageVulnerability"
_OTHER_RULES = frozenset({"Misconfiguration", "License"})
_TEXT = Text(4000)

MAX_RUNS_N = 100
"""Scanners print one, and tools that put several reports together some."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the words of a message or a rule say of a finding."""

    package: str = ""
    installed: str = ""
    fixed: str = ""
    severity: Severity | None = None
    """None: nothing is said. A scanner that says unknown means it, whatever a score says."""


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    told: _Told
    severity: Severity | None
    """By tag or score."""


@dataclass(frozen=True, slots=True)
class _Result:
    rule_id: str
    rule_at: int | None
    told: _Told
    severity: Severity | None
    where: str


@dataclass(slots=True)
class _Run:
    rules: list[_Rule] = field(default_factory=list)
    by_id: dict[str, _Rule] = field(default_factory=dict)
    results: list[_Result] = field(default_factory=list)


class SarifReader:
    """See ``reading.Reader``."""

    name = "SARIF"

    def __init__(self) -> None:
        self._run = _Run()
        self._found: list[Found] = []
        self._scanners: list[str] = []
        self._digests: set[str] = set()
        self._config_digest = ""
        self._names: list[str] = []
        self._created: datetime | None = None
        self._part = ""
        self._suppressed_n = 0
        self._failure = ""
        text = Fields({"text": _TEXT})
        score = Text(20, numbers=True)
        rule = Fields(
            {
                "id": Text(200),
                "name": Text(),
                "help": text,
                "properties": Fields({"security-severity": score, "tags": Items(Text(40))}),
            }
        )
        location = Fields({"physicalLocation": Fields({"artifactLocation": Fields({"uri": Text()})})})
        result = Fields(
            {
                "ruleId": Text(200),
                "ruleIndex": Text(12, numbers=True),
                "rule": Fields({"id": Text(200), "index": Text(12, numbers=True)}),
                "kind": Text(20),
                "baselineState": Text(20),
                "message": text,
                "locations": Items(location),
                "suppressions": Items(Fields({})),
                "properties": Fields({"security-severity": score}),
            }
        )
        run = Fields(
            {
                "tool": Fields(
                    {
                        "driver": Fields(
                            {
                                "name": Text(60),
                                "version": Text(40),
                                "semanticVersion": Text(40),
                                "rules": Items(rule, self._rule),
                            }
                        )
                    }
                ),
                "invocations": Items(Fields({"executionSuccessful": Flag(), "endTimeUtc": Text(60)})),
                "properties": Fields(
                    {
                        "imageName": Text(300),
                        "imageID": Text(200),
                        "repoTags": Items(Text(300)),
                        "repoDigests": Items(Text(500)),
                    }
                ),
                "results": Items(result, self._result),
            }
        )
        self.members: dict[str, Shape] = {"version": Text(20), "runs": Items(run, self._end_of_run)}

    def report(self, root: dict[str, Any]) -> Report:
        """See ``reading.Reader``."""
        if not root.get("version", "").startswith("2.1."):
            raise Malformed(f"SARIF of version {root.get('version', '(none)')}; 2.1.0 is read")
        if self._failure or not self._scanners:
            raise Nothing(self._failure or "the SARIF report has no run, so nothing was looked at")
        return Report(
            scanner=", ".join(dict.fromkeys(self._scanners)),
            found=once(self._found),
            digests=frozenset(self._digests),
            config_digest=self._config_digest,
            names=tuple(self._names),
            created=self._created,
            part=self._part,
            remarks=(f"{self._suppressed_n} are marked as suppressed in the report, and count all the same",)
            if self._suppressed_n
            else (),
        )

    def _rule(self, one: dict[str, Any]) -> None:
        if len(self._run.rules) >= MAX_FOUND_N:
            raise Malformed(f"more than {MAX_FOUND_N} rules")
        properties = one.get("properties", {})
        by_tag = [severity for tag in properties.get("tags", ()) if (severity := _of_word(tag))]
        rule = _Rule(
            name=one.get("name", ""),
            told=_told(one.get("help", {}).get("text", "")),
            severity=by_tag[0] if by_tag else _of_score(properties.get("security-severity")),
        )
        self._run.rules.append(rule)
        self._run.by_id.setdefault(one.get("id", ""), rule)

    def _result(self, one: dict[str, Any]) -> None:
        if len(self._found) + len(self._run.results) >= MAX_FOUND_N:
            raise Malformed(f"more than {MAX_FOUND_N} findings")
        if one.get("kind", "fail") != "fail" or one.get("baselineState") == "absent":
            return
        # Some scanners have marked every result so; and who accepts what, why and until when, the policy says.
        self._suppressed_n += bool(one.get("suppressions"))
        places = (
            place.get("physicalLocation", {}).get("artifactLocation", {}).get("uri")
            for place in one.get("locations", ())
        )
        rule = one.get("rule", {})
        self._run.results.append(
            _Result(
                rule_id=one.get("ruleId") or rule.get("id", ""),
                rule_at=_whole(one.get("ruleIndex") or rule.get("index")),
                told=_told(one.get("message", {}).get("text", "")),
                severity=_of_score(one.get("properties", {}).get("security-severity")),
                where=next(filter(None, places), ""),
            )
        )

    def _end_of_run(self, run: dict[str, Any]) -> None:
        if len(self._scanners) >= MAX_RUNS_N:
            raise Malformed(f"more than {MAX_RUNS_N} runs")
        driver = run.get("tool", {}).get("driver", {})
        name = driver.get("name", "an unnamed tool")
        self._scanners.append(f"{name} {driver.get('version') or driver.get('semanticVersion', '')}".strip())
        if "results" not in run:
            # Absent means, by the standard, that the tool looked for nothing or did not come to an end.
            self._failure = f"the run of {name} has no results, not even an empty list: it did not look"
        for invocation in run.get("invocations", ()):
            if invocation.get("executionSuccessful") is False:
                self._failure = f"{name} says that its run did not succeed"
            ended = moment_of(invocation.get("endTimeUtc"))
            self._created = min(filter(None, (ended, self._created)), default=None)
        properties = run.get("properties", {})
        image = properties.get("imageName", "")
        if name == _TRIVY and not image and not any(rule.name == _SYSTEM_RULE for rule in self._run.rules):
            # Trivy names what is an image.
            self._part = "something that Trivy does not call an image"
        self._digests |= digests_of(image, *properties.get("repoDigests", ()))
        self._config_digest = self._config_digest or "".join(digests_of(properties.get("imageID")))
        self._names += filter(None, (image, *properties.get("repoTags", ())))
        self._found += (_found(one, self._run) for one in self._run.results)
        self._run = _Run()


def _found(one: _Result, run: _Run) -> Found:
    rule = run.by_id.get(one.rule_id)
    if rule is None and one.rule_at is not None and one.rule_at < len(run.rules):
        rule = run.rules[one.rule_at]
    rule = rule or _Rule("", _Told(), None)
    # What the scanner says of this result comes before what it says of the rule, which several packages may share, and
    # its word before a score, which may be another organisation's.
    severities = (one.told.severity, rule.told.severity, one.severity, rule.severity)
    advisory = _ADVISORY.search(one.rule_id)
    return Found(
        id=(advisory.group(1) if advisory else one.rule_id)[:100] or "(no id)",
        severity=next((severity for severity in severities if severity is not None), Severity.UNKNOWN),
        package=one.told.package or rule.told.package,
        installed=one.told.installed or rule.told.installed,
        fixed=one.told.fixed or rule.told.fixed,
        where=one.where,
        kind=Kind.SECRET
        if rule.name in _SECRET_RULES
        else Kind.OTHER
        if rule.name in _OTHER_RULES
        else Kind.VULNERABILITY,
    )


def _told(text: str) -> _Told:
    if grype := _GRYPE.match(text):
        # The rule's help is of the first of several versions of a package.
        return _Told(grype.group(2)[:100], grype.group(3)[:100], "", _of_word(grype.group(1)))
    if clair := _CLAIR_ACTION.match(text):
        return _Told(clair.group(1), clair.group(2), "", _of_word(clair.group(3)))
    lines: dict[str, str] = {}
    for line in _LINE.finditer(text):
        lines.setdefault(line.group(1), line.group(2).strip()[:100])
    return _Told(
        package=lines.get("Package", ""),
        installed=lines.get("Installed Version") or lines.get("Version", ""),
        fixed=lines.get("Fixed Version") or lines.get("Fix Version", ""),
        severity=_of_word(lines.get("Severity")),
    )


def _of_word(text: str | None) -> Severity | None:
    """The severity that a word names; None for words that are none."""
    severity = severity_of(text)
    return None if severity is Severity.UNKNOWN and (text or "").strip().lower() != "unknown" else severity


def _of_score(text: str | None) -> Severity | None:
    """CVSS's words for a score, which GitHub uses too; None for none, of which 0 is one."""
    try:
        score = float(text or "0")
    except ValueError:
        return None
    bounds = ((9.0, Severity.CRITICAL), (7.0, Severity.HIGH), (4.0, Severity.MEDIUM), (0.1, Severity.LOW))
    return next((severity for least, severity in bounds if least <= score <= 10.0), None)


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
