"""The tables in Markdown, and the sentences that say where Serinus is behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from tests.benchmarks.peers.contest import Found
from tests.benchmarks.peers.measuring import (
    ANY_PAIR,
    KEPT,
    ORACLE,
    OWN,
    TOOLS,
    TUNED,
    Key,
    Outcome,
    documented,
    keys,
    sees,
)
from tests.benchmarks.peers.scenarios import FAULTS, NULLS, Scenario

FINDABLE = 0.9
"""Share of rollouts in which the oracle must find a fault for it to be one that the hour can show."""
MANY_EARLY = 0.02
MUCH = 1.5
"""Ratio to the oracle above which a row is named."""
SERINUS, LATER = TOOLS[0].name, TOOLS[1].name

NOTES = (
    "Everyone sees the same windows, one a minute, 60 a rollout; 60 canary and 540 stable requests a minute "
    "unless said.",
    "«Found» and delays are of rollouts that still stood at the onset; a miss is an infinite delay. A delay of "
    "1 is the first window with the fault. «/ oracle» is the ratio of median delays.",
    "Tools are judged as wholes: whatever metric alarms first rolls back. Tuned thresholds are quantiles of "
    "good rollouts of the scenario's own law with seeds of their own, all signals of a tool at equal levels; in "
    "the table of good releases they are those of the clean law.",
    "The oracle knows the fault, its strength and every window's law, looks at the one metric that is touched "
    "and spends the whole 1 % on it. «Pair unknown» knows the class shares and the strength, not the two "
    "classes. Neither knows the onset, so where it is 0 a tool that adds up from the first window may come "
    "level.",
    "Kayenta and GrowthBook «1:1» compare with as many stable requests as the canary has in each window, "
    "thinned from the same stream: they ask for a baseline of the canary's size. All others use all of stable.",
    "Kayenta judges p50, p99 (milliseconds) and error rate (percent) of each minute, every 10 minutes; tuned, the "
    "part of the estimate beyond which the interval must lie (.25) moves. On series with many ties (rare errors, most "
    "minutes without one) the estimate is 0 and so is the exact lower end, which would be a Pass. The root finder "
    "stops within 1e-4 of it and the sign of what is left decides, so **its verdict there is numerical noise**: about "
    "a tenth of looks at an error rate gone from 0.1 to 0.5 % say High. Another unit gives other labels. The rewrite "
    "repeats that residue, so its error rows are the real judge's in this unit, not a sound test's.",
    "GrowthBook compares mean latency and the failed share, requests as units; it has no tail or class metric "
    "of its own. Tuned, its threshold moves while rho stays that of the default level.",
    "Bands are for distributions, so classes are left out; errors are judged by the count test of the same authors.",
    "The z test of two shares is anti-conservative while failures are few, which costs «Mann-Whitney, z, G "
    "test» its error rows once it is tuned.",
    "Flagger and Argo Rollouts look at the canary alone. Tuned: the smallest whole number of failed checks, the failed "
    "share. Their default thresholds are no statistics, and these streams have a p99 near 500 ms by construction.",
    "Tools that add up counts over windows (the Mann-Whitney family, GrowthBook with all of stable, the bands) "
    "roll back nearly every good release whose share grows while both arms drift: see «ramp and drift», where "
    "their thresholds, tuned on clean releases, do not hold.",
    "Per-minute quantiles, means and squares come from the windows' buckets, log-linear inside a bucket.",
)


def markdown(outcome: Outcome, faults: Sequence[Scenario] = FAULTS) -> str:
    """The whole page."""
    parts = [
        "# Serinus and other tools on the same windows",
        f"`python -m tests.benchmarks.peers --rollouts {outcome.rollouts} --nulls {outcome.nulls} --tuning "
        f"{outcome.tuning} --seed {outcome.seed}`: {outcome.rollouts:,} rollouts a fault, {outcome.nulls:,} a kind of "
        f"good release, {outcome.tuning:,} good ones a law to tune on.",
        "![False alarms, and delays at equal false alarms](peers.png)",
        "## Good releases rolled back, % of whole rollouts (95 % interval)",
        _null_table(outcome),
        "## Delay at 1 % false alarms: median windows, ratio to the oracle, found",
        _matrix(outcome, faults),
        f"† not found in the hour by anyone who could: in fewer than {100 * FINDABLE:.0f} % even by the oracle.",
        "## Delay with one threshold a tool that keeps 1 % in every kind of good release",
        "It holds on all good releases above and on those of each fault's own law: what an operator could set and "
        "forget.",
        _matrix(outcome, faults, KEPT),
        "## Delay at documented settings: median windows",
        "False alarms are not equal here: read it with the first table. In brackets the share rolled back before the "
        f"onset, from {100 * MANY_EARLY:.0f} % on.",
        _default_matrix(outcome, faults),
        "## Where Serinus is behind",
        behind(outcome, faults),
        "## Cost",
        _cost_table(outcome),
        "## What is compared",
        "\n".join(f"- {note}" for note in (*NOTES, *outcome.checks)),
        "## Every fault",
        *(f"### {scenario.name}\n\n{_fault_table(outcome, scenario)}" for scenario in faults),
    ]
    return "\n\n".join(parts) + "\n"


def behind(outcome: Outcome, faults: Sequence[Scenario] = FAULTS) -> str:
    """Faults that another tool finds sooner at equal false alarms, and those with a ratio to the oracle above 1.5."""
    far = []
    for scenario in faults:
        rows = outcome.faults[scenario.name]
        floor = rows[ORACLE, TUNED]
        shipped = rows[documented(TOOLS[0])[0]]
        if np.isfinite(floor.median) and shipped.median / floor.median > MUCH:
            unknown = f", {_short(rows[ANY_PAIR, TUNED])} without knowing the pair" if (ANY_PAIR, TUNED) in rows else ""
            far.append(f"- {scenario.name}: {_short(shipped)}; oracle {_short(floor)}{unknown}.")
    return "\n\n".join(
        [
            "Another tool is sooner (median windows, found; shares that differ by less than two standard errors are "
            "left out where neither has a median), with one threshold that keeps 1 % in every kind of good release:",
            _sooner(outcome, faults, LATER, KEPT),
            "The same, with thresholds for the scenario's own law alone, Serinus without past releases:",
            _sooner(outcome, faults, SERINUS, TUNED),
            f"As shipped, Serinus takes more than {MUCH:g} times the oracle's median:",
            "\n".join(far) or "- nowhere in these faults.",
        ]
    )


def _sooner(outcome: Outcome, faults: Sequence[Scenario], ours: str, setting: str) -> str:
    lines = []
    for scenario in faults:
        rows = outcome.faults[scenario.name]
        own = rows[ours, setting]
        peers = [(name, found) for (name, at), found in rows.items() if at == setting and name not in OWN]
        ahead = [
            f"{name} {_short(peer)}"
            for name, peer in peers
            if name not in (ORACLE, ANY_PAIR) and _ahead(peer, own, outcome.rollouts)
        ]
        if ahead:
            lines.append(f"- {scenario.name}: Serinus {_short(own)}; {', '.join(ahead)}.")
    return "\n".join(lines) or "- nowhere in these faults."


def _ahead(peer: Found, own: Found, rollouts: int) -> bool:
    if np.isfinite(peer.median) or np.isfinite(own.median):
        return peer.median < own.median
    error = np.sqrt((peer.share * (1 - peer.share) + own.share * (1 - own.share)) / rollouts)
    return bool(peer.share - own.share > 2 * error)


def _short(found: Found) -> str:
    return f"{_number(found.median)} ({_percent(found.share)})"


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.0f} %"


def _null_table(outcome: Outcome) -> str:
    rows = []
    for tool in TOOLS:
        for key in keys(tool):
            cells = (_share(outcome.null_alarms[s.name][key], outcome.nulls) for s in NULLS)
            rows.append([*_named(key), *cells])
    return _table(["tool", "setting", *(s.name for s in NULLS)], rows)


def _matrix(outcome: Outcome, faults: Sequence[Scenario], setting: str = TUNED) -> str:
    rows = []
    for scenario in faults:
        found = outcome.faults[scenario.name]
        floor = found[ORACLE, TUNED]
        cells = [f"{_number(floor.median)} · {_percent(floor.share)}"]
        for tool in TOOLS:
            cells.append(_brief(found.get((tool.name, setting)), floor))
        rows.append([_marked(scenario, floor), *cells])
    return _table(["fault", ORACLE, *(tool.name for tool in TOOLS)], rows)


def _default_matrix(outcome: Outcome, faults: Sequence[Scenario]) -> str:
    settings = [key for tool in TOOLS for key in documented(tool)]
    rows = []
    for scenario in faults:
        found = outcome.faults[scenario.name]
        cells = [_with_early(found[key]) if key in found else "-" for key in settings]
        rows.append([_marked(scenario, found[ORACLE, TUNED]), *cells])
    return _table(["fault", *(f"{name}, {setting}" for name, setting in settings)], rows)


def _marked(scenario: Scenario, floor: Found) -> str:
    return scenario.name + ("" if floor.share >= FINDABLE else " †")


def _with_early(found: Found) -> str:
    return _number(found.median) + (f" ({_percent(found.early)} before)" if found.early >= MANY_EARLY else "")


def _fault_table(outcome: Outcome, scenario: Scenario) -> str:
    found, floor = outcome.faults[scenario.name], outcome.faults[scenario.name][ORACLE, TUNED]
    rows = []
    all_keys = [(name, TUNED) for name in (ORACLE, ANY_PAIR) if (name, TUNED) in found]
    for key in [*all_keys, *(key for tool in TOOLS for key in keys(tool))]:
        alarms = outcome.law_alarms[scenario.name].get(key)
        told = "1 %" if alarms is None else f"{100 * alarms:.1f} %"
        if not sees(key[0], scenario.touches):
            rows.append([*_named(key), told, *["-"] * 6])
            continue
        f = found[key]
        rows.append(
            [
                *_named(key), told, _percent(f.early) if scenario.law.onset else "", _percent(f.share),
                _number(f.median), _number(f.p90), _number(f.requests), _ratio(f, floor),
            ]
        )  # fmt: skip
    head = ["tool", "setting", "false alarms", "before onset", "found", "median windows", "p90"]
    return _table([*head, "median canary requests", "/ oracle"], rows)


def _cost_table(outcome: Outcome) -> str:
    base = outcome.cpu_us[SERINUS]
    rows = [
        [name, f"{us:.2f}", f"{us / base:.2f}"] for name, us in sorted(outcome.cpu_us.items(), key=lambda pair: pair[1])
    ]
    judge = outcome.judgement_us
    told = (
        "Process time in this run, a thousand rollouts at once; only ratios hold elsewhere. Serinus takes window by "
        "window and keeps a state; the others are computed over whole streams at once, which no service could do, so "
        "their figures are lower bounds. The rewritten Kayenta judge, one metric and one look at a time: "
        f"{judge:,.0f} microseconds, as much as {judge / base:,.0f} rollout-windows of Serinus."
    )
    return told + "\n\n" + _table(["tool", "CPU microseconds a rollout-window", "to Serinus"], rows)


def _brief(found: Found | None, floor: Found) -> str:
    if found is None:
        return "-"
    return f"{_number(found.median)} · {_ratio(found, floor)} · {_percent(found.share)}"


def _ratio(found: Found, floor: Found) -> str:
    ratio = found.median / floor.median if np.isfinite(floor.median) else float("nan")
    return f"{ratio:.2f}" if np.isfinite(ratio) else "∞" if np.isinf(ratio) else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "∞" if np.isinf(value) else "-"


def _share(hits: int, of: int) -> str:
    ends = binomtest(hits, of).proportion_ci(0.95, method="exact")
    return f"{100 * hits / of:.1f} ({100 * ends.low:.1f}-{100 * ends.high:.1f})"


def _named(key: Key) -> list[str]:
    return [key[0], {TUNED: "tuned to 1 %", KEPT: "1 % in every kind"}.get(key[1], key[1])]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
