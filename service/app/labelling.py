"""What the series of a preset must carry so that a target's arms can be told apart, and what to do where they do not.

Servers know nothing of versions, so the label is put on by whoever scrapes them. Pure; the doctor asks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from service.model.lines import LogSeries
from service.model.preset import (
    FromRecords,
    MetricsPreset,
    PodSeries,
    PredictionLearned,
    PredictionPairs,
    PredictionRecords,
    ResourceSeries,
    ValueExpression,
)
from service.model.target import Target

_LITERAL = re.compile(r"[^${}*]+")


@dataclass(frozen=True, slots=True)
class Need:
    """One label that one series must carry."""

    series: str
    label: str
    labels: tuple[tuple[str, str], ...]
    """What else is known of the series in question."""
    do: str
    """What to do where it is missing."""
    everywhere: bool = False
    """Each of these series must carry it. Otherwise some may be of other services or of no pod, and one must."""
    beside: str | None = None
    """Another series of the same exporter. Where that one is there and this one is not, the exporter must be told to
    show it: kube-state-metrics prints no labels of pods at all before it is allowed to show one."""


def narrowed(preset: MetricsPreset, metrics: Collection[str]) -> MetricsPreset:
    """The preset with those metrics only that policies look at; the others need nothing."""
    return preset.model_copy(update={"metrics": {n: one for n, one in preset.metrics.items() if n in metrics}})


def _members(preset: MetricsPreset) -> PodSeries | None:
    """How the pods of each arm are known, where anything looks at pods."""
    return preset.pods if any(isinstance(series, ResourceSeries) for series in preset.metrics.values()) else None


def names_of(preset: MetricsPreset) -> set[str]:
    """The series that the preset names; expressions of people's own are left to them."""
    counted = (s for s in preset.metrics.values() if not isinstance(s, ValueExpression | LogSeries | FromRecords))
    pods = _members(preset)
    return {name for series in counted for name in series.names} | ({pods.series} if pods else set())


def needs(target: Target, preset: MetricsPreset) -> list[Need]:
    """Every label by which this target looks for the preset's series."""
    found: list[Need] = []
    wanted = sorted({*target.labels, *target.stable_labels, *target.canary_labels})
    fixed = {k: v for k, v in target.labels.items() if _LITERAL.fullmatch(v)}
    by = preset.pods.by if preset.pods else {}
    for series in preset.metrics.values():
        match series:
            case ValueExpression() | LogSeries() | PredictionRecords() | PredictionPairs() | PredictionLearned():
                continue
            case ResourceSeries():
                by_pods = preset.pods is not None
                labels = [] if by_pods else [(label, relabelling(label)) for label in wanted]
                labels += [(label, POD_LABEL) for label in (series.pod_label, series.namespace_label) if label]
                known = dict(series.labels) if by_pods else {**series.labels, **fixed}
            case _:
                labels = [(label, relabelling(label, by.get(label))) for label in sorted({*preset.labels, *wanted})]
                known = {**preset.labels, **fixed}
        everywhere = bool(fixed) and not isinstance(series, ResourceSeries)
        for name in series.names:
            found += _needs(name, labels, known, everywhere=everywhere)
    pods = _members(preset)
    if pods is not None:
        shown = [(by[label], allowing(by[label])) for label in wanted if label in by]
        found += _needs(pods.series, shown, pods.labels, beside=pods.started)
    return found


def _needs(
    series: str,
    labels: Iterable[tuple[str, str]],
    known: Mapping[str, str],
    *,
    everywhere: bool = False,
    beside: str | None = None,
) -> list[Need]:
    # A label that may be missing cannot narrow the search for what lacks it.
    return [
        Need(series, label, tuple(sorted((k, v) for k, v in known.items() if k != label)), do, everywhere, beside)
        for label, do in labels
    ]


def lacking(counts: Mapping[Need, tuple[int, int]], beside_n: Mapping[str, int] = {}) -> list[str]:
    """Sentences on what is missing and how to add it. ``counts`` are (series without the label, all series).

    beside_n : how many series there are of those that needs without any series name as ``beside``
    """
    found: dict[tuple[str, str], list[str]] = {}
    for need, (without_n, all_n) in counts.items():
        if without_n and (need.everywhere or without_n == all_n):
            found.setdefault((need.label, need.do), []).append(f"{need.series} ({without_n} of {all_n} series)")
        elif not all_n and need.beside and (there_n := beside_n.get(need.beside, 0)):
            why = f"{need.series} (no series, though {need.beside} has {there_n})"
            found.setdefault((need.label, need.do), []).append(why)
    return [
        f"no label {label!r} on {', '.join(dict.fromkeys(listed))}; {do}"
        for (label, do), listed in sorted(found.items())
    ]


POD_LABEL = (
    "let the exporter name the pods (DCGM_EXPORTER_KUBERNETES=true), or name the label that does as pod_label in the "
    "preset: it is exported_pod where the scrape keeps its own labels (honor_labels: false)"
)


def relabelling(label: str, shown: str | None = None) -> str:
    """What to write where a server is scraped. shown : the label by which kube-state-metrics shows the pods' own."""
    of_pod = label if shown is None else shown.removeprefix("label_")
    source = {"pod": "__meta_kubernetes_pod_name", "namespace": "__meta_kubernetes_namespace"}.get(
        label, f"__meta_kubernetes_pod_label_{of_pod}"
    )
    return (
        "add to the scrape's relabel_configs "
        f"{{source_labels: [{source}], target_label: {label}}}, or to a PodMonitor's relabelings "
        f"{{sourceLabels: [{source}], targetLabel: {label}}}"
    )


def allowing(label: str) -> str:
    """What to set for kube-state-metrics, which shows no label of a pod that it is not told to."""
    name = label.removeprefix("label_")
    told = f"start kube-state-metrics with --metric-labels-allowlist=pods=[{name}]"
    # It is told the label as pods have it, serving.knative.dev/revision, and shows it as Prometheus can take it.
    return f"{told}, where each _ is written as in the pods' label (it may be . / or -)" if "_" in name else told
