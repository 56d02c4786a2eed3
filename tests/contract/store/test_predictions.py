"""The contract of the counts of prediction records, on SQLite and, as a real test, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.model.names import ServiceKey
from service.ring.predictions import NOT_BEGUN, Advance, PartitionState, Reference, ServiceCounts
from service.ring.store import Conflict, RolloutFilter
from service.storage.opening import open_store
from service.storage.predictions import REFERENCES_KEPT_S, SqlPredictions
from tests.real.parts import postgres

TOPIC = "predictions"
ONE, TWO = (ServiceKey(cluster="default", namespace="ml", name=name) for name in ("one", "two"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    url = f"sqlite:///{tmp_path / 'serinus.db'}" if request.param == "sqlite" else postgres.shared().database()
    opened = await open_store(url)
    yield SqlPredictions(opened)
    await opened.close()


def step(was: PartitionState, to: int) -> Advance:
    return Advance(was, replace(was, revision=was.revision + 1, next_offset=to, watermark_s=float(to)))


def counted(service: ServiceKey, from_s: float, body: bytes) -> ServiceCounts:
    return ServiceCounts(service, from_s, from_s + 10, body)


async def test_a_partition_is_begun_once_and_keeps_how_far_it_is(store: SqlPredictions) -> None:
    begun = await store.begin(TOPIC, [0, 1])
    assert {one.next_offset for one in begun.values()} == {NOT_BEGUN}
    await store.advance([step(begun[0], 7)], [])
    assert (await store.begin(TOPIC, [0]))[0] == step(begun[0], 7).now
    assert [(one.partition, one.next_offset) for one in await store.partitions(TOPIC)] == [(0, 7), (1, NOT_BEGUN)]
    assert await store.partitions("another") == []


async def test_counts_are_there_if_and_only_if_the_offset_stands_behind_them(store: SqlPredictions) -> None:
    begun = await store.begin(TOPIC, [0, 1])
    await store.advance([step(begun[0], 5)], [counted(ONE, 0, b"first")])
    with pytest.raises(Conflict, match=r"partition 0 of predictions .* another consumer"):
        await store.advance([step(begun[1], 9), step(begun[0], 6)], [counted(ONE, 0, b"again")])
    assert (await store.counts(TOPIC, [ONE], 0, 10, limit=9))[ONE] == [b"first"]
    assert [one.next_offset for one in await store.partitions(TOPIC)] == [5, NOT_BEGUN]


async def test_of_two_consumers_that_write_at_once_one_counts(store: SqlPredictions) -> None:
    begun = await store.begin(TOPIC, [0])
    tries = [store.advance([step(begun[0], 5)], [counted(ONE, 0, name)]) for name in (b"a", b"b", b"c")]
    said = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(one) for one in said if one is not None] == [Conflict, Conflict]
    assert len((await store.counts(TOPIC, [ONE], 0, 10, limit=9))[ONE]) == 1


async def test_counts_are_found_by_service_and_time_and_the_newest_where_they_are_too_many(
    store: SqlPredictions,
) -> None:
    begun = await store.begin(TOPIC, [0])
    listed = [counted(service, at, f"{service.name}{at}".encode()) for service in (ONE, TWO) for at in (0, 10, 20)]
    await store.advance([step(begun[0], 5)], listed)
    found = await store.counts(TOPIC, [ONE, TWO], 10, 20, limit=9)
    assert found == {ONE: [b"one10"], TWO: [b"two10"]}
    assert sorted((await store.counts(TOPIC, [ONE], 0, 100, limit=2))[ONE]) == [b"one10", b"one20"]
    assert await store.counts(TOPIC, [], 0, 100, limit=2) == {}
    assert await store.counts("another", [ONE], 0, 100, limit=2) == {}


async def test_what_is_frozen_stays_whoever_comes_later(store: SqlPredictions) -> None:
    first, later = Reference("r-1", "predictions", b"first"), Reference("r-1", "predictions", b"later")
    assert await store.freeze([first], 5.0) == {("r-1", "predictions"): b"first"}
    assert await store.freeze([later, Reference("r-2", "predictions", b"x")], 6.0) == {
        ("r-1", "predictions"): b"first",
        ("r-2", "predictions"): b"x",
    }
    assert await store.references([("r-1", "predictions"), ("r-9", "predictions")]) == {
        ("r-1", "predictions"): b"first"
    }
    assert await store.freeze([], 5.0) == {}


async def test_what_changes_is_replaced_only_by_who_read_it_as_it_is(store: SqlPredictions) -> None:
    one = Reference("r-1", "pairs", b"one")
    await store.replace(one, None, 1.0)
    with pytest.raises(Conflict):
        await store.replace(one, None, 1.0)
    await store.replace(replace(one, body=b"two"), b"one", 2.0)
    with pytest.raises(Conflict, match="pairs of r-1 was changed by another replica"):
        await store.replace(replace(one, body=b"late"), b"one", 2.0)
    assert await store.references([("r-1", "pairs")]) == {("r-1", "pairs"): b"two"}


async def test_old_counts_go_a_little_at_once_and_centroids_of_services_stay(store: SqlPredictions) -> None:
    begun = await store.begin(TOPIC, [0])
    await store.advance([step(begun[0], 5)], [counted(ONE, at, b"x") for at in (0, 1, 2, 50)])
    await store.freeze([Reference("r-1", "predictions", b"bins"), Reference("default/ml/one", "", b"centroid")], 0.0)
    assert [await store.prune(30.0, limit=2) for _ in range(3)] == [2, 1, 0]
    assert len((await store.counts(TOPIC, [ONE], 0, 100, limit=9))[ONE]) == 1
    await store.prune(REFERENCES_KEPT_S + 30.0, limit=2)
    assert await store.references([("r-1", "predictions"), ("default/ml/one", "")]) == {
        ("default/ml/one", ""): b"centroid"
    }


async def test_the_centroid_of_a_service_stays_though_its_cluster_is_called_like_a_rollout(
    store: SqlPredictions,
) -> None:
    kept = [Reference("r-eu/ml/one", "out", b"centroid"), Reference("default/ml/one", "out", b"centroid")]
    await store.freeze([*kept, Reference("r-7k2mqx3p4a", "out", b"bins")], 0.0)
    await store.prune(REFERENCES_KEPT_S + 30.0, limit=2)
    assert await store.references([(one.owner, "out") for one in kept] + [("r-7k2mqx3p4a", "out")]) == {
        (one.owner, "out"): b"centroid" for one in kept
    }


async def test_no_question_reads_a_whole_table_of_bodies_or_states(tmp_path: Path) -> None:
    opened = await open_store(f"sqlite:///{tmp_path / 'serinus.db'}")
    sent: list[tuple[str, Any]] = []
    sa.event.listen(
        opened._engine.sync_engine, "before_cursor_execute", lambda *given: sent.append((given[2], given[3]))
    )
    store = SqlPredictions(opened)
    await store.references([("r-a", "x"), ("r-b", "y")])
    await store.counts(TOPIC, [ONE, TWO], 0.0, 10.0, limit=5)
    await store.prune(10.0, limit=5)
    await opened.rollouts(RolloutFilter(), limit=1)
    asked = [one for one in sent if one[0].startswith(("SELECT", "DELETE"))]
    assert len(asked) == 6
    for statement, parameters in asked:
        async with opened._engine.connect() as connection:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [str(row[3]) for row in plan]
        assert any("USING" in step and "INDEX" in step for step in steps), steps
        tables = ("SCAN prediction_", "SCAN rollouts")
        assert not [s for s in steps if s.startswith(tables) and "INDEX" not in s], (statement, steps)
    await opened.close()
