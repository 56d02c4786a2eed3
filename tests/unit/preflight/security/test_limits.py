"""Limits by severity and fix, allowances that end, what is new against stable, and of which image a report is."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from service.model.gates.security import Allowance, Limit, SecurityGate, SecuritySubject, Severity
from service.preflight.security import provenance
from service.preflight.security.checks import Check, Outcome
from service.preflight.security.limits import Held, hold
from service.preflight.security.reports import Found, Kind, Report

TODAY = date(2026, 11, 26)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
HIGH = Found("CVE-2024-1", Severity.HIGH, "openssl", "3.0", "3.1", "layer 1")
UNFIXED = Found("CVE-2024-2", Severity.HIGH, "libc6", "2.36")
CRITICAL = Found("CVE-2024-3", Severity.CRITICAL, "xz", "5.6.0")
DIGESTS = ["sha256:" + letter * 64 for letter in "abc"]


def held(*found: Found, stable: Report | None = None, **rule: Any) -> Held:
    return hold(Report("Trivy", list(found)), SecurityGate(**rule), today=TODAY, stable=stable)


def outcomes(of: Held) -> set[Outcome]:
    return {check.outcome for check in of.checks}


def allowed(**changes: Any) -> Allowance:
    return Allowance(**{"id": "CVE-2024-1", "reason": "not reachable", "until": TODAY, **changes})


@pytest.mark.parametrize(
    ("found", "limit", "good"),
    [
        ((), Limit(total=0), True),
        ((UNFIXED,), Limit(total=0), False),
        ((UNFIXED,), Limit(total=1), True),
        ((UNFIXED,), Limit(fixable=0), True),
        ((HIGH,), Limit(fixable=0), False),
        ((HIGH,), Limit(total=1, fixable=0), False),
        ((HIGH, UNFIXED), Limit(total=2, fixable=1), True),
        ((HIGH, UNFIXED), Limit(total=1, fixable=1), False),
        ((CRITICAL,), Limit(total=0), True),
    ],
)
def test_a_limit_counts_its_severity_and_what_of_it_can_be_fixed(
    found: tuple[Found, ...], limit: Limit, good: bool
) -> None:
    assert outcomes(held(*found, limits={"high": limit})) >= {Outcome.GOOD if good else Outcome.BAD}
    assert (Outcome.BAD in outcomes(held(*found, limits={"high": limit}))) is not good


def test_without_words_of_the_policy_no_critical_and_no_high_one_with_a_fix_is_tolerated() -> None:
    assert outcomes(held(UNFIXED)) == {Outcome.GOOD}
    assert Outcome.BAD in outcomes(held(HIGH))
    assert Outcome.BAD in outcomes(held(CRITICAL))


def test_what_was_counted_is_told_with_its_limits_and_the_gravest_are_named_first() -> None:
    of = held(HIGH, UNFIXED, CRITICAL, Found("CVE-5", Severity.LOW, "a", "1", "2"))
    assert of.facts == {
        "critical": "1 (limit 0)", "high": "2", "high, fixable": "1 (limit 0)", "low": "1", "low, fixable": "1",
    }  # fmt: skip
    assert of.lines[:2] == [
        "critical: CVE-2024-3 in xz 5.6.0 (no fix)",
        "high: CVE-2024-1 in openssl 3.0 (fixed in 3.1), layer 1",
    ]


def test_many_findings_are_named_up_to_a_number_and_the_rest_is_counted() -> None:
    of = held(*(Found(f"CVE-2024-{n}", Severity.CRITICAL, "p", "1") for n in range(100)))
    assert len(of.lines) == 16
    assert of.lines[15] == "and 85 more that count against the limits"


def test_an_allowance_takes_out_its_vulnerability_until_its_last_day() -> None:
    for until, good in ((TODAY, True), (TODAY + timedelta(days=400), True), (TODAY - timedelta(days=1), False)):
        assert (outcomes(held(HIGH, allow=(allowed(until=until),))) == {Outcome.GOOD}) is good


@pytest.mark.parametrize(
    ("changes", "covers"),
    [
        ({}, True),
        ({"id": "cve-2024-1"}, True),
        ({"package": "OpenSSL"}, True),
        ({"package": "openss"}, False),
        ({"id": "CVE-2024-11"}, False),
        ({"id": "CVE-2024"}, False),
    ],
)
def test_an_allowance_names_one_vulnerability_and_perhaps_one_package(changes: dict[str, str], covers: bool) -> None:
    assert (outcomes(held(HIGH, allow=(allowed(**changes),))) == {Outcome.GOOD}) is covers


def test_an_allowance_that_has_ended_is_named_and_so_is_one_that_ends_soon_or_meets_nothing() -> None:
    allow = (
        allowed(until=TODAY - timedelta(days=3), reason="TEAM-7, until the new base image"),
        allowed(id="CVE-2024-2", until=TODAY + timedelta(days=14)),
        allowed(id="CVE-2024-3", until=TODAY + timedelta(days=15)),
        allowed(id="CVE-1999-1", package="gone"),
    )
    lines = held(HIGH, UNFIXED, CRITICAL, allow=allow).lines
    assert lines[1:] == [
        "the allowance for CVE-2024-1 ended on 2026-11-23 and counts again (TEAM-7, until the new base image)",
        "2 accepted by allowances: CVE-2024-2, CVE-2024-3",
        "allowances that end within 14 days: CVE-2024-2 on 2026-12-10",
        "allowances that meet nothing in this image: CVE-1999-1 in gone",
    ]


def test_of_two_allowances_the_one_that_still_holds_counts() -> None:
    both = (allowed(until=TODAY - timedelta(days=3)), allowed(until=TODAY))
    assert outcomes(held(HIGH, allow=both)) == outcomes(held(HIGH, allow=both[::-1])) == {Outcome.GOOD}


@pytest.mark.parametrize("missing", ["id", "reason", "until"])
def test_an_allowance_without_id_reason_or_last_day_is_no_allowance(missing: str) -> None:
    given = {"id": "CVE-1", "reason": "because", "until": "2026-12-31"}
    assert Allowance.model_validate(given).until == date(2026, 12, 31)
    with pytest.raises(ValidationError):
        Allowance.model_validate({key: value for key, value in given.items() if key != missing})


def test_with_only_new_what_stable_has_too_does_not_count_even_in_another_version_of_the_package() -> None:
    stable = Report("Trivy", [Found("CVE-2024-1", Severity.HIGH, "openssl", "2.9", "3.1")])
    known = held(HIGH, stable=stable, only_new=True)
    assert outcomes(known) == {Outcome.GOOD}
    assert "1 that stable's image has too are not counted" in known.lines
    assert Outcome.BAD in outcomes(held(HIGH, stable=stable))
    other = Found("CVE-2024-1", Severity.HIGH, "openssl-dev", "3.0", "3.1")
    assert Outcome.BAD in outcomes(held(HIGH, other, stable=stable, only_new=True))


def test_with_only_new_and_no_report_of_stable_a_clean_image_passes_and_any_other_could_not_be_judged() -> None:
    assert outcomes(held(UNFIXED, only_new=True)) == {Outcome.GOOD}
    unsure = held(HIGH, only_new=True)
    assert outcomes(unsure) == {Outcome.GOOD, Outcome.UNSEEN}
    (check,) = (check for check in unsure.checks if check.outcome is Outcome.UNSEEN)
    assert "which are new cannot be told without stable's report: the target names none" in check.said


def test_vulnerabilities_of_which_none_has_a_known_severity_are_not_harmless() -> None:
    unknown = Found("CVE-1", Severity.UNKNOWN, "p", "1")
    assert Outcome.UNSEEN in outcomes(held(unknown, unknown))
    assert outcomes(held(unknown, UNFIXED)) == {Outcome.GOOD}
    assert outcomes(held(unknown, limits={"unknown": Limit(total=1)})) == {Outcome.GOOD}
    assert Outcome.BAD in outcomes(held(unknown, limits={"unknown": Limit(total=0)}))
    assert outcomes(held(unknown, allow=(allowed(id="CVE-1"),))) == {Outcome.GOOD}


def test_secrets_have_a_limit_of_their_own_and_are_no_vulnerabilities() -> None:
    secret = Found("aws-key", Severity.CRITICAL, where="/app/key", kind=Kind.SECRET)
    other = Found("DS-2", Severity.CRITICAL, kind=Kind.OTHER)
    of = held(secret, other)
    assert [check.said for check in of.checks if check.outcome is Outcome.BAD] == ["1 secret in the image (limit 0)"]
    assert of.lines[0] == "secret aws-key in /app/key"
    assert of.lines[1].startswith("1 findings that are no vulnerabilities")
    assert outcomes(held(secret, other, secrets=None)) == outcomes(held(secret, secrets=1)) == {Outcome.GOOD}


def test_lines_hold_no_control_characters_of_the_report() -> None:
    of = held(Found("CVE\x1b[2J", Severity.CRITICAL, "p\nq", "1\x00", "2\r", "w\u202e"))
    assert all(line.isprintable() for line in of.lines)


def of_image(report: Report, *references: str, digests: tuple[str, ...] = (), **rule: Any) -> Check:
    return provenance.of_this_image(report, SecurityGate(**rule), references=references, digests=digests)


def test_a_report_of_this_digest_is_taken_and_one_of_another_never_is() -> None:
    report = Report("Trivy", digests=frozenset(DIGESTS[:1]), names=("x/tf:1",))
    assert of_image(report, f"y/tf:2@{DIGESTS[0]}").outcome is Outcome.GOOD
    assert of_image(report, "y/tf:2", digests=(DIGESTS[0], DIGESTS[1])).outcome is Outcome.GOOD
    other = of_image(report, f"x/tf:1@{DIGESTS[1]}")
    assert other.outcome is Outcome.UNSEEN
    assert other.said.startswith("the report is of image aaaaaaaaaaaa, and the candidate's is bbbbbbbbbbbb")


def test_a_scan_before_the_push_is_told_by_the_images_configuration_where_the_registry_or_the_node_knows_it() -> None:
    report = Report("Trivy", config_digest=DIGESTS[0], names=("tf:2",))
    assert of_image(report, f"y/tf:2@{DIGESTS[1]}", digests=(DIGESTS[1], DIGESTS[0])).outcome is Outcome.GOOD
    assert of_image(report, f"docker://{DIGESTS[0]}").said == "the report is of this image (aaaaaaaaaaaa)"
    assert of_image(report, f"y/tf:2@{DIGESTS[1]}", digests=(DIGESTS[1], DIGESTS[2])).outcome is Outcome.UNSEEN
    unknown = of_image(report, f"y/tf:2@{DIGESTS[1]}")
    assert (unknown.outcome, unknown.said) == (Outcome.GOOD, "the report is of tf:2 and names no digest to compare")


@pytest.mark.parametrize(
    ("names", "reference", "outcome", "strict"),
    [
        (("ghcr.io/ml/tf:2.13.0",), "ghcr.io/ml/tf:2.13.0", Outcome.GOOD, Outcome.UNSEEN),
        (("mirror:5000/tf:2.13.0",), "ghcr.io/ml/tf:2.13.0", Outcome.GOOD, Outcome.UNSEEN),
        (("ghcr.io/ml/tf:2.12.0",), "ghcr.io/ml/tf:2.13.0", Outcome.UNSEEN, Outcome.UNSEEN),
        (("ghcr.io/ml/nginx:1.29",), "ghcr.io/ml/tf:2.13.0", Outcome.UNSEEN, Outcome.UNSEEN),
        (("ghcr.io/ml/tf:2.12.0", "tf:2.13.0"), "ghcr.io/ml/tf:2.13.0", Outcome.GOOD, Outcome.UNSEEN),
        (("image.tar",), "ghcr.io/ml/tf:2.13.0", Outcome.GOOD, Outcome.UNSEEN),
        ((), "ghcr.io/ml/tf:2.13.0", Outcome.GOOD, Outcome.UNSEEN),
        (("ghcr.io/ml/tf:2.13.0",), "", Outcome.GOOD, Outcome.UNSEEN),
    ],
)
def test_a_report_without_digest_is_held_against_the_tag(
    names: tuple[str, ...], reference: str, outcome: Outcome, strict: Outcome
) -> None:
    report = Report("Trivy", names=names)
    references = (reference,) if reference else ()
    assert of_image(report, *references).outcome is outcome
    assert of_image(report, *references, require_digest=True).outcome is strict


def of_today(created: datetime | None, written: datetime | None = None, **rule: Any) -> Check:
    report = Report("Trivy", created=created)
    return provenance.of_today(report, SecurityGate(**rule), now=NOW, written=written)


@pytest.mark.parametrize(
    ("created", "written", "outcome"),
    [
        (NOW, None, Outcome.GOOD),
        (NOW - timedelta(days=7), None, Outcome.GOOD),
        (NOW - timedelta(days=7, seconds=1), None, Outcome.UNSEEN),
        (NOW - timedelta(days=8), NOW, Outcome.UNSEEN),
        (None, NOW - timedelta(days=6), Outcome.GOOD),
        (None, NOW - timedelta(days=8), Outcome.UNSEEN),
        (None, None, Outcome.UNSEEN),
        (NOW + timedelta(minutes=59), None, Outcome.GOOD),
        (NOW + timedelta(hours=2), None, Outcome.UNSEEN),
    ],
)
def test_an_old_report_and_one_of_unknown_age_are_no_evidence(
    created: datetime | None, written: datetime | None, outcome: Outcome
) -> None:
    assert of_today(created, written).outcome is outcome


def test_any_age_can_be_tolerated_but_not_the_future() -> None:
    assert of_today(None, max_report_age_days=None).outcome is Outcome.GOOD
    assert of_today(NOW - timedelta(days=4000), max_report_age_days=None).outcome is Outcome.GOOD
    assert of_today(NOW + timedelta(days=4000), max_report_age_days=None).outcome is Outcome.UNSEEN


@pytest.mark.parametrize(
    "report",
    [
        {}, {"file": "a", "url": "https://x/y"}, {"file": "../a"}, {"file": "/etc/passwd"}, {"file": "a/../../b"},
        {"file": ".hidden"}, {"file": "a//b"}, {"file": "a\nb"}, {"url": "ftp://x/y"}, {"url": "https://user:pw@x/y"},
        {"url": "https://x/y z"}, {"url": "file:///etc/passwd"}, {"referrer": "sarif"}, {"referrer": "a/b?c=d"},
    ],
)  # fmt: skip
def test_a_target_names_a_report_by_exactly_one_well_formed_place(report: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        SecuritySubject.model_validate({"report": report})


@pytest.mark.parametrize(
    "report",
    [
        {"file": "${service}/${canary_version}.json"}, {"file": "ml/2.13.0-gpu+cu12.json"},
        {"url": "https://scans.internal:8443/api/v1/${canary_version}?format=sarif"},
        {"referrer": "application/sarif+json"},
    ],
)  # fmt: skip
def test_places_may_hold_templates(report: dict[str, str]) -> None:
    subject = SecuritySubject.model_validate({"report": report})
    assert SecuritySubject.from_json(subject.to_json()) == subject


def test_no_version_of_an_event_makes_the_host_of_a_registry() -> None:
    for image in ("ghcr.io/ml/tf:${canary_version}", "tf:${canary_version}", "r/${canary_version}"):
        assert SecuritySubject(image=image).image == image
    for image in ("r.${canary_version}/tf:1", "${canary_version}/tf", "$stable_version:5000/tf"):
        with pytest.raises(ValidationError, match="must not be part of a registry's host"):
            SecuritySubject(image=image)


def test_a_limit_that_limits_nothing_is_a_mistake() -> None:
    with pytest.raises(ValidationError, match="a limit needs total, fixable or both"):
        SecurityGate.model_validate({"limits": {"high": {}}})
