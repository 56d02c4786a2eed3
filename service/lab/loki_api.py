"""Loki's side of what Serinus asks: counts of lines, the index of streams, a line to read.

It takes exactly the questions that ``sources.logql`` writes, by Loki's documented HTTP API: nanoseconds, tenants by
X-Scope-OrgID, errors as plain text, a limit on series. So strictly that a name or a pattern that escaped its string is
an error and not another question.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import Any

import re2
from aiohttp import web

from service.lab.prometheus_api import Selector, read_selector
from service.lab.promql import BadQuery
from service.lab.server import Served

KEPT_LINES = 10_000
KEPT_QUERIES = 1000
MAX_SERIES = 500
"""As Loki's max_query_series: more groups than this are refused."""

_STRING = r'"(?:[^"\\\n]|\\.)*"'
_LINES = (
    rf"(?P<selector>\{{(?:[^\"{{}}]|{_STRING})*\}})(?: \|~ (?P<found>{_STRING}))?(?: \| regexp (?P<told>{_STRING}))?"
)
_COUNT = re.compile(
    rf"sum(?: by \((?P<by>[a-zA-Z_]\w*(?:,[a-zA-Z_]\w*)*)\))? "
    rf"\(count_over_time\({_LINES} \[(?P<n>\d+)(?P<unit>ms|s)\]\)\)",
    re.DOTALL,
)
_LOG = re.compile(_LINES, re.DOTALL)


class LokiApi(Served):
    """Keeps lines of streams. The switches play a store in trouble."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[tuple[tuple[str, str], ...], deque[tuple[int, str]]] = defaultdict(
            lambda: deque(maxlen=KEPT_LINES)
        )
        self.asked: deque[tuple[str, str]] = deque(maxlen=KEPT_QUERIES)
        """(path, query) of the latest questions."""
        self.tenant: str | None = None
        """When set, requests without this X-Scope-OrgID are answered as Loki does with 401."""
        self.away = False
        """Every request is answered with 503."""
        self.warnings: list[str] = []

    def write(self, line: str, *, at_s: float | None = None, **labels: str) -> None:
        """One line of a stream, now or at a moment of the test's choice."""
        at_ns = round((time.time() if at_s is None else at_s) * 1000) * 1_000_000
        self._streams[tuple(sorted(labels.items()))].append((at_ns, line))

    def routes(self) -> list[web.RouteDef]:
        """The four questions, by POST as Serinus asks."""
        return [
            web.post("/loki/api/v1/query", self._query),
            web.post("/loki/api/v1/query_range", self._range),
            web.post("/loki/api/v1/series", self._series),
            web.post("/loki/api/v1/labels", self._labels),
        ]

    async def _form(self, request: web.Request) -> Any:
        """The form; raises the answer of a store in trouble."""
        form = await request.post()
        asked = [str(form.get("query", "")), *(str(one) for one in form.getall("match[]", []))]
        self.asked.append((request.path, "".join(asked)))
        if self.away:
            raise web.HTTPServiceUnavailable(text="too many unhealthy instances in the ring")
        if self.tenant is not None and request.headers.get("X-Scope-OrgID") != self.tenant:
            raise web.HTTPUnauthorized(text="no org id")
        return form

    async def _query(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        try:
            result = self.counts(str(form["query"]), int(str(form["time"])))
        except (BadQuery, ValueError, KeyError, re2.error) as error:
            raise web.HTTPBadRequest(text=f"parse error : {error}") from None
        if len(result) > MAX_SERIES:
            raise web.HTTPBadRequest(text=f"maximum of series ({MAX_SERIES}) reached for a single query")
        return self._answer({"resultType": "vector", "result": result, "stats": {"summary": {}}})

    async def _range(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        found = _LOG.fullmatch(str(form["query"]))
        if found is None or found["told"]:
            raise web.HTTPBadRequest(text="parse error : the lab does not know this")
        start, end, limit = (int(str(form[name])) for name in ("start", "end", "limit"))
        listed: list[dict[str, object]] = []
        for labels, at_ns, line, _ in self._matching(found):
            if start <= at_ns < end and len(listed) < limit:
                listed.append({"stream": labels, "values": [[str(at_ns), line]]})
        return self._answer({"resultType": "streams", "result": listed, "stats": {}})

    async def _series(self, request: web.Request) -> web.Response:
        form = await self._form(request)
        start, end = int(str(form["start"])), int(str(form["end"]))
        selectors = [_selector(str(one)) for one in form.getall("match[]")]
        return self._answer(
            [
                dict(key)
                for key, listed in self._streams.items()
                if any(start <= at <= end for at, _ in listed) and any(one.takes(dict(key)) for one in selectors)
            ]
        )

    async def _labels(self, request: web.Request) -> web.Response:
        await self._form(request)
        return self._answer(sorted({name for key in self._streams for name, _ in key}))

    def _answer(self, data: object) -> web.Response:
        body = {"status": "success", "data": data} | ({"warnings": self.warnings} if self.warnings else {})
        return web.Response(text=json.dumps(body), content_type="application/json")

    def counts(self, text: str, at_ns: int) -> list[dict[str, object]]:
        """The groups that have lines; raises BadQuery."""
        found = _COUNT.fullmatch(text)
        if found is None:
            raise BadQuery(f"the lab does not know {text[:80]!r}")
        reach_ns = int(found["n"]) * (1_000_000 if found["unit"] == "ms" else 1_000_000_000)
        by = found["by"].split(",") if found["by"] else []
        groups: Counter[tuple[tuple[str, str], ...]] = Counter()
        for labels, line_ns, _, more in self._matching(found):
            if at_ns - reach_ns < line_ns <= at_ns:
                every = {**labels, **more}
                groups[tuple((name, every[name]) for name in by if every.get(name))] += 1
        return [{"metric": dict(key), "value": [at_ns / 1e9, str(n)]} for key, n in groups.items()]

    def _matching(self, found: re.Match[str]) -> list[tuple[Mapping[str, str], int, str, Mapping[str, str]]]:
        """(labels, nanoseconds, line, what the named groups hold) of every line that passes."""
        selector = _selector(found["selector"])
        passes = re2.compile(meant(found["found"])) if found["found"] else None
        told = re2.compile(meant(found["told"])) if found["told"] else None
        if told is not None and not told.groupindex:
            raise BadQuery("at least one named capture must be supplied")
        out: list[tuple[Mapping[str, str], int, str, Mapping[str, str]]] = []
        for key, listed in self._streams.items():
            labels = dict(key)
            for at_ns, line in listed if selector.takes(labels) else ():
                if passes is None or passes.search(line):
                    match = told.search(line) if told is not None else None
                    more = {name: text for name, text in match.groupdict().items() if text} if match else {}
                    out.append((labels, at_ns, line, more))
        return out


def _selector(text: str) -> Selector:
    if text == "{}":
        raise BadQuery("queries require at least one regexp or equality matcher that does not have an empty value")
    return read_selector(f"{text}[1s]")


def meant(literal: str) -> str:
    """What a Go string literal means; raises BadQuery for an escape that none may hold."""

    def one(found: re.Match[str]) -> str:
        if found[1]:
            return chr(int(found[1], 16))
        if found[2] not in 'n"\\':
            raise BadQuery(f"unknown escape {found[0]!r}")
        return "\n" if found[2] == "n" else found[2]

    return re.sub(r"\\(?:u([0-9a-f]{4})|(.))", one, literal[1:-1], flags=re.DOTALL)
