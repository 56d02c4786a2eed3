"""The checkpoint's index and data, read without TensorFlow, against what a graph restores; and damaged ones."""

from __future__ import annotations

import random
import struct
import threading
from pathlib import Path

import google_crc32c
import pytest

from service.preflight.saved_model import checkpoint
from service.preflight.saved_model.checkpoint import Checkpoint, Index, differing, read_index, unmet
from service.preflight.saved_model.graph import MetaGraph, SavedObjects, Tensor, Variable
from service.preflight.saved_model.wire import BytesSource, FileSource, Unreadable
from tests.unit.preflight.saved_model.writing import (
    DOUBLE,
    FLOAT,
    STRING,
    bundle_entry,
    msg,
    num,
    packed_strings,
    sealed_block,
    table,
    table_of,
    write_checkpoint,
)

KEY = "w/.ATTRIBUTES/VARIABLE_VALUE"
ONES = struct.pack("<12f", *[1.0] * 12)


def opened(prefix: Path) -> Checkpoint:
    with FileSource(prefix.with_name(f"{prefix.name}.index")) as source:
        return Checkpoint(prefix, read_index(source))


def index_of(content: bytes) -> Index:
    return read_index(BytesSource(content, name="variables.index"))


def test_the_header_may_say_a_version_too():
    assert index_of(table([(b"", num(1, 3) + msg(3, num(1, 1)))])).shards_n == 3


def whole(tmp_path: Path) -> Checkpoint:
    return opened(write_checkpoint(tmp_path / "variables", {KEY: (FLOAT, (4, 3), ONES), "b": (DOUBLE, (), b"\0" * 8)}))


def test_names_types_shapes_and_places_are_read_and_the_data_has_its_checksums(tmp_path: Path):
    read = whole(tmp_path)
    assert read.index.tensors[KEY].tensor == Tensor("float", (4, 3))
    assert read.index.tensors["b"].tensor == Tensor("double", ())
    assert read.misplaced() == []
    assert read.damaged(threading.Event()) == []


def test_a_flipped_bit_of_the_data_is_found_with_the_tensors_name(tmp_path: Path):
    read = whole(tmp_path)
    data = bytearray(read.shard(0).read_bytes())
    data[-1] ^= 1
    read.shard(0).write_bytes(data)
    assert read.damaged(threading.Event()) == [f"{KEY}: checksum of its 48 bytes does not match"]


def test_strings_are_held_against_checksums_of_their_own_kind(tmp_path: Path):
    read = opened(write_checkpoint(tmp_path / "v", {"s": (STRING, (2,), packed_strings(b"abc", b"d" * 300))}))
    assert read.damaged(threading.Event()) == []
    whole_ = read.shard(0).read_bytes()
    for at in (0, 1, 4, len(whole_) - 1):
        content = bytearray(whole_)
        content[at] ^= 1
        read.shard(0).write_bytes(content)
        assert read.damaged(threading.Event()) == [f"s: checksum of its {len(whole_)} bytes does not match"]


def test_a_shard_that_is_cut_off_or_missing_is_found(tmp_path: Path):
    read = whole(tmp_path)
    read.shard(0).write_bytes(ONES[:40])
    assert read.misplaced()[0].startswith(f"{KEY} lies at bytes 8 to 56 of variables.data-00000-of-00001")
    read.shard(0).unlink()
    assert "cannot be opened" in read.misplaced()[0]


def test_a_size_that_does_not_fit_the_shape_is_found(tmp_path: Path):
    read = opened(write_checkpoint(tmp_path / "variables", {KEY: (FLOAT, (4, 4), ONES)}))
    assert read.misplaced() == [f"{KEY} is float[4, 4] and has 48 bytes instead of 64"]


def test_an_empty_tensor_that_has_bytes_is_found(tmp_path: Path):
    read = opened(write_checkpoint(tmp_path / "variables", {"e": (FLOAT, (0, 4), ONES)}))
    assert read.misplaced() == ["e is float[0, 4] and has 48 bytes instead of 0"]


def test_tensors_over_one_another_cannot_make_it_read_without_end(tmp_path: Path):
    entries = [(b"", num(1, 1))] + [(b"k%d" % n, bundle_entry(FLOAT, (12,), 0, ONES)) for n in range(9)]
    (tmp_path / "v.index").write_bytes(table(entries))
    (tmp_path / "v.data-00000-of-00001").write_bytes(ONES)
    with pytest.raises(Unreadable, match="over one another"):
        opened(tmp_path / "v").damaged(threading.Event())


def test_checking_the_data_ends_when_it_is_told_to(tmp_path: Path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unreadable, match="took longer"):
        whole(tmp_path).damaged(stop)


def test_keys_that_share_their_beginning_are_put_together():
    one = bundle_entry(FLOAT, (), 0, b"\0" * 4)
    entries = ((0, b"", num(1, 1)), (0, b"abcd", one), (3, b"x", one))
    assert set(index_of(table_of(sealed_block(entries))).tensors) == {"abcd", "abcx"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "fewer than"),
        (b"a" * 100, "does not end as"),
        (table([(b"b", num(1, 1)), (b"a", num(1, 1))]), "out of order"),
        (table([(b"a", num(1, 1)), (b"a", num(1, 1))]), "out of order"),
        (table([(b"", num(1, 1)), (b"", num(1, 1))]), "out of order"),
        (table_of(sealed_block([]), times=50), "over one another"),
        (table_of(sealed_block([(0, b"", num(1, 1))]), times=2), "out of order"),
        (table([(b"a", num(1, FLOAT))]), "has no header"),
        (table([(b"", num(1, 1))], kind=1), "compressed"),
        (table([(b"", num(1, 20_000))]), "20000 shards"),
        (table([(b"", num(1, 1) + num(2, 1))]), "big-endian"),
        (table([(b"", num(1, 1))])[-48:], "past its end"),
        (table([(b"", num(1, 1)), (b"a" * 9000, b"")]), "past its block"),
    ],
    ids=[
        "empty",
        "noise",
        "order",
        "twice",
        "headers",
        "nothing",
        "again",
        "header",
        "packed",
        "shards",
        "endian",
        "cut",
        "key",
    ],
)
def test_a_damaged_index_is_told(content: bytes, what: str):
    with pytest.raises(Unreadable, match=what):
        index_of(content)


def test_a_flipped_bit_of_the_index_is_found_by_its_checksum():
    content = bytearray(table([(b"", num(1, 1)), (b"a", bundle_entry(FLOAT, (), 0, b"\0" * 4))]))
    content[12] ^= 1
    with pytest.raises(Unreadable, match="checksum of the block at byte 0"):
        index_of(bytes(content))


def test_the_number_of_tensors_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "MAX_TENSORS_N", 1)
    one = bundle_entry(FLOAT, (), 0, b"\0" * 4)
    with pytest.raises(Unreadable, match="more than 1 tensors"):
        index_of(table([(b"", num(1, 1)), (b"a", one), (b"b", one)]))


def test_names_that_share_their_beginnings_are_bounded_by_what_they_take_when_put_together(
    monkeypatch: pytest.MonkeyPatch,
):
    entries = [(0, b"", num(1, 1)), (0, b"a" * 8000, b"")] + [(7990, b"b%09d" % n, b"") for n in range(20)]
    content = table_of(sealed_block(entries))
    assert len(content) < 10_000
    monkeypatch.setattr(checkpoint, "MAX_NAMES_BYTES", 100_000)
    with pytest.raises(Unreadable, match="names of more than 100,000 bytes"):
        index_of(content)


def test_objects_of_a_checkpoint_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    graph = packed_strings(msg(1) * 20)
    read = opened(write_checkpoint(tmp_path / "v", {checkpoint.OBJECT_GRAPH: (STRING, (), graph)}))
    assert len(read.object_keys()) == 20
    monkeypatch.setattr(checkpoint, "MAX_OBJECTS_N", 19)
    with pytest.raises(Unreadable, match="more than 19 objects"):
        read.object_keys()


def test_a_shape_beyond_all_numbers_is_told_and_raises_nothing_else(tmp_path: Path):
    sizes = (2**62,) * 255
    entries = [(b"", num(1, 1)), (b"w", bundle_entry(FLOAT, sizes, 0, ONES))]
    (tmp_path / "v.index").write_bytes(table(entries))
    (tmp_path / "v.data-00000-of-00001").write_bytes(ONES)
    (line,) = opened(tmp_path / "v").misplaced()
    assert "48 bytes instead of" in line


def test_a_thousand_mutations_of_an_index_raise_the_one_error_or_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # Without checksums the mutations reach what lies behind them.
    monkeypatch.setattr(google_crc32c, "value", lambda content: 0)
    monkeypatch.setattr(checkpoint, "_unmasked", lambda checksum: 0)
    content = table([(b"", num(1, 1)), *((b"k%d" % n, bundle_entry(FLOAT, (2,), 0, b"\0" * 8)) for n in range(5))])
    (tmp_path / "v.data-00000-of-00001").write_bytes(b"\0" * 40)
    random_, outcomes = random.Random(77), {"read": 0, "refused": 0}
    for _ in range(1000):
        mutated = bytearray(content)
        for _ in range(random_.randint(1, 2)):
            mutated[random_.randrange(len(mutated))] = random_.randrange(256)
        try:
            Checkpoint(tmp_path / "v", index_of(bytes(mutated))).misplaced()
            outcomes["read"] += 1
        except Unreadable:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50


def test_what_is_restored_in_another_type_or_not_there_is_found(tmp_path: Path):
    restored = [(KEY, "float"), ("b", "float"), ("c", "float")]
    assert unmet(MetaGraph(objects=SavedObjects()), restored, whole(tmp_path)) == [
        "the graph restores b as float, the checkpoint holds double",
        "the graph restores c, which the checkpoint does not hold",
    ]


def object_graph(*keys: str) -> bytes:
    """A checkpoint's own object graph: a root whose child w has a value under each key."""
    value = [msg(2, msg(1, "VARIABLE_VALUE"), msg(3, key)) for key in keys]
    graph = msg(1, msg(1, num(1, 1), msg(2, "w"))) + msg(1, *value)
    return packed_strings(graph)


def declared(tensor: Tensor) -> MetaGraph:
    objects = SavedObjects(variables={1: Variable("w", tensor)}, children={0: {"w": 1}})
    return MetaGraph(objects=objects)


@pytest.mark.parametrize(
    ("tensor", "lines"),
    [
        (Tensor("float", (4, 3)), []),
        (Tensor("float", (-1, 3)), []),
        (Tensor("float", (3, 4)), ["variable w is float[3, 4], the checkpoint holds float[4, 3]"]),
        (Tensor("double", (4, 3)), ["variable w is double[4, 3], the checkpoint holds float[4, 3]"]),
    ],
)
def test_a_variable_of_another_shape_is_found_by_its_place_among_the_objects(
    tmp_path: Path, tensor: Tensor, lines: list[str]
):
    tensors = {KEY: (FLOAT, (4, 3), ONES), checkpoint.OBJECT_GRAPH: (STRING, (), object_graph(KEY))}
    read = opened(write_checkpoint(tmp_path / "v", tensors))
    assert unmet(declared(tensor), [], read) == lines


def test_a_v1_variable_is_found_by_its_nodes_name(tmp_path: Path):
    graph = MetaGraph(variables=[Variable("b", Tensor("double", (2,))), Variable("part", Tensor("float", ()))])
    assert unmet(graph, [], whole(tmp_path)) == ["variable b is double[2], the checkpoint holds double[]"]


def test_objects_that_are_no_variables_are_not_looked_for(tmp_path: Path):
    tensors = {KEY: (FLOAT, (4, 3), ONES), checkpoint.OBJECT_GRAPH: (STRING, (), object_graph(KEY))}
    read = opened(write_checkpoint(tmp_path / "v", tensors))
    assert unmet(MetaGraph(objects=SavedObjects(children={0: {"w": 1}})), [], read) == []
    assert unmet(declared(Tensor("float", (4, 3))), [], whole(tmp_path)) == []


def test_objects_that_lead_in_a_circle_end(tmp_path: Path):
    circle = msg(1, msg(1, num(1, 0), msg(2, "w")))
    read = opened(write_checkpoint(tmp_path / "v", {checkpoint.OBJECT_GRAPH: (STRING, (), packed_strings(circle))}))
    graph = MetaGraph(objects=SavedObjects(children={0: {"w": 0}}))
    assert unmet(graph, [], read) == []


def test_two_checkpoints_are_compared_by_name_type_and_shape_and_not_by_the_optimizer(tmp_path: Path):
    old = opened(
        write_checkpoint(tmp_path / "a", {
            "a": (FLOAT, (4, 3), ONES), "gone": (FLOAT, (), b"\0" * 4),
            "a/.OPTIMIZER_SLOT/m": (FLOAT, (), b"\0" * 4),
        })
    )  # fmt: skip
    new = opened(write_checkpoint(tmp_path / "b", {"a": (FLOAT, (3, 4), ONES), "more": (FLOAT, (), b"\0" * 4)}))
    assert differing(old.index, new.index) == [
        "a is float[3, 4] instead of float[4, 3]",
        "gone is not in the candidate's checkpoint",
        "more is only in the candidate's checkpoint",
    ]
    assert differing(old.index, old.index) == []
