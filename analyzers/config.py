"""What a monitor is told: the promised error rates, the planned length, and which differences are tolerated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

METRICS = ("latency", "errors", "predictions")
"""The metrics that can be compared, in the order of a state row."""


def output_name(place: int) -> str:
    """Under which the predictions of an output are told: the first one's is the metric's own name."""
    return "predictions" if place == 0 else f"predictions:{place + 1}"


def metric_of(name: str) -> str:
    """The metric that a name, which may be of one output, belongs to."""
    return name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Margins:
    """How large a difference is tolerated. A release at its margin still counts as harmless.

    latency : slow-down ratio, at least 1. Default 1.05: people and clients do not notice 5 %, and two sets of pods of
        one version differ by as much.
    errors : odds ratio of failing, at least 1. Default 1.2: retries and unlucky pods move rare errors by a fifth.
    predictions : nats of Kullback-Leibler divergence, at least 0. Default 0.001: about one request in fifty moved
        between two classes of equal size.
    """

    latency: float = 1.05
    errors: float = 1.2
    predictions: float = 0.001

    def __post_init__(self) -> None:
        for name, least in (("latency", 1.0), ("errors", 1.0), ("predictions", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"margins.{name} must be a finite number of at least {least}, found {value!r}")

    @staticmethod
    def none() -> Margins:
        """Any difference counts."""
        return Margins(latency=1.0, errors=1.0, predictions=0.0)


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """The promise and its terms.

    false_rollback : P(a release that behaves like stable is ever rolled back), over all windows and metrics.
    false_pause : P(such a release is ever paused).
    false_safe : P(a release that is at its margin or worse, in any one metric, is ever called safe). Default: as seldom
        as a good one is rolled back.
    planned_windows : how many windows the rollout is planned to last. Given, the boundary is the calibrated one, which
        uses the promised rate up; None, it is the provable 1 / rate of Ville's inequality, which is slower.
    margins : what is tolerated.
    weights : share of the evidence by metric; missing ones keep their default. Only proportions matter. Several
        outputs of predictions have equal parts of theirs.
    warmup_windows : windows at the start in which nothing is compared (cold caches).
    required : metrics, outputs by ``output_name``, that must be shown to be within their margins before a rollout is
        safe; None: all collected ones.
    """

    false_rollback: float = 0.01
    false_pause: float = 0.10
    false_safe: float = 0.01
    planned_windows: int | None = None
    margins: Margins = field(default_factory=Margins)
    weights: Mapping[str, float] | None = None
    warmup_windows: int = 0
    required: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.false_rollback < 0.5:
            raise ValueError(f"false_rollback must lie between 0 and 0.5, found {self.false_rollback!r}")
        if not 0 < self.false_safe < 0.5:
            raise ValueError(f"false_safe must lie between 0 and 0.5, found {self.false_safe!r}")
        if not 0 < self.false_pause < 1:
            raise ValueError(f"false_pause must lie between 0 and 1, found {self.false_pause!r}")
        if self.planned_windows is not None and not _whole(self.planned_windows, 1):
            raise ValueError(
                f"planned_windows must be a whole number of at least 1 or None, found {self.planned_windows!r}"
            )
        if not _whole(self.warmup_windows, 0):
            raise ValueError(f"warmup_windows must be a whole number of at least 0, found {self.warmup_windows!r}")
        for name, weight in (self.weights or {}).items():
            if name not in METRICS:
                raise ValueError(f"weights names {name!r}; known: {', '.join(METRICS)}")
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"weights[{name!r}] must be a positive number, found {weight!r}")
        for name in self.required or ():
            if metric_of(name) not in METRICS:
                raise ValueError(f"required names {name!r}; known: {', '.join(METRICS)}")
        if self.weights is not None:
            object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))

    def __hash__(self) -> int:
        weights = tuple(sorted((self.weights or {}).items()))
        rest = (
            self.false_rollback,
            self.false_pause,
            self.false_safe,
            self.planned_windows,
            self.margins,
            self.warmup_windows,
        )
        return hash((*rest, weights, self.required))


def _whole(number: float, least: int) -> bool:
    return math.isfinite(number) and number == int(number) and number >= least
