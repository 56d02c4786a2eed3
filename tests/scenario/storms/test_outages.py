"""What the service does when much comes at once, or something that it needs is gone. Time is virtual."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from service.actuators.istio import IstioMesh
from service.alerts.pagerduty import CALLS_PER_MINUTE, PagerDutyPager
from service.app.clock import SystemClock
from service.cluster import connect
from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import AT_ONCE
from service.lab.kube_api import KubeApi
from service.model.instruction import Lane, Page, PageAction
from service.model.rollout import Phase
from service.model.stimulus import WeightsRefused
from service.ring.door import Door, Told
from service.ring.ports import Unavailable
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.test_store import keep
from tests.embedded import virtual_service
from tests.scenario.storms.ring import Fragile, Routes, key, owed_n, releases, ring, until
from tests.stories import START, Story, catalog

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    await opened.close()


async def test_a_thousand_rollouts_that_start_in_the_same_second_share_transactions_and_bounded_calls(
    store: SqlStore,
) -> None:
    outside = Routes(step_s=0.1)
    commits = 0

    def count(*_: object) -> None:
        nonlocal commits
        commits += 1

    sa.event.listen(store._engine.sync_engine, "commit", count)
    async with ring(store, outside) as door:
        await door.events(releases(1000))
        assert commits < 10
        await until(lambda: len(outside.weights) == 1000 and not outside.under_way)
    assert {weight for weight, _ in outside.weights.values()} == {10}
    assert outside.most_under_way <= AT_ONCE[Lane.WEIGHTS]
    assert commits < 1000, "a transaction for each rollout"


async def test_a_thousand_pages_owed_go_out_at_the_pagers_pace_when_it_comes_back_and_before_all_notes(
    store: SqlStore,
) -> None:
    outside = Routes(step_s=0.5)
    sent: list[tuple[float, Page]] = []
    tries, away = 0, True
    async with aiohttp.ClientSession() as session:
        pager = PagerDutyPager(session, SecretStr("0" * 32), outside)

        class Pager:
            """PagerDuty's limit as the real pager keeps it, without the calls."""

            async def send(self, page: Page) -> None:
                nonlocal tries
                tries += 1
                if away:
                    raise Unavailable("PagerDuty answers 503")
                pager._count_call(note=page.action is PageAction.CHANGE)
                sent.append((outside.now().timestamp(), page))

        door = Door(store, catalog(), outside)
        await door.events(releases(1000))
        running = await store.active([key(i) for i in range(1000)])
        await door.tell(
            [
                Told(s.id, WeightsRefused(id=f"{s.id}/no", at=outside.now(), fence=s.fence, reason="no such route"))
                for s in running.values()
            ]
        )
        assert (await owed_n(store, Lane.PAGES), await owed_n(store, Lane.NOTES)) == (1000, 1000)
        async with ring(store, outside, pager=Pager()):
            await until(lambda: outside.now() > START + timedelta(minutes=3))
            tried_while_away, away = tries, False
            await until(lambda: sum(page.action is PageAction.TRIGGER for _, page in sent) >= 1000, within_s=200)
    assert tried_while_away < 200, "every page found the outage out for itself"
    for i, (at_s, _) in enumerate(sent[CALLS_PER_MINUTE:]):
        assert at_s - sent[i][0] >= 60, "more calls in a minute than PagerDuty takes"
    triggers = [page.dedup_key for _, page in sent if page.action is PageAction.TRIGGER]
    assert len(set(triggers)) == 1000
    notes_n = len(sent) - len(triggers)
    assert notes_n < 0.5 * len(triggers), "pages waited behind notes"


async def test_an_api_server_that_answers_429_and_5xx_gets_every_weight_in_the_end(
    store: SqlStore, tmp_path: Path
) -> None:
    outside = Routes()
    async with KubeApi() as kube:
        for i in range(20):
            kube.put("virtualservices", virtual_service(f"svc-{i}", key(i).namespace))
        kube.answers.extend([429, 503, 500, 429, 502, 504] * 8)
        client = await connect(kube.kubeconfig(tmp_path / "kubeconfig"), None)
        async with ring(store, outside, mesh=IstioMesh(client, timeout_s=5)) as door:
            await door.events(releases(20))
            await until(lambda: len(kube.writes) == 20)
            await until(lambda: not kube.answers)

            async def settled() -> bool:
                return await owed_n(store, Lane.WEIGHTS) == 0

            await until(settled)
        await client.close()
    weights = [vs["spec"]["http"][0]["route"][1]["weight"] for vs in kube.writes]
    assert weights == [10] * 20, "a weight was written twice or not as asked"


async def test_a_database_that_is_away_for_five_minutes_costs_time_and_nothing_else(store: SqlStore) -> None:
    outside, fragile = Routes(), Fragile(store)
    async with ring(fragile, outside) as door:
        await door.events(releases(40))
        await until(lambda: len(outside.weights) >= 5)
        fragile.away = True
        with pytest.raises(Unavailable):
            await door.events(releases(40, version="3"))
        written_n = len(outside.writes)
        back_at = outside.now() + timedelta(minutes=5)
        await until(lambda: outside.now() >= back_at)
        assert len(outside.writes) <= written_n + 2 * AT_ONCE[Lane.WEIGHTS], "went on without what was owed"
        fragile.away = False

        async def settled() -> bool:
            return await owed_n(store) == 0

        await until(settled)
    assert len(outside.weights) == 40
    assert {weight for weight, _ in outside.weights.values()} == {10}
    assert len(outside.published) >= 40


async def test_a_full_disk_keeps_everything_owed_until_there_is_room(store: SqlStore) -> None:
    outside, most_pages = Routes(), 1_000_000_000

    @sa.event.listens_for(store._engine.sync_engine, "checkout")
    def limit(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count={most_pages}")
        cursor.close()

    async def settled() -> bool:
        return await owed_n(store) == 0

    async with ring(store, outside) as door:
        await door.events(releases(20))
        await until(settled)
        most_pages = 1  # SQLite takes the pages that there are
        with pytest.raises(Unavailable, match="full"):
            await door.events(releases(400, version="3"))
        assert (await store.active([key(0)]))[key(0)].version == "2"
        assert key(300) not in await store.active([key(300)]), "half a batch was kept"
        most_pages = 1_000_000_000
        await door.events(releases(400, version="3"))
        await until(settled)
    assert {(await store.active([key(i)]))[key(i)].version for i in range(400)} == {"3"}
    assert {weight for weight, _ in outside.weights.values()} == {10}


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_a_clock_that_jumps_an_hour_ends_no_wait_and_stops_none(store: SqlStore, jump_s: float) -> None:
    steady_s, wall_s = 0.0, START.timestamp()
    clock = SystemClock(wall=lambda: wall_s, steady=lambda: steady_s)
    story = Story()
    await keep(store, story)
    assert story.state.wake_at is not None
    clockwork = Clockwork(store, Door(store, catalog(), clock), clock, {}, replica="one")
    wait_s = (story.state.wake_at - START).total_seconds()
    wall_s += jump_s
    await clockwork.wake_turn()
    assert (await store.load([story.state.id]))[story.state.id].phase is Phase.STARTING
    steady_s += 1.02 * wait_s
    wall_s += 1.02 * wait_s
    await clockwork.wake_turn()
    assert (await store.load([story.state.id]))[story.state.id].phase is Phase.HELD
