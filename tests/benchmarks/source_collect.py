"""What a turn of the tick costs in numbers: CPU of ``collect`` over many rollouts, per series and per rollout-window.

The store (``load_store``) is a process of its own, so that only Serinus' side is measured; what it spends itself is
printed beside. All windows end together, as those of one turn do. Run:
``python -m tests.benchmarks.source_collect [--rollouts 1000] [--pods 2] [--turns 3] [--sums always|never|auto]``
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path

import aiohttp
import yaml

from service.app.clock import SystemClock
from service.model.names import RolloutId
from service.model.observation import Availability, WindowQuery
from service.model.preset import MetricsPreset
from service.sources.prometheus import SUM_ABOVE_N, PrometheusSource
from tests.benchmarks.load_store import ARMS, LABELS, LoadStore
from tests.stories import place

PRESET = Path(__file__).parents[2] / "config" / "metrics" / "http.yaml"
METRICS = ("latency", "errors", "predictions")
SCRAPE_S = 15.0
WINDOW_S = 60.0
GRID_S = 5.0


def windows(rollouts: int, end_s: float) -> list[WindowQuery]:
    """One window a rollout."""
    return [
        WindowQuery(
            RolloutId(f"r{n}"),
            "default",
            place(
                stable_labels={"job": f"model-{n}", "version": "v1"},
                canary_labels={"job": f"model-{n}", "version": "v2"},
            ),
            METRICS,
            end_s - WINDOW_S,
            end_s,
        )
        for n in range(rollouts)
    ]


async def measure(store: LoadStore, turns: int, sums: str) -> None:
    """Collect, and print what it cost."""
    preset = MetricsPreset.model_validate(yaml.safe_load(PRESET.read_text()))
    rollouts, pods = store.load.rollouts, store.load.pods
    series = rollouts * len(ARMS) * pods * sum(len(values) for _, values in LABELS.values())
    outcomes: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        source = PrometheusSource(
            session,
            store.url,
            {"http": preset},
            clock=SystemClock(),
            scrape_interval_s=SCRAPE_S,
            timeout_s=120,
            sum_above_n={"always": 0, "never": 10**9, "auto": SUM_ABOVE_N}[sums],
            asked=lambda outcome, seconds: outcomes.update([outcome]),
        )
        print(
            f"{rollouts} rollouts, {len(METRICS)} metrics, {pods} pods an arm, {series} series; "
            f"summed up in the store: {sums}"
        )
        for turn in range(turns):
            queries = windows(rollouts, (time.time() - 2 * SCRAPE_S) // GRID_S * GRID_S)
            before, cpu_s, wall_s = store.spent(), time.process_time(), time.perf_counter()
            late_s, watching = [0.0], asyncio.Event()
            watch = asyncio.create_task(_lateness(late_s, watching))
            rows = await source.collect(queries)
            watching.set()
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
            await watch
            after = store.spent()
            wrong = [r for row in rows for r in row if r.availability not in (Availability.ENOUGH, Availability.FEW)]
            if wrong:
                raise SystemExit(f"{len(wrong)} readings are not whole, the first: {wrong[0]}")
            print(
                f"turn {turn + 1}: CPU {cpu_s:.2f} s = {1e6 * cpu_s / series:.1f} us a series, "
                f"{1e3 * cpu_s / rollouts:.2f} ms a rollout-window; {after.requests_n - before.requests_n} requests, "
                f"{(after.sent_bytes - before.sent_bytes) / rollouts:.0f} bytes a rollout-window; wall {wall_s:.1f} s; "
                f"loop late by {1e3 * late_s[0]:.0f} ms at most; the store spent {after.cpu_s - before.cpu_s:.2f} s"
            )
        print(f"questions by outcome: {dict(outcomes)}")


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
    parser.add_argument("--sums", choices=["always", "never", "auto"], default="auto")
    given = parser.parse_args()
    with LoadStore(given.rollouts, pods=given.pods) as store:
        asyncio.run(measure(store, given.turns, given.sums))


if __name__ == "__main__":
    main()
