"""The edit of a VirtualService: every public case that concerns an HTTP weight, and our own rules."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.actuators.virtual_service import FENCE, CannotEdit, Edit, ServesOthers, Wanted, edit, fqdn, look
from service.lab.json_patch import apply
from service.model.target import Destination
from tests.conformance import ROOT, conformance

LEFT_OUT = {
    "TLS and TCP routes are not edited; a target names an HTTP route": [
        "a04", "a05", "a06", "a07", "a08", "a09", "a16", "a17", "a18", "a20", "a21", "a23", "a24", "a25", "a26", "a49",
    ],
    "routes and destinations are not made, moved or removed by Serinus": [
        "a12", "a13", "a14", "a40", "a41", "a42", "a43", "a44", "a45", "a46", "a47", "a48", "a55", "a56",
        "f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f10", "f11", "f12", "f13", "f14", "f17", "f18",
        "k01", "k02", "k03", "k08", "k09",
    ],
    "drift and supersession belong to the state machine (tests/unit/rollout)": ["a53", "f09", "f15", "f16"],
    "one target is one VirtualService": ["a50", "a51", "a52"],
    "a weight that is not a share of a whole is another tool's contract": ["i05"],
}  # fmt: skip
"""Cases that do not concern a weight edit of one named HTTP route, by reason."""

SAFER = {
    "a03": "not ours",  # an additional subset with weight is somebody's; its share is not taken silently
    "a30": "no destination is",  # stable.namespace is another namespace's stable unless the target says so
    "a31": "no destination is",  # the first DNS label alone must not match across namespaces
    "a32": "not ours",  # somebody else's destination with weight is never deleted
}
"""Hazards that we refuse instead of copying."""


def cases() -> list[Any]:
    left = {name for names in LEFT_OUT.values() for name in names}
    folder = ROOT / "virtualservice"
    files = sorted(folder.glob("*/*.yaml")) if folder.exists() else []
    return [pytest.param(f, id=f.stem) for f in files if f.stem[:3] not in left]


def test_every_case_is_either_run_or_left_out_with_a_reason() -> None:
    folder = conformance("virtualservice")
    known = {f.stem[:3] for f in folder.glob("*/*.yaml")}
    left = [name for names in LEFT_OUT.values() for name in names]
    assert set(left) <= known
    assert len(left) == len(set(left))


def wanted(**changes: Any) -> Wanted:
    base: dict[str, Any] = {
        "namespace": "default",
        "http_route": None,
        "stable": Destination(host="stable"),
        "canary": Destination(host="canary"),
        "canary_percent": 10,
        "fence": 5,
        "rollout": "r-1",
    }
    return Wanted(**(base | changes))


def weights(vs: dict[str, Any]) -> list[list[int]]:
    return [[d.get("weight", 0) for d in r.get("route", [])] for r in vs["spec"]["http"]]


def stripped(vs: dict[str, Any]) -> dict[str, Any]:
    """Without what an edit may change: two weights and our two annotations."""
    out = copy.deepcopy(vs)
    for route in out["spec"]["http"]:
        for one in route.get("route", []):
            one.pop("weight", None)
    notes = out.get("metadata", {}).get("annotations") or {}
    kept = {k: v for k, v in notes.items() if not k.startswith("serinus.io/")}
    out.setdefault("metadata", {})["annotations"] = kept
    return out


@pytest.mark.parametrize("file", cases())
def test_public_case(file: Path) -> None:
    case = yaml.safe_load(file.read_text())
    number = file.stem[:3]
    if number.startswith("i"):
        vs = {"metadata": {}, "spec": case["input"]}
        if not case["expect"]["valid"] and number != "i02":
            with pytest.raises(CannotEdit):
                edit(vs, wanted())
        elif number == "i03":
            with pytest.raises(CannotEdit, match="no destination is the canary"):
                edit(vs, wanted())
        elif number == "i02":
            # Istio refuses a total of 0; we make it 100.
            assert weights(apply(vs, edit(vs, wanted()).patch)) == [[90, 10]]
        else:
            assert look(vs, wanted()).canary_percent == round(100 * case["expect"]["share"]["canary"])
        return
    if number.startswith("k"):
        vs = case["original"] if "original" in case else case["input"]
        vs = vs if "spec" in vs else {"metadata": {}, "spec": vs}
        before = copy.deepcopy(vs)
        # Without a canary destination in it, or with several routes and no name, there is nothing of ours to edit.
        with pytest.raises(CannotEdit):
            edit(vs, wanted(stable=Destination(host="echoserver"), canary=Destination(host="echoserver-canary")))
        assert vs == before
        return
    target, vs = case["target"], case["input"]
    routes = target.get("http_routes") or [None]
    if "stable_subset" in target or "subset" in target:
        host = target.get("host") or target.get("destination_rule_host") or _host(vs)
        stable = Destination(host=host, subset=target.get("stable_subset") or target["subset"]["stable"])
        canary = Destination(host=host, subset=target.get("canary_subset") or target["subset"]["canary"])
    else:
        stable = Destination(host=target["stable_service"].split(".")[0])
        canary = Destination(host=target["canary_service"].split(".")[0])
    operation = case["operation"]
    percent = operation.get("set_weight", 0) if isinstance(operation, dict) else 0
    namespace = vs.get("metadata", {}).get("namespace", "default")
    order = wanted(http_route=routes[0], stable=stable, canary=canary, canary_percent=percent, namespace=namespace)
    if number in SAFER:
        with pytest.raises(CannotEdit, match=SAFER[number]):
            edit(vs, order)
        return
    if case["expect"].get("error"):
        if number == "a54":
            # An unrelated TLS route does not block the HTTP route that was named.
            assert edit(vs, order).patch
            return
        with pytest.raises(CannotEdit):
            edit(vs, order)
        return
    after = apply(vs, edit(vs, order).patch)
    assert stripped(after) == stripped(vs)
    index = 0 if routes[0] is None else [r.get("name") for r in vs["spec"]["http"]].index(routes[0])
    found = look(after, order)
    assert found.canary_percent == percent
    for i, route in enumerate(vs["spec"]["http"]):
        if i != index:
            assert after["spec"]["http"][i] == route


def _host(vs: dict[str, Any]) -> str:
    return str(vs["spec"]["http"][0]["route"][0]["destination"]["host"])


def vs(*weights_of: int, name: str | None = None, extra: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    route: dict[str, Any] = {
        "route": [
            {"destination": {"host": host}, "weight": weight}
            for host, weight in zip(("stable", "canary"), weights_of, strict=False)
        ]
        + (extra or [])
    }
    if name:
        route["name"] = name
    return {"metadata": {"name": "v", "namespace": "default", "resourceVersion": "7"}, "spec": {"http": [route]}}


def done(before: dict[str, Any], **changes: Any) -> tuple[Edit, dict[str, Any]]:
    planned = edit(before, wanted(**changes))
    return planned, apply(before, planned.patch)


def test_the_input_is_never_changed() -> None:
    before = vs(100, 0)
    kept = copy.deepcopy(before)
    edit(before, wanted())
    assert before == kept


def test_the_same_decision_twice_writes_once() -> None:
    _, after = done(vs(100, 0))
    assert edit(after, wanted()).patch == ()


def test_a_newer_fence_on_the_route_refuses_an_older_decision() -> None:
    _, after = done(vs(100, 0), fence=9)
    with pytest.raises(CannotEdit, match="newer decision"):
        edit(after, wanted(fence=8, canary_percent=50))


def test_equal_weights_under_a_newer_fence_are_written_so_that_the_fence_stands() -> None:
    _, after = done(vs(100, 0), fence=9)
    planned, again = done(after, fence=10)
    assert planned.patch
    assert json.loads(again["metadata"]["annotations"][FENCE]) == {"": 10}


def test_fences_of_other_routes_are_kept() -> None:
    before = vs(100, 0, name="a")
    before["spec"]["http"].append({**copy.deepcopy(before["spec"]["http"][0]), "name": "b"})
    _, one = done(before, http_route="a", fence=3)
    _, two = done(one, http_route="b", fence=4)
    assert json.loads(two["metadata"]["annotations"][FENCE]) == {"a": 3, "b": 4}


@pytest.mark.parametrize("broken", ["", "no json", "[]", '{"": "x"}', "null"])
def test_a_broken_fence_annotation_is_written_anew(broken: str) -> None:
    before = vs(100, 0)
    before["metadata"]["annotations"] = {FENCE: broken, "other": "kept"}
    _, after = done(before)
    assert json.loads(after["metadata"]["annotations"][FENCE]) == {"": 5}
    assert after["metadata"]["annotations"]["other"] == "kept"


def test_a_patch_fails_when_the_route_was_changed_in_between() -> None:
    planned = edit(vs(100, 0), wanted())
    meanwhile = vs(80, 20)
    with pytest.raises(ValueError, match="test"):
        apply(meanwhile, planned.patch)


def test_a_write_that_was_held_up_fails_although_newer_ones_have_put_the_weights_back_as_they_were() -> None:
    held_up = edit(vs(100, 0), wanted(canary_percent=10, fence=1))
    _, up = done(vs(100, 0), canary_percent=10, fence=1)
    _, back = done(up, canary_percent=0, fence=2)
    back["metadata"]["resourceVersion"] = "9"
    assert weights(back) == weights(vs(100, 0))
    with pytest.raises(ValueError, match="test"):
        apply(back, held_up.patch)


@given(st.integers(0, 100), st.integers(0, 1000), st.integers(0, 1000))
def test_what_is_read_back_is_the_share_that_was_asked_for(percent: int, stable: int, canary: int) -> None:
    _, after = done(vs(stable, canary), canary_percent=percent)
    assert look(after, wanted()).canary_percent == percent
    assert sum(weights(after)[0]) in (stable + canary, 100)


@pytest.mark.parametrize(
    ("total", "percent", "expected"),
    [(10, 30, [7, 3]), (10, 4, [96, 4]), (1000, 1, [990, 10]), (1, 100, [0, 1]), (3, 50, [50, 50]), (0, 5, [95, 5])],
)
def test_the_total_is_kept_where_the_share_is_a_whole_part_of_it(total: int, percent: int, expected: list[int]) -> None:
    _, after = done(vs(total, 0), canary_percent=percent)
    assert weights(after)[0] == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("stable", "stable.ns-a.svc.cluster.local"),
        ("stable.ns-b", "stable.ns-b.svc.cluster.local"),
        ("stable.ns-b.svc", "stable.ns-b.svc.cluster.local"),
        ("stable.ns-b.svc.cluster.local", "stable.ns-b.svc.cluster.local"),
        ("api.example.com", "api.example.com"),
    ],
)
def test_hosts_are_compared_as_istio_resolves_them(host: str, expected: str) -> None:
    assert fqdn(host, "ns-a") == expected


@pytest.mark.parametrize("weight", [-1, 1.5, "ten", True, None])
def test_weights_that_are_none_are_refused(weight: object) -> None:
    before = vs(100, 0)
    before["spec"]["http"][0]["route"][0]["weight"] = weight
    with pytest.raises(CannotEdit, match="whole numbers"):
        edit(before, wanted())


@pytest.mark.parametrize("spec", [None, {}, {"http": None}, {"http": "x"}, {"http": []}, {"http": [None]}, {"tls": []}])
def test_anything_without_http_routes_is_refused(spec: object) -> None:
    with pytest.raises(CannotEdit):
        edit({"metadata": {}, "spec": spec}, wanted())


def test_two_destinations_of_one_arm_are_refused() -> None:
    before = vs(50, 0, extra=[{"destination": {"host": "stable"}, "weight": 50}])
    with pytest.raises(CannotEdit, match="more than one destination is the stable"):
        edit(before, wanted())


def test_a_first_weight_never_takes_traffic_that_another_hand_gave_the_canary() -> None:
    for percent in (10, 0):
        with pytest.raises(ServesOthers, match="already serves 100 % that this rollout did not give"):
            edit(vs(0, 100), wanted(first=True, canary_percent=percent))


def test_a_first_weight_that_landed_although_its_answer_was_lost_is_known_as_ours() -> None:
    _, after = done(vs(100, 0), first=True)
    assert edit(after, wanted(first=True)).patch == ()
    _, back = done(after, first=True, canary_percent=0, fence=6)
    assert weights(back) == [[100, 0]]
