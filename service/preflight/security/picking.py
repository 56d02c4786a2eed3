"""Picks what is wanted out of JSON of any size, while it streams by.

A report may have 500 MB, of which a few names a finding are wanted. So nothing is built of the rest: a shape says which
members are wanted and of which type they must be, entries of long lists are handed over one by one, and what is neither
is skipped. Memory is bounded by the longest text (MAX_TEXT_BYTES), the depth (MAX_DEPTH) and what the handlers keep.

Written by others, a report may be malformed on purpose. What a shape names must have its type and stand there once: of
two members with one name, readers elsewhere take the first or the last, and a gate must not be the one that is fooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import ijson

from service.preflight.report import readable

SLICE_BYTES = 64 * 1024
"""The parser gets so much at a time: what it makes of one slice is held at once."""

MAX_TEXT_BYTES = 512 * 1024
"""A longer text or number anywhere refuses the whole document. The parser reads a text that goes on from its start
again with every slice, so this bounds time as well."""

MAX_DEPTH = 64
MAX_KEY_N = 100
"""Keys of maps are cut to so many characters, as texts that refer to them are."""

MAX_CACHED_TEXT_N = 100
MAX_CACHED_TEXTS_N = 100_000
"""Texts that repeat are held once: up to so many, of up to so many characters."""


class Malformed(Exception):
    """The document is not what it should be. The message says where and what was found."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text, cut to a number of characters; null is taken for absent. ``numbers``: a number will do, as its digits."""

    limit_n: int = 100
    numbers: bool = False


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false; null is taken for absent."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object of which some members are wanted: comes as a dict of those that are there. Null is an empty one."""

    wanted: Mapping[str, Shape]
    others: Callable[[str], None] | None = None
    """Told of each member that is not wanted."""


@dataclass(frozen=True, slots=True)
class Items:
    """An array. With a handler each entry is handed over and not kept; else a list of at most ``limit_n`` comes."""

    of: Shape
    handle: Callable[[Any], None] | None = None
    limit_n: int = 1000


@dataclass(frozen=True, slots=True)
class Entries:
    """An object used as a map: each key with its value is handed over and not kept; an empty dict comes."""

    of: Shape
    handle: Callable[[str, Any], None]


Shape: TypeAlias = Text | Flag | Fields | Items | Entries


@dataclass(slots=True)
class _Frame:
    """One open object or array of those that are wanted."""

    shape: Fields | Items | Entries
    made: Any
    key: str = ""
    child: Shape | None = None
    """The shape of the member that comes next; None: it is skipped."""
    n: int = 0
    seen: set[str] = field(default_factory=set)


class _Parser(Protocol):
    def send(self, data: bytes) -> object: ...

    def close(self) -> None: ...


class Picker:
    """Takes a document in pieces. ``feed`` each, then ``close``, which gives what the shape asks of the root.

    Both raise Malformed, and after that the document is lost. Handlers may raise it too; they see entries in the order
    of the document, and an entry before the object that holds it.
    """

    def __init__(self, root: Fields) -> None:
        self._root = root
        self._events: Any = ijson.sendable_list()
        self._parser: _Parser = cast(_Parser, ijson.basic_parse_coro(self._events, use_float=True))
        self._frames: list[_Frame] = []
        self._skipped = 0
        """How many levels of what is not wanted are open."""
        self._quiet_bytes = 0
        self._result: dict[str, Any] | None = None
        self._texts: dict[str, str] = {}
        """Reports repeat names a thousand times; each is held once."""

    def feed(self, data: bytes) -> None:
        """The next piece, of any length."""
        for start in range(0, len(data), SLICE_BYTES):
            piece = data[start : start + SLICE_BYTES]
            self._parse(lambda piece=piece: self._parser.send(piece))  # type: ignore[misc]
            self._quiet_bytes = 0 if self._events else self._quiet_bytes + len(piece)
            if self._quiet_bytes > MAX_TEXT_BYTES:
                raise Malformed(f"{self._where()} goes on for more than {MAX_TEXT_BYTES // 1024} KiB")
            self._take_events()

    def close(self) -> dict[str, Any]:
        """The end of the document."""
        self._parse(self._parser.close)
        self._take_events()
        if self._result is None:
            raise Malformed("the document ends before it is complete")
        return self._result

    def _parse(self, act: Callable[[], object]) -> None:
        try:
            act()
        except StopIteration:
            # The parser had come to its end with an error already.
            raise Malformed("the document goes on after its end") from None
        except (ijson.JSONError, ValueError, OverflowError) as error:
            said = " ".join(str(error).split())
            # Where text was found that is no JSON, the parser's message repeats some of it after the first line.
            raise Malformed(f"no valid JSON after {self._where()}: {readable(said, 120)}") from None

    def _take_events(self) -> None:
        events: Iterable[tuple[str, Any]] = self._events
        for event, value in events:
            if self._skipped:
                if event in _OPENING:
                    self._deeper()
                elif event in _CLOSING:
                    self._skipped -= 1
            else:
                self._take(event, value)
        del self._events[:]

    def _deeper(self) -> None:
        self._skipped += 1
        self._check_depth()

    def _check_depth(self) -> None:
        if len(self._frames) + self._skipped > MAX_DEPTH:
            raise Malformed(f"{self._where()} is nested more than {MAX_DEPTH} levels deep")

    def _take(self, event: str, value: Any) -> None:
        frames = self._frames
        if event == "map_key":
            self._take_key(frames[-1], value)
        elif event in _CLOSING:
            self._put(frames.pop().made)
        else:
            shape: Shape | None = self._root
            if frames:
                top = frames[-1]
                if type(top.shape) is Items:
                    top.n += 1
                    top.child = top.shape.of
                shape = top.child
            if shape is None:
                if event in _OPENING:
                    self._deeper()
            elif event in _OPENING:
                self._open(shape, event)
            else:
                self._put(self._scalar(shape, event, value))

    def _take_key(self, top: _Frame, key: str) -> None:
        shape = top.shape
        top.key = key
        if type(shape) is Entries:
            top.child = shape.of
        else:
            assert isinstance(shape, Fields)
            top.child = shape.wanted.get(key)
            if top.child is None:
                if shape.others is not None:
                    shape.others(key)
            elif key in top.seen:
                raise Malformed(f"{self._where()} stands there twice")
            else:
                top.seen.add(key)

    def _open(self, shape: Shape, event: str) -> None:
        is_map = event == "start_map"
        if not isinstance(shape, Fields | Entries if is_map else Items):
            raise self._unexpected(shape, "an object" if is_map else "an array")
        made: dict[str, Any] | list[Any] = {} if is_map else []
        self._frames.append(_Frame(shape, made))
        self._check_depth()

    def _scalar(self, shape: Shape, event: str, value: Any) -> Any:
        if event == "null":
            return {} if isinstance(shape, Fields) else None
        if isinstance(shape, Text):
            if event == "string":
                cut = value[: shape.limit_n]
                if len(cut) > MAX_CACHED_TEXT_N:
                    return cut
                if len(self._texts) < MAX_CACHED_TEXTS_N:
                    return self._texts.setdefault(cut, cut)
                return self._texts.get(cut, cut)
            if shape.numbers and event in ("number", "integer", "double"):
                return str(value)[: shape.limit_n]
        elif isinstance(shape, Flag) and event == "boolean":
            return value
        raise self._unexpected(shape, _CALLED.get(event, "a number"))

    def _put(self, value: Any) -> None:
        """Give a complete value to what holds it."""
        if not self._frames:
            self._result = value
            return
        top = self._frames[-1]
        shape = top.shape
        if type(shape) is Fields:
            if value is not None:
                top.made[top.key] = value
        elif type(shape) is Entries:
            shape.handle(top.key[:MAX_KEY_N], value)
        elif type(shape) is Items:
            if shape.handle is not None:
                shape.handle(value)
            elif value is not None:
                if len(top.made) >= shape.limit_n:
                    raise Malformed(f"{self._where()}: more than {shape.limit_n} entries")
                top.made.append(value)

    def _unexpected(self, shape: Shape, found: str) -> Malformed:
        return Malformed(f"{self._where()} should be {_EXPECTED[type(shape)]} and is {found}")

    def _where(self) -> str:
        """As people write it: ``Results[0].Vulnerabilities[12].Severity``."""
        said = ""
        for frame in self._frames:
            if isinstance(frame.shape, Items):
                said += f"[{max(0, frame.n - 1)}]"
            elif frame.key:
                said += f"{'.' if said else ''}{readable(frame.key, 40)}"
        return readable(said, 200) or "the document"


_OPENING = frozenset({"start_map", "start_array"})
_CLOSING = frozenset({"end_map", "end_array"})
_CALLED = {"string": "a text", "boolean": "true or false", "null": "null"}
_EXPECTED: dict[type, str] = {
    Text: "a text",
    Flag: "true or false",
    Fields: "an object",
    Entries: "an object",
    Items: "an array",
}
