"""Whether a report speaks of this image, and of today. Pure.

A report of another image, or an old one, is no evidence of this one: it makes the gate fail by what it shows, never
pass by what it does not.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from service.model.gates.security import SecurityGate
from service.preflight.report import readable
from service.preflight.security.checks import Check, Outcome
from service.preflight.security.reports import Report, digests_of, short

MAX_AHEAD = timedelta(hours=1)
"""A report from further in the future was written by a clock that cannot be believed."""

SCAN_AGAIN = "scan the image again, by the digest that the Deployment names"


def of_this_image(
    report: Report,
    rule: SecurityGate,
    *,
    references: Collection[str],
    digests: Collection[str],
    pulled: frozenset[str] = frozenset(),
) -> Check:
    """Whether the report is of the candidate's image.

    references : how the image is called
    digests : its registry's: of its manifest, its index and its configuration; empty: the registry was not asked
    pulled : of what pods got by a tag. A tag may be moved between two pulls, or between a pull and the scan, so the
        report must be of each
    """
    known = digests_of(*references) | frozenset(digests)
    theirs_all = report.digests | ({report.config_digest} - {""})
    if same := theirs_all & known:
        covered = theirs_all if theirs_all.isdisjoint(digests) else theirs_all | frozenset(digests)
        if strangers := pulled - covered:
            said = f"pods run image {_shorts(strangers)}, got by the same tag, and the report is of {_shorts(same)}"
            return Check(Outcome.UNSEEN, said, f"{SCAN_AGAIN}, and let it name one, since a tag can be moved")
        return Check(Outcome.GOOD, f"the report is of this image ({short(min(same))})")
    if report.part:
        said = f"the report is of {readable(report.part, 160)}, where no operating system was looked at"
        return Check(Outcome.UNSEEN, said, "scan the image itself: a part of it says nothing of the rest")
    # Without the registry, the digest of a configuration has nothing to be held against.
    if known and (told := theirs_all if digests else report.digests):
        said = f"the report is of image {_shorts(told)}, and the candidate's is {_shorts(known)}"
        to_do = f"{SCAN_AGAIN} (an index and the image of one platform in it have different digests)"
        return Check(Outcome.UNSEEN, said, to_do)
    ours, theirs = {_tagged(one) for one in references} - {None}, {_tagged(one) for one in report.names} - {None}
    # A scan of an archive names its file first, and then the tag.
    called = readable(next((n for n in report.names if _tagged(n) in ours), [*report.names, ""][0]), 120)
    if not known and not ours:
        said = "which image is the candidate's is not known, so the report may be of another one"
        to_do = "let the event carry the image as its artifact, or name the Deployment in the target"
        return Check(
            Outcome.UNSEEN if rule.require_digest else Outcome.GOOD, said, to_do if rule.require_digest else ""
        )
    if theirs and ours and not theirs & ours:
        said = f"the report is of {called}, and the candidate is {readable(min(one for one in ours if one), 120)}"
        return Check(Outcome.UNSEEN, said, SCAN_AGAIN)
    said = (
        f"the report is of {called} and names no digest to compare"
        if called
        else "the report does not say of which image it is"
    )
    if rule.require_digest:
        return Check(Outcome.UNSEEN, said, f"{SCAN_AGAIN}; Trivy writes it where the image comes from a registry")
    return Check(Outcome.GOOD, said)


def names_it(report: Report, references: Collection[str]) -> bool:
    """Whether the report names one of these images, by digest; by the same tag where no digest can be compared."""
    digests = digests_of(*references)
    if not digests.isdisjoint({*report.digests, report.config_digest}):
        return True
    ours = {_tagged(one) for one in references} - {None}
    return not (digests and report.digests) and not ours.isdisjoint(map(_tagged, report.names))


def of_today(report: Report, rule: SecurityGate, *, now: datetime, written: datetime | None) -> Check:
    """Whether the report is fresh enough.

    written : when what holds the report was last written, for reports that carry no time of their own
    """
    at = report.created or written
    how = "made" if report.created else "written"
    if at is None:
        said = "when the report was made is not known"
        if rule.max_report_age_days is None:
            return Check(Outcome.GOOD, said)
        return Check(Outcome.UNSEEN, said, "keep it where its time is kept, or set max_report_age_days: null")
    if at - now > MAX_AHEAD:
        said = f"the report says that it was {how} at {at:%Y-%m-%d %H:%M} UTC, which is still to come"
        return Check(Outcome.UNSEEN, said, "put the scanner's clock right and scan again")
    days = max(0.0, (now - at) / timedelta(days=1))
    said = f"the report was {how} {_ago(days)}"
    if rule.max_report_age_days is not None and days > rule.max_report_age_days:
        return Check(Outcome.UNSEEN, f"{said}, longer ago than {rule.max_report_age_days:g} d", SCAN_AGAIN)
    return Check(Outcome.GOOD, said)


def _ago(days: float) -> str:
    if days >= 2:
        return f"{days:.0f} d ago"
    return f"{days * 24:.0f} h ago" if days * 24 >= 1 else "less than 1 h ago"


def _tagged(reference: str) -> str | None:
    """The last part of a reference with its tag, by which mirrors are told to be the same; None without a tag."""
    last = reference.partition("@")[0].rpartition("/")[2]
    name, colon, tag = last.partition(":")
    return f"{name}:{tag}" if name and colon and tag else None


def _shorts(digests: Collection[str]) -> str:
    return " or ".join(short(digest) for digest in sorted(digests)[:3])
