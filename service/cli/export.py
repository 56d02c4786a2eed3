"""`serinus export` and `serinus verify`: rollouts as a file that is read, replayed and checked without a database."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.model.names import RolloutId
    from service.storage.store import SqlStore

PAGE = 100
TOLD_EVERY_N = 50
MAX_HELD_BYTES = 8 << 20
"""Of a line on its way to standard output: what is held in memory."""


def export(
    rollouts: Annotated[list[str] | None, typer.Argument(help="Ids of rollouts, from `serinus get`")] = None,
    ended_before: Annotated[
        str | None, typer.Option(help="All that ended before this moment, as 2026-11-01 or 2026-11-01T06:00Z")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file; gzipped when it ends in .gz")] = Path("-"),
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The settings file")] = None,
) -> None:
    """Write rollouts with journal and windows as JSON Lines.

    One rollout a line. Nothing is changed.

    serinus export r-7k2mqx3p4a -c serinus.yaml > one.jsonl

    serinus export --ended-before 2026-11-01 -o october.jsonl.gz -c serinus.yaml

    serinus verify october.jsonl.gz

    It reads the database itself, also while the service runs: with SQLite run it where the file is. Windows that
    retention has deleted are missing; rollouts whose journal it has deleted are left out. One that cannot be read is
    named and left out; the others are written, and the exit status is 1.
    """
    if bool(rollouts) == bool(ended_before):
        raise typer.BadParameter("name either rollouts or --ended-before")
    before = None if ended_before is None else _moment(ended_before)
    if str(output) != "-" and output.exists():
        raise typer.BadParameter(f"{output} is there already; name a new file")
    lacking_n = asyncio.run(_export(config, rollouts or [], before, output))
    raise typer.Exit(1 if lacking_n else 0)


def verify(file: Annotated[Path, typer.Argument(help="An export; - reads standard input")]) -> None:
    """Check an export: journals unbroken, every replay the same. Exit 1 when anything is wrong.

    Each journal is a chain of hashes, so a changed or missing row shows; and each history is told to the state machine
    once more, which must come to the same journal and the same state, byte for byte.
    """
    from service.storage.archive import check, lines_of

    lines_n = replayed_n = wrong_n = 0
    for lines_n, line in enumerate(lines_of(file), start=1):
        found = check(line)
        replayed_n += found.replayed
        wrong_n += not found.intact
        if not found.replayed:
            word = "ok  " if found.intact else "FAIL"
            typer.echo(_wrapped(f"{word} line {lines_n}, {found.rollout}: {found.said}"))
    typer.echo(
        _wrapped(
            f"{lines_n} rollouts: {lines_n - wrong_n} intact, {replayed_n} replayed to the same state, {wrong_n} wrong"
        )
    )
    raise typer.Exit(1 if wrong_n or not lines_n else 0)


async def _export(config: Path | None, rollouts: list[str], before: datetime | None, output: Path) -> int:
    """How many rollouts are not there that should be: a named one is missing, or one cannot be read."""
    from service.ring.store import Damaged, Unreadable
    from service.settings import load, read_secret
    from service.storage.archive import ArchiveFile, line_of
    from service.storage.opening import open_to_read

    database = load(config).database
    store = await open_to_read(database.url, password=read_secret(database.password_file))
    to_stdout = str(output) == "-"
    file = _StandardOutput() if to_stdout else ArchiveFile(output)
    done_n = bytes_n = lacking_n = 0
    try:
        async for rollout in _chosen(store, rollouts, before):
            line_bytes = 0
            try:
                async for piece in line_of(store, rollout, datetime.now(UTC)):
                    await asyncio.to_thread(file.add, piece)
                    line_bytes += len(piece)
            except (Damaged, Unreadable) as error:
                await asyncio.to_thread(file.take_back)
                lacking_n += 1
                _say(f"{rollout} is left out: {error}")
                continue
            if not line_bytes:
                lacking_n += before is None
                _say(f"{rollout}: there is no such rollout, or retention has deleted its journal")
                continue
            bytes_n += line_bytes
            done_n += 1
            if done_n % TOLD_EVERY_N == 0:
                _say(f"{done_n} rollouts, {bytes_n / 1e6:.1f} MB")
        await asyncio.to_thread(file.finish)
    except BaseException:
        file.abandon()
        raise
    finally:
        await store.close()
    # ``finish`` makes no file of nothing.
    where = "nothing is written" if not done_n else "standard output" if to_stdout else str(output)
    _say(f"{done_n} rollouts, {bytes_n / 1e6:.1f} MB: {where}" + (f"; {lacking_n} left out" if lacking_n else ""))
    return lacking_n


class _StandardOutput:
    """``ArchiveFile``'s methods for what cannot be taken back: a line waits on the disk until it has its end."""

    def __init__(self) -> None:
        self._line = tempfile.SpooledTemporaryFile(MAX_HELD_BYTES)  # noqa: SIM115 - closed by finish and abandon

    def add(self, piece: bytes) -> None:
        """One more piece of a line; the line is written with its end."""
        self._line.write(piece)
        if piece.endswith(b"\n"):
            self._line.seek(0)
            shutil.copyfileobj(self._line, sys.stdout.buffer)
            self.take_back()

    def take_back(self) -> None:
        """Go on without the line that was begun."""
        self._line.seek(0)
        self._line.truncate()

    def finish(self) -> None:
        """All is written."""
        sys.stdout.buffer.flush()
        self.abandon()

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._line.close()


async def _chosen(store: SqlStore, rollouts: list[str], before: datetime | None) -> AsyncIterator[RolloutId]:
    from service.model.names import RolloutId
    from service.ring.store import RolloutFilter

    for rollout in rollouts:
        yield RolloutId(rollout)
    after: str | None = None
    while before is not None:
        page = await store.rollouts(RolloutFilter(active=False), after=after, limit=PAGE)
        for state in page.rollouts:
            if state.phase_since < before:
                yield state.id
        after = page.next_after
        if after is None:
            return


def _moment(given: str) -> datetime:
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(f"{given[:40]!r} is no moment; write 2026-11-01 or 2026-11-01T06:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _say(sentence: str) -> None:
    typer.echo(_wrapped(sentence), err=True)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 80, subsequent_indent="     ", break_long_words=False, break_on_hyphens=False)
