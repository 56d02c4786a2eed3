"""Prometheus' side of what Serinus asks: instant queries over counters that the lab keeps.

It scrapes by calling a function, at the clock's time or at a test's. It parses exactly the selectors that
``sources.promql`` writes, and so strictly that a name that escaped its string is an error and not another question.
Sums are worked out step by step (``lab.promql``); custom expressions are answered by their exact text. Held to the same
contract test as a real Prometheus (tests/contract/source).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from service.lab.promql import BadQuery, Range, evaluate
from service.lab.server import Served

Labels = Mapping[str, str]
Key = tuple[tuple[str, str], ...]
Scrape = Callable[[], Iterable[tuple[str, Labels, float]]]
"""Gives (name, labels, value) of every series now."""

KEPT_SAMPLES = 4000
KEPT_QUERIES = 1000

_SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?\{(.*)\}\[(\d+)s\]", re.DOTALL)
_MATCHER = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)(=~|=)"((?:[^"\\\n]|\\.)*)"', re.DOTALL)
_BUNDLED = re.compile(
    r"label_replace\(last_over_time\(\((.*?)\)\[1ms:1ms\] @ (\d+\.\d{3})\), "
    r'"([a-z_]+)", "(\d+)", "", ""\)',
    re.DOTALL,
)
_ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Selector:
    """A range selector as it was meant."""

    matchers: tuple[tuple[str, str, str], ...]
    """(label, ``=`` or ``=~``, value without its escapes); the metric's name is a matcher of ``__name__``."""
    seconds: int

    def takes(self, labels: Labels) -> bool:
        """Whether a series with these labels is selected; an absent label is an empty one."""
        return all(_takes(one, labels.get(one[0], "")) for one in self.matchers)

    def takes_name(self, name: str) -> bool:
        """Whether series of this name may be selected."""
        return all(_takes(one, name) for one in self.matchers if one[0] == "__name__")


def _takes(matcher: tuple[str, str, str], given: str) -> bool:
    _, sign, value = matcher
    return given == value if sign == "=" else re.fullmatch(value, given) is not None


def read_selector(text: str) -> Selector:
    """The selector that ``text`` is, wholly; raises BadQuery for anything else."""
    found = _SELECTOR.fullmatch(text)
    if found is None:
        raise BadQuery(f"the lab does not know {text[:80]!r}")
    matchers: list[tuple[str, str, str]] = [("__name__", "=", found[1])] if found[1] else []
    at, inside = 0, found[2]
    while at < len(inside):
        one = _MATCHER.match(inside, at)
        if one is None:
            raise BadQuery(f"not a matcher at {inside[at : at + 40]!r}")
        matchers.append((one[1], one[2], _unescaped(one[3])))
        at = one.end()
        if at < len(inside):
            if inside[at] != ",":
                raise BadQuery(f"matchers must be joined by commas, not by {inside[at : at + 20]!r}")
            at += 1
    return Selector(tuple(matchers), int(found[3]))


def _unescaped(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise BadQuery(f"unknown escape {found[0]!r}")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", one, text, flags=re.DOTALL)


def _number(value: float) -> str:
    """As Prometheus writes it."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else f"{value:.17g}"


class PrometheusApi(Served):
    """Keeps samples of what ``scrape`` gives. The switches play a store in trouble."""

    def __init__(self, scrape: Scrape) -> None:
        super().__init__()
        self._scrape = scrape
        self._samples: dict[str, dict[Key, deque[tuple[float, float]]]] = defaultdict(dict)
        self.expressions: dict[str, float | None] = {}
        """Answers to other expressions, by their exact text; None: no series."""
        self.asked: deque[str] = deque(maxlen=KEPT_QUERIES)
        """The texts of the latest queries."""
        self.away = False
        """Every request is answered with 503."""
        self.slow: asyncio.Event | None = None
        """When set, queries are only answered once this event is."""
        self.warnings: list[str] = []
        self.no_sums = False
        """Sums are answered with 400, as by a store that does not know what they are written in."""
        self.huge_above_n: int | None = None
        """Answers with more series than this are refused with 422, as Prometheus does beyond its limit on samples."""
        self.body: bytes | None = None
        """When set, these bytes are every answer."""
        self.token: str | None = None
        """When set, requests without ``Authorization: <this>`` are answered with 401."""

    def scrape(self, at_s: float | None = None) -> None:
        """Take a sample of every series, now or at a moment of the test's choice."""
        now = time.time() if at_s is None else at_s
        for name, labels, value in self._scrape():
            key = tuple(sorted(labels.items()))
            series = self._samples[name].setdefault(key, deque(maxlen=KEPT_SAMPLES))
            series.append((now, value))

    def routes(self) -> list[web.RouteDef]:
        """The two questions, the first by POST or GET."""
        return [
            web.post("/api/v1/query", self._query),
            web.get("/api/v1/query", self._query),
            web.get("/api/v1/status/buildinfo", self._build),
        ]

    async def _build(self, request: web.Request) -> web.Response:
        return self._trouble(request) or web.json_response({"status": "success", "data": {"version": "lab"}})

    def _trouble(self, request: web.Request) -> web.Response | None:
        if self.away:
            return web.Response(status=503, text="away")
        if self.token is not None and request.headers.get("Authorization") != self.token:
            return web.Response(status=401, text="Unauthorized")
        return None

    async def _query(self, request: web.Request) -> web.Response:
        form = await request.post() if request.method == "POST" else request.query
        self.asked.append(str(form.get("query", "")))
        if self.slow is not None:
            await self.slow.wait()
        trouble = self._trouble(request)
        if trouble is not None:
            return trouble
        if self.body is not None:
            return web.Response(body=self.body, content_type="application/json")
        try:
            text, at_s = str(form["query"]), float(str(form.get("time", time.time())))
            kind, result = self._answer_to(text, at_s)
        except (ValueError, KeyError) as error:
            return self._error(400, "bad_data", f"invalid parameter: {error}")
        if self.huge_above_n is not None and len(result) > self.huge_above_n:
            return self._error(422, "execution", "query processing would load too many samples into memory")
        body: dict[str, object] = {"status": "success", "data": {"resultType": kind, "result": result}}
        if self.warnings:
            body["warnings"] = self.warnings
        return web.json_response(body)

    def _answer_to(self, text: str, at_s: float) -> tuple[str, list[dict[str, object]]]:
        """(result type, result); raises BadQuery."""
        if text == "vector(1)" or text in self.expressions:
            return "vector", self._number(text, at_s, {})
        bundled = _BUNDLED.findall(text)
        if bundled:
            parts = [
                f'label_replace(last_over_time(({e})[1ms:1ms] @ {t}), "{k}", "{n}", "", "")' for e, t, k, n in bundled
            ]
            if " or ".join(parts) != text:
                raise BadQuery(f"the lab does not know {text[:80]!r}")
            return "vector", [one for e, _, k, n in bundled for one in self._number(e, at_s, {k: n})]
        if text.startswith(("sum ", "count ", "min ", "label_replace(")):
            if self.no_sums:
                raise BadQuery("parse error: unexpected identifier")
            found = evaluate(
                text,
                at_s,
                lambda selector, after_s, until_s: self._ranged(read_selector(f"{selector}[1s]"), after_s, until_s),
            )
            return "vector", [{"metric": labels, "value": [at_s, _number(value)]} for labels, value in found]
        selector = read_selector(text)
        ranged = self._ranged(selector, at_s - selector.seconds, at_s)
        return "matrix", [
            {"metric": labels, "values": [[at, _number(value)] for at, value in samples]} for labels, samples in ranged
        ]

    def _ranged(self, selector: Selector, after_s: float, until_s: float) -> Range:
        """Series that are selected and have samples in ``(after_s, until_s]``."""
        out: Range = []
        for name, listed in self._samples.items():
            for key, samples in listed.items() if selector.takes_name(name) else ():
                labels = {"__name__": name, **dict(key)}
                if selector.takes(labels):
                    inside = [(at, value) for at, value in samples if after_s < at <= until_s]
                    if inside:
                        out.append((labels, inside))
        return out

    def _number(self, text: str, at_s: float, labels: Labels) -> list[dict[str, object]]:
        value = 1.0 if text == "vector(1)" else self.expressions.get(text, ...)
        if value is ...:
            raise BadQuery(f"the lab does not know {text[:80]!r}")
        return [] if value is None else [{"metric": dict(labels), "value": [at_s, str(value)]}]

    def _error(self, status: int, kind: str, text: str) -> web.Response:
        return web.json_response({"status": "error", "errorType": kind, "error": text}, status=status)
