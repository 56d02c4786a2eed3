"""The pager's contract: PagerDuty's own schema, and what each answer means."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import jsonschema
import pytest
from pydantic import SecretStr

from service.alerts.pagerduty import CALLS_PER_MINUTE, NOTES_PER_MINUTE, PagerDutyPager, payload
from service.lab.pagerduty_api import PagerDutyApi
from service.model.instruction import Page, PageAction
from service.ring.ports import Refused, Unavailable
from tests.conformance import conformance
from tests.stories import Story, lean

KEY = "0123456789abcdef0123456789abcdef"


class StillClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 11, 24, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def pages() -> list[Page]:
    """Every page of a rollout that goes wrong in several ways."""
    story = (
        Story().progressing().window(**lean(14)).window(**lean(2)).window().window(harmful=True, **lean(300)).written()
    )
    return [o for step in story.steps for o in step.orders if isinstance(o, Page)]


@pytest.fixture
async def api() -> AsyncIterator[PagerDutyApi]:
    async with PagerDutyApi() as served:
        yield served


@pytest.fixture
async def pager(api: PagerDutyApi) -> AsyncIterator[PagerDutyPager]:
    async with aiohttp.ClientSession() as session:
        yield PagerDutyPager(session, SecretStr(KEY), StillClock(), url=api.url, client_url="https://serinus.example")


def test_every_payload_fits_the_official_schema() -> None:
    document = json.loads((conformance("pagerduty") / "events-v2.openapi.json").read_text())
    seen = set()
    for page in pages():
        path, body = payload(page, client_url="https://serinus.example")
        body["routing_key"] = KEY
        schema = document["paths"][path.removeprefix("/v2")]["post"]["requestBody"]["content"]["application/json"][
            "schema"
        ]
        jsonschema.validate(body, {**schema, "components": document.get("components", {})})
        seen.add(page.action)
    assert seen == set(PageAction)


async def test_a_trigger_and_its_resolve_carry_the_same_key(api: PagerDutyApi, pager: PagerDutyPager) -> None:
    for page in pages():
        await pager.send(page)
    actions = [(b["event_action"], b["dedup_key"].rsplit("/")[-1]) for p, b in api.events if p == "/v2/enqueue"]
    assert ("trigger", "rollback") in actions
    assert ("resolve", "rollback") in actions
    assert api.open_incidents == {}


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, Refused), (413, Refused), (429, Unavailable), (500, Unavailable), (503, Unavailable)],
)
async def test_each_answer_has_its_meaning(
    api: PagerDutyApi, pager: PagerDutyPager, status: int, error: type[Exception]
) -> None:
    api.answers.append(status)
    with pytest.raises(error) as raised:
        await pager.send(pages()[0])
    assert KEY not in str(raised.value)
    if isinstance(raised.value, Unavailable) and status == 429:
        assert raised.value.retry_after_s == 30


@pytest.mark.parametrize(
    ("status", "to_do"),
    [
        (302, "pagerduty.url and the proxy"),
        (401, "routing_key_file"),
        (403, "routing_key_file"),
        (404, "pagerduty.url"),
        (407, "proxy"),
        (418, "pagerduty.url and the proxy"),
    ],
)
async def test_an_answer_that_is_not_about_the_page_leaves_it_owed_and_says_what_to_do(
    api: PagerDutyApi, pager: PagerDutyPager, status: int, to_do: str
) -> None:
    api.answers.append(status)
    with pytest.raises(Unavailable, match=f"answers {status}.*stays owed.*{to_do}") as raised:
        await pager.send(pages()[0])
    assert KEY not in str(raised.value)
    await pager.send(pages()[0])
    assert len(api.events) == 1


async def test_no_answer_is_unavailable_and_never_shows_the_key(api: PagerDutyApi, pager: PagerDutyPager) -> None:
    await api.stop()
    with pytest.raises(Unavailable) as raised:
        await pager.send(pages()[0])
    assert KEY not in str(raised.value)
    assert KEY not in repr(vars(pager))


async def test_more_than_the_minutes_limit_waits_instead_of_locking_the_key(api: PagerDutyApi) -> None:
    clock = StillClock()
    async with aiohttp.ClientSession() as session:
        pager = PagerDutyPager(session, SecretStr(KEY), clock, url=api.url)
        page = next(page for page in pages() if page.action is PageAction.TRIGGER)
        for _ in range(CALLS_PER_MINUTE):
            await pager.send(page)
        with pytest.raises(Unavailable) as raised:
            await pager.send(page)
        assert raised.value.retry_after_s == pytest.approx(60)
        await clock.sleep(61)
        await pager.send(page)


async def test_notes_leave_most_of_the_minute_to_pages(api: PagerDutyApi) -> None:
    async with aiohttp.ClientSession() as session:
        pager = PagerDutyPager(session, SecretStr(KEY), StillClock(), url=api.url)
        note = next(page for page in pages() if page.action is PageAction.CHANGE)
        page = next(page for page in pages() if page.action is PageAction.TRIGGER)
        for _ in range(NOTES_PER_MINUTE):
            await pager.send(note)
        with pytest.raises(Unavailable) as raised:
            await pager.send(note)
        assert raised.value.retry_after_s == pytest.approx(60)
        for _ in range(CALLS_PER_MINUTE - NOTES_PER_MINUTE):
            await pager.send(page)


def test_a_summary_that_is_too_long_is_cut_and_stands_alone_at_its_beginning() -> None:
    page: Any = pages()[0]
    assert len(page.summary) <= 1024
    trigger = next(p for p in pages() if p.action is PageAction.TRIGGER)
    assert trigger.summary.startswith("tf-model-service: paused at 10 %, ")
