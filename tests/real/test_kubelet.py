"""The preset of cAdvisor on what a kubelet prints of pods that run: processes in cgroups, throttled, out of memory.

What is real and what is not, tests/real/parts/kubelet.py says. Pods' versions come from kube-state-metrics, whose text
is written here.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from service.app.clock import SystemClock
from service.model.names import RolloutId
from service.model.observation import Availability, PodValue, PodValues, Reading, WindowQuery
from service.model.preset import ResourceSeries
from service.sources.prometheus import PrometheusSource
from tests.contract.source import expositions
from tests.contract.source.expositions import Used
from tests.contract.source.test_shipped_presets import CANARY, STABLE, shipped
from tests.real.parts.building import prometheus
from tests.real.parts.cgroups import NoCgroups
from tests.real.parts.kubelet import NAMESPACE, Container, Node, Pod, node
from tests.real.parts.prometheus import PrometheusServer
from tests.stories import place

pytestmark = pytest.mark.real

MIB = 1 << 20
SCRAPE_S = 1.0
STORED_WITHIN_S = 60.0
INTERPRETERS_MIB = 32
"""What two Python processes take beside what they hold; less where their pages are counted elsewhere."""
PRESET = shipped("cadvisor")
SIDECAR = Container("sidecar", held_mib=8, busy_share=0.02, cpus=0.1, memory_bytes=64 * MIB)
GOOD = (Container("serving", held_mib=32, busy_share=0.05, cpus=0.5, memory_bytes=128 * MIB), SIDECAR)
BAD = (Container("serving", held_mib=64, busy_share=1.0, cpus=0.1, memory_bytes=128 * MIB), SIDECAR)
"""Twice the memory, and less CPU than it needs."""
HELD = {"ranker-v1-a": 40, "ranker-v1-b": 40, "ranker-v2-a": 72}
NEW = "ranker-v2-a"


def pods() -> dict[str, Pod]:
    """Two of stable and a canary, each with a sidecar, as in a service mesh."""
    return {name: Pod(name, BAD if name == NEW else GOOD) for name in HELD}


@pytest.fixture
def machine() -> Iterator[Node]:
    """A node without pods. Cgroups are made by root alone."""
    try:
        with node() as made:
            yield made
    except NoCgroups as refused:
        pytest.skip(f"a kubelet has nothing to measure: {refused}")


class Store:
    """A real Prometheus that scrapes the kubelet, and text of kube-state-metrics."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def ask(self, promql: str) -> list[Any]:
        """An instant query's samples."""
        async with self._session.get(f"{self._url}/api/v1/query", params={"query": promql}) as answer:
            found: list[Any] = (await answer.json())["data"]["result"]
            return found

    async def until(self, promql: str, holds: Callable[[list[float]], bool]) -> float:
        """Wait until what is stored holds; a moment after it."""
        async with asyncio.timeout(STORED_WITHIN_S):
            while not holds([float(one["value"][1]) for one in await self.ask(promql)]):
                await asyncio.sleep(0.2)
        return time.time()

    async def read(self, start: float, end: float) -> dict[str, Reading]:
        """What the preset's metrics read in a window, by metric."""
        where = place(metrics=PRESET.name, stable_labels={"version": STABLE}, canary_labels={"version": CANARY})
        query = WindowQuery(RolloutId("r"), NAMESPACE, where, tuple(PRESET.metrics), start, end)
        source = PrometheusSource(
            self._session, self._url, {PRESET.name: PRESET}, clock=SystemClock(), scrape_interval_s=SCRAPE_S
        )
        ((*readings,),) = await source.collect([query])
        return {one.metric: one for one in readings}


@asynccontextmanager
async def stored(folder: Path, machine: Node, running: Sequence[Pod]) -> AsyncIterator[Store]:
    """The kubelet runs and is scraped."""
    versions = {one.name: Used(one.name.split("-")[1]) for one in running}
    began = time.time()

    async def kube_state_metrics(_: web.Request) -> web.Response:
        return web.Response(text=expositions.kube_state_metrics(versions, began))

    app = web.Application()
    app.router.add_get("/metrics", kube_state_metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    jobs = {"kubelet": machine.address, "kube-state-metrics": f"127.0.0.1:{runner.addresses[0][1]}"}
    server = await asyncio.to_thread(lambda: PrometheusServer(prometheus(), folder, jobs))
    server.aim("kubelet", machine.address, __metrics_path__="/metrics/cadvisor")
    try:
        await asyncio.to_thread(machine.start)
        await asyncio.to_thread(server.start)
        async with aiohttp.ClientSession() as session:
            yield Store(session, server.url)
    finally:
        await asyncio.to_thread(server.stop)
        await runner.cleanup()


def by_pod(counts: PodValues) -> dict[str, PodValue]:
    assert [one.pod for one in counts.canary] == [f"{NAMESPACE}/{NEW}"]
    out = {one.pod.removeprefix(f"{NAMESPACE}/"): one for one in (*counts.stable, *counts.canary)}
    assert set(out) == set(HELD)
    return out


def values(reading: Reading) -> PodValues:
    assert reading.availability is Availability.ENOUGH, reading
    assert isinstance(reading.counts, PodValues)
    return reading.counts


async def test_what_pods_use_is_read_from_what_a_real_kubelet_prints(tmp_path: Path, machine: Node) -> None:
    running = pods()
    for one in running.values():
        await asyncio.to_thread(machine.run, one)
    async with stored(tmp_path, machine, [*running.values()]) as store:
        periods = 'container_cpu_cfs_periods_total{container="serving"}'
        start = await store.until(periods, lambda n: len(n) == 3)
        before = {one.name: machine.cpu_s(one) for one in running.values()}
        (first,) = await store.ask(f"min({periods})")
        end = await store.until(f"min({periods})", lambda n: n[0] >= float(first["value"][1]) + 150)
        used = {one.name: machine.cpu_s(one) - before[one.name] for one in running.values()}
        found = await store.read(start, end)
    assert set(found) == set(PRESET.metrics) == {"cpu", "throttling", "memory", "oom-kills"}
    by_metric = {metric: by_pod(values(reading)) for metric, reading in found.items()}
    for pod, held_mib in HELD.items():
        # Samples lie up to two seconds from the window's edges. Of the pod's own series the sum would be twice that.
        assert by_metric["cpu"][pod].value == pytest.approx(used[pod], rel=0.5)
        memory = by_metric["memory"][pod]
        assert held_mib * MIB <= memory.value <= (held_mib + INTERPRETERS_MIB) * MIB
        assert memory.limit == 192 * MIB
        assert by_metric["oom-kills"][pod].value == 0
        throttled = by_metric["throttling"][pod].value
        assert 0 <= throttled <= 1
        if pod != NEW:
            assert throttled < 0.3 < 0.6 < by_metric["throttling"][NEW].value


async def test_a_kill_inside_a_container_counts_and_a_new_container_counts_from_nothing(
    tmp_path: Path, machine: Node
) -> None:
    if Path("/proc/sys/vm/panic_on_oom").read_text().strip() == "2":
        pytest.skip("this machine is set to panic where a cgroup runs out of memory (vm.panic_on_oom=2)")
    if not os.access("/dev/kmsg", os.R_OK):
        pytest.skip("this user may not read /dev/kmsg, by which cAdvisor hears of kills")
    running = pods()
    for one in running.values():
        await asyncio.to_thread(machine.run, one)
    canary = running[NEW]
    kills = f'container_oom_events_total{{container="serving",pod="{NEW}"}}'
    async with stored(tmp_path, machine, [*running.values()]) as store:
        start = await store.until('container_oom_events_total{container="serving"}', lambda n: len(n) == 3)
        machine.run_out_of_memory(canary, "serving")
        killed = await store.until(kills, lambda n: n == [1])
        found = await store.read(start, killed)
        kept = by_pod(values(found["oom-kills"]))
        assert {name: one.value for name, one in kept.items()} == {name: float(name == NEW) for name in HELD}
        assert canary.processes["serving"].poll() is None
        await asyncio.to_thread(machine.replace, canary, "serving")
        # The old container's series is still within the store's lookback: its samples carry their own moment.
        new = kills.replace("{", f'{{name="{canary.ids["serving"]}",')
        again = await store.until(new, lambda n: n == [0])
        found = await store.read(killed, again)
        assert by_pod(values(found["oom-kills"]))[NEW].value == 0
        memory = by_pod(values(found["memory"]))[NEW]
        assert memory.value <= (HELD[NEW] + INTERPRETERS_MIB) * MIB
        assert memory.limit == 192 * MIB


SAMPLE = re.compile(r"(?P<name>[a-z_]+)\{(?P<labels>.*)\} (?P<value>[0-9.e+-]+)(?P<moment> [0-9]{13})?")
FAMILIES = frozenset(name for one in PRESET.metrics.values() if isinstance(one, ResourceSeries) for name in one.names)


def form(text: str) -> list[tuple[str, ...]]:
    """What an exposition says of the preset's families, in its order, without its values: HELP and TYPE lines, and
    whose samples there are, with which labels in which order, with a moment or without."""
    out: list[tuple[str, ...]] = []
    for line in text.splitlines():
        if line.startswith("#"):
            if line.split()[2] in FAMILIES:
                out.append((line,))
        elif line.partition("{")[0] in FAMILIES:
            found = SAMPLE.fullmatch(line)
            assert found is not None, line
            assert found["value"] == expositions.go_float(float(found["value"]))
            labels = dict(re.findall(r'([a-z_]+)="([^"]*)"', found["labels"]))
            whose = labels["container"] or labels["image"] or labels["pod"] or labels["id"].rpartition("/")[2]
            out.append((found["name"], whose, ",".join(labels), "with its moment" if found["moment"] else ""))
    return out


async def test_what_the_tests_without_a_kubelet_read_has_the_form_of_what_one_prints(machine: Node) -> None:
    limited = Pod("limited", (Container("serving", held_mib=8, busy_share=0.1, cpus=0.5, memory_bytes=64 * MIB),))
    unlimited = Pod("unlimited", (Container("serving", held_mib=8, busy_share=0.1),))
    for one in (limited, unlimited):
        await asyncio.to_thread(machine.run, one)
    await asyncio.to_thread(machine.start)
    imitated = expositions.cadvisor({"limited": Used(STABLE), "unlimited": Used(STABLE, limited=False)}, 1795695524725)
    async with asyncio.timeout(STORED_WITHIN_S):
        # cAdvisor tells of a container from its first measurement on.
        while (text := await asyncio.to_thread(machine.text)).count("container_oom_events_total{") < 9:
            await asyncio.sleep(0.2)
    assert sorted(form(text)) == sorted(form(imitated))
    families = [line for line, *rest in form(text) if not rest]
    assert families == [line for line, *rest in form(imitated) if not rest]
