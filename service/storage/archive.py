"""The archive: rollouts as JSON Lines, one whole rollout a line, so that a deleted one can still be read and checked.

A line holds the state, the journal and every stimulus in order (judged windows among them), so that the rollout can be
replayed without a database. A file is written under another name, waited for until the disk has it, and only then
given its name: a file that has its name is whole.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from service.model.journal import JournalEntry, first_broken_row
from service.model.names import RolloutId
from service.model.rollout import RolloutState
from service.ring.ports import PortError
from service.rollout.replay import NotReplayed, replay
from service.storage import tables as t
from service.storage.store import SqlStore

FORMAT = 1
"""Of a line, under its first key. Raised when older readers would misunderstand it."""

MAX_LINE_BYTES = 1 << 30
"""A longer line is no rollout: a month of one-minute windows has about 100 MB."""

PIECE_BYTES = 1 << 20
"""Of a line: as much of it as is held in memory."""


class ArchiveError(PortError):
    """The archive cannot be written or read; the message says which file, why, and what to do."""


async def line_of(store: SqlStore, rollout: RolloutId, at: datetime) -> AsyncIterator[bytes]:
    """The rollout's line as of ``at``, with its end, in pieces of which none grows with the rollout's length; none at
    all when there is no such rollout, or its journal is deleted."""
    state = (await store.load([rollout])).get(rollout)
    if state is None:
        return
    head = json.dumps({"serinus_rollout": FORMAT, "version": version(), "exported_at": at.isoformat()})[:-1]
    before = f'{head}, "state": {state.to_json()}, "journal": ['.encode()
    # A running rollout may have gone on since its state was read.
    journal = store.pages("read the journal", t.journal, rollout, _journal_row)
    async for piece in _pieces(text async for n, text in journal if n <= state.revision):
        yield before + piece
        before = b","
    if before != b",":
        return
    yield b'], "history": ['
    before = b""
    async for piece in _pieces(f"[{n},{text}]" async for n, text in store.stimuli(rollout) if n <= state.revision):
        yield before + piece
        before = b","
    yield b"]}\n"


def _journal_row(row: Any) -> tuple[int, str]:
    """A row's revision and canonical JSON, as this release writes it."""
    entry = JournalEntry.from_json(row.body)
    return entry.revision, entry.to_json()


async def _pieces(texts: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """The texts, a comma between each two, in pieces of about ``PIECE_BYTES``."""
    piece: list[str] = []
    size = 0
    async for text in texts:
        piece.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield ",".join(piece).encode()
            piece, size = [], 0
    if piece:
        yield ",".join(piece).encode()


def version() -> str:
    """The installed version; a replay is sure to be equal only with the version that wrote the line."""
    return importlib.metadata.version("serinus")


class ArchiveFile:
    """One file under way. Every method waits for the disk: call it in a thread. Raises ArchiveError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        self._raw: IO[bytes] | None = None
        self._out: IO[bytes] | None = None
        self._line_at = 0
        self.rollouts_n = 0

    def add(self, piece: bytes) -> None:
        """One more piece of a rollout's line; gzipped when the name ends in .gz."""
        try:
            if self._raw is None:
                self._raw = self._part.open("wb")
            if self._out is None:
                # Each line is gzipped for itself, which readers do not notice, so that one can be taken back.
                self._line_at = self._raw.tell()
                zipped = self.path.suffix == ".gz"
                self._out = gzip.GzipFile("", "wb", fileobj=self._raw) if zipped else self._raw  # type: ignore[assignment]
            self._out.write(piece)  # type: ignore[union-attr]
            # Within a line, JSON has no line break of its own.
            if piece.endswith(b"\n"):
                self._end_line()
                self.rollouts_n += 1
        except OSError as error:
            self.abandon()
            raise self._failed(error) from error

    def take_back(self) -> None:
        """Go on without the line that was begun and cannot be ended."""
        if self._raw is None or self._out is None:
            return
        try:
            self._end_line()
            self._raw.seek(self._line_at)
            self._raw.truncate()
        except OSError as error:
            self.abandon()
            raise self._failed(error) from error

    def _end_line(self) -> None:
        out, self._out = self._out, None
        if out is not None and out is not self._raw:
            out.close()

    def finish(self) -> None:
        """On the disk, under its name; nothing when nothing was added."""
        if self._raw is None or not self.rollouts_n:
            self.abandon()
            return
        try:
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            self._part.rename(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            self.abandon()
            raise self._failed(error) from error

    def abandon(self) -> None:
        """Leave nothing behind."""
        for stream in (self._out, self._raw):
            with suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _failed(self, error: OSError) -> ArchiveError:
        return ArchiveError(
            f"cannot write {self.path}: {error.strerror or error}; create the folder, make it writable or free its disk"
        )


def tidy(folder: Path, prefix: str) -> None:
    """Remove what a crash has left of files with this prefix. Raises ArchiveError for a folder that cannot be used."""
    try:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise ArchiveError(f"{folder} is no folder that can be written; create it, or give Serinus the right")
        for part in folder.glob(f".{prefix}*.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ArchiveError(f"cannot tidy {folder}: {error.strerror or error}; check its disk and rights") from error


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, gzipped or not; of standard input for ``-``. Raises ArchiveError."""
    n = 0
    try:
        with open(0 if str(path) == "-" else path, "rb") as raw:
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
            while line := stream.readline(MAX_LINE_BYTES):
                n += 1
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise ArchiveError(
            f"cannot read {path} after line {n}: {error}; it is damaged, cut off or no export"
        ) from error


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of one line."""

    rollout: str
    intact: bool
    replayed: bool
    """False for an intact line too, when its windows were deleted before it was exported."""
    said: str


def check(line: bytes) -> Checked:
    """Whether the journal's chain is whole and the history replays to the same state and journal, byte for byte."""
    rollout = "(unknown)"
    try:
        given: Any = json.loads(line)
        found = given["serinus_rollout"]
        if found != FORMAT:
            return Checked(rollout, False, False, f"format {found!r} is not known; this release reads {FORMAT}")
        state = RolloutState.from_json(json.dumps(given["state"]))
        rollout = state.id
        rows = [JournalEntry.from_json(json.dumps(row)) for row in given["journal"]]
        history = [(int(n), json.dumps(stimulus)) for n, stimulus in given["history"]]
        writer = str(given["version"])[:40]
    except (ValueError, KeyError, TypeError) as error:
        why = "a value is not as this release knows it" if isinstance(error, ValidationError) else repr(error)[:100]
        return Checked(rollout, False, False, f"no line of an export: {why}")
    broken = first_broken_row(rows)
    if broken is not None:
        return Checked(rollout, False, False, f"journal row {broken} was changed, or one before it is missing")
    if (len(rows), rows[-1].hash if rows else "") != (state.journal_n, state.journal_hash if rows else ""):
        return Checked(
            rollout, False, False, f"the journal has {len(rows)} rows, the state speaks of {state.journal_n}"
        )
    if not {row.revision for row in rows} <= {n for n, _ in history} <= set(range(1, state.revision + 1)):
        return Checked(rollout, False, False, "the history lacks steps of the journal, or has more than the state")
    if missing_n := state.revision - len(history):
        return Checked(rollout, True, False, f"chain intact; {missing_n} windows are not in the line, so no replay")
    try:
        again, told = replay(history)
    except (NotReplayed, ValidationError) as error:
        return Checked(rollout, False, False, f"the replay stops: {str(error).splitlines()[0]}")
    differs = next((a.n for a, b in zip(rows, told, strict=False) if a != b), None)
    if differs is None and again.to_json() == state.to_json() and len(rows) == len(told):
        return Checked(rollout, True, True, f"chain intact, replays to the same state ({state.revision} steps)")
    where = "the last state" if differs is None else f"journal row {differs}"
    hint = "" if writer == version() else f"; it was written by {writer}, replay it with that version"
    return Checked(rollout, False, False, f"the replay differs at {where}{hint}")
