"""What a turn of the tick costs in numbers: CPU of ``collect`` over many rollouts, per series and per rollout-window.

The lab's Prometheus runs in a process of its own, so that only Serinus' side is measured. Run:
``python -m tests.benchmarks.source_collect [--rollouts 1000] [--pods 2] [--turns 3]``
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import yaml

from service.lab.prometheus_api import PrometheusApi
from service.lab.world import CLASSES, EDGES_S
from service.model.names import RolloutId
from service.model.observation import Availability, WindowQuery
from service.model.preset import MetricsPreset
from service.sources.prometheus import PrometheusSource
from tests.stories import place

PRESET = Path(__file__).parents[2] / "config" / "metrics" / "http.yaml"
METRICS = ("latency", "errors", "predictions")
BEGAN_S = 1_700_000_000.0
SCRAPE_S = 15.0
WINDOW_S = 60.0
SCRAPES = 14


def series(rollouts: int, pods: int, scrape: int) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Every counter of every pod of both arms, as the scrape of this number sees it."""
    for n in range(rollouts):
        for version in ("v1", "v2"):
            for pod in range(pods):
                who = {"job": f"model-{n}", "version": version, "instance": f"10.0.{n % 250}.{pod}:8080"}
                total = 40.0 * scrape
                yield "http_requests_total", {**who, "code": "200"}, total
                yield "http_requests_total", {**who, "code": "503"}, scrape
                for i, bound in enumerate((*(repr(e) for e in EDGES_S), "+Inf")):
                    yield "model_latency_seconds_bucket", {**who, "le": bound}, total * (i + 1) // (len(EDGES_S) + 1)
                for name in CLASSES:
                    yield "model_predictions_total", {**who, "class": name}, total // len(CLASSES)


def serve(told: Connection, rollouts: int, pods: int) -> None:
    """The store, until it is told to end."""
    asyncio.run(_serve(told, rollouts, pods))


async def _serve(told: Connection, rollouts: int, pods: int) -> None:
    number = 0
    api = PrometheusApi(lambda: series(rollouts, pods, number))
    for number in range(SCRAPES):  # the scrape reads it
        api.scrape(BEGAN_S + number * SCRAPE_S)
    async with api:
        told.send(api.url)
        await asyncio.to_thread(told.recv)


def windows(rollouts: int) -> list[WindowQuery]:
    """One window a rollout; their ends lie within five seconds, as those of one turn do."""
    first = BEGAN_S + (SCRAPES - 6) * SCRAPE_S
    return [
        WindowQuery(
            RolloutId(f"r{n}"),
            "default",
            place(
                stable_labels={"job": f"model-{n}", "version": "v1"},
                canary_labels={"job": f"model-{n}", "version": "v2"},
            ),
            METRICS,
            first + n % 50 / 10,
            first + n % 50 / 10 + WINDOW_S,
        )
        for n in range(rollouts)
    ]


async def measure(url: str, rollouts: int, pods: int, turns: int) -> None:
    """Collect, and print what it cost."""
    preset = MetricsPreset.model_validate(yaml.safe_load(PRESET.read_text()))
    listed = sum(1 for _ in series(rollouts, pods, 1))
    async with aiohttp.ClientSession() as session:
        source = PrometheusSource(session, url, {"http": preset}, scrape_interval_s=SCRAPE_S, timeout_s=120)
        queries = windows(rollouts)
        print(f"{rollouts} rollouts, {len(METRICS)} metrics, {pods} pods an arm, {listed} series")
        for turn in range(turns):
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            late_s, watching = [0.0], asyncio.Event()
            watch = asyncio.create_task(_lateness(late_s, watching))
            rows = await source.collect(queries)
            watching.set()
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
            await watch
            wrong = [r for row in rows for r in row if r.availability is not Availability.ENOUGH]
            if wrong:
                raise SystemExit(f"{len(wrong)} readings are not whole, the first: {wrong[0]}")
            print(
                f"turn {turn + 1}: CPU {cpu_s:.2f} s = {1e6 * cpu_s / listed:.1f} us a series, "
                f"{1e3 * cpu_s / rollouts:.2f} ms a rollout-window; wall {wall_s:.1f} s (the lab's part included); "
                f"loop late by {1e3 * late_s[0]:.0f} ms at most"
            )


async def _lateness(worst_s: list[float], ended: asyncio.Event) -> None:
    """How long anything else on the loop would have had to wait."""
    while not ended.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.005)
        worst_s[0] = max(worst_s[0], time.perf_counter() - began - 0.005)


def main() -> None:
    """Read the arguments, start the store, measure, end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    store = context.Process(target=serve, args=(theirs, given.rollouts, given.pods), daemon=True)
    store.start()
    try:
        asyncio.run(measure(ours.recv(), given.rollouts, given.pods, given.turns))
    finally:
        ours.send("end")
        store.join(10)


if __name__ == "__main__":
    main()
