"""Sums that the store makes say exactly what raw samples say, whatever happens to pods and series. On the lab's store,
and on a real Prometheus whose blocks are written from the same samples."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from service.app.clock import SystemClock
from service.lab.prometheus_api import PrometheusApi
from service.model.names import RolloutId
from service.model.observation import Availability, Reading, WindowQuery
from service.sources.prometheus import PrometheusSource
from tests.contract.source.stores import NEVER, PRESET
from tests.real.parts.building import prometheus
from tests.real.parts.prometheus import PrometheusServer
from tests.stories import place

BEGAN_S = 1_700_000_000.0
SCRAPE_S = 15.0
SCRAPES = 24
METRICS = ("errors", "latency", "predictions")
BOUNDS = ("0.1", "0.5", "1.0", "+Inf")
OTHER_BOUNDS = (("0.1", "0.25", "1.0", "+Inf"), ("0.1", "0.5", "1", "+Inf"), ("0.1", "0.5", "1.0"))

TROUBLES = (
    "quiet",
    "quiet",
    "restarts",
    "new pods",
    "vanished pods",
    "missed scrapes",
    "late codes",
    "odd values",
    "other bounds",
    "overtaking buckets",
    "everything",
)

Labels = tuple[tuple[str, str], ...]
Samples = dict[float, list[tuple[str, Labels, float]]]
"""By their moment: (name, labels, value)."""


def world(seed: int, services: int = 2 * len(TROUBLES)) -> Samples:
    """Counters of many services, each in one kind of trouble for some of the time."""
    rng = np.random.default_rng(seed)
    out: Samples = defaultdict(list)
    for n in range(services):
        trouble = TROUBLES[n % len(TROUBLES)]
        has = {kind: trouble in (kind, "everything") for kind in TROUBLES}
        for version in ("v1", "v2"):
            for pod in range(int(rng.integers(1, 4))):
                who = {"job": f"s{n}", "version": version, "instance": f"{version}-{pod}"}
                _pod(out, rng, who, has)
    return out


def _pod(out: Samples, rng: np.random.Generator, who: Mapping[str, str], has: Mapping[str, bool]) -> None:
    born = int(rng.integers(0, SCRAPES)) if has["new pods"] and rng.random() < 0.5 else 0
    died = int(rng.integers(born, SCRAPES)) if has["vanished pods"] and rng.random() < 0.5 else SCRAPES
    late = int(rng.integers(0, SCRAPES)) if has["late codes"] else 0
    bounds = OTHER_BOUNDS[rng.integers(3)] if has["other bounds"] and rng.random() < 0.4 else BOUNDS
    offset_s = int(rng.integers(0, 15_000)) / 1000
    codes, buckets, classes = np.zeros(2), np.zeros(len(bounds)), np.zeros(2)
    below_zero = int(rng.integers(1, SCRAPES)) if has["odd values"] and rng.random() < 0.2 else 0
    away_until = 0
    for k in range(born, died):
        if has["restarts"] and rng.random() < 0.05:
            codes, buckets, classes = np.zeros(2), np.zeros(len(bounds)), np.zeros(2)
        n = int(rng.integers(0, 9))
        codes += rng.multinomial(n, [0.8, 0.2])
        buckets += rng.multinomial(n, np.full(len(bounds), 1 / len(bounds))).cumsum()
        classes += rng.multinomial(n, [0.5, 0.5])
        if has["missed scrapes"] and rng.random() < 0.1:
            away_until = k + int(rng.integers(1, 8))
        if k < away_until:
            continue
        at = round(BEGAN_S + k * SCRAPE_S + offset_s, 3)
        odd = (
            -1000.0
            if k < below_zero
            else rng.choice([np.nan, np.inf, -1000.0, 0.5])
            if has["odd values"] and rng.random() < 0.1
            else 0.0
        )
        ahead = float(rng.integers(0, 3)) if has["overtaking buckets"] and rng.random() < 0.2 else 0.0
        rows = [("http_requests_total", {"code": "200"}, codes[0] + odd)]
        if k >= late:
            rows.append(("http_requests_total", {"code": "503"}, codes[1]))
        rows += [("model_latency_seconds_bucket", {"le": le}, b) for le, b in zip(bounds, buckets, strict=True)]
        rows[-len(bounds)] = (*rows[-len(bounds)][:2], buckets[0] + ahead)
        rows += [("model_predictions_total", {"class": c}, v) for c, v in zip(("cat", "dog"), classes, strict=True)]
        out[at] += [(name, tuple(sorted({**who, **more}.items())), float(value)) for name, more, value in rows]


def windows(seed: int, services: int = 2 * len(TROUBLES)) -> list[list[WindowQuery]]:
    """Lists of windows that are alike, some with edges between whole seconds."""
    rng = np.random.default_rng([seed, 1])
    out = []
    for length_s in (60.0, 60.0, 45.5, 120.0, 7.125):
        start_s = BEGAN_S + float(rng.integers(30, 250)) + (0.25 if length_s % 1 else 0.0)
        out.append([_window(n, start_s, start_s + length_s) for n in range(services)])
    return out


def _window(n: int, start_s: float, end_s: float) -> WindowQuery:
    labels = {f"{arm}_labels": {"job": f"s{n}", "version": v} for arm, v in (("stable", "v1"), ("canary", "v2"))}
    return WindowQuery(RolloutId(f"r{n}"), "default", place(**labels), METRICS, start_s, end_s)


@asynccontextmanager
async def lab(samples: Samples, _: Path) -> AsyncIterator[str]:
    """The lab's store with these samples in it."""
    rows: list[tuple[str, Mapping[str, str], float]] = []
    api = PrometheusApi(lambda: rows)
    for at in sorted(samples):
        rows = [(name, dict(labels), value) for name, labels, value in samples[at]]
        api.scrape(at)
    async with api:
        yield api.url


@asynccontextmanager
async def real(samples: Samples, folder: Path) -> AsyncIterator[str]:
    """A real Prometheus with these samples in it."""
    lines = [
        f"{name}{{{_openmetrics_labels(labels)}}} {_openmetrics(value)} {at:.3f}"
        for at in sorted(samples)
        for name, labels, value in samples[at]
    ]
    text = folder / "samples.om"
    text.write_text("\n".join([*lines, "# EOF", ""]))
    binary = prometheus()
    tool = [str(binary.with_name("promtool")), "tsdb", "create-blocks-from", "openmetrics", text, folder / "data"]
    await asyncio.to_thread(subprocess.run, tool, check=True, stdout=subprocess.DEVNULL)
    server = PrometheusServer(binary, folder, {}, arguments=("--storage.tsdb.retention.time=100y",))
    try:
        await asyncio.to_thread(server.start)
        yield server.url
    finally:
        await asyncio.to_thread(server.stop)


def _openmetrics_labels(labels: Labels) -> str:
    return ",".join(f'{k}="{v}"' for k, v in labels)


def _openmetrics(value: float) -> str:
    return {"inf": "+Inf", "nan": "NaN"}.get(str(value), f"{value:g}")


async def ask(
    session: aiohttp.ClientSession, url: str, queries: list[WindowQuery], *, sums: bool
) -> tuple[list[list[Reading]], Counter[str]]:
    """The readings, and how the questions went."""
    outcomes: Counter[str] = Counter()
    source = PrometheusSource(
        session,
        url,
        {"http": PRESET},
        clock=SystemClock(),
        scrape_interval_s=SCRAPE_S,
        sum_above_n=0 if sums else NEVER,
        asked=lambda outcome, _: outcomes.update([outcome]),
    )
    return [list(row) for row in await source.collect(queries)], outcomes


@pytest.mark.parametrize(("store", "seeds"), [(lab, range(8)), pytest.param(real, range(4), marks=pytest.mark.real)])
async def test_sums_say_exactly_what_raw_samples_say(
    store: Callable[[Samples, Path], AbstractAsyncContextManager[str]], seeds: range, tmp_path: Path
) -> None:
    kinds: Counter[Availability] = Counter()
    async with aiohttp.ClientSession() as session:
        for seed in seeds:
            folder = tmp_path / str(seed)
            folder.mkdir()
            async with store(world(seed), folder) as url:
                for queries in windows(seed):
                    by_sums, _ = await ask(session, url, queries, sums=True)
                    raw, _ = await ask(session, url, queries, sums=False)
                    for summed_row, raw_row, query in zip(by_sums, raw, queries, strict=True):
                        assert summed_row == raw_row, f"seed {seed}, {query}"
                        kinds.update(reading.availability for reading in raw_row)
    # The worlds hold all that a reading can be, or else nothing much was shown.
    assert set(kinds) >= {Availability.ENOUGH, Availability.NO_SERIES, Availability.STALE, Availability.FEW}
    assert kinds[Availability.ENOUGH] > 0.5 * kinds.total()


async def test_where_nothing_happens_to_pods_sums_alone_are_asked_for(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session, lab(world(1), tmp_path) as url:
        queries = [query for n, query in enumerate(windows(1)[0]) if TROUBLES[n % len(TROUBLES)] == "quiet"]
        rows, outcomes = await ask(session, url, queries, sums=True)
    assert outcomes == {"ok": len(METRICS)}
    assert all(reading.availability is Availability.ENOUGH for row in rows for reading in row)


async def test_a_service_in_trouble_takes_one_more_question_a_metric(tmp_path: Path) -> None:
    samples = world(1)
    restarted = "s0"
    for at, rows in samples.items():
        if at > windows(1)[0][0].start_s + 20:
            samples[at] = [(n, labels, v % 7 if dict(labels)["job"] == restarted else v) for n, labels, v in rows]
    async with aiohttp.ClientSession() as session, lab(samples, tmp_path) as url:
        quiet = [query for n, query in enumerate(windows(1)[0]) if TROUBLES[n % len(TROUBLES)] == "quiet"]
        by_sums, outcomes = await ask(session, url, quiet, sums=True)
        raw, _ = await ask(session, url, quiet, sums=False)
    assert by_sums == raw
    assert outcomes == {"ok": 2 * len(METRICS)}


async def test_only_metrics_with_many_series_are_summed_up_from_the_second_time_on(tmp_path: Path) -> None:
    samples = world(1)
    rows: list[tuple[str, Mapping[str, str], float]] = []
    api = PrometheusApi(lambda: rows)
    for at in sorted(samples):
        rows = [(name, dict(labels), value) for name, labels, value in samples[at]]
        api.scrape(at)
    quiet = [query for n, query in enumerate(windows(1)[0]) if TROUBLES[n % len(TROUBLES)] == "quiet"]
    asked = []
    async with aiohttp.ClientSession() as session, api:
        # Two arms of two pods on average: eight series of errors and of predictions, sixteen of latency.
        source = PrometheusSource(
            session, api.url, {"http": PRESET}, clock=SystemClock(), scrape_interval_s=SCRAPE_S, sum_above_n=12
        )
        for _ in range(2):
            rows_read = await source.collect(quiet)
            asked.append(sorted(text.split("{")[0] for text in api.asked))
            api.asked.clear()
            assert all(reading.availability is Availability.ENOUGH for row in rows_read for reading in row)
    plain = ["http_requests_total", "model_latency_seconds_bucket", "model_predictions_total"]
    assert asked[0] == plain
    assert asked[1][0] == "http_requests_total"
    assert asked[1][1] == "model_predictions_total"
    assert asked[1][2].startswith("sum by (job, le, version) (floor(last_over_time(model_latency_seconds_bucket")
