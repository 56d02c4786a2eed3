"""The rig: real Kafka, API server and Prometheus around the service, each replica a process of its own.

Traffic is drawn by the lab's worlds, one a service, following the weights that stand on the real API server; their
counters are scraped by the real Prometheus. A watch keeps every state of every VirtualService, a reader everything on
the topic of decisions, and ``audit`` holds both against what the journals say was decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import yaml
from aiohttp import web
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from kubernetes.aio import client

from service.actuators.virtual_service import FENCE, ROLLOUT
from service.cluster import connect
from service.events.connection import Connection
from service.events.publisher import Producer
from service.events.sending import message
from service.lab.pagerduty_api import PagerDutyApi
from service.lab.world import FAULTS, World
from service.ring.ports import Unavailable
from tests.processes import free_port
from tests.real.parts import building
from tests.real.parts.kafka import KafkaBroker
from tests.real.parts.kube import KubeApiServer
from tests.real.parts.prometheus import PrometheusServer

NAMESPACE = "ml-serving"
DECISIONS = "canary.decisions"
TOPICS = ("cd.events", "cd.events.dead-letter", DECISIONS)
SOURCE = "/serinus/send-event"
OPERATOR = "operator-token-0123456789"
STEP_S = 0.25
REQUESTS_PER_S = 2000.0
VIRTUAL_SERVICES = f"/apis/networking.istio.io/v1/namespaces/{NAMESPACE}/virtualservices"

POLICY: dict[str, Any] = {
    "name": "real",
    "stages": [
        {"weight_percent": 10, "bake": "8s", "min_requests": 500},
        {"weight_percent": 30, "bake": "8s", "min_requests": 500},
        {"weight_percent": 60, "bake": "8s", "min_requests": 500},
    ],
    "window": 4,
    "metrics": [
        {"name": "latency", "kind": "latency", "margin": 1.15},
        {"name": "errors", "kind": "errors", "margin": 3.0},
        {"name": "predictions", "kind": "predictions", "margin": 0.02},
    ],
    "on_harm": "rollback",
    "on_pause": {"budget": "10m", "then": "rollback"},
    "on_blind": {"budget": "10m", "then": "hold"},
    "on_inconclusive": {"budget": "10m", "then": "hold"},
    "ready_timeout": "2m",
}
GUARDED = {
    **POLICY,
    "name": "guarded",
    "stages": [{"weight_percent": 10, "bake": "5m", "min_requests": 500}],
    "metrics": [
        {"name": "latency", "kind": "latency", "margin": 1.15},
        {"name": "errors", "kind": "errors", "margin": 60},
    ],
    "guards": [{"name": "error-rate", "metric": "errors", "above": 0.01, "windows": 3, "min_requests": 20}],
    "on_harm": "pause_and_confirm",
}


@dataclass(slots=True)
class Release:
    """One service's route, its traffic and every weight that was seen on the API server."""

    name: str
    world: World
    seen: list[tuple[int, int | None]] = field(default_factory=list)
    """(canary percent, fence) each time it changed."""

    @property
    def weights(self) -> list[int]:
        return [weight for weight, _ in self.seen]

    @property
    def fences(self) -> list[int]:
        return [fence for _, fence in self.seen if fence is not None]


@dataclass(frozen=True, slots=True)
class Change:
    """One state of a VirtualService, as the API server's watch told it."""

    at_s: float
    service: str
    percent: int
    fence: int | None
    rollout: str


@dataclass(frozen=True, slots=True)
class Sent:
    """One deployment event that the broker has acknowledged."""

    id: str
    service: str
    kind: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Published:
    """One record on the topic of decisions."""

    at_s: float
    id: str
    key: str
    decision: str
    phase: str
    rollout: str
    version: str


class Replica:
    """One process of the service, with settings of its own."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / f"{name}.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [sys.executable, "-m", "service.cli.main", "serve"]
        """What is started; a test may start it by ``tests.real.launch`` instead, with constants of its own."""
        self._log = folder / f"{name}.log"
        own = {**settings, "api": {**settings["api"], "port": self.port}}
        self.config.write_text(yaml.safe_dump(own))

    async def start(self, session: aiohttp.ClientSession) -> float:
        """Start the process; seconds until it is ready."""
        began = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--config", str(self.config)], stdout=log, stderr=log, env=environment,
                cwd=building.ROOT,
            )  # fmt: skip
        while time.monotonic() < began + 60:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended:\n{self.log_tail()}")
            if await self._ready(session):
                return time.monotonic() - began
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{self.name} is not ready:\n{self.log_tail()}")

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{self.url}/readyz") as answer:
                return answer.status == 200
        return False

    def kill(self) -> None:
        """SIGKILL: nothing is put in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def pause(self) -> None:
        """SIGSTOP, until every thread of it stands still."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        while not all(") T " in (task / "stat").read_text() for task in tasks.iterdir()):
            time.sleep(0.002)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log_tail(self, n: int = 4000) -> str:
        """The end of its log."""
        return self.log()[-n:]

    def log(self) -> str:
        """All of its log."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class Rig:
    """Everything outside the service, and the service."""

    def __init__(
        self,
        folder: Path,
        brokers: Sequence[KafkaBroker],
        kube: KubeApiServer,
        prometheus: PrometheusServer,
        pagerduty: PagerDutyApi,
        database: str | None = None,
    ) -> None:
        self.folder = folder
        self.brokers = brokers
        self.kube = kube
        self.prometheus = prometheus
        self.pagerduty = pagerduty
        self.database = database or f"sqlite:///{folder / 'serinus.db'}"
        self.releases: dict[str, Release] = {}
        self.replicas: dict[str, Replica] = {}
        self.api: client.ApiClient | None = None
        self.session: aiohttp.ClientSession | None = None
        self.bootstrap = ",".join(broker.bootstrap for broker in brokers)
        self.producer = Producer(Connection(self.bootstrap))
        self.starts_s: list[float] = []
        self.kubeconfig = kube.kubeconfig
        """What the service is given; an administrator's unless a test gives it less."""
        self.target: dict[str, Any] = {}
        """What a test wants otherwise in the target of all services."""
        self.policies = [POLICY, GUARDED]
        self.changes: list[Change] = []
        """Every state of every VirtualService in the order in which the API server's watch told them."""
        self.on_change: Callable[[Change], None] = lambda change: None
        self.sent: list[Sent] = []
        self.published: list[Published] = []
        self.on_published: Callable[[Published], None] = lambda record: None

    @property
    def broker(self) -> KafkaBroker:
        """The one broker."""
        (broker,) = self.brokers
        return broker

    # --- the service ------------------------------------------------------------------------------------------------

    def configure(self, name: str = "serinus", **changed: Any) -> Replica:
        """The files of one replica of the service; ``changed`` are settings of its own."""
        target = {
            "namespace": NAMESPACE,
            "service": "*",
            "route": {
                "virtual_service": "${service}-route",
                "stable": {"host": "${service}", "subset": "v1"},
                "canary": {"host": "${service}", "subset": "v2"},
            },
            "readiness": {"deployment": "${service}-v2"},
            "metrics": "http",
            "labels": {"job": "${service}"},
            "stable_labels": {"version": "v1"},
            "canary_labels": {"version": "v2"},
            "policy": self.policies[0]["name"],
            "allowed_policies": [policy["name"] for policy in self.policies[1:]],
            **self.target,
        }
        for kind in ("metrics", "logs"):
            shutil.copytree(building.ROOT / "config" / kind, self.folder / "config" / kind, dirs_exist_ok=True)
        for kind, file, text in (
            *(("policies", policy["name"], yaml.safe_dump(policy)) for policy in self.policies),
            ("targets", "all", yaml.safe_dump([target])),
        ):
            (self.folder / "config" / kind).mkdir(parents=True, exist_ok=True)
            (self.folder / "config" / kind / f"{file}.yaml").write_text(text)
        (self.folder / "key").write_text("k" * 32)
        tokens = [
            {"name": "ana", "role": "operator", "token": OPERATOR},
            {"name": "eve", "role": "viewer", "token": "viewer-token-0123456789"},
        ]
        (self.folder / "tokens.yaml").write_text(yaml.safe_dump(tokens))
        settings = {
            "mode": "enforce",
            "config_dir": str(self.folder / "config"),
            "rollbacks_per_hour": 100_000,
            "kafka": {"bootstrap_servers": self.bootstrap},
            "prometheus": {"url": self.prometheus.url, "scrape_interval": "1s", "timeout": "5s"},
            "kubernetes": {"kubeconfig": self.kubeconfig},
            "database": {"url": self.database},
            "api": {"host": "127.0.0.1", "tokens_file": str(self.folder / "tokens.yaml")},
            "pagerduty": {"routing_key_file": str(self.folder / "key"), "url": self.pagerduty.url},
            **changed,
        }
        self.replicas[name] = Replica(self.folder, name, settings)
        return self.replicas[name]

    @property
    def replica(self) -> Replica:
        """The first replica, which is the only one in most tests."""
        return next(iter(self.replicas.values()))

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The first replica's process."""
        return self.replica.process

    async def start_service(self) -> float:
        """Start the first replica; seconds until it is ready."""
        assert self.session is not None
        self.starts_s.append(await self.replica.start(self.session))
        return self.starts_s[-1]

    def kill_service(self) -> None:
        """SIGKILL to every replica."""
        for replica in self.replicas.values():
            replica.kill()

    def stop_service(self) -> int:
        """SIGTERM to the first replica; the exit status."""
        return self.replica.stop()

    def log_tail(self) -> str:
        """The end of every replica's log."""
        return "\n".join(f"{name}:\n{replica.log_tail()}" for name, replica in self.replicas.items())

    async def command(self, *arguments: str) -> tuple[Any, int]:
        """`serinus` with this rig's settings; (its JSON or text, its exit status)."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service.cli.main", *arguments, "--config", str(self.replica.config),
            stdout=subprocess.PIPE, env=environment, cwd=building.ROOT,
        )  # fmt: skip
        out, _ = await process.communicate()
        try:
            return json.loads(out), process.returncode or 0
        except ValueError:
            return out.decode(), process.returncode or 0

    # --- releases ---------------------------------------------------------------------------------------------------

    async def release(
        self, name: str, fault: str = "none", *, policy: str | None = None, version: str = "2.13.0"
    ) -> Release:
        """A service with its route and traffic, and the event that starts its release."""
        if name not in self.releases:
            self.releases[name] = Release(name, World(requests_per_s=REQUESTS_PER_S, seed=len(self.releases), job=name))
            await self.put_service(name)
            # Both versions have been scraped before there is any canary traffic, as ready pods are.
            await asyncio.sleep(2.5)
        release = self.releases[name]
        release.world.behaviours["v2"] = FAULTS[fault]
        await self.announce(name, version=version, policy=policy)
        return release

    async def announce(self, name: str, *, kind: str = "upgraded", **given: Any) -> None:
        """Put a deployment event on the topic, again and again until the brokers have it."""
        given.setdefault("stable_version", "2.12.0")
        event_id = str(uuid.uuid4())
        sent = message(
            kind=kind,
            namespace=NAMESPACE,
            service=name,
            at=datetime.now(UTC),
            event_id=event_id,
            source=SOURCE,
            **given,
        )
        while True:
            try:
                await self.producer.send("cd.events", key=sent.key, value=sent.value, headers=list(sent.headers))
                break
            except Unavailable:
                await asyncio.sleep(0.5)
        self.sent.append(Sent(event_id, name, kind, given.get("version")))

    async def put_service(self, name: str) -> None:
        """A route with all traffic on v1, and a ready candidate."""
        custom = client.CustomObjectsApi(self.api)
        destinations = [
            {"destination": {"host": name, "subset": "v1"}, "weight": 100},
            {"destination": {"host": name, "subset": "v2"}, "weight": 0},
        ]
        vs = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": f"{name}-route", "namespace": NAMESPACE},
            "spec": {"hosts": [name], "http": [{"retries": {"attempts": 2}, "route": destinations}]},
        }
        await custom.create_namespaced_custom_object("networking.istio.io", "v1", NAMESPACE, "virtualservices", vs)
        labels = {"app": name}
        container = {"name": "serving", "image": "tensorflow/serving:2.13.0"}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": f"{name}-v2", "namespace": NAMESPACE},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        }
        await custom.create_namespaced_custom_object("apps", "v1", NAMESPACE, "deployments", deployment)
        # No controllers run here, so the status that they would write is written by hand.
        status = {
            "observedGeneration": 1,
            "replicas": 1,
            "updatedReplicas": 1,
            "readyReplicas": 1,
            "availableReplicas": 1,
        }
        await custom.patch_namespaced_custom_object_status(
            "apps", "v1", NAMESPACE, "deployments", f"{name}-v2", {"status": status},
            _content_type="application/merge-patch+json",
        )  # fmt: skip

    async def rollout(self, name: str) -> dict[str, Any] | None:
        """The newest rollout of a service as the API shows it."""
        rows = (await self.get(f"/rollouts?service={name}&limit=1"))["rollouts"]
        return await self.get(f"/rollouts/{rows[0]['id']}") if rows else None

    async def until(self, name: str, *phases: str, within_s: float = 120.0) -> dict[str, Any]:
        """The rollout, once it is in one of these phases."""
        deadline = time.monotonic() + within_s
        found: dict[str, Any] | None = None
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                found = await self.rollout(name)
                if found and found["phase"] in phases:
                    return found
            await asyncio.sleep(0.3)
        story = [row["headline"] for row in found["journal"]] if found else "no rollout"
        raise AssertionError(f"{name} is not {phases} within {within_s} s: {story}\n{self.log_tail()}")

    async def settled(self, name: str, percent: int) -> list[int]:
        """Every weight that stood on the API server, once the last one is ``percent``; pages are out by then, too."""
        release = self.releases[name]
        for _ in range(40):
            if release.weights and release.weights[-1] == percent:
                break
            await asyncio.sleep(0.25)
        await asyncio.sleep(0.5)
        assert release.weights[-1] == percent, release.weights
        return release.weights

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The answer to a question to the database, while the service uses it."""
        if self.database.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self.database.removeprefix("sqlite:///"))) as connection:
                return connection.execute(sql).fetchall()
        connection = await asyncpg.connect(self.database)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def owed_n(self) -> int:
        """Instructions that are not settled."""
        ((n,),) = await self.rows("SELECT count(*) FROM outbox WHERE settled_at IS NULL")
        return int(n)

    async def get(self, path: str, replica: Replica | None = None) -> Any:
        """GET below /api/v1 of a replica (the first one) as an operator."""
        assert self.session is not None
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        async with self.session.get(f"{(replica or self.replica).url}/api/v1{path}", headers=headers) as answer:
            return await answer.json(content_type=None)

    async def order(
        self, rollout: str, verb: str, reason: str, token: str = OPERATOR, replica: Replica | None = None
    ) -> int:
        """POST an order to a replica (the first one); the status."""
        assert self.session is not None
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{(replica or self.replica).url}/api/v1/rollouts/{rollout}/{verb}"
        async with self.session.post(url, json={"reason": reason}, headers=headers) as answer:
            return answer.status

    # --- the world --------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Traffic happens, step by step, by the weights that the watch has seen last."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(STEP_S)
            now = loop.time()
            for release in list(self.releases.values()):
                release.world.step(now - last)
            last = now

    async def watch(self) -> None:
        """Follow every VirtualService on the API server, through its restarts."""
        trust = ssl.create_default_context(cafile=self.kube.ca)
        headers = {"Authorization": f"Bearer {self.kube.tokens['admin']}"}
        quiet = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(self.kube.url, headers=headers, timeout=quiet, connector=connector) as session:
            while True:
                try:
                    async with asyncio.timeout(10), session.get(VIRTUAL_SERVICES) as answer:
                        listed = await answer.json()
                    for vs in listed["items"]:
                        self._follow(vs)
                    since = {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
                    async with session.get(VIRTUAL_SERVICES, params=since) as answer:
                        async for line in answer.content:
                            told = json.loads(line)
                            if told["type"] == "ERROR":
                                break
                            self._follow(told["object"])
                except (aiohttp.ClientError, TimeoutError, OSError, KeyError, ValueError):
                    await asyncio.sleep(0.1)

    def _follow(self, vs: Mapping[str, Any]) -> None:
        name = vs["metadata"]["name"].removesuffix("-route")
        release = self.releases.get(name)
        if release is None:
            return
        release.world.follow(vs)
        notes = vs["metadata"].get("annotations") or {}
        fence = json.loads(notes.get(FENCE, "{}")).get("")
        now = (release.world.canary_percent, fence)
        if not release.seen or release.seen[-1] != now:
            release.seen.append(now)
            change = Change(time.monotonic(), name, *now, notes.get(ROLLOUT, ""))
            self.changes.append(change)
            self.on_change(change)

    async def read_decisions(self) -> None:
        """Keep everything that comes onto the topic of decisions, from its beginning."""
        consumer = AIOKafkaConsumer(
            DECISIONS, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", metadata_max_age_ms=5_000
        )
        await consumer.start()
        try:
            async for record in consumer:
                event = json.loads(record.value)
                content = event["data"]["subject"]["content"]
                self.published.append(
                    Published(
                        time.monotonic(),
                        event["id"],
                        event["partitionkey"],
                        content.get("decision", ""),
                        content.get("phase", ""),
                        event["data"]["subject"]["id"],
                        content.get("version", ""),
                    )
                )
                self.on_published(self.published[-1])
        finally:
            await consumer.stop()

    async def exposition(self, _: web.Request) -> web.Response:
        """Every world's counters in the text format."""
        lines: list[str] = []
        by_name: dict[str, list[str]] = {}
        for release in self.releases.values():
            for name, labels, value in release.world.series():
                inside = ",".join(f'{k}="{v}"' for k, v in labels.items())
                by_name.setdefault(name, []).append(f"{name}{{{inside}}} {value:.0f}")
        for name, rows in by_name.items():
            lines += [f"# TYPE {name} counter", *rows]
        return web.Response(text="\n".join(lines) + "\n")


@asynccontextmanager
async def rig(folder: Path, *, brokers_n: int = 1, database: str | None = None) -> AsyncIterator[Rig]:
    """Every real part started, the service not yet. Its database is SQLite unless a URL is given."""
    jars, binary, prometheus_binary = building.kafka_jars(), building.apiserver(), building.prometheus()
    async with AsyncExitStack() as stack:
        brokers = KafkaBroker.cluster(brokers_n, jars, folder / "kafka")
        for broker in brokers:
            stack.callback(broker.cleanup)
        KafkaBroker.start_cluster(brokers)
        kube = stack.enter_context(KubeApiServer(binary, folder / "kube", fsync=False))
        exporter_port = free_port()
        prometheus = PrometheusServer(
            prometheus_binary, folder / "prometheus", {"worlds": f"127.0.0.1:{exporter_port}"}
        )
        pagerduty = await stack.enter_async_context(PagerDutyApi())
        made = Rig(folder, brokers, kube, prometheus, pagerduty, database)
        made.session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)))
        app = web.Application()
        app.router.add_get("/metrics", made.exposition)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", exporter_port).start()
        stack.callback(prometheus.stop)
        prometheus.start()
        made.api = await connect(Path(kube.kubeconfig))
        stack.push_async_callback(made.api.close)
        await prepare_cluster(made.api)
        admin = AIOKafkaAdminClient(bootstrap_servers=made.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(name, 3, min(3, brokers_n)) for name in TOPICS])
        await admin.close()
        stack.push_async_callback(made.producer.stop)
        made.configure()
        for task in (made.live(), made.watch(), made.read_decisions()):
            stack.push_async_callback(_ended, asyncio.create_task(task))
        stack.callback(made.kill_service)
        yield made


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()):
        raise error


async def prepare_cluster(api: client.ApiClient) -> None:
    """Istio's CRDs and the namespace."""
    custom = client.CustomObjectsApi(api)
    for crd in building.istio_crds():
        crd.pop("status", None)
        await custom.create_cluster_custom_object("apiextensions.k8s.io", "v1", "customresourcedefinitions", crd)
    await client.CoreV1Api(api).create_namespace({"metadata": {"name": NAMESPACE}})
    for _ in range(200):
        with contextlib.suppress(client.ApiException):
            await custom.list_namespaced_custom_object("networking.istio.io", "v1", NAMESPACE, "virtualservices")
            return
        await asyncio.sleep(0.1)
    raise RuntimeError("Istio's CRDs are not established")
