"""What pods use, read pod by pod: who belongs to which arm, growth and level, limits, and each kind of missing told
apart. On the lab's Prometheus, and on a real one that scrapes what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.observation import Availability, PodValues, Reading
from service.model.preset import MetricsPreset, ResourceSeries
from tests.contract.source.stores import Store, lab_store, read, real_store, window
from tests.stories import place

CPU = {
    "kind": "resource", "series": "container_cpu_usage_seconds_total", "counter": True, "measures": "load",
    "without": {"container": ["", "POD"]},
}  # fmt: skip
MEMORY = {
    "kind": "resource", "series": "container_memory_working_set_bytes", "measures": "memory",
    "limit": ["container_spec_memory_limit_bytes"], "without": {"container": ["", "POD"]},
}  # fmt: skip
THROTTLED = {
    "kind": "resource", "series": "container_cpu_cfs_throttled_periods_total", "counter": True, "measures": "share",
    "over": "container_cpu_cfs_periods_total",
}  # fmt: skip
GPU = {
    "kind": "resource", "series": "DCGM_FI_DEV_FB_USED", "measures": "device-memory", "scale": 2**20,
    "limit": ["DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"], "pod_label": "exported_pod",
    "namespace_label": "exported_namespace", "not_supported": [9223372036854775794],
}  # fmt: skip
READY = {
    "kind": "resource", "series": "kube_pod_status_ready", "measures": "ready", "labels": {"condition": "true"},
}  # fmt: skip
NAMESPACE = place().namespace
PRESET = MetricsPreset.model_validate(
    {
        "name": "http",
        "pods": {"by": {"version": "label_version", "ns": "namespace"}},
        "metrics": {"cpu": CPU, "memory": MEMORY, "throttled": THROTTLED, "gpu": GPU, "ready": READY},
    }
)
LABELLED = MetricsPreset.model_validate({"name": "http", "metrics": {"memory": MEMORY}})


@pytest.fixture(params=["lab", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with lab_store() if request.param == "lab" else real_store(tmp_path) as made:
        yield made


def pod(store: Store, name: str, version: str, *, started: int | None = None, namespace: str = NAMESPACE) -> None:
    """kube-state-metrics begins to tell of a pod."""
    store.add("kube_pod_labels", 1, namespace=namespace, pod=name, label_version=version)
    if started is not None:
        store.add("kube_pod_start_time", started, namespace=namespace, pod=name)


def uses(store: Store, name: str, pod: str, n: int, **labels: str) -> None:
    store.add(name, n, **{"namespace": NAMESPACE, "pod": pod, "container": "serving", **labels})


def arms(reading: Reading) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """(canary, stable): value by pod."""
    assert isinstance(reading.counts, PodValues), reading
    canary, stable = ({one.pod: one.value for one in arm} for arm in (reading.counts.canary, reading.counts.stable))
    return canary, stable


async def test_a_counter_grows_and_a_gauge_is_a_mean_pod_by_pod(store: Store) -> None:
    for name, version in (("c-1", "v2"), ("s-1", "v1"), ("s-2", "v1")):
        pod(store, name, version)
        uses(store, "container_cpu_usage_seconds_total", name, 1000)
        uses(store, "container_memory_working_set_bytes", name, 100)
        uses(store, "container_spec_memory_limit_bytes", name, 400)
        # The pod's own line and its sandbox would be counted twice.
        uses(store, "container_cpu_usage_seconds_total", name, 1000, container="")
        uses(store, "container_cpu_usage_seconds_total", name, 7, container="POD")
    start = await store.scraped()
    uses(store, "container_cpu_usage_seconds_total", "c-1", 30)
    uses(store, "container_cpu_usage_seconds_total", "c-1", 30, container="")
    uses(store, "container_cpu_usage_seconds_total", "s-2", 12)
    uses(store, "container_cpu_usage_seconds_total", "s-2", 2, container="sidecar")
    await store.scraped()
    uses(store, "container_memory_working_set_bytes", "c-1", 60)
    uses(store, "container_cpu_usage_seconds_total", "s-2", 5, container="sidecar")
    end = await store.scraped()
    ((cpu, memory),) = await read(store, window(start, end, "cpu", "memory"), preset=PRESET)
    assert arms(cpu) == ({f"{NAMESPACE}/c-1": 30.0}, {f"{NAMESPACE}/s-1": 0.0, f"{NAMESPACE}/s-2": 17.0})
    canary, stable = arms(memory)
    assert 100 < (canary[f"{NAMESPACE}/c-1"] or 0) < 160
    assert stable == {f"{NAMESPACE}/s-1": 100.0, f"{NAMESPACE}/s-2": 100.0}
    assert isinstance(memory.counts, PodValues)
    assert memory.counts.canary[0].limit == 400.0
    assert memory.counts.canary[0].age_s is None


async def test_a_share_is_growth_over_growth_and_unknown_without_any(store: Store) -> None:
    for name, version in (("c-1", "v2"), ("s-1", "v1"), ("s-2", "v1")):
        pod(store, name, version)
        for series in ("container_cpu_cfs_throttled_periods_total", "container_cpu_cfs_periods_total"):
            uses(store, series, name, 100)
    start = await store.scraped()
    uses(store, "container_cpu_cfs_throttled_periods_total", "c-1", 15)
    uses(store, "container_cpu_cfs_periods_total", "c-1", 60)
    uses(store, "container_cpu_cfs_periods_total", "s-1", 60)
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "throttled"), preset=PRESET)
    assert arms(reading) == ({f"{NAMESPACE}/c-1": 0.25}, {f"{NAMESPACE}/s-1": 0.0, f"{NAMESPACE}/s-2": None})
    assert reading.detail == "1 of 2 stable pods have no value"


async def test_the_exporters_own_pod_is_not_taken_for_the_one_that_uses_the_gpu(store: Store) -> None:
    for name, version in (("c-1", "v2"), ("s-1", "v1")):
        pod(store, name, version)
        for gpu, used in (("0", 3000), ("1", 1000)):
            where = {
                "exported_pod": name,
                "exported_namespace": NAMESPACE,
                "pod": "dcgm-x",
                "namespace": "gpu",
                "gpu": gpu,
            }
            store.add("DCGM_FI_DEV_FB_USED", used, **where)
            store.add("DCGM_FI_DEV_FB_FREE", 8000 - used, **where)
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "gpu"), preset=PRESET)
    assert arms(reading) == ({f"{NAMESPACE}/c-1": 4000.0 * 2**20}, {f"{NAMESPACE}/s-1": 4000.0 * 2**20})
    assert isinstance(reading.counts, PodValues)
    assert reading.counts.stable[0].limit == 16000.0 * 2**20


async def test_a_sentinel_is_blind_and_not_zero_nor_very_much(store: Store) -> None:
    for name, version, used in (("c-1", "v2", 9223372036854775794), ("s-1", "v1", 1000)):
        pod(store, name, version)
        store.add("DCGM_FI_DEV_FB_USED", used, exported_pod=name, exported_namespace=NAMESPACE)
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "gpu"), preset=PRESET)
    said = "DCGM_FI_DEV_FB_USED says of the canary's pods that it is not supported"
    assert reading == Reading("gpu", Availability.NO_SERIES, None, said)


async def test_a_missing_exporter_a_missing_arm_and_an_exporter_that_stopped_are_told_apart(store: Store) -> None:
    pod(store, "s-1", "v1")
    uses(store, "container_memory_working_set_bytes", "s-1", 100)
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert reading.availability is Availability.NO_SERIES
    assert (
        reading.detail == 'kube_pod_labels has no pods of the canary with {label_version="v2",namespace="ml-serving"}'
    )
    pod(store, "c-1", "v2")
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert reading.availability is Availability.NO_SERIES
    none = 'container_memory_working_set_bytes has no series of the canary\'s pods, such as {pod="c-1"}'
    assert reading.detail == none
    uses(store, "container_memory_working_set_bytes", "c-1", 100)
    start = await store.scraped()
    store.forget(container="serving", pod="c-1")
    for _ in range(4):
        end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert reading.availability is Availability.STALE
    assert "older than the window's end" in reading.detail


async def test_an_exporter_that_measures_more_rarely_than_it_is_scraped_has_not_stopped(store: Store) -> None:
    rarely = PRESET.model_copy(
        update={
            "metrics": {
                name: ResourceSeries.model_validate({**what, "measured_every_s": 10})
                for name, what in (("memory", MEMORY), ("cpu", CPU))
            }
        }
    )
    for name, version in (("c-1", "v2"), ("s-1", "v1")):
        pod(store, name, version)
        uses(store, "container_memory_working_set_bytes", name, 100)
        uses(store, "container_cpu_usage_seconds_total", name, 10)
    await store.scraped()
    # As of samples with a moment of their own, there is nothing newer for a while.
    kept = dict(store.values)
    store.forget(container="serving")
    for _ in range(5):
        start = await store.scraped()
    store.values |= kept
    for name in ("c-1", "s-1"):
        uses(store, "container_cpu_usage_seconds_total", name, 3)
    await store.scraped()
    store.forget(container="serving")
    for _ in range(3):
        end = await store.scraped()
    ((memory, cpu),) = await read(store, window(start, end, "memory", "cpu"), preset=rarely)
    assert arms(memory) == ({f"{NAMESPACE}/c-1": 100.0}, {f"{NAMESPACE}/s-1": 100.0})
    # The step into the window's only sample is of that before it, more scrapes ago than others are looked for.
    assert arms(cpu) == ({f"{NAMESPACE}/c-1": 3.0}, {f"{NAMESPACE}/s-1": 3.0})
    ((memory,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert memory.availability is Availability.STALE


async def test_the_age_of_a_pod_counts_from_its_start(store: Store) -> None:
    began = int(await store.scraped())
    for name, version, started in (("c-1", "v2", began - 30), ("s-1", "v1", began - 86400)):
        pod(store, name, version, started=started)
        uses(store, "container_memory_working_set_bytes", name, 100)
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert isinstance(reading.counts, PodValues)
    assert reading.counts.canary[0].age_s == pytest.approx(end - began + 30)
    assert reading.counts.stable[0].age_s == pytest.approx(end - began + 86400)


async def test_rollouts_share_questions_and_do_not_mix_their_pods(store: Store) -> None:
    for rollout, namespace in (("a", "one"), ("b", "two")):
        for version in ("v1", "v2"):
            # The names are the same in both namespaces.
            pod(store, f"x-{version}", f"{rollout}-{version}", namespace=namespace)
            used = {"a": 100, "b": 300}[rollout] + int(version[1])
            uses(store, "container_memory_working_set_bytes", f"x-{version}", used, namespace=namespace)
    start = await store.scraped()
    end = await store.scraped()
    queries = [
        window(start, end, "memory", stable={"version": f"{r}-v1", "ns": ns}, canary={"version": f"{r}-v2", "ns": ns})
        for r, ns in (("a", "one"), ("b", "two"))
    ]
    (first,), (second,) = await read(store, *queries, preset=PRESET)
    assert arms(first) == ({"one/x-v2": 102.0}, {"one/x-v1": 101.0})
    assert arms(second) == ({"two/x-v2": 302.0}, {"two/x-v1": 301.0})


async def test_pods_of_the_same_version_in_other_namespaces_are_others(store: Store) -> None:
    for name, version, namespace in (("c-1", "v2", NAMESPACE), ("s-1", "v1", NAMESPACE), ("x-1", "v1", "other")):
        pod(store, name, version, namespace=namespace)
        uses(store, "container_memory_working_set_bytes", name, 100, namespace=namespace)
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert arms(reading) == ({f"{NAMESPACE}/c-1": 100.0}, {f"{NAMESPACE}/s-1": 100.0})


async def test_series_that_carry_the_labels_of_the_arms_need_no_list_of_pods(store: Store) -> None:
    uses(store, "container_memory_working_set_bytes", "c-1", 120, version="v2")
    uses(store, "container_memory_working_set_bytes", "s-1", 100, version="v1")
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=LABELLED)
    assert arms(reading) == ({f"{NAMESPACE}/c-1": 120.0}, {f"{NAMESPACE}/s-1": 100.0})


async def test_a_pod_of_both_arms_is_refused(store: Store) -> None:
    for version in ("v1", "v2"):
        pod(store, "x-1", version)
    start = await store.scraped()
    end = await store.scraped()
    ((reading,),) = await read(store, window(start, end, "memory"), preset=PRESET)
    assert reading.availability is Availability.NO_SERIES
    assert "belongs to both arms" in reading.detail


async def test_labels_that_are_not_mapped_cannot_tell_the_arms(store: Store) -> None:
    end = await store.scraped()
    both = {"subset": "same"}
    ((reading,),) = await read(store, window(end - 1, end, "memory", stable=both, canary=both), preset=PRESET)
    assert reading.availability is Availability.NO_SERIES
    assert reading.detail == "the target's labels have none of version, ns, by which pods are known"


async def test_a_store_that_is_away_is_told(store: Store) -> None:
    end = await store.scraped()
    await store.go_away()
    ((cpu, memory),) = await read(store, window(end - 1, end, "cpu", "memory"), preset=PRESET)
    assert {cpu.availability, memory.availability} == {Availability.AWAY}


@pytest.mark.parametrize(("was", "now"), [("v1", "v2"), ("v2", "v1")])
async def test_a_pod_whose_label_was_changed_is_on_the_side_that_it_is_on_now(store: Store, was: str, now: str) -> None:
    for name, version in (("s-1", "v1"), ("c-1", "v2"), ("x-1", was)):
        pod(store, name, version)
        uses(store, "container_memory_working_set_bytes", name, 100)
    start = await store.scraped()
    store.forget(pod="x-1", label_version=was)
    pod(store, "x-1", now)
    # So many that the series which has ended is no longer taken for one that missed a scrape.
    for _ in range(3):
        await store.scraped()
    ((reading,),) = await read(store, window(start, await store.scraped(), "memory"), preset=PRESET)
    canary, stable = arms(reading)
    assert (f"{NAMESPACE}/x-1" in canary, f"{NAMESPACE}/x-1" in stable) == (now == "v2", now == "v1")
