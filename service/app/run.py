"""The service: everything wired together once, started, watched over, and stopped in order."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
from aiohttp import web

from service.actuators.cluster import connect
from service.actuators.istio import IstioMesh
from service.alerts.pagerduty import NobodyPaged, PagerDutyPager
from service.analysis.tick import NoSource, Tick
from service.api.app import Api, Check, build_app
from service.api.auth import Auth, read_tokens
from service.app import logs
from service.app.clock import SystemClock
from service.app.metrics import OwnMetrics
from service.app.supervisor import run_until
from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import Dispatcher
from service.events.connection import Connection
from service.events.consumer import EventConsumer
from service.events.publisher import KafkaBus, Producer
from service.model.rollout import Phase
from service.ring.door import Door
from service.ring.ports import Mesh, Pager, PortError, Source, Unavailable
from service.ring.store import RolloutFilter, Store, Where
from service.settings import KafkaSettings, Settings, SettingsError, load, load_catalog, read_secret
from service.sources.prometheus import PrometheusSource
from service.storage.opening import open_store

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 60.0
"""Without a poll or a tick for so long, the part is called not ready."""

WATCH_EVERY_S = 15.0


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
        asyncio.run(_serve(settings))
    except (SettingsError, PortError) as error:
        # Start-up faults are for the person at the terminal: one sentence, no traceback.
        logger.critical("cannot start: %s", error)
        print(f"serinus: cannot start: {error}", flush=True)  # noqa: T201
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    await run(settings, stop)


async def run(settings: Settings, stop: asyncio.Event, *, started: Callable[[Service], None] | None = None) -> None:
    """Run the service until ``stop`` is set. ``started`` is called once everything listens."""
    catalog, presets = load_catalog(settings)
    clock = SystemClock()
    replica = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    own = OwnMetrics(version())
    async with AsyncExitStack() as stack:
        store = await open_store(settings.database.url, password=read_secret(settings.database.password_file))
        stack.push_async_callback(store.close)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)))
        clusters = settings.all_clusters()
        meshes: dict[str, Mesh] = {}
        sources: dict[str, Source] = {}
        for name, cluster in clusters.items():
            api_client = await connect(cluster.kubernetes.kubeconfig, cluster.kubernetes.context)
            stack.push_async_callback(api_client.close)
            meshes[name] = IstioMesh(api_client, timeout_s=cluster.kubernetes.timeout_s)
            sources[name] = PrometheusSource(
                session,
                cluster.prometheus.url,
                presets,
                scrape_interval_s=cluster.prometheus.scrape_interval_s,
                timeout_s=cluster.prometheus.timeout_s,
                max_concurrent=cluster.prometheus.max_concurrent,
                token=read_secret(cluster.prometheus.token_file),
            )
        producer = Producer(connection_of(settings.kafka))
        stack.push_async_callback(producer.stop)
        bus = KafkaBus(producer, settings.kafka.decisions_topic)
        door = Door(store, catalog, clock)
        dispatcher = Dispatcher(
            store,
            door,
            clock,
            meshes=meshes,
            pager=_pager(settings, session, clock),
            bus=bus,
            done=lambda kind, outcome: own.instructions.labels(kind, outcome).inc(),
        )
        door.on_owed = dispatcher.poke
        grace_s = max(2 * c.prometheus.scrape_interval_s for c in clusters.values())
        ticks = {
            str(where): Tick(
                store,
                door,
                source,
                clock,
                grace_s=grace_s,
                where=where,
                rollbacks_per_hour=settings.rollbacks_per_hour,
                lagged=own.window_lag_s.observe,
            )
            for where, source in (
                *((Where(only=name), source) for name, source in sources.items()),
                (Where(but=frozenset(sources)), NoSource()),
            )
        }
        clockwork = Clockwork(store, door, clock, meshes, replica=replica, watch_every_s=WATCH_EVERY_S)
        consumer = EventConsumer(
            connection_of(settings.kafka),
            topic=settings.kafka.topic,
            group=settings.kafka.group,
            dead_letter_topic=settings.kafka.dead_letter_topic,
            producer=producer,
            handle=door.events,
            clock=clock,
            counted=lambda outcome: own.events.labels(outcome).inc(),
        )
        auth = Auth(read_tokens(settings.api.tokens_file) if settings.api.tokens_file else None)
        checks: dict[str, Check] = {
            "database": store.check,
            "event-bus": _bus_check(consumer, clock),
            **{f"tick {name}": _tick_check(tick, clock) for name, tick in ticks.items()},
        }
        api = Api(store, door, clock, auth=auth, checks=checks, version=version())
        port = await stack.enter_async_context(
            _listening(build_app(api, own.registry), settings.api.host, settings.api.port)
        )
        if started is not None:
            started(Service(settings, store, door, port))
        logger.info("serinus %s listens on %s:%s in mode %s", version(), settings.api.host, port, settings.mode.value)
        await run_until(
            stop,
            {
                "events": consumer.run(),
                **{f"tick {name}": tick.run() for name, tick in ticks.items()},
                "wake": clockwork.wake(),
                **{f"watch {cluster}": clockwork.watch(cluster) for cluster in meshes},
                "own metrics": _gauges(own, store, clock),
                **{f"lane {lane} {where}": dispatcher.run(lane, where) for lane, where in dispatcher.lanes()},
            },
            stop_s=settings.stop_s,
        )
        logger.info("stopped", extra={"action": "stopped"})


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


def _bus_check(consumer: EventConsumer, clock: SystemClock) -> Check:
    async def check() -> None:
        at = consumer.last_poll_at
        if at is None or clock.now() - at > timedelta(seconds=STUCK_AFTER_S):
            raise Unavailable("the event bus has not been heard of" if at is None else f"silent since {at.isoformat()}")

    return check


def _tick_check(tick: Tick, clock: SystemClock) -> Check:
    async def check() -> None:
        at = tick.last_turn_at
        if at is None or clock.now() - at > timedelta(seconds=STUCK_AFTER_S):
            raise Unavailable("no tick yet" if at is None else f"no tick since {at.isoformat()}")

    return check


async def _gauges(own: OwnMetrics, store: Store, clock: SystemClock) -> None:
    """Refresh the gauges that are counted in the database."""
    while True:
        try:
            for lane, (owed_n, since) in (await store.owed_summary()).items():
                own.owed.labels(lane.value).set(owed_n)
                own.owed_age_s.labels(lane.value).set(0 if since is None else (clock.now() - since).total_seconds())
            counts = (await store.rollouts(RolloutFilter(), limit=1)).counts
            for phase in Phase:
                own.rollouts.labels(phase.value).set(counts.get(phase, 0))
        except Unavailable as error:
            logger.info("gauges wait: %s", error, extra={"action": "gauges_postponed"})
        await clock.sleep(10)


@asynccontextmanager
async def _listening(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """The API on its port; yields the port, which matters when 0 was asked for."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
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
