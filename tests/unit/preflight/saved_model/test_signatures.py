"""Whether clients of stable can go on: what is a loss and what is none."""

from __future__ import annotations

import pytest

from service.preflight.saved_model.graph import Signature, Tensor
from service.preflight.saved_model.signatures import lost

X = Tensor("float", (-1, 4))
Y = Tensor("float", (-1, 3))


def one(x: Tensor = X, y: Tensor = Y, *, method: str = "predict", **more: Tensor) -> dict[str, Signature]:
    return {"serving_default": Signature(method, {"x": x} | more, {"y": y})}


def test_the_same_signatures_lose_nothing():
    assert lost(one(), one()) == []


def test_a_renamed_signature_is_told_with_what_there_is():
    assert lost(one(), {"score": one()["serving_default"]}) == [
        "signature 'serving_default' is gone; the candidate has: score"
    ]


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (one(Tensor("double", (-1, 4))), "takes 'x' as double[any, 4] instead of float[any, 4]"),
        (one(Tensor("float", (-1, 5))), "takes 'x' as float[any, 5]"),
        (one(Tensor("float", (8, 4))), "takes 'x' as float[8, 4]"),
        (one(Tensor("float", (-1, 4, 1))), "takes 'x' as"),
        (one(y=Tensor("float", (-1, 4))), "gives 'y' as float[any, 4]"),
        (one(y=Tensor("int64", (-1, 3))), "gives 'y' as int64"),
        (one(y=Tensor("float", None)), "gives 'y' as float of any shape"),
        (one(mask=X), "needs an input 'mask' (float[any, 4])"),
        (one(method="classify"), "has the method 'classify'"),
        ({"serving_default": Signature("predict", {}, {"y": Y})}, "takes no input 'x' any more"),
        ({"serving_default": Signature("predict", {"x": X}, {})}, "gives no output 'y' any more"),
    ],
)
def test_what_a_client_would_miss_is_told(candidate: dict[str, Signature], words: str):
    lines = lost(one(), candidate)
    assert len(lines) == 1
    assert words in lines[0]


def test_wider_inputs_narrower_outputs_optional_inputs_and_new_things_are_no_loss():
    wider = {
        "serving_default": Signature(
            "predict",
            {"x": Tensor("float", None), "mask": X},
            {"y": Tensor("float", (8, 3)), "scores": Y},
            optional=frozenset({"mask"}),
        ),
        "new": one()["serving_default"],
    }
    assert lost(one(), wider) == []


def test_what_runs_on_loading_is_no_signature_of_clients():
    assert lost(one() | {"__saved_model_init_op": Signature("", {}, {})}, one()) == []
