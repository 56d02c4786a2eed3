"""Every stream is drawn once and handed to every tool: first the nulls that tune, then other nulls, then the faults."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.peers import bands, growthbook, kayenta, mann_whitney, oracle, rules, serinus
from tests.benchmarks.peers.contest import (
    Found,
    Scores,
    Thresholds,
    Tool,
    first_reached,
    found,
    highest,
    reached_share,
    tuned,
)
from tests.benchmarks.peers.scenarios import CLEAN, FAULTS, LENGTH, NULLS, Scenario
from tests.benchmarks.peers.stream import Stream, gather
from tests.calibration.streams import Law

Array = NDArray[np.float64]

TOOLS: tuple[Tool, ...] = (
    serinus.FIRST_RELEASE, serinus.LATER_RELEASE, mann_whitney.TOOL, kayenta.TOOL, growthbook.ONE_TO_ONE,
    growthbook.ALL_OF_STABLE, bands.TOOL, rules.FLAGGER, rules.ARGO,
)  # fmt: skip
OWN = frozenset({serinus.FIRST_RELEASE.name, serinus.LATER_RELEASE.name})
ORACLE, ANY_PAIR = "Oracle", "Oracle, pair unknown"
TUNED = "1 % false alarms"
"""Thresholds that hold on good releases of the scenario's own law."""
KEPT = "1 % false alarms in every kind"
"""One threshold a tool that holds on good releases of every law: what an operator could really set."""

AT_ONCE = 1000
"""Rollouts of a stream that are held in memory together."""
CHECKED_LOOKS, CHECKED_JUDGEMENTS = 500, 1800
"""How much of this run is checked against gbstats and against the whole Kayenta judge."""
KAYENTA_FAULT = Law(slower=1.1, canary_errors=0.005)
"""Kayenta's labels are checked on it beside good releases, to see labels of all kinds."""
TUNING_SEEDS, CELL_SEEDS = 1_000_000, 1000
"""Tuning streams begin so far above the others, and cells so far apart, that no seed is used twice."""

Key = tuple[str, str]
"""(tool, setting)."""


@dataclass
class Outcome:
    """Everything the tables say.

    null_alarms : scenario -> (tool, setting) -> rollouts rolled back, of ``nulls``; tuned ones by the clean law, and
        those that are kept in every kind.
    law_alarms : fault scenario -> (tool, default setting) -> share of false alarms under that scenario's own law.
    faults : fault scenario -> (tool, setting) -> what became of it; tuned ones by the scenario's own law.
    cpu_us : tool -> CPU microseconds a rollout-window. judgement_us : one judgement of one metric by the whole judge.
    """

    rollouts: int
    nulls: int
    tuning: int
    seed: int
    null_alarms: dict[str, dict[Key, int]] = field(default_factory=dict)
    law_alarms: dict[str, dict[Key, float]] = field(default_factory=dict)
    faults: dict[str, dict[Key, Found]] = field(default_factory=dict)
    cpu_us: dict[str, float] = field(default_factory=dict)
    judgement_us: float = float("nan")
    checks: list[str] = field(default_factory=list)


def documented(tool: Tool) -> list[Key]:
    """The settings that a tool's documentation gives it."""
    return [(tool.name, setting) for setting in tool.defaults]


def keys(tool: Tool) -> list[Key]:
    """The settings of a tool in which it is measured."""
    return [*documented(tool), (tool.name, TUNED), (tool.name, KEPT)]


def sees(tool: str, touches: str) -> bool:
    """Whether this tool has anything to say about such a fault."""
    return all(touches in each.sees for each in TOOLS if each.name == tool)


def measure(
    rollouts: int,
    nulls: int,
    tuning: int,
    seed: int,
    *,
    faults: Sequence[Scenario] = FAULTS,
    say: Callable[[str], None],
) -> Outcome:
    """Run all cells; ``say`` hears of each. Same arguments, same numbers (but for the costs)."""
    outcome = Outcome(rollouts, nulls, tuning, seed)
    spent: dict[str, float] = defaultdict(float)
    laws = list(dict.fromkeys([CLEAN, *(s.law.without_fault() for s in faults), *(s.law for s in NULLS)]))
    levels: dict[tuple[Law, str], Thresholds] = {}
    for i, law in enumerate(laws):
        here = [s for s in faults if s.law.without_fault() == law]
        tops: dict[str, list[dict[str, Array]]] = defaultdict(list)
        for stream in _streams(law, tuning, seed + TUNING_SEEDS + CELL_SEEDS * i):
            for tool in TOOLS:
                tops[tool.name].append(highest(_timed(tool, stream, spent)))
            for scenario in here:
                for name, said in _oracles(scenario, stream).items():
                    tops[f"{name} of {scenario.name}"].append(highest(said))
        joined = {name: {k: np.concatenate([one[k] for one in many]) for k in many[0]} for name, many in tops.items()}
        levels |= {(law, name): tuned(top) for name, top in joined.items()}
        for scenario in here:
            outcome.law_alarms[scenario.name] = {
                (tool.name, setting): reached_share(joined[tool.name], level)
                for tool in TOOLS
                for setting, level in tool.defaults.items()
            }
        say(f"tuned to 1 % on {tuning:,} good rollouts, law {i + 1} of {len(laws)}")

    kept = {tool.name: highest_levels(levels[law, tool.name] for law in laws) for tool in TOOLS}
    for i, scenario in enumerate(NULLS):
        back: dict[Key, list[Array]] = defaultdict(list)
        for stream in _streams(scenario.law, nulls, seed + CELL_SEEDS * i):
            if not outcome.checks:
                _check(outcome, stream)
            _run(stream, {TUNED: {tool.name: levels[CLEAN, tool.name] for tool in TOOLS}, KEPT: kept}, back, spent)
        outcome.null_alarms[scenario.name] = {
            key: int(np.isfinite(np.concatenate(rolled)).sum()) for key, rolled in back.items()
        }
        say(f"good releases {i + 1} of {len(NULLS)}: {scenario.name}")

    checks = int(np.ceil(levels[CLEAN, rules.FLAGGER.name]["failed checks"]))
    outcome.checks.append(f"Flagger rules: tuned on the clean law, rolled back at {checks} failed checks of {LENGTH}.")

    for i, scenario in enumerate(faults):
        law, requests = scenario.law.without_fault(), []
        back = defaultdict(list)
        for stream in _streams(scenario.law, rollouts, seed + CELL_SEEDS * (len(NULLS) + i)):
            requests.append(stream.canary.total)
            _run(stream, {TUNED: {tool.name: levels[law, tool.name] for tool in TOOLS}, KEPT: kept}, back, spent)
            for name, said in _oracles(scenario, stream).items():
                back[name, TUNED].append(first_reached(said, levels[law, f"{name} of {scenario.name}"]))
        outcome.faults[scenario.name] = {
            key: found(np.concatenate(rolled), np.concatenate(requests), scenario.law.onset)
            for key, rolled in back.items()
            if sees(key[0], scenario.touches)
        }
        say(f"faults {i + 1} of {len(faults)}: {scenario.name}")
    windows = LENGTH * (tuning * len(laws) + nulls * len(NULLS) + rollouts * len(faults))
    outcome.cpu_us = {name: 1e6 * seconds / windows for name, seconds in spent.items()}
    return outcome


def _streams(law: Law, rollouts: int, seed: int) -> Iterator[Stream]:
    for place, first in enumerate(range(0, rollouts, AT_ONCE)):
        stream = gather(law, min(AT_ONCE, rollouts - first), LENGTH, seed + place)
        _ = stream.baseline  # drawing it is the stream's cost, not that of the first tool that asks
        yield stream


def _run(
    stream: Stream,
    levels: Mapping[str, Mapping[str, Thresholds]],
    back: dict[Key, list[Array]],
    spent: dict[str, float],
) -> None:
    for tool in TOOLS:
        said = _timed(tool, stream, spent)
        chosen = {setting: of[tool.name] for setting, of in levels.items()}
        for setting, level in {**tool.defaults, **chosen}.items():
            back[tool.name, setting].append(first_reached(said, level))


def highest_levels(levels: Iterable[Thresholds]) -> dict[str, float]:
    """The highest threshold of each signal: it is kept wherever one of these is."""
    out: dict[str, float] = {}
    for one in levels:
        for signal, level in one.items():
            out[signal] = max(level, out.get(signal, level))
    return out


def _oracles(scenario: Scenario, stream: Stream) -> dict[str, Scores]:
    said = {ORACLE: oracle.oracle(scenario, stream)}
    if scenario.touches == "classes":
        said[ANY_PAIR] = oracle.any_pair(scenario, stream)
    return said


def _timed(tool: Tool, stream: Stream, spent: dict[str, float]) -> Scores:
    began = time.process_time()
    said = tool.scores(stream)
    spent[tool.name] += time.process_time() - began
    return said


def _check(outcome: Outcome, stream: Stream) -> None:
    faulty = gather(KAYENTA_FAULT, CHECKED_JUDGEMENTS // 18, LENGTH, stream.seed + 1)
    labels = [kayenta.check(one, CHECKED_JUDGEMENTS) for one in (stream, faulty)]
    compared, different = (sum(one[i] for one in labels) for i in (0, 1))
    outcome.judgement_us = 1e6 * float(np.mean([one[2] for one in labels]))
    outcome.checks = [
        f"GrowthBook: {growthbook.check(stream, CHECKED_LOOKS)}.",
        f"Kayenta: of {compared:,} sampled labels {different} differ from those of the whole judge, judged one by one.",
    ]
