"""`serinus preflight`: the gates before any traffic, asked by hand; none needs a running service."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from service.model.gates.report import GateReport

EXIT = {"passed": 0, "failed": 1, "could_not_look": 3}
"""2 is left to wrong arguments."""

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at a candidate before it gets any traffic. Exit 0 passed, 1 failed, 3 could not look.",
)


def tell(report: GateReport, *, json_output: bool) -> None:
    """Print a gate's report and leave with its exit status."""
    if json_output:
        typer.echo(report.model_dump_json(indent=2))
    else:
        for line in _lines(report):
            typer.echo(line)
    raise typer.Exit(EXIT[report.finding.value])


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


from service.cli.preflight_golden import golden  # noqa: E402  # it prints with what is above
from service.cli.preflight_image import image  # noqa: E402
from service.cli.preflight_model import model, runtime  # noqa: E402
from service.cli.preflight_security import security  # noqa: E402

app.command()(golden)
app.command()(image)
app.command()(model)
app.command()(runtime)
app.command()(security)
