"""Walks saved_model.pb into graphs, field by field.

Field numbers are those of saved_model.proto, meta_graph.proto, graph.proto, function.proto, op_def.proto,
attr_value.proto and saved_object_graph.proto, which never change. Fields that are not named here are stepped over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from service.preflight.saved_model.check import AttrDef, AttrValue, OpDef, Use
from service.preflight.saved_model.graph import (
    Body,
    MetaGraph,
    Node,
    SavedObjects,
    Signature,
    Tensor,
    Variable,
)
from service.preflight.saved_model.types import type_name
from service.preflight.saved_model.wire import Reader, Span, Unreadable, number, numbers, signed, span

MAX_NODES_N = 500_000
MAX_USES_N = 50_000
MAX_FUNCTIONS_N = 100_000
MAX_META_GRAPHS_N = 64
MAX_SIGNATURES_N = 1_000
MAX_OBJECTS_N = 500_000
MAX_CHILDREN_N = 1_000_000
MAX_OP_DEFS_N = 10_000
MAX_ATTRS_N = 200
MAX_LIST_N = 100_000
MAX_NUMBERS_N = 1_000
"""Whole numbers of one list. A list of more is no value that an op knows: it is noted as set and not compared."""
MAX_ELEMENTS_N = 1_000_000
"""Elements of all lists that are kept."""
MAX_TENSORS_N = 100_000
"""In one checkpoint."""
MAX_TEXT_BYTES = 32
"""Longer values of string attributes are noted as set and not compared: no runtime allows values of such names."""
MAX_NAMES_BYTES = 8 << 20
"""The names of a checkpoint's tensors, in one constant."""

KEPT_INTERNAL = frozenset({"_kernel"})
"""Attributes whose name begins with an underscore are hints that every runtime ignores; all but these."""

NAMES_OF_THINGS = frozenset({"shared_name", "container", "debug_name", "config_proto", "executor_type", "name"})
"""String attributes that differ from node to node and mean nothing to a runtime's registry."""


def read_saved_model(reader: Reader) -> list[MetaGraph]:
    """All graphs of a saved_model.pb. Raises Unreadable for anything that is none, or beyond the bounds."""
    graphs: list[MetaGraph] = []
    for n, value in reader.message().fields():
        if n == 2:
            _bound(len(graphs), MAX_META_GRAPHS_N, "graphs")
            graphs.append(_GraphReader().read(span(value)))
    if not graphs:
        raise Unreadable(f"{reader.source.name} holds no graph, so it is no SavedModel")
    return graphs


class _GraphReader:
    """Reads one MetaGraphDef."""

    def __init__(self) -> None:
        self._graph = MetaGraph()
        self._index: dict[object, int] = {}
        self._nodes_n = 0
        self._elements_n = 0
        """Of the lists that are kept."""

    def read(self, message: Span) -> MetaGraph:
        graph = self._graph
        # The op definitions lie before the graph in every file that TensorFlow writes, but the format does not say so.
        for n, value in message.fields():
            if n == 1:
                self._meta_info(span(value))
        for n, value in message.fields():
            if n == 2:
                self._graph_def(span(value))
            elif n == 3:
                self._saver(span(value))
            elif n == 4:
                self._collection(span(value))
            elif n == 5:
                key, content = _entry(span(value))
                _bound(len(graph.signatures), MAX_SIGNATURES_N, "signatures")
                graph.signatures[key] = _signature(content)
            elif n == 7:
                graph.objects = _objects(span(value))
        for key, one in graph.signatures.items():
            if key.startswith("__saved_model"):
                graph.start_nodes.update(one.output_nodes)
        return graph

    def _meta_info(self, message: Span) -> None:
        graph, tags = self._graph, set()
        for n, value in message.fields():
            if n == 2:
                for m, inner in span(value).fields():
                    if m == 1:
                        name, definition = _op_def(span(inner))
                        _bound(len(graph.op_defs), MAX_OP_DEFS_N, "op definitions")
                        for attr in definition["attrs"].values():
                            self._keep(attr["default"], ["list", attr["allowed"]])
                        graph.op_defs[name] = definition
            elif n == 4:
                tags.add(span(value).text())
            elif n == 5:
                graph.tensorflow_version = span(value).text(64)
            elif n == 7:
                graph.defaults_stripped = bool(number(value))
        graph.tags = frozenset(tags)

    def _graph_def(self, message: Span) -> None:
        graph = self._graph
        names = _Constants()
        for n, value in message.fields():
            if n == 1:
                name, op, inputs, use, calls = self._node(span(value), names)
                graph.nodes[name] = Node(use, inputs, calls)
                graph.main.uses.setdefault(use, name)
                if op in ("VariableV2", "VarHandleOp"):
                    self._v1_variable(name, span(value))
            elif n == 2:
                for m, inner in span(value).fields():
                    if m == 1:
                        _bound(len(graph.functions), MAX_FUNCTIONS_N, "functions")
                        name, body = self._function(span(inner))
                        graph.functions[name] = body
            elif n == 4:
                self._versions(span(value))
        graph.main.restored = names.restored()

    def _versions(self, message: Span) -> None:
        graph = self._graph
        for n, value in message.fields():
            if n == 1:
                graph.producer_n = signed(value)
            elif n == 2:
                graph.min_consumer_n = signed(value)
            elif n == 3:
                graph.bad_consumers += tuple(numbers(value, MAX_NUMBERS_N))
                _bound(len(graph.bad_consumers), MAX_NUMBERS_N, "bad consumers")

    def _saver(self, message: Span) -> None:
        for n, value in message.fields():
            if n == 3:
                self._graph.start_nodes.add(_node_name(span(value).text()))

    def _collection(self, message: Span) -> None:
        key, content = _entry(message)
        if key in ("saved_model_main_op", "legacy_init_op"):
            for n, value in content.fields():
                if n == 1:
                    for m, inner in span(value).fields():
                        if m == 1:
                            self._graph.start_nodes.add(_node_name(span(inner).text()))

    def _function(self, message: Span) -> tuple[str, Body]:
        name, body, names = "", Body(), _Constants()
        for n, value in message.fields():
            if n == 1:
                for m, inner in span(value).fields():
                    if m == 1:
                        name = span(inner).text()
                        break
            elif n == 3:
                node, _, _, use, calls = self._node(span(value), names)
                body.uses.setdefault(use, node)
                body.calls.update(calls)
            elif n == 5:
                key, content = _entry(span(value))
                if key == "api_implements":
                    body.implements = _text_of(content)
                elif key == "api_preferred_device":
                    body.prefers = _text_of(content)
                elif key == "_XlaMustCompile":
                    body.compiled = _attr_value(content, [])[1] is True
        body.restored = names.restored()
        return name, body

    def _node(self, message: Span, names: _Constants) -> tuple[str, str, tuple[str, ...], int, tuple[str, ...]]:
        """Name, op, inputs, index of the use, functions that are called."""
        self._nodes_n += 1
        _bound(self._nodes_n, MAX_NODES_N, "nodes")
        name = op = device = ""
        inputs: list[str] = []
        attrs: dict[str, AttrValue] = {}
        calls: list[str] = []
        constant: Span | None = None
        definition: OpDef | None = None
        for n, value in message.fields():
            if n == 1:
                name = span(value).text(8192)
            elif n == 2:
                op = span(value).text(256)
                definition = self._graph.op_defs.get(op)
            elif n == 3:
                _bound(len(inputs), MAX_LIST_N, "inputs of one node")
                inputs.append(_node_name(span(value).text(8192)))
            elif n == 4:
                device = span(value).text()
            elif n == 5:
                key, content = _entry(span(value))
                if key.startswith("_") and key not in KEPT_INTERNAL:
                    continue
                _bound(len(attrs), MAX_ATTRS_N, "attributes of one node")
                attrs[key] = _attr_value(content, calls)
                if key == "value":
                    constant = content
        calls.append(op)
        if op == "Const" and constant is not None and attrs.get("dtype") == ["type", "string"]:
            names.keep(name, constant)
        if op == "RestoreV2":
            dtypes = attrs.get("dtypes", ["list", []])[1]
            names.restores.append((inputs, dtypes if isinstance(dtypes, list) else []))
        kept = {key: _kept(key, one, definition) for key, one in attrs.items()}
        return name, op, tuple(inputs), self._use(op, _device_kind(device), kept), tuple(calls)

    def _use(self, op: str, device: str, attrs: dict[str, AttrValue]) -> int:
        key = (op, device, tuple(sorted((name, str(value)) for name, value in attrs.items())))
        index = self._index.get(key)
        if index is None:
            _bound(len(self._index), MAX_USES_N, "different uses of ops")
            self._keep(*attrs.values())
            index = self._index[key] = len(self._graph.uses)
            self._graph.uses.append(Use(op=op, device=device, attrs=attrs, reach="", where=""))
        return index

    def _keep(self, *values: AttrValue | None) -> None:
        """Count the elements of lists among these, before they are kept."""
        self._elements_n += sum(len(one[1]) for one in values if one is not None and isinstance(one[1], list))
        _bound(self._elements_n, MAX_ELEMENTS_N, "elements of attributes")

    def _v1_variable(self, name: str, message: Span) -> None:
        """A variable of the main graph by the name that a V1 saver gives it: the node's."""
        dtype, shape = "", None
        for n, value in message.fields():
            if n == 5:
                key, content = _entry(span(value))
                if key == "dtype":
                    dtype = _attr_value(content, [])[1]
                elif key == "shape":
                    for m, inner in content.fields():
                        if m == 7:
                            shape = read_shape(span(inner))
        self._graph.variables.append(Variable(name, Tensor(str(dtype), shape)))


class _Constants:
    """String constants of one body, and the RestoreV2 nodes that may take the names of tensors from them."""

    def __init__(self) -> None:
        self._values: dict[str, Span] = {}
        self.restores: list[tuple[list[str], list[str]]] = []

    def keep(self, name: str, value: Span) -> None:
        if value.size_bytes <= MAX_NAMES_BYTES:
            self._values[name] = value

    def restored(self) -> list[tuple[str, str]]:
        """Name and type of each tensor that is restored, where the names are constants."""
        found: list[tuple[str, str]] = []
        for inputs, dtypes in self.restores:
            if len(inputs) > 1 and inputs[1] in self._values:
                names = list(_strings(self._values[inputs[1]]))
                if len(names) == len(dtypes):
                    _bound(len(found) + len(names), MAX_TENSORS_N, "restored tensors")
                    found += zip(names, dtypes, strict=True)
        return found


def _strings(value: Span) -> Iterator[str]:
    """The elements of a string tensor in an AttrValue."""
    for n, tensor in value.fields():
        if n == 8:
            for m, one in span(tensor).fields():
                if m == 8:
                    yield span(one).text(8192)


def _entry(message: Span) -> tuple[str, Span]:
    """Key and value of a map's entry."""
    key, content = "", None
    for n, value in message.fields():
        if n == 1:
            key = span(value).text(8192)
        elif n == 2:
            content = span(value)
    if content is None:
        content = message.nothing()
    return key, content


def _attr_value(message: Span, calls: list[str]) -> AttrValue:
    """An AttrValue in the form of `check`; functions that it names are added to ``calls``."""
    found: AttrValue = ["list", []]
    for n, value in message.fields():
        if n == 1:
            found = _list_value(span(value), calls)
        elif n == 2:
            text = span(value)
            found = ["string", text.text() if text.size_bytes <= MAX_TEXT_BYTES else None]
        elif n == 3:
            found = ["int", signed(value)]
        elif n == 4:
            one = span(value).float32()
            found = ["float", one if math.isfinite(one) else str(one)]
        elif n == 5:
            found = ["bool", bool(number(value))]
        elif n == 6:
            found = ["type", type_name(number(value))]
        elif n == 7:
            found = ["shape", None]
        elif n == 8:
            found = ["tensor", None]
        elif n == 9:
            found = ["placeholder", span(value).text()]
        elif n == 10:
            found = ["func", None]
            _call(span(value), calls)
    return found


def _list_value(message: Span, calls: list[str]) -> AttrValue:
    kind = "list"
    found: list[str | int | bool | None] = []
    for n, value in message.fields():
        if n == 2:
            text = span(value)
            found.append(text.text() if text.size_bytes <= MAX_TEXT_BYTES else None)
        elif n in (3, 5):
            more = numbers(value, MAX_NUMBERS_N)
            found.extend(bool(one) if n == 5 else one - (1 << 64) if one >= 1 << 63 else one for one in more)
            if len(found) > MAX_NUMBERS_N:
                return ["list", None]
        elif n == 6:
            found.extend(type_name(one) for one in numbers(value, MAX_LIST_N))
        elif n in (4, 7, 8):
            # Not compared: lists of floats, shapes and tensors.
            kind = "shape"
        elif n == 9:
            kind = "func"
            _call(span(value), calls)
        _bound(len(found), MAX_LIST_N, "elements of one attribute")
    return [kind, found if kind == "list" else None]


def _call(message: Span, calls: list[str]) -> None:
    for n, value in message.fields():
        if n == 1:
            calls.append(span(value).text())
            _bound(len(calls), MAX_FUNCTIONS_N, "functions that one node names")


def _kept(name: str, value: AttrValue, definition: OpDef | None) -> AttrValue:
    """As much of a value as a registry can care about, so that equal uses are one."""
    known = definition["attrs"].get(name) if definition is not None else None
    if value[0] == "list" and value[1] and all(isinstance(one, str) for one in value[1]):
        return ["list", sorted(set(value[1]))]
    if value[0] in ("int", "float", "list") and known is not None and value != known["default"]:
        return [value[0], None]
    if value[0] == "string" and name in NAMES_OF_THINGS:
        return ["string", None if known is None or value != known["default"] else value[1]]
    return value


def _op_def(message: Span) -> tuple[str, OpDef]:
    name, removed_n = "", 0
    attrs: dict[str, AttrDef] = {}
    inputs: list[str] = []
    outputs: list[str] = []
    for n, value in message.fields():
        if n == 1:
            name = span(value).text(256)
        elif n in (2, 3):
            side = inputs if n == 2 else outputs
            _bound(len(side), MAX_ATTRS_N, "arguments of one op")
            side.append(_argument(span(value)))
        elif n == 4:
            _bound(len(attrs), MAX_ATTRS_N, "attributes of one op")
            attr, definition = _attr_def(span(value))
            attrs[attr] = definition
        elif n == 8:
            for m, inner in span(value).fields():
                if m == 1:
                    removed_n = signed(inner)
    return name, OpDef(attrs=attrs, inputs=inputs, outputs=outputs, removed_n=removed_n)


def _argument(message: Span) -> str:
    kind, number_attr = "invalid", ""
    for n, value in message.fields():
        if n == 3:
            kind = type_name(number(value))
        elif n == 4:
            kind = "$" + span(value).text(256)
        elif n == 5:
            number_attr = span(value).text(256) + "*"
        elif n == 6:
            kind = "#" + span(value).text(256)
    return number_attr + kind


def _attr_def(message: Span) -> tuple[str, AttrDef]:
    name = kind = ""
    default: AttrValue | None = None
    allowed: list[str] | None = None
    for n, value in message.fields():
        if n == 1:
            name = span(value).text(256)
        elif n == 2:
            kind = span(value).text(64)
        elif n == 3:
            default = _attr_value(span(value), [])
            if default[0] == "list" and default[1] and all(isinstance(one, str) for one in default[1]):
                default = ["list", sorted(set(default[1]))]
        elif n == 7:
            allowed = [str(one) for one in _attr_value(span(value), [])[1] or ()]
    return name, AttrDef(kind=kind, default=default, allowed=allowed)


def _signature(message: Span) -> Signature:
    method = ""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    optional: set[str] = set()
    nodes: list[str] = []
    for n, value in message.fields():
        if n in (1, 2):
            key, content = _entry(span(value))
            side = inputs if n == 1 else outputs
            _bound(len(side), MAX_SIGNATURES_N, "inputs or outputs of one signature")
            side[key], names = _tensor_info(content)
            if n == 2:
                nodes += names
        elif n == 3:
            method = span(value).text()
        elif n == 4:
            optional.add(_entry(span(value))[0])
    return Signature(method, inputs, outputs, frozenset(optional), tuple(nodes))


def _tensor_info(message: Span) -> tuple[Tensor, list[str]]:
    """The tensor, and the nodes that make it."""
    dtype, shape, nodes = "invalid", None, []
    for n, value in message.fields():
        if n == 1:
            nodes.append(_node_name(span(value).text()))
        elif n == 2:
            dtype = type_name(number(value))
        elif n == 3:
            shape = read_shape(span(value))
        elif n == 4:
            nodes += [_node_name(span(one).text()) for m, one in span(value).fields() if m in (1, 2, 3)]
        elif n == 5:
            for m, one in span(value).fields():
                if m == 2:
                    nodes += _tensor_info(span(one))[1]
    return Tensor(dtype, shape), nodes


def read_shape(message: Span) -> tuple[int, ...] | None:
    dims: list[int] = []
    for n, value in message.fields():
        if n == 2:
            _bound(len(dims), 256, "dimensions of one shape")
            dims.append(next((signed(size) for m, size in span(value).fields() if m == 1), 0))
        elif n == 3 and number(value):
            return None
    return tuple(dims)


def _objects(message: Span) -> SavedObjects:
    found = SavedObjects()
    index, children_n = -1, 0
    for n, value in message.fields():
        if n != 1:
            continue
        index += 1
        _bound(index, MAX_OBJECTS_N, "objects")
        for m, inner in span(value).fields():
            if m == 1:
                name, child = _reference(span(inner))
                _bound(children_n, MAX_CHILDREN_N, "children of objects")
                children_n += 1
                found.children.setdefault(index, {})[name] = child
            elif m in (6, 8):
                found.functions.update(span(one).text() for k, one in span(inner).fields() if k == 1)
            elif m == 7:
                found.variables[index] = _variable(span(inner))
    return found


def _reference(message: Span) -> tuple[str, int]:
    name, child = "", 0
    for n, value in message.fields():
        if n == 1:
            child = number(value)
        elif n == 2:
            name = span(value).text(8192)
    return name, child


def _variable(message: Span) -> Variable:
    name, dtype, shape = "", "invalid", None
    for n, value in message.fields():
        if n == 1:
            dtype = type_name(number(value))
        elif n == 2:
            shape = read_shape(span(value))
        elif n == 6:
            name = span(value).text(8192)
    return Variable(name, Tensor(dtype, shape))


def _text_of(message: Span) -> str:
    """A string attribute's value, whole."""
    return next((span(value).text() for n, value in message.fields() if n == 2), "")


def _node_name(tensor: str) -> str:
    """The node of a tensor: ``^a`` and ``a:0`` are ``a``."""
    return tensor.lstrip("^").split(":", 1)[0]


def _device_kind(device: str) -> str:
    """``GPU`` of ``/job:worker/device:GPU:0``; empty where none is asked for."""
    for part in device.upper().replace("/", " /").split():
        pieces = part.strip("/").split(":")
        if pieces[0] == "DEVICE" and len(pieces) > 1:
            return pieces[1][:32]
        if pieces[0] in ("CPU", "GPU", "TPU"):
            return pieces[0]
    return ""


def _bound(found_n: int, limit_n: int, what: str) -> None:
    if found_n >= limit_n:
        raise Unreadable(f"the model has more than {limit_n:,} {what}, the most that are read")
