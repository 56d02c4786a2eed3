"""Pods of other services that have an equal version: the doctor says whose they are, and what to set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.app.doctor import pods_of
from service.app.selecting import Deployment, deployments, mixed, selectors
from service.cluster import connect
from service.lab.kube_api import KubeApi
from service.model.preset import MetricsPreset
from service.model.target import Target
from service.ring.ports import Refused

PRESET = MetricsPreset.model_validate(
    {
        "name": "p",
        "pods": {"by": {"version": "label_version", "app": "label_app"}},
        "metrics": {"memory": {"kind": "resource", "series": "m", "measures": "memory", "unit": "B"}},
    }
)
NO_PODS = MetricsPreset.model_validate(
    {"name": "p", "metrics": {"lines": {"kind": "logs", "patterns": [{"name": "bad", "any_of": ["bad"]}]}}}
)
RANKER = [Deployment("ranker-v1", {"app": "ranker", "version": "v1"}),
          Deployment("ranker-v2", {"app": "ranker", "version": "v2"})]  # fmt: skip
TOO = "; its other series"
OTHER = Deployment("other", {"app": "other", "version": "v2"})


def target(**changes: Any) -> Target:
    given = {
        "namespace": "ml",
        "service": "ranker",
        "route": {"virtual_service": "r", "stable": {"host": "h"}, "canary": {"host": "h"}},
        "stable_labels": {"version": "v1"},
        "canary_labels": {"version": "v2"},
        "policy": "p",
    }
    return Target.model_validate(given | changes)


def said(of: Target, there: list[Deployment], preset: MetricsPreset = PRESET, *, logs: bool = False) -> list[str]:
    return mixed(of, selectors(of, preset, logs=logs), there)


def test_deployments_of_two_services_with_one_version_are_told_with_the_label_of_the_targets_own() -> None:
    (sentence,) = said(target(), [*RANKER, OTHER])
    assert sentence == (
        "ml/ranker takes the pods of Deployments ranker-v2 (app=ranker), other (app=other) alike for its canary, by "
        "the labels {version: v2}; set labels: {app: ranker} in the target; its other series must carry it too, which "
        "the look at labels checks"
    )


def test_a_target_that_names_its_app_and_one_whose_deployments_share_an_app_are_in_order() -> None:
    assert said(target(labels={"app": "ranker"}), [*RANKER, OTHER]) == []
    zones = [Deployment(f"ranker-v2-{zone}", {"app": "ranker", "version": "v2"}) for zone in "ab"]
    assert said(target(), [RANKER[0], *zones]) == []


def test_the_deployment_that_the_target_waits_for_says_which_app_is_its_own() -> None:
    renamed = [Deployment(one.name, {**one.labels, "app": "rank-app"}) for one in RANKER]
    (sentence,) = said(target(), [*renamed, OTHER])
    assert sentence.partition(TOO)[0].endswith("set labels: {app: ...} in the target")
    (sentence,) = said(target(readiness={"deployment": "ranker-${canary_version}"}), [OTHER, *renamed])
    assert sentence.partition(TOO)[0].endswith("set labels: {app: rank-app} in the target")


def test_where_versions_come_from_events_every_version_that_is_there_is_looked_at() -> None:
    of = target(stable_labels={"version": "${stable_version}"}, canary_labels={"version": "${canary_version}"})
    found = said(of, [*RANKER, OTHER])
    assert len(found) == 2
    assert all("{version: v2}" in sentence for sentence in found)


def test_a_target_of_many_services_is_told_to_name_the_service() -> None:
    (sentence,) = said(target(service="*"), [*RANKER, OTHER])
    assert sentence.partition(TOO)[0].endswith("set labels: {app: ${service}} in the target")


def test_pods_without_any_app_are_told_by_their_deployments() -> None:
    bare = [Deployment(name, {"version": "v2"}) for name in ("ranker", "other")]
    (sentence,) = said(target(), bare)
    assert "Deployments ranker, other alike" in sentence
    assert "give the pods of each service a label app of its own" in sentence


def test_labels_that_the_preset_does_not_map_are_told_with_the_mapping() -> None:
    key = "app.kubernetes.io/name"
    there = [Deployment(name, {key: name, "version": "v2"}) for name in ("ranker", "other")]
    (sentence,) = said(target(), there)
    assert sentence.partition(TOO)[0].endswith(
        "set labels: {app_kubernetes_io_name: ranker} in the target, and app_kubernetes_io_name: "
        "label_app_kubernetes_io_name in pods.by of its preset"
    )
    mapped = PRESET.model_copy(
        update={"pods": PRESET.pods and PRESET.pods.model_copy(update={"by": {
            "version": "label_version", "name": "label_app_kubernetes_io_name"}})}
    )  # fmt: skip
    (sentence,) = said(target(), there, mapped)
    assert sentence.partition(TOO)[0].endswith("set labels: {name: ranker} in the target")
    assert said(target(labels={"name": "ranker"}), there, mapped) == []


def test_the_pods_of_log_lines_are_looked_at_where_lines_are_read_from_pods() -> None:
    assert said(target(), [*RANKER, OTHER], NO_PODS) == []
    of = target(logs={"stable_labels": {"version": "v1"}, "canary_labels": {"version": "v2"}})
    (sentence,) = said(of, [*RANKER, OTHER], NO_PODS, logs=True)
    assert sentence.endswith("set logs.labels: {app: ranker} in the target")


def test_an_answer_of_another_form_makes_no_deployments() -> None:
    bad = [None, {}, {"metadata": {"name": "a"}, "spec": {"template": {"metadata": {"labels": None}}}}]
    good = {"metadata": {"name": "a"}, "spec": {"template": {"metadata": {"labels": {"app": "a"}}}}}
    assert deployments({"items": [*bad, good]}) == [Deployment("a", {"app": "a"})]
    assert deployments({}) == []


@pytest.fixture
async def kube() -> AsyncIterator[KubeApi]:
    async with KubeApi() as api:
        for one in (*RANKER, OTHER):
            body = {"template": {"metadata": {"labels": dict(one.labels)}}}
            api.put("deployments", {"metadata": {"name": one.name, "namespace": "ml"}, "spec": body})
        yield api


async def looked(kube: KubeApi, of: Target, tmp_path: Path) -> str:
    api = await connect(kube.kubeconfig(tmp_path / "kubeconfig"))
    try:
        return await pods_of(api, [(of, PRESET)], logs=False, timeout_s=5)
    finally:
        await api.close()


async def test_the_doctor_lists_the_deployments_of_every_namespace_that_a_target_names(
    kube: KubeApi, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"set labels: \{app: ranker\} in the target"):
        await looked(kube, target(), tmp_path)
    assert await looked(kube, target(labels={"app": "ranker"}), tmp_path) == (
        "3 Deployments in 1 namespaces, and no target's labels pick pods of several services"
    )
    assert (await looked(kube, target(namespace="m*"), tmp_path)).startswith("0 Deployments in 0 namespaces")


async def test_deployments_that_may_not_be_listed_are_no_all_clear(kube: KubeApi, tmp_path: Path) -> None:
    kube.forbidden.add("ml")
    with pytest.raises(Refused, match="answers 403 to «list the Deployments of ml»"):
        await looked(kube, target(), tmp_path)
