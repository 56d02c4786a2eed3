"""What runs in the candidate's own Python, sent as source: says what its TensorFlow has registered.

Like `check` it knows the standard library alone and may meet Python 3.8. TensorFlow is imported by name, so that no
part of the service imports it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import platform
import sys
from typing import Any, TextIO


def describe(imports: list[str]) -> dict[str, Any]:
    """The Runtime (see `check`) of this interpreter. ``imports``: further modules that register ops."""
    tf: Any = importlib.import_module("tensorflow")
    for name in imports:
        importlib.import_module(name)
    session: Any = importlib.import_module("tensorflow.python.client.pywrap_tf_session")
    op_def: Any = importlib.import_module("tensorflow.core.framework.op_def_pb2")
    kernels: Any = importlib.import_module("tensorflow.python.framework.kernels")
    types: Any = importlib.import_module("tensorflow.core.framework.types_pb2")
    try:
        # XLA registers its kernels when it compiles for the first time.
        tf.function(lambda x: x + x, jit_compile=True)(tf.constant(1.0)).numpy()
    except Exception as error:  # noqa: BLE001
        print(f"XLA does not compile here: {str(error)[:200]}", file=sys.stderr)  # noqa: T201
    ops = op_def.OpList()
    ops.ParseFromString(session.TF_GetBuffer(session.TF_GetAllOpList()))

    def type_name(code: int) -> str:
        return types.DataType.Name(code)[3:].lower() if code in types.DataType.values() else f"type {code}"

    def value_of(value: Any) -> list[Any]:
        kind = value.WhichOneof("value")
        if kind == "s":
            return ["string", value.s.decode("utf-8", "replace")]
        if kind == "f":
            # JSON has no infinity.
            return ["float", value.f if math.isfinite(value.f) else str(value.f)]
        if kind in ("i", "b"):
            return [{"i": "int", "b": "bool"}[kind], getattr(value, kind)]
        if kind == "type":
            return ["type", type_name(value.type)]
        if kind == "list":
            if value.list.type:
                return ["list", sorted({type_name(one) for one in value.list.type})]
            if value.list.s:
                return ["list", [one.decode("utf-8", "replace") for one in value.list.s]]
            return ["list", list(value.list.i) or [str(one) for one in value.list.f] or list(value.list.b)]
        return [kind or "none", None]

    def values_of(value: Any) -> list[str]:
        many = value.list
        return (
            [type_name(one) for one in many.type]
            + [one.decode("utf-8", "replace") for one in many.s]
            + [str(one) for one in list(many.i) + list(many.b)]
        )

    def argument(arg: Any) -> str:
        one = "#" + arg.type_list_attr if arg.type_list_attr else type_name(arg.type)
        one = "$" + arg.type_attr if arg.type_attr else one
        return (f"{arg.number_attr}*" if arg.number_attr else "") + one

    defined: dict[str, Any] = {}
    for op in ops.op:
        attrs: dict[str, Any] = {}
        for attr in op.attr:
            attrs[attr.name] = {
                "kind": attr.type,
                "default": value_of(attr.default_value) if attr.HasField("default_value") else None,
                "allowed": values_of(attr.allowed_values) if attr.HasField("allowed_values") else None,
            }
        defined[op.name] = {
            "attrs": attrs,
            "inputs": [argument(one) for one in op.input_arg],
            "outputs": [argument(one) for one in op.output_arg],
            "removed_n": op.deprecation.version if op.HasField("deprecation") else 0,
        }
    rows: dict[str, list[dict[str, Any]]] = {}
    for one in kernels.get_all_registered_kernels().kernel:
        only = {limit.name: values_of(limit.allowed_values) for limit in one.constraint}
        rows.setdefault(one.op, []).append({"device": one.device_type, "label": one.label, "only": only})
    versions = {"TensorFlow": tf.__version__, "Python": platform.python_version()}
    for shown, module in (("NumPy", "numpy"), ("Keras", "keras")):
        with contextlib.suppress(Exception):
            versions[shown] = importlib.import_module(module).__version__
    build = tf.sysconfig.get_build_info()
    for key, shown in (("cuda_version", "CUDA"), ("cudnn_version", "cuDNN")):
        if build.get(key):
            versions[shown] = str(build[key])
    return {
        "format": 1,
        "versions": versions,
        "graph_version_n": tf.version.GRAPH_DEF_VERSION,
        "gpu_build": bool(build.get("is_cuda_build") or build.get("is_rocm_build")),
        "ops": defined,
        "kernels": rows,
    }


def alone() -> TextIO:
    """Give this process's standard output to us alone: libraries print to it. Returns the file."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ours


def dump(arguments: list[str]) -> None:
    """Write the Runtime as JSON."""
    ours = alone()
    json.dump(describe(arguments), ours, separators=(",", ":"))
    ours.close()


def answer(needs: Any, device: str, imports: list[str], check: Any, path: str, limit_bytes: int) -> None:
    """Hold a model's needs against this interpreter and write what is missing, the gravest first, to a small file."""
    runtime = describe(imports)
    found = check(needs, runtime, device)
    said = {"format": 1, "versions": runtime["versions"], "found_n": len(found), "found": found}

    def too_long() -> bool:
        return len(json.dumps(said, separators=(",", ":")).encode()) > limit_bytes

    while len(said["found"]) > 1 and too_long():
        said["found"] = said["found"][:-1]
    longest = 256
    # The gravest is told, however long the model's names are: an answer without it would look like a pass.
    while longest > 32 and too_long():
        longest //= 2
        said["found"] = [{key: text[:longest] for key, text in one.items()} for one in said["found"]]
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(said, separators=(",", ":")))
