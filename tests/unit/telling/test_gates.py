"""What people are shown of the gates: in the terminal, in a page and through the API's view."""

from __future__ import annotations

import io

from rich.console import Console

from service.model.gates.report import Finding, GateReport
from service.model.instruction import Page
from service.model.rollout import Phase
from service.model.stimulus import GateAnswered, Verb
from service.telling import terminal
from service.telling.view import rollout_view
from tests.stories import START, Story, policy

FOUR = policy(preflight=[{"gate": gate} for gate in ("image", "security", "model", "golden")])


def shown() -> Story:
    story = Story(policy=FOUR)
    for gate, finding, sentence, to_do, facts in (
        ("image", Finding.PASSED, "2 known risks.", "", {"TensorFlow": "2.12.0 -> 2.13.0", "CUDA": "11.8"}),
        ("security", Finding.COULD_NOT_LOOK, "no report of this image.", "Scan it.", {}),
    ):
        report = GateReport(gate=gate, finding=finding, sentence=sentence, to_do=to_do, facts=facts)
        story.tell(GateAnswered(id=gate, at=story.at, report=report))
    return story.person(Verb.RESUME)


def test_every_gate_has_a_row_that_says_where_it_stands() -> None:
    story = shown()
    report = GateReport(gate="model", finding=Finding.FAILED, sentence="op SegmentMaxV2 is missing.")
    story.tell(GateAnswered(id="m", at=story.at, report=report))
    rows = rollout_view(story.state, (), (), START).gates
    assert [(row.gate, row.state) for row in rows] == [
        ("image", "passed"), ("security", "overruled"), ("model", "failed"), ("golden", "waiting"),
    ]  # fmt: skip


def test_the_terminal_shows_the_gates_in_eighty_columns() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(terminal.rollout(rollout_view(shown().state, (), (), START), START))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "image (v) passed 2 known risks." in rows
    assert "TensorFlow 2.12.0 -> 2.13.0; CUDA 11.8" in rows
    assert "golden (.) waiting" in rows


def test_what_a_failed_gate_found_is_named_in_the_terminal_and_in_the_page() -> None:
    story = Story(policy=FOUR)
    lines = ("critical: CVE-1 in a 1", "fine: 0 high (limit 0)", *(f"critical: CVE-{n} in a 1" for n in range(2, 6)))
    report = GateReport(gate="security", finding=Finding.FAILED, sentence="5 critical (limit 0).", lines=lines)
    story.tell(GateAnswered(id="s", at=story.at, report=report))
    (page,) = [one for one in story.last.orders if isinstance(one, Page)]
    first = "critical: CVE-1 in a 1; critical: CVE-2 in a 1; critical: CVE-3 in a 1"
    assert page.details["gate security found"] == f"{first}; and 2 more"
    out = io.StringIO()
    Console(file=out, width=80).print(terminal.rollout(rollout_view(story.state, (), (), START), START))
    text = out.getvalue()
    assert "- critical: CVE-1 in a 1" in text
    assert "fine: " not in text


def refused() -> Story:
    """A model gate fails while the golden requests are still replayed, and the mesh confirms that nothing is served."""
    story = Story(policy=FOUR)
    report = GateReport(gate="model", finding=Finding.FAILED, sentence="op X has no kernel (y)", to_do="Replace X")
    return story.tell(GateAnswered(id="m", at=story.at, report=report)).written()


def test_a_refused_release_is_called_so_and_shows_what_to_do_and_no_row_of_what_was_never_compared() -> None:
    story = refused()
    view = rollout_view(story.state, (), (), START)
    assert (view.phase, view.ended_as) == (Phase.ENDED, "refused before any traffic")
    assert {gate.state for gate in view.gates if gate.gate != "model"} == {"unanswered"}
    out = io.StringIO()
    Console(file=out, width=80).print(terminal.rollout(view, START))
    rows = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert any(row.startswith("-- REFUSED at 0 %") for row in rows)
    assert "model <!> failed op X has no kernel (y)." in rows
    assert "To do: Replace X." in rows
    assert "golden -- no answer" in rows
    assert not any(row.startswith(("evidence", "latency", "guard")) for row in rows)


def test_a_page_before_any_traffic_says_what_the_gates_found_and_what_has_changed() -> None:
    story = shown()
    report = GateReport(gate="model", finding=Finding.FAILED, sentence="op X is missing.", to_do="Build it in.")
    story.tell(GateAnswered(id="m", at=story.at, report=report))
    (page,) = [one for one in story.last.orders if isinstance(one, Page)]
    assert page.details["gate model"] == "failed: op X is missing. Build it in."
    assert page.details["TensorFlow"] == "2.12.0 -> 2.13.0"
    assert "CUDA" not in page.details
