"""Where reports come from: a file below the operator's folder, an HTTPS address, or the registry beside the image.

Each is read piece by piece, so that a report of 500 MB costs time and no memory; only what is attached in a registry
comes in one piece, because its digest must be right before any of it is believed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from service.model.gates.security import ReportPlace
from service.preflight.outside import Outside
from service.preflight.report import readable
from service.preflight.security.picking import Malformed
from service.preflight.security.reading import ReportReader
from service.preflight.security.reports import Nothing, Report
from service.preflight.threads import in_thread
from service.ring.ports import Refused, Unavailable

MAX_REPORT_BYTES = 512 * 1024 * 1024
MAX_ATTACHED_BYTES = 64 * 1024 * 1024
TIMEOUT_S = 110.0
"""For a whole report; the gate's own limit may be shorter."""

PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class KnownImage:
    """What a registry says of an image."""

    digests: frozenset[str]
    """Of its index, its manifest and its configuration, as far as there are such."""
    user: str
    """USER of its configuration; empty for none, which is root."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What was attached to an image in its registry."""

    body: bytes
    created: datetime | None


class Images(Protocol):
    """The registries. Both raise ``PortError``."""

    async def known(self, reference: str, platform: str) -> KnownImage:
        """What the image's registry says of it."""

    async def attached(self, reference: str, platform: str, media_type: str, *, limit_bytes: int) -> Attached:
        """The newest artifact of this type that refers to the image, verified against its digest."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A report that is about to be read."""

    what: str
    """For sentences."""
    written: datetime | None
    """When the place that holds it says that it was written."""
    pieces: AsyncIterator[bytes]


class ReportSources:
    """Opens reports. What is not given is not to be had, which is said when a target asks for it.

    folder : below which files are; links out of it are not followed
    outside : for addresses
    images : for what is attached in registries
    """

    def __init__(
        self, *, folder: Path | None = None, outside: Outside | None = None, images: Images | None = None
    ) -> None:
        self._folder = folder
        self._outside = outside
        self._images = images

    def opened(self, place: ReportPlace, reference: str, platform: str) -> AbstractAsyncContextManager[Opened]:
        """Open the report at a place; ``reference`` is the image whose registry is asked. Raises PortError."""
        if place.file is not None:
            return self._file(place.file)
        if place.url is not None:
            return self._url(place.url)
        return self._referrer(place.referrer or "", reference, platform)

    @asynccontextmanager
    async def _file(self, name: str) -> AsyncIterator[Opened]:
        if self._folder is None:
            raise Refused(f"report {name!r}: no folder for reports is set")
        folder = await in_thread(self._folder.resolve)
        file = await in_thread((folder / name).resolve)
        if not file.is_relative_to(folder):
            raise Refused(f"report {name!r} lies outside of the folder for reports")
        async with opened_file(file, name) as opened:
            yield opened

    @asynccontextmanager
    async def _url(self, url: str) -> AsyncIterator[Opened]:
        shown = readable(url.partition("?")[0])
        if self._outside is None:
            raise Refused(f"report {shown}: reports are not fetched here")
        async with self._outside.opened(url, limit_bytes=MAX_REPORT_BYTES, timeout_s=TIMEOUT_S) as answer:
            if answer.status != 200:
                kind = Unavailable if answer.status >= 500 or answer.status == 429 else Refused
                raise kind(f"{answer.url} answers {answer.status} instead of a report")
            yield Opened(answer.url, _http_date(answer.headers.get("Last-Modified", "")), answer.chunks())

    @asynccontextmanager
    async def _referrer(self, media_type: str, reference: str, platform: str) -> AsyncIterator[Opened]:
        what = f"{media_type} attached to {readable(reference)}"
        if self._images is None:
            raise Refused(f"report {what}: registries are not asked here")
        if not reference:
            raise Refused(f"a report of type {media_type} is looked for at the candidate's image, which is not known")
        attached = await self._images.attached(reference, platform, media_type, limit_bytes=MAX_ATTACHED_BYTES)
        yield Opened(what, attached.created, _pieces_of(attached.body))


@asynccontextmanager
async def opened_file(file: Path, name: str) -> AsyncIterator[Opened]:
    """A report in a file, whatever its folder. Raises Refused."""
    stream, state = await in_thread(_open_regular, file, name)
    try:
        yield Opened(name, datetime.fromtimestamp(state.st_mtime, UTC), _pieces_of_file(stream, name))
    finally:
        await in_thread(stream.close)


async def read(opened: Opened) -> Report:
    """The report. Raises PortError, Malformed, Nothing."""
    reader = ReportReader()
    try:
        async for piece in opened.pieces:
            # In a thread, so that others of the loop are served between the slices of a large report.
            await in_thread(reader.feed, piece)
        return await in_thread(reader.close)
    except Malformed as error:
        raise Malformed(f"{opened.what} is no report that can be read: {error}") from error
    except Nothing as error:
        raise Nothing(f"{opened.what}: {error}") from error


def _open_regular(file: Path, name: str) -> tuple[BinaryIO, os.stat_result]:
    try:
        # Not blocking, so that a pipe or a device in the folder cannot hold the gate up.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"report {name!r} cannot be opened: {error.strerror}") from error
    state = os.fstat(descriptor)
    regular = stat.S_ISREG(state.st_mode)
    if not regular or state.st_size > MAX_REPORT_BYTES:
        os.close(descriptor)
        why = f"has {state.st_size} bytes; at most {MAX_REPORT_BYTES} are read" if regular else "is no file"
        raise Refused(f"report {name!r} {why}")
    return os.fdopen(descriptor, "rb", buffering=0), state


async def _pieces_of_file(stream: BinaryIO, name: str) -> AsyncIterator[bytes]:
    read_bytes = 0
    while True:
        try:
            piece = await in_thread(stream.read, PIECE_BYTES)
        except OSError as error:
            raise Unavailable(f"report {name!r} cannot be read: {error.strerror}") from error
        if not piece:
            return
        read_bytes += len(piece)
        if read_bytes > MAX_REPORT_BYTES:
            raise Refused(f"report {name!r} grew beyond {MAX_REPORT_BYTES} bytes while it was read")
        yield piece


async def _pieces_of(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text[:60]).astimezone(UTC) if text else None
    except (ValueError, OverflowError):
        return None
