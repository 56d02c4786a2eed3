"""Series to readings: what is missing is said, and no count is ever invented."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from service.model.lines import LineCounterSeries
from service.model.names import Arm
from service.model.observation import (
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    LineCounts,
    Reading,
)
from service.model.preset import CounterSeries, ErrorSeries, LatencySeries, PredictionSeries, ScoreSeries
from service.sources.counter import Series
from service.sources.reading import ArmSeries, read

LATENCY = LatencySeries(buckets="b")
ERRORS = ErrorSeries.model_validate({"requests": "r", "failed": [{"code": "5.."}, {"grpc": "[2-9]|1[0-6]"}]})


def histogram(pod: str, **grown: float) -> list[Series]:
    """Buckets by ``le`` (written le_0_1 for 0.1) that grew so much in the window."""
    bounds = {name.removeprefix("le_").replace("_", "."): n for name, n in grown.items()}
    return [
        Series({"instance": pod, "le": "+Inf" if bound == "inf" else bound}, [(55, 10), (110, 10 + n)])
        for bound, n in bounds.items()
    ]


def reading(
    what: CounterSeries, canary: list[Series], stable: list[Series], *, warning: str = "", native_n: int = 0
) -> Reading:
    arms = (ArmSeries(Arm.CANARY, 'v="2"', canary), ArmSeries(Arm.STABLE, 'v="1"', stable))
    return read("m", what, arms, start_s=60, end_s=120, stale_after_s=45, warning=warning, native_n=native_n)


def counter(grown: float, **labels: str) -> Series:
    return Series({"instance": "p", **labels}, [(55, 10), (110, 10 + grown)])


def test_failures_are_told_by_any_of_the_alternatives() -> None:
    canary = [counter(90, code="200"), counter(4, code="503"), counter(3, code="200", grpc="14")]
    found = reading(ERRORS, canary, [counter(50, code="200", grpc="1")])
    assert found.counts == FailureCounts(7, 97, 0, 50)


OWN_COUNTER = ErrorSeries.model_validate({"requests": "r", "failed": [{"__name__": "f"}, {"code": "5.."}]})


def test_failures_with_a_counter_of_their_own_are_no_further_requests() -> None:
    canary = [counter(90, __name__="r", code="200"), counter(2, __name__="r", code="503"), counter(5, __name__="f")]
    found = reading(OWN_COUNTER, canary, [counter(50, __name__="r", code="200")])
    assert found.counts == FailureCounts(7, 92, 0, 50)


COUNTED_LINES = LineCounterSeries(lines="tf_missing_opkernel_total", alive="log_lines_total")


def lines(pod: str, *samples: tuple[float, float], op: str | None = None) -> Series:
    name = "log_lines_total" if op is None else "tf_missing_opkernel_total"
    return Series({"__name__": name, "pod": pod} | ({} if op is None else {"op": op}), list(samples))


def test_a_counter_of_lines_that_is_not_there_is_zero_only_where_lines_are_counted_at_all() -> None:
    canary, stable = lines("c", (55, 10), (110, 20)), lines("s", (55, 10), (110, 10))
    found = reading(COUNTED_LINES, [canary], [stable])
    assert (found.availability, found.counts) == (Availability.ENOUGH, LineCounts((), (), (), ()))
    for arms in (([], [stable]), ([canary], [])):
        missing = reading(COUNTED_LINES, *arms)
        assert (missing.availability, missing.counts) == (Availability.NO_SERIES, None)
        assert "log_lines_total has no series" in missing.detail


def test_lines_are_counted_since_the_pods_began_also_those_before_the_first_scrape() -> None:
    found = reading(
        COUNTED_LINES,
        [
            lines("c", (55, 10), (110, 20)),
            lines("c", (55, 2), (110, 5), op="Old"),
            lines("c", (110, 1), op="New"),
            # A pod that was scraped for the first time in this window, and a container that was restarted in it.
            lines("d", (100, 4), (110, 4)),
            lines("d", (100, 1), (110, 1), op="AtStart"),
            lines("c", (55, 3), (100, 1), (110, 2), op="Again"),
            lines("c", (110, 0), op="Never"),
        ],
        [lines("s", (55, 10), (110, 10)), lines("s", (55, 4), (110, 4), op="Old"), lines("s", (130, 4), op="New")],
    )
    assert isinstance(found.counts, LineCounts)
    rows = zip(found.counts.names, found.counts.canary, found.counts.stable, strict=True)
    assert {name: row for name, *row in rows} == {
        "m Old": [5, 4],
        "m New": [1, 0],
        "m AtStart": [1, 0],
        "m Again": [5, 0],
    }
    assert found.detail.startswith("m Again: 5 of the canary, none of stable since its pods began")


def test_the_first_failure_of_a_known_instance_counts_and_later_silence_is_not_stale() -> None:
    first = Series({"instance": "p", "__name__": "f"}, [(65, 3)])
    found = reading(OWN_COUNTER, [counter(9, __name__="r", code="200"), first], [counter(5, __name__="r", code="200")])
    assert (found.availability, found.counts) == (Availability.ENOUGH, FailureCounts(3, 9, 0, 5))


def test_a_counter_of_failures_alone_does_not_stand_for_the_requests() -> None:
    found = reading(OWN_COUNTER, [counter(9, __name__="f")], [counter(5, __name__="r", code="200")])
    assert found.availability is Availability.NO_SERIES
    assert found.detail == 'r has no series of the canary with {v="2"}'


def test_more_failures_than_requests_are_cut_and_it_is_said() -> None:
    canary = [counter(2, __name__="r", code="200"), counter(5, __name__="f")]
    found = reading(OWN_COUNTER, canary, [counter(5, __name__="r", code="200")])
    assert found.counts == FailureCounts(2, 2, 0, 5)
    assert "cut to the requests" in found.detail


def test_a_value_too_long_to_be_a_status_matches_no_pattern() -> None:
    found = reading(ERRORS, [counter(1, code="5" * 300)], [counter(1, code="200")])
    assert found.counts == FailureCounts(0, 1, 0, 1)


def test_bounds_written_in_two_ways_are_one_bound() -> None:
    canary = [*histogram("a", le_1=4, inf=5), *histogram("b", le_1_0=1, inf=2)]
    found = reading(LATENCY, canary, histogram("c", le_1=1, inf=1))
    assert found.counts == HistogramCounts((1.0,), (5, 2), (1, 0))


def test_pods_with_different_bounds_are_merged_to_the_common_ones() -> None:
    canary = [*histogram("old", le_0_1=2, le_0_5=3, inf=4), *histogram("new", le_0_2=1, le_0_5=5, inf=6)]
    found = reading(LATENCY, canary, histogram("s", le_0_1=1, le_0_5=1, inf=1))
    assert found.counts == HistogramCounts((0.5,), (8, 2), (1, 0))


def test_a_histogram_that_did_not_grow_does_not_narrow_the_bounds() -> None:
    canary = [*histogram("old", le_9=0, inf=0), *histogram("new", le_0_5=5, inf=6)]
    found = reading(LATENCY, canary, histogram("s", le_0_5=1, inf=1))
    assert found.counts == HistogramCounts((0.5,), (5, 1), (1, 0))


def test_buckets_that_overtook_higher_ones_are_cut_and_it_is_said() -> None:
    found = reading(LATENCY, histogram("a", le_0_1=7, le_0_5=5, inf=6), histogram("b", le_0_1=1, le_0_5=1, inf=1))
    assert found.counts == HistogramCounts((0.1, 0.5), (5, 0, 1), (1, 0, 0))
    assert found.detail == "2 counts of buckets that overtook higher ones were cut"


@given(st.lists(st.lists(st.integers(0, 30), min_size=4, max_size=4), min_size=1, max_size=4))
def test_a_histograms_total_is_always_what_its_inf_bucket_counted(pods: list[list[int]]) -> None:
    canary = [one for i, (a, b, c, d) in enumerate(pods) for one in histogram(str(i), le_1=a, le_2=b, le_3=c, inf=d)]
    found = reading(LATENCY, canary, histogram("s", le_1=1, le_2=1, le_3=1, inf=1))
    assert isinstance(found.counts, HistogramCounts)
    assert sum(found.counts.canary) == sum(pod[3] for pod in pods)
    assert min(found.counts.canary) >= 0


def test_milliseconds_become_the_seconds_that_people_write() -> None:
    what = LatencySeries(buckets="b", unit="milliseconds")
    found = reading(what, histogram("a", le_35=1, inf=1), histogram("b", le_35=1, inf=1))
    assert isinstance(found.counts, HistogramCounts)
    assert found.counts.edges_s == (0.035,)


def test_a_histogram_without_its_inf_bucket_is_not_read() -> None:
    found = reading(LATENCY, histogram("a", le_1=1), histogram("b", le_1=1, inf=1))
    assert (found.availability, found.counts) == (Availability.NO_SERIES, None)
    assert "+Inf" in found.detail


def test_arms_without_a_common_bound_are_not_compared() -> None:
    found = reading(LATENCY, histogram("a", le_1=1, inf=1), histogram("b", le_2=1, inf=1))
    assert (found.availability, found.counts) == (Availability.NO_SERIES, None)


def test_native_histograms_are_named_as_the_reason_when_classic_ones_are_missing() -> None:
    found = reading(LATENCY, [], histogram("b", le_2=1, inf=1), native_n=3)
    assert found.availability is Availability.NO_SERIES
    assert "native histograms" in found.detail


def test_a_warning_comes_before_what_seems_to_be_missing() -> None:
    found = reading(ERRORS, [], [counter(5, code="200")], warning="shard 2 is down")
    assert (found.availability, found.counts) == (Availability.DEGRADED, None)
    assert "shard 2 is down" in found.detail


def test_a_stale_arm_is_named_with_its_age() -> None:
    old: Mapping[str, str] = {"instance": "p", "code": "200"}
    found = reading(ERRORS, [counter(5, code="200")], [Series(old, [(30, 1), (70, 2)])])
    assert found.availability is Availability.STALE
    assert "of the stable" in found.detail
    assert "50 s older" in found.detail


def test_a_detail_is_bounded_however_long_the_labels_are() -> None:
    arms = (ArmSeries(Arm.CANARY, "v" * 9000, []), ArmSeries(Arm.STABLE, "", []))
    assert len(read("m", ERRORS, arms, start_s=0, end_s=1, stale_after_s=1).detail) <= 300


def test_buckets_of_scores_are_categories_by_their_bounds() -> None:
    scores = ScoreSeries(buckets="s")
    found = reading(
        scores, histogram("a", le_0_5=3, le_0_9=7, le_inf=9), histogram("b", le_0_5=30, le_0_9=70, le_inf=70)
    )
    assert found.counts == CategoryCounts(("up to 0.5", "0.5 to 0.9", "above 0.9"), (3, 4, 2), (30, 40, 0))
    assert found.availability is Availability.ENOUGH
    odd = reading(scores, histogram("a", le_0_5=3, le_0_9=7), histogram("b", le_0_5=30, le_inf=70))
    assert (odd.availability, odd.detail) == (
        Availability.NO_SERIES, "s has no +Inf bucket in every histogram of both arms",
    )  # fmt: skip


def test_of_the_top_k_labels_only_the_first_is_counted_once_a_request() -> None:
    top = PredictionSeries(counter="p", class_label="label", rank_label="rank")
    canary = [counter(6, label="cat", rank="1"), counter(4, label="dog", rank="1"), counter(10, label="emu", rank="2")]
    found = reading(top, canary, [counter(50, label="cat", rank="1")])
    assert found.counts == CategoryCounts(("cat", "dog"), (6, 4), (50, 0))
