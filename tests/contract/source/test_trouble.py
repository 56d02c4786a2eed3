"""A store in trouble: slow, broken, refusing, too talkative. Every kind is a reading; none is an exception or a zero.
On the lab's Prometheus, which can be told to behave so."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from service.app.clock import SystemClock
from service.lab.server import Served
from service.model.observation import Availability, FailureCounts, Reading, WindowQuery
from service.ring.ports import Refused, Unavailable
from service.sources.asking import FAILURES_TO_OPEN
from service.sources.prometheus import COLLECT_TIMEOUTS, PrometheusSource
from tests.contract.source.stores import PRESET, SCRAPE_S, LabStore, begun, lab_store, read, serve, window


@pytest.fixture
async def lab() -> AsyncIterator[LabStore]:
    async with lab_store() as made:
        yield made


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


class HandClock:
    """Stands until the test moves it."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def source(session: aiohttp.ClientSession, lab: LabStore, **changes: Any) -> PrometheusSource:
    return PrometheusSource(
        session, lab.url, {"http": PRESET}, **({"clock": SystemClock(), "scrape_interval_s": SCRAPE_S} | changes)
    )


async def many(lab: LabStore, n: int) -> list[WindowQuery]:
    """Windows of ``n`` services, whose canaries had 1, 2, 3, ... requests."""
    for i in range(n):
        lab.add("http_requests_total", 1, code="200", version="v1", instance="a", app=f"s{i}")
        lab.add("http_requests_total", 1, code="200", version="v2", instance="a", app=f"s{i}")
    start = await lab.scraped()
    for i in range(n):
        lab.add("http_requests_total", 100, code="200", version="v1", instance="a", app=f"s{i}")
        lab.add("http_requests_total", i + 1, code="200", version="v2", instance="a", app=f"s{i}")
    end = await lab.scraped()
    return [
        window(start, end, "errors", stable={"version": "v1", "app": f"s{i}"}, canary={"version": "v2", "app": f"s{i}"})
        for i in range(n)
    ]


EXPECTED = [FailureCounts(0, i + 1, 0, 100) for i in range(30)]


async def test_many_rollouts_share_one_question_and_get_their_own_counts(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    rows = await source(session, lab).collect(await many(lab, 30))
    assert [row[0].counts for row in rows] == EXPECTED
    assert len(lab.api.asked) == 1


async def test_a_question_that_was_too_much_is_halved_until_it_is_not(lab: LabStore) -> None:
    queries = await many(lab, 30)
    lab.api.huge_above_n = 20
    assert [row[0].counts for row in await read(lab, *queries)] == EXPECTED


async def test_an_answer_with_too_many_series_or_bytes_is_asked_for_in_parts(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    queries = await many(lab, 30)
    for bound in ({"max_series": 20}, {"max_answer_bytes": 3000}):
        rows = await source(session, lab, **bound).collect(queries)
        assert [row[0].counts for row in rows] == EXPECTED


async def test_one_rollout_with_too_many_series_blinds_only_itself(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    for code in range(50):
        lab.add("http_requests_total", 1, code=f"{code}", version="v2", instance="a", app="s3")
    rows = await source(session, lab, max_series=20).collect(await many(lab, 8))
    assert [row[0].counts for row in rows] == [EXPECTED[i] if i != 3 else None for i in range(8)]
    assert rows[3][0].availability is Availability.AWAY
    assert "more than the 20 allowed" in rows[3][0].detail


async def test_warnings_of_the_store_degrade_every_reading_also_of_what_seems_missing(lab: LabStore) -> None:
    start = await begun(lab)
    end = await lab.scraped()
    lab.api.warnings = ["shard 2 is down"]
    here, missing = await read(
        lab, window(start, end, "errors"), window(start, end, "errors", canary={"version": "v9"})
    )
    assert [here[0].availability, missing[0].availability] == [Availability.DEGRADED] * 2
    assert here[0].counts is None
    assert "shard 2 is down" in here[0].detail


async def test_a_store_that_does_not_answer_in_time_is_away(lab: LabStore, session: aiohttp.ClientSession) -> None:
    lab.api.slow = asyncio.Event()
    ((reading,),) = await source(session, lab, timeout_s=0.05).collect([window(0, 60, "errors")])
    lab.api.slow.set()
    assert reading.availability is Availability.AWAY
    assert "did not answer within 0.05 s" in reading.detail


async def test_no_more_questions_are_under_way_than_allowed(lab: LabStore, session: aiohttp.ClientSession) -> None:
    lab.api.slow = asyncio.Event()
    queries = [window(1000.0 * i, 1000.0 * i + 60, "errors") for i in range(10)]
    collecting = asyncio.create_task(source(session, lab, max_concurrent=3).collect(queries))
    while len(lab.api.asked) < 3:
        await asyncio.sleep(0)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(lab.api.asked) == 3
    lab.api.slow.set()
    await collecting
    assert len(lab.api.asked) == 10


async def test_a_collection_can_be_cancelled_and_repeated(lab: LabStore, session: aiohttp.ClientSession) -> None:
    queries = await many(lab, 3)
    one = source(session, lab)
    lab.api.slow = asyncio.Event()
    collecting = asyncio.create_task(one.collect(queries))
    while not lab.api.asked:
        await asyncio.sleep(0)
    collecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await collecting
    lab.api.slow = None
    assert [row[0].counts for row in await one.collect(queries)] == EXPECTED[:3]


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[" * 5000, b'{"status":"success","data":null}'])
async def test_what_is_no_prometheus_answer_is_away(lab: LabStore, body: bytes) -> None:
    lab.api.body = body
    ((reading,),) = await read(lab, window(0, 60, "errors"))
    assert reading.availability is Availability.AWAY
    assert "no Prometheus answer" in reading.detail


async def test_nothing_listening_is_away(lab: LabStore) -> None:
    await lab.api.stop()
    ((reading,),) = await read(lab, window(0, 60, "errors"))
    assert reading.availability is Availability.AWAY
    assert "does not answer" in reading.detail


async def test_a_label_that_cannot_be_asked_for_harms_no_other_rollout(lab: LabStore) -> None:
    (good,) = await many(lab, 1)
    bad, fine = await read(lab, window(0, 60, "errors", canary={"not a name": "x"}), good)
    assert bad[0].availability is Availability.NO_SERIES
    assert fine[0].counts == EXPECTED[0]


@pytest.mark.parametrize(
    ("credentials", "header"),
    [
        ({"token": SecretStr("secret")}, "Bearer secret"),
        ({"basic": ("user", SecretStr("pass:ü"))}, "Basic dXNlcjpwYXNzOsO8"),
    ],
)
async def test_credentials_are_sent_and_a_refusal_is_said_without_them(
    lab: LabStore, session: aiohttp.ClientSession, credentials: dict[str, Any], header: str
) -> None:
    lab.api.token = header
    assert await source(session, lab, **credentials).check() == "answers queries, version lab"
    lab.api.token = "something else"
    with pytest.raises(Refused, match=r"refuses the credentials \(401\)") as refused:
        await source(session, lab, **credentials).check()
    assert "secret" not in str(refused.value)
    ((reading,),) = await source(session, lab, **credentials).collect([window(0, 60, "errors")])
    assert reading.availability is Availability.AWAY


async def test_two_kinds_of_credentials_are_a_mistake(lab: LabStore, session: aiohttp.ClientSession) -> None:
    with pytest.raises(ValueError, match="not both"):
        source(session, lab, token=SecretStr("a"), basic=("b", SecretStr("c")))


async def test_a_check_tells_a_store_that_is_away_from_an_address_that_is_wrong(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    lab.api.away = True
    with pytest.raises(Unavailable, match="cannot be asked"):
        await source(session, lab).check()
    lab.api.away = False
    lab.api.body = b'{"status": "success", "data": {"resultType": "vector", "result": []}}'
    with pytest.raises(Refused, match="right address"):
        await source(session, lab).check()


class Elsewhere(Served):
    """Sends everybody to another address."""

    def __init__(self, to: str) -> None:
        super().__init__()
        self._to = to

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/api/v1/query", self._send)]

    async def _send(self, request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{self._to}{request.path}"})


async def test_credentials_do_not_follow_a_redirect(lab: LabStore, session: aiohttp.ClientSession) -> None:
    async with Elsewhere(lab.url) as elsewhere:
        one = PrometheusSource(
            session,
            elsewhere.url,
            {"http": PRESET},
            clock=SystemClock(),
            scrape_interval_s=SCRAPE_S,
            token=SecretStr("secret"),
        )
        ((reading,),) = await one.collect([window(0, 60, "errors")])
    assert reading.availability is Availability.AWAY
    assert "307" in reading.detail
    assert not lab.api.asked


async def test_the_lab_answers_get_as_it_answers_post(lab: LabStore, session: aiohttp.ClientSession) -> None:
    start = await begun(lab)
    question = {"query": 'http_requests_total{version="v1"}[60s]', "time": str(start)}
    async with session.get(f"{lab.url}/api/v1/query", params=question) as got:
        by_get = await got.json()
    async with session.post(f"{lab.url}/api/v1/query", data=question) as posted:
        assert await posted.json() == by_get
    assert by_get["data"]["result"][0]["values"][-1][1] == "100"


async def test_no_question_is_asked_for_no_window(lab: LabStore) -> None:
    assert await read(lab) == []
    assert not lab.api.asked


async def test_readings_come_in_the_order_of_the_metrics_that_were_asked(lab: LabStore) -> None:
    start = await begun(lab)
    serve(lab, "v1", 5)
    serve(lab, "v2", 5)
    end = await lab.scraped()
    (row,) = await read(lab, window(start, end, "predictions", "nope", "errors", "latency"))
    assert [reading.metric for reading in row] == ["predictions", "nope", "errors", "latency"]
    assert row[1] == Reading("nope", Availability.NO_SERIES, None, "preset 'http' has no metric 'nope'")


async def test_a_store_that_does_not_know_sums_is_asked_raw_and_spared_the_question_for_a_while(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    queries = await many(lab, 3)
    lab.api.no_sums = True
    clock = HandClock()
    one = source(session, lab, clock=clock, sum_above_n=0)
    asked = []
    for later_s in (0, 60, 600):
        clock.moment += timedelta(seconds=later_s)
        lab.api.asked.clear()
        assert [row[0].counts for row in await one.collect(queries)] == EXPECTED[:3]
        asked.append([text.startswith("sum ") for text in lab.api.asked])
    assert asked == [[True, False], [False], [True, False]]


async def test_a_store_that_keeps_failing_is_left_alone_and_tried_again_with_one_question(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    queries = await many(lab, 30)
    apart = [window(1000.0 * i, 1000.0 * i + 60, "errors") for i in range(10)]
    clock, outcomes = HandClock(), Counter[str]()
    one = source(session, lab, clock=clock, max_concurrent=1, asked=lambda outcome, _: outcomes.update([outcome]))
    lab.api.away = True
    lab.api.asked.clear()
    rows = await one.collect(apart)
    assert {row[0].availability for row in rows} == {Availability.AWAY}
    assert len(lab.api.asked) == FAILURES_TO_OPEN
    assert outcomes == {"away": FAILURES_TO_OPEN, "open": len(apart) - FAILURES_TO_OPEN}
    assert sum("not asked for a while" in row[0].detail and "503" in row[0].detail for row in rows) == outcomes["open"]
    clock.moment += timedelta(seconds=1)
    await one.collect(apart)
    assert len(lab.api.asked) == FAILURES_TO_OPEN + 1
    lab.api.away = False
    clock.moment += timedelta(seconds=2)
    assert [row[0].counts for row in await one.collect(queries)] == EXPECTED


async def test_questions_that_are_wrong_do_not_count_against_the_store(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    queries = await many(lab, 3)
    lab.api.huge_above_n = -1
    outcomes = Counter[str]()
    one = source(session, lab, max_concurrent=1, asked=lambda outcome, _: outcomes.update([outcome]))
    for _ in range(FAILURES_TO_OPEN):
        rows = await one.collect(queries)
    assert {row[0].availability for row in rows} == {Availability.AWAY}
    assert set(outcomes) == {"rejected"}
    lab.api.huge_above_n = None
    assert [row[0].counts for row in await one.collect(queries)] == EXPECTED[:3]


async def test_all_questions_of_a_collection_share_one_deadline(lab: LabStore, session: aiohttp.ClientSession) -> None:
    lab.api.slow = asyncio.Event()
    apart = [window(1000.0 * i, 1000.0 * i + 60, "errors") for i in range(40)]
    rows = await source(session, lab, timeout_s=0.05, max_concurrent=1).collect(apart)
    lab.api.slow.set()
    assert {row[0].availability for row in rows} == {Availability.AWAY}
    # One after the other, each would have had its own time-out; so most were never asked.
    assert len(lab.api.asked) <= COLLECT_TIMEOUTS + 1
    assert sum("for all questions that are asked together" in row[0].detail for row in rows) >= 37


async def test_a_window_that_the_stores_clock_has_not_reached_is_away_and_both_clocks_are_named(
    lab: LabStore, session: aiohttp.ClientSession
) -> None:
    outcomes = Counter[str]()
    one = source(session, lab, asked=lambda outcome, _: outcomes.update([outcome]))
    ahead_s = time.time() + 3600
    ((reading,),) = await one.collect([window(ahead_s - 60, ahead_s, "errors")])
    assert reading.availability is Availability.AWAY
    assert outcomes == {"early": 1}
    named = re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", reading.detail)
    end_s, store_s, own_s = (datetime.strptime(one, "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC) for one in named)
    assert end_s > store_s + timedelta(minutes=59)
    assert abs(own_s - store_s) < timedelta(minutes=1)


async def test_a_window_that_ended_a_moment_ago_is_not_taken_for_one_to_come(lab: LabStore) -> None:
    lab.now = time.time() - 3
    start = await begun(lab)
    serve(lab, "v1", 5)
    serve(lab, "v2", 4)
    end = await lab.scraped()
    ((reading,),) = await read(lab, window(start, end, "errors"))
    assert reading.counts == FailureCounts(0, 4, 0, 5)
