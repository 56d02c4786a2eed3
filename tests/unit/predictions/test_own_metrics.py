"""What counting prediction records tells of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.app import metrics
from service.app.metrics import OwnMetrics
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.unit.predictions.kafka import START_S, TOPIC, Client, Clock, Topic
from tests.unit.predictions.test_exactly_once import live


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield SqlPredictions(opened)
    await opened.close()


def shown(own: OwnMetrics, name: str, **labels: str) -> float | None:
    return own.registry.get_sample_value(f"serinus_prediction_{name}", {"topic": TOPIC, **labels})


async def test_every_record_that_is_done_with_is_counted_by_what_came_of_it(store: SqlPredictions) -> None:
    own, clock, topic, stopping = OwnMetrics("1"), Clock(), Topic(2), Stopping()
    topic.put(0, START_S)
    topic.put(1, START_S)
    topic.put(0, START_S - 500)
    topic.put(1, START_S, service="one-too-many", **{"class": "a"})
    topic.logs[0] += [b"{no json", b"{no json", b'{"service": 1}']
    client = Client(topic, clock, range(2))
    life = live(store, clock, client, stopping=stopping, seen=own, services_n=1, lateness_s=100.0, commit_s=2.0)
    task = asyncio.ensure_future(life)
    while clock.now_s < START_S + 1:
        await asyncio.sleep(0)
    assert shown(own, "records_total", outcome="counted") is None, "told before it was committed"
    while clock.now_s < START_S + 10:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    outcomes = {one: shown(own, "records_total", outcome=one) for one in ("counted", "late", "refused", "poison")}
    assert outcomes == {"counted": 2, "late": 1, "refused": 1, "poison": 3}
    assert {one: shown(own, "poison_total", reason=one) for one in ("json", "schema")} == {"json": 2, "schema": 1}


async def test_the_lag_is_of_the_partition_that_is_furthest_behind_and_grows_while_nothing_is_read(
    store: SqlPredictions, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, clock, topic, stopping = OwnMetrics("1"), Clock(), Topic(2), Stopping()
    monkeypatch.setattr(metrics.time, "time", lambda: clock.now_s)
    for n in range(200):
        topic.put(0, START_S - 200 + n)
    # Ten records a poll of half a second: it is read in ten seconds.
    client = Client(topic, clock, range(2), most=10)
    task = asyncio.ensure_future(live(store, clock, client, stopping=stopping, seen=own, lateness_s=5.0))
    lags = []
    while clock.now_s < START_S + 15:
        now_s = clock.now_s
        while clock.now_s == now_s:
            await asyncio.sleep(0)
        lags.append(shown(own, "lag_seconds"))
    assert max(lag for lag in lags[1:5] if lag is not None) > 150
    assert lags[-1] is not None
    assert lags[-1] <= 1.0
    stopping.ask()
    await task
    clock.now_s += 100
    assert shown(own, "lag_seconds") == pytest.approx(lags[-1] + 100, abs=1.0)


async def test_a_consumer_without_partitions_shows_no_lag(store: SqlPredictions) -> None:
    own, clock, topic, stopping = OwnMetrics("1"), Clock(), Topic(2), Stopping()
    client = Client(topic, clock, range(2))
    task = asyncio.ensure_future(live(store, clock, client, stopping=stopping, seen=own))
    while clock.now_s < START_S + 3:
        await asyncio.sleep(0)
    assert shown(own, "lag_seconds") is not None
    client.mine = set()
    while clock.now_s < START_S + 6:
        await asyncio.sleep(0)
    assert shown(own, "lag_seconds") is None
    stopping.ask()
    await task
