"""What kind of model a path holds, by what lies there; and what can be said of the kinds that are no SavedModel.

A ``.keras`` file is a zip archive that others made: its list is bounded before it is read, members are read to a limit
whatever they claim to hold, and nothing is unpacked to a disk.
"""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import msgspec

from service.preflight.saved_model.wire import FileSource, Unreadable

MAX_ARCHIVE_BYTES = 1 << 40
MAX_MEMBERS_N = 20_000
MAX_LIST_BYTES = 4 << 20
MAX_METADATA_BYTES = 64 << 10
MAX_CONFIG_BYTES = 8 << 20
MAX_LAYERS_N = 200_000
CHUNK_BYTES = 1 << 20
WEIGHTS = "model.weights.h5"
CODE = ("Lambda", "__lambda__")
"""Classes that carry Python's bytecode: the layer, and a function that was written as a lambda, say for an activation.
Keras of all versions refuses either."""
PACKAGES = ("keras", "tf_keras", "builtins")
"""Where Keras' own classes are; functions such as ``relu`` were written as of builtins."""
MAX_NAMED_N = 20
END_BYTES = 22
LONG_END_BYTES, LOCATOR_BYTES = 56, 20
MAX_COMMENT_BYTES = 65_535
MAX_FOLDER_ENTRIES_N = 10_000


class Kind(StrEnum):
    """Kinds of models, in words for people."""

    SAVED_MODEL = "SavedModel"
    HUB_V1 = "TF1 Hub module"
    CHECKPOINT = "checkpoint"
    KERAS = ".keras archive"
    HDF5 = "HDF5 file of Keras"
    TFLITE = "TensorFlow Lite model"
    CHUNKED = "SavedModel in chunks (saved_model.cpb)"
    TEXT = "SavedModel as text (saved_model.pbtxt)"
    VERSIONS = "folder of versions"


@dataclass(frozen=True, slots=True)
class KerasArchive:
    """What a ``.keras`` file says of itself."""

    keras_version: str
    lambdas: tuple[str, ...]
    """Layers that carry code of their own; Keras refuses them unless it is told to run foreign code."""
    foreign: tuple[str, ...]
    """Classes and functions of other modules than Keras', which only a server that registers them can load."""


def kind_of(path: Path) -> Kind:
    """Raises Unreadable for what is none of them; the message says what was looked for."""
    if path.is_dir():
        names = set(_names(path))
        for name, kind in (
            ("tfhub_module.pb", Kind.HUB_V1),
            ("saved_model.pb", Kind.SAVED_MODEL),
            ("saved_model.cpb", Kind.CHUNKED),
            ("saved_model.pbtxt", Kind.TEXT),
        ):
            if name in names:
                return kind
        if names and all(name.isdecimal() for name in names):
            return Kind.VERSIONS
        raise Unreadable(f"the folder {path.name} holds no saved_model.pb; name the folder that does")
    if path.with_name(path.name + ".index").is_file():
        return Kind.CHECKPOINT
    with FileSource(path, limit_bytes=MAX_ARCHIVE_BYTES) as source:
        beginning = source.at(0, 8)
    if beginning[:4] == b"PK\3\4":
        return Kind.KERAS
    if beginning == b"\x89HDF\r\n\x1a\n":
        return Kind.HDF5
    if beginning[4:] == b"TFL3":
        return Kind.TFLITE
    if path.name == "saved_model.pb":
        raise Unreadable(f"{path.name} is a part of a model; name the folder that it lies in")
    raise Unreadable(f"{path.name} is neither a SavedModel's folder nor a checkpoint, .keras, HDF5 or TFLite file")


def _names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for n, entry in enumerate(entries):
                if n >= MAX_FOLDER_ENTRIES_N:
                    raise Unreadable(f"the folder {folder.name} has more than {MAX_FOLDER_ENTRIES_N:,} entries")
                yield entry.name
    except OSError as error:
        raise Unreadable(f"the folder {folder.name} cannot be listed: {error.strerror}") from error


def read_keras(path: Path, stop: threading.Event, *, data: bool = True) -> KerasArchive:
    """Raises Unreadable for anything that is no ``.keras`` file, is damaged, or beyond the bounds.

    data : read the weights, too, until ``stop``, and hold them against their checksum
    """
    _bounded_list(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                parts = member.filename.replace("\\", "/").split("/")
                if member.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
                    raise Unreadable(f"{path.name} has a member that leads outside of it; nobody should unpack it")
            metadata = _json(_member(archive, "metadata.json", MAX_METADATA_BYTES, path), path)
            config = _json(_member(archive, "config.json", MAX_CONFIG_BYTES, path), path)
            if WEIGHTS not in archive.namelist():
                raise Unreadable(f"{path.name} has no {WEIGHTS}, so it is no .keras file")
            with _opened(archive, WEIGHTS, path) as weights:
                while data and weights.read(CHUNK_BYTES):
                    if stop.is_set():
                        raise Unreadable(f"checking {WEIGHTS} of {path.name} took longer than it may")
    # zipfile lets through whatever its parts raise.
    except (
        zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError,
        KeyError,
    ) as error:  # fmt: skip
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"{path.name} cannot be read as an archive: {str(error)[:200]}") from error
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    if not isinstance(version, str):
        raise Unreadable(f"{path.name} does not say which Keras wrote it")
    return _described(version, config)


def _bounded_list(path: Path) -> None:
    """Refuse an archive whose list of members would fill the memory, before zipfile reads all of it."""
    with FileSource(path, limit_bytes=MAX_ARCHIVE_BYTES) as source:
        tail_at = max(0, source.size_bytes - END_BYTES - MAX_COMMENT_BYTES)
        tail = source.at(tail_at, END_BYTES + MAX_COMMENT_BYTES)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) - at < END_BYTES:
            raise Unreadable(f"{path.name} does not end as an archive does; it is damaged or cut off")
        members_n, list_bytes = struct.unpack_from("<HI", tail, at + 10)
        # Beyond 4 GB the numbers are in a longer record. Some readers take it from right before its locator, some from
        # where that points to; so it must be the same, or another list would be read than the one that is bounded.
        before_at = tail_at + at - LONG_END_BYTES - LOCATOR_BYTES
        before = source.at(max(0, before_at), LONG_END_BYTES + LOCATOR_BYTES + min(0, before_at))
        locator = before[-LOCATOR_BYTES:]
        if locator[:4] == b"PK\6\7":
            if before[:4] != b"PK\6\6" or struct.unpack_from("<Q", locator, 8)[0] != before_at:
                raise Unreadable(f"{path.name} does not end as an archive does; it is damaged or cut off")
            members_n, list_bytes = struct.unpack_from("<QQ", before, 32)
    if members_n > MAX_MEMBERS_N or list_bytes > MAX_LIST_BYTES:
        raise Unreadable(f"{path.name} lists {members_n:,} members in {list_bytes:,} bytes; a model has a handful")


def _opened(archive: zipfile.ZipFile, name: str, path: Path) -> IO[bytes]:
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unreadable(f"{path.name} packs {name} in a way that Keras does not use")
    return archive.open(member)


def _member(archive: zipfile.ZipFile, name: str, limit_bytes: int, path: Path) -> bytes:
    with _opened(archive, name, path) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise Unreadable(f"{name} of {path.name} has more than {limit_bytes:,} bytes")
    return content


def _json(content: bytes, path: Path) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"the description in {path.name} is no JSON: {str(error)[:100]}") from error


def _described(version: str, config: Any) -> KerasArchive:
    """What the description says, wherever it stands: what carries code, and what is not Keras' own."""
    lambdas: list[str] = []
    foreign: dict[str, None] = {}
    waiting, seen_n = [config], 0
    while waiting:
        one = waiting.pop()
        seen_n += 1
        if seen_n > MAX_LAYERS_N * 10:
            raise Unreadable("the model's description has too many parts to be read")
        if isinstance(one, dict):
            kind, module = one.get("class_name"), one.get("module")
            if kind in CODE and len(lambdas) < MAX_NAMED_N:
                inner = one.get("config")
                name = inner.get("name") if isinstance(inner, dict) else None
                lambdas.append(str(name or "lambda")[:60])
            elif isinstance(kind, str) and isinstance(module, str):
                # Names in underscores are of values that Keras writes in a form of its own.
                own = module.partition(".")[0] in PACKAGES or kind.startswith("__")
                if not own and len(foreign) < MAX_NAMED_N:
                    foreign[f"{module[:60]}.{kind[:60]}"] = None
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return KerasArchive(version[:32], tuple(lambdas), tuple(foreign))
