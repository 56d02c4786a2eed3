"""A bounded reader of protobuf's wire format: just enough to walk a SavedModel without its classes.

A model may be 2 GB, nearly all of it constants, may be damaged, or may be made to exhaust whoever reads it. So the file
is seen through one window of 1 MiB, constants are stepped over, and every field that is looked at is paid for from a
budget. It is read and not mapped: a mapped file that somebody shortens meanwhile ends the process.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

WINDOW_BYTES = 1 << 20
BEHIND_BYTES = 1 << 16
"""So much of the window lies before the place that was asked for: a map's key is read after its value was seen."""
MAX_FILE_BYTES = (1 << 31) + (1 << 20)
"""A protobuf message has less than 2 GiB."""
MAX_FIELDS_N = 20_000_000
"""About 40 s of reading. A large model (50,000 nodes) has 1.5 million fields."""
MAX_TEXTS_BYTES = 256 << 20
"""Memory that the texts of one file may take, kept or not. A large model's names take 70 MB."""
MAX_DEPTH_N = 48
MAX_VARINT_BYTES = 10


class Unreadable(ValueError):
    """The file is not what it should be, or passes a bound; the message says where and what."""


class Source(Protocol):
    """Where bytes come from."""

    name: str
    size_bytes: int

    def at(self, position: int, length: int) -> bytes:
        """The bytes from ``position`` on, fewer at the end."""
        ...


class FileSource:
    """An opened file; a context manager. Raises Unreadable for what is no file, or larger than ``limit_bytes``."""

    def __init__(self, path: Path, *, name: str | None = None, limit_bytes: int = MAX_FILE_BYTES) -> None:
        self.name = name or path.name
        try:
            # Not blocking: a named pipe in a model's folder would hang the reader for ever.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise Unreadable(f"{self.name} cannot be opened: {_reason(error)}") from error
        state = os.fstat(self._descriptor)
        self.size_bytes = state.st_size
        if not stat.S_ISREG(state.st_mode) or self.size_bytes > limit_bytes:
            os.close(self._descriptor)
            raise Unreadable(f"{self.name} is no file of at most {limit_bytes:,} bytes (it has {state.st_size:,})")

    def at(self, position: int, length: int) -> bytes:
        """As Source."""
        try:
            return os.pread(self._descriptor, length, position)
        except OSError as error:
            raise Unreadable(f"{self.name} cannot be read at byte {position:,}: {_reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)


class BytesSource:
    """Bytes that are already there."""

    def __init__(self, content: bytes, *, name: str) -> None:
        self.name = name
        self.size_bytes = len(content)
        self._content = content

    def at(self, position: int, length: int) -> bytes:
        """As Source."""
        return self._content[position : position + length]


class Reader:
    """A source seen through one window, and what may still be read of it."""

    def __init__(self, source: Source, *, max_fields_n: int = MAX_FIELDS_N) -> None:
        self.source = source
        self.fields_left_n = max_fields_n
        self.texts_left_bytes = MAX_TEXTS_BYTES
        self.window = b""
        self.window_at = 0

    def message(self) -> Span:
        """The whole source as one message."""
        return Span(self, 0, self.source.size_bytes, 0)

    def look(self, position: int, length: int) -> int:
        """Move the window so that ``length`` bytes from ``position`` are in it (where there are); its new place."""
        at = max(0, position - BEHIND_BYTES)
        self.window = self.source.at(at, max(WINDOW_BYTES, position - at + length))
        self.window_at = at
        return at

    def fault(self, position: int, what: str) -> Unreadable:
        """The error that names the place."""
        return Unreadable(f"{self.source.name}, byte {position:,}: {what}")


class Span:
    """A length-delimited field: a message, text or packed numbers, read only when asked."""

    __slots__ = ("_depth_n", "_end", "_reader", "_start")

    def __init__(self, reader: Reader, start: int, end: int, depth_n: int) -> None:
        self._reader = reader
        self._start = start
        self._end = end
        self._depth_n = depth_n

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return self._end - self._start

    def nothing(self) -> Span:
        """An empty message in this one's place: what a field that is not written stands for."""
        return Span(self._reader, self._end, self._end, self._depth_n)

    def fields(self) -> Iterator[tuple[int, int | Span]]:
        """Field numbers and values of a message: whole numbers as int (unsigned), all else as a Span.

        Fixed numbers are spans of 4 or 8 bytes. Raises Unreadable for what is no message, or beyond the bounds.
        """
        reader, position, end, depth_n = self._reader, self._start, self._end, self._depth_n + 1
        if depth_n > MAX_DEPTH_N:
            raise reader.fault(position, f"messages lie more than {MAX_DEPTH_N} deep in one another")
        while position < end:
            reader.fields_left_n -= 1
            if reader.fields_left_n < 0:
                raise reader.fault(position, "more fields than are read of one file")
            tag, position = self._varint(position)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise reader.fault(position, "a field has the number 0, so this is no protobuf message")
            value: int | Span
            if kind == 0:
                value, position = self._varint(position)
            else:
                if kind == 2:
                    length, position = self._varint(position)
                elif kind == 5:
                    length = 4
                elif kind == 1:
                    length = 8
                else:
                    raise reader.fault(position, f"a field has the wire type {kind}, which no model has")
                if position + length > end:
                    raise reader.fault(position, f"a field of {length:,} bytes reaches past the message that holds it")
                value = Span(reader, position, position + length, depth_n)
                position += length
            yield number, value

    def _varint(self, position: int) -> tuple[int, int]:
        reader = self._reader
        index = position - reader.window_at
        window = reader.window
        if index < 0 or index + MAX_VARINT_BYTES > len(window):
            index = position - reader.look(position, MAX_VARINT_BYTES)
            window = reader.window
        end = self._end - reader.window_at
        value = shift = 0
        for at in range(index, index + MAX_VARINT_BYTES):
            if at >= end or at >= len(window):
                raise reader.fault(position, "the message ends inside a number")
            byte = window[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position + at - index + 1
            shift += 7
        raise reader.fault(position, "a number has more than ten bytes")

    def content(self, limit_bytes: int) -> bytes:
        """The bytes; raises Unreadable when there are more than ``limit_bytes``."""
        if self.size_bytes > limit_bytes:
            raise self._reader.fault(
                self._start, f"{self.size_bytes:,} bytes where at most {limit_bytes:,} were expected"
            )
        return self.beginning(self.size_bytes)

    def beginning(self, limit_bytes: int) -> bytes:
        """The first bytes, at most ``limit_bytes``."""
        reader, length = self._reader, min(limit_bytes, self.size_bytes)
        index = self._start - reader.window_at
        if index < 0 or index + length > len(reader.window):
            index = self._start - reader.look(self._start, length)
        found = reader.window[index : index + length]
        if len(found) < length:
            raise reader.fault(self._start, "the file is shorter than it was")
        return found

    def text(self, limit_bytes: int = 1024) -> str:
        """As UTF-8; what is none is replaced."""
        found = self.content(limit_bytes).decode(errors="replace")
        reader = self._reader
        reader.texts_left_bytes -= sys.getsizeof(found)
        if reader.texts_left_bytes < 0:
            raise reader.fault(self._start, f"names and other texts that take more than {MAX_TEXTS_BYTES:,} bytes")
        return found

    def float32(self) -> float:
        """A fixed number of 4 bytes."""
        return float(struct.unpack("<f", self.content(4).rjust(4, b"\0"))[0])

    def numbers(self) -> Iterator[int]:
        """Packed whole numbers."""
        reader, position = self._reader, self._start
        while position < self._end:
            reader.fields_left_n -= 1
            if reader.fields_left_n < 0:
                raise reader.fault(position, "more fields than are read of one file")
            value, position = self._varint(position)
            yield value


def span(value: int | Span) -> Span:
    """The value where the format has something with a length."""
    if isinstance(value, int):
        raise Unreadable("a number stands where a message or text belongs, so this is no such file")
    return value


def number(value: int | Span) -> int:
    """The value where the format has a whole number (unsigned)."""
    if isinstance(value, Span):
        raise Unreadable("text stands where a number belongs, so this is no such file")
    return value


def signed(value: int | Span) -> int:
    """The value where the format has a whole number that may be negative."""
    found = number(value)
    return found - (1 << 64) if found >= 1 << 63 else found


def numbers(value: int | Span, limit_n: int) -> list[int]:
    """A repeated whole number, packed or not; of more than ``limit_n`` one more than these."""
    return [value] if isinstance(value, int) else list(islice(value.numbers(), limit_n + 1))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
