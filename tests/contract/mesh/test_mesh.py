"""The mesh's contract: on the lab's API server, and on a real kube-apiserver with Istio's CRDs."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kubernetes.aio import client

from service.actuators import istio
from service.actuators.istio import IstioMesh
from service.actuators.virtual_service import FENCE
from service.cluster import connect, rights
from service.lab.kube_api import KubeApi
from service.model.target import Place, Readiness
from service.ring.ports import Refused, Unavailable
from tests.stories import place

NAMESPACE = "ml-serving"
pytestmark = [pytest.mark.asyncio(loop_scope="module")]


class World:
    """A cluster that the test can furnish."""

    def __init__(self, api: client.ApiClient, lab: KubeApi | None) -> None:
        self.api = api
        self.lab = lab
        self.custom = client.CustomObjectsApi(api)
        self.n = 0

    async def put(self, group: str, version: str, plural: str, body: dict[str, Any]) -> None:
        if self.lab is not None:
            self.lab.put(plural, body)
            return
        await self.custom.create_namespaced_custom_object(group, version, NAMESPACE, plural, body)
        if "status" in body:
            await self.custom.patch_namespaced_custom_object_status(
                group, version, NAMESPACE, plural, body["metadata"]["name"], {"status": body["status"]},
                _content_type="application/merge-patch+json",
            )  # fmt: skip

    async def route(self, stable: int = 100, canary: int = 0, extra: list[dict[str, Any]] | None = None) -> Place:
        """A VirtualService of its own, and the place that names it."""
        self.n += 1
        name = f"route-{self.n}"
        http = {
            "retries": {"attempts": 3},
            "route": [
                {"destination": {"host": "tf", "subset": "v1"}, "weight": stable},
                {"destination": {"host": "tf", "subset": "v2"}, "weight": canary},
                *(extra or []),
            ],
        }
        body = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {"owner": "team-a"}},
            "spec": {"hosts": ["tf"], "http": [http]},
        }
        await self.put("networking.istio.io", "v1", "virtualservices", body)
        return self.place(name)

    @staticmethod
    def place(name: str, **changes: Any) -> Place:
        from service.model.target import Destination

        stable, canary = (Destination(host="tf", subset=subset) for subset in ("v1", "v2"))
        return place(virtual_service=name, namespace=NAMESPACE, stable=stable, canary=canary, **changes)

    async def read(self, where: Place) -> dict[str, Any]:
        found: Any = await self.custom.get_namespaced_custom_object(
            "networking.istio.io", "v1", NAMESPACE, "virtualservices", where.virtual_service
        )
        return dict(found)


@pytest_asyncio.fixture(
    params=["lab", pytest.param("real", marks=pytest.mark.real)], scope="module", loop_scope="module"
)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("kube")
    if request.param == "lab":
        async with KubeApi() as lab:
            api = await connect(lab.kubeconfig(folder / "kubeconfig"))
            yield World(api, lab)
            await api.close()
        return
    from tests.real.parts import building
    from tests.real.parts.kube import KubeApiServer
    from tests.real.rig import prepare_cluster

    with KubeApiServer(building.apiserver(), folder, fsync=False) as kube:
        api = await connect(Path(kube.kubeconfig))
        await prepare_cluster(api)
        yield World(api, None)
        await api.close()


async def test_a_weight_is_written_read_back_and_nothing_else_is_touched(world: World) -> None:
    where = await world.route()
    before = await world.read(where)
    seen = await IstioMesh(world.api).set_weights(where, canary_percent=10, fence=7, rollout="r-1")
    assert (seen.canary_percent, seen.fence, seen.changed) == (10, 7, True)
    after = await world.read(where)
    assert json.loads(after["metadata"]["annotations"][FENCE]) == {"": 7}
    assert after["metadata"]["annotations"]["owner"] == "team-a"
    expected = copy.deepcopy(before["spec"])
    expected["http"][0]["route"][0]["weight"], expected["http"][0]["route"][1]["weight"] = 90, 10
    assert after["spec"] == expected


async def test_the_same_decision_twice_writes_once(world: World) -> None:
    where = await world.route()
    mesh = IstioMesh(world.api)
    await mesh.set_weights(where, canary_percent=10, fence=7, rollout="r-1")
    version = (await world.read(where))["metadata"]["resourceVersion"]
    again = await mesh.set_weights(where, canary_percent=10, fence=7, rollout="r-1")
    assert (again.canary_percent, again.changed) == (10, False)
    assert (await world.read(where))["metadata"]["resourceVersion"] == version


async def test_an_older_decision_never_lands_after_a_newer_one(world: World) -> None:
    where = await world.route()
    mesh = IstioMesh(world.api)
    await mesh.set_weights(where, canary_percent=0, fence=9, rollout="r-1")
    with pytest.raises(Refused, match="newer decision"):
        await mesh.set_weights(where, canary_percent=60, fence=8, rollout="r-1")
    assert (await mesh.get_weights([where]))[0].canary_percent == 0


async def test_a_write_that_lands_long_after_its_caller_gave_up_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = await world.route()
    slow = IstioMesh(world.api)
    held: list[list[dict[str, Any]]] = []

    async def on_its_way(*given: Any, **_: Any) -> None:
        held.append(given[-1])
        raise TimeoutError

    monkeypatch.setattr(slow._custom, "patch_namespaced_custom_object", on_its_way)
    with pytest.raises(Unavailable):
        await slow.set_weights(where, canary_percent=10, fence=7, rollout="r-1")
    await IstioMesh(world.api).set_weights(where, canary_percent=0, fence=8, rollout="r-1")
    with pytest.raises(client.ApiException) as refused:
        await world.custom.patch_namespaced_custom_object(
            "networking.istio.io", "v1", NAMESPACE, "virtualservices", where.virtual_service, held[0],
            _content_type="application/json-patch+json",
        )  # fmt: skip
    assert refused.value.status == 422
    (seen,) = await IstioMesh(world.api).get_weights([where])
    assert (seen.canary_percent, seen.fence) == (0, 8)


async def test_somebody_elses_destination_is_never_taken(world: World) -> None:
    extra = [{"destination": {"host": "tf", "subset": "experiment"}, "weight": 20}]
    where = await world.route(stable=80, extra=extra)
    with pytest.raises(Refused, match="not ours"):
        await IstioMesh(world.api).set_weights(where, canary_percent=10, fence=1, rollout="r-1")


async def test_a_release_never_starts_on_a_canary_that_carries_production(world: World) -> None:
    where = await world.route(stable=0, canary=100)
    for percent in (10, 0):
        with pytest.raises(Refused, match="did not give it"):
            await IstioMesh(world.api).set_weights(where, canary_percent=percent, fence=1, rollout="r-1", first=True)
    assert (await IstioMesh(world.api).get_weights([where]))[0].canary_percent == 100


async def test_a_missing_object_is_refused_when_written_and_told_when_read(world: World) -> None:
    where = world.place("nowhere")
    mesh = IstioMesh(world.api)
    with pytest.raises(Refused, match="no VirtualService"):
        await mesh.set_weights(where, canary_percent=10, fence=1, rollout="r-1")
    (seen,) = await mesh.get_weights([where])
    assert seen.canary_percent is None
    assert seen.detail


async def test_many_places_are_read_by_pages_of_their_namespace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(istio, "PAGE", 5)
    asked: list[str] = []
    call = world.api.call_api

    async def counting(method: str, url: str, *rest: Any, **given: Any) -> Any:
        asked.append(f"{method} {url}")
        return await call(method, url, *rest, **given)

    monkeypatch.setattr(world.api, "call_api", counting)
    places = [await world.route(stable=100 - n, canary=n) for n in range(12)]
    asked.clear()
    places.insert(3, world.place("nowhere"))
    seen = await IstioMesh(world.api).get_weights(places)
    assert [one.canary_percent for one in seen] == [0, 1, 2, None, *range(3, 12)]
    # The namespace holds routes of other tests as well; what counts is that nothing was asked by name.
    assert 3 <= len(asked) <= 3 + world.n // 5
    assert all("/virtualservices?" in one for one in asked)


async def test_a_hand_edit_in_between_is_seen(world: World) -> None:
    where = await world.route(stable=40, canary=60)
    assert (await IstioMesh(world.api).get_weights([where]))[0].canary_percent == 60


async def test_a_deployment_is_ready_only_by_its_status(world: World) -> None:
    labels = {"app": "x"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    for name, ready_n in (("not-yet", 0), ("ready", 2)):
        counts = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": ready_n, "availableReplicas": ready_n}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
            "status": {"observedGeneration": 1, **counts},
        }
        await world.put("apps", "v1", "deployments", body)
        ready, detail = await IstioMesh(world.api).ready(
            world.place("any", readiness=Readiness(deployment=name, namespace=NAMESPACE))
        )
        assert ready is (ready_n > 0), detail
    missing = world.place("any", readiness=Readiness(deployment="missing", namespace=NAMESPACE))
    assert (await IstioMesh(world.api).ready(missing))[0] is False


async def test_endpoints_count_only_when_they_are_ready(world: World) -> None:
    for n, conditions in enumerate(({"ready": False}, {"ready": True})):
        piece = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "addressType": "IPv4",
            "metadata": {
                "name": f"s-{n}",
                "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": f"svc-{n}"},
            },
            "endpoints": [{"addresses": [f"10.1.0.{n + 1}"], "conditions": conditions}],
            "ports": [{"port": 80, "name": "http", "protocol": "TCP"}],
        }
        await world.put("discovery.k8s.io", "v1", "endpointslices", piece)
        where = world.place("any", readiness=Readiness(service=f"svc-{n}", namespace=NAMESPACE))
        assert (await IstioMesh(world.api).ready(where))[0] is conditions["ready"]


async def test_our_rights_are_asked_one_by_one(world: World) -> None:
    found = await rights(world.api, NAMESPACE)
    assert len(found) == 8
    assert all(one.allowed for one in found)


@pytest.mark.parametrize(
    ("answers", "error"),
    [([409, 409], None), ([409] * 5, Unavailable), ([503], Unavailable), ([429], Unavailable), ([403], Refused)],
)
async def test_an_api_server_in_trouble_is_said_in_two_words(answers: list[int], error: type[Exception] | None) -> None:
    async with KubeApi() as lab:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            api = await connect(lab.kubeconfig(Path(folder) / "k"))
        where = await World(api, lab).route()
        lab.answers.extend(answers)
        mesh = IstioMesh(api)
        if error is None:
            assert (await mesh.set_weights(where, canary_percent=10, fence=1, rollout="r")).canary_percent == 10
        else:
            with pytest.raises(error):
                await mesh.set_weights(where, canary_percent=10, fence=1, rollout="r")
        await api.close()


@pytest.mark.parametrize("n", [1, istio.FEW + 1], ids=["one by one", "as a list"])
async def test_a_namespace_that_may_not_be_read_hides_no_other(tmp_path: Path, n: int) -> None:
    async with KubeApi() as lab:
        api = await connect(lab.kubeconfig(tmp_path / "k"))
        where = await World(api, lab).route(stable=40, canary=60)
        lab.forbidden.add("closed")
        closed = [where.model_copy(update={"namespace": "closed"})] * n
        *hidden, gone, seen = await IstioMesh(api).get_weights([*closed, World.place("gone"), where])
        await api.close()
    assert [(one.unseen, one.canary_percent) for one in hidden] == [(True, None)] * n
    assert all("403" in one.detail for one in hidden)
    assert (gone.unseen, gone.canary_percent) == (False, None)
    assert (seen.unseen, seen.canary_percent) == (False, 60)


async def test_a_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    lab = KubeApi()
    await lab.start()
    api = await connect(lab.kubeconfig(tmp_path / "k"))
    await lab.stop()
    with pytest.raises(Unavailable, match="does not answer"):
        await IstioMesh(api).get_weights([World.place("x")])
    await api.close()
