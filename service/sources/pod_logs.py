"""Log lines from the pods themselves, for clusters without a log store.

The kubelet keeps what the present and the last container of a pod wrote, so lines of pods that are gone are gone. A
healthy pod that wrote nothing is zero; an arm without pods, or a log that was too long to read to its end without a
match, is not. Bounded are pods, bytes and time; what is read is matched in a thread as it comes and not kept.

Stable is read only where the canary has such a line, and only until every kind of the canary's lines was found there:
it is looked at for an hour and more, in which a busy server writes many times what the canary does in a window.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import aiohttp
import msgspec
from kubernetes.aio import client

from service.bodies import start_of
from service.cluster import PODS, answered, get
from service.model.lines import LogSeries
from service.model.names import Arm
from service.model.observation import Availability, LineCounts, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.ring.ports import Clock, Unavailable
from service.sources import lines
from service.sources.lines import Kinds, nothing
from service.telling.words import duration

MAX_PODS = 20
"""Of an arm, so many pods are read; of more, the first by name."""

MAX_LOG_BYTES = 32 * 1024 * 1024
"""Read of one container's log, the oldest first; more than half a second of one core."""

MAX_ARM_BYTES = 128 * 1024 * 1024
"""Read of all logs of an arm."""

MOST_KINDS = 1000
"""Kinds of lines told apart in one log; beyond them they are counted together."""

PIECE_BYTES = 256 * 1024
"""Matched at once."""

LINE_BYTES = 4 * lines.LONGEST_LINE + 64
"""Kept of a line that is not whole yet: its time, and what is looked at."""

MAX_REFUSAL_BYTES = 128 * 1024

MAX_LIST_BYTES = 8 * 1024 * 1024

COLLECT_TIMEOUTS = 2.0
"""One collection may take this many times the time-out of one request."""

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"

_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


class _Metadata(msgspec.Struct):
    name: str
    annotations: dict[str, str] | None = None


class _Container(msgspec.Struct):
    name: str


class _Spec(msgspec.Struct):
    containers: list[_Container]


class _Status(msgspec.Struct):
    name: str
    restarts_n: int = msgspec.field(name="restartCount", default=0)


class _PodStatus(msgspec.Struct):
    containers: list[_Status] | None = msgspec.field(name="containerStatuses", default=None)


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)

    def container(self, named: str | None) -> str:
        """The container to read: the one that is named, the pod's default, or the first."""
        return named or (self.metadata.annotations or {}).get(DEFAULT_CONTAINER) or self.spec.containers[0].name

    def restarted(self, container: str) -> bool:
        """Whether a container before the present one has a log."""
        return any(one.name == container and one.restarts_n > 0 for one in self.status.containers or ())


class _Pods(msgspec.Struct):
    items: list[_Pod]


_PODS = msgspec.json.Decoder(_Pods)


@dataclass(slots=True)
class _Found:
    """What the logs of one arm say."""

    inside: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    sample: str = ""
    cut: str = ""
    """Why not everything was looked at; empty when it was."""
    away: bool = False
    """A log could not be had, rather than being too long."""

    @property
    def worth(self) -> Availability:
        """What a reading is worth that needed all of it."""
        return Availability.AWAY if self.away else Availability.DEGRADED

    def add(self, other: _Found) -> None:
        """Another container's log."""
        self.inside += other.inside
        self.before += other.before
        self.sample = self.sample or other.sample
        self.cut = self.cut or other.cut
        self.away = self.away or other.away


@dataclass(slots=True)
class Search:
    """What is looked for in the logs of one arm, and how much more of them may be read."""

    told: Kinds
    span: tuple[float, float]
    """Lines in ``(start, end]`` are of the window."""
    before_s: float = 0.0
    """So much earlier they are looked for too."""
    kinds: set[str] | None = None
    """Kinds that were not found yet; None: every line counts."""
    left_bytes: int = field(default_factory=lambda: MAX_ARM_BYTES)
    wanted: frozenset[str] | None = field(init=False)
    """All that are looked for, found or not; None: every kind is."""

    def __post_init__(self) -> None:
        self.wanted = None if self.kinds is None else frozenset(self.kinds)

    @property
    def done(self) -> bool:
        """Whether nothing is left to be found."""
        return self.kinds is not None and not self.kinds


class Scan:
    """One log that comes in pieces. Of what has come only an unfinished line is kept."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._rest = b""
        self.read_bytes = 0
        self.found = _Found()

    def take(self, piece: bytes) -> None:
        """Look at the lines that this piece ends."""
        self.read_bytes += len(piece)
        whole, newline, rest = piece.rpartition(b"\n")
        if newline:
            self._look(self._rest + whole)
            self._rest = b""
        self._rest = (self._rest + rest)[:LINE_BYTES]

    def end(self) -> None:
        """Look at what no newline ended."""
        self._look(self._rest)
        self._rest = b""

    def _look(self, whole: bytes) -> None:
        search, out = self._search, self.found
        start_s, end_s = search.span
        for line in whole.decode(errors="replace").split("\n"):
            # A line begins with its time.
            stamp, _, text = line.partition(" ")
            kind = search.told.of_line(text)
            if kind is None:
                continue
            try:
                at_s = datetime.fromisoformat(stamp).timestamp()
            except ValueError:
                continue  # the tail of a line that was cut, or no log of a kubelet
            kind = self._counted_as(kind)
            if kind is None:
                continue
            if start_s < at_s <= end_s:
                out.inside[kind] += 1
                out.sample = out.sample or text[: lines.LONGEST_LINE]
            elif start_s - search.before_s < at_s <= start_s:
                out.before[kind] += 1
            else:
                continue
            if search.kinds is not None:
                search.kinds.discard(kind)

    def _counted_as(self, kind: str) -> str | None:
        """The kind, or that of all beyond the bound; None for one that is not looked for."""
        wanted = self._search.wanted
        if wanted is None:
            inside = self.found.inside
            return kind if kind in inside or len(inside) < MOST_KINDS else lines.OTHERS
        if kind in wanted:
            return kind
        return lines.OTHERS if lines.OTHERS in wanted else None


class PodLogSource:
    """Implements ``ring.ports.Source`` for metrics of kind ``logs``. Safe to repeat and to cancel."""

    def __init__(
        self,
        api_client: client.ApiClient,
        presets: Mapping[str, MetricsPreset],
        *,
        clock: Clock,
        timeout_s: float = 10.0,
        max_concurrent: int = 8,
    ) -> None:
        """``timeout_s`` is for one request."""
        self._api = api_client
        self._presets = presets
        self._clock = clock
        self._timeout_s = timeout_s
        self._gate = asyncio.Semaphore(max_concurrent)

    async def collect(self, queries: Sequence[WindowQuery]) -> Sequence[Sequence[Reading]]:
        """See ``Source.collect``. Here requests do grow with rollouts: every pod has a log of its own."""
        deadline = asyncio.get_running_loop().time() + COLLECT_TIMEOUTS * self._timeout_s
        async with asyncio.TaskGroup() as group:
            tasks = [
                [
                    group.create_task(self._read(query, metric, deadline), name=f"{metric} of {query.rollout}")
                    for metric in query.metrics
                ]
                for query in queries
            ]
        return [[task.result() for task in row] for row in tasks]

    async def _read(self, query: WindowQuery, metric: str, deadline: float) -> Reading:
        preset = self._presets.get(query.place.metrics)
        series = preset.metrics.get(metric) if preset else None
        if not isinstance(series, LogSeries):
            said = f"preset {query.place.metrics!r} has no log lines by the name {metric!r}"
            return nothing(metric, Availability.NO_SERIES, said)
        labels = {
            Arm.CANARY: query.place.canary_log_labels or query.place.canary_labels,
            Arm.STABLE: query.place.stable_log_labels or query.place.stable_labels,
        }
        why = _fault(labels)
        if why:
            return nothing(metric, Availability.NO_SERIES, why)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._judged(query, metric, series, labels)
        except Unavailable as error:
            return nothing(metric, Availability.AWAY, str(error))
        except TimeoutError:
            within = f"{COLLECT_TIMEOUTS * self._timeout_s:g} s"
            return nothing(metric, Availability.AWAY, f"the pods' logs could not be read within {within}")

    async def _judged(
        self, query: WindowQuery, metric: str, series: LogSeries, labels: Mapping[Arm, Mapping[str, str]]
    ) -> Reading:
        """The reading; raises Unavailable where an API server or a kubelet does not say what is needed."""
        namespace = query.place.namespace
        pods: dict[Arm, list[_Pod]] = {}
        for arm in (Arm.CANARY, Arm.STABLE):
            selector = ",".join(f"{key}={value}" for key, value in sorted(labels[arm].items()))
            pods[arm] = await self._pods(namespace, selector)
            if not pods[arm]:
                said = f"namespace {namespace} has no pods of the {arm} with the labels {selector}"
                return nothing(metric, Availability.NO_SERIES, said)
        told, span = lines.kinds(series.patterns), (query.start_s - series.lookback_s, query.end_s)
        canary = await self._logs(namespace, pods[Arm.CANARY], series.container, Search(told, span))
        before = f"for {duration(series.stable_before_s)}"
        if not canary.inside:
            if canary.cut:
                return nothing(metric, canary.worth, f"no such line of the canary, but {canary.cut}")
            return lines.counted(metric, Counter(), Counter(), Counter(), before=before)
        known = Search(told, span, series.stable_before_s, set(canary.inside))
        stable = await self._logs(namespace, pods[Arm.STABLE], series.container, known)
        reading = lines.counted(
            metric,
            canary.inside,
            stable.inside,
            stable.before,
            sample=canary.sample if series.quoted else "",
            before=before,
        )
        assert isinstance(reading.counts, LineCounts)
        if stable.cut and any(reading.counts.only_on_canary()):
            said = f"whether stable has them is not known, because {stable.cut}: {reading.detail}"
            return nothing(metric, stable.worth, said)
        return reading

    async def _pods(self, namespace: str, selector: str) -> list[_Pod]:
        """The pods by name, one more than are read where there are more."""
        what = f"list the pods of {namespace} with {selector}"
        status, body = await self._get(
            what,
            partial(
                get,
                self._api,
                PODS,
                {"namespace": namespace},
                labelSelector=selector,
                limit=MAX_PODS + 1,
                timeout_s=self._timeout_s,
            ),
            MAX_LIST_BYTES,
        )
        if status != 200:
            raise Unavailable(_refusal(what, status, body, "pods"))
        try:
            return sorted(_PODS.decode(body).items, key=lambda pod: pod.metadata.name)
        except (ValueError, RecursionError):
            raise Unavailable(f"the API server answers «{what}» with something that is no list of pods") from None

    async def _logs(self, namespace: str, pods: Sequence[_Pod], named: str | None, search: Search) -> _Found:
        """What the logs of some pods say. A pod that cannot be read is only trouble where the others say nothing."""
        asked = []
        for pod in pods[:MAX_PODS]:
            container = pod.container(named)
            if all(container != one.name for one in pod.spec.containers):
                there = ", ".join(one.name for one in pod.spec.containers)
                said = f"pod {pod.metadata.name} has no container {container}, but {there}; name one in the preset"
                return _Found(cut=said, away=True)
            asked += [(pod.metadata.name, container, last) for last in {False, pod.restarted(container)}]
        results = await asyncio.gather(*(self._log(namespace, *one, search) for one in asked), return_exceptions=True)
        out = _Found()
        for one in results:
            if isinstance(one, Unavailable):
                out.add(_Found(cut=str(one), away=True))
            elif isinstance(one, BaseException):
                raise one
            else:
                out.add(one)
        if len(pods) > MAX_PODS:
            out.cut = out.cut or f"only {MAX_PODS} of its pods were read"
        return out

    async def _log(
        self,
        namespace: str,
        pod: str,
        container: str,
        last: bool,
        search: Search,
    ) -> _Found:
        """What one container's log says; nothing for one that has not begun or is gone."""
        what = f"read the log of {container} in pod {namespace}/{pod}"
        # A second more, because the API server counts back from its own clock.
        since_s = math.ceil(self._clock.now().timestamp() - (search.span[0] - search.before_s)) + 1
        scan, cut, body = Scan(search), False, b""
        async with self._gate:
            if search.done:
                return scan.found
            if search.left_bytes <= 0:
                return _Found(cut=f"pod {pod} was not read, after {MAX_ARM_BYTES} bytes of others")
            with answered(what):
                response = await get(
                    self._api,
                    f"{PODS}/{{pod}}/log",
                    {"namespace": namespace, "pod": pod},
                    container=container,
                    previous="true" if last else "false",
                    sinceSeconds=max(1, since_s),
                    limitBytes=MAX_LOG_BYTES,
                    timestamps="true",
                    timeout_s=self._timeout_s,
                )
                async with response:
                    status = response.status
                    if status == 200:
                        async for piece in response.content.iter_chunked(PIECE_BYTES):
                            search.left_bytes -= len(piece)
                            await asyncio.to_thread(scan.take, piece)
                            cut = scan.read_bytes >= MAX_LOG_BYTES or search.left_bytes <= 0
                            if cut or search.done:
                                break
                    else:
                        body = await start_of(response, MAX_REFUSAL_BYTES)
        if status == 204 or (status in (400, 404) and _nothing_written(status, body, pod, last)):
            return _Found()
        if status != 200:
            raise Unavailable(_refusal(what, status, body, "pods/log"))
        await asyncio.to_thread(scan.end)
        if cut and not search.done:
            scan.found.cut = f"pod {pod} wrote more than {scan.read_bytes} bytes, the rest of which was not read"
        return scan.found

    async def _get(
        self, what: str, call: Callable[[], Awaitable[aiohttp.ClientResponse]], max_bytes: int
    ) -> tuple[int, bytes]:
        """Status and body, no more of it than allowed; raises Unavailable."""
        with answered(what):
            async with self._gate, await call() as response:
                return response.status, await start_of(response, max_bytes)


def _fault(labels: Mapping[Arm, Mapping[str, str]]) -> str:
    """Why these cannot be labels of the arms' pods; empty when they can."""
    for arm, listed in labels.items():
        if not listed:
            return f"the target gives the {arm} no labels, so all pods there are would be its own"
        for key, value in listed.items():
            if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
                return f"{key!r}: {value!r} of the {arm} is no label of a pod; set logs in the target"
    if labels[Arm.CANARY] == labels[Arm.STABLE]:
        return "both arms have the same labels, so the candidate's pods would be compared with themselves"
    return ""


def _nothing_written(status: int, body: bytes, pod: str, last: bool) -> bool:
    """Whether a refusal says that there is no log: the container has not begun, or the pod is gone since it was listed.

    404 is also said of a node that has gone, with the node's name, and then nobody knows what the pod wrote.
    """
    try:
        said = json.loads(body[:100_000])
        if status == 404:
            return bool(said["details"]["name"] == pod)
        return last or "waiting to start" in str(said["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _refusal(what: str, status: int, body: bytes, resource: str) -> str:
    try:
        said = lines.shown(str(json.loads(body[:100_000]).get("message", "")), 200)
    except (ValueError, AttributeError, RecursionError):
        said = ""
    do = f"; the chart grants {resource} with rbac.podLogs: true" if status in (401, 403) else ""
    return f"the API server answers {status} to «{what}»: {said}{do}"
