"""The audit: what was decided, by replaying every journal, held against what the world has seen.

Nothing may be missing (events, weights, pages, decisions on the topic) and nothing may be there that nobody decided.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service.alerts.pagerduty import payload
from service.events.publisher import events_of
from service.model.instruction import Instruction, Page, Publish, SetWeights
from service.model.journal import first_broken_row
from service.model.rollout import RolloutState
from service.model.stimulus import STIMULUS, ReleaseRequested
from service.ring.store import RolloutFilter, Store
from service.rollout import machine
from tests.real.rig import SOURCE, Rig

EVERYTHING = 1_000_000


@dataclass(slots=True)
class Audit:
    """What was found; ``broken`` must be empty."""

    broken: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """Rollouts by the phase that they are in."""
    seen: Counter[str] = field(default_factory=Counter)
    """How much was looked at, and what was done more than once."""

    def check(self, holds: bool, what: str) -> None:
        """Write down what does not hold."""
        self.seen["checks"] += 1
        if not holds:
            self.broken.append(what)


@dataclass(frozen=True, slots=True)
class _Story:
    state: RolloutState
    orders: Sequence[Instruction]
    stimuli: frozenset[str]


async def every_rollout(store: Store) -> list[RolloutState]:
    """All of them, oldest first."""
    out: list[RolloutState] = []
    after: str | None = None
    while True:
        page = await store.rollouts(RolloutFilter(), after=after, limit=200)
        out += page.rollouts
        after = page.next_after
        if after is None:
            return out[::-1]


async def audit(rig: Rig, store: Store) -> Audit:
    """Look at everything. Call it when nothing is owed any more."""
    found = Audit()
    stories = [await _replayed(found, store, state) for state in await every_rollout(store)]
    found.ends = Counter(story.state.phase.value for story in stories)
    found.check(all(story.state.phase.terminal for story in stories), f"rollouts have not ended: {found.ends}")
    owed = {lane: n for lane, (n, _) in (await store.owed_summary()).items() if n}
    found.check(not owed, f"instructions are still owed: {owed}")
    await _events(found, rig, store, stories)
    _weights(found, rig, stories)
    _pages(found, rig, stories)
    _decisions(found, rig, stories)
    return found


async def _replayed(found: Audit, store: Store, state: RolloutState) -> _Story:
    """The rollout's history stepped anew: the same state, byte for byte, and every order that was ever given."""
    history = await store.history(state.id)
    rows = list(await store.journal(state.id, limit=EVERYTHING))
    found.check(first_broken_row(rows) is None, f"{state.id}: the journal's chain is broken")
    found.check([n for n, _ in history] == list(range(1, state.revision + 1)), f"{state.id}: a revision is missing")
    first = STIMULUS.validate_json(history[0][1])
    assert isinstance(first, ReleaseRequested)
    step = machine.begin(first)
    orders: list[Instruction] = list(step.orders)
    ids = [first.id]
    for _, text in history[1:]:
        fact = STIMULUS.validate_json(text)
        step = machine.step(step.state, fact)
        found.check(step.accepted, f"{state.id}: the replay refuses {fact.id}: {step.reason}")
        orders += step.orders
        ids.append(fact.id)
    found.check(step.state.to_json() == state.to_json(), f"{state.id}: the replay ends in another state")
    twice = [i for i, n in Counter(ids).items() if n > 1]
    found.check(not twice, f"{state.id}: facts were taken in twice: {twice}")
    found.seen["stimuli replayed"] += len(history)
    return _Story(state, orders, frozenset(ids))


async def _events(found: Audit, rig: Rig, store: Store, stories: Sequence[_Story]) -> None:
    """Every event was read, and every release that was asked for began or waited as a successor."""
    unread = await store.unseen([(SOURCE, one.id) for one in rig.sent])
    found.check(not unread, f"{len(unread)} events were never read: {sorted(unread)[:3]}")
    taken = {i for story in stories for i in story.stimuli}
    for one in rig.sent:
        if one.version is not None:
            found.check(one.id in taken, f"the release of {one.service} {one.version} was lost")
    found.seen["events"] += len(rig.sent)


def _weights(found: Audit, rig: Rig, stories: Sequence[_Story]) -> None:
    """Only decided weights, fences that never fall, stages in order, and never up again after going back."""
    decided = {
        (story.state.id, order.fence): order.canary_percent
        for story in stories
        for order in story.orders
        if isinstance(order, SetWeights)
    }
    stages = {
        story.state.id: [*(story.state.stage_weight(i) for i in range(len(story.state.stages))), 100]
        for story in stories
    }
    fences: dict[str, int] = defaultdict(int)
    shown: dict[str, list[int]] = defaultdict(list)
    for change in rig.changes:
        if change.fence is None:
            continue
        where = f"{change.service} at {change.percent} % with fence {change.fence}"
        found.check(change.fence >= fences[change.service], f"{where}: {fences[change.service]} stood there before")
        fences[change.service] = change.fence
        percent = decided.get((change.rollout, change.fence))
        found.check(percent == change.percent, f"{where}: decided was {percent}")
        if not shown[change.rollout] or shown[change.rollout][-1] != change.percent:
            shown[change.rollout].append(change.percent)
    for rollout, weights in shown.items():
        up = weights[: weights.index(0)] if 0 in weights else weights
        found.check(up == stages[rollout][: len(up)], f"{rollout}: weights out of order: {weights}")
        found.check(not any(weights[len(up) :]), f"{rollout}: up again after going back: {weights}")
    found.seen["weights seen"] += len(rig.changes)


def _pages(found: Audit, rig: Rig, stories: Sequence[_Story]) -> None:
    """Every page at least once, nothing that was not ordered, and no incident left open by an ended rollout."""
    sent = Counter(_page(path, body) for path, body in rig.pagerduty.events)
    ordered = Counter(_page(*payload(order)) for story in stories for order in story.orders if isinstance(order, Page))
    for page in ordered:
        found.check(sent[page] >= ordered[page], f"a page was lost: {page[:300]}")
    for page in sent:
        found.check(page in ordered, f"nobody ordered this page: {page[:300]}")
    left_open = sorted(rig.pagerduty.open_incidents)
    found.check(not left_open, f"{len(left_open)} incidents are open, but every rollout has ended: {left_open[:3]}")
    found.seen["pages"] += sum(ordered.values())
    found.seen["pages sent again"] += sent.total() - ordered.total()


def _page(path: str, body: dict[str, Any]) -> str:
    return path + json.dumps({k: v for k, v in body.items() if k != "routing_key"}, sort_keys=True)


def _decisions(found: Audit, rig: Rig, stories: Sequence[_Story]) -> None:
    """Every decision at least once, first appearances in order, and nothing that was not decided."""
    on_topic = Counter(record.id for record in rig.published)
    first = {record_id: n for n, record_id in reversed(list(enumerate(record.id for record in rig.published)))}
    known: set[str] = set()
    for story in stories:
        ids = [e["id"] for order in story.orders if isinstance(order, Publish) for e in events_of(order, "/serinus")]
        known |= set(ids)
        missing = [one for one in ids if one not in first]
        found.check(not missing, f"{story.state.id}: decisions never reached the topic: {missing}")
        places = [first[one] for one in ids if one in first]
        found.check(places == sorted(places), f"{story.state.id}: decisions out of order on the topic")
    found.check(set(on_topic) <= known, f"nobody decided {sorted(set(on_topic) - known)[:3]}")
    found.seen["decisions"] += len(known)
    found.seen["decisions published again"] += on_topic.total() - len(on_topic)
