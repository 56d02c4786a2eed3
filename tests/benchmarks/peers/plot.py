"""One picture: false alarms at the documented defaults, and delays at equal false alarms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.benchmarks.peers.measuring import ANY_PAIR, ORACLE, TOOLS, TUNED, Outcome, documented
from tests.benchmarks.peers.scenarios import FAULTS, LENGTH, NULLS

NEVER = 1.35 * LENGTH
"""Where medians that are infinite are drawn."""
LEAST_PERCENT = 0.03
"""Where no false alarm at all is drawn, on an axis of logarithms."""
TICKS = (1, 2, 3, 5, 10, 20, 30, 60)
MARKS = "o^vsDPX*<>ph"


def draw(outcome: Outcome, path: Path) -> bool:
    """Write the picture, in the format of the path's suffix; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl  # a development dependency, for this picture alone
    except ImportError:
        return False

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "peers", "font.size": 8})
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(16, 9), width_ratios=(2, 3), constrained_layout=True)
    settings = [key for tool in TOOLS for key in documented(tool)]
    for i, scenario in enumerate(NULLS):
        percent = [100 * outcome.null_alarms[scenario.name][key] / outcome.nulls for key in settings]
        at = np.arange(len(settings)) + 0.1 * (i - 3)
        left.plot(np.maximum(percent, LEAST_PERCENT), at, MARKS[i], label=scenario.name, markersize=5)
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set(xscale="log", xlabel=f"good releases rolled back, % of rollouts ({LEAST_PERCENT:g}: none)")
    left.set_yticks(range(len(settings)), [f"{name}\n{setting}" for name, setting in settings])
    left.set_title("False alarms at the documented settings; the line is 1 %")
    left.invert_yaxis()
    left.legend(loc="upper center", bbox_to_anchor=(0.3, -0.06), ncols=3)

    scenarios = [s for s in FAULTS if s.name in outcome.faults]
    for i, name in enumerate((ORACLE, ANY_PAIR, *(tool.name for tool in TOOLS))):
        rows = [outcome.faults[s.name].get((name, TUNED)) for s in scenarios]
        delay = [np.nan if row is None else min(row.median, NEVER) for row in rows]
        ours = name == TOOLS[0].name
        at = np.arange(len(scenarios)) + 0.065 * (i - 5)
        look = {"color": "black"} if i < 2 else {}
        right.plot(delay, at, MARKS[i], label=name, markersize=8 if ours else 5, zorder=3 if ours else 2, **look)
    right.axvline(LENGTH, color="grey", linewidth=0.8)
    right.set(xscale="log", xlabel="median windows from onset to rollback (right of the line: most are never found)")
    right.set_yticks(range(len(scenarios)), [s.name for s in scenarios])
    right.set_xticks(TICKS, [str(tick) for tick in TICKS])
    right.minorticks_off()
    right.set_title("Delay with every tool tuned to 1 % false alarms a rollout")
    right.invert_yaxis()
    right.grid(axis="y", alpha=0.3)
    right.legend(loc="upper center", bbox_to_anchor=(0.35, -0.06), ncols=4)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return True
