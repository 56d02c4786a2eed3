"""The pager, the decisions' topic and the metric stores, as ports of one process."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from service.model.gates.report import Finding, GateReport
from service.model.instruction import Page, Publish, RunGate
from service.model.observation import Availability, FailureCounts, HistogramCounts, Reading, WindowQuery
from service.ring.ports import Unavailable
from service.sources.asking import CLOCKS_APART_S
from tests.simulation.process import EPOCH, Line, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

EDGES_S = (0.05, 0.1, 0.25, 0.5, 1.0)
USUAL = np.array([0.55, 0.25, 0.12, 0.06, 0.015, 0.005])
SLOW = np.array([0.25, 0.25, 0.25, 0.15, 0.07, 0.03])


class Pager:
    """Implements ``ring.ports.Pager``."""

    def __init__(self, process: Process, took: Callable[[Page], None]) -> None:
        self._line = Line(process, "pager", "the pager")
        self._took = took

    async def send(self, page: Page) -> None:
        """See ``ring.ports.Pager.send``."""

        async def act() -> None:
            self._took(page)

        await self._line.call(f"{page.action} {page.dedup_key}", act, away=Unavailable, timeout_s=10.0, risk=0.15)


class Bus:
    """Implements ``ring.ports.Bus``."""

    def __init__(self, process: Process, took: Callable[[Publish], None]) -> None:
        self._line = Line(process, "bus", "the decisions' topic")
        self._took = took

    async def publish(self, order: Publish) -> None:
        """See ``ring.ports.Bus.publish``."""

        async def act() -> None:
            self._took(order)

        await self._line.call(f"publish {order.event_id}", act, away=Unavailable, timeout_s=20.0, risk=0.1)


class Gates:
    """Implements ``ring.ports.Gates``: says what a version really is, when what it looks at can be reached."""

    def __init__(self, process: Process) -> None:
        self._world: World = process.world
        self._line = Line(process, "gates", "what the gates look at")

    async def look(self, order: RunGate) -> GateReport:
        """See ``ring.ports.Gates.look``."""
        gate = order.rule.gate

        async def act() -> Finding:
            return self._world.truth(order.rollout).gates.get(gate, Finding.PASSED)

        try:
            finding = await self._line.call(f"look at gate {gate}", act, away=Unavailable, timeout_s=200.0, risk=0.15)
            await self._world.gate_seen(order, finding)
            return GateReport(gate=gate, finding=finding, sentence="as it was.")
        except Unavailable as error:
            return GateReport(gate=gate, finding=Finding.COULD_NOT_LOOK, sentence=f"{error}.")


@dataclass(frozen=True)
class Truth:
    """What a version really is; only the metric store knows."""

    slow: bool = False
    error_rate: float = 0.002
    requests_a_window: int = 30_000
    blind: bool = False
    dries_up_at_s: float = float("inf")
    """From then on there is no traffic."""
    gates: Mapping[str, Finding] = field(default_factory=dict)
    """What gates find; those that are not named pass."""


class Metrics:
    """Implements ``ring.ports.Source`` for one cluster."""

    def __init__(self, process: Process, cluster: str) -> None:
        self._process = process
        self._world: World = process.world
        self._cluster = cluster
        self._line = Line(process, "metrics", f"the metric store of {cluster}")

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``ring.ports.Source.collect``."""

        async def act() -> list[tuple[Reading, ...]]:
            return [self._answer(query) for query in queries]

        try:
            return await self._line.call(
                f"ask for {len(queries)} windows", act, away=Unavailable, timeout_s=20.0, risk=0.1,
                fates=("error", "slow"),
            )  # fmt: skip
        except Unavailable as error:
            return [tuple(Reading(m, Availability.AWAY, None, str(error)) for m in q.metrics) for q in queries]

    def _answer(self, query: WindowQuery) -> tuple[Reading, ...]:
        """The same window always has the same counts, whoever asks; early ones have none, see ``service.sources``."""
        if query.end_s > EPOCH.timestamp() + self._world.loop.time() + 1.0 + CLOCKS_APART_S:
            early = "the window's end is in the metric store's future"
            return tuple(Reading(m, Availability.AWAY, None, early) for m in query.metrics)
        answers = self._world.answers
        key = (query.rollout, query.start_s)
        if key not in answers:
            answers[key] = self._count(query)
        return answers[key]

    def _count(self, query: WindowQuery) -> tuple[Reading, ...]:
        truth = self._world.truth(query.rollout)
        if truth.blind:
            return tuple(Reading(m, Availability.NO_SERIES, None, "the canary has no series") for m in query.metrics)
        share = self._world.clusters[self._cluster].weight(query.place.virtual_service) / 100
        dry = self._world.loop.time() >= truth.dries_up_at_s
        total_n = 0 if dry else truth.requests_a_window
        canary_n = round(total_n * share)
        stable_n = total_n - canary_n
        rng = np.random.default_rng(zlib.crc32(f"{self._world.plan.seed} {query.rollout} {query.start_s}".encode()))
        (canary, canary_failed), (stable, stable_failed) = [
            (rng.multinomial(n, pattern / pattern.sum()), int(rng.binomial(n, rate)))
            for n, pattern, rate in (
                (canary_n, SLOW if truth.slow else USUAL, truth.error_rate),
                (stable_n, USUAL, 0.002),
            )
        ]
        availability = Availability.ENOUGH if canary_n and stable_n else Availability.FEW
        counts = {
            "latency": HistogramCounts(EDGES_S, tuple(map(int, canary)), tuple(map(int, stable))),
            "errors": FailureCounts(canary_failed, canary_n, stable_failed, stable_n),
        }
        return tuple(Reading(name, availability, counts[name]) for name in query.metrics)
