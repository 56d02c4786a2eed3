"""Health: a stuck loop fails liveness, an outage elsewhere never does, and a probe is answered whatever hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from service.api import health
from service.api.health import STUCK_AFTER_S, Check, Health
from service.app.heartbeats import Heartbeats
from service.ring.ports import Refused, Unavailable

Ask = Callable[[str], Any]


class Steady:
    """The machine's steady clock."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def down() -> None:
    raise Unavailable("cannot reach the database: connection refused; see whether it is up")


async def refused() -> None:
    raise Refused("not allowed")


async def fine() -> str:
    return "3 partitions are ours"


async def hangs() -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def ask() -> AsyncIterator[Callable[..., Any]]:
    clients: list[TestClient[Any, Any]] = []

    async def asked(made: Health, path: str) -> tuple[int, str]:
        app = web.Application()
        app.router.add_get("/livez", made.livez)
        app.router.add_get("/readyz", made.readyz)
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        async with client.get(path) as answer:
            return answer.status, await answer.text()

    yield asked
    for client in clients:
        await client.close()


async def test_liveness_fails_for_a_loop_that_stands_still_and_names_it(ask: Any) -> None:
    steady = Steady()
    beats = Heartbeats(steady)
    beats.turned("events")
    beats.turned("tick default 1")
    made = Health({}, silent_s=beats.silent_s)
    steady.now_s += STUCK_AFTER_S
    beats.turned("events")
    assert await ask(made, "/livez") == (200, "alive\n")
    steady.now_s += 1
    status, text = await ask(made, "/livez")
    assert status == 503
    assert text == "[-] loop tick default 1: has not gone round for 301 s: it is stuck, restart this replica\nstuck\n"


@pytest.mark.parametrize("check", [down, refused, hangs])
async def test_an_outage_elsewhere_fails_readiness_and_never_liveness(
    ask: Any, monkeypatch: pytest.MonkeyPatch, check: Check
) -> None:
    monkeypatch.setattr(health, "CHECK_S", 0.05)
    beats = Heartbeats(Steady())
    beats.turned("events")
    made = Health({"database": check}, silent_s=beats.silent_s)
    assert (await ask(made, "/livez"))[0] == 200
    assert (await ask(made, "/readyz"))[0] == 503


async def test_a_part_that_hangs_costs_its_own_line_and_not_the_answer(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_S", 0.05)
    beats = Heartbeats(Steady())
    beats.turned("events")
    made = Health({"one": hangs, "two": hangs, "event-bus": fine, "database": down}, silent_s=beats.silent_s)
    status, text = await ask(made, "/readyz?verbose")
    assert status == 503
    assert text.splitlines() == [
        "[-] one: no answer within 0.05 s",
        "[-] two: no answer within 0.05 s",
        "[+] event-bus: 3 partitions are ours",
        "[-] database: cannot reach the database: connection refused; see whether it is up",
        "[+] loop events: went round 0.0 s ago",
        "not ready",
    ]


async def test_while_stopping_it_is_alive_and_takes_no_more(ask: Any) -> None:
    made = Health({"event-bus": fine}, stopping=lambda: True)
    assert (await ask(made, "/livez"))[0] == 200
    status, text = await ask(made, "/readyz")
    assert status == 503
    assert "stopping" in text
