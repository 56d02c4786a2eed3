"""The chart: lints, renders for the ways it is used, refuses what cannot work, and grants exactly the needed rights."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.api.health import CHECK_S
from service.app.metrics import OwnMetrics
from service.cluster import LOGS_NEEDED, NEEDED, Right
from service.preflight.saved_model.cluster import NEEDED as JOBS_NEEDED
from service.preflight.security.cluster import NEEDED as WORKLOADS_NEEDED

CHART = Path(__file__).parents[3] / "helm" / "serinus"
TOKENS = ["--set", "secrets.apiTokens=serinus-tokens"]
EVERYTHING = [
    *TOKENS,
    "--set", "secrets.pagerduty=pd", "--set", "secrets.kafka=k", "--set", "secrets.prometheus=p",
    "--set", "rbac.namespaces={ml-a,ml-b}", "--set", "config.mode=enforce",
    "--set-file", f"policies.quick={CHART.parents[1] / 'config' / 'policies' / 'quick.yaml'}",
    "--set-file", f"targets.tf={CHART.parents[1] / 'config' / 'targets' / 'tf-model-service.yaml'}",
    *(part for name in ("http", "cadvisor", "kube-state-metrics", "dcgm")
      for part in ("--set-file", f"metrics.{name}={CHART.parents[1] / 'config' / 'metrics' / name}.yaml")),
    "--set-file", f"logs.tensorflow={CHART.parents[1] / 'config' / 'logs' / 'tensorflow.yaml'}",
    "--set", "secrets.loki=l", "--set", "config.loki.url=http://loki:3100",
]  # fmt: skip
POSTGRES = [
    *TOKENS,
    "--set", "replicaCount=3", "--set", "config.database.url=postgresql://serinus@db/serinus",
    "--set", "secrets.database=db",
]  # fmt: skip


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    binary = Path(sysconfig.get_path("scripts")) / "helm"
    return subprocess.run([str(binary), *arguments], capture_output=True, text=True, check=False, timeout=60)


def rendered(*values: str) -> list[dict[str, Any]]:
    done = helm("template", "serinus", str(CHART), "--namespace", "serinus", *values)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] == kind]


@pytest.mark.parametrize("values", [TOKENS, EVERYTHING, POSTGRES], ids=["least", "everything", "postgres"])
def test_the_chart_lints_and_renders(values: list[str]) -> None:
    done = helm("lint", str(CHART), *values)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {o["kind"] for o in rendered(*values)}
    assert {"Deployment", "ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Service"} <= kinds


def granted(*values: str) -> set[tuple[str, str, str]]:
    (role,) = of_kind(rendered(*TOKENS, *values), "Role")
    return rules_of(role)


def rules_of(role: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (v, g, r) for rule in role["rules"] for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]
    }


def needed(rights: Sequence[Right]) -> set[tuple[str, str, str]]:
    return {(need.verb, need.group, need.resource) for need in rights}


def test_the_role_grants_exactly_the_rights_that_the_code_asks_for() -> None:
    assert granted() == needed(NEEDED)
    assert not of_kind(rendered(*TOKENS), "ClusterRole")


@pytest.mark.parametrize(("switch", "more"), [("podLogs", LOGS_NEEDED), ("pods", WORKLOADS_NEEDED)])
def test_further_rights_are_only_granted_where_they_are_asked_for(switch: str, more: Sequence[Right]) -> None:
    assert granted("--set", f"rbac.{switch}=true") == needed((*NEEDED, *more))


def test_jobs_may_only_be_made_in_the_namespaces_that_are_named_for_them() -> None:
    serving, jobs = of_kind(rendered(*TOKENS, "--set", "rbac.jobNamespaces={preflight}"), "Role")
    assert jobs["metadata"]["namespace"] == "preflight"
    assert rules_of(jobs) == needed(JOBS_NEEDED)
    assert rules_of(serving) == needed(NEEDED)


def test_folders_and_logins_for_the_gates_can_be_mounted() -> None:
    objects = rendered(
        *TOKENS, "--set", "secrets.registryLogins=pull", "--set", "extraVolumes[0].name=models",
        "--set", "extraVolumes[0].persistentVolumeClaim.claimName=models",
        "--set", "extraVolumeMounts[0].name=models", "--set", "extraVolumeMounts[0].mountPath=/models",
    )  # fmt: skip
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounts["models"] == "/models"
    assert mounts["secret-registry"] == "/etc/serinus/secrets/registry"
    assert {"models", "secret-registry"} <= {one["name"] for one in pod["volumes"]}


def test_a_role_is_made_in_each_named_namespace() -> None:
    assert [r["metadata"]["namespace"] for r in of_kind(rendered(*EVERYTHING), "Role")] == ["ml-a", "ml-b"]


def test_the_pod_has_no_privilege_and_nothing_to_write_but_its_state() -> None:
    (deployment,) = of_kind(rendered(*EVERYTHING), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/var/lib/serinus", "/tmp"}
    assert pod["terminationGracePeriodSeconds"] > 10


def test_a_claim_for_exports_is_mounted_where_the_settings_say() -> None:
    objects = rendered(*TOKENS, "--set", "export.existingClaim=exports")
    (deployment,), (config,) = of_kind(objects, "Deployment"), of_kind(objects, "ConfigMap")
    folder = yaml.safe_load(config["data"]["serinus.yaml"])["retention"]["export_dir"]
    pod = deployment["spec"]["template"]["spec"]
    (volume,) = [v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim") == {"claimName": "exports"}]
    assert {"name": volume, "mountPath": folder} in pod["containers"][0]["volumeMounts"]


def test_no_secret_is_rendered_and_each_is_a_file() -> None:
    objects = rendered(*EVERYTHING)
    assert not of_kind(objects, "Secret")
    (config,) = of_kind(objects, "ConfigMap")
    settings = yaml.safe_load(config["data"]["serinus.yaml"])
    assert settings["pagerduty"]["routing_key_file"].startswith("/etc/serinus/secrets/")
    assert settings["loki"] == {"url": "http://loki:3100", "token_file": "/etc/serinus/secrets/loki/token"}
    assert settings["kafka"] == {
        "bootstrap_servers": "kafka:9092",
        "password_file": "/etc/serinus/secrets/kafka/password",
    }


def test_sqlite_is_recreated_and_postgres_rolls() -> None:
    (one,) = of_kind(rendered(*TOKENS), "Deployment")
    (many,) = of_kind(rendered(*POSTGRES), "Deployment")
    assert one["spec"]["strategy"] == {"type": "Recreate"}
    assert many["spec"]["strategy"] == {"type": "RollingUpdate"}
    assert of_kind(rendered(*TOKENS), "PersistentVolumeClaim")
    assert not of_kind(rendered(*POSTGRES), "PersistentVolumeClaim")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "secrets.apiTokens must name a Secret"),
        ([*TOKENS, "--set", "replicaCount=2"], "needs PostgreSQL"),
        ([*TOKENS, "--set", "replicaCount=0"], "replicaCount"),
        ([*TOKENS, "--set", "config.mode=yolo"], "mode"),
        ([*TOKENS, "--set", "replicaConut=1"], "replicaConut"),
    ],
)
def test_values_that_cannot_work_are_refused_with_their_name(values: list[str], words: str) -> None:
    done = helm("template", "serinus", str(CHART), *values)
    assert done.returncode != 0
    assert words in done.stderr


MONITORED = [*TOKENS, "--set", "serviceMonitor.enabled=true", "--set", "prometheusRule.enabled=true"]


def alerts() -> list[dict[str, Any]]:
    (rule,) = of_kind(rendered(*MONITORED), "PrometheusRule")
    (group,) = rule["spec"]["groups"]
    listed: list[dict[str, Any]] = group["rules"]
    return listed


def test_monitoring_is_rendered_only_where_it_is_asked_for() -> None:
    kinds = {o["kind"] for o in rendered(*EVERYTHING)}
    assert not {"ServiceMonitor", "PrometheusRule"} & kinds
    (monitor,) = of_kind(rendered(*MONITORED), "ServiceMonitor")
    (service,) = of_kind(rendered(*MONITORED), "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_every_alert_says_what_to_do_and_asks_for_metrics_that_there_are() -> None:
    own = OwnMetrics("1")
    names = {
        name for family in own.registry.collect()
        for name in (family.name, f"{family.name}_total", f"{family.name}_count", f"{family.name}_bucket")
    }  # fmt: skip
    found = alerts()
    assert len({alert["alert"] for alert in found}) == len(found) >= 10
    for alert in found:
        assert len(alert["annotations"]["runbook"]) > 80, alert["alert"]
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(re.findall(r"serinus_\w+", alert["expr"])) <= names, alert["alert"]
        assert 'job="serinus"' in alert["expr"]


def test_a_probe_waits_longer_than_the_service_for_its_own_parts() -> None:
    (deployment,) = of_kind(rendered(*TOKENS), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["timeoutSeconds"] > CHECK_S
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/livez"
