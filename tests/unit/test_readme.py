"""What the README shows is what happens."""

from __future__ import annotations

import contextlib
import io
import re
from datetime import UTC, datetime
from pathlib import Path

import yaml

from service.model.preset import MetricsPreset, PredictionRecords
from service.model.target import Target
from service.predictions.decode import Prediction, decode
from service.preflight.golden.requests import read
from tests.stories import policy

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_library_example_prints_what_the_readme_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (quoted,) = re.findall(r"```\n\n((?:> .*\n)+)", README)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})
    assert out.getvalue().split() == quoted.replace("> ", "").split()


def test_the_prediction_record_counts_for_the_shipped_target_by_the_preset_beside_it() -> None:
    (record,) = re.findall(r'^\{"service": .*?\}$', README, re.MULTILINE | re.DOTALL)
    found = decode(record.encode(), now_s=datetime(2026, 11, 26, 12, 1, tzinfo=UTC).timestamp())
    assert isinstance(found, Prediction), found
    (metrics,) = re.findall(r"`(predictions: \{kind: prediction_records.*?\})`", README)
    series = MetricsPreset.model_validate({"name": "own", "metrics": yaml.safe_load(metrics)}).metrics["predictions"]
    assert isinstance(series, PredictionRecords)
    shipped = Path(__file__).parents[2] / "config" / "targets" / "tf-model-service.yaml"
    target = Target.model_validate(yaml.safe_load(shipped.read_text())[0])
    labels = {**target.labels, **target.canary_labels}
    names = found.namespace, found.service, found.version
    assert names == (target.namespace, labels[series.service_label], labels[series.version_label])


def test_the_guard_on_pairs_is_one_of_a_policy() -> None:
    (guard,) = re.findall(r"`(\{name: pairs.*?\})`", README)
    metrics = [{"name": "errors", "kind": "errors"}, {"name": "pairs", "kind": "value", "required": False}]
    assert policy(metrics=metrics, guards=[yaml.safe_load(guard)]).guards[0].above == 4.6


def test_the_golden_request_is_one(tmp_path: Path) -> None:
    (line,) = re.findall(r'`(\{"id": .*\})`', README)
    (tmp_path / "requests.jsonl").write_text(line)
    assert [one.id for one in read(tmp_path / "requests.jsonl", None)] == ["r-1"]
