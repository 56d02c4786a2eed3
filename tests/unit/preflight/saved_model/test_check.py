"""A model's needs against a runtime's registry, rule by rule."""

from __future__ import annotations

import ast
import tracemalloc
from typing import Any

import pytest

from service.preflight.saved_model import words
from service.preflight.saved_model.check import (
    BLIND,
    FAILS,
    GRAVITY,
    AttrDef,
    AttrValue,
    Found,
    Kernel,
    Needs,
    OpDef,
    Runtime,
    Use,
    check,
)
from service.preflight.saved_model.runtime import own_source


def attr(kind: str = "type", default: AttrValue | None = None, allowed: list[str] | None = None) -> AttrDef:
    return AttrDef(kind=kind, default=default, allowed=allowed)


def op(outputs: tuple[str, ...] = ("$T",), removed_n: int = 0, **attrs: AttrDef) -> OpDef:
    return OpDef(attrs=attrs, inputs=["$T"], outputs=list(outputs), removed_n=removed_n)


def use(name: str, reach: str = "run", device: str = "", **attrs: AttrValue) -> Use:
    return Use(op=name, device=device, attrs=attrs, reach=reach, where=f"a in {name.lower()}")


def needs(*uses: Use, **more: Any) -> Needs:
    return Needs(
        **{
            "holds_versions": True, "producer": 1482, "min_consumer": 0, "bad_consumers": [], "defaults_stripped": True,
            "functions": [], "op_defs": {}, "uses": list(uses),
        } | more  # type: ignore[typeddict-item]
    )  # fmt: skip


def kernel(device: str = "CPU", label: str = "", **only: list[str]) -> Kernel:
    return Kernel(device=device, label=label, only=only)


def runtime(ops: dict[str, OpDef], kernels: dict[str, list[Kernel]] | None = None, gpu: bool = False) -> Runtime:
    return Runtime(
        format=1,
        versions={"TensorFlow": "2.13.0"},
        graph_version_n=1482,
        gpu_build=gpu,
        ops=ops,
        kernels=kernels if kernels is not None else {name: [kernel()] for name in ops},
    )


RELU = op(T=attr(allowed=["float", "double"]), N=attr("int", default=["int", 1]))
FLOAT = ["type", "float"]


def codes(found: list[Found]) -> list[str]:
    return [one["code"] for one in found]


def test_what_is_registered_with_a_kernel_is_no_finding():
    assert check(needs(use("Relu", T=FLOAT)), runtime({"Relu": RELU}), "CPU") == []


@pytest.mark.parametrize("reach", ["run", "jit", "dead"])
def test_an_op_that_is_not_registered_is_found_wherever_it_lies(reach: str):
    found = check(needs(use("SegmentMaxV2", reach)), runtime({"Relu": RELU}), "CPU")
    assert [(one["code"], one["op"], one["where"]) for one in found] == [
        ("op_unknown", "SegmentMaxV2", "a in segmentmaxv2")
    ]


def test_what_is_told_of_a_model_is_cut_however_long_its_names_and_lists_are():
    """Two hundred arguments of one long list each would be megabytes of text for one use of an op."""
    long = OpDef(attrs={"T": attr()}, inputs=["$T"] * 200, outputs=[], removed_n=0)
    strange = use("Relu", **{"x" * 8000: FLOAT, "T": ["list", list(range(10**9, 10**9 + 1000))]})
    wanted = needs(strange, op_defs={"Relu": long})
    tracemalloc.start()
    found = check(wanted, runtime({"Relu": RELU}), "CPU")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {"types_changed", "attr_unknown"} <= set(codes(found))
    assert max(len(text) for one in found for text in one.values()) <= 300
    assert peak_bytes < 500_000


def test_a_function_of_the_model_is_no_missing_op():
    assert check(needs(use("helper"), functions=["helper"]), runtime({"Relu": RELU}), "CPU") == []


def test_a_missing_kernel_is_found_where_it_is_run_and_not_in_dead_functions():
    has = runtime({"Relu": RELU}, {})
    (found,) = check(needs(use("Relu", T=FLOAT, N=["int", 3])), has, "CPU")
    assert (found["code"], found["seen"]) == ("no_kernel", "T=float")
    assert check(needs(use("Relu", "dead", T=FLOAT)), has, "CPU") == []


def test_a_kernel_counts_for_its_types_device_and_label_only():
    one = needs(use("Relu", T=FLOAT))
    for rows, fits in (
        ([kernel(T=["double"])], False),
        ([kernel(T=["double"]), kernel(T=["float", "int32"])], True),
        ([kernel("GPU")], False),
        ([kernel("DEFAULT")], True),
        ([kernel(label="custom")], False),
    ):
        assert (check(one, runtime({"Relu": RELU}, {"Relu": rows}), "CPU") == []) is fits
    labelled = needs(use("Relu", T=FLOAT, _kernel=["string", "custom"]))
    assert check(labelled, runtime({"Relu": RELU}, {"Relu": [kernel(label="custom")]}), "CPU") == []


def test_a_kernel_must_take_all_types_of_a_list_and_the_default_of_what_is_not_given():
    pack = op(Ts=attr("list(type)", default=["list", ["float", "string"]]))
    rows = {"Pack": [kernel(Ts=["float", "int32"])]}
    assert codes(check(needs(use("Pack", Ts=["list", ["float", "string"]])), runtime({"Pack": pack}, rows), "CPU")) == [
        "no_kernel"
    ]
    assert check(needs(use("Pack", Ts=["list", ["float", "int32"]])), runtime({"Pack": pack}, rows), "CPU") == []
    assert codes(check(needs(use("Pack")), runtime({"Pack": pack}, rows), "CPU")) == ["no_kernel"]


def test_a_type_that_the_caller_of_a_function_chooses_is_taken_to_fit():
    has = runtime({"Relu": RELU}, {"Relu": [kernel(T=["double"])]})
    assert check(needs(use("Relu", T=["placeholder", "T"])), has, "CPU") == []


def test_a_build_without_gpus_says_nothing_of_kernels_for_gpu():
    found = check(needs(use("Relu", T=FLOAT)), runtime({"Relu": RELU}, {}), "GPU")
    assert codes(found) == ["gpu_unseen"]
    assert set(codes(found)) <= BLIND


def test_on_a_gpu_build_a_kernel_for_either_will_do_and_a_placed_node_on_cpu_is_told():
    has = runtime({"Relu": RELU}, {"Relu": [kernel("CPU")]}, gpu=True)
    assert check(needs(use("Relu", T=FLOAT)), has, "GPU") == []
    assert codes(check(needs(use("Relu", device="GPU", T=FLOAT)), has, "GPU")) == ["no_gpu_kernel"]
    assert codes(check(needs(use("Relu", T=FLOAT)), runtime({"Relu": RELU}, {}, gpu=True), "GPU")) == ["no_kernel"]


def test_what_xla_compiles_needs_a_kernel_of_xla_and_a_runtime_that_lists_none_is_not_believed():
    compiled = needs(use("Relu", "jit", T=FLOAT))
    assert codes(check(compiled, runtime({"Relu": RELU}), "CPU")) == ["jit_unseen"]
    lists = {"Relu": [kernel()], "Add": [kernel("XLA_CPU_JIT")]}
    assert codes(check(compiled, runtime({"Relu": RELU}, lists), "CPU")) == ["no_kernel"]
    assert check(compiled, runtime({"Relu": RELU}, {"Relu": [kernel("XLA_CPU_JIT")]}), "CPU") == []


def test_a_value_that_is_not_allowed_is_found_with_those_that_are():
    (found,) = check(needs(use("Relu", T=["type", "int16"])), runtime({"Relu": RELU}), "CPU")
    assert (found["code"], found["attr"], found["seen"], found["wanted"]) == (
        "value_refused", "T", "int16", "float, double",
    )  # fmt: skip
    (found,) = check(needs(use("Relu", T=["list", ["float", "string"]])), runtime({"Relu": RELU}), "CPU")
    assert found["seen"] == "string"


def test_an_unknown_attribute_at_the_writers_default_changes_nothing():
    writer = op(T=attr(), grad_a=attr("bool", default=["bool", False]))
    for value, expected in ((False, []), (True, ["attr_unknown"])):
        one = needs(use("Relu", T=FLOAT, grad_a=["bool", value]), op_defs={"Relu": writer})
        assert codes(check(one, runtime({"Relu": RELU}), "CPU")) == expected


def test_an_unknown_attribute_without_a_known_default_and_a_value_that_was_not_kept_are_found():
    assert codes(check(needs(use("Relu", T=FLOAT, mode=["int", 3])), runtime({"Relu": RELU}), "CPU")) == [
        "attr_unknown"
    ]
    writer = op(T=attr(), mode=attr("string", default=["string", None]))
    one = needs(use("Relu", T=FLOAT, mode=["string", None]), op_defs={"Relu": writer})
    assert codes(check(one, runtime({"Relu": RELU}), "CPU")) == ["attr_unknown"]


def test_attributes_that_are_only_names_and_internal_ones_may_be_unknown():
    has = runtime({"VarHandleOp": op(T=attr())})
    one = use("VarHandleOp", T=FLOAT, debug_name=["string", None], _class=["list", []])
    assert check(needs(one), has, "CPU") == []


def test_an_attribute_that_the_runtime_needs_and_the_model_lacks_is_found():
    has = runtime({"Relu": op(T=attr(), axis=attr("int"))})
    assert codes(check(needs(use("Relu", T=FLOAT)), has, "CPU")) == ["attr_missing"]


def test_a_default_that_another_version_has_otherwise_is_found_where_the_model_relies_on_it():
    old, new = (op(T=attr(), fast=attr("bool", default=["bool", value])) for value in (False, True))
    one = needs(use("Relu", T=FLOAT), op_defs={"Relu": old})
    assert codes(check(one, runtime({"Relu": new}), "CPU")) == ["default_changed"]
    written_out = needs(use("Relu", T=FLOAT), op_defs={"Relu": old}, defaults_stripped=False)
    assert check(written_out, runtime({"Relu": new}), "CPU") == []


def test_an_output_whose_type_follows_an_attribute_that_the_runtime_lacks_is_found():
    writer = op(("$T", "$index_type"), T=attr(), index_type=attr(default=["type", "int32"]))
    older = runtime({"TopKV2": op(("$T", "int32"), T=attr())})
    one = use("TopKV2", T=FLOAT, index_type=["type", "int64"])
    found = check(needs(one, op_defs={"TopKV2": writer}), older, "CPU")
    assert codes(found) == ["types_changed", "attr_unknown"]
    assert (found[0]["seen"], found[0]["wanted"]) == ("float, int64", "float, int32")
    usual = use("TopKV2", T=FLOAT, index_type=["type", "int32"])
    assert check(needs(usual, op_defs={"TopKV2": writer}), older, "CPU") == []


def test_an_op_that_newer_graphs_may_not_use_is_found():
    has = runtime({"TopK": op(removed_n=7, T=attr())})
    assert codes(check(needs(use("TopK", T=FLOAT)), has, "CPU")) == ["op_removed"]
    assert check(needs(use("TopK", T=FLOAT), producer=6), has, "CPU") == []


def test_versions_that_the_graph_rules_out_fail_where_the_loader_looks_at_them():
    for ruled_out, code in (({"min_consumer": 1483}, "min_consumer"), ({"bad_consumers": [1, 1482]}, "bad_consumer")):
        assert codes(check(needs(**ruled_out), runtime({"Relu": RELU}), "CPU")) == [code]
        ignored = check(needs(holds_versions=False, **ruled_out), runtime({"Relu": RELU}), "CPU")
        assert codes(ignored) == ["versions_ignored"]
    assert check(needs(min_consumer=1482, bad_consumers=[1481]), runtime({"Relu": RELU}), "CPU") == []


def test_each_thing_is_told_once_and_the_gravest_first():
    uses = [use("Relu", T=["type", "half"]), use("Relu", T=["type", "half"], x=["int", 1]), use("Gone"), use("Gone")]
    found = check(needs(*uses), runtime({"Relu": RELU}), "CPU")
    assert codes(found) == ["op_unknown", "value_refused", "attr_unknown"]


def test_every_code_has_words_and_something_to_do():
    for code in GRAVITY:
        found = Found(code=code, op="Relu", attr="T", seen="int16", wanted="float", where="a in f")
        assert words.line(found)
        assert words.to_do(found)
    assert FAILS.isdisjoint(BLIND)
    with pytest.raises(ValueError, match="no finding is called"):
        words.line(Found(code="other", op="", attr="", seen="", wanted="", where=""))


@pytest.mark.parametrize("module", ["check", "inside"])
def test_what_runs_in_the_candidates_image_is_python_3_8_and_imports_the_standard_library_alone(module: str):
    tree = ast.parse(own_source(module), feature_version=(3, 8))
    names = {
        name
        for one in ast.walk(tree)
        if isinstance(one, ast.Import | ast.ImportFrom)
        for name in ([one.module or ""] if isinstance(one, ast.ImportFrom) else [alias.name for alias in one.names])
    }
    assert names <= {"__future__", "contextlib", "importlib", "json", "math", "os", "platform", "sys", "typing"}
