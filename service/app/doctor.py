"""The doctor: asks every outside part once and says what is wrong before a rollout finds out."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import aiohttp
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from kubernetes.aio import client

from service.api.auth import read_tokens
from service.app.clock import SystemClock
from service.app.labelling import lacking, names_of, narrowed, needs
from service.app.run import connection_of
from service.app.selecting import Selector, deployments, mixed, selectors
from service.cluster import LOGS_NEEDED, NEEDED, Right, answered, connect, get, read_object, rights
from service.model.catalog import Catalog
from service.model.gates.model import ModelGate
from service.model.gates.rules import GateRule
from service.model.gates.security import SecurityGate
from service.model.lines import LogSeries
from service.model.preset import MetricsPreset
from service.model.target import Target
from service.preflight.saved_model.cluster import NEEDED as JOBS_NEEDED
from service.preflight.security.cluster import NEEDED as WORKLOADS_NEEDED
from service.ring.ports import PortError, Refused, Unavailable
from service.settings import ClusterSettings, Settings, SettingsError, load, load_catalog, read_secret
from service.sources.inventory import absent_series
from service.sources.loki import LokiSource
from service.sources.prometheus import PrometheusSource
from service.storage.opening import InUse, open_store

MOST_NEEDS = 200
"""Pairs of a series and a label that the doctor asks about."""

MOST_DEPLOYMENTS = 500
"""Of a namespace, so many are looked at."""

DEPLOYMENTS = "/apis/apps/v1/namespaces/{namespace}/deployments"

_PATTERN = re.compile(r"[*?\[]")

ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


def run(config: Path | None) -> list[Finding]:
    """Look at everything; raises SettingsError only when the settings themselves cannot be read."""
    # The client says on standard error by itself what the finding about the bus says.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    return asyncio.run(_run(load(config)))


async def _run(settings: Settings) -> list[Finding]:
    findings: list[Finding] = []

    async def look(name: str, check: Callable[[], Awaitable[str]]) -> None:
        try:
            async with asyncio.timeout(30):
                findings.append(Finding(name, True, await check()))
        except (PortError, SettingsError) as error:
            findings.append(Finding(name, False, str(error)))
        except TimeoutError:
            findings.append(Finding(name, False, "no answer within 30 s"))

    loaded: list[tuple[Catalog, dict[str, MetricsPreset]]] = []

    async def catalogue() -> str:
        catalog, presets = load_catalog(settings)
        loaded.append((catalog, presets))
        return f"{len(catalog.policies)} policies, {len(catalog.targets)} targets, {len(presets)} presets"

    await look("configuration", catalogue)
    await look("database", lambda: _database(settings))
    await look("event bus", lambda: _event_bus(settings))
    for name, cluster in settings.all_clusters().items():
        seen = _watched(name, loaded)
        await look(f"metric store of {name}", partial(_metric_store, cluster, seen))
        await look(f"labels in {name}", partial(_labels, cluster, seen))
        if cluster.loki is not None:
            await look(f"log store of {name}", partial(_log_store, cluster, seen))
        logs = cluster.loki is None and cluster.kubernetes.pod_logs
        await look(f"pods in {name}", partial(_pods, cluster, seen, logs=logs))
        for namespace, needed in sorted(_needs(seen, _gates_of(name, loaded), logs=logs).items()):
            await look(f"rights in {name}/{namespace}", partial(_rights, cluster, namespace, needed))
    await look("gates", lambda: _gates(settings, loaded))
    await look("pagerduty", lambda: _pagerduty(settings))
    await look("api tokens", lambda: _tokens(settings))
    return findings


async def _database(settings: Settings) -> str:
    try:
        store = await open_store(settings.database.url, password=read_secret(settings.database.password_file))
    except InUse as busy:
        return f"not opened, {busy}"
    try:
        await store.check()
    finally:
        await store.close()
    return "opens, reads and writes"


async def _event_bus(settings: Settings) -> str:
    kafka = settings.kafka
    consumer = AIOKafkaConsumer(**connection_of(kafka).arguments())
    try:
        await consumer.start()
        topics = await consumer.topics()
    except (KafkaError, OSError) as error:
        raise Unavailable(f"cannot reach {kafka.bootstrap_servers}: {error!r}") from error
    finally:
        await consumer.stop()
    wanted = {kafka.topic, kafka.dead_letter_topic, kafka.decisions_topic, settings.predictions.topic} - {""}
    missing = sorted(wanted - set(topics))
    if missing:
        raise Refused(f"{kafka.bootstrap_servers} answers, but has no topic {', '.join(missing)}; create it")
    return f"{kafka.bootstrap_servers} has all {len(wanted)} topics"


def _reader(cluster: ClusterSettings, session: aiohttp.ClientSession) -> PrometheusSource:
    return PrometheusSource(
        session,
        cluster.prometheus.url,
        {},
        clock=SystemClock(),
        scrape_interval_s=cluster.prometheus.scrape_interval_s,
        timeout_s=cluster.prometheus.timeout_s,
        token=read_secret(cluster.prometheus.token_file),
    )


Watched: TypeAlias = Sequence[tuple[Target, MetricsPreset]]
"""A cluster's targets, each with what of its preset its policies look at."""


def _watched(cluster: str, loaded: list[tuple[Catalog, dict[str, MetricsPreset]]]) -> Watched:
    out = []
    for catalog, presets in loaded:
        for target in catalog.targets:
            if fnmatch.fnmatchcase(cluster, target.cluster):
                policies = [catalog.policies[name] for name in (target.policy, *target.allowed_policies)]
                metrics = {rule.name for policy in policies for rule in policy.metrics}
                out.append((target, narrowed(presets[target.metrics], metrics)))
    return out


def _gates_of(cluster: str, loaded: list[tuple[Catalog, dict[str, MetricsPreset]]]) -> list[tuple[Target, GateRule]]:
    """Every gate that a policy may ask of a target in the cluster."""
    return [
        (target, rule)
        for catalog, _ in loaded
        for target in catalog.targets
        if fnmatch.fnmatchcase(cluster, target.cluster)
        for name in (target.policy, *target.allowed_policies)
        for rule in catalog.policies[name].preflight
    ]


def _needs(watched: Watched, gates: list[tuple[Target, GateRule]], *, logs: bool) -> dict[str, tuple[Right, ...]]:
    """What is needed in each namespace that is named by itself, and not by a pattern or a template."""
    needs: dict[str, dict[Right, None]] = defaultdict(dict)
    of_logs = _of_logs(watched) if logs else []
    for target, _ in watched:
        needs[target.namespace] |= dict.fromkeys((*NEEDED, *(LOGS_NEEDED if target in of_logs else ())))
    for target, rule in gates:
        subjects = target.preflight
        if isinstance(rule, SecurityGate) and subjects.security is not None and subjects.security.deployment:
            its = subjects.security.namespace
            needs[target.namespace if "$" in its else its] |= dict.fromkeys(WORKLOADS_NEEDED)
        if isinstance(rule, ModelGate) and subjects.model is not None and subjects.model.job is not None:
            needs[subjects.model.job.namespace] |= dict.fromkeys(JOBS_NEEDED)
    return {namespace: tuple(rights) for namespace, rights in needs.items() if "*" not in namespace}


async def _gates(settings: Settings, loaded: list[tuple[Catalog, dict[str, MetricsPreset]]]) -> str:
    """That every gate of a policy is told where to look, and that the folders which they look in are there."""
    gates = [one for name in settings.all_clusters() for one in _gates_of(name, loaded)]
    untold = sorted(
        {
            f"{target.namespace}/{target.service} says nothing of preflight.{rule.gate}"
            for target, rule in gates
            if getattr(target.preflight, rule.gate) is None
        }
    )
    kinds = {rule.gate for _, rule in gates}
    preflight = settings.preflight
    folders = {"model": ("models_dir", preflight.models_dir), "golden": ("requests_dir", preflight.requests_dir)}
    if any(_file_of(target) for target, _ in gates):
        folders["security"] = ("reports_dir", preflight.reports_dir)
    for gate, (key, folder) in folders.items():
        if gate in kinds and (folder is None or not folder.is_dir()):
            untold.append(f"preflight.{key} is {'not set' if folder is None else f'no folder: {folder}'}")
    if untold:
        raise Refused(f"{'; '.join(untold)}: these gates could not look, and hold releases of their policies")
    return f"{', '.join(sorted(kinds))}" if kinds else "no policy asks for any"


def _file_of(target: Target) -> bool:
    security = target.preflight.security
    return security is not None and security.report is not None and security.report.file is not None


def _of_logs(watched: Watched) -> list[Target]:
    return [target for target, one in watched if any(isinstance(s, LogSeries) for s in one.metrics.values())]


async def _metric_store(cluster: ClusterSettings, watched: Watched) -> str:
    """Its version, and which series that policies look at it has none of yet (a new service may be to come)."""
    async with aiohttp.ClientSession() as session:
        said = f"{cluster.prometheus.url} {await _reader(cluster, session).check()}"
    names = {name for _, preset in watched for name in names_of(preset)}
    token = read_secret(cluster.prometheus.token_file)
    absent = await absent_series(cluster.prometheus.url, names, token=token, timeout_s=cluster.prometheus.timeout_s)
    return f"{said}; no series yet of {', '.join(absent)}" if absent else f"{said}; has all {len(names)} series"


async def _labels(cluster: ClusterSettings, watched: Watched) -> str:
    async with aiohttp.ClientSession() as session:
        return await labels_of(_reader(cluster, session), watched)


async def labels_of(source: PrometheusSource, watched: Watched) -> str:
    """Whether the series that are looked at carry the labels by which targets tell the arms apart; raises Refused."""
    asked = list(dict.fromkeys(need for target, preset in watched for need in needs(target, preset)))
    counts = {need: await source.lacking_n(need.series, need.label, dict(need.labels)) for need in asked[:MOST_NEEDS]}
    hidden = {need.beside: need.label for need, (_, all_n) in counts.items() if need.beside and not all_n}
    beside_n = {name: (await source.lacking_n(name, label, {}))[1] for name, label in hidden.items()}
    faults = lacking(counts, beside_n)
    if faults:
        raise Refused("; ".join(faults))
    there_n = sum(all_n > 0 for _, all_n in counts.values())
    return f"{there_n} of {len(asked)} pairs of a series and a label are there, and no series lacks its label"


async def _log_store(cluster: ClusterSettings, watched: Watched) -> str:
    loki = cluster.loki
    assert loki is not None
    async with aiohttp.ClientSession() as session:
        source = LokiSource(
            session,
            loki.url,
            {},
            clock=SystemClock(),
            tenant=loki.tenant,
            token=read_secret(loki.token_file),
            timeout_s=loki.timeout_s,
        )
        return f"{loki.url} {await streams_of(source, _of_logs(watched))}"


async def streams_of(source: LokiSource, targets: Sequence[Target]) -> str:
    """Whether a log store answers, and its streams have the labels by which targets tell the arms apart; raises
    Refused or Unavailable."""
    there = await source.labels()
    wanted = {
        label
        for target in targets
        for one in [target.logs or target]
        for label in {**one.labels, **one.stable_labels, **one.canary_labels}
    }
    missing = sorted(wanted - there)
    if missing:
        raise Refused(
            f"no stream has the label {', '.join(missing)}; name labels of streams under `logs` in the target "
            f"(there are: {', '.join(sorted(there)[:20]) or 'none'}), or add them where the logs are collected"
        )
    return f"answers; its streams have {len(there)} labels"


@asynccontextmanager
async def _connected(cluster: ClusterSettings) -> AsyncIterator[client.ApiClient]:
    api = await connect(cluster.kubernetes.kubeconfig, cluster.kubernetes.context)
    try:
        yield api
    finally:
        await api.close()


async def _rights(cluster: ClusterSettings, namespace: str, needed: Sequence[Right]) -> str:
    async with _connected(cluster) as api:
        found = await rights(api, namespace, needed=needed, timeout_s=cluster.kubernetes.timeout_s)
    missing = [f"{r.verb} {r.resource}.{r.group}" for r in found if not r.allowed]
    if missing:
        raise Refused(
            f"not allowed: {', '.join(missing)}; the chart's Role grants exactly these (pods and jobs by "
            "rbac.podLogs, rbac.pods, rbac.jobNamespaces)"
        )
    return f"all {len(found)} rights"


async def _pods(cluster: ClusterSettings, watched: Watched, *, logs: bool) -> str:
    async with _connected(cluster) as api:
        return await pods_of(api, watched, logs=logs, timeout_s=cluster.kubernetes.timeout_s)


async def pods_of(api: client.ApiClient, watched: Watched, *, logs: bool, timeout_s: float) -> str:
    """Whether targets' labels pick the pods of one service each; raises Refused or Unavailable. logs : whether log
    lines are read from pods."""
    of_logs = _of_logs(watched) if logs else []
    wanted: dict[str, list[tuple[Target, list[Selector]]]] = defaultdict(list)
    for target, preset in watched:
        picking = selectors(target, preset, logs=target in of_logs)
        if picking and not _PATTERN.search(target.namespace):
            wanted[target.namespace].append((target, picking))
    faults: list[str] = []
    there_n = 0
    for namespace, listed in sorted(wanted.items()):
        with answered(f"list the Deployments of {namespace}"):
            there = deployments(
                await read_object(
                    await get(api, DEPLOYMENTS, {"namespace": namespace}, timeout_s=timeout_s, limit=MOST_DEPLOYMENTS)
                )
            )
        there_n += len(there)
        faults += [fault for target, picking in listed for fault in mixed(target, picking, there)]
    if faults:
        raise Refused("; ".join(faults))
    return f"{there_n} Deployments in {len(wanted)} namespaces, and no target's labels pick pods of several services"


async def _pagerduty(settings: Settings) -> str:
    key = read_secret(settings.pagerduty.routing_key_file)
    if key is None:
        return "no routing key is set: nobody will be paged"
    if not ROUTING_KEY.fullmatch(key.get_secret_value()):
        raise Refused("the routing key is not 32 letters and digits (an Events API v2 integration key)")
    return "the routing key has the right form (no page was sent)"


async def _tokens(settings: Settings) -> str:
    if settings.api.tokens_file is None:
        return f"off: everyone on {settings.api.host} may order"
    return f"{len(read_tokens(settings.api.tokens_file))} tokens"
