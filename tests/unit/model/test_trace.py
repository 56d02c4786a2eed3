"""The trace of a release: the same wherever it is made, and a made one can be told from a sender's."""

from __future__ import annotations

from pydantic import TypeAdapter

from service.model.trace import Traceparent, is_made, made_traceparent, read_traceparent, trace_id_of


def test_a_made_trace_follows_from_the_event_alone_and_has_the_form_of_any_other() -> None:
    made = made_traceparent("/ci", "e-1")
    assert made == made_traceparent("/ci", "e-1")
    assert read_traceparent(made) == made
    assert TypeAdapter(Traceparent).validate_python(made) == made
    others = {trace_id_of(made_traceparent(*key)) for key in (("/ci", "e-2"), ("/cd", "e-1"), ("/ci\ne", "-1"))}
    assert len(others | {trace_id_of(made)}) == 4


def test_a_made_trace_can_be_told_from_a_senders() -> None:
    assert is_made(made_traceparent("/ci", "e-1"))
    assert not is_made("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert not is_made("")
