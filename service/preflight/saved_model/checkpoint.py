"""Reads a checkpoint's index without TensorFlow, and holds it against what a graph restores.

``variables.index`` is a table in LevelDB's form: blocks of sorted keys with shared prefixes, each with a checksum; its
values say type, shape and place of each tensor in the data shards, whose content has checksums of its own. Formats:
tensorflow/core/lib/io/format.cc and tensorflow/core/util/tensor_bundle.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from service.preflight.saved_model.graph import MetaGraph, Tensor, Variable
from service.preflight.saved_model.reading import MAX_CHILDREN_N, MAX_OBJECTS_N, MAX_TENSORS_N, read_shape
from service.preflight.saved_model.types import ELEMENT_BYTES, type_name
from service.preflight.saved_model.wire import (
    BytesSource,
    FileSource,
    Reader,
    Source,
    Span,
    Unreadable,
    number,
    signed,
    span,
)

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
BLOCK_TRAILER_BYTES = 5
MAX_INDEX_BYTES = 256 << 20
MAX_BLOCK_BYTES = 16 << 20
"""TensorFlow writes blocks of 256 KiB."""
MAX_BLOCKS_N = 100_000
MAX_KEY_BYTES = 8192
MAX_NAMES_BYTES = 32 << 20
"""Of all tensors together. In the file a name takes only what it does not share with the one before."""
MAX_SHARDS_N = 10_000
MAX_OPEN_SHARDS_N = 256
MAX_DATA_BYTES = 1 << 44
MAX_OBJECT_GRAPH_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
MAX_STRINGS_BYTES = 64 << 20
MAX_STRINGS_N = 1_000_000

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The key under which a checkpoint keeps which object has which variable."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a checkpoint, and where its bytes are."""

    tensor: Tensor
    shard: int
    offset: int
    size_bytes: int
    checksum: int | None
    sliced: bool


@dataclass(frozen=True, slots=True)
class Index:
    """What a checkpoint says of itself."""

    shards_n: int
    tensors: dict[str, Stored]


def read_index(source: Source) -> Index:
    """The index. Raises Unreadable for a damaged one, or beyond the bounds."""
    shards_n = names_bytes = 0
    tensors: dict[str, Stored] = {}
    for key, value in _table(source):
        names_bytes += len(key)
        if names_bytes > MAX_NAMES_BYTES:
            raise Unreadable(f"{source.name} has names of more than {MAX_NAMES_BYTES:,} bytes")
        reader = Reader(BytesSource(value, name=source.name), max_fields_n=100_000)
        if key == b"":
            shards_n = _header(reader.message(), source)
        elif len(tensors) >= MAX_TENSORS_N:
            raise Unreadable(f"{source.name} names more than {MAX_TENSORS_N:,} tensors")
        else:
            tensors[key.decode(errors="replace")] = _entry(reader.message())
    if not shards_n:
        raise Unreadable(f"{source.name} has no header, so it is no checkpoint's index")
    return Index(shards_n, tensors)


def _table(source: Source) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in their order."""
    if source.size_bytes < FOOTER_BYTES:
        raise Unreadable(f"{source.name} has {source.size_bytes} bytes, fewer than a checkpoint's index")
    footer = source.at(source.size_bytes - FOOTER_BYTES, FOOTER_BYTES)
    if len(footer) != FOOTER_BYTES or int.from_bytes(footer[40:], "little") != MAGIC:
        raise Unreadable(f"{source.name} does not end as a checkpoint's index does; it is damaged or cut off")
    position = 0
    for _ in range(2):
        _, position = _varint(footer, position, source)
    start, position = _varint(footer, position, source)
    size, _ = _varint(footer, position, source)
    last: bytes | None = None
    blocks_bytes = 0
    for blocks_n, (_, handle) in enumerate(_block(source, start, size)):
        if blocks_n >= MAX_BLOCKS_N:
            raise Unreadable(f"{source.name} has more than {MAX_BLOCKS_N:,} blocks")
        block_start, at = _varint(handle, 0, source)
        block_size, _ = _varint(handle, at, source)
        blocks_bytes += block_size + BLOCK_TRAILER_BYTES
        if blocks_bytes > source.size_bytes:
            # Each of 100,000 entries could name the same block of 16 MiB.
            raise Unreadable(f"{source.name} has blocks that lie over one another; it is damaged")
        for key, value in _block(source, block_start, block_size):
            if last is not None and key <= last:
                raise Unreadable(f"{source.name} has keys out of order; it is damaged")
            last = key
            yield key, value


def _block(source: Source, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    if size > MAX_BLOCK_BYTES or start + size + BLOCK_TRAILER_BYTES > source.size_bytes:
        raise Unreadable(f"{source.name} has a block of {size:,} bytes at {start:,}, past its end or beyond the bound")
    content = source.at(start, size + BLOCK_TRAILER_BYTES)
    if len(content) != size + BLOCK_TRAILER_BYTES:
        raise Unreadable(f"{source.name} is shorter than it was")
    found = google_crc32c.value(content[: size + 1])
    if _unmasked(int.from_bytes(content[size + 1 :], "little")) != found:
        raise Unreadable(f"{source.name}: checksum of the block at byte {start:,} does not match; it is damaged")
    if content[size]:
        raise Unreadable(f"{source.name} is compressed, which TensorFlow does not do; its entries are not read")
    if size < 4:
        raise Unreadable(f"{source.name} has a block of {size} bytes, which is none")
    restarts_n = int.from_bytes(content[size - 4 : size], "little")
    end = size - 4 - 4 * restarts_n
    if end < 0:
        raise Unreadable(f"{source.name} has a block that says more restarts than it has bytes")
    position, key = 0, b""
    while position < end:
        shared, position = _varint(content, position, source)
        unshared, position = _varint(content, position, source)
        length, position = _varint(content, position, source)
        if shared > len(key) or shared + unshared > MAX_KEY_BYTES or position + unshared + length > end:
            raise Unreadable(f"{source.name} has an entry that reaches past its block; it is damaged")
        key = key[:shared] + content[position : position + unshared]
        position += unshared
        yield key, content[position : position + length]
        position += length


def _varint(content: bytes, position: int, source: Source) -> tuple[int, int]:
    value = 0
    for n in range(10):
        if position + n >= len(content):
            break
        byte = content[position + n]
        value |= (byte & 0x7F) << 7 * n
        if byte < 0x80:
            return value, position + n + 1
    raise Unreadable(f"{source.name} has a number without an end; it is damaged")


def _unmasked(checksum: int) -> int:
    """LevelDB stores checksums turned, so that a checksum of data that holds checksums is not special."""
    turned = (checksum - 0xA282EAD8) & 0xFFFF_FFFF
    return (turned >> 17 | turned << 15) & 0xFFFF_FFFF


def _header(message: Span, source: Source) -> int:
    shards_n = 1
    for n, value in message.fields():
        if n == 1:
            shards_n = number(value)
        elif n == 2 and number(value):
            raise Unreadable(f"{source.name} was written by a big-endian machine; no runtime here reads that")
    if not 0 < shards_n <= MAX_SHARDS_N:
        raise Unreadable(f"{source.name} says {shards_n} shards; at most {MAX_SHARDS_N:,} are read")
    return shards_n


def _entry(message: Span) -> Stored:
    dtype, shard, offset, size = "invalid", 0, 0, 0
    shape: tuple[int, ...] = ()
    checksum: int | None = None
    sliced = False
    for n, value in message.fields():
        if n == 1:
            dtype = type_name(number(value))
        elif n == 2:
            shape = read_shape(span(value)) or ()
        elif n == 3:
            shard = signed(value)
        elif n == 4:
            offset = signed(value)
        elif n == 5:
            size = signed(value)
        elif n == 6:
            checksum = int.from_bytes(span(value).content(4), "little")
        elif n == 7:
            sliced = True
    return Stored(Tensor(dtype, shape), shard, offset, size, checksum, sliced)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's files: ``variables`` is the path without ``.index``."""

    prefix: Path
    index: Index

    def shard(self, number_: int) -> Path:
        """The file of one shard."""
        return self.prefix.with_name(f"{self.prefix.name}.data-{number_:05d}-of-{self.index.shards_n:05d}")

    def misplaced(self) -> list[str]:
        """Tensors that the data files do not hold, each a line for people."""
        lines: list[str] = []
        sizes: dict[int, int] = {}
        for shard in sorted({one.shard for one in self.index.tensors.values() if not one.sliced}):
            if not 0 <= shard < self.index.shards_n:
                lines.append(f"the index names shard {shard} of {self.index.shards_n}")
                continue
            try:
                with FileSource(self.shard(shard), limit_bytes=MAX_DATA_BYTES) as file:
                    sizes[shard] = file.size_bytes
            except Unreadable as error:
                lines.append(str(error))
        for name, one in self.index.tensors.items():
            if one.sliced or one.shard not in sizes:
                continue
            if one.offset < 0 or one.size_bytes < 0 or one.offset + one.size_bytes > sizes[one.shard]:
                lines.append(
                    f"{name} lies at bytes {one.offset:,} to {one.offset + one.size_bytes:,} of "
                    f"{self.shard(one.shard).name}, which has {sizes[one.shard]:,}"
                )
            wanted = _plain_bytes(one.tensor)
            if wanted is not None and wanted != one.size_bytes:
                least = f"{wanted:,}" if wanted <= MAX_DATA_BYTES else "more than any file has"
                lines.append(f"{name} is {_shown(one.tensor)} and has {one.size_bytes:,} bytes instead of {least}")
        return lines

    def damaged(self, stop: threading.Event) -> list[str]:
        """Tensors whose bytes do not have their checksum, each a line for people; reads all the data, until ``stop``.

        Resources and variants are left out, and strings beyond 64 MiB: what their checksums are over is not in a row.
        """
        lines: list[str] = []
        checked = [
            (one.shard, one.offset, name, one)
            for name, one in self.index.tensors.items()
            if not one.sliced and one.checksum is not None and one.tensor.dtype not in ("variant", "resource")
        ]
        files: dict[int, FileSource] = {}
        with contextlib.ExitStack() as stack:
            for shard in sorted({one[0] for one in checked}):
                if len(files) < MAX_OPEN_SHARDS_N:
                    files[shard] = stack.enter_context(FileSource(self.shard(shard), limit_bytes=MAX_DATA_BYTES))
            if sum(one.size_bytes for *_, one in checked) > sum(file.size_bytes for file in files.values()):
                raise Unreadable(f"{self.prefix.name}.index has tensors that lie over one another, or too many shards")
            for shard, _, name, one in sorted(checked, key=lambda item: item[:3]):
                found = (_checksum_of_strings if one.tensor.dtype == "string" else _checksum)(files[shard], one, stop)
                if found is not None and found != _unmasked(one.checksum or 0):
                    lines.append(f"{name}: checksum of its {one.size_bytes:,} bytes does not match")
        return lines

    def object_keys(self) -> Mapping[int, tuple[dict[str, int], dict[str, str]]]:
        """Object number -> its children by name, and its checkpoint keys by attribute. Empty where none is kept."""
        stored = self.index.tensors.get(OBJECT_GRAPH)
        if stored is None or stored.sliced or not 0 < stored.size_bytes <= MAX_OBJECT_GRAPH_BYTES:
            return {}
        with FileSource(self.shard(stored.shard), limit_bytes=MAX_DATA_BYTES) as file:
            content = file.at(stored.offset, stored.size_bytes)
        length, at = _varint(content, 0, file)
        # One string: its length, a checksum of the length, its bytes.
        text = content[at + 4 : at + 4 + length]
        return dict(enumerate(_trackables(Reader(BytesSource(text, name=file.name)).message())))


def _checksum(file: FileSource, one: Stored, stop: threading.Event) -> int:
    checksum = 0
    for at in range(one.offset, one.offset + one.size_bytes, CHUNK_BYTES):
        if stop.is_set():
            raise Unreadable(f"{file.name}: checking the data took longer than it may")
        piece = file.at(at, min(CHUNK_BYTES, one.offset + one.size_bytes - at))
        checksum = google_crc32c.extend(checksum, piece)
    return checksum


def _checksum_of_strings(file: FileSource, one: Stored, stop: threading.Event) -> int | None:
    """Over the lengths as numbers of four bytes, the lengths' own checksum, and the bytes; None where they are many.

    Lengths that are damaged give a checksum that nothing has: -1.
    """
    strings_n = math.prod(one.tensor.shape or ())
    if one.size_bytes > MAX_STRINGS_BYTES or strings_n > MAX_STRINGS_N or stop.is_set():
        return None
    content = file.at(one.offset, one.size_bytes)
    lengths, position = [], 0
    try:
        for _ in range(strings_n):
            length, position = _varint(content, position, file)
            lengths.append(length)
    except Unreadable:
        return -1
    if position + 4 + sum(lengths) != len(content):
        return -1
    numbers = b"".join(length.to_bytes(4, "little") for length in lengths)
    checksum: int = google_crc32c.extend(google_crc32c.value(numbers), content[position:])
    return checksum


def _trackables(message: Span) -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    objects_n = children_n = 0
    for n, value in message.fields():
        if n != 1:
            continue
        objects_n += 1
        if objects_n > MAX_OBJECTS_N:
            raise Unreadable(f"the checkpoint has more than {MAX_OBJECTS_N:,} objects, the most that are read")
        children: dict[str, int] = {}
        keys: dict[str, str] = {}
        for m, inner in span(value).fields():
            children_n += 1
            if children_n > MAX_CHILDREN_N:
                raise Unreadable(f"the checkpoint's objects have more than {MAX_CHILDREN_N:,} children and values")
            if m == 1:
                pair = _picked(inner, 1, 2)
                if 2 in pair:
                    children[span(pair[2]).text(MAX_KEY_BYTES)] = number(pair.get(1, 0))
            elif m == 2:
                one = _picked(inner, 1, 3)
                if 1 in one and 3 in one:
                    keys[span(one[1]).text()] = span(one[3]).text(MAX_KEY_BYTES)
        yield children, keys


def _picked(message: int | Span, *wanted: int) -> dict[int, int | Span]:
    """The last of each of these fields."""
    return {n: value for n, value in span(message).fields() if n in wanted}


def unmet(graph: MetaGraph, restored: Sequence[tuple[str, str]], checkpoint: Checkpoint) -> list[str]:
    """What a graph restores and the checkpoint does not hold in the same type and shape, each a line for people."""
    lines: list[str] = []
    stored = checkpoint.index.tensors
    for name, dtype in restored:
        one = stored.get(name)
        if one is None:
            lines.append(f"the graph restores {name}, which the checkpoint does not hold")
        elif one.tensor.dtype != dtype:
            lines.append(f"the graph restores {name} as {dtype}, the checkpoint holds {one.tensor.dtype}")
    for name, variable in _declared(graph, checkpoint):
        one = stored.get(name)
        if one is None:
            lines.append(f"variable {variable.name} has no value {name} in the checkpoint")
        elif not _same(variable.tensor, one.tensor):
            lines.append(
                f"variable {variable.name} is {_shown(variable.tensor)}, the checkpoint holds {_shown(one.tensor)}"
            )
    return list(dict.fromkeys(lines))


def _declared(graph: MetaGraph, checkpoint: Checkpoint) -> Iterator[tuple[str, Variable]]:
    """Variables with the key of their value in the checkpoint."""
    if graph.objects is None:
        # A V1 saver names a variable as its node; one that is saved otherwise (in parts, renamed) is not looked at.
        yield from ((one.name, one) for one in graph.variables if one.name in checkpoint.index.tensors)
        return
    objects, kept = graph.objects, checkpoint.object_keys()
    if not kept:
        return
    # Both are walked along the names of children from the root, as loading does it.
    waiting, seen = [(0, 0)], {(0, 0)}
    while waiting:
        here, there = waiting.pop()
        children, keys = kept.get(there, ({}, {}))
        variable = objects.variables.get(here)
        if variable is not None and "VARIABLE_VALUE" in keys:
            yield keys["VARIABLE_VALUE"], variable
        for name, child in objects.children.get(here, {}).items():
            pair = (child, children.get(name, -1))
            if pair[1] >= 0 and pair not in seen and len(seen) < MAX_TENSORS_N * 10:
                seen.add(pair)
                waiting.append(pair)


def differing(stable: Index, candidate: Index) -> list[str]:
    """What two checkpoints hold under one name in another type or shape, or only one of them, each a line."""
    lines: list[str] = []
    for name in sorted(stable.tensors.keys() | candidate.tensors.keys()):
        if name == OBJECT_GRAPH or re.search(r"/\.OPTIMIZER_SLOT/|^save_counter/", name):
            continue
        old, new = stable.tensors.get(name), candidate.tensors.get(name)
        if new is None:
            lines.append(f"{name} is not in the candidate's checkpoint")
        elif old is None:
            lines.append(f"{name} is only in the candidate's checkpoint")
        elif old.tensor != new.tensor:
            lines.append(f"{name} is {_shown(new.tensor)} instead of {_shown(old.tensor)}")
    return lines


def _plain_bytes(tensor: Tensor) -> int | None:
    element = ELEMENT_BYTES.get(tensor.dtype)
    if element is None or tensor.shape is None or min(tensor.shape, default=0) < 0:
        return None
    return math.prod(tensor.shape) * element


def _same(declared: Tensor, stored: Tensor) -> bool:
    if declared.dtype != stored.dtype:
        return False
    if declared.shape is None or stored.shape is None:
        return True
    pairs: Sequence[tuple[int, int]] = list(zip(declared.shape, stored.shape, strict=False))
    return len(declared.shape) == len(stored.shape) and all(a in (-1, b) for a, b in pairs)


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape) if tensor.shape is not None else ' of any shape'}"
