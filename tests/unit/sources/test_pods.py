"""From samples of pods to their values: growth with restarts, levels, limits, sentinels, and which pods are whose."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from service.model.names import Arm
from service.model.observation import Availability, PodValues, Reading
from service.model.preset import MetricsPreset, ResourceSeries
from service.sources import pods
from service.sources.counter import Series
from service.sources.plan import plan
from service.sources.pods import Found, PodAsk
from tests.unit.sources.test_plan import REACH, query

ARMS = {Arm.CANARY: {"label_version": "v2"}, Arm.STABLE: {"label_version": "v1"}}
PRESET = MetricsPreset.model_validate(
    {
        "name": "http",
        "labels": {"reporter": "source"},
        "pods": {"by": {"version": "label_version"}},
        "metrics": {"memory": {"kind": "resource", "series": "bytes", "measures": "memory"}},
    }
)
ASK = PodAsk(PRESET, {"memory": (0, 0)}, ARMS, 1000.0, 1060.0)


def resource(**changes: Any) -> ResourceSeries:
    return ResourceSeries.model_validate({"series": "bytes", "measures": "memory"} | changes)


def series(name: str, samples: list[tuple[float, float]], pod: str = "c", **labels: str) -> Series:
    return Series({"__name__": name, "namespace": "ml", "pod": pod, **labels}, samples)


def of_one(what: ResourceSeries, *listed: Series) -> tuple[float | None, float | None]:
    """(value, limit) of the canary's one pod; stable's has the same."""
    found = Found({Arm.CANARY: [("ml", "c")], Arm.STABLE: [("ml", "s")]})
    twin = [Series({**one.labels, "pod": "s"}, [(1050.0, 1.0)] if not what.counter else [(990.0, 0.0), (1050.0, 1.0)])
            for one in listed]  # fmt: skip
    reading = pods.read_pods("memory", what, ASK, found, pods.by_pod(what, [*listed, *twin]), 45.0)
    if not isinstance(reading.counts, PodValues):
        return None, None
    return reading.counts.canary[0].value, reading.counts.canary[0].limit


@pytest.mark.parametrize(
    ("samples", "grown"),
    [
        ([(990, 10.0), (1005, 10.5), (1050, 12.25)], 2.25),
        ([(990, 10.0), (1005, 11.0), (1020, 0.5), (1050, 2.0)], 3.0),
        ([(1005, 10.0), (1050, 12.0)], 2.0),
        ([(990, 10.0)], None),
        ([(990, 10.0), (1070, 99.0), (1050, 11.0)], 1.0),
        ([(990, 10.0), (1050, math.nan), (1045, 14.0)], 4.0),
    ],
)
def test_a_counter_grows_by_its_steps_and_a_fall_is_a_restart(
    samples: list[tuple[float, float]], grown: float | None
) -> None:
    assert of_one(resource(counter=True, measures="load"), series("bytes", samples))[0] == grown


@pytest.mark.parametrize(
    ("samples", "level"),
    [
        ([(990, 1.0), (1010, 2.0), (1040, 4.0)], 3.0),
        ([(950, 9.0), (1020, 5.0)], 5.0),
        ([(1000, 7.0)], None),
        ([(1040, math.inf)], None),
        ([], None),
    ],
)
def test_a_gauge_is_its_mean_in_the_window_or_unknown(samples: list[tuple[float, float]], level: float | None) -> None:
    assert of_one(resource(), series("bytes", samples))[0] == level


def test_the_last_sample_before_a_short_window_counts_while_it_is_fresh() -> None:
    short = PodAsk(PRESET, {"memory": (0, 0)}, ARMS, 1055.0, 1060.0)
    found = Found({arm: [("ml", arm)] for arm in Arm})
    listed = [series("bytes", [(1050.0, 3.0)], pod=arm) for arm in Arm]
    reading = pods.read_pods("memory", resource(), short, found, pods.by_pod(resource(), listed), 45.0)
    assert isinstance(reading.counts, PodValues)
    assert reading.counts.canary[0].value == 3.0


def test_containers_add_up_and_the_fullest_gpu_counts_where_that_is_asked_for() -> None:
    listed = [series("bytes", [(1050, 3.0)], container="a"), series("bytes", [(1050, 5.0)], container="b")]
    assert [of_one(resource(pods_are=how), *listed)[0] for how in ("sum", "max", "min", "mean")] == [8.0, 5.0, 3.0, 4.0]
    assert of_one(resource(without={"container": ["b"]}), *listed)[0] == 3.0


def test_a_limit_is_the_sum_of_its_series_in_the_same_unit_and_zero_is_none() -> None:
    what = resource(series="used", limit=["used", "free"], scale=1024)
    used, free = series("used", [(1050, 3.0)]), series("free", [(1050, 5.0)])
    assert of_one(what, used, free) == (3072.0, 8192.0)
    assert of_one(what, used) == (3072.0, None)
    assert of_one(resource(limit=["cap"]), series("bytes", [(1050, 3.0)]), series("cap", [(1050, 0.0)])) == (3.0, None)


def test_a_container_without_a_limit_leaves_its_pod_without() -> None:
    what = resource(limit=["cap"])
    used = [series("bytes", [(1050, 3.0)], container=name) for name in ("a", "b")]
    caps = [series("cap", [(1050, 8.0)], container="a"), series("cap", [(1050, 0.0)], container="b")]
    assert of_one(what, *used, *caps) == (6.0, None)
    assert of_one(what, *used, caps[0]) == (6.0, 8.0)


def test_a_container_that_was_replaced_is_not_added_to_the_one_in_its_place() -> None:
    what = resource(limit=["cap"], instance_labels=["id"])
    beside = [
        series("bytes", [(1050, 1.0)], container="b", id="9"),
        series("cap", [(1050, 2.0)], container="b", id="9"),
    ]
    old = [series(name, [(1010, n), (1030, n)], container="a", id="1") for name, n in (("bytes", 5.0), ("cap", 8.0))]
    new = [series(name, [(1040, n)], container="a", id="2") for name, n in (("bytes", 3.0), ("cap", 8.0))]
    assert of_one(what, *old, *new, *beside) == (4.0, 10.0)
    assert of_one(what, *new, *old, *beside) == (4.0, 10.0)
    # Before the new one is measured, the old one is what is known.
    assert of_one(what, *old, *beside) == (6.0, 10.0)
    # A counter of the old one grew in this window, too.
    counted = resource(counter=True, measures="events", instance_labels=["id"])
    grown = [
        series("bytes", [(990, 1.0), (1030, 3.0)], container="a", id="1"),
        series("bytes", [(1040, 0.0), (1050, 1.0)], container="a", id="2"),
    ]
    assert of_one(counted, *grown)[0] == 3.0


def test_a_sentinel_is_no_value() -> None:
    what = resource(not_supported=[9223372036854775794])
    assert of_one(what, series("bytes", [(1050, 9.223372036854776e18)])) == (None, None)
    assert of_one(what, series("bytes", [(1040, 9.223372036854776e18), (1050, 4.0)]))[0] == 4.0


def test_only_the_first_pods_are_read_and_the_others_are_told() -> None:
    listed = [series("kube_pod_labels", [(1050, 1.0)], pod=f"c-{i:03}", label_version="v2") for i in range(40)]
    listed.append(series("kube_pod_labels", [(1050, 1.0)], pod="s", label_version="v1"))
    found = pods.members(ASK, listed, 45.0)
    assert len(found.pods[Arm.CANARY]) == pods.MOST_PODS
    values = [series("bytes", [(1050, 1.0)], pod=one[1]) for of_arm in found.pods.values() for one in of_arm]
    reading = pods.read_pods("memory", resource(), ASK, found, pods.by_pod(resource(), values), 45.0)
    assert reading.detail == "8 further pods are not looked at"


def test_pods_that_are_gone_are_left_out_and_an_arm_of_such_is_stale() -> None:
    old, here = [(1001.0, 1.0)], [(1055.0, 1.0)]
    canary = series("kube_pod_labels", here, pod="c", label_version="v2")
    gone = series("kube_pod_labels", old, pod="gone", label_version="v2")
    stable = series("kube_pod_labels", here, pod="s", label_version="v1")
    assert pods.members(ASK, [canary, gone, stable], 45.0).pods[Arm.CANARY] == [("ml", "c")]
    missing = pods.members(ASK, [gone, stable], 45.0).missing
    assert missing is not None
    assert missing.availability is Availability.STALE


def test_outside_names_are_quoted_in_every_question() -> None:
    nasty = [('ml"} or x{', "a|b.*"), ("ml", 'p"\n')]
    text = pods.values_text(resource(), nasty, 60.0)
    assert text == 'bytes{namespace=~"ml|ml\\"\\\\} or x\\\\{",pod=~"a\\\\|b\\\\.\\\\*|p\\"\\n"}[60s]'


def test_pods_are_asked_for_by_the_mapped_labels_only() -> None:
    (asks,) = plan([query(1, "memory"), query(2, "memory")], {"http": PRESET}, REACH, summed=lambda name: False).pods
    assert PRESET.pods is not None
    assert pods.members_text(PRESET.pods, asks, 60.0) == (
        'kube_pod_labels{label_version=~"v1|v2",namespace="ml-serving"}[60s]'
    )


def test_a_question_holds_a_bounded_number_of_pods() -> None:
    found = [Found({Arm.CANARY: [("ml", f"{i}")] * 30, Arm.STABLE: [("ml", f"s{i}")] * 30}) for i in range(50)]
    parts = pods.parts([ASK] * 50, found)
    assert sorted(place for part in parts for place in part) == list(range(50))
    assert max(len(part) for part in parts) * 60 <= pods.PODS_PER_QUERY


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"measures": "load", "limit": ["x"]}, "limit belongs to memory"),
        ({"measures": "ready", "counter": True}, "ready is a gauge"),
        ({"measures": "speed"}, "Input should be"),
        ({"labels": {"__name__": "x"}}, "may not hold __name__"),
        ({"scale": 0}, "greater than 0"),
    ],
)
def test_a_resource_that_cannot_be_meant_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        resource(**changes)


def test_a_resource_keeps_the_name_that_it_is_given() -> None:
    assert set(PRESET.metrics) == {"memory"}
    none = Found(missing=Reading("", Availability.STALE, None, "why"))
    assert pods.read_pods("memory", resource(), ASK, none, {}, 45.0) == Reading(
        "memory", Availability.STALE, None, "why"
    )
