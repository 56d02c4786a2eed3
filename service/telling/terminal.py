"""The terminal views: a view model in, something that rich can draw out. Eighty columns are enough.

State is told by word and shape first; colour comes third, and is dropped when the output is piped.
"""

from __future__ import annotations

import math
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.model.rollout import Phase, Waiting
from service.telling import words
from service.telling.view import Finding, GateView, MetricView, RolloutView, RowView

STYLES = {
    Phase.PROGRESSING: "blue",
    Phase.PAUSED: "yellow",
    Phase.HELD: "yellow",
    Phase.ROLLING_BACK: "red",
    Phase.ROLLED_BACK: "red",
    Phase.PROMOTED: "green",
    Phase.PROMOTING: "green",
}
SHAPES = {
    Phase.PAUSED: "||",
    Phase.HELD: "||",
    Phase.ROLLED_BACK: "<<",
    Phase.ROLLING_BACK: "<<",
    Phase.PROMOTED: "++",
    Phase.ENDED: "--",
}
FINDINGS = {
    Finding.SAFE: ("(v) safe", "green"),
    Finding.UNDECIDED: ("(-) undecided", "default"),
    Finding.HARMFUL: ("<!> harmful", "red"),
    Finding.BLIND: ("(/) blind", "magenta"),
}
GATES = {
    "waiting": ("(.) waiting", "dim"),
    "passed": ("(v) passed", "green"),
    "failed": ("<!> failed", "red"),
    "could_not_look": ("(/) not seen", "magenta"),
    "overruled": ("--  overruled", "yellow"),
    "unanswered": ("--  no answer", "dim"),
}
METER_COLUMNS = 36


def phase_word(row: RowView) -> str:
    """The state as one word, with what a blind rollout and one that a gate ended really are."""
    if row.phase is Phase.HELD and row.waiting is Waiting.DATA:
        return "BLIND"
    if row.phase is Phase.ENDED and row.ended_as == words.REFUSED:
        return "REFUSED"
    return row.phase.value.replace("_", " ").upper()


def rollout(view: RolloutView, now: datetime) -> RenderableType:
    """One rollout: state, why, what happens next, evidence, stages, metrics."""
    name = f"{words.quoted(view.cluster)}/{words.quoted(view.namespace)}"
    change = f"{words.quoted(view.stable_version or 'stable')} -> {words.quoted(view.version)}"
    lines: list[RenderableType] = [
        Text(f"{words.quoted(view.service)}  {name}  {change}  {view.id}", style="bold", overflow="fold"),
        Text.assemble(
            (f"{SHAPES.get(view.phase, '>>')} {phase_word(view)}", STYLES.get(view.phase, "default")),
            f" at {view.weight_asked} %  since {view.since:%H:%M:%S} UTC   window {view.window}{_age(view, now)}   ",
            view.mode.value,
        ),
        Text(view.sentence, overflow="fold"),
    ]
    if view.gates:
        lines.append(_gates(view))
    if not view.phase.terminal:
        lines.append(Text(f"Do nothing: {view.if_nothing}", style="dim", overflow="fold"))
    elif not view.window:
        # It ended before anything was compared: rows that say so of each metric would only hide why.
        return Group(*lines, *(Text(f"note: {note}", style="dim", overflow="fold") for note in view.notes))
    lines.append(Text(f"evidence  {_meter(view)}  {view.evidence}"))
    if view.harmless_one_in > 1:
        one_in = words.count(view.harmless_one_in)
        lines.append(Text(f"          at most 1 harmless release in {one_in} ever gets this high", style="dim"))
    lines += [Text(_stages(view), overflow="fold"), _metrics(view.metrics)]
    lines += [Text(f"note: {note}", style="dim", overflow="fold") for note in view.notes]
    for guard in view.guards:
        lines.append(
            Text(f"guard {guard.name}: {guard.windows_in_row} of {guard.windows_needed} windows in a row", style="dim")
        )
    return Group(*lines)


def _age(view: RolloutView, now: datetime) -> str:
    if view.last_window_end is None:
        return ""
    return f", {max(0, round((now - view.last_window_end).total_seconds()))} s ago"


def _meter(view: RolloutView) -> str:
    """Evidence on a log scale from 0.1 to ten times the rollback line, with both lines marked."""
    low, high = math.log(0.1), view.log_rollback + math.log(10)

    def place(log_e: float) -> int:
        share = (min(max(log_e, low), high) - low) / (high - low)
        return round(share * (METER_COLUMNS - 1))

    cells = ["-"] * METER_COLUMNS
    for i in range(place(view.log_evidence)):
        cells[i] = "="
    cells[place(view.log_pause)] = "|"
    cells[place(view.log_rollback)] = "!"
    cells[place(view.log_evidence)] = "o"
    return "".join(cells)


def _stages(view: RolloutView) -> str:
    parts = []
    for stage in view.stages:
        weight = f"{stage.weight_percent} %"
        if stage.state == "now" and stage.baked_s is not None:
            weight = f"[{weight}  {words.duration(stage.baked_s)}/{words.duration(stage.bake_s)}]"
        elif stage.state == "now":
            weight = f"[{weight}]"
        elif stage.state == "done":
            weight = f"{weight} done"
        parts.append(weight)
    return "stages    " + "  ".join(parts) + f"     {words.count(view.n_canary)} canary requests"


def _named_rows() -> Table:
    """A name, what was found of it, and a sentence that folds."""
    table = Table(box=None, pad_edge=False, show_header=False, expand=False)
    table.add_column(width=12, no_wrap=True)
    table.add_column(width=15, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _gates(view: RolloutView) -> Table:
    table = _named_rows()
    for gate in view.gates:
        word, style = GATES[gate.state]
        table.add_row(gate.gate, Text(word, style=style), Text("\n".join(_gate_lines(gate))))
    return table


def _gate_lines(gate: GateView) -> list[str]:
    """What a gate found, what to do, and what it read: each begins a line of its own."""
    report = gate.report
    if report is None:
        return []
    facts = "; ".join(f"{name} {value}" for name, value in report.facts.items())
    to_do = f"To do: {words.ended(report.to_do)}" if report.to_do else ""
    found = [f"- {line}" for line in words.gate_findings(report)]
    return [line for line in (words.ended(report.sentence), to_do, *found, facts) if line]


def _metrics(metrics: tuple[MetricView, ...]) -> Table:
    table = _named_rows()
    for metric in metrics:
        word, style = FINDINGS[metric.finding]
        if metric.leaning and metric.finding is Finding.UNDECIDED:
            word, style = "<> leaning", "yellow"
        table.add_row(
            metric.metric,
            Text(word, style=style),
            # May hold a line of a log; as a plain string its brackets would be markup.
            Text(metric.sentence + ("" if metric.required else " (optional)")),
        )
    return table


def rollouts(rows: list[RowView]) -> RenderableType:
    """A list, one rollout a line and its sentence below."""
    if not rows:
        return Text("No rollout. Serinus listens for deployment events; try: serinus demo")
    table = Table(box=None, pad_edge=False)
    for heading in ("ROLLOUT", "STATE", "SERVICE", "VERSION", "WEIGHT", "EVIDENCE"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(
            row.id,
            Text(phase_word(row), style=STYLES.get(row.phase, "default")),
            f"{words.quoted(row.namespace)}/{words.quoted(row.service)}",
            words.quoted(row.version),
            f"{row.weight_asked} %",
            row.evidence,
        )
    return table
