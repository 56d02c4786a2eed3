"""The metric store's contract: exact counts, and each kind of missing told apart. On the lab's Prometheus, and on a
real one that scrapes what the test increments."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from service.model.observation import Availability, CategoryCounts, FailureCounts, HistogramCounts, Reading
from service.model.preset import MetricsPreset
from tests.contract.source.stores import Store, begun, lab_store, read, real_store, serve, window

NASTY = (
    'v2"} or vector(1) or x{a="',
    "v2\\",
    "v2\nnew line",
    "v|2.*",
    "(v2",
    "v2[$^]",
    "ü-版本",
    "{{version}} $matchers",
)


@pytest.fixture(params=["lab", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with lab_store() if request.param == "lab" else real_store(tmp_path) as made:
        yield made


async def test_counts_are_exact_integers_per_arm(store: Store) -> None:
    start = await begun(store)
    serve(store, "v1", 540, failed=7)
    serve(store, "v2", 60, failed=3)
    end = await store.scraped()
    ((errors, latency, predictions),) = await read(store, window(start, end, "errors", "latency", "predictions"))
    assert errors == Reading("errors", Availability.ENOUGH, FailureCounts(3, 60, 7, 540))
    assert latency.counts == HistogramCounts((0.1, 0.5), (30, 24, 6), (270, 216, 54))
    assert predictions.counts == CategoryCounts(("cat",), (60,), (540,))


async def test_a_histogram_of_scores_is_read_as_categories(store: Store) -> None:
    scores = {"kind": "prediction_scores", "buckets": "model_latency_seconds_bucket"}
    preset = MetricsPreset.model_validate({"name": "http", "metrics": {"predictions": scores}})
    start = await begun(store)
    serve(store, "v1", 540)
    serve(store, "v2", 60)
    end = await store.scraped()
    ((found,),) = await read(store, window(start, end, "predictions"), preset=preset)
    assert found.counts == CategoryCounts(("up to 0.1", "0.1 to 0.5", "above 0.5"), (30, 24, 6), (270, 216, 54))


async def test_windows_that_follow_each_other_add_up_to_the_whole(store: Store) -> None:
    edges = [await begun(store)]
    for n in (3, 0, 41):
        serve(store, "v1", 2 * n)
        serve(store, "v2", n, failed=n // 3)
        edges.append(await store.scraped())
    parts = [window(a, b, "errors") for a, b in pairwise(edges)]
    whole, *read_parts = await read(store, window(edges[0], edges[-1], "errors"), *parts)
    counts = [row[0].counts for row in read_parts]
    assert counts == [FailureCounts(1, 3, 0, 6), FailureCounts(0, 0, 0, 0), FailureCounts(13, 41, 0, 82)]
    assert whole[0].counts == FailureCounts(14, 44, 0, 88)


async def test_a_restarted_and_a_vanished_pod_lose_nothing_that_was_scraped(store: Store) -> None:
    serve(store, "v1", 50, pod="gone")
    start = await begun(store)
    serve(store, "v1", 20)
    serve(store, "v1", 5, pod="gone")
    await store.scraped()
    store.forget(instance="v1-gone")
    store.forget(instance="v2-0")
    serve(store, "v2", 4)
    end = await store.scraped()
    ((errors, latency),) = await read(store, window(start, end, "errors", "latency"))
    assert errors.counts == FailureCounts(0, 4, 0, 25)
    assert latency.counts == HistogramCounts((0.1, 0.5), (2, 1, 1), (12, 10, 3))


async def test_a_new_pod_counts_from_its_first_scrape(store: Store) -> None:
    start = await begun(store)
    serve(store, "v1", 1)
    serve(store, "v2", 1000, pod="new")
    await store.scraped()
    serve(store, "v2", 6, failed=2, pod="new")
    end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors"))
    assert errors.counts == FailureCounts(2, 6, 0, 1)


async def test_the_candidates_first_requests_through_a_known_sidecar_all_count(store: Store) -> None:
    store.add("http_requests_total", 100, version="v1", code="200", instance="sidecar")
    start = await store.scraped()
    store.add("http_requests_total", 9, version="v1", code="200", instance="sidecar")
    store.add("http_requests_total", 4, version="v2", code="200", instance="sidecar")
    end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors"))
    assert errors.counts == FailureCounts(0, 4, 0, 9)


async def test_failures_with_a_counter_of_their_own_count_from_the_first(store: Store) -> None:
    failed = [{"__name__": "model_failures_total"}, {"code": "5.."}]
    preset = MetricsPreset.model_validate(
        {"name": "http", "metrics": {"errors": {"kind": "errors", "requests": "http_requests_total", "failed": failed}}}
    )
    start = await begun(store)
    serve(store, "v1", 50, failed=1)
    serve(store, "v2", 20)
    store.add("model_failures_total", 3, version="v2", instance="v2-0")
    end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors"), preset=preset)
    assert errors.counts == FailureCounts(3, 20, 1, 50)


async def test_an_arm_without_requests_is_few_and_not_missing(store: Store) -> None:
    start = await begun(store)
    serve(store, "v1", 5)
    end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors"))
    assert errors.availability is Availability.FEW
    assert errors.counts == FailureCounts(0, 0, 0, 5)
    assert "canary" in errors.detail


async def test_an_arm_without_series_is_said_with_its_matchers(store: Store) -> None:
    start = await begun(store)
    end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors", canary={"version": 'v9"} or vector(1'}))
    assert errors.availability is Availability.NO_SERIES
    assert 'http_requests_total has no series of the canary with {job="tf-serving",version="v9\\"}' in errors.detail


async def test_arms_that_share_a_series_are_not_compared(store: Store) -> None:
    start = await begun(store)
    serve(store, "v2", 5)
    end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors", stable={"job": "tf-serving"}))
    assert errors.availability is Availability.NO_SERIES
    assert "belong to both arms" in errors.detail


async def test_names_that_look_like_promql_or_patterns_are_only_names(store: Store) -> None:
    for version in ("v1", *NASTY):
        serve(store, version, 10)
    start = await store.scraped()
    for n, version in enumerate(("v1", *NASTY), start=1):
        serve(store, version, n)
    end = await store.scraped()
    queries = [window(start, end, "errors", canary={"version": version}) for version in NASTY]
    rows = await read(store, *queries)
    assert [row[0].counts for row in rows] == [FailureCounts(0, n, 0, 1) for n in range(2, len(NASTY) + 2)]


async def test_an_arm_that_is_no_longer_scraped_is_stale(store: Store) -> None:
    start = await begun(store)
    store.forget(version="v2")
    for _ in range(5):
        end = await store.scraped()
    ((errors,),) = await read(store, window(start, end, "errors"))
    assert errors.availability is Availability.STALE
    assert "canary" in errors.detail


async def test_a_store_that_is_away_is_said_and_never_read_as_zero(store: Store) -> None:
    start = await begun(store)
    await store.go_away()
    ((errors, latency),) = await read(store, window(start, start + 5, "errors", "latency"))
    assert [errors.availability, latency.availability] == [Availability.AWAY, Availability.AWAY]
    assert errors.counts is None
