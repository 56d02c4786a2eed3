"""Which labels a preset needs for a target, and the sentence about those that are missing."""

from __future__ import annotations

from typing import Any

from service.app.labelling import Need, lacking, needs
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
    found = needs(PRESET, [target(), target(service="other")])
    assert {(need.series, need.label) for need in found} == {
        (series, label) for series in "rf" for label in ("app", "job", "reporter", "version")
    }
    assert len(found) == 8
    assert Need("r", "version", (("job", "serving"), ("reporter", "source"))) in found
    assert Need("r", "job", (("reporter", "source"),)) in found


def test_the_sentence_names_series_numbers_and_the_relabelling_for_each_label() -> None:
    counts = {
        Need("r", "version", ()): (3, 4),
        Need("f", "version", ()): (2, 2),
        Need("r", "pod", ()): (1, 9),
        Need("r", "job", ()): (0, 9),
    }
    by_pod, by_version = lacking(counts)
    assert by_pod.startswith("no label 'pod' on r (1 of 9 series); ")
    assert "source_labels: [__meta_kubernetes_pod_name], target_label: pod" in by_pod
    assert by_version.startswith("no label 'version' on r (3 of 4 series), f (2 of 2 series); ")
    assert "sourceLabels: [__meta_kubernetes_pod_label_version], targetLabel: version" in by_version
    assert lacking({Need("r", "version", ()): (0, 0)}) == []
