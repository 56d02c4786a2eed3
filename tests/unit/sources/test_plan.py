"""How questions grow: with metrics and chunks, never with rollouts."""

from __future__ import annotations

from typing import Any

from service.lab.prometheus_api import read_selector
from service.model.names import RolloutId
from service.model.observation import Availability, WindowQuery
from service.model.preset import MetricsPreset
from service.sources.plan import ROLLOUTS_PER_QUERY, WINDOWS_SUMMED, Reach, plan
from tests.stories import place

PRESET = MetricsPreset.model_validate(
    {
        "name": "http",
        "labels": {"reporter": "source"},
        "metrics": {
            "errors": {"kind": "errors", "requests": "r_total", "failed": [{"code": "5.."}]},
            "latency": {"kind": "latency", "buckets": "l_bucket"},
            "queue": {"kind": "value", "promql": "max(q{$matchers})"},
        },
    }
)


def query(n: int, *metrics: str, start: float = 1000, length: float = 60, **changes: Any) -> WindowQuery:
    labels = {"stable_labels": {"app": f"s{n}", "version": "v1"}, "canary_labels": {"app": f"s{n}", "version": "v2"}}
    where = place(**(labels | changes))
    return WindowQuery(RolloutId(f"r{n}"), "default", where, metrics or ("errors",), start, start + length)


REACH = Reach(lookback_s=75, stale_after_s=45)


def planned(*queries: WindowQuery, sums: bool = False) -> Any:
    return plan(queries, {"http": PRESET}, REACH, summed=lambda name: sums)


def test_rollouts_share_one_question_with_both_arms_in_it() -> None:
    (batch,) = planned(query(1), query(2)).batches
    assert batch.text == 'r_total{app=~"s1|s2",reporter="source",version=~"v1|v2"}[135s]'
    assert batch.at_s == 1060


def test_windows_that_end_some_seconds_apart_share_it_too() -> None:
    (batch,) = planned(query(1, start=1000.25), query(2, start=1040), query(3, start=1007)).batches
    assert batch.at_s == 1100
    # The earliest window's first sample needs the one before it.
    assert read_selector(batch.text).seconds >= 1100 - 1000.25 + 75


def test_windows_far_apart_are_asked_apart() -> None:
    assert len(planned(query(1), query(2, start=5000)).batches) == 2


def test_a_thousand_rollouts_with_two_metrics_are_forty_questions() -> None:
    asked = planned(*(query(n, "errors", "latency", start=1000 + n % 40 / 10) for n in range(1000))).batches
    assert len(asked) == 2 * 1000 / ROLLOUTS_PER_QUERY
    slots = sorted(ask.slot for batch in asked for ask in batch.asks)
    assert slots == [(n, m) for n in range(1000) for m in range(2)]


def test_windows_that_are_alike_are_summed_up_in_the_store() -> None:
    (batch,) = planned(query(1), query(2), sums=True).batches
    selected = 'r_total{app=~"s1|s2",reporter="source",version=~"v1|v2"}'
    assert batch.summed
    assert batch.text.startswith(
        f"sum by (app, code, reporter, version) (floor(last_over_time({selected}[135s])))"
        f" - sum by (app, code, reporter, version) (floor(last_over_time({selected}[75s] offset 60s)))"
    )


def test_the_reach_of_sums_is_that_of_their_raw_samples() -> None:
    asks = (query(1, start=1000.25, length=60.5), query(2, start=1000.25, length=60.5))
    (summed,), (raw,) = (planned(*asks, sums=sums).batches for sums in (True, False))
    assert read_selector(raw.text).seconds == 136
    assert "[136s]" in summed.text
    assert "[75500ms] offset 60500ms" in summed.text


def test_windows_whose_edges_no_query_can_name_are_read_raw() -> None:
    (batch,) = planned(query(1, start=1000.0004), sums=True).batches
    assert not batch.summed


def test_an_arm_that_leaves_a_label_open_is_read_raw_and_with_any_value_of_it() -> None:
    labels: dict[str, Any] = {"stable_labels": {"app": "a"}, "canary_labels": {"app": "b", "version": "v2"}}
    (batch,) = planned(query(1, **labels), sums=True).batches
    assert batch.text == 'r_total{app=~"a|b",reporter="source"}[135s]'


def test_several_names_in_one_metric_are_read_raw() -> None:
    own = MetricsPreset.model_validate(
        {
            "name": "http",
            "metrics": {"errors": {"kind": "errors", "requests": "r_total", "failed": [{"__name__": "f_total"}]}},
        }
    )
    (batch,) = plan([query(1)], {"http": own}, REACH, summed=lambda name: True).batches
    assert not batch.summed


def test_the_number_of_sums_does_not_grow_with_windows_that_nobody_shares() -> None:
    queries = [query(n, start=1000 + n / 10) for n in range(200)]
    batches = planned(*queries, sums=True).batches
    assert sum(batch.summed for batch in batches) == WINDOWS_SUMMED
    assert len(batches) <= WINDOWS_SUMMED + 200 / ROLLOUTS_PER_QUERY + 1
    assert sorted(ask.slot for batch in batches for ask in batch.asks) == [(n, 0) for n in range(200)]


def test_ten_thousand_rollouts_in_twelve_phases_are_full_questions() -> None:
    queries = [query(n, start=1000 + 5 * (n % 12)) for n in range(10_000)]
    batches = planned(*queries, sums=True).batches
    assert all(batch.summed for batch in batches)
    assert len(batches) <= 10_000 / ROLLOUTS_PER_QUERY + 12


def test_arms_without_a_label_in_common_are_never_asked() -> None:
    bare = PRESET.model_copy(update={"labels": {}})
    apart = query(1, stable_labels={"app": "a"}, canary_labels={"job": "b"})
    assert "no name in common" in plan([apart], {"http": bare}, REACH, summed=lambda name: True).known[(0, 0)].detail


def test_halves_ask_for_everything_once() -> None:
    (batch,) = planned(*(query(n) for n in range(7))).batches
    first, second = batch.halves()
    assert [*first.asks, *second.asks] == list(batch.asks)


def test_the_same_expression_at_the_same_moment_is_asked_once() -> None:
    same: dict[str, Any] = {"stable_labels": {"app": "a"}, "canary_labels": {"app": "b"}}
    asked = planned(query(1, "queue", **same), query(2, "queue", **same)).wanted
    assert [one.text for one in asked] == [
        'max(q{app="a",reporter="source"})',
        'max(q{app="b",reporter="source"})',
    ]


def test_metrics_and_presets_that_are_unknown_are_readings_and_no_errors() -> None:
    known = planned(query(1, "nope"), query(2, metrics="gone")).known
    assert {slot: reading.availability for slot, reading in known.items()} == {
        (0, 0): Availability.NO_SERIES,
        (1, 0): Availability.NO_SERIES,
    }


def test_labels_that_cannot_tell_the_arms_apart_are_never_asked() -> None:
    same = query(1, stable_labels={"app": "s"}, canary_labels={"app": "s"})
    bad_name = query(2, canary_labels={"a b": "s"})
    no_text = query(3, canary_labels={"app": "\ud800"})
    series_name = query(4, canary_labels={"__name__": "other_total"})
    result = planned(same, bad_name, no_text, series_name, query(5))
    assert len(result.batches) == 1
    assert [ask.slot for ask in result.batches[0].asks] == [(4, 0)]
    details = [result.known[(n, 0)].detail for n in range(4)]
    assert "compared with itself" in details[0]
    assert "'a b' is no label name" in details[1]
    assert "is no text" in details[2]
    assert "hold __name__" in details[3]


def test_an_arm_without_any_label_is_never_asked() -> None:
    bare = PRESET.model_copy(update={"labels": {}})
    result = plan([query(1, stable_labels={})], {"http": bare}, REACH, summed=lambda name: True)
    assert "no labels" in result.known[(0, 0)].detail
