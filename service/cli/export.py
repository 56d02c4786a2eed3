"""`serinus export` and `serinus verify`: rollouts as a file that is read, replayed and checked without a database."""

from __future__ import annotations

import asyncio
import sys
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


def export(
    rollouts: Annotated[list[str] | None, typer.Argument(help="Ids of rollouts, from `serinus get`")] = None,
    ended_before: Annotated[
        str | None, typer.Option(help="All that ended before this moment, as 2026-11-01 or 2026-11-01T06:00Z")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file; gzipped when it ends in .gz")] = Path("-"),
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The settings file")] = None,
) -> None:
    """Write rollouts with journal and windows as JSON Lines, one rollout a line. Nothing is changed.

    serinus export r-7k2mqx3p4a -c serinus.yaml > one.jsonl

    serinus export --ended-before 2026-11-01 -o october.jsonl.gz -c serinus.yaml

    serinus verify october.jsonl.gz

    It reads the database itself, also while the service runs: with SQLite run it where the file is. Windows that
    retention has deleted are missing; rollouts whose journal it has deleted are left out.
    """
    if bool(rollouts) == bool(ended_before):
        raise typer.BadParameter("name either rollouts or --ended-before")
    before = None if ended_before is None else _moment(ended_before)
    if str(output) != "-" and output.exists():
        raise typer.BadParameter(f"{output} is there already; name a new file")
    missing_n = asyncio.run(_export(config, rollouts or [], before, output))
    raise typer.Exit(1 if missing_n else 0)


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
    from service.settings import load, read_secret
    from service.storage.archive import ArchiveFile, line_of
    from service.storage.opening import open_to_read

    database = load(config).database
    store = await open_to_read(database.url, password=read_secret(database.password_file))
    to_stdout = str(output) == "-"
    file = ArchiveFile(output)
    done_n = bytes_n = missing_n = 0
    try:
        async for rollout in _chosen(store, rollouts, before):
            piece = b""
            async for piece in line_of(store, rollout, datetime.now(UTC)):
                if to_stdout:
                    sys.stdout.buffer.write(piece)
                else:
                    await asyncio.to_thread(file.add, piece)
                bytes_n += len(piece)
            if not piece:
                missing_n += before is None
                _say(f"{rollout}: there is no such rollout, or retention has deleted its journal")
                continue
            done_n += 1
            if done_n % TOLD_EVERY_N == 0:
                _say(f"{done_n} rollouts, {bytes_n / 1e6:.1f} MB")
        if not to_stdout:
            await asyncio.to_thread(file.finish)
    except BaseException:
        file.abandon()
        raise
    finally:
        await store.close()
    # ``finish`` makes no file of nothing.
    where = "nothing is written" if not done_n else "standard output" if to_stdout else str(output)
    _say(f"{done_n} rollouts, {bytes_n / 1e6:.1f} MB: {where}")
    return missing_n


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
