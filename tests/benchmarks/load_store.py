"""A metric store for load tests: real bytes for ten thousand rollouts, at a small part of one core.

It runs in a process of its own and speaks ``POST /api/v1/query`` on the wall clock: counters of the preset ``http``
(requests by code, latency buckets, predictions by class; labels job="model-N", version v1/v2, instance, pod by pod),
scraped on a grid. It understands the questions that ``service.sources`` writes, and answers them truly: by label
matchers, reach and evaluation time. What it may not do is spend the time of the cores that are being measured, so the
rollouts share ``PATTERNS`` histories of chance: an answer is rendered once a pattern and moment, and is then only
copied under each rollout's name.

    with LoadStore(rollouts=10_000, harmful=(7, 4711)) as store:
        ... store.url ... store.spent()

``python -m tests.benchmarks.load_store`` asks it as the service would for some minutes and prints what it costs.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import multiprocessing
import re
import resource
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

import aiohttp
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from service.lab.prometheus_api import Selector, read_selector
from service.lab.promql import BadQuery
from service.lab.server import Served
from service.lab.world import CLASSES, EDGES_S, SHARES
from service.sources import promql

ARMS = ("v1", "v2")
CODES = ("200", "503")
BOUNDS = (*(repr(edge) for edge in EDGES_S), "+Inf")
PATTERNS = 128
"""Different histories of chance; rollouts with the same number modulo this count the same, under their own names."""

PERIOD = 240
"""Scrapes after which a history repeats its steps (the counters grow on)."""

JOB, AT = b"model-\0", b"\1"
"""Stand in a rendered answer where a rollout's own name and the query's moment go."""

_SUMS = re.compile(
    r"sum by \(([\w, ]+)\) \(floor\(last_over_time\((.*?)\[(\d+)(m?s)\]\)\)\)"
    r".*? offset (\d+)(m?s).*count_over_time\(\2\[(\d+)(m?s)\]",
    re.DOTALL,
)
_JOB = re.compile(r"model-(\d+)")
_LITERALS = re.compile(r"(?:[^\\.+*?()|\[\]{}^$]|\\.)*")


@dataclass(frozen=True, slots=True)
class Load:
    """What is served."""

    rollouts: int
    pods: int = 1
    """Pods of each arm."""
    rate_per_s: float = 20.0
    """Requests a rollout, both arms together."""
    canary_share: float = 0.1
    failing: float = 0.005
    """Share of failures in a healthy arm."""
    harmful: tuple[int, ...] = ()
    """Rollouts whose candidate fails ten times as often and is half as slow again."""
    scrape_s: float = 15.0
    history_s: float = 3600.0
    """How far back the counters reach when the store starts."""
    seed: int = 5


class Histories:
    """Counters of every pattern as arrays: value of a series at any scrape, without a sample ever being stored."""

    def __init__(self, load: Load) -> None:
        rng = np.random.default_rng(load.seed)
        shape = (PATTERNS, load.pods, PERIOD)
        # By (name, arm or "bad"): [pattern, pod, scrape, series], summed up within one period.
        self._steps: dict[tuple[str, str], NDArray[np.int64]] = {}
        canary = load.canary_share
        for who, share, harm, slower in (
            ("v1", 1 - canary, 1.0, 1.0),
            ("v2", canary, 1.0, 1.0),
            ("bad", canary, 10, 1.5),
        ):
            total = rng.poisson(load.rate_per_s * load.scrape_s * share / load.pods, shape)
            failing = min(1.0, load.failing * harm)
            self._steps["http_requests_total", who] = rng.multinomial(total, [1 - failing, failing])
            # A bucket counts all that was as fast or faster.
            by_bucket = rng.multinomial(total, _latency_shares(0.04 * slower))
            self._steps["model_latency_seconds_bucket", who] = by_bucket.cumsum(axis=-1)
            self._steps["model_predictions_total", who] = rng.multinomial(total, SHARES)
        for key, steps in self._steps.items():
            self._steps[key] = steps.cumsum(axis=2)

    def values(self, name: str, who: str, pattern: int, pod: int, scrapes: NDArray[np.int64]) -> NDArray[np.int64]:
        """[scrape, series] of one pod."""
        steps = self._steps[name, who][pattern, pod]
        periods, at = np.divmod(scrapes, PERIOD)
        counted: NDArray[np.int64] = periods[:, None] * steps[-1] + steps[at]
        return counted


def _latency_shares(median_s: float) -> NDArray[np.float64]:
    """Shares of requests by bucket, log-normal."""
    from scipy.stats import lognorm

    below = lognorm.cdf(EDGES_S, s=0.6, scale=median_s)
    return np.diff([0.0, *below, 1.0])


LABELS: Mapping[str, tuple[str, Sequence[str]]] = {
    "http_requests_total": ("code", CODES),
    "model_latency_seconds_bucket": ("le", BOUNDS),
    "model_predictions_total": ("class", CLASSES),
}
"""The label that tells a pod's series of one metric apart, and its values."""


class LoadApi(Served):
    """The server inside the child process."""

    def __init__(self, load: Load) -> None:
        super().__init__()
        self._load = load
        self._histories = Histories(load)
        self._harmful = frozenset(load.harmful)
        # Values begin some way into their history, as those of processes that have run for a while.
        self._first = int((time.time() - load.history_s) // load.scrape_s)
        self._rendered = functools.lru_cache(maxsize=8192)(self._render)
        self._rendered_sums = functools.lru_cache(maxsize=8192)(self._render_sums)
        self.requests_n = 0
        self.sent_bytes = 0

    def routes(self) -> list[web.RouteDef]:
        """The one question, and the version for ``check``."""
        return [web.post("/api/v1/query", self._query), web.get("/api/v1/status/buildinfo", self._build)]

    async def _build(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "success", "data": {"version": "load"}})

    async def _query(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.requests_n += 1
        try:
            body = self._answer(str(form["query"]), float(str(form.get("time", time.time()))))
        except (ValueError, KeyError) as error:
            said = {"status": "error", "errorType": "bad_data", "error": f"invalid parameter: {error}"}
            return web.json_response(said, status=400)
        self.sent_bytes += len(body)
        return web.Response(body=body, content_type="application/json")

    def _answer(self, text: str, at_s: float) -> bytes:
        if text == "vector(1)":
            return (
                b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[%.3f,"1"]}]}}'
                % (at_s)
            )
        if text.startswith("sum "):
            return self._sums(text, at_s)
        selector = read_selector(text)

        def elements(name: str, pattern: int, bad: bool) -> bytes:
            first, last = self._scrapes(pattern, at_s - selector.seconds, at_s)
            return self._rendered(name, pattern, bad, _others(selector), first, last) if first <= last else b""

        return b'{"status":"success","data":{"resultType":"matrix","result":[%s]}}' % self._copied(selector, elements)

    def _sums(self, text: str, at_s: float) -> bytes:
        """The answer to ``promql.sums``; raises BadQuery for any other text."""
        found = _SUMS.match(text)
        if found is None:
            raise BadQuery(f"the load store does not know {text[:80]!r}")
        reach_s, length_s, fresh_s = (int(found[n]) / (1000 if found[n + 1] == "ms" else 1) for n in (3, 5, 7))
        selector = read_selector(f"{found[2]}[1s]")
        (name,) = (one for one in LABELS if selector.takes_name(one))
        by, keys = found[1].split(", "), ("job", "version")
        cells = LABELS[name][0] == "le"
        meant = promql.sums(
            found[2], keys=keys, by=by, reach_s=reach_s, length_s=length_s, fresh_s=fresh_s, cells=cells
        )
        if meant != text or by != sorted((*keys, LABELS[name][0])):
            raise BadQuery(f"the load store does not know {text[:80]!r}")

        def elements(name: str, pattern: int, bad: bool) -> bytes:
            first, last = self._scrapes(pattern, at_s - reach_s, at_s)
            _, before = self._scrapes(pattern, at_s - reach_s, at_s - length_s)
            fresh = self._scrapes(pattern, at_s - fresh_s, at_s)
            if not first <= before <= last:
                return b""
            sound = fresh[0] <= fresh[1]
            return self._rendered_sums(name, pattern, bad, _others(selector), before, last, sound).replace(
                AT, b"%.3f" % at_s
            )

        return b'{"status":"success","data":{"resultType":"vector","result":[%s]}}' % self._copied(selector, elements)

    def _copied(self, selector: Selector, elements: Callable[[str, int, bool], bytes]) -> bytes:
        """The elements of every rollout that is selected, each under its own name."""
        parts: list[bytes] = []
        for name in LABELS:
            for number in self._numbers(selector) if selector.takes_name(name) else ():
                rendered = elements(name, number % PATTERNS, number in self._harmful)
                if rendered:
                    parts.append(rendered.replace(JOB, b"model-%d" % number))
        return b",".join(parts)

    def _numbers(self, selector: Selector) -> Iterator[int]:
        """The rollouts that the matchers of ``job`` take."""
        on_job = [one for one in selector.matchers if one[0] == "job"]
        if len(on_job) != 1:
            raise BadQuery("the load store wants exactly one matcher of job")
        (_, sign, value) = on_job[0]
        if sign == "=":
            listed = [value]
        else:
            # What sources.promql writes: literals, joined. Trying N names against each alternation would cost seconds.
            listed = value.split("|")
            if not all(_LITERALS.fullmatch(one) for one in listed):
                raise BadQuery("the load store wants an alternation of literals for job")
            listed = [re.sub(r"\\(.)", r"\1", one) for one in listed]
        for one in dict.fromkeys(listed):
            found = _JOB.fullmatch(one)
            if found is not None and int(found[1]) < self._load.rollouts and one == f"model-{int(found[1])}":
                yield int(found[1])

    def _scrapes(self, pattern: int, after_s: float, until_s: float) -> tuple[int, int]:
        """First and last scrape with ``after_s < time <= until_s`` that has been; none when the first is later."""
        every_s, offset_s = self._load.scrape_s, self._offset_s(pattern)
        last = int((min(until_s, time.time()) - offset_s) // every_s)
        return max(self._first, int((after_s - offset_s) // every_s) + 1), last

    def _offset_s(self, pattern: int) -> float:
        """Real stores spread their targets over the interval; so does this one, by pattern."""
        return round(self._load.scrape_s * pattern / PATTERNS, 3)

    def _render(
        self,
        name: str,
        pattern: int,
        bad: bool,
        others: tuple[tuple[str, str, str], ...],
        first: int,
        last: int,
    ) -> bytes:
        """The elements of one rollout's series of one name, with ``JOB`` for its name."""
        label, values = LABELS[name]
        scrapes = np.arange(first, last + 1)
        times = [b'[%.3f,"' % (k * self._load.scrape_s + self._offset_s(pattern)) for k in scrapes.tolist()]
        matcher = Selector(others, 1)
        out: list[bytes] = []
        for arm in ARMS:
            who = "bad" if bad and arm == "v2" else arm
            for pod in range(self._load.pods):
                counted = self._histories.values(name, who, pattern, pod, scrapes - self._first).T.tolist()
                for value, row in zip(values, counted, strict=True):
                    labels = {"version": arm, label: value, "instance": f"{JOB.decode()}-{arm}-{pod}:8080"}
                    if not matcher.takes(labels):
                        continue
                    samples = b",".join(at + b'%d"]' % count for at, count in zip(times, row, strict=True))
                    out.append(
                        b'{"metric":{"__name__":"%s","job":"%s","%s":"%s","version":"%s","instance":"%s"},"values":[%s]}'
                        % (
                            name.encode(),
                            JOB,
                            label.encode(),
                            value.encode(),
                            arm.encode(),
                            labels["instance"].encode(),
                            samples,
                        )
                    )
        return b",".join(out)

    def _render_sums(
        self,
        name: str,
        pattern: int,
        bad: bool,
        others: tuple[tuple[str, str, str], ...],
        before: int,
        last: int,
        sound: bool,
    ) -> bytes:
        """The elements of one rollout's sums of one name."""
        label, values = LABELS[name]
        scrapes = np.array([before, last]) - self._first
        matcher = Selector(others, 1)
        out: list[bytes] = []
        for arm in ARMS:
            who = "bad" if bad and arm == "v2" else arm
            pods = range(self._load.pods)
            grown = sum(np.diff(self._histories.values(name, who, pattern, pod, scrapes), axis=0)[0] for pod in pods)
            taken = [
                (value, int(n))
                for value, n in zip(values, np.asarray(grown), strict=True)
                if matcher.takes({"version": arm, label: value})
            ]
            head = b'{"metric":{"job":"%s","version":"%s",' % (JOB, arm.encode())
            tail = b'"},"value":[%s,"%d"]}'
            out += (head + b'"%s":"%s' % (label.encode(), v.encode()) + tail % (AT, n) for v, n in taken)
            if taken and sound:
                n = len(taken) * (1 if label == "le" else self._load.pods)
                out.append(head + b'"%s":"%s' % (promql.ASK_LABEL.encode(), promql.SOUND.encode()) + tail % (AT, n))
        return b",".join(out)


def _others(selector: Selector) -> tuple[tuple[str, str, str], ...]:
    """The matchers that a rollout's number and the metric's name do not answer."""
    return tuple(one for one in selector.matchers if one[0] not in ("job", "__name__"))


@dataclass(frozen=True, slots=True)
class Spent:
    """What the store's process has used since its start."""

    cpu_s: float
    requests_n: int
    sent_bytes: int


class LoadStore:
    """The store as a child process, from ``start`` to ``stop`` or as a context."""

    def __init__(self, rollouts: int, *, harmful: Collection[int] = (), **changes: float) -> None:
        """``changes`` are further fields of Load."""
        self.load = Load(rollouts, harmful=tuple(harmful), **changes)  # type: ignore[arg-type]  # pods and seed are int
        self.url = ""
        self._process: multiprocessing.process.BaseProcess | None = None
        self._ours: Connection | None = None

    def start(self) -> Self:
        """Returns once it answers at ``url``."""
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.load), daemon=True)
        self._process.start()
        self.url = self._ours.recv()
        return self

    def spent(self) -> Spent:
        """Asked of the process itself."""
        assert self._ours is not None
        self._ours.send("spent")
        spent: Spent = self._ours.recv()
        return spent

    def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._ours is not None:
            self._ours.send("end")
            self._process.join(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _serve(told: Connection, load: Load) -> None:
    asyncio.run(_served(told, load))


async def _served(told: Connection, load: Load) -> None:
    async with LoadApi(load) as api:
        told.send(api.url)
        while await asyncio.to_thread(_heard, told) == "spent":
            used = resource.getrusage(resource.RUSAGE_SELF)
            told.send(Spent(used.ru_utime + used.ru_stime, api.requests_n, api.sent_bytes))


def _heard(told: Connection) -> str:
    """What the parent says; its death is an end."""
    try:
        return str(told.recv())
    except EOFError:
        return "end"


async def measure(store: LoadStore, minutes: int, per_query: int, reach_s: int) -> None:
    """Ask for everything once a minute, evenly spread, and print what the store spent on it."""
    load = store.load
    async with aiohttp.ClientSession() as session:
        for minute in range(minutes):
            before, began = store.spent(), time.time()
            asked = [(name, first) for first in range(0, load.rollouts, per_query) for name in LABELS]
            for place, (name, first) in enumerate(asked):
                await asyncio.sleep(max(0.0, began + 60.0 * place / len(asked) - time.time()))
                jobs = "|".join(rf"model\\-{n}" for n in range(first, min(first + per_query, load.rollouts)))
                text = f'{name}{{job=~"{jobs}",version=~"v1|v2"}}[{reach_s}s]'
                form = {"query": text, "time": f"{time.time():.3f}"}
                async with session.post(f"{store.url}/api/v1/query", data=form) as response:
                    response.raise_for_status()
                    await response.read()
            after = store.spent()
            cpu_s, sent = after.cpu_s - before.cpu_s, after.sent_bytes - before.sent_bytes
            print(
                f"minute {minute + 1}: {after.requests_n - before.requests_n} requests, {sent / 1e6:.0f} MB, "
                f"{sent / load.rollouts:.0f} bytes a rollout; CPU {cpu_s:.2f} s = {100 * cpu_s / 60:.1f} % of a core",
                flush=True,
            )


def main() -> None:
    """Read the arguments, start the store, ask it, end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--pods", type=int, default=1)
    parser.add_argument("--per-query", type=int, default=50)
    parser.add_argument("--minutes", type=int, default=1)
    given = parser.parse_args()
    with LoadStore(given.rollouts, pods=given.pods) as store:
        print(f"{given.rollouts} rollouts, {len(LABELS)} metrics, {given.pods} pods an arm, at {store.url}")
        asyncio.run(measure(store, given.minutes, given.per_query, 135))


if __name__ == "__main__":
    main()
