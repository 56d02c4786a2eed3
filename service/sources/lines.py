"""Log lines to counts: which pattern a line is of and what it is about, and the sentence about it. Pure.

One expression tells the kinds apart, here and in a log store, so that both count alike. RE2 runs it in time that grows
with the line and not with what stands in it: lines are written by whoever can reach the service.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from service.model.lines import REGEX_BYTES, SUBJECT, LinePattern
from service.model.observation import Availability, LineCounts, Reading

LONGEST_LINE = 4096
"""Of a line, so many characters are looked at."""

LONGEST_SUBJECT = 80
LONGEST_SAMPLE = 160
MOST_NAMES = 50
"""Kinds of lines told apart in one window; beyond them they are counted together."""

OTHERS = "(others)"
DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Kinds:
    """The expressions of a metric's patterns."""

    found: str
    """Matches any line that is of any kind."""
    told: str
    """Matches the same lines from their beginning; the group that took part tells the kind, the first that fits."""
    groups: tuple[str, ...]
    names: tuple[str, ...]
    """Of each group: its pattern's name."""
    bare: tuple[bool, ...]
    """Of each group: what it holds is only a match, and not what the line is about."""
    compiled: Any

    def of_groups(self, given: Mapping[str, str | None]) -> str | None:
        """The kind that the groups tell, None when none of them took part."""
        for group, name, bare in zip(self.groups, self.names, self.bare, strict=True):
            text = given.get(group)
            if text:
                return name if bare else f"{name} {shown(text, LONGEST_SUBJECT)}"
        return None

    def of_line(self, line: str) -> str | None:
        """The kind of a line, None for one that is of no kind."""
        match = self.compiled.search(line[:LONGEST_LINE])
        return None if match is None else self.of_groups(match.groupdict())


@functools.lru_cache(maxsize=256)
def kinds(patterns: tuple[LinePattern, ...]) -> Kinds:
    """The expressions for these patterns. Patterns were checked one by one, so together they are an expression too."""
    listed = [(pattern.name, regex) for pattern in patterns for regex in pattern.any_of]
    groups = tuple(f"serinus_{i}" for i in range(len(listed)))
    bare = tuple(SUBJECT not in regex for _, regex in listed)
    alternatives = [
        f"(?P<{group}>{regex})" if alone else f"(?:{regex.replace(SUBJECT, f'(?P<{group}>')})"
        for group, alone, (_, regex) in zip(groups, bare, listed, strict=True)
    ]
    # Each alternative may begin anywhere, and the first that fits is taken: not the one that fits furthest left.
    told = "^(?:" + "|".join(f"(?s:.*?){one}" for one in alternatives) + ")"
    found = "|".join(f"(?:{regex.replace(SUBJECT, '(?:')})" for _, regex in listed)
    options = re2.Options()
    options.max_mem = len(listed) * REGEX_BYTES
    options.log_errors = False
    return Kinds(found, told, groups, tuple(name for name, _ in listed), bare, re2.compile(told, options))


def shown(text: str, longest: int) -> str:
    """Outside text for people: in one line, without what a terminal obeys, cut."""
    plain = "".join(c if c.isprintable() else " " for c in text[: 4 * longest])
    plain = " ".join(plain.split())
    return plain if len(plain) <= longest else f"{plain[: longest - 3]}..."


def counted(
    metric: str,
    canary: Counter[str],
    stable: Counter[str],
    stable_before: Counter[str],
    *,
    sample: str = "",
    before: str,
    notes: Sequence[str] = (),
) -> Reading:
    """The reading of arms that are known to be heard of.

    sample : one of the canary's lines
    before : how far back stable was looked at, in words
    notes : what else people should know
    """
    apart = Counter({name: n for name, n in canary.items() if name != OTHERS})
    names = [name for name, _ in apart.most_common(MOST_NAMES)]
    rows = [tuple(arm[name] for name in names) for arm in (canary, stable, stable_before)]
    left = sum(canary.values()) - sum(rows[0])
    if left:
        # Stable's lines of the same kinds, so that what both arms have does not look like the canary's own.
        others = [
            sum(n for name, n in arm.items() if name in canary and name not in names) for arm in (stable, stable_before)
        ]
        names.append(OTHERS)
        rows = [(*row, n) for row, n in zip(rows, (left, *others), strict=True)]
    counts = LineCounts(tuple(names), *rows)
    return Reading(metric, Availability.ENOUGH, counts, _sentence(counts, sample, before, notes))


def _sentence(counts: LineCounts, sample: str, before: str, notes: Sequence[str]) -> str:
    """What was found, what only the canary has first."""
    alone = counts.only_on_canary()
    ranked = sorted(range(len(counts.names)), key=lambda i: (-alone[i], -counts.canary[i], counts.names[i]))
    said = []
    for i in ranked[:3]:
        known = counts.stable[i] + counts.stable_before[i]
        of_stable = f"{known} of stable" if known else f"none of stable {before}"
        said.append(f"{counts.names[i]}: {counts.canary[i]} of the canary, {of_stable}")
    if len(ranked) > 3:
        said.append(f"{len(ranked) - 3} more kinds")
    quote = f'"{shown(sample, LONGEST_SAMPLE)}"' if sample and said else ""
    return shown("; ".join(one for one in (*said, quote, *notes) if one), DETAIL_CHARS)


def nothing(metric: str, availability: Availability, why: str) -> Reading:
    """A reading without counts."""
    return Reading(metric, availability, None, shown(why, DETAIL_CHARS))
