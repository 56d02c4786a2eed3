"""Every form gives the same findings, and a report that shows that nothing was looked at is no clean one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from service.model.gates.security import Severity
from service.preflight.security.picking import Malformed
from service.preflight.security.reading import ReportReader
from service.preflight.security.reports import Kind, Nothing, Report, digests_of, moment_of, severity_of
from tests.unit.preflight.security.forms import (
    CONFIG,
    DIGEST,
    FOUND,
    IMAGE,
    LAYER,
    One,
    clair,
    clair_action_sarif,
    grype_sarif,
    sarif,
    text,
    trivy,
    trivy_sarif,
)

FORMS: dict[str, Callable[..., dict[str, Any]]] = {
    "trivy": trivy, "clair": clair, "trivy-sarif": trivy_sarif, "grype-sarif": grype_sarif,
    "clair-action-sarif": clair_action_sarif,
}  # fmt: skip


def read(document: Any, piece_bytes: int = 1 << 20) -> Report:
    raw = document if isinstance(document, bytes) else text(document)
    reader = ReportReader()
    for start in range(0, len(raw), piece_bytes):
        reader.feed(raw[start : start + piece_bytes])
    return reader.close()


def told(report: Report, *, fixed: bool = True) -> set[tuple[str, ...]]:
    return {(f.id, f.severity.value, f.package, f.installed, f.fixed if fixed else "") for f in report.found}


def wanted(*, fixed: bool = True) -> set[tuple[str, ...]]:
    return {(o.id, o.severity.lower(), o.package, o.installed, o.fixed if fixed else "") for o in FOUND}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_findings(form: str) -> None:
    # clair-action writes no fixed version.
    fixed = form != "clair-action-sarif"
    report = read(FORMS[form]())
    expected = wanted(fixed=fixed)
    if form == "grype-sarif":
        expected = {(i, "low" if severity == "unknown" else severity, *rest) for i, severity, *rest in expected}
    assert told(report, fixed=fixed) == expected
    assert all(one.where and one.kind is Kind.VULNERABILITY for one in report.found)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
def test_where_the_pieces_are_cut_makes_no_difference(form: str, piece_bytes: int) -> None:
    assert read(FORMS[form](), piece_bytes) == read(FORMS[form]())


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_members_makes_no_difference(form: str) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(one) for one in value] if isinstance(value, list) else value

    document = FORMS[form]()
    once, again = read(document), read(turned(document))
    assert told(once) == told(again)
    assert (once.digests, once.config_digest, once.names, once.created, once.scanner) == (
        again.digests, again.config_digest, again.names, again.created, again.scanner,
    )  # fmt: skip


def test_trivy_says_of_which_image_it_is_when_and_as_whom_the_image_runs() -> None:
    for report in (read(trivy()), read(trivy_sarif())):
        assert (report.digests, report.config_digest) == ({DIGEST}, CONFIG)
        assert report.names[0] == IMAGE
        assert report.scanner == "Trivy 0.74.0"
    report = read(trivy())
    assert report.created == datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
    assert report.image_user == "1000:1000"
    assert {one.where for one in report.found} == {
        f"layer {LAYER[7:19]}", *(f"usr/lib/python3/{name}.dist-info/METADATA" for name in ("setuptools", "ray")),
    }  # fmt: skip


def test_an_image_without_user_is_root_and_one_without_configuration_is_not_known() -> None:
    document = trivy()
    del document["Metadata"]["ImageConfig"]["config"]["User"]
    assert read(document).image_user == ""
    del document["Metadata"]["ImageConfig"]
    assert read(document).image_user is None


def test_clair_says_of_which_image_and_layer_it_is() -> None:
    report = read(clair())
    assert report.digests == {DIGEST}
    assert {one.where for one in report.found} == {f"layer {LAYER[7:19]}"}


@pytest.mark.parametrize(
    ("text_", "fixed"),
    [
        ("70.0.0", "70.0.0"), ("", ""), ("0:1.1.1k-6.el8_5", "0:1.1.1k-6.el8_5"), ("fixed=70.0.0", "70.0.0"),
        ("fixed=1.0%2Bcu1&introduced=0", "1.0+cu1"), ("introduced=2.2.0&lastAffected=3.0.1", ""), ("introduced=0", ""),
        ("lastAffected=1", ""), ("fixed=" + "&a=b" * 200, ""),
    ],
)  # fmt: skip
def test_clairs_ranges_of_language_packages_are_a_fix_only_where_they_name_one(text_: str, fixed: str) -> None:
    document = clair((One("CVE-2024-1", "HIGH", "p", "1"),))
    document["vulnerabilities"]["100"]["fixed_in_version"] = text_
    assert [one.fixed for one in read(document).found] == [fixed]


def test_several_of_clairs_updaters_that_tell_of_one_vulnerability_count_once_with_the_graver_word() -> None:
    document = clair((One("CVE-2024-1", "LOW", "libc6", "1", "2"),))
    more = copy.deepcopy(document["vulnerabilities"]["100"])
    more |= {"id": "101", "normalized_severity": "High", "fixed_in_version": ""}
    document["vulnerabilities"]["101"] = more
    document["package_vulnerabilities"]["10"].append("101")
    (one,) = read(document).found
    assert (one.severity, one.fixed) == (Severity.HIGH, "2")


def test_a_form_is_told_by_any_member_of_its_own() -> None:
    document = clair()
    for member in ("manifest_hash", "environments", "enrichments"):
        del document[member]
    assert told(read(document)) == wanted()
    with pytest.raises(Nothing):
        read({"package_vulnerabilities": {}})


def test_secrets_misconfigurations_and_what_the_scanner_took_out_are_told_apart() -> None:
    document = trivy(())
    document["Results"].append(
        {
            "Target": "/app/.aws/credentials",
            "Class": "secret",
            "Secrets": [{"RuleID": "aws-access-key-id", "Severity": "CRITICAL", "Title": "AWS", "Match": "AKIA***"}],
        }
    )
    document["Results"].append(
        {
            "Target": "Dockerfile",
            "Class": "config",
            "Misconfigurations": [
                {"ID": "DS-0002", "Severity": "HIGH", "Status": "FAIL"},
                {"ID": "DS-0003", "Severity": "HIGH", "Status": "PASS"},
            ],
        }
    )
    document["Results"][0]["ExperimentalModifiedFindings"] = [
        {
            "Type": "vulnerability",
            "Status": "ignored",
            "Source": ".trivyignore",
            "Finding": {"VulnerabilityID": "CVE-1"},
        }
    ]
    report = read(document)
    assert [(one.kind, one.id, one.where) for one in report.found] == [
        (Kind.SECRET, "aws-access-key-id", "/app/.aws/credentials"),
        (Kind.OTHER, "DS-0002", "Dockerfile"),
    ]
    assert report.suppressed_n == 1


def test_a_distribution_at_its_end_of_life_is_said() -> None:
    document = trivy()
    document["Metadata"]["OS"]["EOSL"] = True
    assert "debian 12.5 gets no security fixes any more" in read(document).remarks[0]


def one_result(**changes: Any) -> dict[str, Any]:
    return {"ruleId": "CVE-2024-1", "message": {"text": "x"}, **changes}


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, True),
        ({"kind": "fail"}, True),
        ({"kind": "pass"}, False),
        ({"kind": "notApplicable"}, False),
        ({"baselineState": "absent"}, False),
        ({"baselineState": "unchanged"}, True),
    ],
)
def test_of_sarif_only_results_that_stand_count(changes: dict[str, Any], counted: bool) -> None:
    assert bool(read(sarif([one_result(**changes)], [])).found) is counted


def test_what_a_scanner_marks_as_suppressed_counts_and_is_told() -> None:
    marked = [one_result(suppressions=[{"kind": "external"}]), one_result(ruleId="CVE-2024-2", suppressions=[])]
    report = read(sarif(marked, []))
    assert [one.id for one in report.found] == ["CVE-2024-1", "CVE-2024-2"]
    assert report.remarks == ("1 are marked as suppressed in the report, and count all the same",)


def test_an_advisory_is_found_in_the_rules_of_old_and_new_scanners() -> None:
    ids = {
        "CVE-2024-3094-xz-utils": "CVE-2024-3094", "ANCHOREVULN_x/y:1_CVE-2020-1234_deb_a_1.0": "CVE-2020-1234",
        "GHSA-4g4c-8gqh-m4vm-ray": "GHSA-4g4c-8gqh-m4vm", "[CRITICAL] CVE-2021-1234": "CVE-2021-1234",
        "SNYK-DEBIAN12-OPENSSL-1": "SNYK-DEBIAN12-OPENSSL-1", "XCVE-2024-3094": "XCVE-2024-3094",
    }  # fmt: skip
    found = read(sarif([one_result(ruleId=rule) for rule in ids], [])).found
    assert [one.id for one in found] == list(ids.values())


def test_two_versions_of_one_package_are_two_findings_though_grype_gives_them_one_rule() -> None:
    document = grype_sarif(
        (One("CVE-2024-1", "HIGH", "numpy", "1.24.3", "1.26"), One("CVE-2024-1", "HIGH", "numpy", "2.0"))
    )
    del document["runs"][0]["tool"]["driver"]["rules"][1]
    assert [(one.installed, one.fixed) for one in read(document).found] == [("1.24.3", "1.26"), ("2.0", "1.26")]


@pytest.mark.parametrize(
    ("score", "severity"),
    [
        ("10.0", "critical"), ("9.0", "critical"), ("8.9", "high"), ("7.0", "high"), ("6.9", "medium"), ("4", "medium"),
        ("3.9", "low"), ("0.1", "low"), ("0.0", "unknown"), ("10.1", "unknown"), ("NaN", "unknown"),
        ("high", "unknown"), (9.8, "critical"),
    ],
)  # fmt: skip
def test_a_score_is_taken_for_a_severity_as_cvss_does(score: object, severity: str) -> None:
    rule = {"id": "CVE-2024-1", "properties": {"security-severity": score}}
    (by_rule,) = read(sarif([one_result()], [rule])).found
    (by_result,) = read(sarif([one_result(properties={"security-severity": score})], [])).found
    assert by_rule.severity == by_result.severity == severity


def test_a_level_is_no_severity() -> None:
    (one,) = read(sarif([one_result(level="error")], [])).found
    assert one.severity is Severity.UNKNOWN


def test_a_rule_may_be_named_by_its_place_alone() -> None:
    rules = [{"id": "CVE-1"}, {"id": "SNYK-1", "properties": {"security-severity": "8.0"}}]
    for result in ({"ruleIndex": 1}, {"rule": {"index": 1}}, {"rule": {"id": "SNYK-1"}}):
        (one,) = read(sarif([{"message": {"text": "x"}, **result}], rules)).found
        assert one.severity is Severity.HIGH, result
    (beyond,) = read(sarif([{"ruleIndex": 7, "message": {"text": "x"}}], rules)).found
    assert (beyond.id, beyond.severity) == ("(no id)", Severity.UNKNOWN)


def test_trivys_secrets_in_sarif_are_secrets() -> None:
    rules = [{"id": "aws-access-key-id", "name": "Secret"}, {"id": "DS-0002", "name": "Misconfiguration"}]
    results = [{"ruleId": rule["id"], "message": {"text": "x"}} for rule in rules]
    assert [one.kind for one in read(sarif(results, rules)).found] == [Kind.SECRET, Kind.OTHER]


def test_the_age_of_sarif_is_that_of_its_oldest_run() -> None:
    document = sarif([], [], invocations=[{"executionSuccessful": True, "endTimeUtc": "2026-11-02T00:00:00Z"}])
    earlier = copy.deepcopy(document["runs"][0])
    earlier["invocations"][0]["endTimeUtc"] = "2026-11-01T00:00:00Z"
    document["runs"].append(earlier)
    assert read(document).created == datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({key: value for key, value in trivy().items() if key != "Results"}, "looked at no packages"),
        (trivy(Results=None), "looked at no packages"),
        (trivy(Results=[{"Target": "/app/key.pem", "Class": "secret"}]), "looked at no packages"),
        (clair(packages={}, package_vulnerabilities={}), "found no packages"),
        (clair(packages=None, package_vulnerabilities=None), "found no packages"),
        ({"version": "2.1.0", "runs": []}, "has no run"),
        ({"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "Trivy"}}}]}, "did not look"),
        (sarif([], [], results=None), "did not look"),
        (sarif([], [], invocations=[{"executionSuccessful": False}]), "did not succeed"),
    ],
)
def test_a_report_that_looked_at_nothing_is_not_a_clean_one(document: Any, why: str) -> None:
    with pytest.raises(Nothing, match=why):
        read(document)


@pytest.mark.parametrize("form", FORMS)
def test_a_report_without_findings_is_a_clean_one(form: str) -> None:
    assert read(FORMS[form](())).found == []


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "no valid JSON"),
        (b"not json", "no valid JSON"),
        (b'\xef\xbb\xbf{"runs": []}', "no valid JSON"),
        (b"[]", "should be an object and is an array"),
        (b'"text"', "should be an object and is a text"),
        ({}, "neither Trivy JSON nor Clair nor SARIF: the members at its top are none"),
        ({"matches": [], "source": {}}, "matches, source"),
        ({"bomFormat": "CycloneDX", "version": 1, "components": []}, "an SBOM"),
        ({"bomFormat": "CycloneDX", "components": []}, "an SBOM"),
        ({"spdxVersion": "SPDX-2.3", "packages": []}, "an SBOM"),
        (trivy() | {"runs": []}, "at once Trivy and SARIF"),
        (trivy(SchemaVersion=1), "schema version 1; version 2"),
        (trivy(SchemaVersion=None), r"schema version \(none\)"),
        ({"version": "2.0.0", "runs": []}, "SARIF of version 2.0.0"),
        (trivy(Results={"Target": "x"}), "Results should be an array and is an object"),
        (trivy(Results=["x"]), r"Results\[0\] should be an object and is a text"),
        (trivy(Results=[{}, {"Vulnerabilities": [{}, {"Severity": ["HIGH"]}]}]),
         r"Results\[1\]\.Vulnerabilities\[1\]\.Severity should be a text and is an array"),
        (trivy(Results=[{"Vulnerabilities": [{"Severity": 4}]}]), "Severity should be a text and is a number"),
        (clair(packages=[]), "packages should be an object"),
        (clair(package_vulnerabilities={"10": ["999"]}), "names vulnerability '999'"),
        (clair(package_vulnerabilities={"999": ["100"]}), "names package '999'"),
        (sarif([one_result(ruleIndex=True)], []), "ruleIndex should be a text and is true or false"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused_with_its_place(document: Any, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        read(document)


@pytest.mark.parametrize("form", FORMS)
def test_a_report_that_was_cut_off_is_never_taken_for_a_whole_one(form: str) -> None:
    raw = text(FORMS[form]()).rstrip()
    for end in range(0, len(raw), 997):
        with pytest.raises(Malformed):
            read(raw[:end])
    with pytest.raises(Malformed):
        read(raw + b"{}")


@pytest.mark.parametrize(
    "raw",
    [
        '{"SchemaVersion": 2, "Results": [{"Class": "os-pkgs", "Vulnerabilities": [{"Severity": "CRITICAL"}],'
        ' "Vulnerabilities": []}]}',
        '{"SchemaVersion": 2, "Results": [{"Class": "os-pkgs", "Vulnerabilities":'
        ' [{"Severity": "CRITICAL", "Severity": "LOW"}]}]}',
        '{"manifest_hash": "x", "packages": {"1": {"name": "a"}, "1": {"name": "b"}}}',
        '{"packages": {"1": {}}, "package_vulnerabilities": {"1": ["9"], "1": []}, "vulnerabilities": {"9": {}}}',
        '{"vulnerabilities": {"9": {"normalized_severity": "High"}, "9": {"normalized_severity": "Low"}}}',
        '{"version": "2.1.0", "runs": [], "runs": []}',
    ],
)
def test_of_two_members_with_one_name_neither_is_believed(raw: str) -> None:
    with pytest.raises(Malformed, match="twice"):
        read(raw.encode())


def test_the_runs_of_a_sarif_report_are_bounded() -> None:
    """An empty run is three bytes in the file and some eighty in memory."""
    one = b'{"results":[],"tool":{"driver":{"name":"x"}}}'
    whole = b'{"version":"2.1.0","runs":[' + b",".join([one] * 100) + b"]}"
    assert read(whole).scanner == "x"
    with pytest.raises(Malformed, match="more than 100 runs"):
        read(whole.replace(b"[{", b"[{},{", 1))


def test_words_for_severities() -> None:
    assert [severity_of(word) for word in ("Critical", "moderate", "Important", "Negligible", "", None, "x")] == [
        "critical", "medium", "high", "negligible", "unknown", "unknown", "unknown",
    ]  # fmt: skip


def test_digests_are_found_in_references_and_package_urls() -> None:
    assert digests_of(f"docker-pullable://x/y@{DIGEST}", CONFIG, None, "x:1") == {DIGEST, CONFIG}
    assert digests_of(f"pkg:oci/tf@{DIGEST.replace(':', '%3A')}?repository_url=x") == {DIGEST}
    assert digests_of("sha256:abc", f"x@{DIGEST}0") == frozenset()


def test_moments_that_mean_nothing_are_none() -> None:
    assert moment_of("2026-11-01T01:00:00.123456789+01:00") == datetime(2026, 11, 1, 0, 0, 0, 123456, tzinfo=UTC)
    for text_ in ("", None, "yesterday", "0001-01-01T00:00:00Z", "9999-99-99T00:00:00Z"):
        assert moment_of(text_) is None


def test_found_texts_are_cut() -> None:
    document = trivy((One("CVE-" + "9" * 5000, "HIGH", "p" * 5000, "v" * 5000, "f" * 5000),))
    (one,) = read(json.dumps(document).encode()).found
    assert max(map(len, (one.id, one.package, one.installed, one.fixed))) == 100
