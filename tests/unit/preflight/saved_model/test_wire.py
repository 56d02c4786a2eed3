"""The wire-format reader: what it reads, and that nothing makes it read, remember or recurse without end."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from service.preflight.saved_model.wire import (
    MAX_DEPTH_N,
    WINDOW_BYTES,
    BytesSource,
    FileSource,
    Reader,
    Span,
    Unreadable,
    number,
    numbers,
    signed,
    span,
)
from tests.unit.preflight.saved_model.writing import fixed32, msg, num, varint


def fields(content: bytes) -> list[tuple[int, int | Span]]:
    return list(Reader(BytesSource(content, name="m")).message().fields())


def test_numbers_texts_and_packed_numbers_are_read():
    found = fields(
        num(1, 300) + num(2, -5) + msg(3, "äß") + msg(4, varint(7), varint(1 << 40)) + fixed32(5, b"\0\0\x80?")
    )
    assert found[0] == (1, 300)
    assert signed(found[1][1]) == -5
    assert span(found[2][1]).text() == "äß"
    assert numbers(found[3][1], 2) == [7, 1 << 40]
    assert span(found[4][1]).float32() == 1.0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x0a\x05abc", "reaches past"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "reaches past"),
        (b"\x08\x80", "ends inside a number"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than ten bytes"),
        (b"\x00\x01", "number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0d\x00\x00", "reaches past"),
    ],
)
def test_what_is_no_message_is_told_with_its_place(content: bytes, what: str):
    with pytest.raises(Unreadable, match=rf"^m, byte \d+: .*{what}"):
        fields(content)


def test_a_message_inside_may_not_reach_past_the_one_that_holds_it():
    # The inner length fits the file and not its parent.
    content = msg(1, b"\x0a\x06ab") + b"cdefgh"
    inner = span(next(Reader(BytesSource(content, name="m")).message().fields())[1])
    with pytest.raises(Unreadable, match="reaches past"):
        list(inner.fields())


def test_depth_is_bounded():
    content = b""
    for _ in range(MAX_DEPTH_N + 2):
        content = msg(1, content)

    def deepest(one: Span, left_n: int) -> Span:
        return deepest(span(next(one.fields())[1]), left_n - 1) if left_n else one

    whole = Reader(BytesSource(content, name="m")).message()
    deepest(whole, MAX_DEPTH_N)
    with pytest.raises(Unreadable, match="deep in one another"):
        deepest(whole, MAX_DEPTH_N + 1)


def test_fields_are_paid_from_a_budget():
    assert len(list(Reader(BytesSource(num(1, 1) * 100, name="m"), max_fields_n=100).message().fields())) == 100
    with pytest.raises(Unreadable, match="more fields than"):
        list(Reader(BytesSource(num(1, 1) * 100, name="m"), max_fields_n=99).message().fields())
    with pytest.raises(Unreadable, match="more fields than"):
        numbers(next(Reader(BytesSource(msg(1, b"\1" * 100), name="m"), max_fields_n=99).message().fields())[1], 100)


def test_a_wrong_kind_of_field_is_no_number_and_no_text():
    with pytest.raises(Unreadable):
        span(3)
    with pytest.raises(Unreadable):
        number(span(fields(msg(1, "a"))[0][1]))


def test_text_beyond_its_bound_is_not_read():
    with pytest.raises(Unreadable, match="at most 10"):
        span(fields(msg(1, "a" * 11))[0][1]).text(10)


def test_two_gigabytes_of_constants_are_stepped_over_in_a_few_windows_of_memory(tmp_path: Path):
    size = (1 << 31) - 100
    path = tmp_path / "big"
    head = varint(1 << 3 | 2) + varint(size - 40)
    with path.open("wb") as file:
        file.write(head)
        file.seek(len(head) + size - 40)
        file.write(num(2, 7))
    tracemalloc.start()
    with FileSource(path) as source:
        found = list(Reader(source).message().fields())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert span(found[0][1]).size_bytes == size - 40
    assert found[1] == (2, 7)
    assert peak < 4 * WINDOW_BYTES


def test_a_file_beyond_the_bound_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(tmp_path / "pipe")
    for name in ("huge", "pipe", "."):
        with pytest.raises(Unreadable, match="is no file of at most"):
            FileSource(tmp_path / name)
    with pytest.raises(Unreadable, match="cannot be opened: No such file"):
        FileSource(tmp_path / "nothing")


def test_a_file_that_is_shortened_meanwhile_is_told(tmp_path: Path):
    path = tmp_path / "m"
    path.write_bytes(msg(1, b"a" * (3 * WINDOW_BYTES)) + msg(2, "end"))
    with FileSource(path) as source:
        reading = Reader(source).message().fields()
        next(reading)
        os.truncate(path, WINDOW_BYTES)
        with pytest.raises(Unreadable, match="ends inside a number"):
            next(reading)
