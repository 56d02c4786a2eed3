"""How a gate's report is told in a terminal, and the exit status that scripts go by."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from service.model.gates.report import GateReport

EXIT = {"passed": 0, "failed": 1, "could_not_look": 3}
"""2 is left to wrong arguments."""


def tell(report: GateReport, *, json_output: bool) -> None:
    """Print a gate's report and leave with its exit status."""
    if json_output:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for line in _lines(report):
            typer.echo(line)
    raise typer.Exit(EXIT[report.finding.value])


def refuse(sentence: str) -> NoReturn:
    """Say why a gate cannot be asked with these arguments, and leave."""
    typer.echo(wrapped(f"Error: {sentence}"), err=True)
    raise typer.Exit(2)


def _lines(report: GateReport) -> Iterator[str]:
    yield wrapped(f"{report.finding.value.replace('_', ' ').upper()}  {report.sentence}")
    if report.to_do:
        yield wrapped(f"To do: {report.to_do}")
    for name, value in report.facts.items():
        yield wrapped(f"{name:<24} {value}", "  ", 27)
    for line in report.lines:
        yield wrapped(f"- {line}", "  ", 4)


def wrapped(text: str, indent: str = "", hanging: int = 0) -> str:
    """Text for a terminal of 80 columns."""
    return textwrap.fill(
        text, 80, initial_indent=indent, subsequent_indent=" " * hanging, break_long_words=True, drop_whitespace=True
    )
