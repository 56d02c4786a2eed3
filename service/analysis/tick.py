"""The tick: every rollout whose next window has closed, collected and judged together.

A window closes ``grace_s`` after its end, when every scrape that belongs to it has arrived. Windows that were missed
while the service or the store was away are judged later at their own time, oldest first; those older than
``history_s`` can no longer be read and are BLIND.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from service.analysis.judging import Judged, judge_windows
from service.model.observation import Availability, Reading, WindowQuery
from service.model.rollout import RolloutState
from service.model.stimulus import WindowJudged
from service.model.value import from_epoch_s
from service.ring.door import Door, Told
from service.ring.ports import Clock, Source, Unavailable
from service.ring.store import Due, Store

logger = logging.getLogger(__name__)

CHUNK = 500
"""Rollouts claimed, judged and committed together."""

LEASE_S = 60.0
"""How long a window is hidden from other replicas: what losing one of them in the middle of a turn costs."""

PAST_ROLLOUTS = 20
"""Promoted rollouts of a service that the statistics learn from when a new one begins."""

LOOK_EVERY_S = 0.25
"""How often an idle tick looks for windows that have come due; one read by index."""


class Tick:
    """Judges due windows for ever. Safe to stop at any point: a window that was not committed is judged again."""

    def __init__(
        self,
        store: Store,
        door: Door,
        sources: Mapping[str, Source],
        clock: Clock,
        *,
        grace_s: float,
        history_s: float = 6 * 3600.0,
        rollbacks_per_hour: int = 10,
        lagged: Callable[[float], None] | None = None,
    ) -> None:
        self._store = store
        self._door = door
        self._sources = sources
        self._clock = clock
        self._grace_s = grace_s
        self._history_s = history_s
        self._rollbacks_per_hour = rollbacks_per_hour
        self._lagged = lagged or (lambda lag_s: None)
        self.last_turn_at: datetime | None = None

    async def run(self) -> None:
        """Judge what is due, sleep until something is, and so on. Returns only by cancellation."""
        while True:
            try:
                judged_n = await self.turn()
            except Unavailable as error:
                logger.warning("windows wait: %s", error, extra={"action": "tick_postponed"})
                judged_n = 0
            self.last_turn_at = self._clock.now()
            if judged_n < CHUNK:
                await self._clock.sleep(LOOK_EVERY_S)

    async def turn(self) -> int:
        """Judge one chunk of due windows; how many there were."""
        now = self._clock.now()
        due = await self._store.due(now, grace_s=self._grace_s, limit=CHUNK, lease_s=LEASE_S)
        if not due:
            return 0
        readings = await self._collect(due, now)
        cases = [(one.state, one.monitor, read) for one, read in zip(due, readings, strict=True)]
        beginning = {one.state.service for one in due if not one.monitor}
        past = await self._store.past_monitors(beginning, last=PAST_ROLLOUTS) if beginning else {}
        judged = await asyncio.to_thread(judge_windows, cases, past)
        frozen = (await self._store.kill_switch()).frozen
        used = await self._store.rollbacks_since(now - timedelta(hours=1))
        left = max(0, self._rollbacks_per_hour - used)
        told: list[Told] = []
        for one, verdict in zip(due, judged, strict=True):
            fact = self._fact(one.state, verdict, frozen=frozen, rollbacks_left=left)
            told.append(Told(one.state.id, fact, verdict.monitor))
            self._lagged((self._clock.now() - fact.end).total_seconds())
            if verdict.harmful and left:
                # Within one chunk each possible rollback uses up the limit, so a storm cannot slip through together.
                left -= 1
        await self._door.tell(told)
        return len(due)

    async def _collect(self, due: Sequence[Due], now: datetime) -> Sequence[Sequence[Reading]]:
        """Readings of every due window. Clusters are asked side by side; one that fails blinds only its own."""
        out: list[Sequence[Reading]] = [()] * len(due)
        groups: dict[str, list[int]] = {}
        for i, one in enumerate(due):
            _, end_s = window_span(one.state)
            if now.timestamp() - end_s > self._history_s:
                out[i] = _blind(one.state, "the window is older than the metric store is asked for")
            else:
                groups.setdefault(one.state.service.cluster, []).append(i)

        async def ask(cluster: str, places: list[int]) -> None:
            source = self._sources.get(cluster)
            if source is None:
                for i in places:
                    out[i] = _blind(due[i].state, f"no metric store is set for cluster {cluster}")
                return
            answers = await source.collect([_query(due[i].state) for i in places])
            for i, answer in zip(places, answers, strict=True):
                out[i] = answer

        async with asyncio.TaskGroup() as group:
            for cluster, places in groups.items():
                group.create_task(ask(cluster, places), name=f"collect {cluster}")
        return out

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


def _blind(state: RolloutState, why: str) -> tuple[Reading, ...]:
    return tuple(Reading(m.name, Availability.AWAY, None, why) for m in state.policy.metrics)
