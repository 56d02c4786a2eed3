"""Settings: the only room that reads the environment and files.

One YAML file, overridden by ``SERINUS_...`` variables (nested by ``__``), strict to the last key: a typo stops the
start-up with the list of what is known. Policies, targets and metric presets are YAML files beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.model.catalog import Catalog
from service.model.lines import LogSeries, PatternSet
from service.model.names import DnsName, Mode
from service.model.policy import Age, Policy, Seconds
from service.model.preset import MetricsPreset
from service.model.target import Target
from service.preflight.outside import Allowed

MAX_FILE_BYTES = 1_000_000
"""A configuration file larger than this is a mistake, not a configuration."""


class SettingsError(Exception):
    """The configuration cannot be used. The message names the file or variable, what was found and what is known."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Section):
    """The event bus."""

    bootstrap_servers: str = "localhost:9092"
    topic: str = "cd.events"
    group: str = "serinus"
    dead_letter_topic: str = "cd.events.dead-letter"
    decisions_topic: str = "canary.decisions"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> KafkaSettings:
        if self.security_protocol.startswith("SASL") and not (
            self.sasl_mechanism and self.username and self.password_file
        ):
            raise ValueError("SASL needs sasl_mechanism, username and password_file")
        return self


class PredictionSettings(_Section):
    """Prediction records, on the brokers of the event bus. Without a topic none are read."""

    topic: str = ""
    group: str = "serinus-predictions"
    cluster: DnsName | None = None
    """Where records ran that name no cluster; needed where there are several clusters."""
    lateness_s: Annotated[Seconds, Field(ge=1, le=300)] = Field(default=10.0, alias="lateness")
    """How far records of one partition may come out of order; later ones are not counted, and windows are judged that
    much later, if they are not later already."""
    waiting: int = Field(default=0, ge=0, le=1_000_000)
    """Answers to mirrored requests that may wait for the other version's; 0: no pairs are joined. About 500 bytes
    each."""
    learn: bool = False
    """Whether a classifier is trained on embeddings, in a process of its own; needs the extra ``tensorflow``."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PrometheusSettings(_Section):
    """A cluster's metric store."""

    url: str = "http://localhost:9090"
    token_file: Path | None = None
    ca_file: Path | None = None
    scrape_interval_s: Annotated[Seconds, Field(gt=0)] = Field(default=15.0, alias="scrape_interval")
    """The interval at which the store scrapes the services; windows are closed two intervals after their end."""
    timeout_s: Annotated[Seconds, Field(gt=0)] = Field(default=20.0, alias="timeout")
    max_concurrent: int = Field(default=4, ge=1, le=64)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LokiSettings(_Section):
    """A cluster's log store. Without one, metrics of logs are read from the pods themselves."""

    url: str = "http://localhost:3100"
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9!_.*'()|-]{1,300}$")] | None = None
    """Sent as X-Scope-OrgID, which a store with several tenants needs; a|b asks both."""
    token_file: Path | None = None
    timeout_s: Annotated[Seconds, Field(gt=0)] = Field(default=20.0, alias="timeout")
    max_concurrent: int = Field(default=4, ge=1, le=64)
    delay_s: Annotated[Seconds, Field(le=600)] = Field(default=30.0, alias="delay")
    """So much later than they were written lines may arrive; a window is counted that much further back."""
    heard_within_s: Annotated[Seconds, Field(ge=60)] = Field(default=7 * 86400.0, alias="heard_within")
    """An arm without any line for so long is one whose logs do not get here, and not a quiet one."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class KubernetesSettings(_Section):
    """A cluster's API server. Without a kubeconfig, the pod's own ServiceAccount is used."""

    kubeconfig: Path | None = None
    context: str | None = None
    pod_logs: bool = False
    """Read log lines from the pods where no log store is set (``loki``). Every pod of a rollout is asked in every
    window, so it is for tens of rollouts and not for thousands. Needs the right to; the chart grants it with
    ``rbac.podLogs``."""
    timeout_s: Annotated[Seconds, Field(gt=0)] = Field(default=10.0, alias="timeout")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ClusterSettings(_Section):
    """One cluster of several."""

    prometheus: PrometheusSettings
    kubernetes: KubernetesSettings
    loki: LokiSettings | None = None
    environments: tuple[str, ...] = ()
    """Environment ids in events that mean this cluster."""


class DatabaseSettings(_Section):
    """Where state is kept: SQLite for one replica, PostgreSQL for more."""

    url: str = "sqlite:///serinus.db"
    password_file: Path | None = None


class RetentionSettings(_Section):
    """How long what has ended is kept. Running rollouts are never touched."""

    windows_s: Age = Field(default=14 * 86400, alias="windows")
    """Judged windows, from the rollout's end."""
    rollouts_s: Age = Field(default=90 * 86400, alias="rollouts")
    """Rollouts with their journal, from their end."""
    seen_events_s: Age = Field(default=30 * 86400, alias="seen_events")
    """Ids of events, from the moment they were read. Must be longer than the topic keeps its records."""
    instructions_s: Age = Field(default=3 * 86400, alias="instructions")
    """Instructions that are carried out."""
    every_s: Annotated[Seconds, Field(ge=60)] = Field(default=3600, alias="every")
    """How often one replica looks for what is too old."""
    export_dir: Path | None = None
    """Folder for ended rollouts, as JSON Lines, before anything of them is deleted; none: they are just deleted."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _in_order(self) -> RetentionSettings:
        if self.rollouts_s < self.windows_s:
            raise ValueError("rollouts must be kept at least as long as their windows")
        return self


class ApiSettings(_Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    auth: Literal["tokens", "off"] = "tokens"
    """``off`` is accepted only on a loopback host."""
    tokens_file: Path | None = None
    """YAML: a list of {name, role: viewer|operator, token}."""
    external_url: str = ""
    """Where people reach this API, for the links in pages."""

    @model_validator(mode="after")
    def _guarded(self) -> ApiSettings:
        if self.auth == "off" and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"auth: off is accepted only on a loopback host, found host {self.host!r}")
        if self.auth == "tokens" and self.tokens_file is None:
            raise ValueError("auth: tokens needs tokens_file; on a loopback host auth: off is accepted")
        return self


class PagerDutySettings(_Section):
    """The people on call. Without a routing key nobody is paged, and the start-up says so."""

    routing_key_file: Path | None = None
    url: str = "https://events.pagerduty.com"
    timeout_s: Annotated[Seconds, Field(gt=0)] = Field(default=10.0, alias="timeout")

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class PreflightSettings(_Section):
    """What the gates before any traffic may reach and how."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts with an address inside (private, loopback) that may be read: registries, report servers. As ``host``,
    ``host:port`` or, for one without TLS, ``http://host:port``. Public hosts need no entry; everything else inside is
    refused, also behind a redirect."""
    registry_logins_file: Path | None = None
    """A ``.dockerconfigjson``, as in Kubernetes' pull secrets. Without it registries are read without a login."""
    ca_file: Path | None = None
    """Certificates of an authority of one's own, in PEM; used beside the system's."""
    models_dir: Path | None = None
    """The folder below which the targets' models are; without it the gate model cannot look."""
    requests_dir: Path | None = None
    """The folder below which the targets' golden requests are; without it the gate golden cannot look."""
    reports_dir: Path | None = None
    """The folder below which scan reports are; without it reports are read from addresses and registries alone."""

    @field_validator("allowed_hosts")
    @classmethod
    def _of_that_form(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        Allowed.listed(entries)
        return entries


class LogSettings(_Section):
    """What is written to standard output."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class TracingSettings(_Section):
    """OpenTelemetry traces; off without an endpoint. Needs the extra ``otel``."""

    endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """OTLP over HTTP, the whole URL, for example http://otel-collector:4318/v1/traces."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the releases that are traced; a release whose sender samples its trace always is."""


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="SERINUS_", env_nested_delimiter="__", extra="forbid", frozen=True)

    mode: Mode = Mode.OBSERVE
    """observe (tell, touch nothing), recommend (ask a person before each move) or enforce."""
    rollbacks_per_hour: int = Field(default=10, ge=0)
    """Automatic rollbacks in any hour over all services; past it, harm pauses and pages instead."""
    config_dir: Path = Path("config")
    """Folder with policies/, targets/, metrics/ and logs/."""
    cluster: DnsName = "default"
    """Name of the one cluster, where ``clusters`` is empty."""
    kafka: KafkaSettings = KafkaSettings()
    predictions: PredictionSettings = PredictionSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    loki: LokiSettings | None = None
    clusters: dict[DnsName, ClusterSettings] = {}
    database: DatabaseSettings = DatabaseSettings()
    retention: RetentionSettings = RetentionSettings()
    api: ApiSettings
    pagerduty: PagerDutySettings = PagerDutySettings()
    preflight: PreflightSettings = PreflightSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    stop_s: Seconds = Field(default=10.0, alias="stop_within")
    """How long a graceful stop may take."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over the file; nothing else."""
        return env_settings, init_settings

    def all_clusters(self) -> dict[str, ClusterSettings]:
        """The clusters by name; the top-level Prometheus, API server and Loki where none are listed."""
        one = ClusterSettings(prometheus=self.prometheus, kubernetes=self.kubernetes, loki=self.loki)
        return self.clusters or {self.cluster: one}


def load(file: Path | None) -> Settings:
    """Settings from ``file`` (or defaults) and the environment. Raises SettingsError with every fault found."""
    given = _read_yaml(file) if file else {}
    if not isinstance(given, dict):
        raise SettingsError(f"{file}: expected a mapping of settings, found {type(given).__name__}")
    _refuse_unknown_variables()
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(
            _explain(error, str(file or "the environment alone (name a file with --config)"), _keys(Settings))
        ) from error


def read_secret(file: Path | None) -> SecretStr | None:
    """The text of a secret file, without the line end; None for no file. Never printed."""
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            return SecretStr(stream.read(65_536).decode().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the secret file {file}: {error}") from error


def load_catalog(settings: Settings) -> tuple[Catalog, dict[str, MetricsPreset]]:
    """The catalogue and the metric presets below ``config_dir``; every name that is used must be known."""
    folder = settings.config_dir
    if not folder.is_dir():
        raise SettingsError(f"config_dir {folder} is no folder; it must hold policies/, targets/ and metrics/")
    policies = {p.name: p for p in (_parse(Policy, f, _read_yaml(f)) for f in _yaml_files(folder / "policies"))}
    sets = {p.name: p for p in (_parse(PatternSet, f, _read_yaml(f)) for f in _yaml_files(folder / "logs"))}
    listed_presets = (_parse(MetricsPreset, f, _read_yaml(f)) for f in _yaml_files(folder / "metrics"))
    given = {p.name: _with_sets(p, sets, folder) for p in listed_presets}
    try:
        presets = {name: preset.with_included(given) for name, preset in given.items()}
    except ValueError as error:
        raise SettingsError(f"{folder / 'metrics'}: {error}") from None
    targets: list[Target] = []
    for file in _yaml_files(folder / "targets"):
        listed = _read_yaml(file)
        targets += [_parse(Target, file, one) for one in (listed if isinstance(listed, list) else [listed])]
    clusters = settings.all_clusters()
    try:
        catalog = Catalog(
            mode=settings.mode,
            clusters=tuple(clusters),
            environments={e: name for name, c in clusters.items() for e in c.environments},
            policies=policies,
            targets=tuple(targets),
        )
    except ValidationError as error:
        raise SettingsError(_explain(error, str(folder), [])) from error
    for target in targets:
        preset = presets.get(target.metrics)
        if preset is None:
            raise SettingsError(
                f"target {target.namespace}/{target.service} names metrics {target.metrics!r}; "
                f"known presets in {folder / 'metrics'}: {', '.join(sorted(presets)) or 'none'}"
            )
        for name in (target.policy, *target.allowed_policies):
            policy = policies[name]
            watched = {guard.metric for guard in policy.guards}
            for metric in policy.metrics:
                # An optional metric may be missing: policies are shared by servers that do not all have it.
                if metric.name not in preset.metrics and (metric.required or metric.name in watched):
                    raise SettingsError(
                        f"policy {name!r} needs metric {metric.name!r}, which preset {preset.name!r} of target "
                        f"{target.namespace}/{target.service} lacks; it has: {', '.join(sorted(preset.metrics))}"
                    )
    return catalog, presets


def _with_sets(preset: MetricsPreset, sets: Mapping[str, PatternSet], folder: Path) -> MetricsPreset:
    """The preset with the patterns of the sets that it names."""
    try:
        return preset.model_copy(
            update={
                "metrics": {
                    name: series.with_sets(sets) if isinstance(series, LogSeries) else series
                    for name, series in preset.metrics.items()
                }
            }
        )
    except KeyError as error:
        raise SettingsError(
            f"preset {preset.name!r} names the pattern set {error.args[0]!r}; "
            f"known in {folder / 'logs'}: {', '.join(sorted(sets)) or 'none'}"
        ) from None


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.glob("*.y*ml") if f.suffix in (".yaml", ".yml"))


def _read_yaml(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(f"{file} has {file.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read")
        return yaml.safe_load(file.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read {file}: {error}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def _parse(model: type[_Model], file: Path, given: Any) -> _Model:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise SettingsError(_explain(error, str(file), _keys(model))) from error


def _keys(model: type[BaseModel]) -> list[str]:
    """The keys as they are written in a file."""
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _explain(error: ValidationError, where: str, known: list[str]) -> str:
    lines = [f"{where}: {error.error_count()} fault(s)"]
    for fault in error.errors(include_input=False, include_url=False):
        path = ".".join(str(part) for part in fault["loc"]) or "(whole)"
        hint = (
            f"; known here: {', '.join(known)}" if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1 else ""
        )
        lines.append(f"  {path}: {fault['msg']}{hint}")
    return "\n".join(lines)


def _refuse_unknown_variables() -> None:
    """Pydantic ignores variables that it does not know; a typo must stop us instead."""
    known = set(Settings.model_fields) | {f.alias for f in Settings.model_fields.values() if f.alias}
    for name in os.environ:
        if name.startswith("SERINUS_") and not name.startswith(("SERINUS_TEST_", "SERINUS_CONFORMANCE")):
            key = name.removeprefix("SERINUS_").split("__")[0].lower()
            if key not in known and name not in ("SERINUS_URL", "SERINUS_TOKEN", "SERINUS_TOKEN_FILE"):
                raise SettingsError(f"environment variable {name} is not known; known: {', '.join(sorted(known))}")
