"""The gate as a whole: what it says, and that what could not be read is neither a pass nor an exception."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.model.gates.report import Candidate, Finding, GateReport
from service.model.gates.security import Posture, ReportPlace, SecurityGate, SecuritySubject
from service.model.names import ServiceKey
from service.preflight.outside import Allowed, Outside
from service.preflight.security.gate import SecurityLook
from service.preflight.security.sources import MAX_REPORT_BYTES, Attached, KnownImage, ReportSources
from service.preflight.security.workload import Workload, workload
from service.ring.ports import Refused, Unavailable
from tests.unit.preflight.security.forms import (
    CONFIG,
    DIGEST,
    FOUND,
    IMAGE,
    OTHER,
    One,
    clair,
    text,
    trivy,
    trivy_sarif,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
CLEAN = tuple(one for one in FOUND if one.severity in ("LOW", "MEDIUM"))
SAFE = {"runAsUser": 1000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
SUBJECT = SecuritySubject(report=ReportPlace(file="scan.json"), deployment="tf", namespace="ml", container="tf")


def candidate(artifact: str = "") -> Candidate:
    service = ServiceKey(cluster="default", namespace="ml", name="tf")
    return Candidate(service=service, version="2.13.0", stable_version="2.12.0", artifact=artifact)


def deployed(
    *pods: dict[str, Any], context: dict[str, Any] | None = None, image: str = IMAGE, **changes: Any
) -> Workload:
    container = {"name": "tf", "image": image, "securityContext": SAFE if context is None else context}
    template = {"spec": {"containers": [container], **changes}}
    return workload({"kind": "Deployment", "metadata": {"name": "tf"}, "spec": {"template": template}}, pods)


def pod(name: str, context: dict[str, Any], image_id: str = "", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "tf", "image": IMAGE, "securityContext": context}, {"name": "istio-proxy", "image": "p"}]
    status = {"phase": "Running", "containerStatuses": [{"name": "tf", "imageID": image_id}]}
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}, "status": status}


class Cluster:
    """One Deployment, or why there is none."""

    def __init__(self, answer: Workload | Exception) -> None:
        self.answer = answer

    async def workload(self, namespace: str, deployment: str) -> Workload:
        assert (namespace, deployment) == ("ml", "tf")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Registry:
    """Images by their references, and one attached report."""

    def __init__(self, known: dict[str, KnownImage] | None = None, attached: bytes | None = None) -> None:
        self.images = known or {}
        self.report = attached
        self.asked: list[tuple[str, str]] = []

    async def known(self, reference: str, platform: str) -> KnownImage:
        assert platform == "linux/amd64"
        if reference not in self.images:
            raise Unavailable("the registry is away")
        return self.images[reference]

    async def attached(self, reference: str, platform: str, media_type: str, *, limit_bytes: int) -> Attached:
        self.asked.append((reference, media_type))
        if self.report is None:
            raise Refused(f"nothing of type {media_type} is attached to {reference}")
        return Attached(self.report, NOW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, trivy(CLEAN))
    return tmp_path


def put(folder: Path, document: Any, name: str = "scan.json", written: datetime = NOW) -> None:
    raw = document if isinstance(document, bytes) else text(document)
    (folder / name).write_bytes(raw)
    os.utime(folder / name, (written.timestamp(), written.timestamp()))


async def look(
    folder: Path | None,
    there: Workload | Exception | None = None,
    *,
    rule: SecurityGate | None = None,
    subject: SecuritySubject = SUBJECT,
    of: Candidate | None = None,
    images: Registry | None = None,
    outside: Outside | None = None,
) -> GateReport:
    sources = ReportSources(folder=folder, outside=outside, images=images)
    gate = SecurityLook(sources, Cluster(there or deployed()), images=images, now=lambda: NOW)
    return await gate.look(rule or SecurityGate(), subject, of or candidate())


async def test_a_clean_report_and_a_careful_pod_pass(folder: Path) -> None:
    report = await look(folder, of=candidate(f"{IMAGE}@{DIGEST}"))
    assert report.finding is Finding.PASSED
    assert report.to_do == ""
    assert (
        report.sentence
        == "0 critical (limit 0); 0 high with a fix (limit 0); the report is of this image (a1a1a1a1a1a1)."
    )
    assert report.facts == {
        "critical": "0 (limit 0)", "high": "0", "high, fixable": "0 (limit 0)", "medium": "1", "low": "1",
        "report": "Trivy 0.74.0: 2 findings", "scanned image": "a1a1a1a1a1a1", "user": "1000 (container)",
        "root file system": "read-only", "runtime": "the cluster's default",
    }  # fmt: skip


async def test_vulnerabilities_beyond_the_limits_fail_and_are_named(folder: Path) -> None:
    put(folder, trivy())
    report = await look(folder)
    assert report.finding is Finding.FAILED
    assert report.sentence == "1 critical (limit 0); 1 high with a fix (limit 0)."
    assert "accept each by an allowance" in report.to_do
    assert report.lines[0].startswith("critical: CVE-2024-3094 in xz-utils 5.6.0-0.2 (fixed in 5.6.1")


async def test_a_pod_with_too_many_rights_fails_whatever_the_report_says(folder: Path) -> None:
    report = await look(folder, deployed(context={"runAsUser": 0, "privileged": True}, hostNetwork=True))
    assert report.finding is Finding.FAILED
    assert report.sentence.startswith(
        "Container tf: user 0, root (container); container tf: no read-only root file system"
    )
    assert "privileged: root on the node" in " ".join(report.lines)
    assert report.facts["user"] == "0, root (container)"


async def test_all_forms_of_one_scan_give_the_same_answer(folder: Path) -> None:
    answers = []
    for form in (trivy, clair, trivy_sarif):
        put(folder, form())
        report = await look(folder, of=candidate(f"{IMAGE}@{DIGEST}"))
        facts = {name: value for name, value in report.facts.items() if name not in ("report", "scanned image")}
        answers.append((report.finding, report.sentence, report.to_do, facts))
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "no valid JSON"),
        (b'{"SchemaVersion": 2, "Results": [', "ends before|no valid JSON"),
        (trivy(Results=[]), "looked at no packages"),
        (trivy(CLEAN, CreatedAt="2026-11-01T00:00:00Z"), "longer ago than 7 d"),
        (trivy(CLEAN, CreatedAt="2027-11-01T00:00:00Z"), "still to come"),
    ],
)
async def test_a_report_that_is_no_evidence_is_no_pass(folder: Path, document: Any, why: str) -> None:
    put(folder, document)
    report = await look(folder)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert report.to_do
    assert re.search(why, report.sentence)


async def test_a_report_of_another_image_is_no_pass_and_its_findings_still_count(folder: Path) -> None:
    other = candidate(f"{IMAGE}@{OTHER}")
    report = await look(folder, of=other)
    assert (report.finding, "is of image a1a1a1a1a1a1" in report.sentence) == (Finding.COULD_NOT_LOOK, True)
    put(folder, trivy())
    assert (await look(folder, of=other)).finding is Finding.FAILED


async def test_the_image_that_the_pods_pulled_tells_whether_the_report_is_of_it(folder: Path) -> None:
    same = await look(folder, deployed(pod("a", SAFE, f"ghcr.io/ml/tf@{DIGEST}")))
    assert same.finding is Finding.PASSED
    other = await look(folder, deployed(pod("a", SAFE, f"ghcr.io/ml/tf@{OTHER}")))
    assert other.finding is Finding.COULD_NOT_LOOK


async def test_pods_that_pulled_another_image_by_the_same_tag_are_not_covered_by_the_report(folder: Path) -> None:
    images = Registry({IMAGE: KnownImage(frozenset({DIGEST, CONFIG}), "1000")})
    old, new = pod("a", SAFE, f"ghcr.io/ml/tf@{OTHER}"), pod("b", SAFE, f"ghcr.io/ml/tf@{DIGEST}")
    for pods, registry in (((old,), images), ((old, new), images), ((new, old), None)):
        report = await look(folder, deployed(*pods), images=registry)
        assert report.finding is Finding.COULD_NOT_LOOK
        assert "c3c3c3c3c3c3" in report.sentence
    # By its configuration, which the registry knows for the same image.
    same = pod("c", SAFE, CONFIG)
    assert (await look(folder, deployed(new, same), images=images)).finding is Finding.PASSED


async def test_the_user_of_the_image_that_a_tag_names_now_is_not_taken_for_that_of_the_pods(folder: Path) -> None:
    context = SAFE | {"runAsUser": None}
    there = deployed(pod("a", context, f"ghcr.io/ml/tf@{OTHER}"), context=context)
    for registry in (Registry({IMAGE: KnownImage(frozenset({DIGEST, CONFIG}), "1000")}), None):
        report = await look(folder, there, images=registry)
        assert report.finding is Finding.COULD_NOT_LOOK
        assert "not known" in report.facts["user"]


async def test_a_report_of_a_proxy_beside_the_candidate_does_not_pass_for_the_candidates(folder: Path) -> None:
    proxy = {"name": "proxy", "image": "ghcr.io/ml/proxy:1", "securityContext": SAFE}
    init = {"name": "init", "image": "ghcr.io/ml/init:1", "securityContext": SAFE}
    template = deployed(image=f"ghcr.io/ml/other@{OTHER}", initContainers=[init]).template
    two = Workload("tf", {**template, "containers": [*template["containers"], {**proxy, "image": f"p@{DIGEST}"}]})
    everything = SUBJECT.model_copy(update={"container": None})
    report = await look(folder, two, subject=everything)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "runs several images, and of which one the report must be is not said" in report.sentence
    for update in ({"container": "tf"}, {"container": None, "image": "ghcr.io/ml/other:1"}):
        report = await look(folder, two, subject=SUBJECT.model_copy(update=update))
        assert (report.finding, "the candidate's is c3c3c3c3c3c3" in report.sentence) == (Finding.COULD_NOT_LOOK, True)
    for update in ({"container": "proxy"}, {"container": None, "image": "p:1"}):
        assert (await look(folder, two, subject=SUBJECT.model_copy(update=update))).finding is Finding.PASSED
    nowhere = await look(folder, two, subject=everything.model_copy(update={"image": "ghcr.io/ml/absent:1"}))
    assert "has no container with an image of ghcr.io/ml/absent:1" in nowhere.sentence
    # Init containers have an image of their own, which is no question.
    one = Workload("tf", {**template, "containers": [{**proxy, "image": f"p@{DIGEST}"}]})
    assert (await look(folder, one, subject=everything)).finding is Finding.PASSED


async def test_what_an_event_says_of_the_image_counts_less_than_what_runs(folder: Path) -> None:
    of = candidate(f"{IMAGE}@{DIGEST}")
    report = await look(folder, deployed(image=f"{IMAGE}@{OTHER}"), of=of)
    assert (report.finding, "the candidate's is c3c3c3c3c3c3" in report.sentence) == (Finding.COULD_NOT_LOOK, True)
    assert (await look(folder, deployed(pod("a", SAFE, f"x@{OTHER}")), of=of)).finding is Finding.COULD_NOT_LOOK
    assert (await look(folder, deployed(), of=of)).finding is Finding.PASSED


async def test_the_registry_tells_digests_and_the_user_of_the_image(folder: Path) -> None:
    context = SAFE | {"runAsUser": None}
    for user, finding in (("1000", Finding.PASSED), ("", Finding.FAILED), ("app", Finding.COULD_NOT_LOOK)):
        images = Registry({IMAGE: KnownImage(frozenset({DIGEST, CONFIG}), user)})
        report = await look(folder, deployed(context=context), images=images)
        assert report.finding is finding, user
    other = Registry({IMAGE: KnownImage(frozenset({OTHER}), "1000")})
    assert (await look(folder, deployed(context=context), images=other)).finding is Finding.COULD_NOT_LOOK


async def test_a_registry_that_is_away_is_told_and_only_matters_where_nothing_else_tells_the_user(folder: Path) -> None:
    put(folder, clair(CLEAN))
    report = await look(folder, images=Registry())
    assert report.finding is Finding.PASSED
    assert any("the registry could not be asked" in line for line in report.lines)
    report = await look(folder, deployed(context=SAFE | {"runAsUser": None}), images=Registry())
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "user not known" in report.sentence


async def test_trivys_report_tells_the_user_of_the_image_that_it_names_and_of_no_other(folder: Path) -> None:
    context = SAFE | {"runAsUser": None}
    assert (await look(folder, deployed(context=context))).facts["user"] == "1000 (image)"
    other = await look(folder, deployed(context=context, image="ghcr.io/ml/other:1"))
    assert "not known" in other.facts["user"]


async def test_pods_are_judged_rather_than_the_template_and_each_that_differs_is_named(folder: Path) -> None:
    there = deployed(pod("a", SAFE), pod("b", SAFE | {"runAsUser": 0}), context={})
    report = await look(folder, there)
    assert report.finding is Finding.FAILED
    assert report.sentence == "Container tf: user 0, root (container)."
    assert "pod b differs from the others: user 0, root (container)" in report.lines
    assert (await look(folder, deployed(pod("a", SAFE), context={}))).finding is Finding.PASSED


async def test_what_admission_adds_beside_the_candidate_is_not_asked_unless_it_is_privileged(folder: Path) -> None:
    everything = SUBJECT.model_copy(update={"container": None})
    assert (await look(folder, deployed(pod("a", SAFE)), subject=everything)).finding is Finding.PASSED
    with_proxy = pod("a", SAFE)
    with_proxy["spec"]["containers"][1]["securityContext"] = {"privileged": True}
    assert (await look(folder, deployed(with_proxy), subject=everything)).finding is Finding.FAILED


async def test_a_runtime_class_that_the_policy_asks_for_must_be_there(folder: Path) -> None:
    rule = SecurityGate(posture=Posture(runtime_classes=("gvisor",)))
    assert (await look(folder, rule=rule)).finding is Finding.FAILED
    there = await look(folder, deployed(runtimeClassName="gvisor"), rule=rule)
    assert (there.finding, there.facts["runtime"]) == (Finding.PASSED, "gvisor")


async def test_a_cluster_that_cannot_be_read_is_no_pass(folder: Path) -> None:
    for trouble in (Refused("there is no Deployment ml/tf"), Unavailable("the API server answers 503")):
        report = await look(folder, trouble)
        assert report.finding is Finding.COULD_NOT_LOOK
        assert str(trouble) in report.sentence
    unlisted = workload({"spec": {"template": {"spec": {"containers": [{"name": "tf", "securityContext": SAFE}]}}}},
                        unlisted="the pods cannot be listed")  # fmt: skip
    assert (await look(folder, unlisted)).finding is Finding.COULD_NOT_LOOK
    missing = await look(folder, subject=SUBJECT.model_copy(update={"container": "model"}))
    assert missing.finding is Finding.COULD_NOT_LOOK
    assert "there is no container model; there are: tf" in missing.sentence


async def test_what_the_policy_asks_and_the_target_does_not_name_is_no_pass(folder: Path) -> None:
    for subject in (SUBJECT.model_copy(update={"report": None}), SUBJECT.model_copy(update={"deployment": None})):
        report = await look(folder, subject=subject)
        assert report.finding is Finding.COULD_NOT_LOOK
        assert "in the target" in report.to_do


async def test_what_the_policy_does_not_ask_is_not_looked_at(folder: Path) -> None:
    only_report = await look(folder, Refused("no"), rule=SecurityGate(posture=None))
    assert only_report.finding is Finding.PASSED
    only_posture = SecurityGate(limits={}, secrets=None)
    assert (await look(None, rule=only_posture)).finding is Finding.PASSED


async def test_with_only_new_stables_report_is_read_too(folder: Path) -> None:
    put(folder, trivy())
    put(folder, clair(), "stable.json")
    rule = SecurityGate(only_new=True)
    subject = SUBJECT.model_copy(update={"stable_report": ReportPlace(file="stable.json")})
    assert (await look(folder, rule=rule, subject=subject)).finding is Finding.PASSED
    (folder / "stable.json").unlink()
    report = await look(folder, rule=rule, subject=subject)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert "cannot be told without stable's report" in report.sentence


async def test_files_outside_of_the_folder_and_what_is_no_file_are_not_opened(
    folder: Path, tmp_path_factory: Any
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.json"
    secret.write_bytes(text(trivy(CLEAN)))
    (folder / "link.json").symlink_to(secret)
    (folder / "sub").symlink_to(secret.parent)
    (folder / "inside.json").symlink_to(folder / "scan.json")
    os.mkfifo(folder / "pipe.json")
    (folder / "dir.json").mkdir()
    with (folder / "huge.json").open("wb") as huge:
        huge.truncate(MAX_REPORT_BYTES + 1)
    for name, why in (
        ("link.json", "lies outside"), ("sub/secret.json", "lies outside"), ("pipe.json", "is no file"),
        ("dir.json", "is no file"), ("absent.json", "No such file"), ("huge.json", "at most"),
    ):  # fmt: skip
        report = await look(folder, subject=SUBJECT.model_copy(update={"report": ReportPlace(file=name)}))
        assert report.finding is Finding.COULD_NOT_LOOK
        assert why in report.sentence, name
    inside = await look(folder, subject=SUBJECT.model_copy(update={"report": ReportPlace(file="inside.json")}))
    assert inside.finding is Finding.PASSED


@asynccontextmanager
async def served(handler: Callable[[web.Request], Any]) -> AsyncIterator[tuple[Outside, SecuritySubject]]:
    app = web.Application()
    app.router.add_get("/scan.json", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    place = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with Outside(Allowed.listed([f"http://{place}"])) as outside:
            report = ReportPlace(url=f"http://{place}/scan.json?key=geheim")
            yield outside, SUBJECT.model_copy(update={"report": report})
    finally:
        await runner.cleanup()


async def test_a_report_comes_from_an_address_with_its_age(folder: Path) -> None:
    for days, finding in ((1, Finding.PASSED), (8, Finding.COULD_NOT_LOOK)):
        modified = format_datetime(NOW - timedelta(days=days), usegmt=True)

        async def answer(_: web.Request, modified: str = modified) -> web.Response:
            return web.Response(body=text(clair(CLEAN)), headers={"Last-Modified": modified})

        async with served(answer) as (outside, subject):
            assert (await look(folder, subject=subject, outside=outside)).finding is finding


@pytest.mark.parametrize("status", [204, 301, 403, 404, 429, 500])
async def test_an_address_that_answers_with_no_report_is_no_pass_and_its_key_is_not_shown(
    folder: Path, status: int
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    async with served(answer) as (outside, subject):
        report = await look(folder, subject=subject, outside=outside)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert f"answers {status}" in report.sentence
    assert "geheim" not in report.to_json()


async def test_an_address_inside_is_not_fetched_unless_the_operator_listed_it(folder: Path) -> None:
    async with Outside() as outside:
        for url in ("https://169.254.169.254/latest", "http://scans.example.org/scan.json", "https://127.0.0.1/x"):
            subject = SUBJECT.model_copy(update={"report": ReportPlace(url=url)})
            report = await look(folder, subject=subject, outside=outside)
            assert report.finding is Finding.COULD_NOT_LOOK
    assert "reports are not fetched here" in (await look(folder, subject=subject)).sentence


async def test_a_report_that_is_attached_in_the_registry_is_asked_for_at_the_candidates_image(folder: Path) -> None:
    subject = SUBJECT.model_copy(update={"report": ReportPlace(referrer="application/sarif+json")})
    images = Registry({}, text(trivy_sarif(CLEAN)))
    assert (await look(folder, subject=subject, images=images)).finding is Finding.PASSED
    named = subject.model_copy(update={"image": IMAGE, "deployment": None})
    rule = SecurityGate(posture=None)
    for artifact in (f"ghcr.io/ml/tf@{DIGEST}", f"evil.example/ml/tf@{DIGEST}", f"ghcr.io/ml/other@{DIGEST}"):
        of = candidate(artifact)
        assert (await look(folder, subject=named, images=images, of=of, rule=rule)).finding is Finding.PASSED
    assert images.asked == [
        (reference, "application/sarif+json") for reference in (IMAGE, f"{IMAGE}@{DIGEST}", IMAGE, IMAGE)
    ]
    nothing = await look(folder, subject=subject, images=Registry())
    assert "nothing of type application/sarif+json is attached" in nothing.sentence
    assert "registries are not asked here" in (await look(folder, subject=subject)).sentence


async def test_a_registry_and_an_address_that_hang_are_left_when_the_time_is_over(folder: Path) -> None:
    class Hanging(Registry):
        async def known(self, reference: str, platform: str) -> KnownImage:
            await asyncio.sleep(3600)
            raise AssertionError

    rule = SecurityGate(within_s=0.05)
    report = await look(folder, deployed(context={"runAsUser": 0}), rule=rule, images=Hanging())
    assert report.finding is Finding.FAILED
    assert any("before the gate's time was over" in line for line in report.lines)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    async with served(hang) as (outside, subject):
        report = await look(folder, subject=subject, outside=outside, rule=rule)
    assert report.finding is Finding.COULD_NOT_LOOK
    assert report.sentence == "No report: the report could not be read before the gate's time was over."


async def test_an_answer_stays_within_its_bounds_whatever_was_found(folder: Path) -> None:
    many = tuple(One(f"CVE-2024-{n}\x1b[31m" + "x" * 99, "CRITICAL", "p\n" * 99, "v" * 300) for n in range(200))
    document = trivy(many)
    document["Results"].append({"Target": "t" * 900, "Secrets": [{"RuleID": "r" * 300}] * 50})
    put(folder, document)
    context = {"capabilities": {"add": ["A" * 900] * 90}, "runAsUser": 0}
    report = await look(
        folder, deployed(*(pod(f"p{n}", context | {"runAsUser": n}) for n in range(60)), context=context)
    )
    assert report.finding is Finding.FAILED
    assert len(report.lines) == 40
    assert all(line.isprintable() for line in (report.sentence, report.to_do, *report.lines, *report.facts.values()))
    assert GateReport.from_json(report.to_json()) == report
