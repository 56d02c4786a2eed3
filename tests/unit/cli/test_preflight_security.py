"""`serinus preflight security`: what it says, with which status it leaves, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from service.cli.main import app
from service.model.gates.report import Finding, GateReport
from tests.unit.cli.test_cli import ROOT, serinus
from tests.unit.preflight.security.forms import DIGEST, FOUND, IMAGE, OTHER, trivy, trivy_sarif

CLEAN = tuple(one for one in FOUND if one.severity == "LOW")
SAFE = {"runAsNonRoot": True, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}


def security(*arguments: object) -> Result:
    # In this process, because starting one takes longer than most of what it is asked.
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["preflight", "security", *map(str, arguments)])


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return written(tmp_path / "scan.json", trivy(CLEAN, CreatedAt=None))


def written(file: Path, document: Any) -> Path:
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def manifest(file: Path, context: dict[str, Any], **more: Any) -> Path:
    container = {"name": "tf", "image": IMAGE, "securityContext": context}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "tf"},
        "spec": {"template": {"spec": {"containers": [container], **more}}},
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "tf"}}
    file.write_text(yaml.safe_dump_all([service, deployment]))
    return file


def test_a_clean_report_and_a_careful_manifest_pass(scan: Path, tmp_path: Path) -> None:
    done = security("--report", scan, "--deployment", manifest(tmp_path / "d.yaml", SAFE))
    assert done.exit_code == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PASSED  0 critical (limit 0); 0 high with a fix (limit 0)")
    assert "user                     1000 (image)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_is_beyond_the_limits_fails_with_what_to_do(scan: Path, tmp_path: Path) -> None:
    written(scan, trivy_sarif())
    done = security("--report", scan, "--deployment", manifest(tmp_path / "d.yaml", {}))
    assert done.exit_code == 1
    assert done.stdout.startswith("FAILED  1 critical (limit 0); 1 high with a fix (limit 0); container tf:")
    assert "To do: build the image on updated packages" in done.stdout
    assert "critical: CVE-2024-3094 in xz-utils" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_what_cannot_be_read_leaves_with_three(scan: Path, tmp_path: Path) -> None:
    written(scan, "{")
    done = security("--report", scan)
    assert (done.exit_code, done.stdout[:14]) == (3, "COULD NOT LOOK")
    assert security("--report", tmp_path / "absent.json").exit_code == 3
    assert security("--report", written(scan, trivy(CLEAN)), "--image", f"{IMAGE}@{OTHER}").exit_code == 3


def test_json_is_the_gates_report(scan: Path) -> None:
    done = security("--report", scan, "--image", f"{IMAGE}@{DIGEST}", "--json")
    report = GateReport.from_json(done.stdout)
    assert (report.gate, report.finding) == ("security", Finding.PASSED)
    assert report.facts["low"] == "1"


@pytest.mark.parametrize("whole", [False, True])
def test_a_policy_file_is_the_gate_or_a_whole_policy(scan: Path, tmp_path: Path, whole: bool) -> None:
    gate: dict[str, Any] = {
        "gate": "security",
        "limits": {"critical": {"total": 1}, "low": {"total": 0}},
        "allow": [{"id": "CVE-2016-2781", "reason": "a container has no terminal", "until": "2999-01-01"}],
    }
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump({"name": "x", "preflight": [{"gate": "image"}, gate]} if whole else gate))
    assert security("--report", scan, "--policy", policy).exit_code == 0
    gate.pop("allow")
    policy.write_text(yaml.safe_dump(gate))
    assert security("--report", scan, "--policy", policy).exit_code == 1


def test_only_what_is_new_against_stable_counts_where_the_policy_says_so(scan: Path, tmp_path: Path) -> None:
    policy = written(tmp_path / "p.yaml", "{only_new: true}")
    written(scan, trivy(CreatedAt=None))
    stable = written(tmp_path / "stable.json", trivy_sarif())
    assert security("--report", scan, "--policy", policy, "--stable-report", stable).exit_code == 0
    assert security("--report", scan, "--policy", policy).exit_code == 3


def test_the_images_user_can_be_told(tmp_path: Path) -> None:
    deployment = manifest(tmp_path / "d.yaml", SAFE | {"runAsNonRoot": None})
    for user, code in (("1000", 0), ("", 1), ("root", 1), ("app", 3)):
        assert security("--deployment", deployment, "--image-user", user).exit_code == code, user
    assert security("--deployment", deployment).exit_code == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system [id]", "is no YAML"),
        ("kind: Service", "holds 0 Deployments"),
        ("kind: Deployment\n---\nkind: Deployment", "holds 2 Deployments"),
        ("[" * 5000, "is no YAML"),
        ("x" * 1_000_001, "has more than 1000000 bytes"),
        ("\n".join(["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
                   + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]),
         "stands for more than 200000 values"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path, text: str, why: str) -> None:
    done = security("--deployment", written(tmp_path / "d.yaml", text))
    assert done.exit_code == 2
    assert why in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("limits: {hihg: {total: 0}}", "hihg"),
        ("limits: {high: {total: -1}}", "greater than or equal to 0"),
        ("allow: [{id: CVE-1, reason: because}]", "allow.0.until: Field required"),
        ("colour: red", "colour is not known; known: gate, limits, secrets, allow"),
        ("[]", "holds no mapping"),
        ("preflight: [{gate: image}]", "has no security gate"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(scan: Path, tmp_path: Path, text: str, why: str) -> None:
    done = security("--report", scan, "--policy", written(tmp_path / "p.yaml", text))
    assert done.exit_code == 2
    assert why in " ".join(done.stderr.split())


def test_the_help_teaches_within_eighty_columns() -> None:
    done = serinus("preflight", "security", "--help")
    assert "serinus preflight security --report scan.json" in done.stdout
    assert "Exit 0 passed, 1 failed, 2 wrong arguments, 3 could not look." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert security().exit_code == 2


def test_no_heavy_library_is_imported_for_the_help() -> None:
    program = (
        "import sys, service.cli.main\n"
        "print(sorted({'ijson', 'kubernetes', 'yaml', 'pydantic', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
