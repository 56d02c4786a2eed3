"""A real kube-state-metrics that watches a real API server, read by the shipped presets from a real Prometheus. What a
kubelet would write of pods is written by the tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from kubernetes.aio import client

from service.app import doctor
from service.app.clock import SystemClock
from service.cluster import connect
from service.model.names import RolloutId
from service.model.observation import Availability, PodValues, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.ring.ports import Refused
from service.sources.prometheus import PrometheusSource
from tests.contract.source import expositions
from tests.contract.source.expositions import Used
from tests.contract.source.test_shipped_presets import CANARY, EXPORTERS, STABLE, shipped, target_of
from tests.real.parts.building import apiserver, prometheus
from tests.real.parts.exporters import KubeStateMetrics
from tests.real.parts.kube import KubeApiServer
from tests.real.parts.prometheus import PrometheusServer
from tests.real.parts.serving import running
from tests.stories import place

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
NAMESPACE = "ml-serving"
REVISION = "serving.knative.dev/revision"
ALLOWED = f"--metric-labels-allowlist=pods=[version,{REVISION}]"
IMITATED = {"ranker-v1-a": Used(STABLE)}
STABLE_BEGAN_S, CANARY_BEGAN_S = 7200, 900


@dataclass(slots=True)
class Cluster:
    """A real API server, and what a kubelet would write to it."""

    server: KubeApiServer
    core: client.CoreV1Api

    async def put(self, name: str, version: str, *, namespace: str = NAMESPACE) -> None:
        """A pod of two containers that has been ready since it began."""
        labels = {"app": "ranker", "version": version, REVISION: f"ranker-{version}"}
        containers = [{"name": one, "image": "i"} for one in ("serving", "proxy")]
        spec = {"containers": containers, "automountServiceAccountToken": False, "nodeName": "node-1"}
        await self.core.create_namespaced_pod(namespace, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        await self.write(name, ready=True, restarts=(0, 3), version=version, namespace=namespace)

    async def write(
        self, name: str, *, ready: bool, restarts: tuple[int, int], version: str, namespace: str = NAMESPACE
    ) -> None:
        """The pod's status."""
        began = datetime.now(UTC) - timedelta(seconds=CANARY_BEGAN_S if version == CANARY else STABLE_BEGAN_S)
        containers = [
            {
                "name": one, "image": "i", "imageID": "i", "ready": ready, "restartCount": n,
                "state": {"running": {"startedAt": began.isoformat()}},
            }
            for one, n in zip(("serving", "proxy"), restarts, strict=True)
        ]  # fmt: skip
        status = {
            "phase": "Running",
            "startTime": began.isoformat(),
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": containers,
        }
        await self.core.patch_namespaced_pod_status(name, namespace, {"status": status})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    with KubeApiServer(apiserver(), tmp_path_factory.mktemp("kube"), fsync=False) as server:
        api = await connect(Path(server.kubeconfig))
        one = Cluster(server, client.CoreV1Api(api))
        for namespace in (NAMESPACE, "other"):
            await one.core.create_namespace({"metadata": {"name": namespace}})
            await one.core.create_namespaced_service_account(namespace, {"metadata": {"name": "default"}})
        for name, version in (("v1-a", STABLE), ("v1-b", STABLE), ("v2-a", CANARY), ("v2-b", CANARY)):
            await one.put(f"ranker-{name}", version)
        # Another service's, of the same version.
        await one.put("other-v2-a", CANARY, namespace="other")
        yield one
        await api.close()


class Watched:
    """kube-state-metrics, and a real Prometheus that scrapes it."""

    def __init__(self, exporter: KubeStateMetrics, store: PrometheusServer, session: aiohttp.ClientSession) -> None:
        self.exporter, self._store, self._session = exporter, store, session

    async def text(self) -> str:
        """What it prints now."""
        async with self._session.get(f"{self.exporter.metrics_url}/metrics") as answer:
            return await answer.text()

    async def stored(self, holds: Callable[[str], bool], *, scrapes_n: int = 1) -> float:
        """Wait until what it prints ``holds``; a moment behind the scrapes that have stored that."""
        async with asyncio.timeout(60):
            while not holds(await self.text()):
                await asyncio.sleep(0.1)
            last = time.time()
            for _ in range(scrapes_n):
                last = await self._scraped_after(last)
        return time.time()

    async def _scraped_after(self, moment: float) -> float:
        while True:
            question = {"query": "timestamp(up)"}
            async with self._session.get(f"{self._store.url}/api/v1/query", params=question) as answer:
                found = (await answer.json())["data"]["result"]
            if found and float(found[0]["value"][1]) > moment:
                return float(found[0]["value"][1])
            await asyncio.sleep(0.1)

    def source(self, preset: MetricsPreset) -> PrometheusSource:
        """Serinus' reader of that store."""
        presets = {preset.name: preset}
        return PrometheusSource(
            self._session, self._store.url, presets, clock=SystemClock(), scrape_interval_s=1.0, timeout_s=20.0
        )

    async def read(self, preset: MetricsPreset, label: str, start: float, end: float) -> dict[str, Reading]:
        """Restarts and readiness by metric; the arms are told apart by ``label``."""
        value = {"version": "{}", "revision_name": "ranker-{}"}[label]
        where = place(
            metrics=preset.name,
            stable_labels={"job": "serving", label: value.format(STABLE)},
            canary_labels={"job": "serving", label: value.format(CANARY)},
        )
        query = WindowQuery(RolloutId("r"), "default", where, ("restarts", "ready"), start, end)
        ((*readings,),) = await self.source(preset).collect([query])
        return {reading.metric: reading for reading in readings}


@asynccontextmanager
async def watched(
    cluster: Cluster, folder: Path, *arguments: str, honor_labels: bool = True, labels: Mapping[str, str] = {}
) -> AsyncIterator[Watched]:
    """``labels`` are what the scrape puts on."""
    exporter = KubeStateMetrics(folder, cluster.server.kubeconfig, *arguments)
    store = PrometheusServer(prometheus(), folder / "store", {"state": ""}, honor_labels=honor_labels)
    store.aim("state", exporter.metrics_url.removeprefix("http://"), **labels)
    with running(exporter):
        try:
            await asyncio.to_thread(exporter.wait)
            await asyncio.to_thread(store.start)
            async with aiohttp.ClientSession() as session:
                yield Watched(exporter, store, session)
        finally:
            await asyncio.to_thread(store.stop)


def pods(reading: Reading) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """(canary's, stable's) value by pod."""
    assert reading.availability is Availability.ENOUGH, reading
    assert isinstance(reading.counts, PodValues)
    return (
        {one.pod: one.value for one in reading.counts.canary},
        {one.pod: one.value for one in reading.counts.stable},
    )


def sample(text: str, name: str, labels: Mapping[str, str]) -> float | None:
    """The value of the one series with these labels."""
    found = [v for n, has, v in expositions.samples(text, {}) if n == name and labels.items() <= has.items()]
    return found[0] if found else None


def labelled(preset: str) -> MetricsPreset:
    """The shipped preset of a server with those of the exporters that it includes."""
    return shipped(preset).with_included(EXPORTERS)


async def test_restarts_and_readiness_of_each_pod_are_read_from_a_real_kube_state_metrics(
    cluster: Cluster, tmp_path: Path
) -> None:
    def shows(name: str, value: float | None, **labels: str) -> Callable[[str], bool]:
        return lambda text: sample(text, name, labels) == value

    restarts = "kube_pod_container_status_restarts_total"
    async with watched(cluster, tmp_path, ALLOWED, labels={"job": "state", "pod": "ksm", "namespace": "kube"}) as seen:
        start = await seen.stored(shows("kube_pod_labels", 1, pod="ranker-v2-b", label_version=CANARY), scrapes_n=2)
        await cluster.write("ranker-v2-a", ready=False, restarts=(2, 3), version=CANARY)
        end = await seen.stored(shows(restarts, 2, pod="ranker-v2-a", container="serving"))
        for preset, label in (("tensorflow-serving", "version"), ("kserve", "revision_name")):
            found = await seen.read(labelled(preset), label, start, end)
            canary, stable = pods(found["restarts"])
            # Grown in the window, of both containers; those of before are not counted.
            assert canary == {"ml-serving/ranker-v2-a": 2.0, "ml-serving/ranker-v2-b": 0.0}
            assert stable == {"ml-serving/ranker-v1-a": 0.0, "ml-serving/ranker-v1-b": 0.0}
            canary, stable = pods(found["ready"])
            lost = canary.pop("ml-serving/ranker-v2-a")
            assert lost is not None
            assert 0 <= lost < 1
            assert canary == {"ml-serving/ranker-v2-b": 1.0}
            assert set(stable.values()) == {1.0}
            counts = found["ready"].counts
            assert isinstance(counts, PodValues)
            assert [one.age_s for one in counts.canary] == pytest.approx([CANARY_BEGAN_S] * 2, abs=300)
            assert [one.age_s for one in counts.stable] == pytest.approx([STABLE_BEGAN_S] * 2, abs=300)
        # One is ready again, one has changed sides, one is gone; of what was, nothing is left behind three scrapes.
        await cluster.write("ranker-v2-a", ready=True, restarts=(2, 3), version=CANARY)
        labels = {"metadata": {"labels": {"version": CANARY}}}
        await cluster.core.patch_namespaced_pod("ranker-v1-b", NAMESPACE, labels)
        await cluster.core.delete_namespaced_pod("ranker-v2-b", NAMESPACE, grace_period_seconds=0)
        start = await seen.stored(
            lambda text: (
                sample(text, "kube_pod_labels", {"pod": "ranker-v2-b"}) is None
                and sample(text, "kube_pod_labels", {"pod": "ranker-v1-b", "label_version": CANARY}) == 1
            ),
            scrapes_n=5,
        )
        end = await seen.stored(lambda text: True, scrapes_n=2)
        found = await seen.read(labelled("tensorflow-serving"), "version", start, end)
        for metric, value in (("restarts", 0.0), ("ready", 1.0)):
            assert pods(found[metric]) == (
                {"ml-serving/ranker-v2-a": value, "ml-serving/ranker-v1-b": value},
                {"ml-serving/ranker-v1-a": value},
            )


def expect_no_pods(found: Mapping[str, Reading]) -> None:
    assert found["ready"].availability is Availability.NO_SERIES
    assert "kube_pod_labels has no pods of the stable with {label_version=" in found["ready"].detail


async def test_a_scrape_that_keeps_its_own_labels_calls_the_pods_exported_pod(cluster: Cluster, tmp_path: Path) -> None:
    own = {"job": "state", "pod": "kube-state-metrics-0", "namespace": "monitoring"}
    async with watched(cluster, tmp_path, ALLOWED, honor_labels=False, labels=own) as seen:
        start = await seen.stored(lambda text: "kube_pod_labels{" in text, scrapes_n=1)
        end = await seen.stored(lambda text: True, scrapes_n=2)
        preset = labelled("tensorflow-serving")
        expect_no_pods(await seen.read(preset, "version", start, end))
        exported = {"pod_label": "exported_pod", "namespace_label": "exported_namespace"}
        assert preset.pods is not None
        changed = preset.model_copy(
            update={
                "pods": preset.pods.model_copy(update=exported),
                "metrics": {name: preset.metrics[name].model_copy(update=exported) for name in ("restarts", "ready")},
            }
        )
        found = await seen.read(changed, "version", start, end)
        assert "ml-serving/ranker-v2-a" in pods(found["ready"])[0]
        assert "ml-serving/ranker-v1-a" in pods(found["ready"])[1]


@pytest.mark.parametrize("argument", [None, "--metric-labels-allowlist=pods=[serving_knative_dev_revision]"])
async def test_without_the_allow_list_the_doctor_says_what_to_start_it_with(
    cluster: Cluster, tmp_path: Path, argument: str | None
) -> None:
    """The second one names the label as Prometheus would and not as the pods do, which shows nothing either."""
    async with watched(cluster, tmp_path, *([argument] if argument else [])) as seen:
        start = await seen.stored(lambda text: "kube_pod_status_ready{" in text, scrapes_n=1)
        end = await seen.stored(lambda text: True, scrapes_n=2)
        preset = shipped("kube-state-metrics")
        expect_no_pods(await seen.read(preset, "version", start, end))
        with pytest.raises(Refused) as refused:
            await doctor.labels_of(seen.source(preset), [(target_of(preset), preset)])
        assert "start kube-state-metrics with --metric-labels-allowlist=pods=[version]" in str(refused.value)
        assert "kube_pod_labels (" in str(refused.value)
        if argument is None:
            text = expositions.kube_state_metrics(IMITATED, time.time() - 7200, allowed=False)
            imitated, real = expositions.forms(text, await seen.text())
            assert imitated == real


async def test_the_imitation_prints_what_a_real_kube_state_metrics_prints(cluster: Cluster, tmp_path: Path) -> None:
    exporter = KubeStateMetrics(tmp_path, cluster.server.kubeconfig, "--metric-labels-allowlist=pods=[version]")
    with running(exporter):
        await asyncio.to_thread(exporter.wait)
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            text = ""
            while "kube_pod_labels{" not in text:
                async with session.get(f"{exporter.metrics_url}/metrics") as answer:
                    text = await answer.text()
    imitated, real = expositions.forms(expositions.kube_state_metrics(IMITATED, time.time() - 7200), text)
    assert imitated == real
