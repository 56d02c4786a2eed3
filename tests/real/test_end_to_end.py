"""The main job on real parts: a real broker, a real API server with Istio's CRDs, a real Prometheus, and the service
as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.real.rig import Rig, rig

pytestmark = [
    pytest.mark.real,
    pytest.mark.asyncio(loop_scope="module"),
    # When a broker is killed, the Kafka client leaves its transports to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with rig(tmp_path_factory.mktemp("rig")) as made:
        await made.start_service()
        # All releases run side by side; each test then looks at its own.
        await asyncio.gather(
            made.release("good"),
            made.release("slow", "latency"),
            made.release("failing", "errors"),
            made.release("drifting", "drift"),
            made.release("guarded", "errors", policy="guarded"),
        )
        yield made


async def test_a_good_release_is_promoted_through_three_stages(real: Rig) -> None:
    found = await real.until("good", "promoted")
    assert await real.settled("good", 100) == [0, 10, 30, 60, 100]
    assert real.releases["good"].fences == sorted(real.releases["good"].fences)
    journal = await real.get(f"/rollouts/{found['id']}/journal")
    assert journal["intact"]


@pytest.mark.parametrize(("name", "blamed"), [("slow", "latency"), ("failing", "errors"), ("drifting", "predictions")])
async def test_a_harmful_release_is_rolled_back_with_a_page(real: Rig, name: str, blamed: str) -> None:
    found = await real.until(name, "rolled_back")
    weights = await real.settled(name, 0)
    assert max(weights) < 100
    assert max(found["metrics"], key=lambda m: m["evidence"]["log_e"])["metric"] == blamed
    pages = [b for p, b in real.pagerduty.events if p == "/v2/enqueue" and found["id"] in b["dedup_key"]]
    assert any(b["event_action"] == "trigger" and b["dedup_key"].endswith("/rollback") for b in pages)
    assert not any(found["id"] in key for key in real.pagerduty.open_incidents)


async def test_the_guard_pauses_and_a_person_rolls_back_over_http(real: Rig) -> None:
    found = await real.until("guarded", "paused")
    while found["waiting"] != "confirm_rollback":
        await asyncio.sleep(0.5)
        found = await real.until("guarded", "paused")
    assert real.releases["guarded"].weights[-1] == 10
    assert await real.order(found["id"], "rollback", "", token="viewer-token-0123456789") == 403
    assert await real.order(found["id"], "rollback", "errors, seen it") == 200
    await real.until("guarded", "rolled_back")
    await real.settled("guarded", 0)


async def test_everything_outside_falls_over_in_the_middle_and_the_release_still_ends_right(real: Rig) -> None:
    await real.release("sturdy")
    await real.until("sturdy", "progressing")
    real.broker.restart()
    await asyncio.sleep(2)
    real.prometheus.stop()
    await asyncio.sleep(6)
    real.prometheus.start()
    real.kube.kill_api()
    await asyncio.sleep(3)
    real.kube.restart_api()
    await real.until("sturdy", "promoted", within_s=240)
    await real.settled("sturdy", 100)
    release = real.releases["sturdy"]
    assert release.weights == sorted(release.weights)
    assert release.fences == sorted(release.fences)
    await real.release("after", "errors")
    await real.until("after", "rolled_back")


async def test_a_service_that_is_killed_again_and_again_loses_nothing(real: Rig) -> None:
    await real.release("survivor")
    for pause_s in (0.3, 0.9, 2.1, 4.4, 6.7, 3.3):
        await asyncio.sleep(pause_s)
        real.kill_service()
        await real.start_service()
    await real.until("survivor", "promoted", within_s=240)
    assert await real.settled("survivor", 100) == [0, 10, 30, 60, 100]
    release = real.releases["survivor"]
    assert release.fences == sorted(release.fences)


async def test_the_doctor_finds_nothing_wrong_and_an_event_sent_by_hand_starts_a_rollout(real: Rig) -> None:
    findings, status = await real.command("doctor", "-o", "json")
    assert status == 0, findings
    assert {"event bus", "metric store of default", "rights in default/ml-serving"} <= {f["name"] for f in findings}
    (store,) = (f for f in findings if f["name"] == "metric store of default")
    assert store["detail"].endswith("has all 3 series")
    await real.put_service("by-hand")
    _, status = await real.command(
        "send-event", "--service", "ml-serving/by-hand", "--version", "9", "--stable-version", "8"
    )
    assert status == 0
    assert (await real.until("by-hand", "progressing"))["version"] == "9"


async def test_a_graceful_stop_ends_within_its_time_with_status_zero(real: Rig) -> None:
    assert real.stop_service() == 0
    await real.start_service()
