"""Presets are strict: what could not be asked, or could run away, stops the start-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from service.model.preset import ErrorSeries, LatencySeries, MetricsPreset, PredictionSeries

FOLDER = Path(__file__).parents[3] / "config" / "metrics"


def preset(**metrics: Any) -> MetricsPreset:
    return MetricsPreset.model_validate({"name": "p", "metrics": metrics})


def errors(pattern: str) -> MetricsPreset:
    return preset(errors={"kind": "errors", "requests": "r", "failed": [{"code": pattern}]})


def test_the_presets_that_are_shipped_read_the_names_they_promise() -> None:
    istio, http = (
        MetricsPreset.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))
        for name in ("istio", "http")
    )
    assert istio.labels == {"reporter": "source"}
    assert isinstance(istio.metrics["latency"], LatencySeries)
    assert istio.metrics["latency"].buckets == "istio_request_duration_milliseconds_bucket"
    assert istio.metrics["latency"].per_second == 1000
    assert isinstance(istio.metrics["errors"], ErrorSeries)
    assert {"grpc_response_status", "response_code"} <= {
        label for one in istio.metrics["errors"].failed for label in one
    }
    counted = {n: s for n, s in http.metrics.items() if isinstance(s, LatencySeries | ErrorSeries | PredictionSeries)}
    assert {name: series.names for name, series in counted.items()} == {
        "latency": ("model_latency_seconds_bucket",),
        "errors": ("http_requests_total",),
        "predictions": ("model_predictions_total",),
    }


@pytest.mark.parametrize("pattern", ["5..", "[2-9]|1[0-6]", "(?:4|5)..", "5.*", "[^)(]+", r"\d{3}", "(a|b)?c"])
def test_patterns_of_statuses_are_taken(pattern: str) -> None:
    errors(pattern)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a+)+", "repeats a group"),
        ("(a|a)*b", "repeats a group"),
        ("(?:ab){2}", "repeats a group"),
        (r"(a)\1", "refers back"),
        ("(?=5)..", "construct"),
        ("(?P<x>5)..", "construct"),
        (".*.*.*", "more than 2"),
        ("5(", "no regular expression"),
        ("5" * 300, "at most 200"),
    ],
)
def test_patterns_that_could_run_away_or_mean_something_else_are_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        errors(pattern)


@pytest.mark.parametrize("alternative", [{}, {"__name__": "r"}])
def test_an_alternative_without_labels_is_refused(alternative: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="every request would have failed"):
        preset(errors={"kind": "errors", "requests": "r", "failed": [alternative]})


def test_failures_may_have_a_counter_of_their_own() -> None:
    series = preset(errors={"kind": "errors", "requests": "r", "failed": [{"__name__": "f"}, {"code": "5.."}]})
    assert isinstance(series.metrics["errors"], ErrorSeries)
    assert series.metrics["errors"].names == ("r", "f")
    with pytest.raises(ValidationError, match="one counter's name"):
        preset(errors={"kind": "errors", "requests": "r", "failed": [{"__name__": "f|g"}]})


@pytest.mark.parametrize(
    "promql",
    [
        "rate(x{$matchers}[1m])",
        'sum(rate(x{code="5..",$matchers}[1m])) / sum(rate(x{ $matchers , a=~"}" }[1m]))',
        "max by (a) ({__name__='x',$matchers})",
    ],
)
def test_an_expression_by_arm_is_taken(promql: str) -> None:
    preset(queue={"kind": "value", "promql": promql})


@pytest.mark.parametrize(
    ("promql", "said"),
    [
        ("rate(x[1m])", "must hold"),
        ("x{a='$matchers'}", "must hold"),
        ("x{$matchers} or label_replace(y, 'a', \"$matchers\", '', '')", "only stand as in"),
        ("x{$matchers} + $matchers", "only stand as in"),
        ("x{a=$matchers}", "only stand as in"),
        ("x{$matchers} # why", "comment"),
    ],
)
def test_matchers_may_only_stand_where_matchers_stand(promql: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        preset(queue={"kind": "value", "promql": promql})


@pytest.mark.parametrize(
    "body",
    [
        {"name": "p", "metrics": {}},
        {"name": "P_", "metrics": {"latency": {"kind": "latency", "buckets": "b"}}},
        {"name": "p", "metrics": {"latency": {"kind": "latency", "buckets": "b{x}"}}},
        {"name": "p", "metrics": {"latency": {"kind": "latency", "buckets": "b", "units": "s"}}},
        {"name": "p", "metrics": {"latency": {"kind": "latency", "buckets": "b", "unit": "hours"}}},
        {"name": "p", "metrics": {"slow": {"kind": "latency", "buckets": "b"}}},
        {"name": "p", "labels": {"a-b": "c"}, "metrics": {"latency": {"kind": "latency", "buckets": "b"}}},
        {"name": "p", "labels": {"__name__": "c"}, "metrics": {"latency": {"kind": "latency", "buckets": "b"}}},
        {"name": "p", "metric": {}, "metrics": {"latency": {"kind": "latency", "buckets": "b"}}},
    ],
)
def test_what_is_not_known_or_no_name_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MetricsPreset.model_validate(body)


@pytest.mark.parametrize(
    "series", [{"kind": "prediction_records", "view": "score"}, {"kind": "prediction_scores", "buckets": "s"}]
)
def test_predictions_are_compared_under_one_name_wherever_they_come_from(series: dict[str, str]) -> None:
    assert set(preset(predictions=series).metrics) == {"predictions"}
    with pytest.raises(ValidationError, match="must be named 'predictions'"):
        preset(other=series)


def test_pairs_may_have_any_name_because_guards_watch_them() -> None:
    made = preset(shift={"kind": "prediction_pairs"}, rate={"kind": "prediction_pairs", "gives": "disagreement"})
    assert set(made.metrics) == {"shift", "rate"}
