"""The HTTP application: one route table, from which the OpenAPI document is made as well."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.auth import Auth, Caller, Role
from service.api.health import Health
from service.api.openapi import Operation, document
from service.api.problems import Problem, as_problems
from service.model.journal import JournalEntry, first_broken_row
from service.model.names import RolloutId, ServiceKey
from service.model.rollout import Phase, RolloutState
from service.model.stimulus import Verb, WindowJudged
from service.ring.answer import PeoplesDoor
from service.ring.ports import Clock
from service.ring.store import KillSwitch, RolloutFilter, Store
from service.telling.view import DecisionDocument, RolloutView, RowView, decision_document, rollout_view, row_view

MAX_BODY_BYTES = 64 * 1024
WINDOWS_SHOWN = 240
LONGEST_PAGE = 200


class Order(BaseModel):
    """A person's order."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(default="", max_length=2000)
    on_behalf_of: str = Field(default="", max_length=200)
    """Who asked for it, where a tool orders in a person's name; kept as quoted data."""


class OrderTaken(BaseModel):
    """What came of an order."""

    sentence: str
    journal: int | None
    rollout: RowView


class RolloutList(BaseModel):
    """One page of rollouts."""

    rollouts: list[RowView]
    next_after: str | None
    counts: dict[Phase, int]


class JournalList(BaseModel):
    """A rollout's journal, and whether its chain of hashes is whole."""

    rows: list[JournalEntry]
    intact: bool
    first_broken: int | None


class WindowList(BaseModel):
    """The last judged windows, oldest first."""

    windows: list[WindowJudged]


class KillSwitchBody(BaseModel):
    """The kill switch as it stands, or as it is to be."""

    model_config = ConfigDict(extra="forbid")

    frozen: bool
    reason: str = Field(min_length=1, max_length=2000)


class KillSwitchView(BaseModel):
    """The kill switch as it stands."""

    frozen: bool
    actor: str
    reason: str
    at: str | None


class VersionView(BaseModel):
    """What runs."""

    version: str


REASON_NEEDED = frozenset({Verb.PAUSE, Verb.RESUME, Verb.ADVANCE, Verb.PROMOTE})

_LIST_QUERY = {
    "state": "phases, comma-separated",
    "active": "true or false",
    "cluster": "exact name",
    "ns": "exact namespace",
    "service": "exact name",
    "q": "part of service, namespace or version",
    "after": "cursor of the page before",
    "limit": "rows, at most 200",
}

OPERATIONS = (
    Operation("GET", "/api/v1/rollouts", "listRollouts", "Rollouts, newest first", RolloutList, query=_LIST_QUERY),
    Operation("GET", "/api/v1/rollouts/{id}", "getRollout", "Everything of one rollout", RolloutView),
    Operation("GET", "/api/v1/rollouts/{id}/windows", "listWindows", "Its judged windows", WindowList),
    Operation("GET", "/api/v1/rollouts/{id}/journal", "readJournal", "Its journal", JournalList),
    *(
        Operation(
            "POST",
            f"/api/v1/rollouts/{{id}}/{verb.value}",
            f"{verb.value}Rollout",
            f"Order: {verb.value}" + (" (a reason is required)" if verb in REASON_NEEDED else ""),
            OrderTaken,
            Order,
            Role.OPERATOR,
            conflicts=True,
        )
        for verb in Verb
    ),
    Operation(
        "GET",
        "/api/v1/services/{cluster}/{namespace}/{service}/decision",
        "getDecision",
        "The current decision, always 200",
        DecisionDocument,
    ),
    Operation("GET", "/api/v1/kill-switch", "getKillSwitch", "Whether all weights are frozen", KillSwitchView),
    Operation(
        "PUT",
        "/api/v1/kill-switch",
        "setKillSwitch",
        "Freeze or free all weights",
        KillSwitchView,
        KillSwitchBody,
        Role.OPERATOR,
    ),
    Operation("GET", "/version", "getVersion", "What runs", VersionView, role=None),
)
"""The route table."""

_Body = TypeVar("_Body", bound=BaseModel)


class Api:
    """The handlers."""

    def __init__(
        self,
        store: Store,
        door: PeoplesDoor,
        clock: Clock,
        *,
        auth: Auth,
        version: str,
    ) -> None:
        self._store = store
        self._door = door
        self._clock = clock
        self._auth = auth
        self._version = version
        self._document = json.dumps(document(OPERATIONS, version)).encode()

    def handlers(self) -> Mapping[str, Callable[[web.Request, Caller], Awaitable[web.Response]]]:
        """Handler by operation name."""
        return {
            "listRollouts": self._list,
            "getRollout": self._one,
            "listWindows": self._windows,
            "readJournal": self._journal,
            **{f"{verb.value}Rollout": self._order for verb in Verb},
            "getDecision": self._decision,
            "getKillSwitch": self._get_switch,
            "setKillSwitch": self._set_switch,
            "getVersion": self._get_version,
        }

    def guarded(self, operation: Operation) -> Callable[[web.Request], Awaitable[web.Response]]:
        """The operation's handler behind its role."""
        handler = self.handlers()[operation.name]

        async def handle(request: web.Request) -> web.Response:
            if operation.role is None:
                return await handler(request, Caller("anyone", Role.VIEWER))
            caller = self._auth.caller(request.headers.get("Authorization"))
            if caller is None:
                raise Problem(401, "Unauthorized", "send a bearer token: Authorization: Bearer <token>")
            if operation.role is Role.OPERATOR and caller.role is not Role.OPERATOR:
                raise Problem(403, "Forbidden", f"{caller.name} is a viewer; this needs an operator's token")
            return await handler(request, caller)

        return handle

    async def _list(self, request: web.Request, _: Caller) -> web.Response:
        query = request.query
        which = RolloutFilter(
            phases=_phases(query.get("state", "")),
            active=_flag(query.get("active")),
            cluster=query.get("cluster", "")[:253],
            namespace=query.get("ns", "")[:63],
            service=query.get("service", "")[:63],
            text=query.get("q", "")[:128],
        )
        limit = _number(query.get("limit", "50"), 1, LONGEST_PAGE)
        page = await self._store.rollouts(which, after=query.get("after"), limit=limit)
        rows = [row_view(state) for state in page.rollouts]
        return _json(RolloutList(rollouts=rows, next_after=page.next_after, counts=dict(page.counts)))

    async def _one(self, request: web.Request, _: Caller) -> web.Response:
        state = await self._state(request)
        journal = await self._store.journal(state.id, limit=50)
        windows = await self._store.windows(state.id, limit=WINDOWS_SHOWN)
        return _json(rollout_view(state, tuple(journal), tuple(windows), self._clock.now()))

    async def _windows(self, request: web.Request, _: Caller) -> web.Response:
        state = await self._state(request)
        return _json(WindowList(windows=list(await self._store.windows(state.id, limit=WINDOWS_SHOWN))))

    async def _journal(self, request: web.Request, _: Caller) -> web.Response:
        state = await self._state(request)
        rows = list(await self._store.journal(state.id, limit=10_000))
        broken = first_broken_row(rows)
        return _json(JournalList(rows=rows, intact=broken is None, first_broken=broken))

    async def _order(self, request: web.Request, caller: Caller) -> web.Response:
        verb = Verb(request.path.rsplit("/", 1)[-1])
        order = await _body(request, Order)
        if verb in REASON_NEEDED and not order.reason.strip():
            raise Problem(400, "Bad Request", f'{verb.value} needs a reason: send {{"reason": "..."}}')
        state = await self._state(request)
        key = request.headers.get("Idempotency-Key", "")[:200] or str(uuid.uuid4())
        actor = f"{caller.name} for {order.on_behalf_of}" if order.on_behalf_of else caller.name
        answer = await self._door.act(state.id, verb, actor=actor[:200], reason=order.reason, request_id=key)
        if not answer.accepted or answer.state is None:
            now = answer.state or state
            raise Problem(409, "Conflict", answer.reason, rollout=row_view(now).model_dump(mode="json"))
        entry = answer.entry.n if answer.entry else None
        return _json(OrderTaken(sentence=answer.reason, journal=entry, rollout=row_view(answer.state)))

    async def _decision(self, request: web.Request, _: Caller) -> web.Response:
        info = request.match_info
        app = f"{info['cluster']}/{info['namespace']}/{info['service']}"[:400]
        return _json(decision_document(await self._latest(info), app=app, now=self._clock.now()))

    async def _latest(self, info: Mapping[str, str]) -> RolloutState | None:
        """The service's running rollout, or its last one."""
        try:
            key = ServiceKey(cluster=info["cluster"], namespace=info["namespace"], name=info["service"])
        except ValidationError:
            return None
        running = (await self._store.active([key])).get(key)
        if running is not None:
            return running
        which = RolloutFilter(cluster=key.cluster, namespace=key.namespace, service=key.name)
        ended = (await self._store.rollouts(which, limit=1)).rollouts
        return ended[0] if ended else None

    async def _get_switch(self, _: web.Request, __: Caller) -> web.Response:
        return _json(_switch_view(await self._store.kill_switch()))

    async def _set_switch(self, request: web.Request, caller: Caller) -> web.Response:
        body = await _body(request, KillSwitchBody)
        switch = KillSwitch(body.frozen, caller.name, body.reason, self._clock.now())
        await self._store.set_kill_switch(switch)
        return _json(_switch_view(switch))

    async def _get_version(self, _: web.Request, __: Caller) -> web.Response:
        return _json(VersionView(version=self._version))

    async def openapi(self, _: web.Request) -> web.Response:
        """The document."""
        return web.Response(body=self._document, content_type="application/json")

    async def _state(self, request: web.Request) -> RolloutState:
        rollout = RolloutId(request.match_info["id"][:64])
        state = (await self._store.load([rollout])).get(rollout)
        if state is None:
            raise Problem(404, "Not Found", f"there is no rollout {rollout!r}; list them at /api/v1/rollouts")
        return state


def build_app(api: Api, health: Health, registry: CollectorRegistry) -> web.Application:
    """The application with all its routes."""
    app = web.Application(middlewares=[as_problems], client_max_size=MAX_BODY_BYTES)
    for operation in OPERATIONS:
        app.router.add_route(operation.method, operation.path, api.guarded(operation))
    app.router.add_get("/livez", health.livez)
    app.router.add_get("/readyz", health.readyz)
    app.router.add_get("/openapi.json", api.openapi)
    app.router.add_get("/metrics", make_aiohttp_handler(registry=registry))
    return app


def _json(model: BaseModel) -> web.Response:
    return web.Response(body=model.model_dump_json().encode(), content_type="application/json")


async def _body(request: web.Request, model: type[_Body]) -> _Body:
    raw = await request.read()
    try:
        return model.model_validate_json(raw or b"{}")
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(p) for p in f['loc']) or 'body'}: {f['msg']}"
            for f in error.errors(include_url=False, include_input=False)[:5]
        )
        raise Problem(400, "Bad Request", f"the body cannot be read: {faults}") from None


def _switch_view(switch: KillSwitch) -> KillSwitchView:
    at = switch.at.isoformat() if switch.at else None
    return KillSwitchView(frozen=switch.frozen, actor=switch.actor, reason=switch.reason, at=at)


def _phases(text: str) -> tuple[Phase, ...]:
    known = ", ".join(p.value for p in Phase)
    try:
        return tuple(Phase(part) for part in text.split(",") if part)
    except ValueError:
        raise Problem(400, "Bad Request", f"state={text[:80]!r} names no phase; known: {known}") from None


def _flag(text: str | None) -> bool | None:
    if text is None or text in ("true", "false"):
        return None if text is None else text == "true"
    raise Problem(400, "Bad Request", f"active={text[:20]!r} is neither true nor false")


def _number(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text[:9]) <= most:
        raise Problem(400, "Bad Request", f"limit={text[:20]!r} is no number from {least} to {most}")
    return int(text)


def openapi_json(version: str) -> dict[str, Any]:
    """The document, for the schemas folder."""
    return document(OPERATIONS, version)
