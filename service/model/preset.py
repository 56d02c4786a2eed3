"""A metrics preset: which series a service's numbers lie in. Written by operators, one YAML file a preset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from service.model.lines import LineCounterSeries, LogSeries
from service.model.names import DnsLabel, LabelName, SeriesName
from service.model.value import Value

NAME = "__name__"
"""The label in which Prometheus keeps a series' name."""

MOST_REPEATS = 2
PLACEHOLDER = "$matchers"

_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|.", re.DOTALL)
_STRING = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`[^`]*`""", re.DOTALL)


def _bounded(pattern: str) -> str:
    """A pattern that means the same in RE2, and that Python matches in bounded time.

    Prometheus' engine cannot run away; Python's can, through repeated groups and references back. Status codes need
    neither, so both are refused, as is more than a pair of repeats.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    marks: list[str] = _TOKEN.findall(pattern)
    for before, mark in pairwise(marks):
        if before == "(" and mark == "?":
            raise ValueError(f"{pattern!r} holds a (?...) construct; only plain groups and (?:...) are known here")
        if before == ")" and mark in ("*", "+", "{"):
            raise ValueError(f"{pattern!r} repeats a group; write the alternatives out")
    if any(mark[0] == "\\" and mark[1:].isdigit() for mark in marks):
        raise ValueError(f"{pattern!r} refers back to a group, which RE2 does not know")
    if sum(mark in ("*", "+", "{") for mark in marks) > MOST_REPEATS:
        raise ValueError(f"{pattern!r} holds more than {MOST_REPEATS} of *, + and {{n}}")
    return pattern


Regex = Annotated[str, StringConstraints(max_length=200), AfterValidator(_bounded)]
"""Matched against a whole label value, as PromQL does. Only operators write it."""


class LatencySeries(Value):
    """A histogram's cumulative buckets."""

    kind: Literal["latency"] = "latency"
    buckets: SeriesName
    unit: Literal["seconds", "milliseconds", "microseconds"] = "seconds"
    """Unit of the ``le`` label."""

    @property
    def per_second(self) -> float:
        """Units of ``le`` in a second: to divide by, because 35 / 1000 is 0.035 and 35 * 0.001 is not."""
        return {"seconds": 1.0, "milliseconds": 1e3, "microseconds": 1e6}[self.unit]

    @property
    def names(self) -> tuple[str, ...]:
        """The series to read."""
        return (self.buckets,)


class ErrorSeries(Value):
    """A counter of requests whose labels tell which failed."""

    kind: Literal["errors"] = "errors"
    requests: SeriesName
    failed: tuple[dict[LabelName, Regex], ...] = Field(min_length=1)
    """A series counts as failed when it matches all labels of any of these.

    An alternative with ``__name__`` speaks of another counter, for servers that count failures by themselves; its
    value is that counter's name.
    """
    failures_are: Literal["among", "beside"] = "among"
    """Whether ``requests`` counts all of them, or only those that no other counter in ``failed`` does."""

    @model_validator(mode="after")
    def _some_label(self) -> Self:
        for alternative in self.failed:
            if not alternative or alternative == {NAME: self.requests}:
                raise ValueError("failed holds an alternative without labels, by which every request would have failed")
            if NAME in alternative and not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", alternative[NAME]):
                raise ValueError(f"{NAME} in failed must be one counter's name, not a pattern: {alternative[NAME]!r}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The series to read, the requests first."""
        others = {alternative.get(NAME, self.requests) for alternative in self.failed} - {self.requests}
        return (self.requests, *sorted(others))


class PredictionSeries(Value):
    """A counter of predictions by class or score bucket."""

    kind: Literal["predictions"] = "predictions"
    counter: SeriesName
    class_label: LabelName = "class"
    rank_label: LabelName | None = None
    """For counters of a request's top k labels: the label that tells a class's place among them. Only those of
    ``rank`` are counted, because k labels of one request are not k requests."""
    rank: Annotated[str, StringConstraints(max_length=20)] = "1"

    @property
    def names(self) -> tuple[str, ...]:
        """The series to read."""
        return (self.counter,)


class ScoreSeries(Value):
    """A histogram's cumulative buckets of a model's scores or values; each bucket is a category."""

    kind: Literal["prediction_scores"] = "prediction_scores"
    buckets: SeriesName

    @property
    def names(self) -> tuple[str, ...]:
        """The series to read."""
        return (self.buckets,)


class PredictionRecords(Value):
    """Prediction records of a Kafka topic (see service/predictions/decode.py for their form)."""

    kind: Literal["prediction_records"] = "prediction_records"
    view: Literal["class", "top", "score", "value", "distance"] = "class"
    """What is compared: classes, one label drawn from the top ones, or scores, values or distances of embeddings in
    bins that are frozen when the comparison begins."""
    output: Annotated[str, StringConstraints(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = ""
    """Name of the output, for models with several."""
    model: Annotated[str, StringConstraints(max_length=100)] = ""
    """Only records of this model; empty: of all models of the service."""
    service_label: LabelName = "service"
    """The target's label whose value the records carry as ``service``."""
    version_label: LabelName = "version"
    """The target's label whose value, different in both arms, the records carry as ``version``."""


class PredictionPairs(Value):
    """Classes that both versions gave to the same mirrored requests, from prediction records: one number, for guards.

    Judged request by request, which needs far fewer of them than two separate samples (analyzers/paired.py).
    """

    kind: Literal["prediction_pairs"] = "prediction_pairs"
    gives: Literal["log_evidence", "disagreement"] = "log_evidence"
    """``log_evidence``: nats against «as often one way as the other, and no more than tolerated», over all windows so
    far; a guard at 4.6 stops a harmless release in at most 1 of 100 rollouts. ``disagreement``: the share of pairs
    that differ, with ``tolerated`` as stable's value."""
    tolerated: float = Field(default=0.01, gt=0, lt=1)
    """Share of requests on which two runs of the same version disagree."""
    output: Annotated[str, StringConstraints(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = ""
    model: Annotated[str, StringConstraints(max_length=100)] = ""
    service_label: LabelName = "service"
    version_label: LabelName = "version"


class PredictionLearned(Value):
    """Whether a small classifier, trained on past windows, can tell both versions' embeddings apart: one number, for
    guards. Needs ``predictions.learn`` in the settings and the ``tensorflow`` extra.

    The number is nats of evidence; a guard at 4.6 stops a harmless release in at most 1 of 100 rollouts, whatever the
    classifier learns (analyzers/learned.py).
    """

    kind: Literal["prediction_learned"] = "prediction_learned"
    output: Annotated[str, StringConstraints(max_length=63, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = ""
    model: Annotated[str, StringConstraints(max_length=100)] = ""
    service_label: LabelName = "service"
    version_label: LabelName = "version"


class ValueExpression(Value):
    """Any PromQL expression that gives one number an arm; ``$matchers`` stands for the arm's label matchers."""

    kind: Literal["value"] = "value"
    promql: Annotated[str, StringConstraints(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _by_arm(self) -> Self:
        bare = _STRING.sub("''", self.promql)
        if PLACEHOLDER not in bare:
            raise ValueError("promql must hold $matchers, where the labels of each arm go: rate(x{$matchers}[1m])")
        # Anywhere but as a selector's matchers they would be grammar, or would end the string that they stand in.
        selectors = "".join(re.findall(r"\{[^{}]*\}", bare))
        placed = len(re.findall(r"(?<=[{,])\s*\$matchers\s*(?=[,}])", selectors))
        if placed != self.promql.count(PLACEHOLDER):
            raise ValueError("promql holds $matchers outside a selector's braces; it may only stand as in x{$matchers}")
        if "#" in bare:
            raise ValueError("promql holds a comment (#), which would swallow what is written behind it")
        return self


class ResourceSeries(Value):
    """What each pod uses, or what happens to it: canary pods are compared with stable pods at equal age and load."""

    kind: Literal["resource"] = "resource"
    series: SeriesName
    counter: bool = False
    """The series only grows: a window's value is its growth. Otherwise it is a gauge, and the value its mean."""
    over: SeriesName | None = None
    """Divided by the same of this series, pod by pod: throttled periods over all periods."""
    measures: Literal["load", "share", "memory", "device-memory", "events", "ready"]
    """How pods are compared. ``load`` grows with traffic (CPU seconds, GPU utilisation) and is compared as a ratio at
    equal load; ``share`` lies between 0 and 1 and is compared as a difference; ``memory`` is compared as a ratio and
    watched for a leak, ``device-memory`` for a sudden step as well; ``events`` are rare and counted (restarts, OOM
    kills); ``ready`` is 1 or 0 a pod, and every time it ends is an event."""
    unit: Annotated[str, StringConstraints(max_length=20)] = ""
    """For people: ``s``, ``MiB``."""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Multiplies every sample: 0.01 makes a share of percent."""
    limit: tuple[SeriesName, ...] = Field(default=(), max_length=4)
    """The pod's limit is the sum of these series (used and free device memory); a limit of 0 is none. Of one series: a
    container without a limit leaves its pod without."""
    pods_are: Literal["sum", "max", "min", "mean"] = "sum"
    """A pod's value of several series: containers add up, of several GPUs the fullest may count."""
    pod_label: LabelName = "pod"
    """Names the pod. Where an exporter is scraped with its own labels kept, this is ``exported_pod``."""
    namespace_label: LabelName | None = "namespace"
    labels: dict[LabelName, str] = {}
    """Further matchers."""
    without: dict[LabelName, tuple[str, ...]] = {}
    """Series with one of these values are left out: ``{container: ["", POD]}``. An absent label is empty."""
    instance_labels: tuple[LabelName, ...] = Field(default=(), max_length=8)
    """Labels that are new where a container is replaced within its pod (its id). Of a gauge's series that are equal in
    all others, the newest is meant: the last samples of the old one are still there for a while."""
    measured_every_s: float = Field(default=0.0, ge=0, le=300)
    """The exporter measures no more often, however often it is scraped, and prints when it did: its samples are older
    and further apart than scrapes. 0: it measures when it is scraped."""
    settled_s: float = Field(default=600.0, ge=0, le=86400)
    """A pod younger than this is still starting and is not compared with older ones; a leak is looked for from six
    times this age on. Events are counted from the start."""
    not_supported: tuple[float, ...] = Field(default=(), max_length=10)
    """Values (before scaling) by which an exporter says that it has none, such as DCGM's 9223372036854775794."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if NAME in self.labels or NAME in self.without:
            raise ValueError(f"labels and without may not hold {NAME}; the series' names stand by themselves")
        if self.limit and self.measures not in ("memory", "device-memory"):
            raise ValueError(f"limit belongs to memory and device-memory, not to {self.measures!r}")
        if self.measures == "ready" and (self.counter or self.over):
            raise ValueError("ready is a gauge of 1 and 0, so it takes neither counter nor over")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The series to read, the value's first."""
        return (self.series, *((self.over,) if self.over else ()), *self.limit)


class PodSeries(Value):
    """A series with an element a pod that tells which arm the pod belongs to, for resources that do not say it.

    ``kube_pod_labels`` of kube-state-metrics is one, where it is allowed to show the label (--metric-labels-allowlist).
    """

    series: SeriesName = "kube_pod_labels"
    by: dict[LabelName, LabelName] = Field(min_length=1)
    """Label of the arms -> label of this series: ``{version: label_version, job: label_app}``. The others do not apply
    to it. Where none is mapped to the namespace, pods are looked for in the rollout's."""
    labels: dict[LabelName, str] = {}
    """Further matchers."""
    pod_label: LabelName = "pod"
    namespace_label: LabelName | None = "namespace"
    started: SeriesName | None = "kube_pod_start_time"
    """When the pod started, in seconds since the epoch, with the same pod labels. None: ages are counted from when a
    pod is first seen, and stable's pods of the first window are taken for old."""


FromRecords: TypeAlias = PredictionRecords | PredictionPairs | PredictionLearned
"""Metrics that lie in prediction records and in no metric store."""

CounterSeries: TypeAlias = LatencySeries | ErrorSeries | PredictionSeries | ScoreSeries | LineCounterSeries
"""Metrics that are counted from raw samples."""

Series = Annotated[
    LatencySeries
    | ErrorSeries
    | PredictionSeries
    | ScoreSeries
    | PredictionRecords
    | PredictionPairs
    | PredictionLearned
    | ValueExpression
    | ResourceSeries
    | LogSeries
    | LineCounterSeries,
    Field(discriminator="kind"),
]

COMPARED = {
    "latency": "latency",
    "errors": "errors",
    "predictions": "predictions",
    "prediction_scores": "predictions",
    "prediction_records": "predictions",
}
"""Kind -> name of kinds that are compared between the arms; the others have names of their own. Of predictions there
may be several, named ``predictions-...``: one an output of the model."""

INCLUDED = ("resource", "logs", "line_counter")
"""Kinds that a preset may take over from another: they speak of pods, whatever serves in them."""


class MetricsPreset(Value):
    """Where the metrics of a kind of server are."""

    name: DnsLabel
    description: str = ""
    labels: dict[LabelName, str] = {}
    """Matchers added to both arms, such as the reporter to count only once. Resources take their own instead."""
    pods: PodSeries | None = None
    """How the pods of each arm are known. None: the resources' series themselves carry the labels of the arms."""
    includes: tuple[DnsLabel, ...] = Field(default=(), max_length=10)
    """Presets of exporters that speak of pods (cadvisor, kube-state-metrics, dcgm), whose metrics this one has too."""
    metrics: dict[DnsLabel, Series] = Field(min_length=1)

    def with_included(self, presets: Mapping[str, MetricsPreset]) -> MetricsPreset:
        """The same with what it includes; raises ValueError for what cannot be.

        Which pods are whose is this preset's to say; only where it does not, the first included one's word is taken.
        """
        metrics, pods = dict(self.metrics), self.pods
        for name in self.includes:
            other = presets.get(name)
            if other is None:
                raise ValueError(f"preset {self.name!r} includes {name!r}; known: {', '.join(sorted(presets))}")
            if other.includes:
                raise ValueError(f"preset {self.name!r} includes {name!r}, which includes others; name those, too")
            for metric, series in other.metrics.items():
                if series.kind not in INCLUDED:
                    raise ValueError(
                        f"preset {self.name!r} includes {name!r}, whose metric {metric!r} is of kind {series.kind!r}; "
                        f"only {', '.join(INCLUDED)} can be included"
                    )
                if metric in metrics:
                    raise ValueError(f"presets {self.name!r} and {name!r} both have a metric {metric!r}; rename one")
                metrics[metric] = series
            pods = pods or other.pods
        return self.model_copy(update={"metrics": metrics, "pods": pods, "includes": ()})

    @model_validator(mode="after")
    def _named_by_kind(self) -> Self:
        if NAME in self.labels:
            raise ValueError(f"labels holds {NAME}; the series' names stand in the metrics")
        for name, series in self.metrics.items():
            wanted = COMPARED.get(series.kind, name)
            if name != wanted and not (wanted == "predictions" and name.startswith("predictions-")):
                raise ValueError(f"metric {name!r} is of kind {series.kind!r}, so it must be named {wanted!r}")
        return self
