"""The shipped presets on what the exporters print: every metric of every preset is read, with the counts that were."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from service.app import doctor
from service.app.clock import SystemClock
from service.lab.prometheus_api import PrometheusApi
from service.model.names import Arm, RolloutId
from service.model.observation import (
    ArmValues,
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    PodValues,
    Reading,
    WindowQuery,
)
from service.model.preset import MetricsPreset, ValueExpression
from service.model.target import Target
from service.ring.ports import Refused, Unavailable
from service.sources import promql
from service.sources.prometheus import PrometheusSource
from tests.contract.source import expositions
from tests.contract.source.expositions import Served, Used
from tests.stories import place

FOLDER = Path(__file__).parents[3] / "config" / "metrics"
START = 1_000_000.0
SCRAPE_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A kind of server: its preset, what it prints, and the label by which its arms are told apart."""

    preset: str
    prints: Callable[[Served], str]
    label: str
    values: Mapping[str, tuple[float, float]]
    """Metrics of kind value: what the canary's and stable's expressions give."""


SERVERS = {
    one.preset: one
    for one in (
        Server("tensorflow-serving", expositions.tensorflow_serving, "version", {}),
        Server("triton", expositions.triton, "release", {"mean-us": (30_000.0, 20_000.0), "pending": (3.0, 3.0)}),
        Server("kserve", expositions.kserve, "revision_name", {}),
        Server("kserve-otel", expositions.kserve_otel, "revision_name", {}),
        Server("vllm", expositions.vllm, "version", {"waiting": (2.0, 2.0), "cache": (0.25, 0.25)}),
    )
}
STABLE, CANARY = "v1", "v2"


def shipped(name: str) -> MetricsPreset:
    """As it is read from its file."""
    return MetricsPreset.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def preset_of(name: str) -> MetricsPreset:
    """As shipped, without the metrics of log lines, which no metric store has, and what is included from exporters of
    pods, which are scraped apart."""
    preset = shipped(name)
    own = {name: series for name, series in preset.metrics.items() if series.kind != "logs"}
    return preset.model_copy(update={"metrics": own, "includes": ()})


class Scraped:
    """Two pods of a kind of server, scraped into the lab's store."""

    def __init__(self, server: Server, *, labelled: bool = True) -> None:
        self.server = server
        self.pods = {STABLE: Served(1000, 10), CANARY: Served(100, 1, took_s=0.03)}
        self.labelled = labelled
        self.moment = START
        self.api = PrometheusApi(self.series)

    def series(self) -> Any:
        for version, pod in self.pods.items():
            arm = {self.server.label: version} if self.labelled else {}
            text = self.server.prints(pod).replace("REVISION", version)
            yield from expositions.samples(text, {"job": self.server.preset, "pod": f"ranker-{version}", **arm})

    def serve(self, version: str, answered: int, failed: int) -> None:
        """So many more requests, then a scrape."""
        pod = self.pods[version]
        self.pods[version] = replace(pod, answered=pod.answered + answered, failed=pod.failed + failed)

    def scrape(self) -> float:
        """Scrape now; a moment after it."""
        self.moment += SCRAPE_S
        self.api.scrape(self.moment)
        return self.moment + 1

    def now(self) -> datetime:
        """The doctor's clock."""
        return datetime.fromtimestamp(self.moment + 1, UTC)

    async def sleep(self, seconds: float) -> None:
        """Not used."""


@asynccontextmanager
async def scraped(server: Server, **given: Any) -> AsyncIterator[tuple[Scraped, PrometheusSource]]:
    world = Scraped(server, **given)
    async with world.api, aiohttp.ClientSession() as session:
        presets = {server.preset: preset_of(server.preset)}
        yield world, PrometheusSource(session, world.api.url, presets, clock=world, scrape_interval_s=SCRAPE_S)


def query(server: Server, start: float, end: float) -> WindowQuery:
    where = place(
        metrics=server.preset,
        stable_labels={"job": server.preset, server.label: STABLE},
        canary_labels={"job": server.preset, server.label: CANARY},
    )
    return WindowQuery(RolloutId("r"), "default", where, tuple(preset_of(server.preset).metrics), start, end)


def answer_values(world: Scraped, server: Server) -> None:
    """The lab answers expressions by their text; a real store works them out."""
    for name, series in preset_of(server.preset).metrics.items():
        if isinstance(series, ValueExpression):
            for arm, version in ((Arm.CANARY, CANARY), (Arm.STABLE, STABLE)):
                matchers = promql.selector({"job": server.preset, server.label: version})
                value = server.values[name][arm is Arm.STABLE]
                world.api.expressions[series.promql.replace("$matchers", matchers)] = value


def expect(readings: list[Reading], server: Server) -> None:
    """Nothing is missing, and the counts are those that were served: 40 and 2 by the canary, 400 and 1 by stable."""
    assert {reading.metric for reading in readings} == set(preset_of(server.preset).metrics)
    for reading in readings:
        assert reading.availability is Availability.ENOUGH, reading
        match reading.counts:
            case FailureCounts():
                assert reading.counts == FailureCounts(2, 42, 1, 401)
            case HistogramCounts(edges, canary, stable):
                assert (sum(canary), sum(stable)) == (40, 400)
                for counts, took_s in ((canary, 0.03), (stable, 0.02)):
                    at = next(i for i, n in enumerate(counts) if n)
                    # The bucket that holds them reaches over the time that they took, in seconds.
                    assert (0 if at == 0 else edges[at - 1]) < took_s <= edges[at]
            case CategoryCounts(names, canary, stable):
                assert dict(zip(names, zip(canary, stable, strict=True), strict=True))["stop"] == (32, 320)
            case ArmValues(canary=value, stable=other):
                assert (value, other) == pytest.approx(server.values[reading.metric], rel=0.02)
            case _:
                pytest.fail(f"{reading} is of no kind that is known here")


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_every_metric_of_the_preset_is_read_from_what_the_exporter_prints(server: Server) -> None:
    async with scraped(server) as (world, source):
        answer_values(world, server)
        start = world.scrape()
        world.serve(CANARY, 40, 2)
        world.serve(STABLE, 400, 1)
        end = world.scrape()
        ((*readings,),) = await source.collect([query(server, start, end)])
    expect(readings, server)


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_the_doctor_says_which_series_lack_which_label_and_what_to_add(server: Server) -> None:
    target = Target.model_validate(
        {
            "namespace": "ml-serving",
            "service": "*",
            "route": {"virtual_service": "r", "stable": {"host": "h"}, "canary": {"host": "h"}},
            "metrics": server.preset,
            "labels": {"job": server.preset},
            "stable_labels": {server.label: "${stable_version}"},
            "canary_labels": {server.label: "${canary_version}"},
            "policy": "p",
        }
    )
    presets = {server.preset: preset_of(server.preset)}
    async with scraped(server) as (world, source):
        world.scrape()
        assert "no series lacks its label" in await doctor.labels_of(source, [(target, presets[server.preset])])
    async with scraped(server, labelled=False) as (world, source):
        world.scrape()
        with pytest.raises(Refused) as refused:
            await doctor.labels_of(source, [(target, presets[server.preset])])
        said = str(refused.value)
        bare = {name for name, labels, _ in world.series() if server.label not in labels}
    used = {name for one in presets[server.preset].metrics.values() if hasattr(one, "names") for name in one.names}
    assert bare & used
    for name in used:
        # Knative's queue proxy tells its revision by itself.
        assert (f"{name} (" in said) == (name in bare)
    assert f"no label {server.label!r} on " in said
    pods = presets[server.preset].pods
    own = (pods.by if pods else {}).get(server.label, server.label).removeprefix("label_")
    assert f"{{source_labels: [__meta_kubernetes_pod_label_{own}], target_label: {server.label}}}" in said
    assert "no label 'job'" not in said


class Pods:
    """Two pods of stable and one of the canary, as the exporters of a cluster tell of them."""

    def __init__(self) -> None:
        self.pods = {
            "ranker-v1-a": Used(STABLE),
            "ranker-v1-b": Used(STABLE, memory_bytes=2 << 30),
            "ranker-v2-a": Used(CANARY, memory_bytes=3 << 30, gpu_used_mib=7000, gpu_free_mib=8000),
        }

    def serve(self) -> None:
        """A minute of work: stable's pods use 30 s of CPU and are throttled in a tenth of the periods, the canary twice
        that, and it is restarted once."""
        for pod, used in self.pods.items():
            new = used.version == CANARY
            self.pods[pod] = replace(
                used,
                cpu_s=used.cpu_s + (60 if new else 30),
                periods=used.periods + 600,
                throttled=used.throttled + (120 if new else 60),
                restarts=used.restarts + new,
            )

    def texts(self, at_s: float) -> list[str]:
        """What the three exporters print."""
        return [
            expositions.cadvisor(self.pods, round(1000 * at_s)),
            expositions.kube_state_metrics(self.pods, at_s - 7200),
            expositions.dcgm(self.pods),
        ]


RESOURCES: dict[str, tuple[dict[str, float], float | None]] = {
    "cpu": ({"a": 30.0, "b": 30.0, "canary": 60.0}, None),
    "throttling": ({"a": 0.1, "b": 0.1, "canary": 0.2}, None),
    "memory": ({"a": 3 << 30, "b": 2 << 30, "canary": 3 << 30}, 4 << 30),
    "oom-kills": ({"a": 0.0, "b": 0.0, "canary": 0.0}, None),
    "restarts": ({"a": 0.0, "b": 0.0, "canary": 1.0}, None),
    "ready": ({"a": 1.0, "b": 1.0, "canary": 1.0}, None),
    "gpu-load": ({"a": 0.4, "b": 0.4, "canary": 0.4}, None),
    "gpu-memory": ({"a": 6000.0, "b": 6000.0, "canary": 7000.0}, 15_000.0),
}
"""Each resource's value of each pod, and the limit of all."""
EXPORTERS = {name: shipped(name) for name in ("cadvisor", "kube-state-metrics", "dcgm")}


def pod_query(start: float, end: float) -> WindowQuery:
    """All resources of the preset that includes the exporters."""
    return replace(query(SERVERS["tensorflow-serving"], start, end), metrics=tuple(RESOURCES))


def expect_resources(readings: list[Reading]) -> None:
    """Every resource of every pod is there, a restart and a limit among them."""
    assert {reading.metric for reading in readings} == set(RESOURCES)
    for reading in readings:
        values, limit = RESOURCES[reading.metric]
        assert reading.availability is Availability.ENOUGH, reading
        counts = reading.counts
        assert isinstance(counts, PodValues)
        found = {one.pod.rpartition("-")[2]: one for one in counts.stable}
        (canary,) = counts.canary
        assert canary.pod == "ml-serving/ranker-v2-a"
        assert {name: one.value for name, one in {**found, "canary": canary}.items()} == pytest.approx(values)
        assert {one.limit for one in (*counts.stable, canary)} == {limit}
        assert canary.age_s == pytest.approx(7200, abs=120)


def test_all_resources_of_the_shipped_exporters_are_looked_at_here() -> None:
    assert {name for preset in EXPORTERS.values() for name in preset.metrics} == set(RESOURCES)
    for server in ("http", "istio", *SERVERS):
        assert set(RESOURCES) < set(shipped(server).with_included(EXPORTERS).metrics)


async def test_what_pods_use_is_read_from_what_three_exporters_print() -> None:
    cluster, moment = Pods(), START
    api = PrometheusApi(
        lambda: (one for text in cluster.texts(moment) for one in expositions.samples(text, {"job": "exporter"}))
    )
    preset = shipped("tensorflow-serving").with_included(EXPORTERS)
    async with api, aiohttp.ClientSession() as session:
        source = PrometheusSource(
            session, api.url, {preset.name: preset}, clock=SystemClock(), scrape_interval_s=SCRAPE_S
        )
        api.scrape(moment)
        cluster.serve()
        moment += SCRAPE_S
        api.scrape(moment)
        ((*readings,),) = await source.collect([pod_query(START + 1, moment + 1)])
        expect_resources(readings)
        cluster.pods = {name: used for name, used in cluster.pods.items() if used.version != CANARY}
        ((*readings,),) = await source.collect([pod_query(moment + 3600, moment + 3660)])
    # Exporters that are gone are no zeros.
    assert not any(reading.availability.usable for reading in readings)


def target_of(preset: MetricsPreset) -> Target:
    """One that tells its arms apart by ``version``."""
    return Target.model_validate(
        {
            "namespace": "ml-serving",
            "service": "*",
            "route": {"virtual_service": "r", "stable": {"host": "h"}, "canary": {"host": "h"}},
            "metrics": preset.name,
            "stable_labels": {"version": "${stable_version}"},
            "canary_labels": {"version": "${canary_version}"},
            "policy": "p",
        }
    )


async def test_the_doctor_says_what_to_start_an_exporter_with_that_shows_no_labels_of_pods() -> None:
    pods, preset = Pods().pods, EXPORTERS["kube-state-metrics"]
    target = target_of(preset)
    for allowed in (True, False):
        text = expositions.kube_state_metrics(pods, START - 7200, allowed=allowed)
        api = PrometheusApi(partial(expositions.samples, text, {"job": "exporter"}))
        async with api, aiohttp.ClientSession() as session:
            clock = SystemClock()
            api.scrape(clock.now().timestamp())
            source = PrometheusSource(session, api.url, {}, clock=clock, scrape_interval_s=SCRAPE_S)
            if allowed:
                assert "no series lacks its label" in await doctor.labels_of(source, [(target, preset)])
                continue
            with pytest.raises(Refused) as refused:
                await doctor.labels_of(source, [(target, preset)])
    assert str(refused.value) == (
        "no label 'label_version' on kube_pod_labels (no series, though kube_pod_start_time has 3); "
        "start kube-state-metrics with --metric-labels-allowlist=pods=[version]"
    )


async def test_the_doctor_counts_the_series_that_lack_the_label_among_all() -> None:
    server = SERVERS["tensorflow-serving"]
    async with scraped(server) as (world, source):
        world.scrape()
        found = await source.lacking_n(":tensorflow:serving:request_count", "version", {"job": server.preset})
        assert found == (0, 4)
        world.labelled = False
        world.scrape()
        found = await source.lacking_n(":tensorflow:serving:request_count", "version", {"job": server.preset})
        assert found == (4, 8)
        assert await source.lacking_n("nothing_total", "version", {}) == (0, 0)
        world.api.away = True
        with pytest.raises(Unavailable, match="does not say which labels"):
            await source.lacking_n("nothing_total", "version", {})
