"""`serinus preflight security`: a scan report and a Deployment's manifest against a policy, without a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.gate_report import fault, refuse, tell

if TYPE_CHECKING:
    from service.model.gates.report import GateReport
    from service.model.gates.security import SecurityGate

MAX_YAML_BYTES = 1_000_000
MAX_YAML_NODES_N = 200_000
"""Aliases let a few lines stand for billions of values."""


def security(
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Scan report: Trivy JSON, Clair or SARIF, told by content")
    ] = None,
    deployment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Manifest with the candidate's Deployment")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with the gate's limits; else the defaults")
    ] = None,
    stable_report: Annotated[Path | None, typer.Option(metavar="FILE", help="Stable's report, for only_new")] = None,
    container: Annotated[str | None, typer.Option(metavar="NAME", help="The candidate's container; else all")] = None,
    image: Annotated[
        str, typer.Option(metavar="REF", help="The image, best with @sha256:..., which the report must be of")
    ] = "",
    image_user: Annotated[
        str | None,
        typer.Option(metavar="USER", help="USER of the image; '' for none. Else as the report says, if it does"),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as JSON")] = False,
) -> None:
    """Hold a scan report and a Deployment against limits.

    trivy image --format json -o scan.json ghcr.io/ml/tf:2.13.0

    serinus preflight security --report scan.json --deployment deploy.yaml

    Without a policy: no critical vulnerability, no high one that has a fix, no secret in the image, a report of at
    most seven days; not root, read-only root file system, no privilege escalation, nothing of the node shared. What
    is not given is not asked: without --deployment only the report is judged.

    A policy file:

    {limits: {critical: {total: 0}, high: {fixable: 0, total: 20}},
    allow: [{id: CVE-2024-1, reason: not reachable, until: 2026-12-31}],
    posture: {runtime_classes: [gvisor]}}

    Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look.
    """
    if report is None and deployment is None:
        raise typer.BadParameter("name --report, --deployment or both")
    rule = _rule(policy)
    changes: dict[str, Any] = {}
    if report is None:
        changes = {"limits": {}, "secrets": None}
    if deployment is None:
        changes["posture"] = None
    rule = rule.model_copy(update=changes)
    tell(
        asyncio.run(_looked(rule, report, stable_report, deployment, container, image, image_user)),
        json_output=json_output,
    )


async def _looked(
    rule: SecurityGate,
    report: Path | None,
    stable_report: Path | None,
    deployment: Path | None,
    container: str | None,
    image: str,
    image_user: str | None,
) -> GateReport:
    from contextlib import AbstractAsyncContextManager

    from service.model.gates.report import Candidate
    from service.model.gates.security import ReportPlace, SecuritySubject
    from service.model.names import ServiceKey
    from service.preflight.security.gate import SecurityLook
    from service.preflight.security.posture import NoSpec
    from service.preflight.security.sources import Attached, KnownImage, Opened, opened_file
    from service.preflight.security.workload import Workload, workload
    from service.ring.ports import Refused

    files = {"report": report, "stable-report": stable_report}

    class Files:
        """The two files of the command line, under names that a target could have."""

        def opened(self, place: ReportPlace, *_: str) -> AbstractAsyncContextManager[Opened]:
            file = files[place.file or ""] or Path()
            return opened_file(file, str(file))

    class Manifest:
        """The manifest of the command line."""

        async def workload(self, namespace: str, name: str) -> Workload:
            try:
                return workload(_deployment(deployment or Path()))
            except NoSpec as error:
                raise Refused(f"{deployment}: {error}") from error

    class Told:
        """The image's user as the command line says it."""

        async def known(self, *_: str) -> KnownImage:
            return KnownImage(frozenset(), image_user or "")

        async def attached(self, *_: str, limit_bytes: int) -> Attached:
            raise Refused("no registry is asked")

    subject = SecuritySubject(
        report=None if report is None else ReportPlace(file="report"),
        stable_report=None if stable_report is None else ReportPlace(file="stable-report"),
        deployment=None if deployment is None else "deployment",
        namespace="manifest",
        container=container,
    )
    of = Candidate(
        service=ServiceKey(cluster="manifest", namespace="manifest", name="candidate"),
        version="candidate",
        stable_version=None,
        artifact=image,
    )
    look = SecurityLook(Files(), Manifest(), images=None if image_user is None else Told())
    return await look.look(rule, subject, of)


def _rule(file: Path | None) -> SecurityGate:
    from pydantic import ValidationError

    from service.model.gates.security import SecurityGate

    if file is None:
        return SecurityGate()
    given = _yaml(file)
    if len(given) != 1 or not isinstance(given[0], dict):
        refuse(f"{file} holds no mapping of the gate's limits")
    found = given[0]
    if isinstance(found.get("preflight"), list):
        # A whole policy: its security gate.
        gates = [one for one in found["preflight"] if isinstance(one, dict) and one.get("gate") == "security"]
        if not gates:
            refuse(f"{file} has no security gate in its preflight")
        found = gates[0]
    try:
        return SecurityGate.model_validate(found)
    except ValidationError as error:
        refuse(f"{file}: {fault(error, known=SecurityGate.model_fields)}")


def _deployment(file: Path) -> Any:
    found = [one for one in _yaml(file) if isinstance(one, dict)]
    found += [each for one in found if isinstance(one.get("items"), list) for each in one["items"]]
    deployments = [one for one in found if isinstance(one, dict) and one.get("kind") == "Deployment"]
    if len(deployments) != 1:
        refuse(f"{file} holds {len(deployments)} Deployments; give a manifest with the candidate's alone")
    return deployments[0]


def _yaml(file: Path) -> list[Any]:
    import yaml

    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_YAML_BYTES + 1)
        if len(text) > MAX_YAML_BYTES:
            refuse(f"{file} has more than {MAX_YAML_BYTES} bytes")
        found = list(yaml.safe_load_all(text))
    except OSError as error:
        refuse(f"{file} cannot be read: {error.strerror}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        refuse(f"{file} is no YAML: {' '.join(str(error).split())[:200]}")
    left, nodes_n = list(found), 0
    while left:
        one = left.pop()
        nodes_n += 1
        if nodes_n > MAX_YAML_NODES_N:
            refuse(f"{file} stands for more than {MAX_YAML_NODES_N} values")
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return found
