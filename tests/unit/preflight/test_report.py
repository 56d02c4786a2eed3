"""All gates word their answers by one builder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import service.preflight
from service.model.gates.report import Finding
from service.preflight.report import PUT_RIGHT, could_not_look, gate_report, readable

WILD = "\x1b[31m" + "x" * 10_000


def test_what_cannot_be_printed_does_not_reach_a_sentence() -> None:
    assert readable("a\x1b[31m\nb\u202ec") == "a�[31m�b�c"


@pytest.mark.parametrize(("given_n", "ends"), [(199, "x"), (200, "x"), (201, "…"), (10_000, "…")])
def test_a_cut_text_is_never_longer_than_its_limit_and_shows_that_it_was_cut(given_n: int, ends: str) -> None:
    cut = readable("x" * given_n, 200)

    assert len(cut) == min(given_n, 200)
    assert cut.endswith(ends)


def test_whatever_a_gate_puts_into_its_answer_fits_a_report() -> None:
    report = gate_report("image", Finding.FAILED, WILD, WILD, lines=[WILD] * 100, facts={WILD: WILD})

    assert len(report.lines) == 40
    assert report.lines[-1] == "and 61 lines more"
    told = [report.sentence, report.to_do, *report.lines[:-1], *report.facts, *report.facts.values()]
    assert all(text.endswith("…") and text.isprintable() for text in told)


def test_as_many_lines_as_a_report_holds_are_all_told() -> None:
    report = gate_report("model", Finding.PASSED, "Fine.", lines=[f"line {i}" for i in range(40)])

    assert report.lines[-1] == "line 39"


def test_an_answer_that_is_no_pass_always_says_what_to_do() -> None:
    assert gate_report("security", Finding.FAILED, "Bad.").to_do == PUT_RIGHT
    assert could_not_look("security", "Dark.", "").to_do == PUT_RIGHT
    assert gate_report("security", Finding.PASSED, "Good.").to_do == ""


def test_no_gate_builds_a_report_of_its_own() -> None:
    room = Path(service.preflight.__file__).parent
    builders = {
        file.relative_to(room).as_posix()
        for file in room.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "GateReport"
    }

    assert builders == {"report.py"}
