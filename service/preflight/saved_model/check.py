"""Holds what a model needs against what a TensorFlow has registered. Pure, and of the standard library alone.

The same text runs here and, sent as source, in the candidate's image (`job`); there it may meet Python 3.8. So nothing
of the service is imported, and values are plain dictionaries that are JSON on their way. Form was checked where they
came in.
"""

from __future__ import annotations

from typing import Any, List, TypedDict  # noqa: UP035

AttrValue = List[Any]  # noqa: UP006
"""``[kind, value]`` by the names of OpDef: ``["type", "float"]``, ``["list", ["float", "int32"]]`` (of types only the
different ones, sorted), ``["placeholder", "T"]``. A value of None is one that is not compared."""


class AttrDef(TypedDict):
    """One attribute of an op. ``default`` None: it must be given. ``allowed`` None: any value."""

    kind: str
    default: AttrValue | None
    allowed: list[str] | None


class OpDef(TypedDict):
    """An op's definition. Arguments: a type, ``$T`` for an attribute's, ``#T`` for a list's, ``N*`` before repeated."""

    attrs: dict[str, AttrDef]
    inputs: list[str]
    outputs: list[str]
    removed_n: int
    """Graph version from which on the op may not be used; 0: none."""


class Kernel(TypedDict):
    """An implementation: for a device, with a label, for some values of attributes."""

    device: str
    label: str
    only: dict[str, list[str]]


class Runtime(TypedDict):
    """What one TensorFlow has registered."""

    format: int
    versions: dict[str, str]
    graph_version_n: int
    gpu_build: bool
    ops: dict[str, OpDef]
    kernels: dict[str, list[Kernel]]


class Use(TypedDict):
    """A way in which a model uses an op. ``reach``: ``run``, ``jit`` (compiled by XLA) or ``dead``."""

    op: str
    device: str
    attrs: dict[str, AttrValue]
    reach: str
    where: str


class Needs(TypedDict):
    """What a model uses."""

    holds_versions: bool
    """Whether the loader looks at the versions that the graph asks for: a server's does, Python's for V1 graphs."""
    producer: int
    min_consumer: int
    bad_consumers: list[int]
    defaults_stripped: bool
    functions: list[str]
    """Functions of the model that nodes call as if they were ops."""
    op_defs: dict[str, OpDef]
    uses: list[Use]


class Found(TypedDict):
    """One finding. ``code`` says what, the rest where and what was seen."""

    code: str
    op: str
    attr: str
    seen: str
    wanted: str
    where: str


HARMLESS = {("VarHandleOp", "debug_name")}
"""Attributes that change nothing but a name in messages, so that a runtime which does not know them does the same."""

GRAVITY = (
    "op_unknown", "op_removed", "min_consumer", "bad_consumer", "value_refused", "attr_missing", "types_changed",
    "attr_unknown", "default_changed", "no_kernel",
    # What follows fails nothing.
    "gpu_unseen", "jit_unseen", "versions_ignored", "no_gpu_kernel",
)  # fmt: skip
"""All codes, the gravest first."""

TOLD_CHARACTERS_N = 300
TYPE_CHARACTERS_N = 60
"""Of names and values that a model brings."""

FAILS = frozenset(GRAVITY[: GRAVITY.index("gpu_unseen")])
BLIND = frozenset({"gpu_unseen", "jit_unseen"})


def check(needs: Needs, runtime: Runtime, device: str) -> list[Found]:
    """What a runtime lacks for a model on ``CPU`` or ``GPU``, each thing once, the gravest first; empty: nothing."""
    found: dict[Any, Found] = {}

    def tell(code: str, op: str = "", attr: str = "", seen: str = "", wanted: str = "", where: str = "") -> None:
        attr, seen, wanted = attr[:TOLD_CHARACTERS_N], seen[:TOLD_CHARACTERS_N], wanted[:TOLD_CHARACTERS_N]
        found.setdefault(
            (code, op, attr, seen), Found(code=code, op=op, attr=attr, seen=seen, wanted=wanted, where=where)
        )

    version = runtime["graph_version_n"]
    if needs["min_consumer"] > version:
        code = "min_consumer" if needs["holds_versions"] else "versions_ignored"
        tell(code, seen=str(needs["min_consumer"]), wanted=str(version))
    if version in needs["bad_consumers"]:
        tell("bad_consumer" if needs["holds_versions"] else "versions_ignored", seen=str(version))
    functions = set(needs["functions"])
    listed = {row["device"] for rows in runtime["kernels"].values() for row in rows}
    kernels_seen = device == "CPU" or runtime["gpu_build"]
    if not kernels_seen:
        tell("gpu_unseen", seen=runtime["versions"].get("TensorFlow", ""))
    for use in needs["uses"]:
        op = use["op"]
        if op in functions:
            continue
        new = runtime["ops"].get(op)
        if new is None:
            tell("op_unknown", op, where=use["where"])
            continue
        if 0 < new["removed_n"] <= needs["producer"]:
            tell("op_removed", op, seen=str(needs["producer"]), wanted=str(new["removed_n"]), where=use["where"])
        old = needs["op_defs"].get(op)
        for fault in _attributes(use, old, new, needs["defaults_stripped"]):
            tell(fault["code"], op, fault["attr"], fault["seen"], fault["wanted"], use["where"])
        if use["reach"] == "dead" or not kernels_seen:
            continue
        rows = runtime["kernels"].get(op, [])
        if use["reach"] == "jit":
            wanted = f"XLA_{device}_JIT"
            if wanted not in listed:
                tell("jit_unseen", seen=wanted)
            elif not _has_kernel(use, new, rows, (wanted,)):
                tell("no_kernel", op, seen=_types(use), wanted=wanted, where=use["where"])
        elif not _has_kernel(use, new, rows, ("CPU", "DEFAULT", device)):
            tell("no_kernel", op, seen=_types(use), wanted=device, where=use["where"])
        elif device == "GPU" and "GPU" in use["device"] and not _has_kernel(use, new, rows, ("GPU", "DEFAULT")):
            tell("no_gpu_kernel", op, seen=_types(use), where=use["where"])
    return sorted(found.values(), key=lambda one: GRAVITY.index(one["code"]))


def _attributes(use: Use, old: OpDef | None, new: OpDef, stripped: bool) -> list[Found]:
    """What is wrong with the attributes of one use."""
    faults: list[Found] = []

    def tell(code: str, attr: str = "", seen: str = "", wanted: str = "") -> None:
        faults.append(Found(code=code, op="", attr=attr, seen=seen, wanted=wanted, where=""))

    given = use["attrs"]
    for attr, value in given.items():
        known = new["attrs"].get(attr)
        if known is None:
            before = old["attrs"].get(attr) if old is not None else None
            default = before["default"] if before is not None else None
            harmless = default is not None and value == default and value[1] is not None
            if not attr.startswith("_") and not harmless and (use["op"], attr) not in HARMLESS:
                tell("attr_unknown", attr, _shown(value))
        elif known["allowed"] is not None and value[0] in ("type", "string", "list"):
            values = value[1] if value[0] == "list" else [value[1]]
            refused = [one for one in values or () if one is not None and one not in known["allowed"]]
            if refused:
                tell("value_refused", attr, str(refused[0]), ", ".join(known["allowed"]))
    for attr, known in new["attrs"].items():
        if attr not in given:
            before = old["attrs"].get(attr) if old is not None else None
            if known["default"] is None:
                tell("attr_missing", attr)
            elif stripped and before is not None and before["default"] is not None:
                one, other = before["default"], known["default"]
                if one != other and one[1] is not None and other[1] is not None:
                    tell("default_changed", attr, _shown(one), _shown(other))
    if old is not None:
        sides = ("inputs", old["inputs"], new["inputs"]), ("outputs", old["outputs"], new["outputs"])
        for side, before_args, now_args in sides:
            was = [_resolved(arg, given, old) for arg in before_args]
            now = [_resolved(arg, given, new) for arg in now_args]
            if was != now:
                tell("types_changed", side, ", ".join(was), ", ".join(now))
    return faults


def _resolved(arg: str, given: dict[str, AttrValue], definition: OpDef) -> str:
    """An argument with its type attribute filled in."""
    many, star, name = arg.rpartition("*")
    if name[:1] != "$":
        return arg
    known = definition["attrs"].get(name[1:])
    value = given.get(name[1:]) or (known["default"] if known is not None else None)
    # A type; whatever else a model writes there may be long.
    return many + star + (str(value[1])[:TYPE_CHARACTERS_N] if value is not None else name)


def _has_kernel(use: Use, definition: OpDef, rows: list[Kernel], devices: Any) -> bool:
    """Whether one of the kernels takes these attributes."""
    label = use["attrs"].get("_kernel", ["string", ""])[1]
    return any(
        row["device"] in devices
        and row["label"] == label
        and all(_fits(use["attrs"].get(attr), definition, attr, values) for attr, values in row["only"].items())
        for row in rows
    )


def _fits(value: AttrValue | None, definition: OpDef, attr: str, allowed: list[str]) -> bool:
    """Whether a kernel's limit lets a value through; what is not known is taken to fit."""
    if value is None:
        known = definition["attrs"].get(attr)
        value = known["default"] if known is not None else None
    if value is None or value[1] is None or value[0] == "placeholder":
        return True
    values = value[1] if value[0] == "list" else [value[1]]
    return all(str(one) in allowed for one in values)


def _types(use: Use) -> str:
    """The types of a use, for people: ``T=float, Tindices=int32``."""
    kinds = ("type", "list")
    return ", ".join(f"{k}={_shown(v)}" for k, v in sorted(use["attrs"].items()) if v[0] in kinds)[:150]


def _shown(value: AttrValue) -> str:
    if value[1] is None:
        return "a value of its own"
    if isinstance(value[1], list):
        return f"[{', '.join(str(one) for one in value[1][:8])}]"
    return str(value[1])
