"""What a model needs of a runtime: ops with their attributes, functions, signatures, variables.

Equal uses of an op are kept once, so that memory grows with what is different in a model and not with its size. A walk
from the signatures tells what a request can reach (branches that are not taken included) from what only lies in the
library: whoever loads the model needs every op registered, but a kernel only for what is run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.model.gates.model import Entry
from service.preflight.saved_model.check import Needs, OpDef, Use


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a signature. ``shape`` None: any rank; -1 in it: any size."""

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Signature:
    """One way in which clients call a model."""

    method: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    optional: frozenset[str] = frozenset()
    """Inputs that have a default."""
    output_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable as the saved object or a V1 graph declares it."""

    name: str
    tensor: Tensor


@dataclass(slots=True)
class Body:
    """A function, or the main graph: uses of ops by their index, and the functions that are called."""

    uses: dict[int, str] = field(default_factory=dict)
    """Index of the use -> name of a node that has it."""
    calls: set[str] = field(default_factory=set)
    implements: str = ""
    """Functions that implement the same thing are exchanged for one another by device (Keras' LSTM and GRU)."""
    prefers: str = ""
    compiled: bool = False
    """Compiled by XLA, which has kernels of its own."""
    restored: list[tuple[str, str]] = field(default_factory=list)
    """Tensors that are read from the checkpoint: name and type."""


@dataclass(slots=True)
class Node:
    """A node of the main graph, as far as the walk from the signatures needs it."""

    use: int
    inputs: tuple[str, ...]
    calls: tuple[str, ...]


@dataclass(slots=True)
class SavedObjects:
    """The object graph of a V2 SavedModel; objects by their number, 0 the root."""

    variables: dict[int, Variable] = field(default_factory=dict)
    children: dict[int, dict[str, int]] = field(default_factory=dict)
    """Object -> name of a child -> its object."""
    functions: set[str] = field(default_factory=set)
    """Concrete functions that Python can call."""


@dataclass(slots=True)
class MetaGraph:
    """One graph of a SavedModel, by its tags."""

    tags: frozenset[str] = frozenset()
    tensorflow_version: str = ""
    defaults_stripped: bool = False
    producer_n: int = 0
    min_consumer_n: int = 0
    bad_consumers: tuple[int, ...] = ()
    op_defs: dict[str, OpDef] = field(default_factory=dict)
    """Definitions of the used ops, as the TensorFlow that wrote the model had them."""
    uses: list[Use] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    main: Body = field(default_factory=Body)
    functions: dict[str, Body] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    objects: SavedObjects | None = None
    start_nodes: set[str] = field(default_factory=set)
    """Main-graph nodes that are run on loading: initialisation and restoring."""
    variables: list[Variable] = field(default_factory=list)
    """Of a V1 graph, by node name."""

    def needs(self, *, entry: Entry, device: str) -> Needs:
        """What a runtime must have for this graph, with what can be reached by way of ``entry``."""
        reach = self._reach(entry, device)
        found: dict[tuple[int, str], str] = {}
        """Use and its reach -> a node that has it."""
        for name, body in self.functions.items():
            how = reach.get(name, "dead")
            for use, example in body.uses.items():
                found.setdefault((use, how), f"{example} in {name}")
        live = self._live_nodes(entry)
        for name, node in self.nodes.items():
            found.setdefault((node.use, "run" if name in live else "dead"), name)
        uses: list[Use] = []
        for (index, how), where in sorted(found.items()):
            if how == "dead" and (index, "run") in found:
                continue
            one = self.uses[index]
            uses.append(Use(op=one["op"], device=one["device"], attrs=one["attrs"], reach=how, where=where[:300]))
        ops = {use["op"] for use in uses}
        return Needs(
            # Seen in 2.12, 2.13 and 2.21: the C++ loader looks at a V2 graph's versions, tf.saved_model.load does not.
            holds_versions=self.objects is None or entry is Entry.SIGNATURES,
            producer=self.producer_n,
            min_consumer=self.min_consumer_n,
            bad_consumers=list(self.bad_consumers),
            defaults_stripped=self.defaults_stripped,
            functions=sorted(ops & self.functions.keys()),
            op_defs={name: definition for name, definition in self.op_defs.items() if name in ops},
            uses=uses,
        )

    def restored(self, *, entry: Entry, device: str) -> list[tuple[str, str]]:
        """Tensors that loading reads from the checkpoint: name and type."""
        found = list(self.main.restored)
        for name in self._reach(entry, device):
            found += self.functions[name].restored
        return list(dict.fromkeys(found))

    def _live_nodes(self, entry: Entry) -> set[str]:
        """Main-graph nodes that a call of a signature, initialisation or restoring runs."""
        waiting = set(self.start_nodes)
        for one in self.signatures.values():
            waiting |= set(one.output_nodes)
        live: set[str] = set()
        while waiting:
            name = waiting.pop()
            node = self.nodes.get(name)
            if node is not None and name not in live:
                live.add(name)
                waiting |= set(node.inputs) - live
        return live

    def _reach(self, entry: Entry, device: str) -> dict[str, str]:
        """Functions that can be reached, and how: ``run``, or ``jit`` where XLA compiles them."""
        waiting: list[tuple[str, str]] = []
        for name in self._live_nodes(entry):
            waiting += [(called, "run") for called in self.nodes[name].calls]
        objects = self.objects
        callable_n = sum(not key.startswith("__") for key in self.signatures)
        if objects is not None and (entry is Entry.FUNCTIONS or not callable_n):
            waiting += [(name, "run") for name in objects.functions]
        twins: dict[str, list[str]] = {}
        for name, body in self.functions.items():
            if body.implements and body.prefers.upper() == device:
                twins.setdefault(body.implements, []).append(name)
        reach: dict[str, str] = {}
        exchanged: set[tuple[str, str]] = set()
        while waiting:
            name, how = waiting.pop()
            called = self.functions.get(name)
            if called is None:
                continue
            if called.compiled:
                how = "jit"
            if reach.get(name) in (how, "run"):
                continue
            reach[name] = how
            waiting += [(one, how) for one in called.calls]
            if called.implements and (called.implements, how) not in exchanged:
                # Once for all twins: each leads to every other.
                exchanged.add((called.implements, how))
                waiting += [(one, how) for one in twins.get(called.implements, ())]
        return reach
