"""The gates before any traffic, wired from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from kubernetes.aio import client

from service.app.preflight import outside_of, registry_logins_of
from service.model.gates.report import Candidate, GateReport
from service.preflight.gates import Look, PreflightGates
from service.preflight.golden.gate import GoldenReplay
from service.preflight.image.gate import ImageLook
from service.preflight.registries import RegistryImages
from service.preflight.report import could_not_look
from service.preflight.saved_model.cluster import KubernetesJobs
from service.preflight.saved_model.gate import ModelPreflight
from service.preflight.security.cluster import KubernetesWorkloads
from service.preflight.security.gate import SecurityLook
from service.preflight.security.sources import ReportSources
from service.settings import PreflightSettings


@asynccontextmanager
async def open_gates(
    settings: PreflightSettings, clusters: Mapping[str, client.ApiClient]
) -> AsyncIterator[PreflightGates]:
    """Every gate for every cluster, with what they reach the outside by."""
    logins = partial(registry_logins_of, settings)
    logins()  # a file that cannot be read stops the start-up; later it may come and go
    async with outside_of(settings) as outside:
        images = RegistryImages(outside, logins)
        reports = ReportSources(folder=settings.reports_dir, outside=outside, images=images)
        common: dict[str, Look] = {"image": ImageLook(outside, logins).look}
        if settings.requests_dir is None:
            common["golden"] = _unset("golden", "requests_dir")
        else:
            common["golden"] = GoldenReplay(settings.requests_dir).look
        yield PreflightGates(
            {
                name: {
                    **common,
                    "security": SecurityLook(reports, KubernetesWorkloads(api), images=images).look,
                    "model": _unset("model", "models_dir")
                    if settings.models_dir is None
                    else ModelPreflight(models=settings.models_dir, jobs=KubernetesJobs(api)).look,
                }
                for name, api in clusters.items()
            }
        )


def _unset(gate: str, key: str) -> Look:
    async def look(rule: object, subject: object, of: Candidate) -> GateReport:
        return could_not_look(
            gate, f"preflight.{key} is not set.", f"Set preflight.{key} to the folder with the files."
        )

    return look
