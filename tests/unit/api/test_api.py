"""The HTTP API on a real store: every route, both roles, and every error as a problem document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from openapi_schema_validator import OAS31Validator
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from service.api.app import OPERATIONS, Api, build_app, openapi_json
from service.api.auth import Auth, Role, Token
from service.api.health import Health
from service.model.catalog import Catalog
from service.ring.door import Door
from service.ring.ports import Unavailable
from service.storage.opening import open_store
from service.storage.store import SqlStore
from tests.contract.store.test_store import keep
from tests.stories import START, Story, lean

OPERATOR, VIEWER = "o" * 20, "v" * 20


class StillClock:
    """A minute after the story began."""

    def now(self) -> datetime:
        return START + timedelta(minutes=4)

    async def sleep(self, seconds: float) -> None: ...


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield opened
    await opened.close()


async def down() -> None:
    raise Unavailable("as told")


@pytest.fixture
async def http(store: SqlStore) -> AsyncIterator[TestClient[Any, Any]]:
    tokens = [
        Token(name="ana", role=Role.OPERATOR, token=SecretStr(OPERATOR)),
        Token(name="vic", role=Role.VIEWER, token=SecretStr(VIEWER)),
    ]
    clock = StillClock()
    door = Door(store, Catalog(), clock)
    api = Api(store, door, clock, auth=Auth(tokens), version="1")
    health = Health({"database": store.check, "bus": down})
    async with TestClient(TestServer(build_app(api, health, CollectorRegistry()))) as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def get(http: TestClient[Any, Any], path: str, token: str = VIEWER) -> tuple[int, Any]:
    async with http.get(path, headers=bearer(token)) as answer:
        return answer.status, await answer.json(content_type=None)


async def post(
    http: TestClient[Any, Any], path: str, body: Any, token: str = OPERATOR, **headers: str
) -> tuple[int, Any]:
    async with http.post(path, json=body, headers={**bearer(token), **headers}) as answer:
        return answer.status, await answer.json(content_type=None)


async def paused(store: SqlStore) -> Story:
    story = Story().progressing().window().window(**lean(14))
    await keep(store, story)
    return story


async def test_a_rollout_is_listed_and_shown_with_its_evidence(http: TestClient[Any, Any], store: SqlStore) -> None:
    story = await paused(store)
    status, body = await get(http, "/api/v1/rollouts?state=paused&q=tf-model")
    assert status == 200
    assert [row["id"] for row in body["rollouts"]] == [story.state.id]
    assert body["counts"] == {"paused": 1}
    status, view = await get(http, f"/api/v1/rollouts/{story.state.id}")
    assert (status, view["phase"], view["evidence"]) == (200, "paused", "14")
    assert {a["verb"] for a in view["actions"] if a["allowed"]} == {"resume", "advance", "promote", "rollback"}
    assert len(view["windows"]) == 2


async def test_the_journal_says_whether_its_chain_is_whole(http: TestClient[Any, Any], store: SqlStore) -> None:
    story = await paused(store)
    _, body = await get(http, f"/api/v1/rollouts/{story.state.id}/journal")
    assert body["intact"] is True
    assert [row["n"] for row in body["rows"]] == list(range(1, len(body["rows"]) + 1))


async def test_an_operator_rolls_back_and_the_journal_names_them(http: TestClient[Any, Any], store: SqlStore) -> None:
    story = await paused(store)
    status, body = await post(http, f"/api/v1/rollouts/{story.state.id}/rollback", {"reason": "seen it"})
    assert (status, body["rollout"]["phase"]) == (200, "rolling_back")
    rows = await store.journal(story.state.id)
    assert rows[-1].actor == "ana"


async def test_the_same_idempotency_key_has_the_effect_of_once(http: TestClient[Any, Any], store: SqlStore) -> None:
    story = await paused(store)
    path = f"/api/v1/rollouts/{story.state.id}/resume"
    one = await post(http, path, {"reason": "fine"}, **{"Idempotency-Key": "k1"})
    two = await post(http, path, {"reason": "fine"}, **{"Idempotency-Key": "k1"})
    assert one[0] == two[0] == 200
    assert one[1]["journal"] == two[1]["journal"]


async def test_what_the_rollout_does_not_allow_is_a_conflict_with_its_newer_state(
    http: TestClient[Any, Any], store: SqlStore
) -> None:
    story = await paused(store)
    status, problem = await post(http, f"/api/v1/rollouts/{story.state.id}/pause", {"reason": "x"})
    assert (status, problem["status"]) == (409, 409)
    assert problem["rollout"]["phase"] == "paused"
    assert "Nothing was changed" in problem["detail"]


@pytest.mark.parametrize("verb", ["pause", "resume", "advance", "promote"])
async def test_going_forward_needs_a_reason(http: TestClient[Any, Any], store: SqlStore, verb: str) -> None:
    story = await paused(store)
    status, problem = await post(http, f"/api/v1/rollouts/{story.state.id}/{verb}", {"reason": "  "})
    assert status == 400
    assert "needs a reason" in problem["detail"]


async def test_a_viewer_may_look_and_not_order_and_nobody_may_do_nothing(
    http: TestClient[Any, Any], store: SqlStore
) -> None:
    story = await paused(store)
    path = f"/api/v1/rollouts/{story.state.id}/rollback"
    assert (await post(http, path, {}, token=VIEWER))[0] == 403
    assert (await post(http, path, {}, token="x" * 20))[0] == 401
    assert (await get(http, "/api/v1/rollouts", token=""))[0] == 401


async def test_the_decision_always_has_every_key(http: TestClient[Any, Any], store: SqlStore) -> None:
    status, unknown = await get(http, "/api/v1/services/default/ml-serving/nobody/decision")
    assert (status, unknown["data"], unknown["decision"]) == (200, "none", "continue")
    await paused(store)
    status, known = await get(http, "/api/v1/services/default/ml-serving/tf-model-service/decision")
    assert (status, known["decision"], known["status"]) == (200, "pause", "RUNNING")
    assert set(known) == set(unknown)
    assert known["valid_until"]
    status, odd = await get(http, "/api/v1/services/Default/..%2F/x/decision")
    assert (status, odd["data"]) == (200, "none")


async def test_the_kill_switch_is_an_operators_and_keeps_its_reason(
    http: TestClient[Any, Any], store: SqlStore
) -> None:
    body = {"frozen": True, "reason": "storm"}
    for token, status in ((VIEWER, 403), (OPERATOR, 200)):
        async with http.put("/api/v1/kill-switch", json=body, headers=bearer(token)) as answer:
            assert answer.status == status
    _, seen = await get(http, "/api/v1/kill-switch")
    assert (seen["frozen"], seen["actor"], seen["reason"]) == (True, "ana", "storm")


async def test_readiness_says_which_part_is_not_and_liveness_asks_nobody(http: TestClient[Any, Any]) -> None:
    async with http.get("/livez") as answer:
        assert answer.status == 200
    async with http.get("/readyz?verbose") as answer:
        assert answer.status == 503
        assert await answer.text() == "[+] database: ok\n[-] bus: as told\nnot ready\n"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/v1/rollouts/r-nope", None, 404),
        ("GET", "/api/v1/rollouts/%27%20OR%201=1", None, 404),
        ("GET", "/nothing", None, 404),
        ("DELETE", "/api/v1/rollouts", None, 405),
        ("GET", "/api/v1/rollouts?state=happy", None, 400),
        ("GET", "/api/v1/rollouts?limit=0", None, 400),
        ("GET", "/api/v1/rollouts?active=perhaps", None, 400),
        ("POST", "/api/v1/rollouts/x/pause", b"{", 400),
        ("POST", "/api/v1/rollouts/x/pause", b'{"raeson": "x"}', 400),
        ("POST", "/api/v1/rollouts/x/pause", b"[" * 100_000, 413),
    ],
)
async def test_every_error_is_a_problem_document(
    http: TestClient[Any, Any], method: str, path: str, body: bytes | None, status: int
) -> None:
    async with http.request(method, path, data=body, headers=bearer(OPERATOR)) as answer:
        assert answer.status == status
        assert answer.content_type == "application/problem+json"
        assert (await answer.json(content_type=None))["status"] == status
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_store_that_is_away_is_503(http: TestClient[Any, Any], store: SqlStore) -> None:
    await store._engine.dispose()
    store._engine = store._engine.__class__(store._engine.sync_engine)
    async with store._engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE rollouts")
    assert (await get(http, "/api/v1/rollouts"))[0] == 503


async def test_the_document_describes_every_route_and_is_valid(http: TestClient[Any, Any]) -> None:
    _, body = await get(http, "/openapi.json")
    assert body == openapi_json("1")
    described = {(path, method) for path, ops in body["paths"].items() for method in ops}
    assert described == {(op.path, op.method.lower()) for op in OPERATIONS}
    for schema in body["components"]["schemas"].values():
        OAS31Validator.check_schema(schema)
