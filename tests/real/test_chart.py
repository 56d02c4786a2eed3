"""The chart on a real API server: its objects are accepted, and its ServiceAccount's token is enough for the service's
work in the named namespaces and for nothing anywhere else."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from service.actuators.istio import IstioMesh
from service.cluster import connect, rights
from service.ring.ports import Refused
from tests.real.rig import NAMESPACE, Rig, rig
from tests.unit.helm.test_chart import EVERYTHING, rendered

pytestmark = [
    pytest.mark.real,
    pytest.mark.asyncio(loop_scope="module"),
    # When the broker ends, the Kafka client leaves its transports to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{ns}/serviceaccounts",
    "ConfigMap": "/api/v1/namespaces/{ns}/configmaps",
    "Service": "/api/v1/namespaces/{ns}/services",
    "PersistentVolumeClaim": "/api/v1/namespaces/{ns}/persistentvolumeclaims",
    "Deployment": "/apis/apps/v1/namespaces/{ns}/deployments",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings",
    "Pod": "/api/v1/namespaces/{ns}/pods",
}
VALUES = [v.replace("rbac.namespaces={ml-a,ml-b}", f"rbac.namespaces={{{NAMESPACE}}}") for v in EVERYTHING]


class Installed:
    """The chart's objects on the API server, and the token of its ServiceAccount."""

    def __init__(self, real: Rig, kubeconfig: str, statuses: dict[str, int]) -> None:
        self.real = real
        self.kubeconfig = kubeconfig
        self.statuses = statuses


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installed]:
    async with rig(tmp_path_factory.mktemp("rig")) as real:
        trust = ssl.create_default_context(cafile=real.kube.ca)
        headers = {"Authorization": f"Bearer {real.kube.tokens['admin']}"}
        async with aiohttp.ClientSession(base_url=real.kube.url, headers=headers) as session:

            async def post(path: str, body: dict[str, Any]) -> tuple[int, Any]:
                async with session.post(path, json=body, ssl=trust, params={"fieldValidation": "Strict"}) as answer:
                    return answer.status, await answer.json()

            for namespace in ("serinus", "elsewhere"):
                await post("/api/v1/namespaces", {"metadata": {"name": namespace}})
            # No controllers run here, so the account that every namespace has is made by hand.
            await post("/api/v1/namespaces/serinus/serviceaccounts", {"metadata": {"name": "default"}})
            statuses: dict[str, int] = {}
            objects = sorted(rendered(*VALUES), key=lambda o: list(PATHS).index(o["kind"]))
            for body in objects:
                namespace = body["metadata"].setdefault("namespace", "serinus")
                status, answer = await post(PATHS[body["kind"]].format(ns=namespace), body)
                statuses[f"{body['kind']}/{body['metadata']['name']}"] = status
                assert status == 201, answer
            request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
            _, token = await post("/api/v1/namespaces/serinus/serviceaccounts/serinus/token", request)
        yield Installed(real, real.kube.kubeconfig_for(token["status"]["token"], "serinus"), statuses)


async def test_every_rendered_object_is_accepted_by_a_real_api_server(installed: Installed) -> None:
    kinds = {name.split("/")[0] for name in installed.statuses}
    assert kinds == set(PATHS)
    assert set(installed.statuses.values()) == {201}


async def test_the_token_may_do_what_is_needed_where_it_was_named_and_nothing_elsewhere(installed: Installed) -> None:
    api = await connect(Path(installed.kubeconfig))
    assert all(right.allowed for right in await rights(api, NAMESPACE))
    assert not any(right.allowed for right in await rights(api, "elsewhere"))
    await api.close()


async def test_the_service_promotes_a_release_with_that_token_alone(installed: Installed) -> None:
    real = installed.real
    real.kubeconfig = installed.kubeconfig
    real.configure()
    await real.start_service()
    await real.release("least")
    await real.until("least", "promoted")
    assert await real.settled("least", 100) == [0, 10, 30, 60, 100]


async def test_the_token_is_refused_outside_its_namespace(installed: Installed) -> None:
    from tests.stories import place

    api = await connect(Path(installed.kubeconfig))
    with pytest.raises(Refused, match="403"):
        await IstioMesh(api).set_weights(place(namespace="elsewhere"), canary_percent=10, fence=1, rollout="r-1")
    await api.close()
