"""The preset for vLLM on what a real one printed; tests/real/parts/vllm.py says how it was asked and recorded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from service.app.clock import SystemClock
from service.lab.prometheus_api import PrometheusApi
from service.model.observation import (
    ArmValues,
    Availability,
    CategoryCounts,
    FailureCounts,
    HistogramCounts,
    Reading,
)
from service.model.preset import ValueExpression
from service.sources import promql
from service.sources.prometheus import PrometheusSource
from tests.contract.source import expositions
from tests.contract.source.expositions import Served
from tests.contract.source.test_shipped_presets import CANARY, SCRAPE_S, SERVERS, STABLE, START, preset_of, query

RECORDED = Path(__file__).parent / "recorded"
VLLM = SERVERS["vllm"]
BEGAN, SERVED, REFUSED = (
    (RECORDED / f"vllm-0.32.0-{name}.prom").read_text() for name in ("began", "served", "refused")
)
PRINTED = {STABLE: (BEGAN, SERVED), CANARY: (SERVED, REFUSED)}
"""What each arm printed at the first scrape and at the last: stable's time is the server's first, the canary's its
second, when it had too much to do."""


def expect(readings: Sequence[Reading]) -> None:
    """What the server was asked, in both times."""
    found = {reading.metric: reading for reading in readings}
    assert set(found) == set(preset_of("vllm").metrics)
    assert {reading.availability for reading in readings} == {Availability.ENOUGH}, found
    # One request was wrong, in either time; three were one too many. The client of one of the canary's went away.
    assert found["errors"].counts == FailureCounts(3, 15 + 1 + 1 + 3, 0, 30 + 1)
    reasons = found["predictions"].counts
    assert isinstance(reasons, CategoryCounts)
    by_reason = dict(zip(reasons.names, zip(reasons.canary, reasons.stable, strict=True), strict=True))
    assert {reason: counts for reason, counts in by_reason.items() if any(counts)} == {
        "stop": (6, 20),
        "length": (9, 10),
    }
    latency = found["latency"].counts
    assert isinstance(latency, HistogramCounts)
    # Besides what has ended: the answer that nobody waited for, and two that ran.
    assert (sum(latency.canary), sum(latency.stable)) == (15 + 1 + 2, 30)
    assert latency.edges_s[0] == 0.001
    assert found["waiting"].counts == ArmValues(2.0, 0.0)
    assert found["cache"].counts == ArmValues(2 / 63, 0.0)


def answer_values(api: PrometheusApi) -> None:
    """Of one pod a sum is its value, and a largest too."""
    for series in preset_of("vllm").metrics.values():
        if isinstance(series, ValueExpression):
            (name,) = re.findall(r"vllm:\w+", series.promql)
            for version, (_, text) in PRINTED.items():
                matchers = promql.selector({"job": VLLM.preset, VLLM.label: version})
                (value,) = (v for n, _, v in expositions.samples(text, {}) if n == name)
                api.expressions[series.promql.replace("$matchers", matchers)] = value


async def test_the_preset_reads_what_a_real_vllm_printed() -> None:
    scrape = 0
    api = PrometheusApi(
        lambda: (
            one
            for version, texts in PRINTED.items()
            for one in expositions.samples(texts[scrape], {"job": VLLM.preset, "pod": version, VLLM.label: version})
        )
    )
    answer_values(api)
    presets = {"vllm": preset_of("vllm")}
    async with api, aiohttp.ClientSession() as session:
        source = PrometheusSource(session, api.url, presets, clock=SystemClock(), scrape_interval_s=SCRAPE_S)
        api.scrape(START)
        scrape = 1
        api.scrape(START + SCRAPE_S)
        ((*readings,),) = await source.collect([query(VLLM, START + 1, START + SCRAPE_S + 1)])
    expect(readings)


def printed(text: str) -> set[str]:
    """Its lines, without numbers."""
    return {line if line.startswith("#") else line.rpartition(" ")[0] for line in text.splitlines()}


def test_the_imitation_prints_as_a_real_vllm_does() -> None:
    imitated = expositions.vllm(Served(10, 1))
    names = {re.sub(r"^# \S+ |[ {].*", "", line) for line in imitated.splitlines()}
    real = {line for line in printed(REFUSED) if re.sub(r"^# \S+ |[ {].*", "", line) in names}
    assert printed(imitated) == real
