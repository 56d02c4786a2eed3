"""What was found in the image against the limits of the policy. Pure.

An allowance takes a vulnerability out until its last day; after that it counts again and is named, so that nothing is
accepted for ever by being forgotten.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.model.gates.security import Allowance, Limit, SecurityGate, Severity
from service.preflight.report import readable
from service.preflight.security.checks import Check, Outcome
from service.preflight.security.reports import Found, Kind, Report

MAX_LISTED_N = 15
"""Findings that are named one by one."""

MAX_NAMED_N = 8
"""Allowances that are named in one line."""


@dataclass(slots=True)
class Held:
    """What came of holding a report against the limits."""

    checks: list[Check] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """For people, the gravest first."""
    facts: dict[str, str] = field(default_factory=dict)


def hold(
    report: Report,
    rule: SecurityGate,
    *,
    today: datetime.date,
    stable: Report | None = None,
    no_stable: str = "the target names none",
) -> Held:
    """Hold a report against the limits.

    today : in UTC
    stable : stable's report; with ``only_new``, what it shows too is not counted
    no_stable : why there is none. Then everything is counted, and what would fail is UNSEEN: it may be nothing new
    """
    vulnerabilities = [one for one in report.found if one.kind is Kind.VULNERABILITY]
    allowances = _Allowances(rule.allow, today)
    counted = [one for one in vulnerabilities if not allowances.cover(one)]
    held = Held()
    known_n = 0
    if rule.only_new and stable is not None:
        before = {_key(one) for one in stable.found if one.kind is Kind.VULNERABILITY}
        fresh = [one for one in counted if _key(one) not in before]
        known_n, counted = len(counted) - len(fresh), fresh
    unsure = f"; which are new cannot be told without stable's report: {no_stable}"
    if not (rule.only_new and stable is None):
        unsure = ""
    guilty = [one for severity, limit in _in_order(rule) for one in _hold_one(held, counted, severity, limit, unsure)]
    _tell_counts(held, counted, rule)
    if counted and all(one.severity is Severity.UNKNOWN for one in counted) and Severity.UNKNOWN not in rule.limits:
        said = f"the report gives none of its {len(counted)} vulnerabilities a severity that is known"
        held.checks.append(Check(Outcome.UNSEEN, said, "set a limit for unknown, or print the report in another form"))
    _hold_secrets(held, report, rule)
    held.lines[:0] = [_line(one) for one in guilty[:MAX_LISTED_N]]
    if len(guilty) > MAX_LISTED_N:
        held.lines.insert(MAX_LISTED_N, f"and {len(guilty) - MAX_LISTED_N} more that count against the limits")
    held.lines += allowances.lines(rule.allow_soon_days)
    if known_n:
        held.lines.append(f"{known_n} that stable's image has too are not counted")
    if report.suppressed_n:
        held.lines.append(f"not counted, because the scanner's own configuration takes them out: {report.suppressed_n}")
    return held


def _hold_one(held: Held, counted: Sequence[Found], severity: Severity, limit: Limit, unsure: str) -> list[Found]:
    """Hold one severity's limit; gives what broke it."""
    all_of_it = [one for one in counted if one.severity is severity]
    fixable = [one for one in all_of_it if one.fixed]
    guilty: list[Found] = []
    for most, them, what in ((limit.total, all_of_it, ""), (limit.fixable, fixable, " with a fix")):
        if most is None:
            continue
        said = f"{len(them)} {severity}{what} (limit {most})"
        if len(them) <= most:
            held.checks.append(Check(Outcome.GOOD, said))
            continue
        to_do = "build the image on updated packages, or accept each by an allowance with a reason and a last day"
        held.checks.append(Check(Outcome.UNSEEN if unsure else Outcome.BAD, said + unsure, to_do))
        guilty = guilty or sorted(them, key=lambda one: (not one.fixed, one.id, one.package))
    return guilty


def _hold_secrets(held: Held, report: Report, rule: SecurityGate) -> None:
    secrets = [one for one in report.found if one.kind is Kind.SECRET]
    others_n = sum(one.kind is Kind.OTHER for one in report.found)
    if secrets:
        held.facts["secrets"] = str(len(secrets))
    held.lines += [f"secret {readable(one.id, 100)} in {readable(one.where, 150)}" for one in secrets[:5]]
    if rule.secrets is not None and len(secrets) > rule.secrets:
        said = f"{len(secrets)} secret{'s' * (len(secrets) != 1)} in the image (limit {rule.secrets})"
        held.checks.append(
            Check(Outcome.BAD, said, "take them out of every layer, and replace them where they are used")
        )
    if others_n:
        held.lines.append(
            f"{others_n} findings that are no vulnerabilities (misconfigurations, licences) are not judged"
        )


def _tell_counts(held: Held, counted: Sequence[Found], rule: SecurityGate) -> None:
    total: Counter[Severity] = Counter(one.severity for one in counted)
    fixable: Counter[Severity] = Counter(one.severity for one in counted if one.fixed)
    for severity in Severity:
        limit = rule.limits.get(severity)
        if total[severity] or limit or severity in (Severity.CRITICAL, Severity.HIGH):
            held.facts[severity.value] = _fact(total[severity], limit.total if limit else None)
        if fixable[severity] or (limit and limit.fixable is not None):
            held.facts[f"{severity}, fixable"] = _fact(fixable[severity], limit.fixable if limit else None)


def _fact(n: int, limit: int | None) -> str:
    return str(n) if limit is None else f"{n} (limit {limit})"


def _in_order(rule: SecurityGate) -> list[tuple[Severity, Limit]]:
    return [(severity, rule.limits[severity]) for severity in Severity if severity in rule.limits]


def _key(one: Found) -> tuple[str, str]:
    """What a vulnerability is, whatever the package's version: a new version that has it too brings nothing new."""
    return one.id.casefold(), one.package.casefold()


def _line(one: Found) -> str:
    package = " ".join(filter(None, (one.package, one.installed))) or "a package that is not named"
    mended = f"fixed in {readable(one.fixed, 60)}" if one.fixed else "no fix"
    where = f", {readable(one.where, 100)}" if one.where else ""
    return f"{one.severity}: {readable(one.id, 100)} in {readable(package, 120)} ({mended}){where}"


class _Allowances:
    """Which allowances hold today, and which findings they met."""

    def __init__(self, allow: Sequence[Allowance], today: datetime.date) -> None:
        self._today = today
        self._by_id: dict[str, list[Allowance]] = {}
        for one in allow:
            self._by_id.setdefault(one.id.casefold(), []).append(one)
        self._met: Counter[Allowance] = Counter()
        self._all = allow

    def cover(self, one: Found) -> bool:
        """Whether an allowance takes this out today."""
        covered = False
        for allowance in self._by_id.get(one.id.casefold(), ()):
            if allowance.package and allowance.package.casefold() != one.package.casefold():
                continue
            self._met[allowance] += 1
            covered = covered or allowance.until >= self._today
        return covered

    def lines(self, soon_days: int) -> list[str]:
        """What people should know of them: ended and met, in force, ending soon, met by nothing."""
        ended = [one for one in self._all if self._met[one] and one.until < self._today]
        inside = [one for one in self._all if self._met[one] and one.until >= self._today]
        soon = [one for one in inside if (one.until - self._today).days <= soon_days]
        unmet = [one for one in self._all if not self._met[one]]
        out = [
            f"the allowance for {_allowed(one)} ended on {one.until} and counts again ({readable(one.reason, 120)})"
            for one in ended[:MAX_NAMED_N]
        ]
        if len(ended) > MAX_NAMED_N:
            out.append(f"and {len(ended) - MAX_NAMED_N} more allowances have ended and count again")
        if inside:
            findings_n = sum(self._met[one] for one in inside)
            out.append(f"{findings_n} accepted by allowances: {_names(inside)}")
        if soon:
            out.append(f"allowances that end within {soon_days} days: {_names(soon, dates=True)}")
        if unmet:
            out.append(f"allowances that meet nothing in this image: {_names(unmet)}")
        return out


def _allowed(one: Allowance) -> str:
    return readable(one.id, 60) + (f" in {readable(one.package, 60)}" if one.package else "")


def _names(them: Sequence[Allowance], *, dates: bool = False) -> str:
    named = [_allowed(one)[:60] + (f" on {one.until}" if dates else "") for one in them[:5]]
    more = [f"{len(them) - 5} more"] if len(them) > 5 else []
    return ", ".join(named + more)
