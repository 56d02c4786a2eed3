"""TensorFlow's element types: names by their numbers in types.proto, and bytes an element."""

from __future__ import annotations

_NAMES = (  # noqa: SIM905
    "invalid float double int32 uint8 int16 int8 string complex64 int64 bool qint8 quint8 qint32 bfloat16 qint16 "
    "quint16 uint16 complex128 half resource variant uint32 uint64 float8_e5m2 float8_e4m3fn float8_e4m3fnuz "
    "float8_e4m3b11fnuz float8_e5m2fnuz int4 uint4 int2 uint2 float4_e2m1fn"
).split()

TYPES = dict(enumerate(_NAMES)) | {100 + n: f"{name}_ref" for n, name in enumerate(_NAMES) if n}

ELEMENT_BYTES = {
    **dict.fromkeys(("double", "int64", "complex64", "uint64"), 8),
    **dict.fromkeys(("float", "int32", "uint32", "qint32"), 4),
    **dict.fromkeys(("int16", "uint16", "half", "bfloat16", "qint16", "quint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "qint8", "quint8"), 1),
    **dict.fromkeys((n for n in _NAMES if n.startswith("float8")), 1),
    "complex128": 16,
}
"""Of the types that a checkpoint keeps as plain bytes."""


def type_name(code: int) -> str:
    """``float`` for 1; a number that is not known is shown as one."""
    # A file may hold millions of numbers that are no types; they are not worth a text each.
    return TYPES.get(code) or (f"type {code}" if code < 1000 else "a type of no known number")
