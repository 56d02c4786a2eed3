"""Rollout-windows a second on one core: latency in 20 buckets, errors and 10 classes together."""

from __future__ import annotations

import time

from analyzers import Margins, Monitor, MonitorConfig
from tests.calibration.streams import Law, windows

ROLLOUTS, LENGTH = 2000, 30


def main() -> None:
    """Print the rate with and without margins, and the size of a row."""
    for name, margins in (("without margins", Margins.none()), ("with margins", Margins())):
        monitor = Monitor(MonitorConfig(planned_windows=60, margins=margins), ROLLOUTS)
        spent_s = 0.0
        for window in windows(Law(), ROLLOUTS, LENGTH, seed=1):
            began = time.process_time()
            monitor.observe(window)
            spent_s += time.process_time() - began
        rate = ROLLOUTS * LENGTH / spent_s
        print(
            f"{name}: {rate:,.0f} rollout-windows a second of one core, {monitor.state().nbytes // ROLLOUTS} bytes each"
        )


if __name__ == "__main__":
    main()
