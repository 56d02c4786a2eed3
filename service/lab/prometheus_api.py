"""Prometheus' side of what Serinus asks: instant queries of range selectors over counters that the lab keeps.

It scrapes by calling a function, and parses exactly the selectors that ``sources.promql`` writes. Held to the same
contract test as a real Prometheus (tests/contract/source).
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from operator import eq as operator_eq

from aiohttp import web

from service.lab.server import Served

Labels = Mapping[str, str]
Scrape = Callable[[], Iterable[tuple[str, Labels, float]]]
"""Gives (name, labels, value) of every series now."""

_SELECTOR = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\}\[(\d+)s\]$", re.DOTALL)
_MATCHER = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)(=~|=)"((?:[^"\\]|\\.)*)"(?:,|$)', re.DOTALL)
KEPT_SAMPLES = 4000


class PrometheusApi(Served):
    """Keeps samples of what ``scrape`` gives. ``away`` and ``warnings`` play a store in trouble."""

    def __init__(self, scrape: Scrape) -> None:
        super().__init__()
        self._scrape = scrape
        self._samples: dict[str, dict[tuple[tuple[str, str], ...], deque[tuple[float, float]]]] = defaultdict(dict)
        self.expressions: dict[str, float | None] = {}
        """Answers to other expressions, by their exact text; None: no series."""
        self.away = False
        self.warnings: list[str] = []

    def scrape(self, at_s: float | None = None) -> None:
        """Take a sample of every series, now or at a moment of the test's choice."""
        now = time.time() if at_s is None else at_s
        for name, labels, value in self._scrape():
            key = tuple(sorted(labels.items()))
            series = self._samples[name].setdefault(key, deque(maxlen=KEPT_SAMPLES))
            series.append((now, value))

    def routes(self) -> list[web.RouteDef]:
        """The two questions."""
        return [web.post("/api/v1/query", self._query), web.get("/api/v1/status/buildinfo", self._build)]

    async def _build(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": {"version": "lab"}})

    async def _query(self, request: web.Request) -> web.Response:
        if self.away:
            return web.Response(status=503, text="away")
        form = await request.post()
        text, at_s = str(form["query"]), float(str(form.get("time", time.time())))
        if text == "vector(1)":
            return self._answer("vector", [{"metric": {}, "value": [at_s, "1"]}])
        if text in self.expressions:
            value = self.expressions[text]
            return self._answer("vector", [] if value is None else [{"metric": {}, "value": [at_s, str(value)]}])
        parsed = _SELECTOR.match(text)
        if parsed is None:
            body = {"status": "error", "errorType": "bad_data", "error": f"the lab does not know {text[:80]!r}"}
            return web.json_response(body, status=400)
        name, matchers, seconds = parsed[1], _matchers(parsed[2]), int(parsed[3])
        result: list[dict[str, object]] = []
        for key, samples in self._samples.get(name, {}).items():
            labels: dict[str, str] = dict(key)
            if all(check(labels.get(label, "")) for label, check in matchers):
                values = [[at, repr(value)] for at, value in samples if at_s - seconds < at <= at_s]
                if values:
                    result.append({"metric": {"__name__": name, **labels}, "values": values})
        return self._answer("matrix", result)

    def _answer(self, kind: str, result: list[dict[str, object]]) -> web.Response:
        body: dict[str, object] = {"status": "success", "data": {"resultType": kind, "result": result}}
        if self.warnings:
            body["warnings"] = self.warnings
        return web.json_response(body)


def _matchers(text: str) -> list[tuple[str, Callable[[str], bool]]]:
    """Checks by label; raises ValueError for anything that is not exactly a list of matchers."""
    out: list[tuple[str, Callable[[str], bool]]] = []
    at = 0
    while at < len(text):
        found = _MATCHER.match(text, at)
        if found is None:
            raise ValueError(f"not a matcher at {text[at : at + 40]!r}")
        label, operator = found[1], found[2]
        value = json.loads(f'"{found[3]}"') if "\\" in found[3] else found[3]
        if operator == "=":
            out.append((label, functools.partial(operator_eq, value)))
        else:
            out.append((label, functools.partial(_matches, re.compile(value))))
        at = found.end()
    return out


def _matches(pattern: re.Pattern[str], given: str) -> bool:
    return pattern.fullmatch(given) is not None
