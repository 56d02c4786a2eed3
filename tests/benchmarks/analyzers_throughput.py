"""Rollout-windows a second on one core, by arm (20 buckets, errors, 10 classes), by pod and of
what pods use, beside a plain yardstick.

The yardstick is numpy sorting a million floats in the same run, because machines differ: ratios hold, times do not.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from analyzers import Margins, Monitor, MonitorConfig, Window
from analyzers.resources import Measures, ResourceConfig, ResourceMonitor
from tests.calibration.pod_streams import PodLaw, pod_windows
from tests.calibration.resource_streams import ResourceLaw, resource_windows
from tests.calibration.streams import Law, windows

LENGTH = 30
REPEATS = 3


def rate(config: MonitorConfig, rollouts: int, stream: Sequence[Window]) -> tuple[float, int]:
    """(rollout-windows a second of process time, best of three; bytes of a row)."""
    best = 0.0
    for _ in range(REPEATS):
        monitor = Monitor(config, rollouts)
        began = time.process_time()
        for window in stream:
            monitor.observe(window)
        best = max(best, rollouts * len(stream) / (time.process_time() - began))
    return best, monitor.state().nbytes // rollouts


def rate_of_pods(measures: Measures, rows: int) -> tuple[float, int]:
    """The same of one resource of 2 canary and 16 stable pods, over enough windows for its slopes."""
    stream = list(resource_windows(ResourceLaw(measures=measures), rows, 4 * LENGTH, seed=1))
    best = 0.0
    for _ in range(REPEATS):
        monitor = ResourceMonitor(ResourceConfig(measures, 0.001, planned_windows=4320), rows)
        began = time.process_time()
        for window in stream:
            monitor.observe(window)
        best = max(best, rows * len(stream) / (time.process_time() - began))
    return best, monitor.state().nbytes // rows


def main() -> None:
    """Print the rates, the sizes of a row, and how long the import takes."""
    numbers = np.random.default_rng(1).random(1_000_000)
    began = time.process_time()
    np.sort(numbers)
    sort_s = time.process_time() - began
    by_arm = list(windows(Law(), 2000, LENGTH, seed=1))
    by_pod = list(pod_windows(PodLaw(pod_spread=0.03, noise=0.05), 256, LENGTH, seed=1))
    for name, rollouts, stream, margins in (
        ("by arm, without margins", 2000, by_arm, Margins.none()),
        ("by arm, with margins", 2000, by_arm, Margins()),
        ("by pod, 2 of 20", 256, by_pod, Margins()),
    ):
        per_second, size = rate(MonitorConfig(planned_windows=60, margins=margins), rollouts, stream)
        print(f"{name}: {per_second:,.0f} rollout-windows a second of one core ({per_second * sort_s:,.0f} in the time "
              f"of sorting a million floats), {size:,} bytes a rollout")  # fmt: skip
    for measures in ("load", "memory", "device-memory", "events"):
        per_second, size = rate_of_pods(measures, 250)
        print(f"pods' {measures}, 2 of 18: {per_second:,.0f} rows a second of one core "
              f"({per_second * sort_s:,.0f} in the time of sorting a million), {size:,} bytes a row")  # fmt: skip
    code = "import time; b = time.perf_counter(); import analyzers; print(time.perf_counter() - b)"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)
    ]
    print(f"import analyzers: {min(taken):.2f} to {max(taken):.2f} s in five runs")


if __name__ == "__main__":
    main()
