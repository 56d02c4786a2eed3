"""The security gate: reads the report and the Deployment, holds both against the policy, and says what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from service.model.gates.report import Candidate, Finding, GateReport
from service.model.gates.security import Posture, ReportPlace, SecurityGate, SecuritySubject
from service.preflight.report import gate_report
from service.preflight.security import limits, posture, provenance
from service.preflight.security.checks import Check, Outcome
from service.preflight.security.picking import Malformed
from service.preflight.security.posture import NoSpec
from service.preflight.security.reports import Nothing, Report, digests_of, short
from service.preflight.security.sources import Images, KnownImage, Opened, read
from service.preflight.security.workload import Pod, Workload
from service.ring.ports import PortError, Unavailable

MAX_IMAGES_N = 5
"""Images of one pod that registries are asked about."""


class Workloads(Protocol):
    """The Deployments of one cluster."""

    async def workload(self, namespace: str, deployment: str) -> Workload:
        """The Deployment with its pods. Raises ``PortError``."""


class Sources(Protocol):
    """Where reports come from."""

    def opened(self, place: ReportPlace, reference: str, platform: str) -> AbstractAsyncContextManager[Opened]:
        """The report at a place. Raises ``PortError``."""


@dataclass(slots=True)
class _Answer:
    """What was gathered so far."""

    checks: list[Check] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


class SecurityLook:
    """Looks for the security gate.

    sources : where reports come from
    workloads : the cluster's Deployments
    images : registries, for the image's user and digests; None: what the pods and the report say has to do
    now : the present moment, in UTC
    """

    def __init__(
        self,
        sources: Sources,
        workloads: Workloads,
        *,
        images: Images | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sources = sources
        self._workloads = workloads
        self._images = images
        self._now = now

    async def look(self, rule: SecurityGate, subject: SecuritySubject, of: Candidate) -> GateReport:
        """The gate's answer. What cannot be read is COULD_NOT_LOOK, never an exception."""
        answer = _Answer()
        # What was seen before the time is over still counts.
        deadline = asyncio.get_running_loop().time() + rule.within_s
        there = await self._workload(rule, subject, deadline, answer)
        containers = None if subject.container is None else [subject.container]
        named = there.images(containers) if there else {}
        asked = _pinned(subject.image, of.artifact) if subject.image else ""
        known = await self._known([asked, *named.values()], subject.platform, deadline, answer)
        report = None
        if rule.needs_report:
            runs = _candidates(subject, there, asked)
            if there is not None and len(set(runs.values())) != 1:
                answer.checks.append(_ambiguous(there, runs, asked))
            report = await self._report(rule, subject, of, asked, runs, there, known, deadline, answer)
        if there is not None and rule.posture is not None:
            users = {
                name: known[image].user
                for name, image in named.items()
                # A tag may have been moved since the pods got what it named.
                if image in known and _by_tag(there, {name: image}) <= known[image].digests
            }
            if report is not None and report.image_user is not None:
                # The report repeats the configuration of the image that it names.
                users |= {
                    name: report.image_user
                    for name, image in named.items()
                    if name not in users and provenance.names_it(report, [image, *_ids(there, name)])
                }
            _judge_posture(answer, rule.posture, there, containers, users)
        return _answered(answer)

    async def _workload(
        self, rule: SecurityGate, subject: SecuritySubject, deadline: float, answer: _Answer
    ) -> Workload | None:
        if subject.deployment is None:
            if rule.posture is not None:
                said = "with which rights the candidate runs is not known: the target names no Deployment"
                answer.checks.append(
                    Check(Outcome.UNSEEN, said, "set deployment in the target, or posture: null in the policy")
                )
            return None
        try:
            async with _until(deadline, f"Deployment {subject.namespace}/{subject.deployment}"):
                return await self._workloads.workload(subject.namespace, subject.deployment)
        except PortError as error:
            if rule.posture is not None:
                to_do = "see that the Deployment exists before the event is sent, and that the Role allows get on it"
                answer.checks.append(Check(Outcome.UNSEEN, f"the pods' rights could not be seen: {error}", to_do))
            else:
                answer.lines.append(str(error))
            return None

    async def _known(
        self, references: Sequence[str], platform: str, deadline: float, answer: _Answer
    ) -> dict[str, KnownImage]:
        known: dict[str, KnownImage] = {}
        if self._images is None:
            return known
        for reference in list(dict.fromkeys(filter(None, references)))[:MAX_IMAGES_N]:
            try:
                async with _until(deadline, reference):
                    known[reference] = await self._images.known(reference, platform)
            except PortError as error:
                answer.lines.append(f"the registry could not be asked about {reference}: {error}")
        return known

    async def _report(
        self,
        rule: SecurityGate,
        subject: SecuritySubject,
        of: Candidate,
        asked: str,
        runs: Mapping[str, str],
        there: Workload | None,
        known: Mapping[str, KnownImage],
        deadline: float,
        answer: _Answer,
    ) -> Report | None:
        if subject.report is None:
            to_do = "set report in the target, or limits: {} and secrets: null in the policy"
            answer.checks.append(Check(Outcome.UNSEEN, "the target names no scan report", to_do))
            return None
        reference = asked or next(iter(runs.values()), "")
        try:
            report, written = await self._read(subject.report, reference, subject.platform, deadline)
        except (PortError, Malformed, Nothing) as error:
            to_do = "see that the scan of this release ran, and where it writes its report"
            answer.checks.append(Check(Outcome.UNSEEN, f"no report: {error}", to_do))
            return None
        stable, no_stable = None, "the target names none"
        if rule.only_new and subject.stable_report is not None:
            try:
                stable, _ = await self._read(subject.stable_report, "", subject.platform, deadline)
            except (PortError, Malformed, Nothing) as error:
                no_stable = str(error)
        now = self._now()
        references, digests = _image_of([*runs.values(), *_pulled(there, runs)], asked, of.artifact, known)
        ours = provenance.of_this_image(
            report, rule, references=references, digests=digests, pulled=_by_tag(there, runs)
        )
        fresh = provenance.of_today(report, rule, now=now, written=written)
        held = limits.hold(report, rule, today=now.date(), stable=stable, no_stable=no_stable)
        answer.checks += [*held.checks, ours, fresh]
        answer.lines += [*held.lines, *report.remarks]
        answer.facts |= held.facts | {
            "report": f"{report.scanner}: {len(report.found)} finding{'s' * (len(report.found) != 1)}"
        }
        if report.digests or report.config_digest:
            answer.facts["scanned image"] = short(min(report.digests, default=report.config_digest))
        return report

    async def _read(
        self, place: ReportPlace, reference: str, platform: str, deadline: float
    ) -> tuple[Report, datetime | None]:
        async with _until(deadline, "the report"), self._sources.opened(place, reference, platform) as opened:
            return await read(opened), opened.written


@asynccontextmanager
async def _until(deadline: float, what: str) -> AsyncIterator[None]:
    """Give up at this moment of the loop's clock, with an error that says of what."""
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise Unavailable(f"{what} could not be read before the gate's time was over") from error


def _pinned(image: str, artifact: str) -> str:
    """The target's image, with the digest that the event names for the same repository."""
    name, _, digest = artifact.partition("@")
    same = _repository(name) == _repository(image.partition("@")[0])
    return f"{image}@{digest}" if digest and same and "@" not in image else image


def _candidates(subject: SecuritySubject, there: Workload | None, asked: str) -> dict[str, str]:
    """The containers whose image a report has to be of, with their images."""
    if there is None:
        return {}
    if subject.container is not None:
        return there.images([subject.container])
    serving = there.images(there.serving)
    repository = _repository(asked.partition("@")[0])
    return {
        name: image
        for name, image in serving.items()
        if not asked or _repository(image.partition("@")[0]) == repository
    }


def _ambiguous(there: Workload, runs: Mapping[str, str], asked: str) -> Check:
    """A report of a proxy beside the candidate must not pass for the candidate's."""
    if not runs:
        said = f"Deployment {there.name} has no container with an image of {asked or 'any name'}"
        return Check(Outcome.UNSEEN, said, "see image and container of the target")
    said = f"Deployment {there.name} runs several images, and of which one the report must be is not said"
    return Check(Outcome.UNSEEN, said, "set container or image in the target")


def _repository(name: str) -> str:
    head, slash, last = name.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def _judge_posture(
    answer: _Answer, rule: Posture, there: Workload, containers: Collection[str] | None, users: Mapping[str, str]
) -> None:
    """Hold the pods against the policy where some run, else the template."""
    if containers is None:
        # What an admission webhook adds to the pods, such as a mesh's proxy, is not the candidate.
        containers = there.images().keys()
    if there.unlisted:
        to_do = "allow list on pods in the Role: what admission changes is seen only on them"
        answer.checks.append(Check(Outcome.UNSEEN, there.unlisted, to_do))
    judged: list[tuple[str, posture.Seen]] = []
    try:
        for pod in there.pods or (Pod("", there.template, {}, {}),):
            seen = posture.judge(pod.spec, rule, containers=containers, image_user=users.get, running_uid=pod.uids.get)
            judged.append((pod.name, seen))
    except NoSpec as error:
        to_do = "see the container's name in the target, and what admission makes of the pods"
        answer.checks.append(Check(Outcome.UNSEEN, f"Deployment {there.name}: {error}", to_do))
        return
    for name, seen in judged:
        for check in seen.checks:
            # Pods of one template say the same; what differs is said of the first pod that shows it.
            if check not in answer.checks:
                answer.checks.append(check)
        for fact, value in seen.facts.items():
            others = answer.facts.setdefault(fact, value)
            if value not in others.split("; "):
                answer.facts[fact] = f"{others}; {value}"
                answer.lines.append(f"pod {name} differs from the others: {fact} {value}")
    if there.more:
        answer.lines.append(f"the first {len(there.pods)} pods were looked at; there are more")
    elif not there.pods and not there.unlisted:
        answer.lines.append("no pod runs yet, so the Deployment's template was looked at")


def _image_of(
    runs: Sequence[str], asked: str, artifact: str, known: Mapping[str, KnownImage]
) -> tuple[list[str], frozenset[str]]:
    """How the candidate's image is called, and what registries know of it: by what runs, else by the target, else by
    the event.

    What an event says of an image is no evidence of what runs.
    """
    for references in (runs, [asked], [artifact]):
        called = [one for one in references if one]
        digests = frozenset[str]().union(*(known[one].digests for one in called if one in known))
        if digests or digests_of(*called):
            return called, digests
    return [one for one in (*runs, asked, artifact) if one], frozenset()


def _pulled(there: Workload | None, names: Collection[str]) -> list[str]:
    return [image for name in names for image in _ids(there, name)] if there else []


def _by_tag(there: Workload | None, images: Mapping[str, str]) -> frozenset[str]:
    """The digests of what pods got for containers whose image is named by a tag alone."""
    return digests_of(*_pulled(there, [name for name, image in images.items() if not digests_of(image)]))


def _ids(there: Workload, container: str) -> list[str]:
    return [pod.image_ids[container] for pod in there.pods if container in pod.image_ids]


def _answered(answer: _Answer) -> GateReport:
    bad = [check for check in answer.checks if check.outcome is Outcome.BAD]
    unseen = [check for check in answer.checks if check.outcome is Outcome.UNSEEN]
    good = [check for check in answer.checks if check.outcome is Outcome.GOOD]
    finding = Finding.FAILED if bad else Finding.COULD_NOT_LOOK if unseen else Finding.PASSED
    told = {Finding.FAILED: bad, Finding.COULD_NOT_LOOK: unseen, Finding.PASSED: good}[finding]
    said = "; ".join(check.said for check in told[:3]) or "the policy asks nothing of this gate"
    if len(told) > 3 and finding is not Finding.PASSED:
        said += f"; and {len(told) - 3} more"
    lines = [check.said for check in bad[3:]]
    lines += [
        f"could not be told: {check.said}" for check in unseen if finding is Finding.FAILED or check not in told[:3]
    ]
    lines += [
        *answer.lines,
        *(f"fine: {check.said}" for check in good if finding is not Finding.PASSED or check not in told[:3]),
    ]
    to_do = "; ".join(dict.fromkeys(check.to_do for check in (*bad, *unseen) if check.to_do))
    return gate_report("security", finding, said[:1].upper() + said[1:] + ".", to_do, lines=lines, facts=answer.facts)
