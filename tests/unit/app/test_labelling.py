"""Which labels a preset needs for a target, and the sentence about those that are missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.app.labelling import Need, allowing, lacking, names_of, narrowed, needs, relabelling
from service.model.preset import MetricsPreset
from service.model.target import Target

PRESET = MetricsPreset.model_validate(
    {
        "name": "p",
        "labels": {"reporter": "source"},
        "metrics": {
            "errors": {"kind": "errors", "requests": "r", "failed": [{"__name__": "f"}]},
            "load": {"kind": "value", "promql": "sum(x{$matchers})"},
            "lines": {"kind": "logs", "sets": ["tensorflow"]},
        },
    }
)


def of(series: str, label: str) -> Need:
    return Need(series, label, (), relabelling(label), everywhere=True)


def target(**changes: Any) -> Target:
    given = {
        "namespace": "ml",
        "service": "*",
        "route": {"virtual_service": "r", "stable": {"host": "h"}, "canary": {"host": "h"}},
        "metrics": "p",
        "labels": {"job": "serving", "app": "${service}"},
        "stable_labels": {"version": "v1"},
        "canary_labels": {"version": "v2"},
        "policy": "p",
    }
    return Target.model_validate(given | changes)


def test_every_series_needs_every_label_and_only_what_is_fixed_narrows_the_search() -> None:
    found = needs(target(), PRESET)
    assert found == needs(target(service="other"), PRESET)
    assert {(need.series, need.label) for need in found} == {
        (series, label) for series in "rf" for label in ("app", "job", "reporter", "version")
    }
    assert len(found) == 8
    narrowed = {(need.series, need.label): dict(need.labels) for need in found}
    assert narrowed["r", "version"] == {"job": "serving", "reporter": "source"}
    assert narrowed["r", "job"] == {"reporter": "source"}


def test_resources_need_pods_and_the_series_that_tells_whose_they_are() -> None:
    given = {
        "name": "p",
        "pods": {"by": {"version": "label_version"}},
        "metrics": {"memory": {"kind": "resource", "series": "m", "measures": "memory", "limit": ["l"]}},
    }
    found = needs(target(), MetricsPreset.model_validate(given))
    assert [(need.series, need.label) for need in found] == [
        ("m", "pod"), ("m", "namespace"), ("l", "pod"), ("l", "namespace"), ("kube_pod_labels", "label_version")
    ]  # fmt: skip
    (said,) = lacking({need: (2, 2) for need in found if need.series == "kube_pod_labels"})
    assert said == (
        "no label 'label_version' on kube_pod_labels (2 of 2 series); "
        "start kube-state-metrics with --metric-labels-allowlist=pods=[version]"
    )
    (said,) = lacking(dict.fromkeys(found, (0, 0)), {"kube_pod_start_time": 3})
    assert said == (
        "no label 'label_version' on kube_pod_labels (no series, though kube_pod_start_time has 3); "
        "start kube-state-metrics with --metric-labels-allowlist=pods=[version]"
    )
    # Without any series of the exporter, nothing is known of it.
    assert lacking(dict.fromkeys(found, (0, 0)), {"kube_pod_start_time": 0}) == []
    own = MetricsPreset.model_validate({**given, "pods": None})
    assert {need.label for need in needs(target(), own)} == {"app", "job", "version", "pod", "namespace"}


def test_what_no_policy_looks_at_needs_nothing() -> None:
    given = {
        "name": "p",
        "pods": {"by": {"version": "label_version"}},
        "metrics": {
            "memory": {"kind": "resource", "series": "m", "measures": "memory"},
            "errors": {"kind": "errors", "requests": "r", "failed": [{"code": "5.."}]},
            "logs": {"kind": "logs", "sets": ["tensorflow"]},
        },
    }
    preset = MetricsPreset.model_validate(given)
    assert names_of(narrowed(preset, {"errors", "logs", "other"})) == {"r"}
    assert names_of(narrowed(preset, {"errors", "memory"})) == {"r", "m", "kube_pod_labels"}
    assert {need.series for need in needs(target(), narrowed(preset, {"errors"}))} == {"r"}


def test_the_sentence_names_series_numbers_and_the_relabelling_for_each_label() -> None:
    counts = {
        of("r", "version"): (3, 4),
        of("f", "version"): (2, 2),
        of("r", "pod"): (1, 9),
        of("r", "job"): (0, 9),
    }
    by_pod, by_version = lacking(counts)
    assert by_pod.startswith("no label 'pod' on r (1 of 9 series); ")
    assert "source_labels: [__meta_kubernetes_pod_name], target_label: pod" in by_pod
    assert by_version.startswith("no label 'version' on r (3 of 4 series), f (2 of 2 series); ")
    assert "sourceLabels: [__meta_kubernetes_pod_label_version], targetLabel: version" in by_version
    assert lacking({of("r", "version"): (0, 0)}) == []
    # Where nothing narrows the search, other services' series are found, too.
    apart = replace(of("r", "version"), everywhere=False)
    assert lacking({apart: (3, 4)}) == []
    assert len(lacking({apart: (4, 4)})) == 1


def test_the_relabelling_takes_the_pods_label_that_the_preset_knows() -> None:
    given = {**PRESET.model_dump(), "pods": {"by": {"version": "label_serving_knative_dev_revision"}}}
    (said,) = {need.do for need in needs(target(), MetricsPreset.model_validate(given)) if need.label == "version"}
    assert "[__meta_kubernetes_pod_label_serving_knative_dev_revision], target_label: version}" in said


def test_a_label_is_allowed_by_the_name_that_pods_have_it_by() -> None:
    assert allowing("label_version").endswith("=pods=[version]")
    assert "pods=[serving_knative_dev_revision], where each _ is written as in the pods' label" in allowing(
        "label_serving_knative_dev_revision"
    )
