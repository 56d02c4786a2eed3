"""What a real API server says of pods and their logs. It has no kubelet behind it, so no log can be read here: what is
shown is that selectors, rights and every refusal are understood, and that none of them is taken for an empty log."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kubernetes.aio import client

from service.app.clock import SystemClock
from service.cluster import LOGS_NEEDED, connect, rights
from service.model.lines import LogSeries
from service.model.names import RolloutId
from service.model.observation import Availability, LineCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.sources.pod_logs import PodLogSource
from tests.real.parts.building import apiserver
from tests.real.parts.kube import KubeApiServer
from tests.stories import place

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module")]
NAMESPACE = "ml-serving"
PRESET = MetricsPreset(
    name="tf", metrics={"logs": LogSeries.model_validate({"patterns": [{"name": "bad", "any_of": ["bad"]}]})}
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KubeApiServer]:
    with KubeApiServer(apiserver(), tmp_path_factory.mktemp("kube")) as started:
        api = await connect(Path(started.kubeconfig))
        core = client.CoreV1Api(api)
        await core.create_namespace({"metadata": {"name": NAMESPACE}})
        await core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "default"}})
        await api.close()
        yield started


async def put(server: KubeApiServer, name: str, version: str, **spec: Any) -> None:
    """A pod that nobody runs."""
    api = await connect(Path(server.kubeconfig))
    labels = {"app.kubernetes.io/name": "ranker", "version": version}
    body = {
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "containers": [{"name": "serving", "image": "i"}],
            "automountServiceAccountToken": False,
            **spec,
        },
    }
    await client.CoreV1Api(api).create_namespaced_pod(NAMESPACE, body)
    await api.close()


async def read(kubeconfig: str, canary: str) -> Reading:
    common = {"app.kubernetes.io/name": "ranker"}
    where = place(
        namespace=NAMESPACE,
        metrics="tf",
        stable_log_labels={**common, "version": "v1"},
        canary_log_labels={**common, "version": canary},
    )
    now = time.time()
    api = await connect(Path(kubeconfig))
    try:
        source = PodLogSource(api, {"tf": PRESET}, clock=SystemClock(), timeout_s=5)
        ((reading,),) = await source.collect([WindowQuery(RolloutId("r"), "default", where, ("logs",), now - 60, now)])
        return reading
    finally:
        await api.close()


async def test_pods_are_found_by_their_labels_and_one_that_has_no_host_yet_has_written_nothing(
    server: KubeApiServer,
) -> None:
    await put(server, "stable-0", "v1")
    await put(server, "canary-0", "v2")
    reading = await read(server.kubeconfig, "v2")
    assert (reading.availability, reading.counts) == (Availability.ENOUGH, LineCounts((), (), (), ()))
    reading = await read(server.kubeconfig, "v3")
    assert reading.availability is Availability.NO_SERIES
    assert "no pods of the canary" in reading.detail


async def test_a_pod_whose_kubelet_is_gone_is_no_empty_log(server: KubeApiServer) -> None:
    await put(server, "canary-lost", "v4", nodeName="gone")
    reading = await read(server.kubeconfig, "v4")
    assert (reading.availability, reading.counts) == (Availability.AWAY, None)
    assert "read the log of serving in pod ml-serving/canary-lost" in reading.detail


async def test_the_rights_that_are_asked_for_are_those_that_are_needed(server: KubeApiServer) -> None:
    api = await connect(Path(server.kubeconfig))
    try:
        assert all(one.allowed for one in await rights(api, NAMESPACE, needed=LOGS_NEEDED))
    finally:
        await api.close()
