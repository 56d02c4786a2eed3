"""The whole service on embedded parts, for scenario tests and benchmarks: librdkafka's mock broker, the lab's API
server, Prometheus and PagerDuty, and `serinus serve` as a process of its own with a configuration like anyone's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

from service.events.sending import Message
from service.lab.broker import EmbeddedBroker
from service.lab.kube_api import KubeApi
from service.lab.pagerduty_api import PagerDutyApi
from service.lab.prometheus_api import PrometheusApi
from tests import processes

NAMESPACE = "ml-serving"
TOPIC, DEAD_LETTERS, DECISIONS = "cd.events", "cd.events.dead-letter", "canary.decisions"
GROUP = "serinus"
READY_WITHIN_S = 30.0
MOST_PARTITION_BYTES = 4_500_000
"""The mock broker keeps 5 MiB a partition and silently drops the oldest beyond it."""


class Traffic:
    """Requests of many services, drawn by the weights that stand in their VirtualServices; every fourth service's
    candidate fails a tenth of its requests when ``faulty`` is set."""

    def __init__(self, seed: int, *, requests_per_s: float = 200.0) -> None:
        self._rng = np.random.default_rng(seed)
        self._requests_per_s = requests_per_s
        self.canary_percent: dict[str, int] = {}
        self.faulty: set[str] = set()
        self._counts: dict[str, list[int]] = {}

    def follow(self, virtual_service: Mapping[str, Any]) -> None:
        """Take the weights of a route, as the mesh would."""
        name = virtual_service["metadata"]["name"].removesuffix("-route")
        self.canary_percent[name] = virtual_service["spec"]["http"][0]["route"][1].get("weight", 0)

    def step(self, seconds: float) -> None:
        """Let so much time's requests happen."""
        for name, percent in self.canary_percent.items():
            total = int(self._rng.poisson(self._requests_per_s * seconds))
            canary = int(self._rng.binomial(total, percent / 100))
            counts = self._counts.setdefault(name, [0, 0, 0, 0])
            for i, (n, rate) in enumerate(((total - canary, 0.005), (canary, 0.1 if name in self.faulty else 0.005))):
                failed = int(self._rng.binomial(n, rate))
                counts[2 * i] += n - failed
                counts[2 * i + 1] += failed

    def series(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Every counter as a scrape sees it."""
        for name, counts in self._counts.items():
            for i, (version, code) in enumerate((("v1", "200"), ("v1", "500"), ("v2", "200"), ("v2", "500"))):
                labels = {"service": name, "version": version, "code": code, "instance": f"{name}-{version}"}
                yield "http_requests_total", labels, counts[i]


POLICY: dict[str, Any] = {
    "name": "embedded",
    "stages": [
        {"weight_percent": "first", "bake": "4s", "min_requests": 20},
        {"weight_percent": 50, "bake": "4s", "min_requests": 20},
    ],
    "window": 2,
    "metrics": [{"name": "errors", "kind": "errors", "margin": 3.0}],
    "on_harm": "rollback",
    "on_pause": {"budget": "30s", "then": "rollback"},
    "on_blind": {"budget": "20s", "then": "hold"},
    "on_inconclusive": {"budget": "60s", "then": "hold"},
    "ready_timeout": "30s",
}
TARGET: dict[str, Any] = {
    "namespace": NAMESPACE,
    "service": "*",
    "route": {
        "virtual_service": "${service}-route",
        "stable": {"host": "${service}", "subset": "v1"},
        "canary": {"host": "${service}", "subset": "v2"},
    },
    "metrics": "http",
    "labels": {"service": "${service}"},
    "stable_labels": {"version": "v1"},
    "canary_labels": {"version": "v2"},
    "policy": "embedded",
    "criticality": "standard",
}
PRESET: dict[str, Any] = {
    "name": "http",
    "metrics": {"errors": {"kind": "errors", "requests": "http_requests_total", "failed": [{"code": "5.."}]}},
}


@dataclass(slots=True)
class Child:
    """A running `serinus serve`."""

    process: asyncio.subprocess.Process
    url: str
    log: Path

    @property
    def rss_mib(self) -> float:
        """Resident memory now."""
        return processes.rss_mib(self.process.pid)

    @property
    def peak_rss_mib(self) -> float:
        """The most memory that was ever resident."""
        return processes.peak_rss_mib(self.process.pid)

    @property
    def threads_n(self) -> int:
        """Threads of the process."""
        return processes.status_kb(self.process.pid, "Threads")

    @property
    def files_n(self) -> int:
        """Open file handles, sockets among them."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def cpu_s(self) -> float:
        """Processor time used so far."""
        return processes.cpu_s(self.process.pid)


class Embedded:
    """The parts around the service. Make it with ``embedded``."""

    def __init__(self, folder: Path, broker: EmbeddedBroker, traffic: Traffic, session: aiohttp.ClientSession) -> None:
        self.folder = folder
        self.broker = broker
        self.traffic = traffic
        self.session = session
        self.kube = KubeApi(on_change=traffic.follow)
        self.prometheus = PrometheusApi(traffic.series)
        self.pagerduty = PagerDutyApi()

    def furnish(self, names: Iterable[str]) -> None:
        """A route for each service, with all traffic on v1."""
        for name in names:
            self.kube.put("virtualservices", virtual_service(name))

    def configure(self, port: int, *, policy: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        """Write the service's configuration; the settings' file. ``changes`` replace whole top-level settings."""
        for kind, body in (("policies", {**POLICY, **(policy or {})}), ("targets", [TARGET]), ("metrics", PRESET)):
            (self.folder / "config" / kind).mkdir(parents=True, exist_ok=True)
            (self.folder / "config" / kind / "all.yaml").write_text(yaml.safe_dump(body))
        (self.folder / "routing-key").write_text("0" * 32)
        settings = {
            "mode": "enforce",
            "config_dir": str(self.folder / "config"),
            "rollbacks_per_hour": 1_000_000,
            "kafka": {"bootstrap_servers": self.broker.bootstrap, "group": GROUP},
            "prometheus": {"url": self.prometheus.url, "scrape_interval": "0.5s", "timeout": "5s"},
            "kubernetes": {"kubeconfig": str(self.kube.kubeconfig(self.folder / "kubeconfig"))},
            "database": {"url": f"sqlite:///{self.folder / 'serinus.db'}"},
            "api": {"host": "127.0.0.1", "port": port, "auth": "off"},
            "pagerduty": {"routing_key_file": str(self.folder / "routing-key"), "url": self.pagerduty.url},
            **changes,
        }
        file = self.folder / "serinus.yaml"
        file.write_text(yaml.safe_dump(settings))
        return file

    async def drive(self, *, step_s: float = 0.5) -> None:
        """Requests and scrapes in step with the clock; run it as a task."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(step_s)
            now = time.monotonic()
            self.traffic.step(now - last)
            last = now
            self.prometheus.scrape()

    @asynccontextmanager
    async def service(self, *, ready: bool = True, **settings: Any) -> AsyncIterator[Child]:
        """`serinus serve` in a process of its own, ready, or at least begun."""
        port = processes.free_port()
        config = self.configure(port, **settings)
        log = self.folder / "serinus.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
        with log.open("ab") as stream:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service.cli.main", "serve", "--config", str(config),
                stdout=stream, stderr=stream, env=environment, cwd=Path(__file__).parents[1],
            )  # fmt: skip
        child = Child(process, f"http://127.0.0.1:{port}", log)
        try:
            if ready:
                await self._until_ready(child)
            yield child
        finally:
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(15):
                        await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _until_ready(self, child: Child) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and child.process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with self.session.get(f"{child.url}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
        raise RuntimeError(f"the service is not ready:\n{child.log.read_text()[-3000:]}")


@asynccontextmanager
async def embedded(folder: Path, *, partitions: int = 3, seed: int = 1) -> AsyncIterator[Embedded]:
    """The parts, started; everything ends with the context."""
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        for topic, n in ((TOPIC, partitions), (DEAD_LETTERS, 1), (DECISIONS, partitions)):
            broker.create_topic(topic, n)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        parts = Embedded(folder, broker, Traffic(seed), session)
        for part in (parts.kube, parts.prometheus, parts.pagerduty):
            await stack.enter_async_context(part)
        yield parts


def virtual_service(name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """A route with all traffic on v1 and none on v2."""
    destinations = [{"destination": {"host": name, "subset": s}, "weight": w} for s, w in (("v1", 100), ("v2", 0))]
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": f"{name}-route", "namespace": namespace},
        "spec": {"hosts": [name], "http": [{"route": destinations}]},
    }


def produce(bootstrap: str, topic: str, messages: Sequence[Message]) -> None:
    """Put the messages on the topic, in order within a key; returns when the broker has all."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "batch.num.messages": 200})
    for message in messages:
        producer.poll(0)
        while True:
            try:
                producer.produce(topic, value=message.value, key=message.key, headers=list(message.headers))
                break
            except BufferError:
                producer.poll(0.05)
    left = producer.flush(60)
    if left:
        raise RuntimeError(f"{left} messages were not taken by {bootstrap}")


def consumer_lag(bootstrap: str, topic: str, group: str) -> int:
    """Records of the topic after the group's committed offsets; blocking, a few milliseconds a partition."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.list_topics(topic, 10).topics[topic].partitions]
        lag = 0
        for one in consumer.committed(partitions, 10):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, one.partition), 10)
            lag += high - max(one.offset, low)
        return lag
    finally:
        consumer.close()
