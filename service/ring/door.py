"""The door: the only way a fact reaches a rollout.

Reads the states concerned, steps the pure core, and commits everything that came of it in one transaction. Another
writer in between is a Conflict: the facts are then judged again on the new states, so no lock is held while thinking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias, TypeVar

from service.model.catalog import Catalog
from service.model.instruction import Instruction, Lane
from service.model.journal import JournalEntry
from service.model.names import RolloutId, ServiceKey
from service.model.rollout import RolloutState
from service.model.stimulus import (
    STIMULUS,
    DeploymentEvent,
    PersonActed,
    ReleaseRequested,
    Stimulus,
    Verb,
    WindowJudged,
)
from service.ring.answer import Answer
from service.ring.ports import Clock, Unavailable
from service.ring.seen import About
from service.ring.store import Change, Conflict, Damaged, Postponed, RollbackLimit, ServiceHead, Store, Unreadable
from service.rollout import intake, machine
from service.rollout.turn import Step

logger = logging.getLogger(__name__)

YIELD_EVERY = 50
"""Services stepped before other tasks get a turn."""

Placed: TypeAlias = tuple[ServiceKey | None, tuple[DeploymentEvent, ...]]
"""A service of ours, or None for environments that name no cluster, and its events in the order of their coming."""

MAX_CONFLICTS = 20
"""Tries against other writers before giving up for now; each try reads the states anew."""

_T = TypeVar("_T")


@dataclass(slots=True)
class _Draft:
    """What the facts of one call have changed of one rollout so far."""

    state: RolloutState
    was_revision: int | None
    journal: list[JournalEntry] = field(default_factory=list)
    windows: list[tuple[int, WindowJudged]] = field(default_factory=list)
    orders: list[Instruction] = field(default_factory=list)
    drops: set[str] = field(default_factory=set)
    monitor: bytes | None = None
    rest_until: datetime | None = None

    def take(self, step: Step, stimulus: Stimulus) -> None:
        """Add an accepted step."""
        self.state = step.state
        self.journal += step.journal
        if isinstance(stimulus, WindowJudged):
            self.windows.append((step.state.revision, stimulus))
        self.orders = [o for o in self.orders if o.type not in step.drops] + list(step.orders)
        self.drops |= step.drops

    @property
    def changed(self) -> bool:
        return self.was_revision is None or self.state.revision != self.was_revision

    def change(self) -> Change:
        """The whole as the store wants it."""
        return Change(
            state=self.state,
            was_revision=self.was_revision,
            journal=tuple(self.journal),
            windows=tuple(self.windows),
            orders=tuple(self.orders),
            drops=frozenset(self.drops),
            monitor=self.monitor,
            rest_until=self.rest_until,
        )


@dataclass(frozen=True, slots=True)
class Told:
    """One fact for one rollout, with what belongs to it where it is a window."""

    rollout: RolloutId
    stimulus: Stimulus
    monitor: bytes | None = None
    """The statistics' row."""
    rest_until: datetime | None = None
    """The next window is not to be judged before this moment."""
    settles: int | None = None
    """The owed instruction that this came of. Settled with it, unless the rollout cannot be read: the instruction is
    then owed still, for a replica that can."""


class Door:
    """The one way in."""

    def __init__(self, store: Store, catalog: Catalog, clock: Clock) -> None:
        self._store = store
        self._catalog = catalog
        self._clock = clock
        # Between reading and committing, nobody else of this process gets in: under load, conflicts among ourselves
        # would waste most of the work. Other replicas are still met as a Conflict.
        self._one_by_one = asyncio.Lock()
        self.on_owed: Callable[[frozenset[Lane]], None] = lambda lanes: None
        """Called after each commit with the lanes that have new work; dispatch sets it, and finds it anyway later."""

    async def events(self, events: Sequence[DeploymentEvent]) -> None:
        """Take in deployment events, each once. Returns when their effect is committed; raises Unavailable.

        Events of a service whose rollout cannot be read are left, and raise when all the others are committed:
        Unavailable where a newer release reads it, Damaged where nobody does.
        """
        by_service: dict[ServiceKey | None, dict[tuple[str, str], DeploymentEvent]] = {}
        for event in events:
            listed = by_service.setdefault(intake.service_of(event, self._catalog), {})
            listed.setdefault((event.source, event.id), event)
        placed = [(service, tuple(listed.values())) for service, listed in by_service.items()]
        if placed:
            left = await self._services_events(placed)
            for one in left:
                if one.damaged:
                    services = ", ".join(sorted(map(str, one.damaged)))
                    raise Damaged(f"the running rollout of {services} cannot be read: {one}") from one
            if left:
                raise left[0]

    async def tell(
        self,
        facts: Sequence[Told],
        *,
        settled: Sequence[int] = (),
        postponed: Sequence[Postponed] = (),
        known: Mapping[RolloutId, RolloutState] | None = None,
        limit: RollbackLimit | None = None,
    ) -> Sequence[Answer]:
        """Take in facts for rollouts, with the owed instructions that they settle or that have to wait. One answer a
        fact, in order.

        known : states that the caller has just read; whether they still hold, the commit finds out
        limit : automatic rollbacks that there may be; beyond it nothing is taken in, and TooManyRollbacks is raised
        """
        if not (facts or settled or postponed):
            return []
        fresh = iter([known] if known is not None else [])
        return await self._until_no_conflict(
            lambda: self._tell_once(facts, settled, postponed, next(fresh, None), limit)
        )

    async def act(self, rollout: RolloutId, verb: Verb, *, actor: str, reason: str, request_id: str) -> Answer:
        """Carry a person's order to the rollout. The same ``request_id`` twice has the effect of once."""
        fact = PersonActed(
            id=request_id,
            at=self._clock.now(),
            verb=verb,
            actor=actor,
            reason=reason,
            asks_anew=verb is Verb.RESUME,
        )
        return await self._until_no_conflict(lambda: self._act_once(rollout, fact))

    async def _act_once(self, rollout: RolloutId, fact: PersonActed) -> Answer:
        # The state is read before the journal: if the same order is committed meanwhile by another replica, this
        # commit is a Conflict, and the next look finds it.
        states = await self._store.load([rollout])
        for row in reversed(await self._store.journal(rollout, limit=200)):
            if row.actor == fact.actor and STIMULUS.validate_json(row.stimulus).id == fact.id:
                return Answer(True, row.headline, (await self._store.load([rollout])).get(rollout), row)
        return (await self._tell_once([Told(rollout, fact)], (), (), states, None))[0]

    async def _until_no_conflict(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        for _ in range(MAX_CONFLICTS):
            try:
                async with self._one_by_one:
                    return await attempt()
            except Conflict as conflict:
                logger.debug("conflict, reading again: %s", conflict, extra={"action": "conflict"})
                await asyncio.sleep(0)
        raise Unavailable(f"other writers changed the same rollouts {MAX_CONFLICTS} times in a row; try again")

    async def _tell_once(
        self,
        facts: Sequence[Told],
        settled: Sequence[int],
        postponed: Sequence[Postponed],
        known: Mapping[RolloutId, RolloutState] | None,
        limit: RollbackLimit | None,
    ) -> Sequence[Answer]:
        unreadable: frozenset[RolloutId] = frozenset()
        try:
            states = await self._store.load({fact.rollout for fact in facts}) if known is None else known
        except Unreadable as error:
            states, unreadable = error.readable, error.newer | error.damaged
        settled = [*settled, *(f.settles for f in facts if f.settles is not None and f.rollout in states)]
        drafts = {rid: _Draft(state, state.revision) for rid, state in states.items()}
        answers: list[Answer] = []
        begun: list[_Draft] = []
        for fact in facts:
            draft = drafts.get(fact.rollout)
            if draft is None:
                why = f"There is no rollout {fact.rollout}."
                if fact.rollout in unreadable:
                    why = f"Rollout {fact.rollout} cannot be read by this replica; nothing is told to it."
                    if fact.settles is not None:
                        about = {"action": "dropped", "rollout": fact.rollout, "stimulus": fact.stimulus.id}
                        logger.warning("an outcome is dropped, its instruction is owed still: %s", why, extra=about)
                answers.append(Answer(False, why, None))
                continue
            step = machine.step(draft.state, fact.stimulus)
            if step.accepted:
                draft.take(step, fact.stimulus)
                draft.monitor = fact.monitor or draft.monitor
                draft.rest_until = fact.rest_until
            else:
                logger.info(
                    "%s",
                    step.reason,
                    extra={"action": "refused", "rollout": fact.rollout, "stimulus": fact.stimulus.id},
                )
            entry = step.journal[-1] if step.journal else None
            answers.append(Answer(step.accepted, step.reason, step.state, entry))
            if step.begin is not None:
                begun.append(_begin(step.begin))
        heads = await self._fences(draft.state for draft in drafts.values() if draft.state.phase.terminal)
        await self._commit([*drafts.values(), *begun], heads=heads, settled=settled, postponed=postponed, limit=limit)
        return answers

    async def _fences(self, ended: Iterable[RolloutState]) -> Sequence[ServiceHead]:
        """The heads of services whose rollout ended, so that the next one's fences lie above even if clocks go back."""
        fences = {state.service: state.fence for state in ended}
        if not fences:
            return []
        heads = await self._store.heads(fences.keys())
        return [replace(head, fence=max(head.fence, fences[service])) for service, head in heads.items()]

    async def _services_events(self, placed: Sequence[Placed]) -> Sequence[Unreadable]:
        """Commit events of some services together; why some were left. When another writer was first, halves of them
        are tried: the fewer services, the shorter the time between reading and committing."""
        try:
            async with self._one_by_one:
                return await self._events_once(placed)
        except Conflict as conflict:
            logger.debug("conflict, reading again: %s", conflict, extra={"action": "conflict"})
            await asyncio.sleep(0)
            if len(placed) == 1:
                return await self._until_no_conflict(lambda: self._events_once(placed))
            half = len(placed) // 2
            return [*await self._services_events(placed[:half]), *await self._services_events(placed[half:])]

    async def _events_once(self, placed: Sequence[Placed]) -> Sequence[Unreadable]:
        unseen = await self._store.unseen([(e.source, e.id) for _, events in placed for e in events])
        services = [service for service, _ in placed if service is not None]
        heads: dict[ServiceKey, ServiceHead] = dict(await self._store.heads(services))
        known = dict(heads)
        left: list[Unreadable] = []
        try:
            states = await self._store.active(
                [service for service, events in placed if service and any((e.source, e.id) in unseen for e in events)]
            )
        except Unreadable as error:
            states = error.readable
            left.append(error)
            placed = [one for one in placed if one[0] not in error.newer | error.damaged]
        running = {service: _Draft(state, state.revision) for service, state in states.items()}
        drafts: list[_Draft] = list(running.values())
        for n, (service, events) in enumerate(placed):
            if n % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)
            news = [event for event in events if (event.source, event.id) in unseen]
            if service is None:
                for event in news:
                    _log_event(event, f"no cluster is set for environment {event.environment!r}")
            else:
                drafts += self._apply(news, service, heads, running)
        now = self._clock.now()
        moved = [head for service, head in heads.items() if head is not known.get(service)]
        busy = {*running, *(draft.state.service for draft in drafts if not draft.state.phase.terminal)}
        await self._commit(
            drafts,
            seen=[(e.source, e.id, now) for _, events in placed for e in events if (e.source, e.id) in unseen],
            heads=moved,
            idle=[head.service for head in moved if head.service not in busy],
        )
        return left

    def _apply(
        self,
        events: Sequence[DeploymentEvent],
        service: ServiceKey,
        heads: dict[ServiceKey, ServiceHead],
        running: dict[ServiceKey, _Draft],
    ) -> Sequence[_Draft]:
        """The effect of one service's events on the drafts; the drafts that they made."""
        made: list[_Draft] = []
        draft = running.get(service)
        for merged in intake.merge(
            events, service, self._catalog, _newest(heads.get(service)), draft.state if draft else None
        ):
            event = merged.event
            head = heads.get(service)
            meant = intake.apply(
                event,
                service,
                self._catalog,
                _newest(head),
                draft.state if draft else None,
                now=self._clock.now(),
                passed_over=merged.passed_over,
            )
            if isinstance(meant, intake.Applied) or meant.newest:
                fence = max(head.fence if head else 0, draft.state.fence if draft else 0)
                heads[service] = ServiceHead(service, event.at, event.id, fence)
            if isinstance(meant, intake.NotApplied):
                _log_event(event, meant.reason)
                continue
            begin: ReleaseRequested | None
            if draft is None:
                assert isinstance(meant.fact, ReleaseRequested)
                begin = meant.fact
            else:
                step = machine.step(draft.state, meant.fact)
                if not step.accepted:
                    _log_event(event, step.reason)
                    continue
                draft.take(step, meant.fact)
                begin = step.begin
                if step.state.phase.terminal:
                    draft = None
            if begin is not None:
                draft = _begin(begin)
                made.append(draft)
        return made

    async def _commit(
        self,
        drafts: Sequence[_Draft],
        *,
        seen: Sequence[tuple[str, str, datetime]] = (),
        heads: Sequence[ServiceHead] = (),
        settled: Sequence[int] = (),
        postponed: Sequence[Postponed] = (),
        limit: RollbackLimit | None = None,
        idle: Sequence[ServiceKey] = (),
    ) -> None:
        changes = [draft.change() for draft in drafts if draft.changed]
        if not (changes or seen or heads or settled or postponed):
            return
        done = dict.fromkeys(settled, self._clock.now())
        await self._store.commit(
            changes, seen=seen, heads=heads, settled=done, postponed=postponed, limit=limit, idle=idle
        )
        lanes = frozenset(order.lane for change in changes for order in change.orders)
        if lanes:
            self.on_owed(lanes)


def _begin(request: ReleaseRequested) -> _Draft:
    step = machine.begin(request)
    draft = _Draft(step.state, None)
    draft.take(step, request)
    return draft


def _newest(head: ServiceHead | None) -> intake.Newest | None:
    return intake.Newest(head.event_at, head.event_id, head.fence) if head else None


def _log_event(event: DeploymentEvent, reason: str) -> None:
    logger.info(
        "event changes nothing: %s",
        reason,
        extra={"action": "event_ignored", **About.event(event).keys(), "event_source": event.source},
    )
