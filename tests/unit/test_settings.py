"""Settings: strict to the last key, and every fault says where it is and what is known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from service.app.clock import SystemClock
from service.app.predictions import complete_after_s, predictions_of
from service.cli.schemas import all_schemas
from service.events.connection import Connection
from service.model.lines import LogSeries
from service.model.names import Mode
from service.predictions.consumer import COMMIT_S
from service.ring.seen import UNSEEN
from service.ring.stopping import Stopping
from service.settings import SettingsError, load, load_catalog, read_secret
from service.storage.database import Database

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "cadvisor", "dcgm", "http", "istio", "kserve", "kserve-otel", "kube-state-metrics", "tensorflow-serving", "triton",
    "vllm",
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    file = folder / "serinus.yaml"
    file.write_text(text)
    return file


def test_the_shipped_settings_and_catalogue_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = load(ROOT / "config" / "serinus.yaml")
    catalog, presets = load_catalog(settings)
    assert settings.mode is Mode.OBSERVE
    assert set(catalog.policies) == {
        "tensorflow-image", "model-version", "feature-change", "fully-automatic", "quick",
    }  # fmt: skip
    assert set(presets) == SHIPPED
    image = catalog.policies["tensorflow-image"]
    assert [s.weight_percent for s in image.stages] == ["first", 30, 60, 100]
    assert {s.bake_s for s in image.stages} == {86400.0}
    errors, lines, failures = image.guards
    assert (failures.only_on_canary, failures.on_breach.value) == (True, "pause_and_confirm")
    assert (errors.above, errors.windows, errors.on_breach.value) == (0.01, 5, "pause_and_confirm")
    assert (lines.only_on_canary, lines.windows, lines.on_breach.value) == (True, 1, "rollback")
    gates = {name: [rule.gate for rule in policy.preflight] for name, policy in catalog.policies.items()}
    assert gates["tensorflow-image"] == ["image", "security", "model", "golden"]
    assert gates["model-version"] == ["model", "golden"]
    assert gates["feature-change"] == gates["quick"] == []


def test_every_setting_that_the_shipped_file_only_mentions_is_one(tmp_path: Path) -> None:
    """In comments, settings follow the # without a space, as they would stand without it."""
    text = (ROOT / "config" / "serinus.yaml").read_text()
    settings = load(write(tmp_path, re.sub(r"^#(?! \S)", "", text, flags=re.MULTILINE)))
    assert settings.predictions.topic
    assert settings.predictions.learn
    assert settings.loki is not None
    assert settings.preflight.allowed_hosts
    folders = settings.preflight.models_dir, settings.preflight.requests_dir, settings.preflight.reports_dir
    assert all(folder is not None for folder in folders)
    # And what is not a comment there is the default, as it says.
    shipped, bare = load(ROOT / "config" / "serinus.yaml"), load(write(tmp_path, "api: {auth: 'off'}"))
    assert shipped == bare


def test_a_preset_gets_the_patterns_of_its_sets_and_an_unknown_set_stops_the_start_up(tmp_path: Path) -> None:
    for folder, text in (
        ("metrics", "name: p\nmetrics: {lines: {kind: logs, sets: [tf], patterns: [{name: own, any_of: [b]}]}}"),
        ("logs", "name: tf\npatterns: [{name: theirs, any_of: [a]}]"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.yaml").write_text(text)
    settings = load(write(tmp_path, f"api: {{auth: 'off'}}\nconfig_dir: {tmp_path}\n"))
    series = load_catalog(settings)[1]["p"].metrics["lines"]
    assert isinstance(series, LogSeries)
    assert [pattern.name for pattern in series.patterns] == ["own", "theirs"]
    (tmp_path / "logs" / "one.yaml").write_text("name: other\npatterns: [{name: theirs, any_of: [a]}]")
    with pytest.raises(SettingsError, match=r"'p' names the pattern set 'tf'; known in .*logs: other"):
        load_catalog(settings)


def test_the_environment_wins_over_the_file_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "api: {auth: 'off', port: 1}\nkafka: {topic: a, group: g}\nmode: observe\n")
    monkeypatch.setenv("SERINUS_KAFKA__TOPIC", "b")
    monkeypatch.setenv("SERINUS_KAFKA__BOOTSTRAP_SERVERS", "k:1")
    monkeypatch.setenv("SERINUS_MODE", "enforce")
    settings = load(file)
    assert (settings.kafka.topic, settings.kafka.group, settings.kafka.bootstrap_servers) == ("b", "g", "k:1")
    assert settings.mode is Mode.ENFORCE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("apii: {}\napi: {auth: 'off'}", "apii.*known here: .*api"),
        ("api: {auth: 'off', prot: 1}", "api.prot"),
        ("api: {auth: 'off', host: 0.0.0.0}", "only on a loopback host"),
        ("api: {}", "needs tokens_file"),
        ("mode: yolo\napi: {auth: 'off'}", "mode: .*observe"),
        ("api: {auth: 'off'}\nprometheus: {scrape_interval: soon}", "no length of time"),
        ("api: {auth: 'off'}\nretention: {windows: 30d, rollouts: 20d}", "kept at least as long as their windows"),
        ("api: {auth: 'off'}\nloki: {tenant: \"a\\nb\"}", "loki.tenant"),
        ("api: {auth: 'off'}\nretention: {windows: 5m}", "retention.windows: .*86400"),
        ("- 1", "expected a mapping"),
        ("a: [", "cannot read"),
    ],
)
def test_a_fault_stops_the_start_and_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match="(?s)" + words):
        load(write(tmp_path, text))


def test_an_unknown_variable_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_KAFAK__TOPIC", "x")
    with pytest.raises(SettingsError, match="SERINUS_KAFAK__TOPIC is not known"):
        load(write(tmp_path, "api: {auth: 'off'}"))


def catalogue(folder: Path, *, policy: str = "", target: str = "") -> Path:
    for kind in ("policies", "targets", "metrics"):
        (folder / kind).mkdir()
    stages = "stages: [{weight_percent: 10}]\nmetrics: [{name: latency, kind: latency}]\n"
    (folder / "policies" / "p.yaml").write_text(policy or f"name: p\n{stages}")
    (folder / "targets" / "t.yaml").write_text(target)
    (folder / "metrics" / "m.yaml").write_text("name: http\nmetrics: {latency: {kind: latency, buckets: x_bucket}}\n")
    return folder


TARGET = """
- namespace: a
  service: b
  route: {virtual_service: v, stable: {host: h, subset: v1}, canary: {host: h, subset: v2}}
  policy: %s
  metrics: %s
"""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (TARGET % ("q", "http"), "names policy 'q'; known policies: p"),
        (TARGET % ("p", "nope"), "names metrics 'nope'; known presets.*http"),
        (TARGET % ("p", "http") + "  colour: red", "colour"),
    ],
)
def test_unknown_names_in_the_catalogue_are_said_with_the_known_ones(tmp_path: Path, target: str, words: str) -> None:
    folder = catalogue(tmp_path / "config", target=target) if (tmp_path / "config").mkdir() is None else tmp_path
    file = write(tmp_path, f"config_dir: {folder}\napi: {{auth: 'off'}}")
    with pytest.raises(SettingsError, match="(?s)" + words):
        load_catalog(load(file))


def test_an_optional_metric_may_be_missing_in_a_preset(tmp_path: Path) -> None:
    optional = "[{name: latency, kind: latency}, {name: predictions, kind: predictions, required: false}]"
    policy = f"name: p\nstages: [{{weight_percent: 10}}]\nmetrics: {optional}\n"
    (tmp_path / "config").mkdir()
    folder = catalogue(tmp_path / "config", policy=policy, target=TARGET % ("p", "http"))
    catalog, _ = load_catalog(load(write(tmp_path, f"config_dir: {folder}\napi: {{auth: 'off'}}")))
    assert len(catalog.targets) == 1


def test_a_policy_that_needs_a_metric_the_preset_lacks_stops_the_start(tmp_path: Path) -> None:
    policy = "name: p\nstages: [{weight_percent: 10}]\nmetrics: [{name: errors, kind: errors}]\n"
    (tmp_path / "config").mkdir()
    folder = catalogue(tmp_path / "config", policy=policy, target=TARGET % ("p", "http"))
    with pytest.raises(SettingsError, match=r"metric 'errors'.*lacks; it has: latency"):
        load_catalog(load(write(tmp_path, f"config_dir: {folder}\napi: {{auth: 'off'}}")))


def test_of_several_clusters_records_that_name_none_must_be_given_one(tmp_path: Path) -> None:
    text = (
        "api: {auth: 'off'}\nclusters: {a: {prometheus: {}, kubernetes: {}}, b: {prometheus: {}, kubernetes: {}}}\n"
        "predictions: {topic: records, lateness: 20s"
    )
    given: dict[str, Any] = {"clock": SystemClock(), "seen": UNSEEN, "stopping": Stopping()}
    database = Database(create_async_engine("sqlite+aiosqlite://"), patience_s=1.0)
    with pytest.raises(SettingsError, match=r"predictions.cluster must name .* known: a, b"):
        predictions_of(load(write(tmp_path, text + "}\n")), Connection("k:1"), database, {}, **given)
    made = predictions_of(load(write(tmp_path, text + ", cluster: b}\n")), Connection("k:1"), database, {}, **given)
    assert made.consumer is not None
    assert set(made.readers) == {"prediction_records", "prediction_pairs"}
    assert complete_after_s(load(write(tmp_path, text + ", cluster: b}\n"))) > 20 + COMMIT_S
    without = load(write(tmp_path, "api: {auth: 'off'}\n"))
    assert complete_after_s(without) == 0
    assert predictions_of(without, Connection("k:1"), database, {}, **given).consumer is None


def test_a_secret_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("hunter2\n")
    secret = read_secret(tmp_path / "s")
    assert secret is not None
    assert secret.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(secret)
    with pytest.raises(SettingsError, match="cannot read the secret file"):
        read_secret(tmp_path / "missing")


@pytest.mark.parametrize("name", sorted(all_schemas()))
def test_the_schemas_in_the_repository_are_those_of_the_code(name: str) -> None:
    kept = json.loads((ROOT / "config" / "schemas" / name).read_text())
    assert kept == json.loads(json.dumps(all_schemas()[name])), "run `make schemas`"
