"""The tick: every rollout of a cluster whose next window has closed, claimed, collected, judged and told together.

A window closes ``grace_s`` after its end, when every scrape that belongs to it has arrived. Windows that were missed
while the service or the store was away are judged later at their own time, oldest first; those older than
``history_s`` can no longer be read and are BLIND. While the store is still away, missed windows are used up no faster
than time passes, so that there is something left to read when it is back.

Each cluster has a tick of its own, so that a metric store that is slow or away delays nobody else's windows. Several
claims are under way at once: while one waits for the metric store, another is judged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from service.analysis.judging import Judged, judge_windows
from service.analysis.rows import begun
from service.model.observation import Availability, Reading, WindowQuery
from service.model.rollout import RolloutState
from service.model.stimulus import WindowJudged
from service.model.value import from_epoch_s
from service.ring.door import Door, Told
from service.ring.halving import Halving
from service.ring.ports import Clock, Source, Unavailable
from service.ring.seen import UNSEEN, Observer
from service.ring.stopping import Stopping
from service.ring.store import ANYWHERE, LONGEST_HIDDEN_S, Change, Due, RollbackLimit, Store, TooManyRollbacks, Where
from service.rollout import machine

logger = logging.getLogger(__name__)

CHUNK = 250
"""Rollouts claimed, judged and committed together."""

WORKERS_N = 2
"""Chunks under way at once."""

LEASE_S = 60.0
"""How long a window is hidden from other replicas: what losing one of them in the middle of a turn costs."""

PAST_ROLLOUTS = 20
"""Promoted rollouts of a service that the statistics learn from when a new one begins."""

LOOK_EVERY_S = 0.5
"""How often an idle tick looks for windows that have come due; one read by index."""

AWAY_S = 1.0
"""Pause after the database could not be asked."""

MAX_TRIES_AT_LIMIT = 5
"""Tries to share the hourly limit of rollbacks with other replicas before the chunk is left for its lease's end."""


class NoSource:
    """Stands in for clusters that no metric store is set for (any more): their windows are blind and say so."""

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``."""
        return [
            [Reading(m, Availability.AWAY, None, f"no metric store is set for cluster {q.cluster}") for m in q.metrics]
            for q in queries
        ]


class Tick:
    """Judges a cluster's due windows for ever. Safe to stop at any point: what was not committed is judged again."""

    def __init__(
        self,
        store: Store,
        door: Door,
        source: Source,
        clock: Clock,
        *,
        grace_s: float,
        where: Where = ANYWHERE,
        history_s: float = 6 * 3600.0,
        rollbacks_per_hour: int = 10,
        seen: Observer = UNSEEN,
        stopping: Stopping | None = None,
    ) -> None:
        self._store = store
        self._door = door
        self._source = source
        self._clock = clock
        self._grace_s = grace_s
        self._where = where
        self._history_s = history_s
        self._rollbacks_per_hour = rollbacks_per_hour
        self._seen = seen
        self._stopping = stopping or Stopping()
        self._halving = Halving(clock, "judge")

    async def run(self) -> None:
        """Judge what is due until a stop is asked; chunks that are claimed by then are judged to the end."""
        async with asyncio.TaskGroup() as group:
            for n in range(WORKERS_N):
                name = f"tick {self._where} {n + 1}"
                group.create_task(self._work(name), name=name)

    async def _work(self, name: str) -> None:
        while not self._stopping.asked:
            self._seen.turned(name)
            pause_s = LOOK_EVERY_S
            try:
                if await self.turn() == CHUNK:
                    pause_s = 0.0
            except Unavailable as error:
                logger.warning("windows wait: %s", error, extra={"action": "tick_postponed"})
                pause_s = AWAY_S
            await self._clock.sleep(pause_s)

    async def turn(self) -> int:
        """Judge one chunk of due windows; how many there were."""
        now = self._clock.now()
        with self._seen.phase("claim"):
            due = await self._store.due(now, grace_s=self._grace_s, limit=CHUNK, lease_s=LEASE_S, where=self._where)
        if not due:
            return 0
        with self._seen.handling("windows"):
            await self._halving.each(due, lambda part: self._judge(part, now), rollout_of=lambda one: one.state.id)
        return len(due)

    async def _judge(self, due: Sequence[Due], now: datetime) -> None:
        with self._seen.phase("collect"):
            readings = await self._collect(due, now)
        with self._seen.phase("judge"):
            cases = [(one.state, one.monitor, read) for one, read in zip(due, readings, strict=True)]
            beginning = {one.state.service for one in due if not begun(one.monitor)}
            past = await self._store.past_monitors(beginning, last=PAST_ROLLOUTS) if beginning else {}
            judged = await asyncio.to_thread(judge_windows, cases, past)
        with self._seen.phase("commit"):
            await self._tell([one.state for one in due], judged)

    async def _collect(self, due: Sequence[Due], now: datetime) -> Sequence[Sequence[Reading]]:
        """Readings of every due window; those that are too old for the metric store are not asked for."""
        oldest_s = now.timestamp() - self._history_s
        asked = [i for i, one in enumerate(due) if window_span(one.state)[1] >= oldest_s]
        answers = await self._source.collect([_query(due[i].state) for i in asked]) if asked else []
        found = dict(zip(asked, answers, strict=True))
        return [found[i] if i in found else _too_old(one.state) for i, one in enumerate(due)]

    async def _tell(self, states: Sequence[RolloutState], judged: Sequence[Judged]) -> None:
        """Hand the verdicts to the door, with no more rollbacks than the hourly limit leaves over all replicas."""
        frozen = (await self._store.kill_switch()).frozen
        known = {state.id: state for state in states}
        limit = RollbackLimit(self._rollbacks_per_hour, self._clock.now() - timedelta(hours=1))
        for crowded in range(MAX_TRIES_AT_LIMIT):
            left = max(0, limit.at_most - await self._store.rollbacks_since(limit.since))
            told: list[Told] = []
            for state, verdict in zip(states, judged, strict=True):
                fact = self._fact(state, verdict, frozen=frozen, rollbacks_left=left)
                told.append(Told(state.id, fact, verdict.monitor, self._rest_until(state, fact)))
                if crowded and left and _rolls_back(state, fact):
                    left -= 1
            try:
                await self._door.tell(told, known=known, limit=limit)
            except TooManyRollbacks as error:
                # A storm, or another replica was first: now the rollbacks that are left are dealt out one by one.
                logger.info("%s", error, extra={"action": "rollbacks_limited"})
                continue
            return
        raise Unavailable(f"other replicas used up the hourly limit of rollbacks {MAX_TRIES_AT_LIMIT} times in a row")

    def _rest_until(self, state: RolloutState, fact: WindowJudged) -> datetime | None:
        """When the next window may be judged: at once, but for missed windows of a store that is away."""
        # What may be missing holds nobody up: with an optional metric away for good no lag would ever be made up.
        needed = {rule.name for rule in state.policy.metrics if rule.required}
        away = any(one.availability is Availability.AWAY for one in fact.evidence if one.metric in needed)
        rest_s = min(LONGEST_HIDDEN_S, state.policy.window_s)
        return fact.at + timedelta(seconds=rest_s) if fact.late and away else None

    def _fact(self, state: RolloutState, verdict: Judged, *, frozen: bool, rollbacks_left: int) -> WindowJudged:
        start_s, end_s = window_span(state)
        now = self._clock.now()
        number = state.window + 1
        return WindowJudged(
            id=f"{state.id}/w{number}",
            at=now,
            window=number,
            start=from_epoch_s(start_s),
            end=from_epoch_s(end_s),
            evidence=verdict.evidence,
            guards=verdict.guards,
            warmup=verdict.warmup,
            late=now.timestamp() - end_s > self._grace_s + state.policy.window_s,
            log_evidence=verdict.log_evidence,
            log_pause=state.log_pause if verdict.log_pause is None else verdict.log_pause,
            log_rollback=state.log_rollback if verdict.log_rollback is None else verdict.log_rollback,
            harmful=verdict.harmful,
            n_canary=verdict.n_canary,
            n_stable=verdict.n_stable,
            notes=verdict.notes,
            frozen=frozen,
            rollbacks_left=rollbacks_left,
        )


def window_span(state: RolloutState) -> tuple[float, float]:
    """(start, end] of the next window in seconds since the epoch."""
    assert state.windows_from is not None
    start_s = state.windows_from.timestamp() + state.window * state.policy.window_s
    return start_s, start_s + state.policy.window_s


def _query(state: RolloutState) -> WindowQuery:
    start_s, end_s = window_span(state)
    names = tuple(m.name for m in state.policy.metrics)
    return WindowQuery(state.id, state.service.cluster, state.place, names, start_s, end_s)


def _too_old(state: RolloutState) -> tuple[Reading, ...]:
    why = "the window is older than the metric store is asked for"
    return tuple(Reading(m.name, Availability.NO_SERIES, None, why) for m in state.policy.metrics)


def _rolls_back(state: RolloutState, fact: WindowJudged) -> bool:
    """Whether the window begins a rollback that counts against the limit."""
    step = machine.step(state, fact)
    return Change(step.state, state.revision, step.journal).retreated_at is not None
