"""Custom expressions: one number an arm, at each window's own moment, many in one question. On both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from service.model.observation import ArmValues, Availability, Reading
from service.model.preset import MetricsPreset
from tests.contract.source.stores import LabStore, Store, lab_store, read, real_store, window

PRESET = MetricsPreset.model_validate(
    {
        "name": "http",
        "metrics": {
            "gpu": {"kind": "value", "promql": "max(gpu_bytes{$matchers})"},
            "size": {"kind": "value", "promql": "scalar(max(gpu_bytes{$matchers}))"},
            "each": {"kind": "value", "promql": "gpu_bytes{$matchers}"},
            "broken": {"kind": "value", "promql": "max(gpu_bytes{$matchers}"},
        },
    }
)


@pytest.fixture(params=["lab", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with lab_store() if request.param == "lab" else real_store(tmp_path) as made:
        yield made


def known(store: Store, expression: str, values: Mapping[str, float | None]) -> None:
    """The lab answers expressions by their text; a real store works them out."""
    if isinstance(store, LabStore):
        for version, value in values.items():
            text = expression.replace("$matchers", f'job="tf-serving",version="{version}"')
            store.api.expressions[text] = value


async def test_a_custom_expression_gives_one_number_an_arm(store: Store) -> None:
    store.add("gpu_bytes", 70, version="v2")
    store.add("gpu_bytes", 35, version="v1")
    end = await store.scraped()
    known(store, "max(gpu_bytes{$matchers})", {"v1": 35.0, "v2": 70.0})
    ((reading,),) = await read(store, window(end - 5, end, "gpu"), preset=PRESET)
    assert reading == Reading("gpu", Availability.ENOUGH, ArmValues(70.0, 35.0))


async def test_an_arm_without_a_number_is_none_and_a_canary_without_one_has_no_series(store: Store) -> None:
    store.add("gpu_bytes", 70, version="v2")
    end = await store.scraped()
    known(store, "max(gpu_bytes{$matchers})", {"v1": None, "v2": 70.0, "v3": None})
    found, missing = await read(
        store,
        window(end - 5, end, "gpu"),
        window(end - 5, end, "gpu", canary={"version": "v3"}),
        preset=PRESET,
    )
    assert found == [Reading("gpu", Availability.ENOUGH, ArmValues(70.0, None))]
    assert missing[0].availability is Availability.NO_SERIES
    assert "no numbers for the canary" in missing[0].detail


async def test_a_fault_of_one_expression_blinds_only_itself(store: Store) -> None:
    store.add("gpu_bytes", 70, version="v2")
    store.add("gpu_bytes", 35, version="v1")
    end = await store.scraped()
    known(store, "max(gpu_bytes{$matchers})", {"v1": 35.0, "v2": 70.0})
    ((broken, gpu),) = await read(store, window(end - 5, end, "broken", "gpu"), preset=PRESET)
    assert broken.availability is Availability.AWAY
    assert "400" in broken.detail
    assert gpu.counts == ArmValues(70.0, 35.0)


@pytest.mark.real
async def test_each_window_is_evaluated_at_its_own_end_and_scalars_are_numbers_too(tmp_path: Path) -> None:
    async with real_store(tmp_path) as store:
        ends, n = [], 0
        for more in (5, 6, 7):
            n += more
            store.add("gpu_bytes", more, version="v2")
            store.add("gpu_bytes", 2 * more, version="v1")
            ends.append((await store.scraped(), n))
        rows = await read(store, *(window(end - 1, end, "gpu", "size") for end, _ in ends), preset=PRESET)
        assert [[r.counts for r in row] for row in rows] == [[ArmValues(n, 2 * n)] * 2 for _, n in ends]
        store.add("gpu_bytes", 1, version="v2", pod="another")
        end = await store.scraped()
        ((several,),) = await read(store, window(end - 1, end, "each"), preset=PRESET)
        assert several.availability is Availability.NO_SERIES
        assert "2 numbers for the canary" in several.detail
