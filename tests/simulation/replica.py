"""One replica: the real rooms, wired as ``service.app.run`` wires them, in one life after another."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from service.actuators.istio import IstioMesh
from service.analysis.tick import Tick
from service.dispatch.clockwork import Clockwork
from service.dispatch.dispatcher import Dispatcher
from service.events.connection import Connection
from service.events.consumer import EventConsumer
from service.model.instruction import Lane
from service.ring.door import Door
from service.ring.ports import PortError, Unavailable
from service.ring.store import KillSwitch, Where
from service.storage.store import SqlStore
from tests.simulation import mutants
from tests.simulation.catalog import ROLLBACKS_PER_HOUR
from tests.simulation.kafka import TOPIC
from tests.simulation.kube import Api
from tests.simulation.loop import OWNER
from tests.simulation.outside import Bus, Gates, Metrics, Pager
from tests.simulation.process import Line, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

WRITES = frozenset({"commit", "lease", "set_kill_switch", "owed", "due"})

IDLE: Mapping[str, tuple[str, Any]] = {
    "owed": ("select 1 from outbox where settled_at is null and lane = ?", ()),
    "due": ("select 1 from rollouts where window_due_at <= ?", ()),
    "waking": ("select 1 from rollouts where wake_at <= ?", ()),
    "kill_switch": ("select 1 from switches", KillSwitch()),
}
"""Questions that idle loops put again and again, and their answers while a plain query finds nothing.

Building the real store's statements for them would be most of a world's work.
"""


class Watched:
    """The real store behind a line: every call is one step, and may fail, be lost, or be the last."""

    def __init__(self, process: Process, inner: SqlStore) -> None:
        self._process = process
        self._inner = inner
        self._line = Line(process, "store")

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **given: Any) -> Any:
            async def act() -> Any:
                result = await self._ask(method, args, given)
                self._process.world.watch.stored(self._process, method, args, given, result)
                return result

            risk = 0.15 if method == "commit" else 0.01
            fates = ("error", "lost", "slow") if method in WRITES else ("error", "slow")
            return await self._line.call(
                f"{method} in the store", act, away=Unavailable, timeout_s=30.0, risk=risk, fates=fates
            )

        self.__dict__[method] = call
        return call

    async def _ask(self, method: str, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """What the real store answers."""
        if method in IDLE:
            query, nothing = IDLE[method]
            bound = [one.value if isinstance(one, Lane) else one.timestamp() for one in args[:1]]
            if not self._process.world.database.rows(f"{query} limit 1", *bound):
                return nothing
        return await getattr(self._inner, method)(*args, **given)


class Replica:
    """Starts, dies, and starts again as another process with the same database."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._lives_n = 0
        self.process: Process | None = None
        self.store: Any = None
        self.door: Any = None

    def start(self) -> None:
        """Begin a new life."""
        world = self._world
        self._lives_n += 1
        skew_s = self.process.skew_s if self.process is not None else 0.0
        process = self.process = Process(world, self._number, self._lives_n, skew_s)
        if self._lives_n > 1:
            world.say(f"{process.name} starts.")
        context = contextvars.Context()
        context.run(OWNER.set, process.owner)
        for name, root in context.run(self._wired, process).items():
            task = world.loop.create_task(root, name=name, context=context)
            task.add_done_callback(lambda task, process=process: self._ended(process, task))

    def _wired(self, process: Process) -> Mapping[str, Any]:
        world = self._world
        store: Any = Watched(process, mutants.store(world.plan.mutant)(world.database.engine, patience_s=30.0))
        door = Door(store, world.catalog, process)
        meshes: dict[str, Any] = {}
        sources: dict[str, Any] = {}
        for name, cluster in world.clusters.items():
            mesh = IstioMesh(object())
            mesh._custom = Api(cluster, process)
            meshes[name] = mesh
            sources[name] = Metrics(process, name)
        dispatcher = Dispatcher(
            store,
            door,
            process,
            meshes=meshes,
            gates=Gates(process),
            pager=Pager(process, world.watch.sent),
            bus=Bus(process, world.watch.told),
        )
        # One lane after the other in their order, which a set's is not.
        door.on_owed = lambda lanes: [dispatcher.poke(frozenset({lane})) for lane in Lane if lane in lanes] and None
        ticks = {
            name: Tick(
                store,
                door,
                source,
                process,
                grace_s=10.0,
                where=Where(only=name),
                rollbacks_per_hour=ROLLBACKS_PER_HOUR,
            )
            for name, source in sources.items()
        }
        clockwork = Clockwork(store, door, process, meshes, replica=process.name)
        client = mutants.client(world.plan.mutant)
        consumer = EventConsumer(
            Connection("simulated"),
            topic=TOPIC,
            group="serinus",
            dead_letter_topic="dead-letters",
            producer=world.letters,  # type: ignore[arg-type]
            handle=door.events,
            clock=process,
            client=lambda *_, **__: client(world.topic, process),
        )
        self.store, self.door = store, door
        return {
            "events": consumer.run(),
            **{f"tick {name}": tick.run() for name, tick in ticks.items()},
            "wake": clockwork.wake(),
            **{f"watch {cluster}": clockwork.watch(cluster) for cluster in meshes},
            # No service lives in a cluster that is not set, so the lanes for those would look in vain.
            **{
                f"lane {lane} {where}": dispatcher.run(lane, where)
                for lane, where in dispatcher.lanes()
                if not where.but
            },
        }

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        """A root task may end only with its process; in the real service its end stops everything."""
        if not process.alive:
            return
        error = None if task.cancelled() else task.exception()
        self._world.broken("root tasks", f"{task.get_name()} of {process.name} ended: {error!r}")

    async def ask(self, what: Callable[[Replica], Awaitable[Any]], timeout_s: float) -> bool:
        """Call this replica's API: whether it answered in time. What it began goes on by itself otherwise."""
        process = self.process
        if process is None or not process.alive or self.store is None:
            return False
        context = contextvars.Context()
        context.run(OWNER.set, process.owner)

        async def run() -> bool:
            try:
                await what(self)
            except PortError:
                return False
            return True

        task = self._world.loop.create_task(run(), context=context)
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        return bool(done) and not task.cancelled() and task.result()
