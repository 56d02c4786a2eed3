"""Model servers on loopback in the three protocols, with what goes wrong at one in the test's hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Model:
    """y = 2x + 1 with a softmax over three classes beside it, in every protocol. Small enough to check by eye."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.url = ""
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.ready_after_n = 0
        """Questions for readiness that are answered with no first."""
        self.of_kserve = False
        """Says of its status in the v1 protocol what KServe does."""
        self.odd: dict[int, Handler] = {}
        """Handlers of predictions by their number, from 0; -1: of all."""
        self.under_way = 0
        self.under_way_most = 0

    def answer(self, x: float) -> tuple[list[float], int]:
        """(scores, label)"""
        logits = [x * self.scale, 1.0, -x]
        return logits, max(range(3), key=lambda i: logits[i])

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        if request.method == "GET" and not request.path.startswith("/score"):
            return self._status(request)
        number = len(self.asked)
        body = await request.read()
        self.asked.append((request.path_qs, body, dict(request.headers)))
        self.under_way += 1
        self.under_way_most = max(self.under_way_most, self.under_way)
        try:
            await asyncio.sleep(0)
            handler = self.odd.get(number, self.odd.get(-1, self._predict))
            return await handler(request)
        finally:
            self.under_way -= 1

    def _status(self, request: web.Request) -> web.Response:
        ready = self.ready_after_n <= 0
        self.ready_after_n -= 1
        if request.path == "/v1/models/ranker" and self.of_kserve:
            return web.json_response({"name": "ranker", "ready": ready})
        if request.path.startswith("/v1/models/ranker"):
            state = "AVAILABLE" if ready else "LOADING"
            return web.json_response({"model_version_status": [{"version": "1", "state": state, "status": {}}]})
        if request.path == "/v2/models/ranker/ready":
            return web.json_response({"name": "ranker", "ready": ready}, status=200 if ready else 400)
        return web.json_response({"detail": "nothing here"}, status=404)

    async def _predict(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read() or "{}")
        path = request.path
        if path == "/v1/models/ranker:predict":
            rows = [self.answer(x) for x in body["instances"]]
            given: object = {"predictions": [{"scores": scores, "label": label} for scores, label in rows]}
        elif path == "/v1/models/ranker:classify":
            rows = [self.answer(one["x"]) for one in body["examples"]]
            given = {"results": [[[name, s] for name, s in zip("abc", scores, strict=True)] for scores, _ in rows]}
        elif path == "/v1/models/ranker:regress":
            given = {"results": [self.answer(one["x"])[0][0] for one in body["examples"]]}
        elif path == "/v2/models/ranker/infer":
            xs = body["inputs"][0]["data"]
            rows = [self.answer(x) for x in xs]
            flat = [s for scores, _ in rows for s in scores]
            given = {"model_name": "ranker", "outputs": [
                {"name": "scores", "shape": [len(xs), 3], "datatype": "FP32", "data": flat},
                {"name": "label", "shape": [len(xs)], "datatype": "INT64", "data": [label for _, label in rows]},
            ]}  # fmt: skip
        elif path == "/score":
            scores, label = self.answer(body["x"] if body else float(request.query["x"]))
            given = {"result": {"scores": scores, "label": "abc"[label]}}
        else:
            return web.json_response({"error": f"Malformed request: POST {path}"}, status=400)
        return web.json_response(given)


@asynccontextmanager
async def serving(*models: Model) -> AsyncIterator[None]:
    """Give each model an address of its own."""
    runners = []
    for model in models:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", model.serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        model.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)
    try:
        yield
    finally:
        for runner in runners:
            await runner.cleanup()
