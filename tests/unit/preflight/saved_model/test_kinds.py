"""What a path holds, and .keras archives that are none, too large or meant to harm."""

from __future__ import annotations

import json
import os
import random
import struct
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from service.preflight.saved_model import kinds
from service.preflight.saved_model.kinds import MAX_CONFIG_BYTES, Kind, kind_of, read_keras
from service.preflight.saved_model.wire import Unreadable
from tests.unit.preflight.saved_model.writing import write_checkpoint

NEVER = threading.Event()
"""Of reading that is not told to end."""


def archive(path: Path, *, version: object = "3.15.1", config: object = None, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", json.dumps({"keras_version": version}))
        file.writestr("config.json", json.dumps(config if config is not None else {"class_name": "Sequential"}))
        file.writestr("model.weights.h5", b"weights")
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["saved_model.pb", "variables"], Kind.SAVED_MODEL),
        (["saved_model.pb", "tfhub_module.pb"], Kind.HUB_V1),
        (["saved_model.cpb"], Kind.CHUNKED),
        (["saved_model.pbtxt"], Kind.TEXT),
        (["1", "23"], Kind.VERSIONS),
    ],
)
def test_a_folder_is_known_by_its_names(tmp_path: Path, names: list[str], kind: Kind):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert kind_of(tmp_path) is kind


def test_a_file_is_known_by_its_beginning_and_not_by_its_name(tmp_path: Path):
    for name, content, kind in (
        ("a.keras", b"\x89HDF\r\n\x1a\n" + b"\0" * 8, Kind.HDF5),
        ("b.h5", b"PK\3\4" + b"\0" * 8, Kind.KERAS),
        ("c", b"\x1c\0\0\0TFL3", Kind.TFLITE),
    ):
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) is kind


def test_a_checkpoint_is_known_by_its_index(tmp_path: Path):
    assert kind_of(write_checkpoint(tmp_path / "ckpt-1", {})) is Kind.CHECKPOINT


def test_what_is_none_of_them_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m").write_bytes(b"hello, world")
    with pytest.raises(Unreadable, match="neither a SavedModel's folder nor"):
        kind_of(tmp_path / "m")
    with pytest.raises(Unreadable, match=r"holds no saved_model\.pb"):
        kind_of(tmp_path)
    with pytest.raises(Unreadable, match="cannot be opened"):
        kind_of(tmp_path / "nothing")
    (tmp_path / "saved_model.pb").write_bytes(b"a part of one")
    with pytest.raises(Unreadable, match="name the folder that it lies in"):
        kind_of(tmp_path / "saved_model.pb")
    (tmp_path / "saved_model.pb").unlink()
    monkeypatch.setattr(kinds, "MAX_FOLDER_ENTRIES_N", 0)
    with pytest.raises(Unreadable, match="more than 0 entries"):
        kind_of(tmp_path)


def test_a_keras_file_says_who_wrote_it(tmp_path: Path):
    read = read_keras(archive(tmp_path / "m.keras"), NEVER)
    assert (read.keras_version, read.lambdas) == ("3.15.1", ())


def test_layers_with_code_of_their_own_are_found_wherever_they_are(tmp_path: Path):
    layer = {"class_name": "Lambda", "config": {"name": "twice", "function": {"code": "marshalled"}}}
    config = {"class_name": "Functional", "config": {"layers": [{"config": {"layer": layer}}]}}
    assert read_keras(archive(tmp_path / "m.keras", config=config), NEVER).lambdas == ("twice",)


def test_a_lambda_that_is_no_layer_is_code_of_its_own_too(tmp_path: Path):
    activation = {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}}
    layer = {"class_name": "Dense", "config": {"name": "dense", "activation": activation}}
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    assert read_keras(archive(tmp_path / "m.keras", config=config), NEVER).lambdas == ("lambda",)


def test_classes_that_are_not_of_keras_are_named(tmp_path: Path):
    own = {"module": "shop.layers", "class_name": "Crossed", "registered_name": "shop>Crossed", "config": {}}
    known = {"module": "keras.layers", "class_name": "Dense", "registered_name": None, "config": {}}
    inner = {"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [known, own, own, inner]}}
    assert read_keras(archive(tmp_path / "m.keras", config=config), NEVER).foreign == ("shop.layers.Crossed",)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/passwd", "..\\evil", "C:/evil"])
def test_a_member_that_leads_outside_is_refused(tmp_path: Path, name: str):
    with pytest.raises(Unreadable, match="leads outside"):
        read_keras(archive(tmp_path / "m.keras", **{name: b"x"}), NEVER)


def test_a_bomb_is_read_to_its_limit_and_not_further(tmp_path: Path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        with file.open("config.json", "w") as member:
            for _ in range(300):
                member.write(b" " * (1 << 20))
    assert os.path.getsize(path) < 1 << 20
    tracemalloc.start()
    with pytest.raises(Unreadable, match=r"config.json of bomb.keras has more than"):
        read_keras(path, NEVER)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_CONFIG_BYTES


def test_a_long_list_of_members_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = archive(tmp_path / "m.keras")
    monkeypatch.setattr(kinds, "MAX_MEMBERS_N", 2)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(Unreadable, match="lists 3 members"):
        read_keras(path, NEVER)


def test_a_list_in_the_long_form_is_bounded_too(tmp_path: Path):
    path = tmp_path / "m.keras"
    record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 10**9, 10**9, 46 * 10**9, 0)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, 4, 1)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(b"PK\3\4" + record + locator + end)
    with pytest.raises(Unreadable, match="lists 1,000,000,000 members"):
        read_keras(path, NEVER)


@pytest.mark.parametrize("comment_n", [0, 65_510, 65_535])
@pytest.mark.parametrize("decoy", ["elsewhere", "in the locator"])
def test_the_list_that_is_bounded_is_the_one_that_is_read(tmp_path: Path, decoy: str, comment_n: int):
    """Readers of archives differ in where they look for the longer record of the end."""
    path = tmp_path / "m.keras"

    def record(size_bytes: int) -> bytes:
        return b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, size_bytes, 0)

    hole_bytes = 32 << 20
    locator = b"PK\6\7" + struct.pack("<IQI", 0, 4, 1)
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 0, comment_n)
    if decoy == "in the locator":
        # Looks like a locator and is none: the sizes of the end itself count.
        locator = b"PK\6\7".rjust(12, b"x") + struct.pack("<Q", 4)
        end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, hole_bytes, 0, comment_n)
    with path.open("wb") as file:
        file.write(b"PK\3\4" + record(46))
        file.seek(hole_bytes, os.SEEK_CUR)
        file.write(record(hole_bytes) + locator + end + b"c" * comment_n)
    tracemalloc.start()
    with pytest.raises(Unreadable, match=r"lists 1 members in 33,554,432 bytes|does not end as an archive does"):
        read_keras(path, NEVER)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_what_is_damaged_incomplete_or_packed_otherwise_is_told(tmp_path: Path):
    path = archive(tmp_path / "m.keras")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(Unreadable, match="does not end as an archive"):
        read_keras(path, NEVER)
    path.write_bytes(b"PK\3\4" + b"\xff" * 40 + whole[44:])
    with pytest.raises(Unreadable, match="cannot be read as an archive"):
        read_keras(path, NEVER)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("metadata.json", "{}")
    with pytest.raises(Unreadable, match="in a way that Keras does not use"):
        read_keras(path, NEVER)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", "[" * 60_000)
    with pytest.raises(Unreadable, match="is no JSON"):
        read_keras(path, NEVER)
    with pytest.raises(Unreadable, match="does not say which Keras"):
        read_keras(archive(tmp_path / "n.keras", version=3), NEVER)


def test_weights_are_held_against_their_checksum_until_told_to_end(tmp_path: Path):
    path = archive(tmp_path / "m.keras")
    with zipfile.ZipFile(path) as file:
        at = file.getinfo("model.weights.h5").header_offset
    content = bytearray(path.read_bytes())
    content[at + 30 + len("model.weights.h5") + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="cannot be read as an archive"):
        read_keras(path, NEVER)
    assert read_keras(path, NEVER, data=False).keras_version == "3.15.1"
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unreadable, match="took longer"):
        read_keras(archive(tmp_path / "n.keras"), stop)


def test_a_thousand_mutations_of_an_archive_raise_the_one_error_or_nothing(tmp_path: Path):
    whole = archive(tmp_path / "m.keras", config={"layers": [{"class_name": "Dense"}] * 20}).read_bytes()
    path, random_, outcomes = tmp_path / "n.keras", random.Random(31), {"read": 0, "refused": 0}
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(random_.randint(1, 2)):
            content[random_.randrange(len(content))] = random_.randrange(256)
        path.write_bytes(content)
        try:
            read_keras(path, NEVER)
            outcomes["read"] += 1
        except Unreadable:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
