"""How a gate's report is told in a terminal, and the exit status that scripts go by."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from pydantic import ValidationError

    from service.model.gates.report import GateReport

EXIT = {"passed": 0, "failed": 1, "could_not_look": 3}
"""2 is left to wrong arguments."""

COLUMNS = 80
VALUE_AT = 27
"""The column at which the values of facts begin."""


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


def fault(
    error: ValidationError, *, options: Mapping[str, str] = MappingProxyType({}), known: Collection[str] = ()
) -> str:
    """The first fault that pydantic found, as a person who typed it knows it.

    options : field -> option of the command line
    known : the names that there are, where an unknown one was given
    """
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return f"{name} is not known; known: {', '.join(known)}"
    given = f", found {first['input']!r:.80}" if isinstance(first["input"], str | int | float) else ""
    said = "expected an address such as http://host:8501" if name.endswith("_url") else first["msg"]
    said = said.removeprefix("Value error, ")
    if name:
        return f"{options.get(name, name)}: {said}{given}"
    # Whole words alone: what was given may hold the name of a field.
    return " ".join(options.get(word, word) for word in said.split(" "))


def _lines(report: GateReport) -> Iterator[str]:
    from service.telling.words import ended

    yield wrapped(f"{report.finding.value.replace('_', ' ').upper()}  {ended(report.sentence)}")
    if report.to_do:
        yield wrapped(f"To do: {ended(report.to_do)}")
    for name, value in report.facts.items():
        if max(map(len, value.split()), default=0) > COLUMNS - VALUE_AT:
            # Digests are copied from here, so they stay in one piece.
            yield f"  {name}"
            yield wrapped(value, "      ", 6)
        else:
            yield wrapped(f"{name:<24} {value}", "  ", VALUE_AT)
    for line in report.lines:
        yield wrapped(f"- {line}", "  ", 4)


def wrapped(text: str, indent: str = "", hanging: int = 0) -> str:
    """Text for a narrow terminal."""
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=indent,
        subsequent_indent=" " * hanging,
        break_long_words=True,
        drop_whitespace=True,
    )
