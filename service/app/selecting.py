"""Whether the labels of a target pick the pods of its own service only, and what to set where they do not.

Pods are told apart by labels that an operator wrote. By a version alone, pods of every service of the namespace that
has an equal version are one arm, and are judged together without anybody noticing. What labels pick is looked up among
the Deployments, which we may list in any case; pods that no Deployment makes are not seen. Pure; the doctor asks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.model.names import Arm
from service.model.preset import MetricsPreset
from service.model.target import Target

APP = ("app", "app.kubernetes.io/name")
"""Labels that name the service a pod is of, as charts set them."""

MOST_NAMED = 4

_TEMPLATE = re.compile(r"\$\{?\w+\}?")


@dataclass(frozen=True, slots=True)
class Deployment:
    """What makes pods, and the labels that it gives them."""

    name: str
    labels: Mapping[str, str]

    @property
    def app(self) -> tuple[str, str] | None:
        """The label that names its service, None where it has none."""
        return next(((key, self.labels[key]) for key in APP if self.labels.get(key)), None)

    def __str__(self) -> str:
        return self.name + (f" ({'='.join(self.app)})" if self.app else "")


@dataclass(frozen=True, slots=True)
class Selector:
    """By what pods of one arm are picked. Keys of labels may be written as kube-state-metrics shows them."""

    arm: Arm
    labels: Mapping[str, str]
    of_logs: bool
    called: Mapping[str, str] = field(default_factory=dict)
    """Of pods in the metric store: a label of theirs -> what the target calls it."""


def deployments(answer: Mapping[str, Any]) -> list[Deployment]:
    """Those of an API server's list; what has another form than documented makes no pods that we know of."""
    found = []
    for one in answer.get("items") or ():
        try:
            labels = one["spec"]["template"]["metadata"]["labels"]
            found.append(Deployment(str(one["metadata"]["name"]), {str(k): str(v) for k, v in labels.items()}))
        except (KeyError, TypeError, AttributeError):
            continue
    return found


def selectors(target: Target, preset: MetricsPreset, *, logs: bool) -> list[Selector]:
    """How the pods of both arms are picked. logs : whether log lines are read from pods."""
    found = []
    for arm, own in ((Arm.CANARY, "canary_labels"), (Arm.STABLE, "stable_labels")):
        if preset.pods is not None:
            by, labels = preset.pods.by, {**target.labels, **getattr(target, own)}
            shown = {by[key].removeprefix("label_"): value for key, value in labels.items() if key in by}
            called = {value.removeprefix("label_"): key for key, value in by.items()}
            found.append(Selector(arm, shown, of_logs=False, called=called))
        if logs:
            given = target.logs or target
            found.append(Selector(arm, {**given.labels, **getattr(given, own)}, of_logs=True))
    return [one for one in found if one.labels]


def mixed(target: Target, wanted: Sequence[Selector], there: Sequence[Deployment]) -> list[str]:
    """A sentence for every arm whose labels pick pods of several services, with what to set."""
    said: dict[str, None] = {}
    for selector in wanted:
        for labels, picked in _picked(selector, there):
            services = {one.app or one.name for one in picked}
            if len(services) > 1:
                names = ", ".join(str(one) for one in picked[:MOST_NAMED])
                more = f" and {len(picked) - MOST_NAMED} more" if len(picked) > MOST_NAMED else ""
                shown = ", ".join(f"{key}: {value}" for key, value in sorted(labels.items()))
                sentence = (
                    f"{target.namespace}/{target.service} takes the pods of Deployments {names}{more} alike for its "
                    f"{selector.arm}, by the labels {{{shown}}}; {_to_do(target, selector, picked)}"
                )
                said[sentence] = None
    return list(said)


def _picked(selector: Selector, there: Sequence[Deployment]) -> list[tuple[dict[str, str], list[Deployment]]]:
    """The Deployments that the labels pick: all together, or for every value that stands for a template."""
    groups: dict[tuple[tuple[str, str], ...], list[Deployment]] = defaultdict(list)
    for one in there:
        has = {_plain(key): value for key, value in one.labels.items()}
        found = {key: has.get(_plain(key), "") for key in selector.labels}
        if all(found[key] and _fits(found[key], value) for key, value in selector.labels.items()):
            groups[tuple(sorted(found.items()))].append(one)
    return [(dict(labels), picked) for labels, picked in sorted(groups.items())]


def _to_do(target: Target, selector: Selector, picked: Sequence[Deployment]) -> str:
    where = "logs.labels" if selector.of_logs and target.logs else "labels"
    own = _own(target, picked)
    app = own.app if own is not None else next((one.app for one in picked if one.app is not None), None)
    if app is None:
        return f"give the pods of each service a label app of its own, and set it in {where} of the target"
    key, value = app
    if "*" in target.service:
        value = "${service}"
    elif own is None:
        value = "..."
    if where == "logs.labels":
        return f"set {where}: {{{key}: {value}}} in the target"
    too = "; its other series must carry it too, which the look at labels checks"
    if selector.of_logs:
        return f"set {where}: {{{key}: {value}}} in the target{too}"
    shown = _plain(key)
    key = selector.called.get(shown, shown)
    mapped = "" if shown in selector.called else f", and {key}: label_{shown} in pods.by of its preset"
    return f"set {where}: {{{key}: {value}}} in the target{mapped}{too}"


def _own(target: Target, picked: Sequence[Deployment]) -> Deployment | None:
    """The Deployment that the target itself names, or one whose app is called as the target's service or host."""
    security = target.preflight.security
    named = [
        target.readiness.deployment if target.readiness else None,
        security.deployment if security else None,
    ]
    for name in filter(None, named):
        for one in picked:
            if _fits(one.name, name):
                return one
    called = {target.service, target.route.stable.host.partition(".")[0], target.route.canary.host.partition(".")[0]}
    return next((one for one in picked if one.app is not None and one.app[1] in called), None)


def _fits(text: str, template: str) -> bool:
    """Whether a text may be what a template is filled in to."""
    parts = [re.escape(part) for part in _TEMPLATE.split(template)]
    return re.fullmatch(".+".join(parts), text) is not None


def _plain(key: str) -> str:
    """A label's key as kube-state-metrics shows it."""
    return re.sub(r"[^A-Za-z0-9_]", "_", key)
