"""Named tensors in the three forms of answers, and that no body does harm."""

from __future__ import annotations

import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from service.model.gates.golden import Protocol
from service.preflight.golden.answers import Output, Unreadable, read


def found(body: str | dict[str, Any] | list[Any], protocol: Protocol = Protocol.HTTP_JSON) -> dict[str, Output]:
    return read((body if isinstance(body, str) else json.dumps(body)).encode(), protocol)


def told(outputs: dict[str, Output]) -> dict[str, tuple[str, tuple[int, ...], list[Any]]]:
    return {name: (one.dtype, one.shape, one.values.tolist()) for name, one in outputs.items()}


SERVING, V2 = Protocol.TENSORFLOW_SERVING, Protocol.KSERVE_V2


def test_rows_of_named_outputs_become_one_tensor_each() -> None:
    body = {"predictions": [{"scores": [0.25, 0.75], "label": 1}, {"scores": [0.5, 0.5], "label": 0}]}
    assert told(found(body, SERVING)) == {
        "scores": ("number", (2, 2), [0.25, 0.75, 0.5, 0.5]),
        "label": ("integer", (2,), [1, 0]),
    }


def test_one_unnamed_output_takes_the_name_of_its_form() -> None:
    assert told(found({"predictions": [[2.5, 3.0]]}, SERVING)) == {"predictions": ("number", (1, 2), [2.5, 3.0])}
    assert told(found({"outputs": 1.5}, SERVING)) == {"outputs": ("number", (), [1.5])}


def test_columns_keep_their_names() -> None:
    body = {"outputs": {"a": [[1, 2]], "image_bytes": [{"b64": "aGk="}]}}
    assert told(found(body, SERVING)) == {
        "a": ("integer", (1, 2), [1, 2]),
        "image_bytes": ("string", (1,), ["b64:aGk="]),
    }


def test_a_classification_is_compared_by_label_and_not_by_place() -> None:
    one = found({"results": [[["cat", 0.6], ["dog", 0.4]]]}, SERVING)
    other = found({"results": [[["dog", 0.4], ["cat", 0.6]]]}, SERVING)
    assert (
        told(one)
        == told(other)
        == {
            "classes": ("string", (1, 2), ["cat", "dog"]),
            "scores": ("number", (1, 2), [0.6, 0.4]),
        }
    )


def test_a_classification_without_labels_keeps_its_order() -> None:
    assert told(found({"results": [[["", 0.2], ["", 0.9]]]}, SERVING))["scores"][2] == [0.2, 0.9]


def test_a_regression_is_a_list_of_numbers() -> None:
    assert told(found({"results": [3.5, 4.0]}, SERVING)) == {"results": ("number", (2,), [3.5, 4.0])}


def test_v2_outputs_have_the_types_and_shapes_that_the_server_names_flat_or_nested() -> None:
    body = {
        "model_name": "m",
        "outputs": [
            {"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, 3, 4]},
            {"name": "z", "shape": [2, 1], "datatype": "INT64", "data": [[7], [8]]},
            {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["cat"]},
            {"name": "b", "shape": [2], "datatype": "BOOL", "data": [1, False]},
        ],
    }
    assert told(found(body, V2)) == {
        "y": ("FP32", (2, 2), [1.0, 2.5, 3.0, 4.0]),
        "z": ("INT64", (2, 1), [7, 8]),
        "t": ("BYTES", (1,), ["cat"]),
        "b": ("BOOL", (2,), [True, False]),
    }


@pytest.mark.parametrize("written", ["[1.0, NaN, -Infinity]", '[1.0, "NaN", "-Infinity"]', '[1.0, null, "-inf"]'])
def test_nan_and_infinity_are_read_bare_quoted_and_as_null(written: str) -> None:
    for outputs in (
        found(f'{{"y": {written}}}'),
        found(f'{{"predictions": {written}}}', SERVING),
        found(f'{{"outputs": [{{"name": "y", "shape": [3], "datatype": "FP32", "data": {written}}}]}}', V2),
    ):
        (one,) = outputs.values()
        np.testing.assert_array_equal(one.values, [1.0, np.nan, -np.inf])
        assert one.numeric


def test_a_label_called_nan_among_labels_stays_a_label() -> None:
    assert told(found({"y": ["NaN", "cat"]})) == {"y": ("string", (2,), ["NaN", "cat"])}


def test_plain_json_is_named_by_its_paths() -> None:
    body = {"result": {"scores": [0.1, 0.9]}, "top": {"label": "cat", "hot": True}, "none": None}
    assert told(found({**body, "none": 1})) == {
        "result.scores": ("number", (2,), [0.1, 0.9]),
        "top.label": ("string", (), ["cat"]),
        "top.hot": ("bool", (), [True]),
        "none": ("integer", (), [1]),
    }
    assert found(body)["none"].dtype == "null"


def test_a_batch_of_like_objects_is_one_tensor_a_key_and_others_are_named_by_place() -> None:
    assert told(found([{"s": 1.5, "t": {"u": "a"}}, {"s": 2.5, "t": {"u": "b"}}])) == {
        "s": ("number", (2,), [1.5, 2.5]),
        "t.u": ("string", (2,), ["a", "b"]),
    }
    assert set(found({"boxes": [[1, 2], [3]]})) == {"boxes[0]", "boxes[1]"}
    assert set(found([{"s": 1}, {"t": 2}])) == {"answer[0].s", "answer[1].t"}


def test_lists_without_values_have_a_shape() -> None:
    assert told(found({"a": [], "b": [[], []]})) == {"a": ("empty", (0,), []), "b": ("empty", (2, 0), [])}


def test_whole_numbers_beyond_what_a_float_holds_stay_exact() -> None:
    assert told(found({"id": [2**63 + 1, 2**63 + 2]}))["id"][2] == [2**63 + 1, 2**63 + 2]


@pytest.mark.parametrize(
    ("body", "protocol", "said"),
    [
        ("", Protocol.HTTP_JSON, "no JSON"),
        ("<html>", SERVING, "no JSON"),
        ("{}", Protocol.HTTP_JSON, "no outputs"),
        ('{"error": "Op type not registered"}', SERVING, "is an error: Op type"),
        ('{"error": "no"}', V2, "is an error: no"),
        ('{"y": 1}', SERVING, "none of predictions"),
        ('{"y": 1}', V2, "no outputs of the v2 protocol"),
        ("[" * 200_000, Protocol.HTTP_JSON, "nested too deeply"),
        ('{"a":' * 60 + "1" + "}" * 60, Protocol.HTTP_JSON, "nested too deeply"),
        ("[" * 60 + "1" + "]" * 60, Protocol.HTTP_JSON, "nested too deeply"),
        ("[1," + "[2]," * 300 + "3]", Protocol.HTTP_JSON, "more than 256 outputs"),
        ('{"' + "a" * 300 + '": 1}', Protocol.HTTP_JSON, "name is longer"),
        ('{"a.b": 1, "a": {"b": 2}}', Protocol.HTTP_JSON, "'a.b' twice"),
        ("[0.5, 1" + "0" * 400 + "]", Protocol.HTTP_JSON, "no float can hold"),
        ("[1" + "0" * 5000 + "]", Protocol.HTTP_JSON, "no JSON"),
        ('{"outputs": [{"shape": [1], "datatype": "FP32", "data": [1]}]}', V2, "without name"),
        ('{"outputs": [{"name": "y", "shape": [1], "datatype": "FP32"}]}', V2, "ask for JSON"),
        ('{"outputs": [{"name": "y", "shape": [3], "datatype": "FP32", "data": [1]}]}', V2, "holds 1 values"),
        ('{"outputs": [{"name": "y", "shape": [2], "datatype": "FP32", "data": [[1], 2]}]}', V2, "unevenly"),
        ('{"outputs": [{"name": "y", "shape": [-1], "datatype": "FP32", "data": []}]}', V2, "impossible shape"),
        ('{"outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": ["x"]}]}', V2, "else than numbers"),
        ('{"outputs": [{"name": "y", "shape": [1], "datatype": "INT8", "data": [0.5]}]}', V2, "else than INT8"),
        ('{"outputs": [{"name": "y", "shape": [1], "datatype": "BOOL", "data": ["t"]}]}', V2, "else than BOOL"),
    ],
)
def test_what_is_no_answer_is_unreadable_with_its_reason(body: str, protocol: Protocol, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        found(body, protocol)


def test_a_body_of_many_values_is_refused_before_it_is_taken_apart() -> None:
    body = b"[" + b"{}," * 1_000_000 + b"{}]"
    tracemalloc.start()
    with pytest.raises(Unreadable, match="more than 500,000 values"):
        read(body, Protocol.HTTP_JSON)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_no_bytes_raise_anything_but_unreadable() -> None:
    chosen = random.Random(20261126)
    bodies = [
        b'{"predictions": [{"scores": [0.25, NaN], "label": 1}, {"scores": [0.5, null], "label": 0}]}',
        b'{"outputs": [{"name": "y", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, "NaN", 4]}]}',
        b'{"results": [[["cat", 0.6], ["dog", 0.4]]], "outputs": {"a": [[1, 2]], "i_bytes": [{"b64": "aGk="}]}}',
    ]
    read_n = 0
    for _ in range(6000):
        body = bytearray(chosen.choice(bodies))
        for _ in range(chosen.randint(0, 3)):
            at = chosen.randrange(len(body))
            body[at : at + chosen.randint(0, 4)] = chosen.choice(
                [
                    b"",
                    b"[",
                    b"]",
                    b"{",
                    b"}",
                    b",",
                    b"1e999",
                    b"null",
                    b'"',
                    b"true",
                    b"\xff",
                    b"-",
                    b"[[]]",
                    b'{"b64":1}',
                ]
            )
        try:
            outputs = read(bytes(body), chosen.choice(list(Protocol)))
        except Unreadable:
            continue
        read_n += 1
        assert all(one.values.size == int(np.prod(one.shape)) for one in outputs.values())
    assert read_n > 500
