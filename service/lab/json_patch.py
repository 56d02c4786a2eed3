"""JSON Patch (RFC 6902) as the API server applies it, for the lab's Kubernetes API: add, replace, remove and test."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any


class PatchFailed(ValueError):
    """An operation does not apply; nothing of the patch is then in force."""


def apply(document: Mapping[str, Any], patch: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The patched copy of a document; raises PatchFailed when a test or a path does not hold."""
    out: Any = copy.deepcopy(dict(document))
    for op in patch:
        try:
            _operate(out, op)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PatchFailed(f"{op.get('op')} {op.get('path')} does not apply: {error}") from error
    return dict(out)


def _operate(document: Any, op: Mapping[str, Any]) -> None:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in str(op["path"]).split("/")[1:]]
    parent = document
    for part in parts[:-1]:
        parent = parent[_key(parent, part)]
    last = parts[-1]
    match op["op"]:
        case "test":
            if parent[_key(parent, last)] != op["value"]:
                raise ValueError("test failed")
        case "add" if isinstance(parent, list):
            parent.insert(len(parent) if last == "-" else _key(parent, last), copy.deepcopy(op["value"]))
        case "add":
            parent[last] = copy.deepcopy(op["value"])
        case "replace":
            key = _key(parent, last)
            parent[key]
            parent[key] = copy.deepcopy(op["value"])
        case "remove":
            del parent[_key(parent, last)]
        case other:
            raise ValueError(f"unknown operation {other!r}")


def _key(parent: Any, part: str) -> Any:
    if isinstance(parent, list):
        return int(part)
    if not isinstance(parent, dict):
        raise TypeError(f"{part} lies in no object")
    return part
