"""The gates before any traffic, wired from the settings."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from kubernetes.aio import client

from service.model.gates.report import Candidate, GateReport
from service.preflight.gates import Look, PreflightGates, could_not_look
from service.preflight.golden.gate import GoldenReplay
from service.preflight.image.credentials import Credentials
from service.preflight.image.gate import ImageLook
from service.preflight.outside import Allowed, Outside
from service.preflight.registries import RegistryImages
from service.preflight.saved_model.cluster import KubernetesJobs
from service.preflight.saved_model.gate import ModelPreflight
from service.preflight.security.cluster import KubernetesWorkloads
from service.preflight.security.gate import SecurityLook
from service.preflight.security.sources import ReportSources
from service.settings import PreflightSettings, SettingsError, read_secret


@asynccontextmanager
async def open_gates(
    settings: PreflightSettings, clusters: Mapping[str, client.ApiClient]
) -> AsyncIterator[PreflightGates]:
    """Every gate for every cluster, with what they reach the outside by."""
    credentials = _credentials(settings)
    async with (
        Outside(Allowed.listed(settings.allowed_hosts), tls=_tls(settings)) as outside,
        # No cookies: an answer must not depend on the one before.
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        images = RegistryImages(outside, credentials)
        reports = ReportSources(folder=settings.reports_dir, outside=outside, images=images)
        common: dict[str, Look] = {"image": ImageLook(outside, credentials).look}
        if settings.requests_dir is None:
            common["golden"] = _unset("golden", "requests_dir")
        else:
            common["golden"] = GoldenReplay(session, settings.requests_dir).look
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


def _credentials(settings: PreflightSettings) -> Credentials | None:
    text = read_secret(settings.registry_logins_file)
    if text is None:
        return None
    try:
        return Credentials.from_docker_config(text)
    except ValueError as error:
        raise SettingsError(f"preflight.registry_logins_file {settings.registry_logins_file}: {error}") from error


def _tls(settings: PreflightSettings) -> ssl.SSLContext | None:
    if settings.ca_file is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=settings.ca_file)
    except OSError as error:
        raise SettingsError(f"preflight.ca_file {settings.ca_file} cannot be read: {error}") from error
    return context
