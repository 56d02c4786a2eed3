"""The shipped presets on what the exporters print: every metric of every preset is read, with the counts that were."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from service.app import doctor
from service.lab.prometheus_api import PrometheusApi
from service.model.names import Arm, RolloutId
from service.model.observation import (
    ArmValues,
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    Reading,
    WindowQuery,
)
from service.model.preset import MetricsPreset, ValueExpression
from service.model.target import Target
from service.ring.ports import Refused, Unavailable
from service.sources import promql
from service.sources.prometheus import PrometheusSource
from tests.contract.source import expositions
from tests.contract.source.expositions import Served
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
        Server("vllm", expositions.vllm, "version", {"waiting": (2.0, 2.0), "cache": (0.25, 0.25)}),
    )
}
STABLE, CANARY = "v1", "v2"


def preset_of(name: str) -> MetricsPreset:
    """As shipped, without the metrics of log lines, which are not read from a metric store."""
    given = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    given["metrics"] = {name: series for name, series in given["metrics"].items() if series["kind"] != "logs"}
    return MetricsPreset.model_validate(given)


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
            yield from expositions.samples(text, {"job": "serving", "pod": f"ranker-{version}", **arm})

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
        stable_labels={"job": "serving", server.label: STABLE},
        canary_labels={"job": "serving", server.label: CANARY},
    )
    return WindowQuery(RolloutId("r"), "default", where, tuple(preset_of(server.preset).metrics), start, end)


def answer_values(world: Scraped, server: Server) -> None:
    """The lab answers expressions by their text; a real store works them out."""
    for name, series in preset_of(server.preset).metrics.items():
        if isinstance(series, ValueExpression):
            for arm, version in ((Arm.CANARY, CANARY), (Arm.STABLE, STABLE)):
                matchers = promql.selector({"job": "serving", server.label: version})
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
            "labels": {"job": "serving"},
            "stable_labels": {server.label: "${stable_version}"},
            "canary_labels": {server.label: "${canary_version}"},
            "policy": "p",
        }
    )
    presets = {server.preset: preset_of(server.preset)}
    async with scraped(server) as (world, source):
        world.scrape()
        assert "no series lacks its label" in await doctor.labels_of(source, presets, [target])
    async with scraped(server, labelled=False) as (world, source):
        world.scrape()
        with pytest.raises(Refused) as refused:
            await doctor.labels_of(source, presets, [target])
        said = str(refused.value)
        bare = {name for name, labels, _ in world.series() if server.label not in labels}
    used = {name for one in presets[server.preset].metrics.values() if hasattr(one, "names") for name in one.names}
    assert bare & used
    for name in used:
        # Knative's queue proxy tells its revision by itself.
        assert (f"{name} (" in said) == (name in bare)
    assert f"no label {server.label!r} on " in said
    assert f"{{source_labels: [__meta_kubernetes_pod_label_{server.label}], target_label: {server.label}}}" in said
    assert "no label 'job'" not in said


async def test_the_doctor_counts_the_series_that_lack_the_label_among_all() -> None:
    server = SERVERS["tensorflow-serving"]
    async with scraped(server) as (world, source):
        world.scrape()
        found = await source.lacking_n(":tensorflow:serving:request_count", "version", {"job": "serving"})
        assert found == (0, 4)
        world.labelled = False
        world.scrape()
        found = await source.lacking_n(":tensorflow:serving:request_count", "version", {"job": "serving"})
        assert found == (4, 8)
        assert await source.lacking_n("nothing_total", "version", {}) == (0, 0)
        world.api.away = True
        with pytest.raises(Unavailable, match="does not say which labels"):
            await source.lacking_n("nothing_total", "version", {})
