"""A world: replicas of the real service, everything around them simulated, and the weather that strikes them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from service.events.sending import message
from service.model.catalog import Catalog
from service.model.gates.report import Finding
from service.model.instruction import RunGate
from service.model.observation import Reading
from service.model.rollout import Phase, RolloutState
from service.model.stimulus import Verb
from service.model.target import Finish
from service.ring.store import KillSwitch
from tests.simulation import catalog as catalogs
from tests.simulation.database import Database
from tests.simulation.kafka import BROKERS, PARTITIONS, SESSION_S, Letters, Topic
from tests.simulation.kube import NAMESPACE, Cluster
from tests.simulation.loop import Stuck, VirtualLoop
from tests.simulation.outside import Truth
from tests.simulation.plan import Plan
from tests.simulation.process import EPOCH, PAUSES_S, Process
from tests.simulation.replica import Replica
from tests.simulation.watch import Watch

CLUSTERS = ("east", "west")
WELL_S = 4 * 3600.0
"""How long a world that is well again may take until everything has ended or waits for people."""

LOOK_S = 20.0


@dataclass(frozen=True)
class Broken:
    """An invariant that did not hold."""

    invariant: str
    sentence: str
    rollout: str
    at_s: float


@dataclass
class Outcome:
    """What came of a world."""

    plan: Plan
    steps_n: int
    virtual_s: float
    faults: Counter[str]
    windows_n: int
    rollouts: Counter[str]
    broken: Broken | None
    story: list[tuple[float, str, str]] = field(repr=False)
    """(moment, sentence, rollout) of everything worth telling."""


class World:
    """Runs once. Everything random in it comes from ``dice``, one stream for each purpose."""

    def __init__(self, plan: Plan, until_s: float = float("inf")) -> None:
        """``until_s``: leave the world then, as it is."""
        self.plan = plan
        self._until_s = until_s
        self.loop = VirtualLoop(f"{plan.seed} loop")
        self.database = Database()
        self.sick = True
        self._second_thoughts = self.dice("second thoughts")
        self._mending = self.dice("mending")
        self._pace_s = self.dice("pace").choice((4.0, 8.0, 12.0))
        self._well_since_s = float("inf")
        self.outages: set[str] = set()
        self.faults: Counter[str] = Counter()
        self.steps_n = 0
        self.story: list[tuple[float, str, str]] = []
        self.answers: dict[tuple[str, float], tuple[Reading, ...]] = {}
        self._broken: Broken | None = None
        self._truths: dict[tuple[str, str], Truth] = {}
        self._upgraded: set[str] = set()
        self.withdrawn: set[tuple[str, str]] = set()
        """(service, version) of every withdrawal that was sent."""
        self.mended: dict[str, set[str]] = {}
        """What was mended while the rollout was paused: gates, by rollout."""
        self.clusters = {name: Cluster(self, name) for name in CLUSTERS[: plan.clusters]}
        self.topic = Topic(self)
        self.letters = Letters()
        self.watch = Watch(self, rollbacks_per_hour=catalogs.ROLLBACKS_PER_HOUR)
        self.topic.on_commit = self.watch.offsets
        self.services = [(f"svc-{i}", CLUSTERS[i % plan.clusters]) for i in range(plan.services)]
        for service, cluster in self.services:
            self.clusters[cluster].furnish(service)
        for cluster in self.clusters.values():
            cluster.on_write = self.watch.written
        self.catalog: Catalog = catalogs.catalog(tuple(self.clusters))
        self.replicas = [Replica(self, i + 1) for i in range(plan.replicas)]

    @property
    def pace_s(self) -> float:
        """How long whoever has nothing to do sleeps at least; in a world that has long been well, longer."""
        return self._pace_s if self.loop.time() < self._well_since_s + 600.0 else 30.0

    def dice(self, purpose: str) -> Random:
        """A stream of chance of its own, so that leaving one kind of fault out changes the others little."""
        return Random(f"{self.plan.seed} {purpose}")

    def run(self) -> Outcome:
        """Live it to its end, or to the first broken invariant."""
        try:
            self.loop.run_until_complete(self._live())
        except Stuck as stuck:
            self.broken("stuck", str(stuck))
        finally:
            self.database.close()
        phases = Counter(state.phase.value for state in self.watch.states.values())
        return Outcome(
            self.plan,
            self.steps_n,
            self.loop.time(),
            self.faults,
            self.watch.windows_n,
            phases,
            self._broken,
            self.story,
        )

    # --- what parts of the world tell it ----------------------------------------------------------------------------

    def say(self, sentence: str, rollout: str = "") -> None:
        """Something worth telling happened."""
        self.story.append((self.loop.time(), sentence, rollout))

    def stepped(self) -> None:
        """One effect on the outside or the store has happened."""
        self.steps_n += 1

    def strike(self, kind: str, sentence: str) -> None:
        """A fault happened."""
        self.faults[kind] += 1
        self.steps_n += 1
        self.say(sentence)

    def broken(self, invariant: str, sentence: str, rollout: str = "") -> None:
        """An invariant does not hold; the first one counts, and the world stops."""
        if self._broken is None:
            self._broken = Broken(invariant, sentence, rollout, self.loop.time())
            self.say(f"BROKEN ({invariant}): {sentence}", rollout)
            self.loop.stop()

    def later(self, delay_s: float, what: str, act: Callable[[], Awaitable[Any]]) -> None:
        """Let something take effect although nobody waits for it any more."""

        async def land() -> None:
            try:
                await act()
            except Exception as error:
                self.say(f"Late, and refused ({type(error).__name__}): {what}.")
            else:
                self.say(f"Late, and done: {what}.")
            self.stepped()

        self.loop.call_later(
            delay_s, lambda: self.loop.create_task(land(), context=contextvars.Context()), context=contextvars.Context()
        )

    def truth(self, rollout: str) -> Truth:
        """What the rollout's version really is."""
        state = self.watch.states[rollout]
        return self._truths[(state.service.name, state.version)]

    def crash(self, process: Process) -> None:
        """Kill a process. The group notices after its session time; a new life begins some time later."""
        self.loop.kill(process.owner)
        at = self.dice(f"restart {process.name}").uniform(1.0, 60.0) if self.sick else 1.0
        self._in(SESSION_S, functools.partial(self.topic.lose, process))
        self._in(at, self.replicas[process.replica - 1].start)

    def _in(self, delay_s: float, act: Callable[[], None]) -> None:
        self.loop.call_later(delay_s, act, context=contextvars.Context())

    # --- its course -------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        for replica in self.replicas:
            replica.start()
        for kind in sorted(self.plan.faults):
            weather = _WEATHER.get(kind)
            if weather is not None:
                self._task(weather(self, kind))
        for service, cluster in self.services:
            self._task(self._releases(service, cluster))
        self._task(self._upgrades())
        if self._until_s < float("inf"):
            self._in(self._until_s, self.loop.stop)
        await asyncio.sleep(self.plan.sick_s)
        self._heal()
        until_s = self.loop.time() + WELL_S
        rests_n = 0
        while rests_n < 2:
            await asyncio.sleep(LOOK_S)
            unrest = self.watch.unrest()
            rests_n = 0 if unrest else rests_n + 1
            if unrest and self.loop.time() > until_s:
                self.broken("an end", f"Still restless after {WELL_S / 3600:g} well hours: " + "; ".join(unrest[:3]))
                return
        self.watch.finish()
        for failure in self.loop.failures:
            self.broken("no stray error", repr(failure))

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.loop.create_task(coroutine)

    def _heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self.sick = False
        self._well_since_s = self.loop.time()
        self.outages.clear()
        self.say("The world is well again.")
        for replica in self.replicas:
            process = replica.process
            if process is None:
                continue
            self.loop.resume(process.owner)
            if process.skew_s and process.alive:
                # As the log asks for: the clock is right again, and the replica takes it by a restart.
                process.skew_s = 0.0
                self.crash(process)
            process.skew_s = 0.0
        self._task(self._thaw())

    async def _thaw(self) -> None:
        while not await self._order_switch(False):
            await asyncio.sleep(5.0)

    # --- events -----------------------------------------------------------------------------------------------------

    async def _releases(self, service: str, cluster: str) -> None:
        """A pipeline that releases versions of one service, now and then withdrawing one."""
        dice = self.dice(f"releases {service}")
        for n in range(dice.choice((1, 1, 2, 3))):
            await asyncio.sleep(dice.uniform(1.0, self.plan.sick_s / 2))
            version = f"1.{n + 1}.0"
            self._truths[(service, version)] = catalogs.truth(dice, self.plan.sick_s)
            late_s = dice.choice((0.0, 5.0, 20.0, 1e9)) if dice.random() < 0.4 else 0.0
            self.clusters[cluster].ready_at_s[service] = self.loop.time() + late_s
            policy = dice.choice((None, "strict", "careful", "gated"))
            self.send("deployed", service, cluster, version, dice, policy=policy)
            if n:
                self._word_too_late(service, cluster, f"1.{n}.0")
            if dice.random() < 0.15:
                await asyncio.sleep(dice.uniform(10.0, 200.0))
                self._withdraw(service, cluster, version, dice)

    def _withdraw(self, service: str, cluster: str, version: str, dice: Random) -> None:
        self.withdrawn.add((service, version))
        self.send(dice.choice(("rolledback", "removed")), service, cluster, version, dice)

    def _word_too_late(self, service: str, cluster: str, version: str) -> None:
        """Whoever has released a newer version takes the one before it away."""
        kind, dice = "late words", self.dice(f"late words {service} {version}")
        if kind in self.plan.faults and self.sick and dice.random() < 0.5:
            self.strike(kind, f"Somebody takes {service} {version} away, which a newer one replaces.")
            self._in(dice.uniform(0.1, 60.0), lambda: self._withdraw(service, cluster, version, dice))

    async def _upgrades(self) -> None:
        """Whoever upgrades stable once a release that returns to it is promoted; some act on the word alone."""
        dice = self.dice("upgrades")
        while True:
            await asyncio.sleep(LOOK_S)
            for state in list(self.watch.states.values()):
                promoted = state.phase is Phase.AWAITING_STABLE or (
                    state.promotion_stopped and not state.return_stopped
                )
                returns = state.place.finish is Finish.RETURN_TO_STABLE
                if promoted and returns and state.id not in self._upgraded:
                    self._upgraded.add(state.id)
                    self.send(
                        "upgraded", state.service.name, state.service.cluster, state.version, dice, stable=state.version
                    )

    def send(
        self,
        kind: str,
        service: str,
        cluster: str,
        version: str,
        dice: Random,
        *,
        policy: str | None = None,
        stable: str = "1.0.0",
    ) -> None:
        """Put an event on the topic, where the plan says so twice, or late, or beside something unreadable."""
        sent_n = len(self.watch.events)
        body = message(
            kind=kind, namespace=NAMESPACE, service=service, at=EPOCH + catalogs.seconds(self.loop.time()),
            version=version, stable_version=stable, policy=policy, environment=cluster,
            event_id=f"e{sent_n}-{kind}", source="/pipeline",
        )  # fmt: skip
        usual = hash_of(service) % PARTITIONS
        self.say(f"The pipeline says: {service} {version} {kind}.")

        def put(partition: int, value: bytes, key: tuple[str, str] | None) -> None:
            self.watch.events[(partition, len(self.topic.log[partition]))] = key
            self.topic.append(partition, key=body.key, value=value, headers=body.headers)

        faults = self.plan.faults
        key = ("/pipeline", f"e{sent_n}-{kind}")
        if "kafka.poison" in faults and self.sick and dice.random() < 0.2:
            self.strike("kafka.poison", "A record that nobody can read comes first.")
            put(usual, body.value[:-7], None)
        if "kafka.disorder" in faults and self.sick and dice.random() < 0.3:
            late_s, other = dice.expovariate(1 / 30.0), dice.randrange(PARTITIONS)
            self.strike("kafka.disorder", f"It comes {late_s:.0f} s late, on partition {other}.")
            self._in(late_s, functools.partial(put, other, body.value, key))
        else:
            put(usual, body.value, key)
        if "kafka.duplicate" in faults and self.sick and dice.random() < 0.3:
            self.strike("kafka.duplicate", "It comes twice.")
            self._in(dice.expovariate(1 / 20.0), functools.partial(put, dice.randrange(PARTITIONS), body.value, key))

    # --- weather ----------------------------------------------------------------------------------------------------

    async def _crashes(self, kind: str) -> None:
        async for dice in self._every(kind, 90.0):
            process = dice.choice(self.replicas).process
            if process is not None and process.alive:
                self.strike(kind, f"{process.name} is killed.")
                self.crash(process)

    async def _pauses(self, kind: str) -> None:
        async for dice in self._every(kind, 60.0):
            process = dice.choice(self.replicas).process
            if process is not None and process.alive:
                self.stop(kind, process, dice.choice(PAUSES_S), "somewhere")

    def stop(self, kind: str, process: Process, length_s: float, when: str) -> None:
        """Stop a process where it stands; it goes on later and knows nothing of it."""
        if process.owner.paused:
            return
        self.strike(kind, f"{process.name} is stopped for {length_s:g} s, {when}.")
        self.loop.pause(process.owner)
        if length_s > SESSION_S:
            self._in(SESSION_S, functools.partial(self.topic.lose, process))
        self._in(length_s, functools.partial(self._go_on, process))

    def _go_on(self, process: Process) -> None:
        if process.alive and process.owner.paused:
            self.say(f"{process.name} goes on.")
            self.loop.resume(process.owner)

    async def _clocks(self, kind: str) -> None:
        async for dice in self._every(kind, 60.0):
            process = dice.choice(self.replicas).process
            if process is not None:
                by_s = dice.choice((-300.0, -30.0, -2.0, 2.0, 30.0, 300.0, 3600.0))
                self.strike(kind, f"The clock of {process.name}'s machine is set to {by_s:+g} s.")
                process.skew_s = by_s

    async def _outages(self, kind: str) -> None:
        places = {
            "store": ("store",),
            "pager": ("the pager",),
            "bus": ("the decisions' topic",),
            "kafka": (BROKERS,),
            "api": tuple(cluster.where for cluster in self.clusters.values()),
            "metrics": tuple(f"the metric store of {name}" for name in self.clusters),
            "gates": ("what the gates look at",),
        }[kind.partition(".")[0]]
        async for dice in self._every(kind, 120.0):
            where = dice.choice(places)
            length_s = min(200.0, dice.expovariate(1 / 30.0))
            self.strike(kind, f"{where} is away for {length_s:.0f} s.")
            self.outages.add(where)
            self._in(length_s, functools.partial(self.outages.discard, where))

    async def _rebalances(self, kind: str) -> None:
        async for _ in self._every(kind, 40.0):
            self.strike(kind, "The consumer group is shared out anew.")
            self.topic.share_out()

    async def _hands(self, kind: str) -> None:
        async for dice in self._every(kind, 150.0):
            service, cluster = dice.choice(self.services)
            percent = dice.choice((0, 5, 40, 100))
            self.strike(kind, f"Somebody sets the canary of {service} to {percent} %.")
            self.clusters[cluster].by_hand(service, percent)

    async def _people(self, kind: str) -> None:
        n = 0
        async for dice in self._every(kind, 100.0):
            running = [state for state in self.watch.states.values() if not state.phase.terminal]
            if not running:
                continue
            state, verb = dice.choice(running), dice.choice(list(Verb))
            n += 1
            self.strike(kind, f"A person says: {verb} {state.service.name} {state.version}.")
            self._task(self._order(state.id, verb, f"order-{n}", dice))

    async def _order(self, rollout: Any, verb: Verb, request_id: str, dice: Random) -> None:
        """Ask one replica after the other with the same request id, until one has answered."""
        for _ in range(10):
            replica = dice.choice(self.replicas)
            answered = await replica.ask(
                lambda r: r.door.act(rollout, verb, actor="ana", reason="looked at it", request_id=request_id), 20.0
            )
            if answered:
                return
            await asyncio.sleep(dice.uniform(1.0, 10.0))

    def weight_begun(self, process: Process, state: RolloutState) -> None:
        """A replica has claimed a weight that gives the canary traffic."""
        kind, dice = "second thoughts", self._second_thoughts
        if kind not in self.plan.faults or not self.sick or dice.random() > 0.3:
            return
        held_s = dice.uniform(2.0, 9.0)
        self.strike(kind, f"{process.name} does not reach API servers for {held_s:.1f} s; a person wants to go back.")
        process.slow_until_s = self.loop.time() + held_s
        order = functools.partial(self._order, state.id, Verb.ROLLBACK, f"second-thought-{self.faults[kind]}", dice)
        self._in(dice.uniform(0.0, 1.0), lambda: self._task(order()))

    async def gate_seen(self, order: RunGate, finding: Finding) -> None:
        """A gate has been looked at, and the answer is not told yet."""
        kind, dice, gate = "mending", self._mending, order.rule.gate
        if gate in self.mended.get(order.rollout, ()):
            await asyncio.sleep(20.0)  # so that the look from before is answered first
        if finding is not Finding.FAILED or kind not in self.plan.faults or not self.sick or dice.random() > 0.8:
            return
        n, state = self.faults[kind], self.watch.states[order.rollout]
        self.strike(kind, f"Somebody mends what gate {gate} fails of {state.service.name} {state.version}.")

        async def mend() -> None:
            await self._order(state.id, Verb.PAUSE, f"mending-{n}", dice)
            key = (state.service.name, state.version)
            truth = self._truths[key]
            self._truths[key] = replace(truth, gates={**truth.gates, gate: Finding.PASSED})
            self.mended.setdefault(state.id, set()).add(gate)
            await self._order(state.id, Verb.RESUME, f"mended-{n}", dice)

        self.loop.call_soon(lambda: self._task(mend()), context=contextvars.Context())
        await asyncio.sleep(dice.uniform(1.0, 20.0))

    async def _freezes(self, kind: str) -> None:
        async for dice in self._every(kind, 150.0):
            self.strike(kind, "Somebody turns the kill switch on.")
            await self._order_switch(True)
            await asyncio.sleep(dice.uniform(5.0, 90.0))
            await self._order_switch(False)

    async def _order_switch(self, frozen: bool) -> bool:
        switch = KillSwitch(frozen, "ana", "a drill", EPOCH)
        return any([await replica.ask(lambda r: r.store.set_kill_switch(switch), 5.0) for replica in self.replicas])

    async def _every(self, kind: str, mean_s: float) -> Any:
        """Moments at which a fault of a kind strikes, while the world is sick."""
        dice = self.dice(kind)
        while True:
            await asyncio.sleep(dice.expovariate(1 / mean_s))
            if not self.sick:
                return
            yield dice


_WEATHER: dict[str, Callable[[World, str], Coroutine[Any, Any, None]]] = {
    "crash": World._crashes,
    "pause": World._pauses,
    "clock": World._clocks,
    **{f"{part}.outage": World._outages for part in ("store", "api", "pager", "bus", "metrics", "gates", "kafka")},
    "kafka.rebalance": World._rebalances,
    "hand": World._hands,
    "person": World._people,
    "freeze": World._freezes,
}


def hash_of(text: str) -> int:
    """The same in every run, unlike ``hash``."""
    return sum(text.encode())
