"""What a gate says: passed, failed with what to do, or could not look, which is never a pass."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from service.model.names import DnsLabel, ServiceKey, Version
from service.model.value import Value

LINE_CHARACTERS_N = 500
LINES_N = 40
FACT_NAME_CHARACTERS_N = 60
FACT_CHARACTERS_N = 200

Line = Annotated[str, StringConstraints(max_length=LINE_CHARACTERS_N)]
"""Text for people. What comes from outside is cut and freed of control characters before it gets here."""


def event_names_no_registry(image: str) -> None:
    """Raise ValueError for a template of an image in which an event would choose the registry's host."""
    host, slash, _ = image.partition("/")
    if slash and "_version" in host:
        raise ValueError("a version comes from an event, so it must not be part of a registry's host")


class Finding(StrEnum):
    """The three answers of a gate."""

    PASSED = "passed"
    FAILED = "failed"
    COULD_NOT_LOOK = "could_not_look"


class GateReport(Value):
    """One gate's answer, kept in the rollout's journal and shown on the page, in the terminal and in the API."""

    gate: DnsLabel
    finding: Finding
    sentence: Line
    """What was found, in one sentence."""
    to_do: Line = ""
    """What a person can do about it; empty for a pass."""
    lines: Annotated[tuple[Line, ...], Field(max_length=LINES_N)] = ()
    """Further findings, the gravest first, each a line for people."""
    facts: dict[
        Annotated[str, StringConstraints(max_length=FACT_NAME_CHARACTERS_N)],
        Annotated[str, StringConstraints(max_length=FACT_CHARACTERS_N)],
    ] = {}
    """Named values to show beside it: ``{"TensorFlow": "2.12.0 -> 2.13.0", "CUDA": "11.8"}``."""


class Candidate(Value):
    """What a gate is told of the release; outside data all of it, checked for form only."""

    service: ServiceKey
    version: Version
    stable_version: Version | None
    artifact: str
    """Image reference or package URL from the event; empty when it named none."""
