"""From bytes to what a model uses, what of it can be reached, and what damaged or hostile bytes do."""

from __future__ import annotations

import json
import random
import tracemalloc

import pytest

from service.model.gates.model import Entry
from service.preflight.saved_model import reading, wire
from service.preflight.saved_model.check import Needs
from service.preflight.saved_model.graph import MetaGraph, Tensor
from service.preflight.saved_model.reading import read_saved_model
from service.preflight.saved_model.wire import BytesSource, Reader, Unreadable
from tests.unit.preflight.saved_model.writing import (
    FLOAT,
    INT32,
    INT64,
    STRING,
    dtype,
    dtypes,
    entry,
    flag,
    func,
    function,
    meta_graph,
    msg,
    node,
    num,
    op_def,
    saved_model,
    shape,
    signature,
    simple,
    strings,
    tensor_info,
    text,
    varint,
)


def graph_of(content: bytes) -> MetaGraph:
    return read_saved_model(Reader(BytesSource(content, name="saved_model.pb")))[0]


def needs_of(content: bytes, entry: Entry = Entry.SIGNATURES, device: str = "CPU") -> Needs:
    return graph_of(content).needs(entry=entry, device=device)


def reach_of(needs: Needs, op: str) -> set[str]:
    return {use["reach"] for use in needs["uses"] if use["op"] == op}


def inner(name: str, op: str, **attrs: bytes) -> bytes:
    return node(name, op, attrs=attrs, field=3)


def test_ops_attributes_versions_and_signatures_are_read():
    graph = graph_of(
        simple(
            "TopKV2",
            attrs={"T": dtype(FLOAT), "sorted": flag(True), "index_type": dtype(INT64)},
            versions=num(1, 1482) + num(2, 12) + msg(3, varint(5), varint(6)) + num(3, 7),
        )
    )
    assert (graph.producer_n, graph.min_consumer_n, graph.bad_consumers) == (1482, 12, (5, 6, 7))
    assert graph.tags == {"serve"}
    assert graph.tensorflow_version == "2.13.0"
    assert graph.defaults_stripped
    assert graph.signatures["serving_default"].inputs == {"x": Tensor("float", (-1, 4))}
    (use,) = [one for one in graph.needs(entry=Entry.SIGNATURES, device="CPU")["uses"] if one["op"] == "TopKV2"]
    assert use["attrs"] == {"T": ["type", "float"], "sorted": ["bool", True], "index_type": ["type", "int64"]}
    assert use["reach"] == "run"
    assert use["where"] == "it in serve"


def test_functions_inside_functions_and_both_branches_of_a_condition_are_reached():
    needs = needs_of(
        simple(
            "If",
            attrs={"then_branch": func("yes"), "else_branch": func("no")},
            functions=[
                function("yes", inner("a", "Yes")),
                function("no", inner("b", "While", cond=func("go"), body=func("turn"))),
                function("go", inner("c", "Go")),
                function("turn", inner("d", "Turn")),
            ],
        )
    )
    assert all(reach_of(needs, op) == {"run"} for op in ("Yes", "While", "Go", "Turn"))


def test_functions_that_nothing_names_are_dead_and_still_there():
    needs = needs_of(simple(functions=[function("left", inner("a", "Left"))]))
    assert reach_of(needs, "Left") == {"dead"}


def test_a_function_is_called_by_a_node_whose_op_is_its_name():
    needs = needs_of(simple("helper", functions=[function("helper", inner("a", "Inside"))]))
    assert reach_of(needs, "Inside") == {"run"}
    assert needs["functions"] == ["helper"]


def test_a_function_that_calls_itself_ends():
    needs = needs_of(simple("PartitionedCall", attrs={"f": func("serve")}))
    assert reach_of(needs, "PartitionedCall") == {"run"}


def test_functions_compiled_by_xla_are_told_apart_with_all_that_they_call():
    needs = needs_of(
        simple(
            "PartitionedCall",
            attrs={"f": func("fast")},
            functions=[
                function("fast", inner("a", "Fast"), inner("b", "deep"), attrs={"_XlaMustCompile": flag(True)}),
                function("deep", inner("c", "Deep")),
            ],
        )
    )
    assert reach_of(needs, "Fast") == {"jit"}
    assert reach_of(needs, "Deep") == {"jit"}


def test_the_twin_that_keras_exchanges_by_device_is_reached_on_that_device():
    twins = [
        function(name, inner("a", op), attrs={"api_implements": text("lstm"), "api_preferred_device": text(device)})
        for name, op, device in (("usual", "Usual", "CPU"), ("quick", "Quick", "GPU"))
    ]
    content = simple("PartitionedCall", attrs={"f": func("usual")}, functions=twins)
    assert reach_of(needs_of(content, device="CPU"), "Quick") == {"dead"}
    assert reach_of(needs_of(content, device="GPU"), "Quick") == {"run"}


def test_many_twins_of_one_another_take_no_more_than_their_number():
    """Each of n functions leads to all n; a walk that waits for each pair would take gigabytes of a small file."""
    twins = {"api_implements": text("x"), "api_preferred_device": text("CPU")}
    graph = graph_of(simple("f0", functions=[function(f"f{n}", attrs=twins) for n in range(1500)]))
    tracemalloc.start()
    reached = graph.needs(entry=Entry.SIGNATURES, device="CPU")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reached["functions"] == ["f0"]
    assert peak_bytes < 10 << 20


def test_functions_that_only_python_can_call_count_where_python_does():
    callable_by_python = msg(1, msg(6, msg(1, "extra")))
    content = simple(functions=[function("extra", inner("a", "Extra"))], objects=callable_by_python)
    assert reach_of(needs_of(content), "Extra") == {"dead"}
    assert reach_of(needs_of(content, Entry.FUNCTIONS), "Extra") == {"run"}
    without = simple(functions=[function("extra", inner("a", "Extra"))], objects=callable_by_python, signatures=[])
    assert reach_of(needs_of(without), "Extra") == {"run"}


def test_only_nodes_of_the_main_graph_that_a_signature_needs_are_reached():
    content = saved_model(
        meta_graph(
            node("x", "Placeholder"),
            node("y", "Relu", "x:0", "^first"),
            node("first", "First"),
            node("train", "ApplyAdam", "x"),
            signatures=[signature("serving_default", {"x": tensor_info("x:0")}, {"y": tensor_info("y:0")})],
            objects=None,
        )
    )
    needs = needs_of(content)
    assert reach_of(needs, "Relu") == reach_of(needs, "First") == {"run"}
    assert reach_of(needs, "ApplyAdam") == {"dead"}


def test_initialisation_and_restoring_are_reached():
    content = saved_model(
        meta_graph(
            node("init", "StatefulPartitionedCall", attrs={"f": func("start")}),
            node("restore", "StatefulPartitionedCall", attrs={"f": func("load")}),
            functions=[function("start", inner("a", "Start")), function("load", inner("b", "Load"))],
            signatures=[signature("__saved_model_init_op", {}, {"__saved_model_init_op": tensor_info("init")})],
            more=msg(3, msg(3, "restore")),
        )
    )
    needs = needs_of(content)
    assert reach_of(needs, "Start") == reach_of(needs, "Load") == {"run"}


def test_equal_uses_are_kept_once_whatever_the_names_and_constants():
    nodes = [
        inner(f"v{n}", "VarHandleOp", dtype=dtype(FLOAT), shared_name=text(f"w{n}"), shape=msg(7, shape(n)))
        for n in range(500)
    ]
    graph = graph_of(simple(functions=[function("many", *nodes)]))
    assert sum(use["op"] == "VarHandleOp" for use in graph.uses) == 1


def test_numbers_and_names_of_things_are_kept_only_where_they_are_the_writers_default():
    attrs = {"n": ("int", num(3, 5), None), "shared_name": ("string", text(""), None)}
    for n, name, kept in ((5, "", [5, ""]), (6, "w", [None, None])):
        content = simple(attrs={"n": num(3, n), "shared_name": text(name)}, op_defs=[op_def("Relu", attrs=attrs)])
        (use,) = [one for one in graph_of(content).uses if one["op"] == "Relu"]
        assert [use["attrs"]["n"][1], use["attrs"]["shared_name"][1]] == kept


def test_what_the_checkpoint_must_hold_is_read_from_the_constants_of_restoring():
    restore = [
        node("names", "Const", attrs={"dtype": dtype(STRING), "value": strings("a/b", "c")}, field=3),
        node("slices", "Const", attrs={"dtype": dtype(STRING), "value": strings("", "")}, field=3),
        node("it", "RestoreV2", "prefix", "names:output:0", "slices:output:0", attrs={"dtypes": dtypes(FLOAT, INT32)},
             field=3),
    ]  # fmt: skip
    content = saved_model(
        meta_graph(
            node("restore", "StatefulPartitionedCall", attrs={"f": func("load")}),
            functions=[function("load", *restore)],
            more=msg(3, msg(3, "restore")),
        )
    )
    assert graph_of(content).restored(entry=Entry.SIGNATURES, device="CPU") == [("a/b", "float"), ("c", "int32")]


@pytest.mark.parametrize("odd", [num(3, 5), msg(1, msg(7, shape(1))), dtype(FLOAT)], ids=["int", "shapes", "type"])
def test_restoring_with_types_that_are_no_list_of_types_names_no_tensors(odd: bytes):
    restore = [
        node("names", "Const", attrs={"dtype": dtype(STRING), "value": strings("a/b", "c")}, field=3),
        node("it", "RestoreV2", "p", "names:output:0", "s", attrs={"dtypes": odd}, field=3),
    ]
    assert graph_of(simple(functions=[function("load", *restore)])).functions["load"].restored == []


def test_op_definitions_of_the_writer_are_read_whatever_their_place():
    definition = op_def("Relu", inputs=["T"], outputs=["T"], attrs={"T": ("type", dtype(FLOAT), dtypes(FLOAT, INT32))})
    whole = simple(op_defs=[definition])
    graph = graph_of(whole)
    assert graph.op_defs["Relu"]["attrs"]["T"] == {
        "kind": "type",
        "default": ["type", "float"],
        "allowed": ["float", "int32"],
    }
    assert graph.op_defs["Relu"]["outputs"] == ["$T"]


def test_arguments_are_types_attributes_lists_and_repeated_ones():
    parts = [msg(1, "Op"), msg(2, msg(1, "a"), num(3, FLOAT)), msg(2, msg(1, "b"), msg(6, "Ts"))]
    parts += [msg(3, msg(1, "c"), msg(4, "T"), msg(5, "N")), msg(8, num(1, 9))]
    definition = graph_of(simple(op_defs=[msg(1, *parts)])).op_defs["Op"]
    assert (definition["inputs"], definition["outputs"]) == (["float", "#Ts"], ["N*$T"])
    assert definition["removed_n"] == 9


def test_a_runtime_is_told_the_writers_definitions_of_used_ops_only():
    unused = op_def("Unused", inputs=["T"], attrs={"T": ("type", None, None)})
    used = op_def("Relu", inputs=["T"], attrs={"T": ("type", None, None)})
    assert set(needs_of(simple(op_defs=[unused, used]))["op_defs"]) == {"Relu"}


@pytest.mark.parametrize(
    ("objects", "entry", "holds"),
    [
        (b"", Entry.SIGNATURES, True),
        (b"", Entry.FUNCTIONS, False),
        (None, Entry.SIGNATURES, True),
        (None, Entry.FUNCTIONS, True),
    ],
)
def test_which_loaders_look_at_the_graphs_versions(objects: bytes | None, entry: Entry, holds: bool):
    assert needs_of(simple(objects=objects), entry)["holds_versions"] is holds


def test_variables_of_v1_graphs_and_of_objects_are_read_with_type_and_shape():
    nodes = [
        node("w", "VariableV2", attrs={"dtype": dtype(FLOAT), "container": text(""), "shape": msg(7, shape(4, 3))}),
        node("v", "VarHandleOp", attrs={"dtype": dtype(INT64), "shape": msg(7, num(3, 1))}),
        node("c", "Const", attrs={"dtype": dtype(FLOAT)}),
    ]
    v1 = graph_of(saved_model(meta_graph(*nodes, objects=None)))
    assert [(one.name, one.tensor) for one in v1.variables] == [
        ("w", Tensor("float", (4, 3))),
        ("v", Tensor("int64", None)),
    ]
    objects = msg(1, msg(1, num(1, 1), msg(2, "w"))) + msg(1, msg(7, num(1, INT32), msg(2, shape(2)), msg(6, "name")))
    found = graph_of(simple(objects=objects)).objects
    assert found is not None
    assert found.children == {0: {"w": 1}}
    assert (found.variables[1].name, found.variables[1].tensor) == ("name", Tensor("int32", (2,)))


def test_inputs_with_defaults_are_optional_and_sparse_and_composite_outputs_reach_their_parts():
    sparse = msg(4, msg(1, "a:0"), msg(2, "b:0"), msg(3, "c:0"))
    composite = msg(5, msg(1, "spec"), msg(2, tensor_info("d:0")))
    whole = [
        *(entry(1, name, tensor_info(f"{name}:0")) for name in ("x", "mask")),
        entry(2, "s", sparse), entry(2, "r", composite), msg(3, "predict"), entry(4, "mask", b""),
    ]  # fmt: skip
    nodes = [node(name, name.upper()) for name in "abcde"]
    content = saved_model(meta_graph(*nodes, signatures=[entry(5, "serve", *whole)]))
    one = graph_of(content).signatures["serve"]
    assert one.optional == {"mask"}
    needs = needs_of(content)
    assert {use["op"] for use in needs["uses"] if use["reach"] == "run"} == {"A", "B", "C", "D"}


def test_initialisation_of_older_graphs_is_named_by_a_collection():
    start = entry(4, "legacy_init_op", msg(1, msg(1, "start:0")))
    other = entry(4, "losses", msg(1, msg(1, "loss:0")))
    content = saved_model(meta_graph(node("start", "Start"), node("loss", "Loss"), objects=None, more=start + other))
    assert reach_of(needs_of(content), "Start") == {"run"}
    assert reach_of(needs_of(content), "Loss") == {"dead"}


def test_devices_are_told_by_their_kind():
    for given, kind in (("/job:a/device:GPU:0", "GPU"), ("/gpu:1", "GPU"), ("/device:CPU:*", "CPU"), ("", "")):
        content = simple(functions=[function("f", node("n", "Placed", device=given, field=3))])
        (use,) = [one for one in graph_of(content).uses if one["op"] == "Placed"]
        assert use["device"] == kind


def test_what_holds_no_graph_is_no_saved_model():
    with pytest.raises(Unreadable, match="holds no graph"):
        graph_of(num(1, 1))


@pytest.mark.parametrize(
    ("bound", "content", "what"),
    [
        ("MAX_NODES_N", simple(), "nodes"),
        ("MAX_USES_N", simple(), "different uses"),
        ("MAX_FUNCTIONS_N", simple(functions=[function("f"), function("g")]), "functions"),
        ("MAX_SIGNATURES_N", simple(), "inputs or outputs|signatures"),
        ("MAX_ATTRS_N", simple(attrs={"a": flag(True), "b": flag(True)}), "attributes of one node"),
        ("MAX_CHILDREN_N", simple(objects=msg(1, *(msg(1, msg(2, one)) for one in "ab"))), "children of objects"),
        ("MAX_ELEMENTS_N", simple(attrs={"n": msg(1, msg(3, varint(1), varint(2)))}), "elements of attributes"),
    ],
)
def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, content: bytes, what: str):
    monkeypatch.setattr(reading, bound, 1 if bound != "MAX_SIGNATURES_N" else 0)
    with pytest.raises(Unreadable, match=f"the model has more than .*({what})"):
        graph_of(content)


def test_the_texts_of_a_model_are_bounded_by_the_memory_that_they_take(monkeypatch: pytest.MonkeyPatch):
    """One sign beyond ASCII makes every sign of a text take four bytes, so that bytes of the file are no measure."""
    wide = saved_model(meta_graph(*(node("\N{DROMEDARY CAMEL}" + f"{n:01000}", "Relu") for n in range(40))))
    monkeypatch.setattr(wire, "MAX_TEXTS_BYTES", 100_000)
    with pytest.raises(Unreadable, match="names and other texts that take more than 100,000 bytes"):
        graph_of(wide)
    assert len(graph_of(saved_model(meta_graph(*(node(f"{n:0100}", "Relu") for n in range(40))))).nodes) == 40


def test_long_lists_of_numbers_are_no_values_and_are_not_kept():
    """No op has them as an attribute; in one field a model may have as many as it has bytes."""
    many = msg(1, msg(3, *(varint(n) for n in range(2000))))
    (use,) = needs_of(saved_model(meta_graph(node("it", "Op", attrs={"n": many}))))["uses"]
    assert use["attrs"]["n"] == ["list", None]
    few = msg(1, msg(3, *(varint(n) for n in range(3))))
    (use,) = needs_of(saved_model(meta_graph(node("it", "Op", attrs={"n": few}))))["uses"]
    assert use["attrs"]["n"] == ["list", [0, 1, 2]]
    with pytest.raises(Unreadable, match="bad consumers"):
        graph_of(saved_model(meta_graph(versions=num(1, 1) + msg(3, *(varint(n) for n in range(2000))))))


def rich_model() -> bytes:
    """A model that has something of everything."""
    restore = [
        node("names", "Const", attrs={"dtype": dtype(STRING), "value": strings("a/b", "c")}, field=3),
        node("it", "RestoreV2", "p", "names:output:0", "s", attrs={"dtypes": dtypes(FLOAT, INT32)}, field=3),
    ]
    return simple(
        "If",
        attrs={"then_branch": func("load"), "Tcond": dtype(FLOAT), "shapes": msg(1, msg(7, shape(1, -1)))},
        functions=[
            function("load", *restore, attrs={"api_implements": text("x"), "_XlaMustCompile": flag(False)}),
            function("other", inner("a", "Fill", T=dtype(FLOAT), n=num(3, -4), s=text("abc"))),
        ],
        op_defs=[op_def("Fill", inputs=["T"], outputs=["T"], attrs={"T": ("type", dtype(FLOAT), dtypes(FLOAT))})],
        objects=msg(1, msg(1, num(1, 1), msg(2, "w"))) + msg(1, msg(7, num(1, FLOAT), msg(2, shape(4)), msg(6, "w"))),
        versions=num(1, 1482) + msg(3, varint(5)),
        more=msg(3, msg(3, "restore")) + entry(4, "saved_model_main_op", msg(1, msg(1, "x"))),
    )


def test_a_thousand_mutations_of_a_model_raise_the_one_error_or_nothing():
    whole, random_ = rich_model(), random.Random(20260)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(random_.randint(1, 3)):
            at = random_.randrange(len(content) + 1)
            match random_.randrange(10):
                case 0:
                    del content[at : at + random_.randint(1, 30)]
                case 1:
                    content[at:at] = random_.randbytes(random_.randint(1, 30))
                case 2:
                    del content[at:]
                case _:
                    content[at : at + 1] = random_.randbytes(1)
        try:
            for graph in read_saved_model(Reader(BytesSource(bytes(content), name="m"))):
                needs = graph.needs(entry=Entry.FUNCTIONS, device="GPU")
                json.dumps(needs)
                graph.restored(entry=Entry.SIGNATURES, device="CPU")
            outcomes["read"] += 1
        except Unreadable:
            outcomes["refused"] += 1
    # Neither all nor none: the mutations do reach what lies behind the first check.
    assert min(outcomes.values()) > 50
