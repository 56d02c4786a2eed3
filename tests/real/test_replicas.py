"""Two equal replicas on a real PostgreSQL: one is stopped and goes on as a zombie, is killed, or leaves; the API server
and the database are killed under them. What came of it all is audited at the end, event by event."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from service.model.stimulus import (
    STIMULUS,
    ReleaseRequested,
    ReleaseWithdrawn,
    StableUpgraded,
    WindowJudged,
)
from service.storage.opening import open_store
from tests.real.audit import every_rollout
from tests.real.load import QUICK, Deployer, audited, create, under_load
from tests.real.parts.api_proxy import ApiProxy
from tests.real.parts.postgres import PostgresServer
from tests.real.rig import Rig, rig

pytestmark = [
    pytest.mark.real,
    pytest.mark.asyncio(loop_scope="module"),
    # Connections to servers that were killed are left to the garbage collector by the clients.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

LEASE_S = max(value for where, value in QUICK.items() if where.endswith("LEASE_S"))
SLACK_S = 3.0
"""On top of a lease: what the work itself and a loaded machine may take."""

BY_EVENT = (ReleaseRequested, ReleaseWithdrawn, StableUpgraded)

GRACE_S = 2.0
"""After its end a window is due this much later: twice the scrape interval."""

SERVICES_N = 24


@dataclass(slots=True)
class Two:
    """The rig with two replicas, each with a way of its own to the API server."""

    rig: Rig
    postgres: PostgresServer
    proxies: dict[str, ApiProxy]
    deployer: Deployer
    lost: list[tuple[str, float]]
    """How and when (epoch seconds) a replica was lost."""

    async def start(self, name: str) -> None:
        """Start a replica that is not running."""
        assert self.rig.session is not None
        await self.rig.replicas[name].start(self.rig.session)

    async def goes_on(self, within_s: float = 40.0) -> None:
        """Until ten more rollouts have ended."""
        wanted = self.deployer.counts["ended"] + 10
        deadline = time.monotonic() + within_s
        while self.deployer.counts["ended"] < wanted:
            assert time.monotonic() < deadline, f"nothing goes on: {self.deployer.counts}\n{self.rig.log_tail()}"
            await asyncio.sleep(0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    folder = tmp_path_factory.mktemp("replicas")
    async with AsyncExitStack() as stack:
        postgres = PostgresServer()
        stack.callback(postgres.remove)
        postgres.start()
        real = await stack.enter_async_context(rig(folder, database=postgres.database()))
        real.replicas.clear()
        proxies: dict[str, ApiProxy] = {}
        for name in ("a", "b"):
            proxies[name] = await stack.enter_async_context(ApiProxy(real.kube))
            kubeconfig = proxies[name].kubeconfig(folder / f"kubeconfig-{name}")
            under_load(real, name, kubernetes={"kubeconfig": str(kubeconfig)})
        yield Two(real, postgres, proxies, Deployer(real, seed=5), [])


async def until(holds: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.05)


async def test_a_zombie_writes_nothing_although_the_route_says_again_what_it_has_read(two: Two) -> None:
    """The first replica stands still in the middle of two first weights: of one, the write is on the wire; of the
    other, it has been told the route and is about to write. The second replica gives both weights in its place and
    takes them back, so that both routes say again what the zombie knows of them."""
    real, proxy = two.rig, two.proxies["a"]
    a, b = real.replicas["a"], real.replicas["b"]
    names = ("on-the-wire", "just-read")
    for name in names:
        await create(real, name, seed=1000)
    await two.start("a")
    proxy.hold_writes_of, proxy.hold_answers_of = "on-the-wire-route", "just-read-route"
    for name in names:
        await real.announce(name, version="2", policy="patient")
    await until(lambda: proxy.held_n == 2, "a write and an answer are held")
    a.pause()
    await two.start("b")
    for name in names:
        seen = real.releases[name].weights
        await until(lambda seen=seen: seen == [0, 10], f"{name} is given its weight by the second replica")
        (row,) = (await real.get(f"/rollouts?service={name}&limit=1", b))["rollouts"]
        assert await real.order(row["id"], "rollback", "seen enough", replica=b) == 200
    ended = {"ml-serving/on-the-wire", "ml-serving/just-read"}
    await until(
        lambda: {one.key for one in real.published if one.phase == "rolled_back"} >= ended, "both are rolled back"
    )
    await asyncio.sleep(2.0)
    seen_n = len(real.changes), len(real.pagerduty.events), len(real.published)
    proxy.let_go()
    await until(lambda: bool(proxy.writes), "the write that was on the wire arrives")
    a.resume()
    await asyncio.sleep(2 * LEASE_S)
    assert (len(real.changes), len(real.pagerduty.events), len(real.published)) == seen_n
    assert {write.status for write in proxy.writes} == {422}
    for name in names:
        assert real.releases[name].weights == [0, 10, 0]
        assert real.releases[name].fences == sorted(real.releases[name].fences)


async def test_under_load_both_replicas_write(two: Two) -> None:
    await two.deployer.begin(SERVICES_N)
    wrote_n = {name: len(proxy.writes) for name, proxy in two.proxies.items()}
    await two.goes_on()
    assert all(len(proxy.writes) > wrote_n[name] + 5 for name, proxy in two.proxies.items())


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_a_replica_is_lost_and_the_other_goes_on(two: Two, how: str) -> None:
    lost = two.rig.replicas["a"]
    assert lost.process is not None
    # With the metric store standing still, both replicas have windows in hand when one of them is lost.
    two.rig.prometheus.pause()
    await asyncio.sleep(1.5)
    two.lost.append((how, time.time()))
    if how == "killed":
        lost.kill()
    else:
        lost.process.terminate()
        await asyncio.sleep(0.2)
    two.rig.prometheus.resume()
    if how == "stopped":
        assert await asyncio.to_thread(lost.process.wait, 15) == 0
    await two.goes_on()
    await two.start("a")


async def test_a_replica_stands_still_for_longer_than_its_leases_again_and_again(two: Two) -> None:
    rng = random.Random(7)
    for name in ("a", "b", "a"):
        replica, ended_n = two.rig.replicas[name], two.deployer.counts["ended"]
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        replica.pause()
        await asyncio.sleep(LEASE_S + rng.uniform(1.0, 3.0))
        replica.resume()
        assert two.deployer.counts["ended"] > ended_n
    await two.goes_on()


async def test_the_api_server_is_killed_with_rollouts_at_every_stage(two: Two) -> None:
    two.rig.kube.kill_api()
    await asyncio.sleep(4.0)
    await asyncio.to_thread(two.rig.kube.restart_api)
    await two.goes_on()


async def test_the_database_is_killed_with_windows_and_instructions_under_way(two: Two) -> None:
    two.postgres.kill()
    await asyncio.sleep(4.0)
    await asyncio.to_thread(two.postgres.start)
    await two.goes_on()


async def test_in_the_end_nothing_was_lost_and_nothing_was_done_that_nobody_decided(two: Two) -> None:
    found = await audited(two.rig, two.deployer)
    print(f"{dict(two.deployer.counts)}; {dict(found.ends)}; {dict(found.seen)}")
    assert not found.broken
    assert found.ends["promoted"] > 20
    assert found.ends["rolled_back"] > 5


async def test_a_lost_replica_has_cost_windows_and_instructions_at_most_one_lease(two: Two) -> None:
    store = await open_store(two.rig.database)
    facts = [
        STIMULUS.validate_json(text)
        for state in await every_rollout(store)
        for _, text in await store.history(state.id)
    ]
    await store.close()
    windows = [fact for fact in facts if isinstance(fact, WindowJudged)]
    # What an event brings is owed since the event's own time, and an event waits for the group, not for a lease.
    by_event_s = {fact.at.timestamp() for fact in facts if isinstance(fact, BY_EVENT)}
    owed = await two.rig.rows("SELECT owed_since, settled_at FROM outbox WHERE type <> 'check_ready'")
    assert [how for how, _ in two.lost] == ["killed", "stopped"]
    for how, at_s in two.lost:
        near = (at_s - LEASE_S, at_s + 2 * LEASE_S)
        due_s = [(one.end.timestamp() + GRACE_S, one.at.timestamp()) for one in windows]
        lag_s = max(done - due for due, done in due_s if near[0] < due < near[1])
        age_s = max(done - since for since, done in owed if near[0] < since < near[1] and since not in by_event_s)
        event_s = max(done - since for since, done in owed if near[0] < since < near[1] and since in by_event_s)
        print(f"{how}: windows {lag_s:.2f} s late, instructions {age_s:.2f} s owed, events' {event_s:.2f} s, at most")
        assert lag_s < LEASE_S + SLACK_S
        assert age_s < LEASE_S + SLACK_S
