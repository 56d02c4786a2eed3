"""What a model server answered, as named tensors, whichever of the three forms it was in. Pure; bounded in all ways.

JSON tells less than tensors hold, so types are those that can be told: a server of the v2 protocol names them,
elsewhere a number is ``integer`` or ``number`` by how it was written. NaN and infinity have no JSON: servers write bare
``NaN`` and ``Infinity`` (TensorFlow Serving), quote them, or write ``null``; all three are read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.model.gates.golden import Protocol

MAX_DEPTH = 32
MAX_OUTPUTS = 256
MAX_NAME = 200
MAX_VALUES = 500_000
"""Values of one answer. A list of so many strings is some 50 MB in memory."""

NON_FINITE = {
    "nan": np.nan, "+nan": np.nan, "-nan": np.nan, "inf": np.inf, "+inf": np.inf, "infinity": np.inf,
    "+infinity": np.inf, "-inf": -np.inf, "-infinity": -np.inf,
}  # fmt: skip
"""How quoted numbers that are none are written, in lower case."""

FLOATS = {"FP16", "FP32", "FP64", "BF16"}
INTEGERS = {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}


class Unreadable(ValueError):
    """The answer holds no outputs that could be read. The message says what was found instead."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """One named tensor of an answer."""

    dtype: str
    """As the v2 protocol names it; told from JSON: number, integer, bool, string, mixed, null or empty."""
    shape: tuple[int, ...]
    values: NDArray[Any]
    """All values in row-major order: float64 for ``numeric``, else objects that are equal or not."""

    @property
    def numeric(self) -> bool:
        """Whether values are compared with a tolerance, and may be NaN or infinite."""
        return self.values.dtype == np.float64


def read(body: bytes, protocol: Protocol) -> dict[str, Output]:
    """The outputs by name; raises Unreadable."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise Unreadable(f"holds more than {MAX_VALUES:,} values")
    try:
        given = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise Unreadable("is nested too deeply") from None
    except ValueError:
        raise Unreadable("is no JSON") from None
    found: dict[str, Output] = {}
    match protocol:
        case Protocol.TENSORFLOW_SERVING:
            _tensorflow_serving(given, found)
        case Protocol.KSERVE_V2:
            _kserve_v2(given, found)
        case Protocol.HTTP_JSON:
            _collect(given, "", found, 0)
    if not found:
        raise Unreadable("holds no outputs")
    return found


def _tensorflow_serving(given: Any, into: dict[str, Output]) -> None:
    match given:
        case {"error": said}:
            raise Unreadable(f"is an error: {said}")
        case {"predictions": rows}:
            _collect(rows, "", into, 0, unnamed="predictions")
        case {"outputs": columns}:
            _collect(columns, "", into, 0, unnamed="outputs")
        case {"results": list(results)}:
            _results(results, into)
        case _:
            raise Unreadable("holds none of predictions, outputs and results")


def _results(results: list[Any], into: dict[str, Output]) -> None:
    """Regression values, or of each example its pairs of label and score."""
    if not all(isinstance(example, list) and all(_is_pair(pair) for pair in example) for example in results):
        _collect(results, "", into, 0, unnamed="results")
        return
    # By label, so that classes of nearly the same score may change places. Servers without labels leave them empty,
    # and then the order is all there is; sorting is stable.
    rows = [sorted(example, key=lambda pair: str(pair[0])) for example in results]
    _collect([[label for label, _ in row] for row in rows], "classes", into, 0)
    _collect([[score for _, score in row] for row in rows], "scores", into, 0)


def _is_pair(given: Any) -> bool:
    return isinstance(given, list) and len(given) == 2 and isinstance(given[0], str) and not isinstance(given[1], str)


def _kserve_v2(given: Any, into: dict[str, Output]) -> None:
    match given:
        case {"error": said}:
            raise Unreadable(f"is an error: {said}")
        case {"outputs": list(listed)}:
            pass
        case _:
            raise Unreadable("holds no outputs of the v2 protocol")
    for one in listed:
        match one:
            case {"name": str(name), "shape": list(shape), "datatype": str(dtype), "data": data}:
                pass
            case {"name": str(name), "shape": _, "datatype": _}:
                raise Unreadable(f"holds no data of {name[:MAX_NAME]!r}; ask for JSON, not for binary or shared memory")
            case _:
                raise Unreadable("holds an output without name, shape or datatype")
        if not all(type(n) is int and 0 <= n <= MAX_VALUES for n in shape) or len(shape) > MAX_DEPTH:
            raise Unreadable(f"holds an impossible shape of {name[:MAX_NAME]!r}")
        dense = _dense(data if isinstance(data, list) else [data])
        if dense is None or len(dense[0]) != prod(shape):
            held = "nested unevenly" if dense is None else f"{len(dense[0])} values"
            raise Unreadable(f"says that {name[:MAX_NAME]!r} has the shape {list(shape)}, and holds {held}")
        _put(into, name, _declared(dense[0], tuple(shape), dtype, name))


def _declared(leaves: list[Any], shape: tuple[int, ...], dtype: str, name: str) -> Output:
    """Values under the type that the server names."""
    types = set(map(type, leaves))
    if dtype in FLOATS:
        if not (types <= {int, float, type(None), str} and all(_stands_for_number(x) for x in leaves)):
            raise Unreadable(f"holds something else than numbers in {name[:MAX_NAME]!r}, {dtype}")
        return Output(dtype, shape, _floats(leaves))
    if (dtype in INTEGERS and not types <= {int}) or (dtype == "BYTES" and not types <= {str}):
        raise Unreadable(f"holds something else than {dtype} in {name[:MAX_NAME]!r}")
    if dtype == "BOOL":
        if not types <= {bool, int}:
            raise Unreadable(f"holds something else than BOOL in {name[:MAX_NAME]!r}")
        leaves = [bool(x) for x in leaves]
    return Output(dtype[:16], shape, _objects(leaves))


def _collect(given: Any, name: str, into: dict[str, Output], depth: int, unnamed: str = "answer") -> None:
    """Every tensor below a JSON value, named by its path. A list of like objects is a batch: one tensor a key."""
    if depth > MAX_DEPTH:
        raise Unreadable("is nested too deeply")
    if isinstance(given, dict) and not _is_binary(given):
        for key, child in given.items():
            _collect(child, f"{name}.{key}" if name else key, into, depth + 1)
    elif not isinstance(given, list):
        _put(into, name or unnamed, _told([given], ()))
    elif (dense := _dense(given)) is not None:
        _put(into, name or unnamed, _told(*dense))
    elif all(isinstance(row, dict) and row.keys() == given[0].keys() and not _is_binary(row) for row in given):
        for key in given[0]:
            _collect([row[key] for row in given], f"{name}.{key}" if name else key, into, depth + 1)
    else:
        for i, child in enumerate(given):
            _collect(child, f"{name or unnamed}[{i}]", into, depth + 1)


def _put(into: dict[str, Output], name: str, output: Output) -> None:
    if len(into) == MAX_OUTPUTS:
        raise Unreadable(f"holds more than {MAX_OUTPUTS} outputs")
    if len(name) > MAX_NAME:
        raise Unreadable(f"holds an output whose name is longer than {MAX_NAME} characters")
    if name in into:
        raise Unreadable(f"holds {name!r} twice")
    into[name] = output


def _dense(given: list[Any]) -> tuple[list[Any], tuple[int, ...]] | None:
    """All leaves and the shape of evenly nested lists; None for any others."""
    level: list[Any] = [given]
    shape: list[int] = []
    while level and all(isinstance(x, list) for x in level):
        n = len(level[0])
        if any(len(x) != n for x in level):
            return None
        if len(shape) == MAX_DEPTH:
            raise Unreadable("is nested too deeply")
        shape.append(n)
        level = list(chain.from_iterable(level))
    if any(isinstance(x, list) or (isinstance(x, dict) and not _is_binary(x)) for x in level):
        return None
    return level, tuple(shape)


def _is_binary(given: dict[str, Any]) -> bool:
    """TensorFlow Serving's form of bytes."""
    return len(given) == 1 and isinstance(given.get("b64"), str)


def _told(leaves: list[Any], shape: tuple[int, ...]) -> Output:
    """Values under the type that JSON tells."""
    types = set(map(type, leaves))
    if not types:
        return Output("empty", shape, np.empty(0, dtype=np.float64))
    if types == {type(None)}:
        return Output("null", shape, _floats(leaves))
    if types == {bool}:
        return Output("bool", shape, _objects(leaves))
    if types == {int}:
        return Output("integer", shape, _objects(leaves))
    if types <= {int, float, type(None), str} and all(_stands_for_number(x) for x in leaves):
        return Output("number", shape, _floats(leaves))
    if types <= {str, dict}:
        return Output("string", shape, _objects([x if isinstance(x, str) else f"b64:{x['b64']}" for x in leaves]))
    return Output("mixed", shape, _objects([json.dumps(x) for x in leaves]))


def _stands_for_number(given: Any) -> bool:
    return not isinstance(given, str) or given.lower() in NON_FINITE


def _floats(leaves: Sequence[Any]) -> NDArray[np.float64]:
    plain = (NON_FINITE[x.lower()] if isinstance(x, str) else np.nan if x is None else x for x in leaves)
    try:
        return np.fromiter(plain, dtype=np.float64, count=len(leaves))
    except OverflowError:
        raise Unreadable("holds a whole number that no float can hold") from None


def _objects(leaves: Sequence[Any]) -> NDArray[np.object_]:
    values = np.empty(len(leaves), dtype=object)
    values[:] = leaves
    return values
