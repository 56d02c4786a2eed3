"""The service: everything wired together once, started, watched over, and stopped in order."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import aiohttp
from aiohttp import web
from kubernetes.aio.client import ApiClient

from service.actuators.istio import IstioMesh
from service.alerts.pagerduty import NobodyPaged, PagerDutyPager
from service.analysis.tick import PAST_ROLLOUTS, NoSource, Tick
from service.api.app import Api, build_app
from service.api.auth import Auth, read_tokens
from service.api.health import Check, Health
from service.app import logs
from service.app.clock import SystemClock
from service.app.gates import open_gates
from service.app.metrics import Counted, OwnMetrics
from service.app.observed_store import observed
from service.app.predictions import complete_after_s, predictions_of
from service.app.supervisor import run_until
from service.app.tracing import open_tracer
from service.cluster import connect
from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import Dispatcher
from service.events.connection import Connection
from service.events.consumer import EventConsumer
from service.events.publisher import KafkaBus, Producer
from service.kafka import SILENT_S
from service.model.preset import MetricsPreset
from service.ring.door import Door
from service.ring.lease import HeldLease
from service.ring.ports import Mesh, Pager, PortError, Source, Unavailable
from service.ring.stopping import Stopping
from service.ring.store import RolloutFilter, Store, Where
from service.settings import (
    ApiSettings,
    ClusterSettings,
    KafkaSettings,
    Settings,
    SettingsError,
    load,
    load_catalog,
    read_secret,
)
from service.sources.loki import LokiSource
from service.sources.pod_logs import PodLogSource
from service.sources.prometheus import COLLECT_TIMEOUTS, PrometheusSource
from service.sources.routed import RoutedSource, Unread
from service.storage.opening import open_store
from service.storage.retention import Ages, Retention

logger = logging.getLogger(__name__)

COUNT_EVERY_S = 10.0
"""How often one replica counts in the database what its gauges show."""

LAST_SHARE = 0.05
"""Of the time that a stop may take, for each of: writing outcomes, sending what the producer and the tracer hold."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, for whoever started it in the same process."""

    settings: Settings
    store: Store
    door: Door
    api_port: int


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("serinus")


def serve(config: Path | None) -> int:
    """Run until SIGTERM or SIGINT; the process's exit status."""
    try:
        settings = load(config)
        logs.set_up(settings.log)
        # A thread, so that it fires though the loop hangs, or the interpreter on its way out.
        last_resort = threading.Timer(settings.stop_s, _give_up)
        last_resort.daemon = True
        asyncio.run(_serve(settings, Stopping(last_resort.start)))
    except (SettingsError, PortError) as error:
        # Start-up faults are for the person at the terminal: one sentence, no traceback.
        logger.critical("cannot start: %s", error)
        print(f"serinus: cannot start: {error}", flush=True)  # noqa: T201
        return 1
    return 0


async def _serve(settings: Settings, stopping: Stopping) -> None:
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stopping.ask)
    await run(settings, stopping)


def _give_up() -> None:
    """End the process where the stop hangs: what is not settled is owed still, as after any crash."""
    logger.critical("the stop takes too long, the process ends without it", extra={"action": "stop_given_up"})
    os._exit(1)


async def run(settings: Settings, stopping: Stopping, *, started: Callable[[Service], None] | None = None) -> None:
    """Run the service until a stop is asked. ``started`` is called once everything listens."""
    catalog, presets = load_catalog(settings)
    clock = SystemClock()
    replica = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    last_s = LAST_SHARE * settings.stop_s
    tracer = open_tracer(settings.tracing, version())
    own = OwnMetrics(version(), clock_behind_s=lambda: clock.behind_s, tracer=tracer)
    scraped_s = max(2 * c.prometheus.scrape_interval_s for c in settings.all_clusters().values())
    grace_s = max(scraped_s, complete_after_s(settings))
    async with AsyncExitStack() as stack, _ending(stopping):
        stack.callback(tracer.close, last_s)
        opened = await open_store(settings.database.url, password=read_secret(settings.database.password_file))
        stack.push_async_callback(opened.close)
        store = observed(opened, own, clock, grace_s=grace_s)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)))
        predictions = predictions_of(
            settings, connection_of(settings.kafka), opened, presets, clock=clock, seen=own, stopping=stopping
        )
        if predictions.learner is not None:
            stack.push_async_callback(predictions.learner.close)
        clusters = settings.all_clusters()
        meshes: dict[str, Mesh] = {}
        sources: dict[str, Source] = {}
        api_clients: dict[str, ApiClient] = {}
        for name, cluster in clusters.items():
            api_client = await connect(cluster.kubernetes.kubeconfig, cluster.kubernetes.context)
            stack.push_async_callback(api_client.close)
            api_clients[name] = api_client
            meshes[name] = IstioMesh(api_client, timeout_s=cluster.kubernetes.timeout_s)
            metric_store = PrometheusSource(
                session,
                cluster.prometheus.url,
                presets,
                clock=clock,
                scrape_interval_s=cluster.prometheus.scrape_interval_s,
                timeout_s=cluster.prometheus.timeout_s,
                max_concurrent=cluster.prometheus.max_concurrent,
                token=read_secret(cluster.prometheus.token_file),
                asked=partial(own.asked, name),
            )
            # By kind of series, what reads it where the metric store does not.
            readers = {"logs": _logs(cluster, session, api_client, presets, clock), **predictions.readers}
            slowest_s = max(cluster.prometheus.timeout_s, cluster.loki.timeout_s if cluster.loki else 0.0)
            deadline_s = COLLECT_TIMEOUTS * slowest_s + 1
            sources[name] = RoutedSource(presets, metric_store, readers, deadline_s=deadline_s)
        producer = Producer(connection_of(settings.kafka))
        bus = KafkaBus(producer, settings.kafka.decisions_topic)
        door = Door(store, catalog, clock)
        dispatcher = Dispatcher(
            store,
            door,
            clock,
            meshes=meshes,
            gates=await stack.enter_async_context(open_gates(settings.preflight, api_clients)),
            pager=_pager(settings, session, clock),
            bus=bus,
            seen=own,
            stopping=stopping,
        )
        door.on_owed = dispatcher.poke
        ticks = {
            str(where): Tick(
                store,
                door,
                source,
                clock,
                grace_s=grace_s,
                where=where,
                rollbacks_per_hour=settings.rollbacks_per_hour,
                seen=own,
                stopping=stopping,
            )
            for where, source in (
                *((Where(only=name), source) for name, source in sources.items()),
                (Where(but=frozenset(sources)), NoSource()),
            )
        }
        clockwork = Clockwork(store, door, clock, meshes, replica=replica, seen=own)
        consumer = EventConsumer(
            connection_of(settings.kafka),
            topic=settings.kafka.topic,
            group=settings.kafka.group,
            dead_letter_topic=settings.kafka.dead_letter_topic,
            producer=producer,
            handle=door.events,
            clock=clock,
            seen=own,
            stopping=stopping,
        )
        kept = settings.retention
        retention = Retention(
            opened,
            clock,
            Ages(kept.windows_s, kept.rollouts_s, kept.seen_events_s, kept.instructions_s),
            own.retention,
            replica=replica,
            every_s=kept.every_s,
            teaching_n=PAST_ROLLOUTS,
            export_dir=kept.export_dir,
        )
        auth = Auth(read_tokens(settings.api.tokens_file) if settings.api.tokens_file else None)
        checks: dict[str, Check] = {
            "database": store.check,
            "event-bus": _bus_check(consumer, clock),
        }
        health = Health(checks, silent_s=own.beats.silent_s, stopping=lambda: stopping.asked)
        api = Api(store, door, clock, auth=auth, version=version())
        port = await stack.enter_async_context(
            _listening(build_app(api, health, own.registry), settings.api, stop_s=2 * last_s)
        )
        # What comes after the API here is closed before it, so that probes are answered to the end.
        stack.push_async_callback(_within, last_s, "producer", producer.stop)
        stack.push_async_callback(_within, last_s, "outcomes", dispatcher.settled)
        if started is not None:
            started(Service(settings, store, door, port))
        logger.info("serinus %s listens on %s:%s in mode %s", version(), settings.api.host, port, settings.mode.value)
        await run_until(
            stopping,
            {
                "events": consumer.run(),
                **({"predictions": predictions.consumer.run()} if predictions.consumer else {}),
                **{f"tick {name}": tick.run() for name, tick in ticks.items()},
                "wake": clockwork.wake(),
                **{f"watch {cluster}": clockwork.watch(cluster) for cluster in meshes},
                "own metrics": _count(own, store, clock, replica, grace_s),
                "retention": retention.run(),
                **{f"lane {lane} {where}": dispatcher.run(lane, where) for lane, where in dispatcher.lanes()},
            },
            stop_s=settings.stop_s,
            at_once=("wake", "own metrics", "retention", *(f"watch {cluster}" for cluster in meshes)),
        )
    logger.info("stopped", extra={"action": "stopped"})


@asynccontextmanager
async def _ending(stopping: Stopping) -> AsyncIterator[None]:
    """However its inside ends, in the middle of the start too, the stop has begun before anything is closed."""
    try:
        yield
    finally:
        if not stopping.asked:
            stopping.ask()


async def _within(seconds: float, what: str, close: Callable[[], Awaitable[None]]) -> None:
    """One step of the stop, which must not hold up the next."""
    try:
        async with asyncio.timeout(seconds):
            await close()
    except TimeoutError:
        logger.warning("closing without waiting longer for %s", what, extra={"action": "stop_late"})


def connection_of(kafka: KafkaSettings) -> Connection:
    """The client's view of the Kafka settings."""
    return Connection(
        bootstrap_servers=kafka.bootstrap_servers,
        security_protocol=kafka.security_protocol,
        sasl_mechanism=kafka.sasl_mechanism,
        username=kafka.username,
        password=read_secret(kafka.password_file),
        ca_file=kafka.ca_file,
        cert_file=kafka.cert_file,
        key_file=kafka.key_file,
    )


def _pager(settings: Settings, session: aiohttp.ClientSession, clock: SystemClock) -> Pager:
    key = read_secret(settings.pagerduty.routing_key_file)
    if key is None:
        logger.warning("no PagerDuty routing key is set: nobody will be paged", extra={"action": "nobody_paged"})
        return NobodyPaged()
    return PagerDutyPager(
        session,
        key,
        clock,
        url=settings.pagerduty.url,
        timeout_s=settings.pagerduty.timeout_s,
        client_url=settings.api.external_url,
    )


def _logs(
    cluster: ClusterSettings,
    session: aiohttp.ClientSession,
    api_client: ApiClient,
    presets: Mapping[str, MetricsPreset],
    clock: SystemClock,
) -> Source:
    """The cluster's log store, or where it has none and that is wanted, the pods themselves."""
    if cluster.loki is None and not cluster.kubernetes.pod_logs:
        return Unread("no log store is set (loki), and the logs of pods are not read (kubernetes.pod_logs)")
    if cluster.loki is None:
        return PodLogSource(api_client, presets, clock=clock, timeout_s=cluster.kubernetes.timeout_s)
    return LokiSource(
        session,
        cluster.loki.url,
        presets,
        clock=clock,
        tenant=cluster.loki.tenant,
        token=read_secret(cluster.loki.token_file),
        timeout_s=cluster.loki.timeout_s,
        max_concurrent=cluster.loki.max_concurrent,
        delay_s=cluster.loki.delay_s,
        heard_within_s=cluster.loki.heard_within_s,
    )


def _bus_check(consumer: EventConsumer, clock: SystemClock) -> Check:
    """Ready with partitions or as a standby of the group: as long as the brokers are heard of."""

    async def check() -> str:
        at = consumer.last_heard_at
        if consumer.waits_for:
            return f"events wait for another part: {consumer.waits_for}"
        if at is None:
            raise Unavailable("the brokers have not been heard of yet; see the log of the event bus, or run the doctor")
        silent_s = (clock.now() - at).total_seconds()
        if silent_s > SILENT_S:
            raise Unavailable(f"the brokers have not been heard of for {silent_s:.0f} s; see whether they are up")
        return f"{consumer.assigned_n} partitions are ours, brokers heard of {silent_s:.1f} s ago"

    return check


async def _count(own: OwnMetrics, store: Store, clock: SystemClock, replica: str, grace_s: float) -> None:
    """Count what the gauges of the database show: one replica for all, by a lease; the others show none."""
    lease = HeldLease(store, clock, "own metrics", replica, lease_s=3 * COUNT_EVERY_S)
    while True:
        own.turned("own metrics")
        try:
            own.counted.show(await _counted(store, clock, grace_s) if await lease.mine() else None)
        except Unavailable as error:
            logger.info("gauges wait: %s", error, extra={"action": "gauges_postponed"})
        except Exception:
            # Whatever the gauges cannot be made of must not end the service, which does without them.
            logger.exception("gauges wait for a reason that nobody foresaw", extra={"action": "gauges_postponed"})
        await clock.sleep(COUNT_EVERY_S)


async def _counted(store: Store, clock: SystemClock, grace_s: float) -> Counted:
    now = clock.now()
    grace = timedelta(seconds=grace_s)
    overdue_n, ended_at = await store.overdue(now - grace)
    counts = (await store.rollouts(RolloutFilter(), limit=1)).counts
    return Counted(now, await store.owed_summary(), counts, overdue_n, ended_at + grace if ended_at else None)


@asynccontextmanager
async def _listening(app: web.Application, settings: ApiSettings, *, stop_s: float) -> AsyncIterator[int]:
    """The API on its port; yields the port, which matters when 0 was asked for."""
    host, port = settings.host, settings.port
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=stop_s)
    await runner.setup()
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise SettingsError(f"api: cannot listen on {host}:{port}: {error.strerror}") from error
        await web.SockSite(runner, listener).start()
        yield listener.getsockname()[1]
    finally:
        await runner.cleanup()
