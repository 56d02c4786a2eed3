"""PagerDuty's side of the Events API, for the demo and tests: remembers what it is told, answers as it is told to."""

from __future__ import annotations

from collections import deque
from typing import Any

from aiohttp import web

from service.lab.server import Served


class PagerDutyApi(Served):
    """``events`` holds every accepted body with its path; ``answers`` are given first, one a call, as HTTP status."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.answers: deque[int] = deque()

    def routes(self) -> list[web.RouteDef]:
        """The two calls."""
        return [web.post("/v2/enqueue", self._take), web.post("/v2/change/enqueue", self._take)]

    async def _take(self, request: web.Request) -> web.Response:
        status = self.answers.popleft() if self.answers else 202
        if status != 202:
            return web.json_response({"status": "error", "message": "as told", "errors": ["as told"]}, status=status)
        body = await request.json()
        if len(body.get("routing_key", "")) != 32:
            errors = ["'routing_key' must be 32 characters"]
            return web.json_response({"status": "invalid event", "message": "bad", "errors": errors}, status=400)
        self.events.append((request.path, body))
        answer = {"status": "success", "message": "Event processed", "dedup_key": body.get("dedup_key", "")}
        return web.json_response(answer, status=202)

    @property
    def open_incidents(self) -> dict[str, dict[str, Any]]:
        """Triggered and not yet resolved, by dedup key."""
        out: dict[str, dict[str, Any]] = {}
        for path, body in self.events:
            if path == "/v2/enqueue" and body["event_action"] == "trigger":
                out[body["dedup_key"]] = body
            elif path == "/v2/enqueue" and body["event_action"] == "resolve":
                out.pop(body["dedup_key"], None)
        return out
