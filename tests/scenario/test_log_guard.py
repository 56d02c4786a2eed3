"""One log line on the canary and none on stable: rolled back with the first window, and the page says which op."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import yaml

from service.analysis.tick import Tick
from service.lab.loki_api import LokiApi
from service.model.catalog import Catalog
from service.model.instruction import Lane, Page
from service.model.lines import LogSeries, PatternSet
from service.model.observation import Availability, Counts, FailureCounts, HistogramCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.model.rollout import Phase, RolloutState
from service.ring.door import Door
from service.sources.loki import LokiSource
from service.sources.routed import RoutedSource
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.stories import keep
from tests.stories import START, Story, place, policy

CONFIG = Path(__file__).parents[2] / "config"
SET = PatternSet.model_validate(yaml.safe_load((CONFIG / "logs" / "tensorflow.yaml").read_text()))
PRESET = MetricsPreset.model_validate(
    {
        "name": "http",
        "metrics": {
            "latency": {"kind": "latency", "buckets": "b"},
            "errors": {"kind": "errors", "requests": "r", "failed": [{"code": "5.."}]},
            "logs": LogSeries(sets=("tensorflow",)).with_sets({"tensorflow": SET}),
        },
    }
)
POLICY = policy(
    metrics=[
        {"name": "latency", "kind": "latency"},
        {"name": "errors", "kind": "errors"},
        {"name": "logs", "kind": "value", "required": False, "label": "log lines of a failed upgrade"},
    ],
    guards=[{"name": "new-lines", "metric": "logs", "only_on_canary": True, "windows": 1, "on_breach": "rollback"}],
)
MISSING = "Not found: No registered 'FancyOp' OpKernel for 'GPU' devices compatible with node {{node a}}"
BOTH = ("v1", "v2")


class Healthy:
    """A metric store in which nothing is wrong, and the clock."""

    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        given: dict[str, Counts] = {
            "latency": HistogramCounts((0.1, 0.2), (30, 20, 10), (270, 180, 90)),
            "errors": FailureCounts(0, 60, 3, 540),
        }
        return [[Reading(m, Availability.ENOUGH, given[m]) for m in query.metrics] for query in queries]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    await opened.close()


async def after_three_windows(
    store: SqlStore, versions: Sequence[str], *, at_s: float, heard_of: Sequence[str] = BOTH
) -> tuple[RolloutState, list[str]]:
    """The rollout and its pages, where these versions wrote the line so long after the first window began."""
    story = Story(policy=POLICY, place=place(metrics="http")).progressing()
    await keep(store, story)
    world = Healthy()
    assert story.state.windows_from is not None
    world.moment = first = story.state.windows_from
    async with LokiApi() as loki, aiohttp.ClientSession() as session:
        for version in heard_of:
            loki.write("up", at_s=first.timestamp() - 600, version=version)
        for version in versions:
            loki.write(MISSING, at_s=first.timestamp() + at_s, version=version, pod=f"p-{version}")
        logs = LokiSource(session, loki.url, {"http": PRESET}, clock=world, delay_s=0)
        source = RoutedSource({"http": PRESET}, world, {"logs": logs}, deadline_s=30)
        tick = Tick(store, Door(store, Catalog(), world), source, world, grace_s=10)
        for _ in range(3):
            world.moment += timedelta(seconds=71)
            await tick.turn()
    found = await store.load([story.state.id])
    owed = await store.owed(Lane.PAGES, world.moment, limit=10, lease_s=30)
    return found[story.state.id], [one.instruction.summary for one in owed if isinstance(one.instruction, Page)]


async def test_one_line_on_the_canary_alone_rolls_back_and_pages_with_the_op(store: SqlStore) -> None:
    state, pages = await after_three_windows(store, ["v2"], at_s=30)
    assert state.phase is Phase.ROLLING_BACK
    assert state.window == 1
    assert "log lines of a failed upgrade only on the canary" in state.reason
    (page,) = pages
    assert "missing-opkernel FancyOp" in page


async def test_the_same_line_on_both_arms_is_no_breach_also_where_stable_wrote_it_before(store: SqlStore) -> None:
    state, pages = await after_three_windows(store, BOTH, at_s=30)
    assert (state.phase, state.window, pages) == (Phase.PROGRESSING, 3, [])


async def test_where_stable_is_not_heard_of_nobody_knows_and_that_is_said(store: SqlStore) -> None:
    state, pages = await after_three_windows(store, ["v2"], at_s=30, heard_of=["v2"])
    assert (state.phase, state.window, pages) == (Phase.PROGRESSING, 3, [])
    lines = next(one for one in state.evidence if one.metric == "logs")
    assert lines.availability is Availability.NO_SERIES
    assert "no line of the stable" in lines.detail
