"""How every gate words its answer: one builder, so that all reports are cut and freed of control characters alike.

Gates put names from images, models, reports and answers into their texts; none of these may break a terminal or make
a report that the journal refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.model.gates.report import (
    FACT_CHARACTERS_N,
    FACT_NAME_CHARACTERS_N,
    LINE_CHARACTERS_N,
    LINES_N,
    Finding,
    GateReport,
)

PUT_RIGHT = "Put right what the sentence names, then let the gate look again."


def gate_report(
    gate: str,
    finding: Finding,
    sentence: str,
    to_do: str = "",
    *,
    lines: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> GateReport:
    """A gate's answer whose texts fit; of lines beyond what a report holds the number is told.

    ``to_do`` may be empty where the sentence says it all; an answer that is no pass then sends people to the sentence.
    """
    if len(lines) > LINES_N:
        lines = [*lines[: LINES_N - 1], f"and {len(lines) - LINES_N + 1} lines more"]
    return GateReport(
        gate=gate,
        finding=finding,
        sentence=readable(sentence, LINE_CHARACTERS_N),
        to_do=readable(to_do or ("" if finding is Finding.PASSED else PUT_RIGHT), LINE_CHARACTERS_N),
        lines=tuple(readable(line, LINE_CHARACTERS_N) for line in lines),
        facts={
            readable(name, FACT_NAME_CHARACTERS_N): readable(value, FACT_CHARACTERS_N)
            for name, value in (facts or {}).items()
        },
    )


def could_not_look(gate: str, sentence: str, to_do: str) -> GateReport:
    """The answer of a gate that saw nothing."""
    return gate_report(gate, Finding.COULD_NOT_LOOK, sentence, to_do)


def readable(text: str, limit_n: int = 200) -> str:
    """Text from outside for a sentence: what cannot be printed is replaced, what is longer than ``limit_n`` characters
    is cut to them."""
    cut = "".join(c if c.isprintable() else "�" for c in text[:limit_n])
    return cut if len(text) <= limit_n else cut[:-1] + "…"
