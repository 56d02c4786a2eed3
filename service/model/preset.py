"""A metrics preset: which series a service's numbers lie in. Written by operators, one YAML file a preset."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from service.model.names import DnsLabel
from service.model.value import Value

SeriesName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$", max_length=200)]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=100)]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Regex = Annotated[str, StringConstraints(max_length=200), AfterValidator(_compiles)]
"""Matched against a whole label value, as PromQL does. Only operators write it."""


class LatencySeries(Value):
    """A histogram's cumulative buckets."""

    kind: Literal["latency"] = "latency"
    buckets: SeriesName
    unit: Literal["seconds", "milliseconds", "microseconds"] = "seconds"
    """Unit of the ``le`` label."""

    @property
    def unit_s(self) -> float:
        """Seconds in one unit of ``le``."""
        return {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}[self.unit]


class ErrorSeries(Value):
    """A counter of requests whose labels tell which failed."""

    kind: Literal["errors"] = "errors"
    requests: SeriesName
    failed: tuple[dict[LabelName, Regex], ...] = Field(min_length=1)
    """A series counts as failed when it matches all labels of any of these."""


class PredictionSeries(Value):
    """A counter of predictions by class or score bucket."""

    kind: Literal["predictions"] = "predictions"
    counter: SeriesName
    class_label: LabelName = "class"


class ValueExpression(Value):
    """Any PromQL expression that gives one number an arm; ``$matchers`` stands for the arm's label matchers."""

    kind: Literal["value"] = "value"
    promql: Annotated[str, StringConstraints(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _by_arm(self) -> Self:
        if "$matchers" not in self.promql:
            raise ValueError("promql must hold $matchers, where the labels of each arm go: rate(x{$matchers}[1m])")
        return self


Series = Annotated[LatencySeries | ErrorSeries | PredictionSeries | ValueExpression, Field(discriminator="kind")]


class MetricsPreset(Value):
    """Where the metrics of a kind of server are."""

    name: DnsLabel
    description: str = ""
    labels: dict[LabelName, str] = {}
    """Matchers added to both arms, such as the reporter to count only once."""
    metrics: dict[DnsLabel, Series] = Field(min_length=1)

    @model_validator(mode="after")
    def _named_by_kind(self) -> Self:
        for name, series in self.metrics.items():
            if series.kind != "value" and name != series.kind:
                raise ValueError(f"metric {name!r} is of kind {series.kind!r}, so it must be named {series.kind!r}")
        return self
