"""The stop of the service as a process: what is in flight is finished and settled, and whatever hangs is cut off."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from service.events.connection import Connection
from service.events.publisher import Producer
from service.events.sending import message
from service.lab.broker import EmbeddedBroker
from service.lab.demo import POLICY, PRESET, TARGET
from service.lab.kube_api import KubeApi
from service.lab.pagerduty_api import PagerDutyApi
from service.lab.prometheus_api import PrometheusApi
from service.model.instruction import Lane
from service.ring.store import RolloutFilter
from service.storage.opening import open_store


class Running:
    """The service as a process, and the world that holds it up."""

    def __init__(
        self, folder: Path, kube: KubeApi, broker: EmbeddedBroker, process: asyncio.subprocess.Process
    ) -> None:
        self.folder = folder
        self.kube = kube
        self.broker = broker
        self.process = process
        self.url = ""

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines() if line.startswith("{")]

    async def until(self, what: Callable[[], Any]) -> Any:
        """Wait for something to be the case."""
        async with asyncio.timeout(40):
            while not (found := what()):
                assert self.process.returncode is None, (self.folder / "log").read_text()
                await asyncio.sleep(0.05)
        return found

    async def probe(self, path: str) -> tuple[int, str]:
        """One question to the API."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def ended(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(40):
            return await self.process.wait()

    async def left(self) -> tuple[int, int | None]:
        """From its database: weights owed, and the weight that the one rollout has seen confirmed."""
        store = await open_store(f"sqlite:///{self.folder / 'serinus.db'}")
        (state,) = (await store.rollouts(RolloutFilter())).rollouts
        owed_n = (await store.owed_summary())[Lane.WEIGHTS][0]
        await store.close()
        return owed_n, state.weight_seen


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A release whose first weight is being written while the API server holds the answer back."""
    async with AsyncExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker())
        for topic in ("cd.events", "cd.events.dead-letter", "canary.decisions"):
            broker.create_topic(topic)
        kube = await stack.enter_async_context(KubeApi())
        kube.slow = asyncio.Event()
        prometheus = await stack.enter_async_context(PrometheusApi(lambda: iter(())))
        pagerduty = await stack.enter_async_context(PagerDutyApi())
        _furnish(tmp_path, kube)
        settings = {
            "mode": "enforce",
            "config_dir": str(tmp_path / "config"),
            "kafka": {"bootstrap_servers": broker.bootstrap},
            "prometheus": {"url": prometheus.url, "scrape_interval": "1s"},
            "kubernetes": {"kubeconfig": str(kube.kubeconfig(tmp_path / "kubeconfig"))},
            "database": {"url": f"sqlite:///{tmp_path / 'serinus.db'}"},
            "api": {"host": "127.0.0.1", "port": 0, "auth": "off"},
            "pagerduty": {"routing_key_file": str(tmp_path / "key"), "url": pagerduty.url},
            "stop_within": "5s",
        }
        (tmp_path / "serinus.yaml").write_text(yaml.safe_dump(settings))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SERINUS_")}
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "service.cli.main", "serve", "--config", str(tmp_path / "serinus.yaml"),
                stdout=log, stderr=log, env=environment, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        made = Running(tmp_path, kube, broker, process)
        try:
            listens = await made.until(lambda: [one["event"] for one in made.lines() if "listens on" in one["event"]])
            made.url = "http://" + listens[0].split()[4]
            producer = Producer(Connection(broker.bootstrap))
            sent = message(
                kind="upgraded", namespace="ml-serving", service="tf-model-service", at=datetime.now(UTC),
                version="2.13.0", stable_version="2.12.0",
            )  # fmt: skip
            await producer.send("cd.events", key=sent.key, value=sent.value, headers=list(sent.headers))
            await producer.stop()
            await made.until(lambda: kube.asked_n)
            yield made
        finally:
            kube.slow.set()
            if process.returncode is None:
                process.kill()
                await process.wait()


def _furnish(folder: Path, kube: KubeApi) -> None:
    for kind, body in (("policies", {**POLICY, "preflight": []}), ("targets", [TARGET]), ("metrics", PRESET)):
        (folder / "config" / kind).mkdir(parents=True)
        (folder / "config" / kind / "one.yaml").write_text(yaml.safe_dump(body))
    (folder / "key").write_text("0" * 32)
    route = [
        {"destination": {"host": "tf-model-service", "subset": subset}, "weight": weight}
        for subset, weight in (("v1", 100), ("v2", 0))
    ]
    kube.put(
        "virtualservices",
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "tf-model-route", "namespace": "ml-serving"},
            "spec": {"hosts": ["tf-model-service"], "http": [{"route": route}]},
        },
    )
    status = {"observedGeneration": 1, "updatedReplicas": 2, "readyReplicas": 2}
    metadata = {"name": "tf-model-v2", "namespace": "ml-serving", "generation": 1}
    kube.put("deployments", {"metadata": metadata, "spec": {"replicas": 2}, "status": status})


async def test_a_write_in_flight_at_sigterm_is_finished_and_settled_while_probes_are_answered(running: Running) -> None:
    assert running.kube.slow is not None
    running.process.send_signal(signal.SIGTERM)
    await running.until(lambda: [one for one in running.lines() if one.get("action") == "stopping"])
    assert (await running.probe("/livez"))[0] == 200
    status, text = await running.probe("/readyz")
    assert status == 503
    assert "stopping" in text
    running.kube.slow.set()
    assert await running.ended() == 0
    assert await running.left() == (0, 10)
    assert len(running.kube.writes) == 1
    assert running.lines()[-1]["action"] == "stopped"


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]], ids=["one", "two"])
async def test_a_stop_ends_though_the_api_server_hangs_and_the_brokers_are_gone_and_the_write_stays_owed(
    running: Running, signals: list[signal.Signals]
) -> None:
    running.broker.down()
    for one in signals:
        running.process.send_signal(one)
        await running.until(lambda: [one for one in running.lines() if one.get("action") == "stopping"])
    assert await running.ended() == 0
    assert (await running.left())[0] == 1
    assert running.kube.writes == []
    cut_off = {one["event"] for one in running.lines() if one.get("action") == "stop_cancels"}
    assert "task lane weights default is cancelled before its end" in cut_off
