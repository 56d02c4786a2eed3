"""The watch: looks at the world after every step, knows what may never be seen, and says what was.

It reads the database and the clusters directly, not through the service, and keeps its own account: the states as a
replay of the journal gives them, what was promised to whom, and what reached the outside.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from service.model.gates.report import Finding
from service.model.gates.rules import asks_the_candidate
from service.model.instruction import INSTRUCTION, Instruction, Page, PageAction, Publish, RunGate, SetWeights
from service.model.journal import GENESIS, JournalEntry
from service.model.names import Mode, RolloutId
from service.model.observation import Availability
from service.model.rollout import Phase, RolloutState, Waiting
from service.model.stimulus import (
    STIMULUS,
    GateAnswered,
    PersonActed,
    ReleaseRequested,
    ReleaseWithdrawn,
    Stimulus,
    Verb,
    WindowJudged,
)
from service.ring.store import LONGEST_HIDDEN_S, Due, Owed, Postponed
from service.rollout import machine
from service.rollout.turn import Step
from service.storage.packing import unpack
from tests.simulation.kube import Cluster, fence_of, rollout_of, weight_of

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

BACK = frozenset({Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ENDED})
FOR_PEOPLE = frozenset({Waiting.CONFIRM_ROLLBACK, Waiting.CONFIRM_MOVE, Waiting.PERSON, Waiting.SAFETY, Waiting.MESH})
BEFORE_TRAFFIC = frozenset({"check_ready", "run_gate"})
"""Orders that look, again and again for as long as there is something to wait for."""

HOUR = timedelta(hours=1)
EPSILON_S = 1e-6


class Row(NamedTuple):
    """A row of the outbox that is not settled."""

    kind: str
    body: str
    since_s: float


class Watch:
    """Raises nothing: the first broken invariant is told to the world, which stops."""

    def __init__(self, world: World, *, rollbacks_per_hour: int) -> None:
        self._world = world
        self._limit = rollbacks_per_hour
        self.states: dict[str, RolloutState] = {}
        """Each rollout as a replay of what was committed gives it."""
        self._rows: dict[str, tuple[int, str]] = {}
        """The last journal row's number and hash."""
        self._leases: dict[object, float] = {}
        """Until when (by the clock of who took it) something is promised to one replica."""
        self._open: dict[int, Row] = {}
        """Owed rows that are not settled, by their numbers."""
        self._last_owed = 0
        self._retreats: list[datetime] = []
        self._people: dict[str, str] = {}
        self._landed: dict[tuple[str, str], int] = {}
        """The highest fence that ever stood on a route."""
        self.paged: set[str] = set()
        self.incidents: dict[str, PageAction] = {}
        """What the pager heard last of each incident."""
        self._wished: dict[str, PageAction] = {}
        """What was decided last of each incident."""
        self.published: dict[str, list[str]] = defaultdict(list)
        """Decisions in the order in which the topic first saw them, by rollout."""
        self._decided: dict[str, list[str]] = defaultdict(list)
        self._bodies: set[str] = set()
        self.events: dict[tuple[int, int], tuple[str, str] | None] = {}
        """(partition, offset) -> (source, id) of the event; None for a record that cannot be read."""
        self.windows_n = 0
        self._promoted: set[str] = set()
        """Rollouts whose promotion has stood."""
        self._mended: set[tuple[str, str]] = set()
        """(rollout, gate) of what was mended before a person resumed."""

    # --- after a step of the store ----------------------------------------------------------------------------------

    def stored(self, process: Process, method: str, args: Sequence[Any], given: Mapping[str, Any], result: Any) -> None:
        """A call of the store has taken effect, whether or not the caller will hear of it."""
        match method:
            case "commit":
                self._committed(process, args[0] if args else given["changes"])
                self._postponed(given.get("postponed", ()))
            case "owed":
                self._offered(process, result, _now(args, given, 1), given["lease_s"])
            case "due":
                self._windows_offered(process, result, _now(args, given, 0), given["lease_s"])

    def _committed(self, process: Process, changes: Sequence[Any]) -> None:
        for change in changes:
            self._replay(change.state.id, process)
            if change.windows:
                rest = change.rest_until.timestamp() if change.rest_until else 0.0
                self._leases[("window", change.state.id)] = rest
        self._one_a_service()
        self._outbox()

    def _replay(self, rollout: str, process: Process) -> None:
        """Take what is new in the history, and hold it against the state that was stored."""
        known = self.states[rollout].revision if rollout in self.states else 0
        new = " where rollout = ? and revision > ?"
        rows = dict(self._world.database.rows("select revision, stimulus from journal" + new, rollout, known))
        for revision, packed in self._world.database.rows("select revision, packed from windows" + new, rollout, known):
            rows[revision] = unpack(packed)
        for revision, text in sorted(rows.items()):
            fact = STIMULUS.validate_json(text)
            before = self.states.get(rollout)
            if before is None:
                if not isinstance(fact, ReleaseRequested):
                    self._broken("replay", f"The history of {rollout} begins with {fact.type}.", rollout)
                    return
                step = machine.begin(fact)
            else:
                step = machine.step(before, fact)
            if not step.accepted or step.state.revision != revision:
                self._broken(
                    "replay", f"The history of {rollout} cannot be replayed at {revision}: {step.reason}", rollout
                )
                return
            self.states[rollout] = step.state
            self._stepped(before, fact, step, process)
        stored = self._world.database.rows("select state from rollouts where id = ?", rollout)[0][0]
        if rollout not in self.states or stored != self.states[rollout].to_json():
            self._broken("replay", f"The stored state of {rollout} is not what its history gives.", rollout)
        self._chain(rollout)

    def _chain(self, rollout: str) -> None:
        n, head = self._rows.get(rollout, (0, GENESIS))
        query = "select body from journal where rollout = ? and n > ? order by n"
        for (body,) in self._world.database.rows(query, rollout, n):
            row = JournalEntry.from_json(body)
            if row.n != n + 1 or row.prev_hash != head or row.sealed().hash != row.hash:
                self._broken("journal", f"Row {row.n} of {rollout} does not fit into the chain after {n}.", rollout)
            n, head = row.n, row.hash
        self._rows[rollout] = (n, head)

    def _stepped(self, before: RolloutState | None, fact: Stimulus, step: Step, process: Process) -> None:
        after = step.state
        for row in step.journal:
            self._world.say(
                f"{process.name} commits for {after.service.name} {after.version}: {row.headline}", after.id
            )
        self._went_on(before, fact, after)
        if before is not None:
            self._given_up(before, fact, after)
            self._answered(before, fact)
        for order in step.orders:
            if isinstance(order, SetWeights) and order.canary_percent > 0 and before and before.phase in BACK:
                self._broken("one direction", f"{after.id} goes back and yet owes {order.canary_percent} %.", after.id)
            if isinstance(order, SetWeights) and order.canary_percent > 0:
                self._gates(after)
            if isinstance(order, Page) and order.action is not PageAction.CHANGE:
                self._wished[order.dedup_key] = order.action
            if isinstance(order, Publish):
                self._decided[after.id].append(order.event_id)
        if isinstance(fact, WindowJudged):
            self.windows_n += 1
            if before is None or fact.window != before.window + 1:
                self._broken("windows", f"Window {fact.window} of {after.id} took effect out of turn.", after.id)
        if isinstance(fact, PersonActed):
            if fact.id in self._people:
                self._broken("person", f"The order {fact.id} ({fact.verb}) of a person took effect twice.", after.id)
            self._people[fact.id] = after.id
        if before is not None and before.phase not in BACK and after.phase in BACK and after.mode is not Mode.OBSERVE:
            mine = [row.at for row in step.journal if row.kind == "rolling back" and row.actor == "serinus"]
            self._retreats += mine
            for at in mine:
                used = sum(at - HOUR <= other for other in self._retreats)
                if used > self._limit:
                    self._broken(
                        "limit", f"{used} automatic rollbacks within an hour; {self._limit} are set.", after.id
                    )

    def _given_up(self, before: RolloutState, fact: Stimulus, after: RolloutState) -> None:
        """The bus ends no version that nobody has withdrawn, and no window one that is promoted."""
        if after.phase is Phase.AWAITING_STABLE:
            self._promoted.add(after.id)
        back = before.phase not in BACK and after.phase in BACK
        if back and isinstance(fact, WindowJudged) and after.id in self._promoted:
            self._broken("promoted", f"{after.id} was promoted, and goes back because of a window.", after.id)
        if isinstance(fact, ReleaseWithdrawn):
            given_up = [after.version] if back else []
            if before.successor is not None and after.successor is None and not after.phase.terminal:
                given_up.append(before.successor.version)
            for version in given_up:
                if (after.service.name, version) not in self._world.withdrawn:
                    self._broken("withdrawals", f"{version} was given up; nobody has withdrawn it.", after.id)

    def _answered(self, before: RolloutState, fact: Stimulus) -> None:
        """What a person has mended before resuming is not failed by a look that began before that."""
        if isinstance(fact, PersonActed) and fact.verb is Verb.RESUME:
            self._mended |= {(before.id, gate) for gate in self._world.mended.get(before.id, ())}
        failed = isinstance(fact, GateAnswered) and fact.report.finding is Finding.FAILED
        if failed and (before.id, fact.report.gate) in self._mended:
            self._broken("looks", f"Gate {fact.report.gate} of {before.id} failed as it was once.", before.id)

    def _gates(self, state: RolloutState) -> None:
        """No traffic before every gate has really passed, or a person went on without it."""
        truth = self._world.truth(state.id).gates
        for rule in state.policy.preflight:
            if rule.gate not in state.overruled_gates and truth.get(rule.gate, Finding.PASSED) is not Finding.PASSED:
                self._broken("gates", f"{state.id} gets traffic although gate {rule.gate} does not pass.", state.id)
        if state.open_gates:
            self._broken("gates", f"{state.id} gets traffic before gate {state.open_gates[0].gate}.", state.id)

    def _went_on(self, before: RolloutState | None, fact: Stimulus, after: RolloutState) -> None:
        """No step forward without usable numbers of every required metric, each shown to be within its limit."""
        if before is None or not isinstance(fact, WindowJudged):
            return
        forward = after.weight_asked > before.weight_asked or (
            after.phase is Phase.PAUSED and after.proposal is not None and before.proposal is None
        )
        if not forward or before.weight_asked == 100:
            return
        seen = {one.metric: one for one in fact.evidence}
        for metric in before.policy.metrics:
            one = seen.get(metric.name)
            usable = one is not None and one.availability in (Availability.ENOUGH, Availability.FEW)
            if metric.required and not (usable and one is not None and one.safe):
                word = "undecided" if usable else "blind"
                self._broken("no advance", f"{after.id} goes on although {metric.name} is {word}.", after.id)

    def _one_a_service(self) -> None:
        query = "select service, count(*) from rollouts where active group by cluster, namespace, service"
        for service, count in self._world.database.rows(query):
            if count > 1:
                self._broken("one rollout", f"{service} has {count} active rollouts.")

    def _outbox(self) -> None:
        """New rows are remembered; settled ones must have been carried out, or replaced by something newer."""
        for owed, kind, body in self._world.database.rows(
            "select id, type, body from outbox where id > ? order by id", self._last_owed
        ):
            self._open[owed] = Row(kind, body, self._world.loop.time())
            self._last_owed = owed
        still = {row[0] for row in self._world.database.rows("select id from outbox where settled_at is null")}
        for owed in sorted(self._open.keys() - still):
            row = self._open.pop(owed)
            if not self._done(row):
                order = INSTRUCTION.validate_json(row.body)
                sentence = f"Order {owed} ({row.kind}) of {order.rollout} is settled and was not done."
                self._broken("nothing forgotten", sentence, order.rollout)

    def _done(self, row: Row) -> bool:
        if row.kind in ("page", "publish"):
            return row.body in self._bodies
        order = INSTRUCTION.validate_json(row.body)
        state = self.states[order.rollout]
        if isinstance(order, SetWeights):
            landed = self._landed.get((order.service.cluster, order.place.virtual_service), 0)
            journal = self._world.database.rows(
                "select 1 from journal where rollout = ? and stimulus like ?",
                order.rollout,
                f'%weights_refused%"fence":{order.fence},%',
            )
            return landed >= order.fence or state.fence > order.fence or state.phase.terminal or bool(journal)
        if isinstance(order, RunGate):
            answered = any(report.gate == order.rule.gate for report in state.gates)
            waits = asks_the_candidate(order.rule) and not state.ready
            return answered or waits or state.phase is not Phase.STARTING or self._asked_anew(row.kind, order)
        # What was seen ready may not be so any more when the answer is stored: a newer release has taken its place.
        seen_s = self._world.clusters[order.service.cluster].seen_ready_s.get(order.service.name, -math.inf)
        ready = seen_s >= row.since_s
        return ready or state.weight_asked > 0 or state.phase in BACK or self._asked_anew(row.kind, order)

    def _asked_anew(self, kind: str, order: Instruction) -> bool:
        """A person resumed, which orders looks anew."""
        gate = order.rule.gate if isinstance(order, RunGate) else ""
        looks = (INSTRUCTION.validate_json(row.body) for row in self._open.values() if row.kind == kind)
        return any(
            one.rollout == order.rollout and (one.rule.gate if isinstance(one, RunGate) else "") == gate
            for one in looks
        )

    def _offered(self, process: Process, owed: Sequence[Owed], now_s: float, lease_s: float) -> None:
        for one in owed:
            self._lease(process, ("owed", one.id), f"order {one.id} ({one.instruction.type})", now_s, lease_s)
            order = one.instruction
            if isinstance(order, SetWeights) and self.states[order.rollout].fence != order.fence:
                self._broken(
                    "superseded",
                    f"{process.name} is offered a weight of {order.rollout} that was replaced.",
                    order.rollout,
                )
            elif isinstance(order, SetWeights) and order.canary_percent > 0:
                self._world.weight_begun(process, self.states[order.rollout])

    def _windows_offered(self, process: Process, due: Sequence[Due], now_s: float, lease_s: float) -> None:
        for one in due:
            what = f"window {one.state.window + 1} of {one.state.id}"
            self._lease(process, ("window", one.state.id), what, now_s, lease_s)

    def _lease(self, process: Process, key: object, what: str, now_s: float, lease_s: float) -> None:
        until_s = self._leases.get(key, 0.0)
        # Whoever asks believes no promise that a clock far ahead has given.
        if now_s < until_s - EPSILON_S <= now_s + LONGEST_HIDDEN_S + lease_s:
            self._broken(
                "lease", f"{process.name} is offered {what}, which is promised to another {until_s - now_s:.1f} s more."
            )
        self._leases[key] = now_s + lease_s

    def _postponed(self, postponed: Sequence[Postponed]) -> None:
        for one in postponed:
            self._leases[("owed", one.owed_id)] = one.until.timestamp()

    # --- after a step of the outside --------------------------------------------------------------------------------

    def written(self, cluster: Cluster, route: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A write has landed on a VirtualService."""
        old, new = fence_of(before), fence_of(after)
        rollout = rollout_of(after)
        self._world.say(
            f"{route} in {cluster.name} goes from {weight_of(before)} % to {weight_of(after)} %, fence {old} to {new}.",
            rollout,
        )
        if new < old:
            self._broken("fence", f"A weight with fence {new} landed on {route} after {old}.", rollout)
        self._landed[(cluster.name, route)] = max(new, self._landed.get((cluster.name, route), 0))
        state = self.states.get(rollout)
        if state is None:
            self._broken("outbox first", f"A weight landed on {route} for {rollout}, which nobody committed.", rollout)
        elif new > state.fence:
            self._broken(
                "outbox first", f"A weight with fence {new} landed; {state.fence} is the last decided.", rollout
            )
        elif weight_of(after) > weight_of(before) and state.phase in BACK and old >= state.fence:
            self._broken("one direction", f"{rollout} stood rolled back, and {weight_of(after)} % landed.", rollout)

    def sent(self, page: Page) -> None:
        """The pager has a page.

        A repeat may come late, from a replica that stood still while it was sending and whose lease went to another:
        a pager has no fence, so an incident that was resolved meanwhile is opened anew. ARCHITECTURE says so, and a
        repeat is no reason for an alarm here; an incident that is left open by first sendings is.
        """
        body = page.to_json()
        repeat = body in self._bodies
        self._bodies.add(body)
        if page.action is not PageAction.CHANGE and not repeat:
            self.incidents[page.dedup_key] = page.action

    def told(self, order: Publish) -> None:
        """The topic has a decision."""
        body = order.to_json()
        if body not in self._bodies:
            self._bodies.add(body)
            self.published[order.rollout].append(order.event_id)

    def offsets(self, partition: int, offset: int) -> None:
        """Offsets are about to be committed up to ``offset``: every event below is in the store."""
        for at in range(self._world.topic.committed[partition], offset):
            event = self.events[(partition, at)]
            if event is None:
                lost = (partition, at) not in self._world.letters.origins
            else:
                query = "select 1 from seen_events where source = ? and id = ?"
                lost = not self._world.database.rows(query, *event)
            if lost:
                self._broken("events", f"The offset of record {at} on partition {partition} goes by before its effect.")

    # --- when the world is well again -------------------------------------------------------------------------------

    def unrest(self) -> list[str]:
        """What still has to happen, in words; empty when everything has ended or waits for people."""
        out = [reason for state in self.states.values() if (reason := self._restless(state))]
        for owed, row in self._open.items():
            order = INSTRUCTION.validate_json(row.body)
            if row.kind not in BEFORE_TRAFFIC or self._never_ready(self.states[order.rollout]) is False:
                out.append(f"order {owed} ({row.kind}) of {order.rollout} is owed")
        if not self._world.topic.consumed:
            out.append("events are not consumed")
        return out

    def _never_ready(self, state: RolloutState) -> bool:
        ready_at = self._world.clusters[state.service.cluster].ready_at_s[state.service.name]
        return ready_at > self._world.loop.time() or state.phase in (Phase.PAUSED, Phase.HELD)

    def _never_passes(self, state: RolloutState) -> bool:
        truth = self._world.truth(state.id).gates
        never = any(truth.get(rule.gate, Finding.PASSED) is not Finding.PASSED for rule in state.open_gates)
        return never or (not state.ready and self._never_ready(state))

    def _restless(self, state: RolloutState) -> str:
        waits = state.phase in (Phase.PAUSED, Phase.HELD) and state.waiting in FOR_PEOPLE
        waits = waits or (state.waiting is Waiting.READINESS and self._never_ready(state))
        waits = waits or (state.waiting is Waiting.PREFLIGHT and self._never_passes(state))
        waits = waits or (state.waiting is Waiting.DATA and self._world.truth(state.id).blind)
        if not state.phase.terminal and not waits:
            return f"{state.id} of {state.service.name} is {state.phase} ({state.waiting}): {state.reason}"
        if state.phase in (Phase.ROLLED_BACK, Phase.ENDED, Phase.PROMOTED) or state.mode is Mode.OBSERVE:
            return ""
        cluster, route = self._world.clusters[state.service.cluster], state.place.virtual_service
        if route in cluster.hands and state.phase.terminal:
            return ""  # what others do to a route that no rollout uses is theirs
        if state.weight_seen is None or f"serinus/{state.id}/mesh" in state.paged:
            return ""  # nothing of it was ever confirmed, or people know that it cannot be written
        stands = cluster.weight(route)
        if stands != state.weight_asked:
            return f"{state.id} asked for {state.weight_asked} % and {stands} % stands"
        return ""

    def finish(self) -> None:
        """Everything that was promised has reached the outside."""
        for key, action in self._wished.items():
            if key not in self.incidents:
                self._broken("no page lost", f"The pager never heard of {key}.", key.split("/")[1])
            elif self.incidents[key] is not action:
                self._broken(
                    "incidents", f"{key} was left as {self.incidents[key]}, decided was {action}.", key.split("/")[1]
                )
        for rollout, decided in self._decided.items():
            seen = self.published[rollout]
            if sorted(seen) != sorted(decided):
                missing = len(decided) - len(seen)
                self._broken("decisions", f"{missing} decisions of {rollout} were never published.", rollout)
            elif seen != decided:
                i = next(i for i, (a, b) in enumerate(zip(seen, decided, strict=True)) if a != b)
                self._broken("decisions", f"Decision {decided[i]} was published after {seen[i]}.", rollout)
        for event in self.events.values():
            query = "select 1 from seen_events where source = ? and id = ?"
            if event is not None and not self._world.database.rows(query, *event):
                self._broken("events", f"Event {event[1]} was never taken in.")

    def _broken(self, invariant: str, sentence: str, rollout: RolloutId | str = "") -> None:
        self._world.broken(invariant, sentence, rollout)


def _now(args: Sequence[Any], given: Mapping[str, Any], place: int) -> float:
    moment: datetime = args[place] if len(args) > place else given["now"]
    return moment.timestamp()
