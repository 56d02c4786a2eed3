"""What all golden requests showed so far: each is looked at alone and counted. Pure.

Each request is asked twice of either side. Where stable's own two answers differ, the model is not deterministic on
this request, and a difference of the canary says nothing of the release: such requests are counted apart, except for
what neither of stable's answers shows and no chance excuses (an error, NaN, a missing output, another shape or type).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.model.gates.golden import Tolerance
from service.preflight.golden.answers import Output
from service.preflight.golden.compare import Comparison, Difference, Distance, Kind, compare, shown, tolerance_of

MAX_NAMES = 1000
"""Names of outputs that are kept apart; a model has a few, a hostile server as many as it likes."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of one side, read: outputs, or why there are none."""

    outputs: Mapping[str, Output] | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What the four replies to one request showed."""

    id: str
    compared: bool = False
    """Stable answered twice and alike."""
    unsteady: str = ""
    """How stable's two answers differ; empty where they do not."""
    stable_failed: str = ""
    """Why stable did not answer, where it failed twice."""
    canary_failed: bool = False
    canary_unsteady: bool = False
    differences: tuple[Difference, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    dtypes: tuple[tuple[str, str, str], ...] = ()
    """Of each number told by JSON alone: output, how stable wrote it, how the canary did."""


def look_at(
    request_id: str, stable: tuple[Reply, Reply], canary: tuple[Reply, Reply], tolerances: Sequence[Tolerance] = ()
) -> Look:
    """What two answers of either side to one request show."""
    failures = [one.failure for one in canary if one.outputs is None]
    if all(one.outputs is None for one in stable):
        return Look(request_id, stable_failed=stable[0].failure, canary_failed=bool(failures))
    answers = [one.outputs for one in stable if one.outputs is not None]
    unsteady = ""
    if len(answers) == 1:
        unsteady = next(one.failure for one in stable if one.outputs is None)
    elif told := _all(compare(answers[0], answers[1], tolerances)):
        unsteady = f"{shown(told[0].output)}: {told[0].said}"
    theirs = [one.outputs for one in canary if one.outputs is not None]
    # Where one of stable's two answers is an error too, an error says nothing new.
    error = tuple(Difference(Kind.ERROR, "", failure) for failure in failures[:1] if len(answers) == 2)
    each = [[compare(ours, one, tolerances) for ours in answers] for one in theirs]
    found: dict[tuple[Kind, str], Difference] = {}
    for beside in each:
        always = set.intersection(*({(d.kind, d.output) for d in c.differences} for c in beside))
        for one in beside[0].differences:
            if (one.kind, one.output) in always and not (unsteady and one.kind.excused):
                found.setdefault((one.kind, one.output), one)
    return Look(
        request_id,
        compared=not unsteady,
        unsteady=unsteady,
        canary_failed=bool(failures),
        canary_unsteady=len(theirs) == 1
        or (len(theirs) == 2 and bool(_all(compare(theirs[0], theirs[1], tolerances)))),
        differences=(*error, *found.values()),
        comparisons=tuple(beside[0] for beside in each) if not unsteady else (),
        dtypes=_written(answers[0], theirs[0], tolerances) if theirs else (),
    )


def _all(comparison: Comparison) -> list[Difference]:
    new = [Difference(Kind.MISSING, name, "comes and goes") for name in comparison.new_outputs]
    return [*comparison.differences, *new]


def _written(
    ours: Mapping[str, Output], theirs: Mapping[str, Output], tolerances: Sequence[Tolerance]
) -> tuple[tuple[str, str, str], ...]:
    numbers = ("integer", "number")
    return tuple(
        (name, mine.dtype, yours.dtype)
        for name, mine in ours.items()
        if (yours := theirs.get(name)) is not None
        and mine.dtype in numbers
        and yours.dtype in numbers
        and not tolerance_of(name, tolerances).ignored
    )


@dataclass(slots=True)
class Tally:
    """All looks so far. Its size does not grow with the requests."""

    requests_n: int = 0
    compared_n: int = 0
    differing_n: int = 0
    """Compared requests with any difference."""
    unsteady_n: int = 0
    canary_unsteady_n: int = 0
    stable_failed_n: int = 0
    both_failed_n: int = 0
    both_non_finite_n: int = 0
    ranked_n: int = 0
    reordered_n: int = 0
    by_kind: Counter[Kind] = field(default_factory=Counter)
    """Requests that show it, compared or not."""
    by_output: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    firsts: dict[tuple[Kind, str], str] = field(default_factory=dict)
    """The first request with each of these, and what it showed."""
    new_outputs: Counter[str] = field(default_factory=Counter)
    largest: tuple[Distance, str] | None = None
    """The largest distance, and the request that shows it."""
    first_unsteady: str = ""
    first_stable_failure: str = ""
    dtypes: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)

    def add(self, look: Look) -> None:
        """Count one request."""
        self.requests_n += 1
        if look.stable_failed:
            self.stable_failed_n += 1
            self.both_failed_n += look.canary_failed
            self.first_stable_failure = self.first_stable_failure or f"{look.id}: {look.stable_failed}"
            return
        self.compared_n += look.compared
        if look.unsteady:
            self.unsteady_n += 1
            self.first_unsteady = self.first_unsteady or f"{look.id}: {look.unsteady}"
        self.canary_unsteady_n += look.canary_unsteady and look.compared
        self.differing_n += bool(look.differences) and look.compared
        self.by_kind.update({one.kind for one in look.differences})
        for one in look.differences:
            key = (one.kind, one.output)
            if key in self.firsts or len(self.firsts) < MAX_NAMES:
                self.by_output[key] += 1
                self.firsts.setdefault(key, f"{look.id}: {one.said}")
        for beside in look.comparisons[:1]:
            self.both_non_finite_n += beside.both_non_finite
            self.ranked_n += beside.ranked_n
            self.reordered_n += beside.reordered_n
            for name in beside.new_outputs:
                if name in self.new_outputs or len(self.new_outputs) < MAX_NAMES:
                    self.new_outputs[name] += 1
        for beside in look.comparisons:
            if beside.largest and beside.largest.beyond(self.largest and self.largest[0]):
                self.largest = (beside.largest, look.id)
        for name, ours, theirs in look.dtypes:
            if name in self.dtypes or len(self.dtypes) < MAX_NAMES:
                mine, yours = self.dtypes.setdefault(name, (set(), set()))
                mine.add(ours)
                yours.add(theirs)

    def rewritten(self) -> list[Difference]:
        """Outputs whose numbers stable always writes in one way and the canary always in the other."""
        return [
            Difference(Kind.DTYPE, name, f"type {min(ours)} -> {min(theirs)}")
            for name, (ours, theirs) in self.dtypes.items()
            if len(ours) == len(theirs) == 1 and ours != theirs
        ]
