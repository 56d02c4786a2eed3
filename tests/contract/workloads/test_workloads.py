"""Deployments and their pods as the security gate reads them: on the lab's API server, and on a real one, whose
ServiceAccount has just the rights that the room names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kubernetes.aio import client

from service.cluster import connect
from service.lab.kube_api import KubeApi
from service.model.gates.report import Candidate, Finding
from service.model.gates.security import Posture, SecurityGate, SecuritySubject
from service.model.names import ServiceKey
from service.preflight.security.cluster import NEEDED, KubernetesWorkloads
from service.preflight.security.gate import SecurityLook
from service.preflight.security.sources import ReportSources
from service.ring.ports import Refused, Unavailable

NAMESPACE = "ml-serving"
SAFE = {"runAsUser": 1000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
pytestmark = [pytest.mark.asyncio(loop_scope="module")]


class World:
    """A cluster that the test can furnish, and that the gate reads with rights of its own."""

    def __init__(self, admin: client.ApiClient, lab: KubeApi | None) -> None:
        self.lab = lab
        self.core, self.apps = client.CoreV1Api(admin), client.AppsV1Api(admin)
        self.reads = admin
        """As whom the gate reads."""
        self.may_not_list = admin
        """As one who may read Deployments and no pods."""

    async def deployment(self, name: str, image: str, context: dict[str, Any] | None = None, **spec: Any) -> None:
        labels = {"app": name}
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": self._spec(image, context, spec)},
            },
        }
        if self.lab is not None:
            self.lab.put("deployments", body)
        else:
            await self.apps.create_namespaced_deployment(NAMESPACE, body)

    async def pod(
        self, name: str, app: str, image: str, context: dict[str, Any] | None = None, *, image_id: str = "", **spec: Any
    ) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": app}},
            "spec": self._spec(image, context, spec),
        }
        status = {
            "phase": "Running",
            "containerStatuses": [
                {
                    "name": "tf", "image": image, "imageID": image_id, "ready": True, "restartCount": 0,
                    "user": {"linux": {"uid": 1000, "gid": 1000}},
                }
            ],
        }  # fmt: skip
        if self.lab is not None:
            self.lab.put("pods", {**body, "status": status})
            return
        await self.core.create_namespaced_pod(NAMESPACE, body)
        await self.core.patch_namespaced_pod_status(
            name, NAMESPACE, {"status": status}, _content_type="application/merge-patch+json"
        )

    @staticmethod
    def _spec(image: str, context: dict[str, Any] | None, more: dict[str, Any]) -> dict[str, Any]:
        return {"containers": [{"name": "tf", "image": image, "securityContext": context or {}}], **more}


@pytest_asyncio.fixture(
    params=["lab", pytest.param("real", marks=pytest.mark.real)], scope="module", loop_scope="module"
)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("kube")
    async with contextlib.AsyncExitStack() as stack:

        async def api(kubeconfig: Path) -> client.ApiClient:
            return await stack.enter_async_context(await connect(kubeconfig))

        if request.param == "lab":
            lab = await stack.enter_async_context(KubeApi())
            yield World(await api(lab.kubeconfig(folder / "kubeconfig")), lab)
            return
        from tests.real.parts import building
        from tests.real.parts.kube import KubeApiServer

        kube = stack.enter_context(KubeApiServer(building.apiserver(), folder, fsync=False))
        admin = await api(Path(kube.kubeconfig))
        core, rbac = client.CoreV1Api(admin), client.RbacAuthorizationV1Api(admin)
        await core.create_namespace({"metadata": {"name": NAMESPACE}})
        await client.NodeV1Api(admin).create_runtime_class({"metadata": {"name": "gvisor"}, "handler": "runsc"})
        # No controllers run here, so the account that every namespace has is made by hand.
        await core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "default"}})
        real = World(admin, None)
        for name, rights in (("reads", NEEDED), ("may-not-list", NEEDED[:1])):
            await core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": name}})
            rules = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": [r.verb]} for r in rights]
            await rbac.create_namespaced_role(NAMESPACE, {"metadata": {"name": name}, "rules": rules})
            binding = {
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
            }
            await rbac.create_namespaced_role_binding(NAMESPACE, binding)
            token = await core.create_namespaced_service_account_token(name, NAMESPACE, {"spec": {"audiences": None}})
            as_it = await api(Path(kube.kubeconfig_for(token.status.token, name)))
            setattr(real, name.replace("-", "_"), as_it)
        yield real


async def posture(world: World, name: str, **rule: Any) -> tuple[Finding, str]:
    look = SecurityLook(ReportSources(), KubernetesWorkloads(world.reads))
    gate = SecurityGate(limits={}, secrets=None, posture=Posture(**rule))
    subject = SecuritySubject(deployment=name, namespace=NAMESPACE)
    service = ServiceKey(cluster="c", namespace=NAMESPACE, name=name)
    of = Candidate(service=service, version="2", stable_version="1", artifact="")
    report = await look.look(gate, subject, of)
    return report.finding, report.sentence


async def test_a_deployment_is_read_with_those_of_its_pods_that_run_its_image(world: World) -> None:
    await world.deployment("tf", "x/tf:2", SAFE)
    await world.pod("tf-new", "tf", "x/tf:2", SAFE, image_id="x/tf@sha256:" + "a" * 64)
    await world.pod("tf-old", "tf", "x/tf:1", SAFE)
    await world.pod("other", "elsewhere", "x/tf:2", SAFE)
    found = await KubernetesWorkloads(world.reads).workload(NAMESPACE, "tf")
    assert (found.name, found.unlisted, found.more) == ("tf", "", False)
    assert found.images() == {"tf": "x/tf:2"}
    (pod,) = found.pods
    assert pod.name == "tf-new"
    assert pod.image_ids == {"tf": "x/tf@sha256:" + "a" * 64}
    assert pod.uids in ({"tf": 1000}, {})  # a server older than 1.31 drops what it does not know
    assert pod.spec["containers"][0]["securityContext"] == SAFE


async def test_the_gate_judges_what_the_api_server_holds(world: World) -> None:
    await world.deployment("careful", "x/tf:2", SAFE, runtimeClassName="gvisor")
    assert (await posture(world, "careful", runtime_classes=("gvisor",)))[0] is Finding.PASSED
    finding, sentence = await posture(world, "careful", runtime_classes=("kata",))
    assert (finding, sentence) == (Finding.FAILED, "Runtime class gvisor, where kata is asked for.")
    await world.deployment("careless", "x/tf:2", {"runAsUser": 0, "privileged": True}, hostNetwork=True)
    finding, sentence = await posture(world, "careless")
    assert finding is Finding.FAILED
    assert sentence.startswith("Container tf: user 0, root (container)")


async def test_pods_count_before_the_template(world: World) -> None:
    await world.deployment("changed", "x/tf:2")
    assert (await posture(world, "changed"))[0] is Finding.FAILED
    await world.pod("changed-1", "changed", "x/tf:2", SAFE)
    assert (await posture(world, "changed"))[0] is Finding.PASSED


async def test_a_deployment_that_is_not_there_is_said(world: World) -> None:
    with pytest.raises(Refused, match=f"Deployment {NAMESPACE}/nowhere is not there"):
        await KubernetesWorkloads(world.reads).workload(NAMESPACE, "nowhere")


async def test_without_the_right_to_list_pods_the_template_is_read_and_that_is_said(world: World) -> None:
    await world.deployment("unlisted", "x/tf:2", SAFE)
    if world.lab is not None:
        world.lab.forbidden = {"pods"}
    try:
        found = await KubernetesWorkloads(world.may_not_list).workload(NAMESPACE, "unlisted")
    finally:
        if world.lab is not None:
            world.lab.forbidden = set()
    assert found.images() == {"tf": "x/tf:2"}
    assert found.pods == ()
    assert found.unlisted.startswith("the API server answers 403 to «list the pods of Deployment")


async def test_where_nothing_may_be_read_that_is_said(world: World) -> None:
    if world.lab is not None:
        world.lab.forbidden = {"elsewhere"}
    with pytest.raises(Refused, match="answers 403"):
        await KubernetesWorkloads(world.reads).workload("elsewhere", "tf")


async def test_more_pods_than_are_looked_at_are_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.preflight.security.cluster.MAX_PODS_N", 2)
    await world.deployment("many", "x/tf:2", SAFE)
    for n in range(3):
        await world.pod(f"many-{n}", "many", "x/tf:2", SAFE)
    found = await KubernetesWorkloads(world.reads).workload(NAMESPACE, "many")
    assert (len(found.pods), found.more) == (2, True)


async def test_an_api_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with KubeApi() as gone:
        kubeconfig = gone.kubeconfig(tmp_path / "kubeconfig")
    async with await connect(kubeconfig) as api:
        with pytest.raises(Unavailable, match="does not answer «read Deployment ml/tf»"):
            await KubernetesWorkloads(api).workload("ml", "tf")


async def test_an_answer_that_is_too_large_is_not_read_to_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.deployment("large", "x/tf:2", SAFE)
    monkeypatch.setattr("service.cluster.MAX_ANSWER_BYTES", 100)
    with pytest.raises(Refused, match="more than 100 bytes"):
        await KubernetesWorkloads(world.reads).workload(NAMESPACE, "large")
