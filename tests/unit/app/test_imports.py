"""What a start costs: modules that take seconds or a hundred MiB are imported where they are used, if at all."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "kubernetes.aio.client.api.core_v1_api",
    "kubernetes.aio.client.api.apps_v1_api",
    "scipy.stats",
    "scipy.special",
    "statsmodels",
    "pandas",
    "tensorflow",
    "keras",
)


def test_the_service_and_its_gates_import_nothing_heavy() -> None:
    # The Kubernetes client imports its typed classes when one of them is first used, so adapters are made as well.
    look = f"""
import asyncio, sys
import service.app.run
from kubernetes.aio.client import ApiClient
from service.actuators.istio import IstioMesh
from service.preflight.saved_model.cluster import KubernetesJobs
from service.preflight.security.cluster import KubernetesWorkloads
from service.sources.pod_logs import PodLogSource

async def made():
    api = ApiClient()
    IstioMesh(api), KubernetesJobs(api), KubernetesWorkloads(api), PodLogSource(api, {{}}, clock=None)
    await api.close()

asyncio.run(made())
print([m for m in {HEAVY!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_help_imports_neither_the_service_nor_numpy() -> None:
    look = (
        "import sys\nfrom service.cli.main import app\n"
        "print([m for m in ('numpy', 'pydantic', 'aiohttp', 'service.app.run') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
