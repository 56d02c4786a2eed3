"""Writes protobuf messages, SavedModels and checkpoint indexes by hand, for tests: no TensorFlow, no classes.

Independent of what is tested: numbers of fields are TensorFlow's, written here a second time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

FLOAT, DOUBLE, INT32, STRING, INT64, RESOURCE = 1, 2, 3, 7, 9, 20


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def num(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def msg(field: int, *parts: bytes | str) -> bytes:
    content = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return varint(field << 3 | 2) + varint(len(content)) + content


def fixed32(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 5) + content


def entry(field: int, key: str, *value: bytes) -> bytes:
    """One entry of a map."""
    return msg(field, msg(1, key), msg(2, *value))


def dtype(code: int) -> bytes:
    return num(6, code)


def dtypes(*codes: int) -> bytes:
    return msg(1, msg(6, *map(varint, codes)))


def text(value: str) -> bytes:
    return msg(2, value)


def func(name: str) -> bytes:
    return msg(10, msg(1, name))


def flag(value: bool) -> bytes:
    return num(5, value)


def shape(*sizes: int) -> bytes:
    return b"".join(msg(2, num(1, size)) for size in sizes)


def strings(*values: str) -> bytes:
    """An AttrValue that holds a tensor of strings."""
    return msg(8, num(1, STRING), msg(2, shape(len(values))), *(msg(8, value) for value in values))


def node(name: str, op: str, *inputs: str, attrs: Mapping[str, bytes] = {}, device: str = "", field: int = 1) -> bytes:
    parts = [msg(1, name), msg(2, op), *(msg(3, one) for one in inputs)]
    if device:
        parts.append(msg(4, device))
    return msg(field, *parts, *(entry(5, key, value) for key, value in attrs.items()))


def function(name: str, *nodes: bytes, attrs: Mapping[str, bytes] = {}) -> bytes:
    """Nodes are made with ``field=3``."""
    return msg(1, msg(1, msg(1, name)), *nodes, *(entry(5, key, value) for key, value in attrs.items()))


def op_def(
    name: str,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    attrs: Mapping[str, tuple[str, bytes | None, bytes | None]] = {},
) -> bytes:
    """Arguments by the name of their type attribute; attributes by kind, default and allowed values."""
    parts = [msg(1, name)]
    parts += [msg(2, msg(1, one), msg(4, one)) for one in inputs]
    parts += [msg(3, msg(1, one), msg(4, one)) for one in outputs]
    for attr, (kind, default, allowed) in attrs.items():
        inner = [msg(1, attr), msg(2, kind)]
        inner += [msg(3, default)] if default is not None else []
        inner += [msg(7, allowed)] if allowed is not None else []
        parts.append(msg(4, *inner))
    return msg(1, *parts)


def tensor_info(name: str, code: int = FLOAT, *sizes: int) -> bytes:
    return msg(1, name) + num(2, code) + msg(3, shape(*sizes))


def signature(
    key: str, inputs: Mapping[str, bytes], outputs: Mapping[str, bytes], method: str = "tensorflow/serving/predict"
) -> bytes:
    return entry(
        5,
        key,
        *(entry(1, name, one) for name, one in inputs.items()),
        *(entry(2, name, one) for name, one in outputs.items()),
        msg(3, method),
    )


def meta_graph(
    *nodes: bytes,
    functions: Iterable[bytes] = (),
    op_defs: Iterable[bytes] = (),
    signatures: Iterable[bytes] = (),
    objects: bytes | None = b"",
    tags: Iterable[str] = ("serve",),
    versions: bytes = num(1, 1482),
    more: bytes = b"",
) -> bytes:
    """Objects None: a V1 graph."""
    info = msg(1, msg(2, *op_defs), *(msg(4, tag) for tag in tags), msg(5, "2.13.0"), num(7, 1))
    graph = msg(2, *nodes, msg(2, *functions), msg(4, versions))
    return msg(2, info, graph, *signatures, more, msg(7, objects) if objects is not None else b"")


def saved_model(*graphs: bytes) -> bytes:
    return num(1, 1) + b"".join(graphs)


def simple(op: str = "Relu", *, attrs: Mapping[str, bytes] | None = None, **more: Any) -> bytes:
    """A model whose one signature runs one op in a function."""
    attrs = {"T": dtype(FLOAT)} if attrs is None else attrs
    return saved_model(
        meta_graph(
            node("x", "Placeholder", attrs={"dtype": dtype(FLOAT)}),
            node(
                "call", "PartitionedCall", "x", attrs={"Tin": dtypes(FLOAT), "Tout": dtypes(FLOAT), "f": func("serve")}
            ),
            functions=[function("serve", node("it", op, "x", attrs=attrs, field=3)), *more.pop("functions", ())],
            signatures=more.pop(
                "signatures",
                [signature("serving_default", {"x": tensor_info("x:0", FLOAT, -1, 4)}, {"y": tensor_info("call:0")})],
            ),
            **more,
        )
    )


def write_model(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(content)
    return folder


# Checkpoints


def masked(checksum: int) -> int:
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFF_FFFF


def sealed_block(entries: Iterable[tuple[int, bytes, bytes]], kind: int = 0) -> bytes:
    """Entries by how many bytes of the key before they share, the rest of the key, the value."""
    content = b"".join(
        varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value for shared, rest, value in entries
    ) + struct.pack("<II", 0, 1)
    content += bytes([kind])
    return content + struct.pack("<I", masked(google_crc32c.value(content)))


def table_of(data: bytes, *, times: int = 1) -> bytes:
    """A LevelDB table of one block of data, which its index may name several times."""

    def handle(start: int, whole: bytes) -> bytes:
        return varint(start) + varint(len(whole) - 5)

    meta = sealed_block([])
    index = sealed_block([(0, b"~", handle(0, data))] * times)
    footer = handle(len(data), meta) + handle(len(data) + len(meta), index)
    return data + meta + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def table(entries: Sequence[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """A table of keys and values."""
    return table_of(sealed_block([(0, key, value) for key, value in entries], kind))


def packed_strings(*values: bytes) -> bytes:
    """A string tensor's bytes: lengths, a checksum of the lengths, the strings."""
    lengths = b"".join(struct.pack("<I", len(one)) for one in values)
    head = b"".join(varint(len(one)) for one in values)
    return head + struct.pack("<I", masked(google_crc32c.value(lengths))) + b"".join(values)


def bundle_entry(code: int, sizes: Sequence[int], offset: int, content: bytes, *, shard: int = 0) -> bytes:
    covered = content
    if code == STRING:
        # Lengths are covered as numbers of four bytes, not as they are written.
        lengths, at = [], 0
        for _ in range(math.prod(sizes)):
            length = shift = 0
            while True:
                length |= (content[at] & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if content[at - 1] < 0x80:
                    break
            lengths.append(length)
        covered = b"".join(struct.pack("<I", one) for one in lengths) + content[at:]
    checksum = struct.pack("<I", masked(google_crc32c.value(covered)))
    parts = [num(1, code), msg(2, shape(*sizes)), num(3, shard), num(4, offset), num(5, len(content))]
    return b"".join(parts) + fixed32(6, checksum)


def write_checkpoint(prefix: Path, tensors: Mapping[str, tuple[int, Sequence[int], bytes]]) -> Path:
    """Tensors by name: type, shape, bytes."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    data, entries = b"", [(b"", num(1, 1))]
    for name, (code, sizes, content) in sorted(tensors.items()):
        entries.append((name.encode(), bundle_entry(code, sizes, len(data), content)))
        data += content
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return prefix
