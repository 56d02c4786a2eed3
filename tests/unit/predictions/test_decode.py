"""Prediction records: what each form counts as, and that no bytes whatever raise."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.predictions.binning import NOT_A_NUMBER, cell_of_score, cell_of_value
from service.predictions.decode import MOST_BYTES, Poison, Prediction, View, decode

NOW_S = 1_764_131_307.0


def record(**said: Any) -> bytes:
    body = {"service": "tf-model", "namespace": "ml", "version": "2.13.0", "time": NOW_S, "request_id": "a"}
    return json.dumps({**body, **said}).encode()


def counted(**said: Any) -> list[tuple[str, str, str | int]]:
    found = decode(record(**said), now_s=NOW_S)
    assert isinstance(found, Prediction), found
    return [(output, view.value, category) for output, view, category in found.counted]


def poison(value: bytes | None) -> str:
    found = decode(value, now_s=NOW_S)
    assert isinstance(found, Poison), found
    return found.code


def test_a_class_may_be_text_a_number_or_a_truth_value() -> None:
    assert counted(**{"class": "cat"}) == [("", "class", "cat")]
    assert counted(**{"class": 7}) == [("", "class", "7")]
    assert counted(**{"class": True}) == [("", "class", "true")]


def test_scores_give_the_class_its_score_and_one_of_the_top_labels() -> None:
    found = counted(scores={"cat": 0.2, "dog": 0.7, "emu": None})
    assert found[:2] == [("", "class", "dog"), ("", "score", cell_of_score(0.7))]
    assert found[2][:2] == ("", "top")
    assert found[2][2] in ("cat", "dog")
    assert counted(scores=[0.1, 0.9])[0] == ("", "class", "1")
    assert counted(**{"class": "emu", "score": 0.5, "scores": [1.0, 0.0], "top": ["x"]}) == [
        ("", "class", "emu"), ("", "top", "x"), ("", "score", cell_of_score(0.5)),
    ]  # fmt: skip


def test_of_the_top_labels_each_is_drawn_as_often_and_always_the_same_for_a_request() -> None:
    top = ["a", "b", "c"]
    drawn = Counter(counted(top=top, request_id=f"request-{n}")[1][2] for n in range(3000))
    assert counted(top=top)[0] == ("", "class", "a")
    assert all(900 <= drawn[label] <= 1100 for label in top)
    assert counted(top=top, request_id="x") == counted(top=top, request_id="x")


def test_numbers_are_counted_by_cell_and_what_is_no_number_by_itself() -> None:
    assert counted(value=-12.5) == [("", "value", cell_of_value(-12.5))]
    assert counted(value=None, score=None) == [("", "score", NOT_A_NUMBER), ("", "value", NOT_A_NUMBER)]
    assert counted(distance=3) == [("", "distance", cell_of_value(3.0))]


def test_outputs_are_counted_each_by_its_name() -> None:
    found = decode(record(outputs={"label": {"class": "cat"}, "vector": {"embedding": [1, 2.5]}}), now_s=NOW_S)
    assert isinstance(found, Prediction)
    assert found.counted == (("label", View.CLASS, "cat"),)
    assert found.embeddings == (("vector", [1.0, 2.5]),)


def test_time_is_seconds_or_rfc_3339_with_a_zone() -> None:
    found = decode(record(time="2025-11-26T05:28:27+01:00", value=1), now_s=NOW_S)
    assert isinstance(found, Prediction)
    assert found.time_s == NOW_S
    assert poison(record(time="2025-11-26T04:28:27", value=1)) == "schema"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"{not json", "json"),
        (b"\xff\xfe", "json"),
        (b"[" * 100_000, "schema"),
        (b'{"service": ' + b"[" * 100_000, "schema"),
        (b'{"x": ' + b"[" * 100_000, "json"),
        (record(), "nothing"),
        (record(value=1, service="../etc"), "schema"),
        (record(value=1, namespace="A"), "schema"),
        (record(value=1, version="1\n2"), "schema"),
        (record(value=1, service="tf-model\n"), "schema"),
        (record(value=1, namespace="ml\n"), "schema"),
        (record(value=1, version="v1\n"), "schema"),
        (record(value=1, cluster="eu\n"), "schema"),
        (record(outputs={"label\n": {"value": 1}}), "schema"),
        (record(score=1.5), "schema"),
        (record(scores=[None]), "scores"),
        (record(scores=[]), "scores"),
        (record(top=[]), "schema"),
        (record(**{"class": "x" * 101}), "schema"),
        (record(outputs={f"o{n}": {"value": 1} for n in range(17)}), "schema"),
        (record(embedding=[0.0] * 4097), "schema"),
        (record(value=1, time=NOW_S * 1000), "time"),
        (record(value=1, time=NOW_S + 61), "time"),
        (record(value=1, time=0), "time"),
        (record(value=1, pad="x" * MOST_BYTES), "too_large"),
    ],
)
def test_what_cannot_be_counted_has_a_code(value: bytes | None, code: str) -> None:
    assert poison(value) == code


def test_what_poison_says_holds_none_of_the_records_own_text() -> None:
    found = decode(record(value=1, service="SECRET", outputs={"SECRET": {}}), now_s=NOW_S)
    assert isinstance(found, Poison)
    assert "SECRET" not in found.reason


@given(st.binary(max_size=400))
def test_no_bytes_raise(value: bytes) -> None:
    assert isinstance(decode(value, now_s=NOW_S), Poison)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["class", "top", "scores", "score", "value", "distance", "embedding", "outputs", "time", "service", "request_id"]
)


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_no_value_in_any_place_raises(said: dict[str, Any]) -> None:
    found = decode(record(**said), now_s=NOW_S)
    assert isinstance(found, Poison) or all(math.isfinite(n) for _, numbers in found.embeddings for n in numbers)


def test_a_cut_or_changed_record_is_a_prediction_or_poison() -> None:
    chance = random.Random(3)
    whole = record(**{"class": "cat", "scores": {"cat": 0.5}, "outputs": {"a": {"value": 2}}})
    said = Counter()
    for _ in range(20_000):
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        found = decode(bytes(broken[: chance.randint(1, len(broken))]), now_s=NOW_S)
        said[type(found)] += 1
    assert set(said) == {Poison, Prediction}
