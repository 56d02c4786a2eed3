"""The preflight Job on a real API server: every field of it is known there, and its answer is read from its pod."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client

from service.cluster import connect
from service.model.gates.model import RuntimeJob
from service.preflight.saved_model.cluster import KubernetesJobs
from service.preflight.saved_model.job import asked_in_job, manifest
from service.ring.ports import Refused
from tests.real.parts import building
from tests.real.parts.kube import KubeApiServer
from tests.unit.preflight.saved_model.test_check import needs, use
from tests.unit.preflight.saved_model.test_job import ANSWER

pytestmark = pytest.mark.real

OF = RuntimeJob(
    image="registry.example/tensorflow:2.13.0", namespace="default", pull_secret="pull", runtime_class="gvisor"
)
NEEDS = needs(use("Relu"))


async def run_by_hand(api: client.ApiClient, job: dict[str, Any], uid: str, message: str) -> None:
    """What a Job's controller and a kubelet would do: make the pod of the template, and end its container."""
    core = client.CoreV1Api(api)
    template = job["spec"]["template"]
    # The runtime class is the cluster's own to have.
    spec = {key: value for key, value in template["spec"].items() if key != "runtimeClassName"}
    name = job["metadata"]["name"]
    labels = template["metadata"]["labels"] | {"job-name": name, "controller-uid": uid}
    pod = f"{name}-{uid[:5]}"
    body = {"metadata": {"name": pod, "labels": labels}, "spec": spec}
    await core.create_namespaced_pod("default", body, field_validation="Strict")
    ended = {"exitCode": 0, "reason": "Completed", "message": message}
    container = {"name": "check", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
    status = {"status": {"phase": "Succeeded", "containerStatuses": [container | {"state": {"terminated": ended}}]}}
    await core.patch_namespaced_pod_status(pod, "default", status)


async def test_the_job_is_known_field_by_field_and_its_answer_read_and_the_job_taken_away(tmp_path: Path):
    with KubeApiServer(building.apiserver(), tmp_path, fsync=False) as kube:
        api = await connect(Path(kube.kubeconfig))
        try:
            account = {"metadata": {"name": "default"}}
            await client.CoreV1Api(api).create_namespaced_service_account("default", account)
            job = manifest(NEEDS, OF, device="CPU")
            batch = client.CustomObjectsApi(api)
            checked: Any = await batch.create_namespaced_custom_object(
                "batch", "v1", "default", "jobs", job, dry_run="All", field_validation="Strict"
            )
            assert checked["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
            misspelt = {**job, "spec": {**job["spec"], "activeDeadlineSecond": 1}}
            with pytest.raises(client.ApiException, match="unknown field"):
                await batch.create_namespaced_custom_object(
                    "batch", "v1", "default", "jobs", misspelt, dry_run="All", field_validation="Strict"
                )

            jobs = KubernetesJobs(api)
            answer = ANSWER | {"versions": {"TensorFlow": "2.13.0", "Python": "3.11 äß"}}
            waits = 0

            async def sleep(_: float) -> None:
                nonlocal waits
                waits += 1
                if waits == 2:
                    made: Any = await batch.get_namespaced_custom_object(
                        "batch", "v1", "default", "jobs", job["metadata"]["name"]
                    )
                    await run_by_hand(api, job, made["metadata"]["uid"], json.dumps(answer))

            # What an earlier Job of this name said is nobody's answer.
            await run_by_hand(api, job, "earlier", "said before")
            await jobs.create("default", job)
            # It is there already, and asked all the same.
            assert await asked_in_job(jobs, NEEDS, OF, device="CPU", sleep=sleep) == answer
            assert waits == 2
            with pytest.raises(Refused, match="404"):
                await jobs.standing("default", job["metadata"]["name"])
            await jobs.delete("default", job["metadata"]["name"])
            with pytest.raises(Refused, match="is refused"):
                await jobs.create("default", {**job, "metadata": {"name": "Not_A_Name"}})
        finally:
            await api.close()
