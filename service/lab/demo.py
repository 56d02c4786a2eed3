"""The demo: a real Serinus process on an embedded world, watched until it has decided.

Kafka is librdkafka's mock cluster; the API server, Prometheus and PagerDuty are the lab's; the service is started as
`serinus serve` with a configuration file like anyone's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from service.events.connection import Connection
from service.events.publisher import Producer
from service.events.sending import message
from service.lab import candidate
from service.lab.broker import EmbeddedBroker
from service.lab.kube_api import KubeApi
from service.lab.loki_api import LokiApi
from service.lab.pagerduty_api import PagerDutyApi
from service.lab.prometheus_api import PrometheusApi
from service.lab.world import FAULTS, World
from service.model.rollout import Phase
from service.telling import terminal
from service.telling.view import RolloutView

EXPECTED = {
    "none": "promoted",
    "latency": "rolled_back",
    "tail": "rolled_back",
    "errors": "rolled_back",
    "drift": "rolled_back",
    "blackout": "held",
    "opkernel": "rolled_back",
    "memory": "rolled_back",
    "gpu-memory": "rolled_back",
    "scan": "ended",
    "incompatible-model": "ended",
}
"""The right outcome for each fault."""

WRONG = {
    "none": "Nothing is wrong with it.",
    "latency": "Its answers take half as long again as stable's.",
    "tail": "6 % of its answers take eight times as long, and 1 % of stable's.",
    "errors": "4 % of its requests fail, and 0.5 % of stable's.",
    "drift": "It answers 'dog' more often, and 'cat' less.",
    "blackout": "Nothing is wrong with it, but the metric store goes away.",
    "opkernel": "It serves a model that no gate saw: an op of it has no kernel, says its log.",
    "memory": "Each of its pods leaks 40 MiB of memory a second.",
    "gpu-memory": "Its pods take 3,000 MiB more GPU memory after 8 s of traffic.",
    "scan": "Its scan report has a critical vulnerability.",
    "incompatible-model": "Its model has an op for which TensorFlow 2.13.0 has no kernel on a CPU.",
}
"""What is wrong with each candidate, for who watches."""

REQUESTS_PER_S = 3000.0
STEP_S = 0.25
SCRAPE_INTERVAL_S = 0.5
WINDOW_S = 2
READY_WITHIN_S = 30.0
ACT_WITHIN_S = 90.0
POLL_S = 0.25

POLICY: dict[str, Any] = {
    "name": "demo",
    "description": "Ten seconds a stage; the demo's own.",
    "stages": [
        {"weight_percent": "first", "bake": "8s", "min_requests": 1000},
        {"weight_percent": 30, "bake": "8s", "min_requests": 1000},
        {"weight_percent": 60, "bake": "8s", "min_requests": 1000},
    ],
    "window": WINDOW_S,
    "metrics": [
        {"name": "latency", "kind": "latency", "label": "latency", "margin": 1.1},
        {"name": "errors", "kind": "errors", "margin": 2.0},
        {"name": "predictions", "kind": "predictions", "margin": 0.01},
        {"name": "memory", "kind": "resource", "required": False},
        {"name": "gpu-memory", "kind": "resource", "required": False, "label": "GPU memory"},
        {"name": "logs", "kind": "value", "required": False, "label": "log lines of a failed upgrade"},
    ],
    "guards": [
        {"name": "error-rate", "metric": "errors", "above": 0.2, "windows": 5, "on_breach": "rollback"},
        {"name": "new-lines", "metric": "logs", "only_on_canary": True, "windows": 1, "on_breach": "rollback"},
    ],
    "on_harm": "rollback",
    "on_pause": {"budget": "30s", "then": "rollback"},
    "on_blind": {"budget": "12s", "then": "hold"},
    "on_inconclusive": {"budget": "60s", "then": "hold"},
    "ready_timeout": "30s",
    "preflight": candidate.POLICY,
}
TARGET: dict[str, Any] = {
    "namespace": "ml-serving",
    "service": "tf-model-service",
    "route": {
        "virtual_service": "tf-model-route",
        "stable": {"host": "tf-model-service", "subset": "v1"},
        "canary": {"host": "tf-model-service", "subset": "v2"},
    },
    "readiness": {"deployment": "tf-model-v2"},
    "preflight": candidate.SUBJECTS,
    "metrics": "http",
    "labels": {"job": "tf-serving"},
    "stable_labels": {"version": "v1"},
    "canary_labels": {"version": "v2"},
    "policy": "demo",
    "criticality": "standard",
}
MISSING_OPKERNEL = "No registered '(?P<subject>[A-Za-z0-9_.>:]+)' OpKernel for"
PRESET: dict[str, Any] = {
    "name": "http",
    "metrics": {
        "latency": {"kind": "latency", "buckets": "model_latency_seconds_bucket"},
        "errors": {"kind": "errors", "requests": "http_requests_total", "failed": [{"code": "5.."}]},
        "predictions": {"kind": "predictions", "counter": "model_predictions_total"},
        "memory": {
            "kind": "resource",
            "series": "container_memory_working_set_bytes",
            "measures": "memory",
            "unit": "B",
            "limit": ["container_spec_memory_limit_bytes"],
            "settled_s": 0,
        },
        "gpu-memory": {
            "kind": "resource",
            "series": "DCGM_FI_DEV_FB_USED",
            "measures": "device-memory",
            "unit": "MiB",
            "limit": ["DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"],
            "settled_s": 0,
        },
        "logs": {"kind": "logs", "patterns": [{"name": "missing-opkernel", "any_of": [MISSING_OPKERNEL]}]},
    },
}


@dataclass(slots=True)
class Outcome:
    """What one act came to."""

    fault: str
    outcome: str
    windows: int
    weights_seen: list[int]
    canary_requests: int
    reason: str
    pages: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """It ended as it should, and where traffic had to go, it went."""
        return self.outcome == EXPECTED[self.fault]


def run(fault: str | None, *, json_output: bool, seed: int) -> int:
    """Play one fault, or without one a good release and then a slow one; the exit status is 0 when all ended right."""
    acts = [fault] if fault else ["none", "latency"]
    outcomes = asyncio.run(_play(acts, quiet=json_output, seed=seed))
    for outcome in outcomes:
        if json_output:
            body = {name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}
            print(json.dumps({**body, "expected": EXPECTED[outcome.fault], "right": outcome.right}), flush=True)  # noqa: T201
    return 0 if all(o.right for o in outcomes) and len(outcomes) == len(acts) else 1


async def _play(acts: list[str], *, quiet: bool, seed: int) -> list[Outcome]:
    console = Console(quiet=quiet)
    console.print(
        "Serinus demo: an embedded Kafka, API server, Prometheus and PagerDuty; the service itself is real.\n"
    )
    async with _stage(console, seed) as stage:
        outcomes = []
        for number, fault in enumerate(acts):
            outcomes.append(await stage.act(number, fault))
        if len(acts) > 1:
            others = ", ".join(sorted(EXPECTED.keys() - {*acts}))
            console.print(Text(f"One other fault alone: serinus demo --fault, with {others}."))
        return outcomes


@asynccontextmanager
async def _stage(console: Console, seed: int) -> AsyncIterator[_Stage]:
    """Everything set up, the service running and ready."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serinus-demo-")))
        broker = stack.enter_context(EmbeddedBroker())
        for topic in ("cd.events", "cd.events.dead-letter", "canary.decisions"):
            broker.create_topic(topic)
        world = World(requests_per_s=REQUESTS_PER_S, seed=seed)
        kube = await stack.enter_async_context(KubeApi(on_change=world.follow))
        prometheus = await stack.enter_async_context(PrometheusApi(world.series))
        loki = await stack.enter_async_context(LokiApi())
        pagerduty = await stack.enter_async_context(PagerDutyApi())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        producer = Producer(Connection(broker.bootstrap))
        stack.push_async_callback(producer.stop)
        stage = _Stage(console, folder, world, kube, prometheus, pagerduty, session, producer)
        stage.furnish()
        traffic = asyncio.create_task(_traffic(world, prometheus, loki), name="traffic")
        stack.callback(traffic.cancel)
        port = _free_port()
        config = _configure(folder, port, broker, kube, prometheus, loki, pagerduty)
        stage.url = await stack.enter_async_context(_service(config, port, folder, session))
        yield stage


async def _traffic(world: World, prometheus: PrometheusApi, loki: LokiApi) -> None:
    """Requests and scrapes, in step with the clock."""
    loop = asyncio.get_running_loop()
    last, scraped = loop.time(), 0.0
    while True:
        await asyncio.sleep(STEP_S)
        now = loop.time()
        world.step(now - last)
        last = now
        for version, line in world.lines():
            loki.write(line, job="tf-serving", version=version, pod=f"tf-model-{version}-0")
        if now - scraped >= SCRAPE_INTERVAL_S - 0.01:
            prometheus.scrape()
            scraped = now


def _configure(
    folder: Path,
    port: int,
    broker: EmbeddedBroker,
    kube: KubeApi,
    prometheus: PrometheusApi,
    loki: LokiApi,
    pagerduty: PagerDutyApi,
) -> Path:
    """The service's configuration files, as an operator would write them."""
    for kind, body in (("policies", POLICY), ("targets", [TARGET]), ("metrics", PRESET)):
        (folder / "config" / kind).mkdir(parents=True)
        (folder / "config" / kind / "demo.yaml").write_text(yaml.safe_dump(body))
    (folder / "routing-key").write_text("0" * 32)
    settings = {
        "mode": "enforce",
        "config_dir": str(folder / "config"),
        "kafka": {"bootstrap_servers": broker.bootstrap},
        "prometheus": {"url": prometheus.url, "scrape_interval": f"{SCRAPE_INTERVAL_S}s", "timeout": "5s"},
        "loki": {"url": loki.url, "delay": "0s"},
        "kubernetes": {"kubeconfig": str(kube.kubeconfig(folder / "kubeconfig"))},
        "database": {"url": f"sqlite:///{folder / 'serinus.db'}"},
        "api": {"host": "127.0.0.1", "port": port, "auth": "off"},
        "preflight": {"models_dir": str(folder / "models"), "reports_dir": str(folder / "reports")},
        "pagerduty": {"routing_key_file": str(folder / "routing-key"), "url": pagerduty.url},
    }
    file = folder / "serinus.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@asynccontextmanager
async def _service(config: Path, port: int, folder: Path, session: aiohttp.ClientSession) -> AsyncIterator[str]:
    """`serinus serve` as a process of its own; yields its URL once it is ready."""
    url = f"http://127.0.0.1:{port}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
    with (folder / "serinus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service.cli.main", "serve", "--config", str(config),
            stdout=log, stderr=log, env=environment,
        )  # fmt: skip
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while not await _ready(session, url):
                if process.returncode is not None:
                    raise RuntimeError(f"the service ended at once:\n{(folder / 'serinus.log').read_text()[-2000:]}")
                await asyncio.sleep(0.1)
        yield url
    except aiohttp.ClientError as error:
        tail = (folder / "serinus.log").read_text()[-3000:]
        raise RuntimeError(f"the service went away ({error}):\n{tail}") from None
    except TimeoutError:
        tail = (folder / "serinus.log").read_text()[-2000:]
        raise RuntimeError(f"the service was not ready within {READY_WITHIN_S:.0f} s:\n{tail}") from None
    finally:
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


class _Stage:
    """Where the acts are played."""

    def __init__(
        self,
        console: Console,
        folder: Path,
        world: World,
        kube: KubeApi,
        prometheus: PrometheusApi,
        pagerduty: PagerDutyApi,
        session: aiohttp.ClientSession,
        producer: Producer,
    ) -> None:
        self._console = console
        self._folder = folder
        self._world = world
        self._kube = kube
        self._prometheus = prometheus
        self._pagerduty = pagerduty
        self._session = session
        self._producer = producer
        self.url = ""

    def furnish(self) -> None:
        """All traffic on v1, and v2 ready: the state before a release."""
        destinations = [
            {"destination": {"host": "tf-model-service", "subset": "v1"}, "weight": 100},
            {"destination": {"host": "tf-model-service", "subset": "v2"}, "weight": 0},
        ]
        names = {"name": "tf-model-route", "namespace": "ml-serving"}
        spec = {"hosts": ["tf-model-service"], "http": [{"route": destinations}]}
        body = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": names, "spec": spec}
        self._kube.put("virtualservices", body)
        deployment = {
            "metadata": {"name": "tf-model-v2", "namespace": "ml-serving", "generation": 1},
            "spec": {"replicas": 2},
            "status": {"observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 2},
        }
        self._kube.put("deployments", deployment)

    async def act(self, number: int, fault: str) -> Outcome:
        """One release from its event to its end."""
        stable, version = ("2.12.0", "2.13.0") if number == 0 else ("2.13.0", "2.13.1")
        self.furnish()
        candidate.furnish(self._folder, version, fault)
        self._world.behaviours["v2"] = FAULTS[fault]
        self._world.weights_seen.clear()
        served_before = self._world.served["v2"]
        paged_before = len(self._pagerduty.events)
        self._console.print(
            Text(
                f"Act {number + 1}: TensorFlow {stable} -> {version}, fault of the candidate: {fault}\n{WRONG[fault]}\n"
            )
        )
        began = asyncio.get_running_loop().time()
        await self._announce(stable, version)
        view = await self._watch(version, fault)
        pages = [
            body["payload"]["summary"]
            for path, body in self._pagerduty.events[paged_before:]
            if path == "/v2/enqueue" and body["event_action"] == "trigger"
        ]
        outcome = Outcome(
            fault=fault,
            outcome=view.phase.value if view else "nothing",
            windows=view.window if view else 0,
            weights_seen=list(self._world.weights_seen),
            canary_requests=self._world.served["v2"] - served_before,
            reason=view.sentence if view else "no rollout came of the event",
            pages=pages,
            seconds=round(asyncio.get_running_loop().time() - began, 1),
        )
        verdict = "as it should" if outcome.right else f"but {EXPECTED[fault]} was expected"
        ended = (view.ended_as if view else "") or outcome.outcome.replace("_", " ")
        self._console.print(Text(f"\n=> {ended} after {outcome.seconds} s, {verdict}."))
        for page in pages:
            self._console.print(Padding(Text(f"paged: {page}"), (0, 0, 0, 3)))
        self._console.print()
        return outcome

    async def _announce(self, stable: str, version: str) -> None:
        sent = message(
            kind="upgraded",
            namespace="ml-serving",
            service="tf-model-service",
            at=datetime.now(UTC),
            version=version,
            stable_version=stable,
        )
        await self._producer.send("cd.events", key=sent.key, value=sent.value, headers=list(sent.headers))

    async def _watch(self, version: str, fault: str) -> RolloutView | None:
        """Show the rollout until it has come to its end, or to a stop that lasts."""
        view: RolloutView | None = None
        deadline = asyncio.get_running_loop().time() + ACT_WITHIN_S
        with Live(console=self._console, auto_refresh=False, transient=False, vertical_overflow="visible") as live:
            while asyncio.get_running_loop().time() < deadline:
                view = await self._view(version) or view
                if view is not None:
                    live.update(terminal.rollout(view, datetime.now(UTC)), refresh=True)
                    if fault == "blackout" and view.window >= 2:
                        self._prometheus.away = True
                    if view.phase.terminal or view.phase is Phase.HELD:
                        await self._told(view)
                        return view
                await asyncio.sleep(POLL_S)
        return view

    async def _told(self, view: RolloutView) -> None:
        """A page about the end may still be on its way; wait for it, a little."""
        for _ in range(20):
            about = [b for _, b in self._pagerduty.events if view.id in str(b.get("dedup_key", ""))]
            if about or view.phase is Phase.PROMOTED:
                return
            await asyncio.sleep(0.1)

    async def _view(self, version: str) -> RolloutView | None:
        async with self._session.get(f"{self.url}/api/v1/rollouts", params={"limit": "1"}) as response:
            rows = (await response.json())["rollouts"]
        if not rows or rows[0]["version"] != version:
            return None
        async with self._session.get(f"{self.url}/api/v1/rollouts/{rows[0]['id']}") as response:
            view = RolloutView.model_validate_json(await response.text())
        return view if math.isfinite(view.log_evidence) else None
