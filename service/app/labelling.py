"""What the series of a preset must carry so that a target's arms can be told apart, and what to do where they do not.

Servers know nothing of versions, so the label is put on by whoever scrapes them. Pure; the doctor asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.model.lines import LogSeries
from service.model.preset import MetricsPreset, ValueExpression
from service.model.target import Target

_LITERAL = re.compile(r"[^${}*]+")


@dataclass(frozen=True, slots=True)
class Need:
    """One label that one series must carry."""

    series: str
    label: str
    labels: tuple[tuple[str, str], ...]
    """What else is known of the series in question."""


def needs(preset: MetricsPreset, targets: Iterable[Target]) -> list[Need]:
    """Every label by which these targets look for the preset's series; expressions of people's own are left to them."""
    found: dict[Need, None] = {}
    for target in targets:
        fixed = {**preset.labels, **{k: v for k, v in target.labels.items() if _LITERAL.fullmatch(v)}}
        wanted = sorted({*preset.labels, *target.labels, *target.stable_labels, *target.canary_labels})
        for series in preset.metrics.values():
            if isinstance(series, ValueExpression | LogSeries):
                continue
            for name in series.names:
                for label in wanted:
                    # A label that may be missing cannot narrow the search for what lacks it.
                    others = tuple(sorted((k, v) for k, v in fixed.items() if k != label))
                    found[Need(name, label, others)] = None
    return list(found)


def lacking(counts: Mapping[Need, tuple[int, int]]) -> list[str]:
    """Sentences on what is missing and how to add it. ``counts`` are (series without the label, all series)."""
    by_label: dict[str, list[str]] = {}
    for need, (without_n, all_n) in counts.items():
        if without_n:
            by_label.setdefault(need.label, []).append(f"{need.series} ({without_n} of {all_n} series)")
    return [
        f"no label {label!r} on {', '.join(dict.fromkeys(listed))}; {relabelling(label)}"
        for label, listed in sorted(by_label.items())
    ]


def relabelling(label: str) -> str:
    """What to write where the server is scraped."""
    source = {"pod": "__meta_kubernetes_pod_name", "namespace": "__meta_kubernetes_namespace"}.get(
        label, f"__meta_kubernetes_pod_label_{label}"
    )
    return (
        "add to the scrape's relabel_configs "
        f"{{source_labels: [{source}], target_label: {label}}}, or to a PodMonitor's relabelings "
        f"{{sourceLabels: [{source}], targetLabel: {label}}}"
    )
