"""Hostile documents: what is picked is right or the document is refused, in bounded memory and time."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.preflight.security.picking import (
    MAX_DEPTH,
    MAX_TEXT_BYTES,
    Entries,
    Fields,
    Flag,
    Items,
    Malformed,
    Picker,
    Text,
)
from service.preflight.security.reading import ReportReader
from service.preflight.security.reports import Nothing
from tests.unit.preflight.security.forms import clair, text, trivy, trivy_sarif

MIB = 1024 * 1024
ROOT = Path(__file__).parents[4]


def pick(raw: bytes, **wanted: Any) -> dict[str, Any]:
    picker = Picker(Fields(wanted))
    picker.feed(raw)
    return picker.close()


def test_only_what_is_wanted_comes() -> None:
    handed: list[Any] = []
    raw = {
        "a": "text", "b": [1, {"x": [None, True]}], "c": {"k": "v", "other": {}}, "list": ["p", None, "q"],
        "many": [{"n": 1}, {"n": "two"}], "map": {"x": "1", "y": None}, "flag": True, "number": 1.5,
    }  # fmt: skip
    found = pick(
        json.dumps(raw).encode(),
        a=Text(2),
        c=Fields({"k": Text(), "absent": Text()}),
        list=Items(Text()),
        many=Items(Fields({"n": Text(numbers=True)}), handed.append),
        map=Entries(Text(), lambda key, value: handed.append((key, value))),
        flag=Flag(),
        number=Text(numbers=True),
    )
    assert found == {
        "a": "te", "c": {"k": "v"}, "list": ["p", "q"], "many": [], "map": {}, "flag": True, "number": "1.5",
    }  # fmt: skip
    assert handed == [{"n": "1"}, {"n": "two"}, ("x", "1"), ("y", None)]


_text = st.text(alphabet='ab"\\{}[]:,/ä€😀\n\x00\x7f', max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=20,
)


@given(document=st.dictionaries(st.sampled_from("abc"), _json, max_size=3), cut=st.integers(1, 20))
def test_a_picked_text_is_the_one_that_another_parser_reads(document: dict[str, Any], cut: int) -> None:
    raw = json.dumps(document, ensure_ascii=False).encode()
    picker = Picker(Fields({"a": Text(1000)}))
    try:
        for start in range(0, len(raw), cut):
            picker.feed(raw[start : start + cut])
        found = picker.close()
    except Malformed:
        assert not isinstance(document["a"], str | None)
        return
    assert found.get("a") == document.get("a")


def read_or_refused(act: Callable[[], Any]) -> tuple[Any, str]:
    """What came, and what was said if it was refused."""
    try:
        return act(), ""
    except (Malformed, Nothing) as error:
        return None, str(error)


def fed(pieces: Iterator[bytes], reader: ReportReader | None = None) -> int:
    """Bytes taken until the reader refused."""
    reader = reader or ReportReader()
    taken = 0
    try:
        for piece in pieces:
            reader.feed(piece)
            taken += len(piece)
        reader.close()
    except (Malformed, Nothing):
        return taken
    raise AssertionError("this should have been refused")


def endless(start: bytes, piece: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield piece


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b'{"SchemaVersion": "', b"a" * 65536),
        (b'{"skipped": "', "ä€😀".encode() * 7000),
        (b'{"skipped": "', b"\\u00e4" * 10000),
        (b'{"', b"k" * 65536),
        (b'{"SchemaVersion": 1', b"0" * 65536),
        (b'{"skipped": -0.', b"1" * 65536),
        (b'{"skipped": ', b" \n\t" * 20000),
        (b"", b"[" * 65536),
        (b'{"skipped": ', b"[" * 65536),
        (b'{"skipped": ', b'{"a":' * 13000),
        (b'{"Results": ', b"[" * 65536),
    ],
    ids=["text", "wide", "escapes", "name", "number", "decimals", "spaces", "root", "arrays", "objects", "lists"],
)  # fmt: skip
def test_what_never_ends_is_refused_soon_and_held_in_little_memory(start: bytes, piece: bytes) -> None:
    tracemalloc.start()
    try:
        taken = fed(endless(start, piece))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= MAX_TEXT_BYTES + 3 * 65536
    assert peak < 24 * MIB


def test_text_up_to_the_limit_and_nesting_up_to_the_limit_are_read() -> None:
    long = "a" * (MAX_TEXT_BYTES - 70_000)
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert pick(f'{{"skipped": "{long}", "a": "{long}", "deep": {deep}}}'.encode(), a=Text(5)) == {"a": "aaaaa"}
    with pytest.raises(Malformed, match="nested more than 64 levels"):
        pick(f'{{"deep": [{deep}]}}'.encode(), a=Text(5))


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1e400}', b'{"a": 1' + b"0" * 400 + b"}", b'{"a": -9223372036854775809}', b'{"a": 01}', b'{"a": NaN}',
        b'{"a": Infinity}', b'{"a": "\\ud800"}', b'{"a": "\xff\xfe"}', b'{"a": "\x00"}', b'{"a": "\\x"}', b'{a: 1}',
        b"{'a': 1}", b'{"a": 1,}', b'{"a": [1,]}', b'{"a" 1}', b'{"a": 1}}', b'{"a": 1}{"a": 2}', b'{"a": // x\n1}',
        b'\x1f\x8b\x08\x00', b'PK\x03\x04', b"\x00" * 100, b'{"a": "\\ud83d"}', '{"ä": 1'.encode("latin-1"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_json_are_refused_or_read_and_never_raise_anything_else(raw: bytes) -> None:
    found, refused = read_or_refused(lambda: pick(raw, a=Text(500, numbers=True)))
    assert refused.isprintable()
    assert refused or isinstance(found.get("a", ""), str)


@pytest.mark.parametrize("form", [trivy, clair, trivy_sarif])
def test_reports_with_bytes_changed_at_random_are_read_or_refused(form: Callable[[], Any]) -> None:
    chance = random.Random(7)
    whole = text(form())
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 10))):
            at = chance.randrange(len(raw))
            raw[at : at + chance.choice((0, 1, 1, 30))] = bytes(
                chance.choices(b'{}[]",:0\\ue\xff\x00 n', k=chance.randrange(4))
            )
        reader = ReportReader()
        report, refused = read_or_refused(lambda: (reader.feed(bytes(raw)), reader.close())[1])  # noqa: B023
        assert refused.isprintable()
        assert refused or len(report.found) <= 6


def test_more_findings_than_any_image_has_are_refused_before_they_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit_n = 5000
    for form in ("trivy", "clair", "sarif"):
        monkeypatch.setattr(f"service.preflight.security.{form}.MAX_FOUND_N", limit_n)
    finding = b'{"VulnerabilityID":"CVE-1","PkgName":"p"},' * 1000
    rule = b'{"id":"r"},' * 1000
    pair = b'"1",' * 1000
    for start, piece in (
        (b'{"Results":[{"Vulnerabilities":[', finding),
        (b'{"runs":[{"results":[', rule),
        (b'{"runs":[{"tool":{"driver":{"rules":[', rule),
        (b'{"package_vulnerabilities":{"a":[', pair),
    ):
        taken = fed(endless(start, piece))
        assert taken < (limit_n + 3000) * len(piece) // 1000


def test_the_message_says_where_and_repeats_no_control_characters() -> None:
    with pytest.raises(Malformed) as raised:
        pick(b'{"a\\u001b[31m": {"\\n": []}}', **{"a\x1b[31m": Fields({"\n": Text()})})
    assert str(raised.value) == "a�[31m.� should be a text and is an array"


def stream(size_mb: int) -> tuple[int, float, int]:
    """Findings, MiB above the start, and kibibytes a second of a report of this size, in a process of its own."""
    program = f"""
import json, time
from service.preflight.security.reading import ReportReader
from tests.unit.preflight.security.forms import FOUND, trivy

def high_water_kb():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])

document = trivy()
results = document.pop("Results")
(one, *_) = results[0]["Vulnerabilities"]
one["Description"] = "d" * 5000
reader = ReportReader()
before, began = high_water_kb(), time.process_time()
reader.feed(json.dumps(document).encode()[:-1] + b', "Results": [{{"Class": "os-pkgs", "Vulnerabilities": [')
sent = 0
n = 0
while sent < {size_mb} * 1_000_000:
    one["VulnerabilityID"] = f"CVE-2024-{{n}}"
    raw = (b"," if n else b"") + json.dumps(one).encode()
    reader.feed(raw)
    sent += len(raw)
    n += 1
reader.feed(b"]}}]}}")
report = reader.close()
print(len(report.found) == n, n, high_water_kb() - before, time.process_time() - began)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    same, n, grown_kb, took_s = done.stdout.split()
    assert same == "True"
    return int(n), int(grown_kb) / 1024, math.ceil(size_mb * 1000 / float(took_s))


def test_memory_grows_with_findings_and_not_with_bytes() -> None:
    findings_n, grown_mib, _ = stream(30)
    assert findings_n > 4000
    assert grown_mib < 20


@pytest.mark.real
def test_a_report_of_500_mb_is_read_in_little_memory() -> None:
    findings_n, grown_mib, kb_a_second = stream(500)
    print(f"500 MB, {findings_n} findings: {grown_mib:.0f} MiB, {kb_a_second / 1000:.0f} MB a second of CPU")
    assert grown_mib < 100
