"""The doctor: asks every outside part once and says what is wrong before a rollout finds out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from service.actuators.cluster import connect, rights
from service.api.auth import read_tokens
from service.app.clock import SystemClock
from service.app.run import connection_of
from service.model.catalog import Catalog
from service.model.preset import FromRecords, MetricsPreset, ValueExpression
from service.ring.ports import PortError, Refused, Unavailable
from service.settings import ClusterSettings, Settings, SettingsError, load, load_catalog, read_secret
from service.sources.inventory import absent_series
from service.sources.prometheus import PrometheusSource
from service.storage.opening import InUse, open_store

ROUTING_KEY = re.compile(r"[A-Za-z0-9]{32}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str


def run(config: Path | None) -> list[Finding]:
    """Look at everything; raises SettingsError only when the settings themselves cannot be read."""
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
        await look(f"metric store of {name}", lambda c=cluster: _metric_store(c, loaded))  # type: ignore[misc]
        namespaces = sorted({t.namespace for t in loaded[0][0].targets if "*" not in t.namespace}) if loaded else []
        for namespace in namespaces:
            await look(f"rights in {name}/{namespace}", lambda c=cluster, n=namespace: _rights(c, n))  # type: ignore[misc]
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


async def _metric_store(cluster: ClusterSettings, loaded: list[tuple[Catalog, dict[str, MetricsPreset]]]) -> str:
    """Its version, and which series of the presets in use it has none of yet (a new service may be to come)."""
    token = read_secret(cluster.prometheus.token_file)
    async with aiohttp.ClientSession() as session:
        source = PrometheusSource(
            session,
            cluster.prometheus.url,
            {},
            clock=SystemClock(),
            scrape_interval_s=cluster.prometheus.scrape_interval_s,
            timeout_s=cluster.prometheus.timeout_s,
            token=token,
        )
        said = f"{cluster.prometheus.url} {await source.check()}"
    used = {target.metrics for catalog, _ in loaded for target in catalog.targets}
    names = {
        name
        for _, presets in loaded
        for preset in used
        for series in presets[preset].metrics.values()
        if not isinstance(series, ValueExpression | FromRecords)
        for name in series.names
    }
    absent = await absent_series(cluster.prometheus.url, names, token=token, timeout_s=cluster.prometheus.timeout_s)
    return f"{said}; no series yet of {', '.join(absent)}" if absent else f"{said}; has all {len(names)} series"


async def _rights(cluster: ClusterSettings, namespace: str) -> str:
    api = await connect(cluster.kubernetes.kubeconfig, cluster.kubernetes.context)
    try:
        found = await rights(api, namespace, timeout_s=cluster.kubernetes.timeout_s)
    finally:
        await api.close()
    missing = [f"{r.verb} {r.resource}.{r.group}" for r in found if not r.allowed]
    if missing:
        raise Refused(f"not allowed: {', '.join(missing)}; the chart's Role grants exactly these")
    return f"all {len(found)} rights"


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
