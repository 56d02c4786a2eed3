"""Counters that something made of log lines, on both stores: absent is zero only where lines are counted at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.observation import Availability, LineCounts
from service.model.preset import MetricsPreset
from tests.contract.source.stores import Store, lab_store, read, real_store, window

PRESET = MetricsPreset.model_validate(
    {
        "name": "http",
        "metrics": {
            "ops": {
                "kind": "line_counter",
                "lines": "tf_missing_opkernel_total",
                "alive": "log_lines_total",
                "subject_label": "op",
            }
        },
    }
)


@pytest.fixture(params=["lab", pytest.param("real", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with lab_store() if request.param == "lab" else real_store(tmp_path) as made:
        yield made


async def test_the_first_line_of_an_op_is_seen_and_a_pipeline_that_is_gone_is_no_zero(store: Store) -> None:
    for version in ("v1", "v2"):
        store.add("log_lines_total", 10, version=version, pod=f"p-{version}")
    start = await store.scraped()
    middle = await store.scraped()
    store.add("tf_missing_opkernel_total", 1, version="v2", pod="p-v2", op="FancyOp")
    end = await store.scraped()
    before, after, unheard = await read(
        store,
        window(start, middle, "ops"),
        window(middle, end, "ops"),
        window(middle, end, "ops", canary={"version": "v3"}),
        preset=PRESET,
    )
    assert (before[0].availability, before[0].counts) == (Availability.ENOUGH, LineCounts((), (), (), ()))
    assert after[0].counts == LineCounts(("ops FancyOp",), (1,), (0,), (0,))
    assert (unheard[0].availability, unheard[0].counts) == (Availability.NO_SERIES, None)
    assert "log_lines_total has no series of the canary" in unheard[0].detail
