"""Log lines as a preset names them: which kinds there are, and where they are read or counted.

Patterns are RE2's, which Loki's engine and the one here run in time that grows with the line: lines are written by
whoever can reach a service, and a pattern by an operator, so neither may cost more than it looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

import re2
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from service.model.names import DnsLabel, LabelName, SeriesName
from service.model.policy import Seconds
from service.model.value import Value

SUBJECT = "(?P<subject>"

REGEX_BYTES = 1 << 20
"""Memory that RE2 may use for one expression."""


def _linear(pattern: str) -> str:
    """A pattern of RE2, in which every expression takes time in proportion to the line, in a log store as here."""
    options = re2.Options()
    options.max_mem = REGEX_BYTES
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise ValueError(f"{pattern!r} is no regular expression of RE2: {why}") from None
    if compiled.groups != len(compiled.groupindex) or set(compiled.groupindex) - {"subject"}:
        raise ValueError(f"{pattern!r}: the only group may be (?P<subject>...); write (?:...) for others")
    if compiled.groups != pattern.count(SUBJECT):
        raise ValueError(f"{pattern!r} may hold {SUBJECT} only as a group, once")
    if compiled.search("") is not None:
        raise ValueError(f"{pattern!r} matches every line")
    return pattern


LineRegex = Annotated[str, StringConstraints(min_length=1, max_length=400), AfterValidator(_linear)]
"""Looked for anywhere in a line. ``(?P<subject>...)`` is what the line is about, such as an op's name."""


class LinePattern(Value):
    """One kind of log lines."""

    name: DnsLabel
    """What people read: missing-opkernel."""
    any_of: tuple[LineRegex, ...] = Field(min_length=1, max_length=10)


class PatternSet(Value):
    """Kinds of log lines of one framework, which presets name. A line is of the first that fits."""

    name: DnsLabel
    description: str = ""
    patterns: tuple[LinePattern, ...] = Field(min_length=1, max_length=20)


class LogSeries(Value):
    """Log lines that patterns match, read from the cluster's log store or, where it has none, from its pods."""

    kind: Literal["logs"] = "logs"
    sets: tuple[DnsLabel, ...] = ()
    """Pattern sets of ``config/logs``, looked for after ``patterns``."""
    patterns: tuple[LinePattern, ...] = Field(default=(), max_length=20)
    container: DnsLabel | None = None
    """The container whose lines are read; None: the pod's default container, or in a log store all of them."""
    quoted: bool = True
    """Whether one of the lines is shown to people, cut; off where lines may hold what nobody should read."""
    lookback_s: Annotated[Seconds, Field(le=3600)] = Field(default=300.0, alias="lookback")
    """Lines are counted in the window and so long before it, so that the first window shows what pods wrote when they
    started. Where the next release's streams carry the same labels, it must be shorter than what lies between two."""
    stable_before_s: Annotated[Seconds, Field(le=86400)] = Field(default=3600.0, alias="stable_before")
    """A line of the canary is also known of stable when stable had it so long before that."""

    model_config = {**Value.model_config, "populate_by_name": True}

    @model_validator(mode="after")
    def _some_pattern(self) -> Self:
        if not self.patterns and not self.sets:
            raise ValueError("a metric of kind logs needs patterns, or sets that hold some")
        return self

    def with_sets(self, sets: Mapping[str, PatternSet]) -> LogSeries:
        """The same with the patterns of its sets; raises KeyError for a set that is not there."""
        found = (pattern for name in self.sets for pattern in sets[name].patterns)
        return self.model_copy(update={"patterns": (*self.patterns, *found), "sets": ()})


class LineCounterSeries(Value):
    """A counter that something else made of log lines, such as ``tf_missing_opkernel_total{pod,op}``.

    Lines are counted since the pods began, so that the first window shows what they wrote when they started.
    """

    kind: Literal["line_counter"] = "line_counter"
    lines: SeriesName
    subject_label: LabelName = "op"
    """What the lines are about."""
    alive: SeriesName
    """A counter that every arm has while its lines are counted at all, such as all lines or requests. Where it is
    there, a missing ``lines`` is zero; where it is not, nothing is known."""

    @model_validator(mode="after")
    def _two_names(self) -> Self:
        if self.lines == self.alive:
            raise ValueError(f"alive must be another series than lines, found {self.lines!r} for both")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The series to read, the one that is always there first."""
        return (self.alive, self.lines)
