"""Serinus' own metrics. Never labelled by rollout, service or pod: their number must not grow with use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.app.heartbeats import Heartbeats
from service.app.tracing import UNTRACED, Tracer
from service.model.instruction import Lane, Publish
from service.model.rollout import Phase
from service.ring.seen import ANYTHING, About, Unseen
from service.ring.store import Change

QUICK_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
LAG_S = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600)

COUNTED_FOR_S = 60.0
"""What was counted in the database longer ago than this is not shown any more."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What only the database knows, of all replicas together."""

    at: datetime
    owed: Mapping[Lane, tuple[int, datetime | None]]
    rollouts: Mapping[Phase, int]
    overdue_n: int
    overdue_since: datetime | None
    """When the oldest window that is not judged yet could have been."""


class OwnMetrics(Unseen):
    """The instruments, in a registry of their own. Implements ``ring.seen.Observer``."""

    def __init__(self, version: str, *, clock_behind_s: Callable[[], float] = float, tracer: Tracer = UNTRACED) -> None:
        """``clock_behind_s``: how far the machine's clock is ahead of the service's own."""
        self.registry = CollectorRegistry()
        self.beats = Heartbeats()
        self.counted = CountedGauges()
        self.retention = RetentionMetrics(self.registry)
        self._tracer = tracer
        ProcessCollector(registry=self.registry)
        self.registry.register(self.counted)
        self.registry.register(_Silence(self.beats))
        build = Gauge("serinus_build_info", "1, labelled by version.", ["version"], registry=self.registry)
        build.labels(version=version).set(1)
        behind = Gauge(
            "serinus_clock_behind_seconds", "The machine's clock minus the service's own.", registry=self.registry
        )
        behind.set_function(clock_behind_s)

        self._events = self._counter("events_total", "Event bus records by outcome.", "outcome")
        self._event_lag_s = self._histogram("event_lag_seconds", "From the bus to the committed effect.", LAG_S)
        self._behind = Gauge(
            "serinus_event_backlog_records", "Records of our partitions that wait to be read.", registry=self.registry
        )
        self._predictions = self._counter(
            "prediction_records_total", "Prediction records that are done with, by outcome.", "topic", "outcome"
        )
        self._poison = self._counter(
            "prediction_poison_total", "Prediction records that could not be counted.", "topic", "reason"
        )
        self._prediction_lag_s = Gauge(
            "serinus_prediction_lag_seconds",
            "How far reading the prediction records of our partitions is behind the present.",
            ["topic"],
            registry=self.registry,
        )
        self._clock_behind_s = clock_behind_s
        self._window_lag_s = self._histogram(
            "window_lag_seconds", "From when a window could be judged (its end and the grace) to its verdict.", LAG_S
        )
        self._phase_s = self._histogram("tick_phase_seconds", "A phase of one turn of the tick.", QUICK_S, "phase")
        self._query_s = self._histogram("query_seconds", "One question to a metric store.", QUICK_S, "cluster")
        self._query_errors = self._counter(
            "query_errors_total", "Questions to a metric store without a whole answer.", "cluster", "reason"
        )
        self._tries = self._counter("instructions_total", "Tries of owed instructions.", "type", "outcome")
        self._try_s = self._histogram("instruction_seconds", "One try of an owed instruction.", QUICK_S, "type")
        self._store_s = self._histogram("store_seconds", "One call of the store.", QUICK_S, "call")
        self._store_errors = self._counter("store_errors_total", "Failed calls of the store.", "call", "reason")
        self._decisions = self._counter("decisions_total", "Decisions made.", "decision", "mode")
        self._breaker = Gauge(
            "serinus_breaker_open",
            "1 while a part outside is left alone because it keeps failing.",
            ["part", "cluster"],
            registry=self.registry,
        )

    def _counter(self, name: str, said: str, *labels: str) -> Counter:
        return Counter(f"serinus_{name}", said, labels, registry=self.registry)

    def _histogram(self, name: str, said: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"serinus_{name}", said, labels, buckets=buckets, registry=self.registry)

    # --- Observer ---------------------------------------------------------------------------------------------------

    def turned(self, loop: str) -> None:
        """See ``Observer.turned``."""
        self.beats.turned(loop)

    @contextmanager
    def handling(self, what: str, about: About = ANYTHING) -> Iterator[None]:
        """See ``Observer.handling``."""
        with super().handling(what, about), self._tracer.span(what, about):
            yield

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """See ``Observer.phase``."""
        began_s = time.perf_counter()
        try:
            with self.part(phase):
                yield
        finally:
            self._phase_s.labels(phase).observe(time.perf_counter() - began_s)

    def event(self, outcome: str, lag_s: float) -> None:
        """See ``Observer.event``."""
        self._events.labels(outcome).inc()
        self._event_lag_s.observe(max(0.0, lag_s))

    def behind(self, records_n: int) -> None:
        """See ``Observer.behind``."""
        self._behind.set(records_n)

    def predictions(self, topic: str, outcome: str, records_n: int) -> None:
        """See ``Observer.predictions``."""
        self._predictions.labels(topic, outcome).inc(records_n)

    def poison(self, topic: str, reason: str, records_n: int) -> None:
        """See ``Observer.poison``."""
        self._poison.labels(topic, reason).inc(records_n)

    def predictions_read(self, topic: str, until_s: float | None) -> None:
        """See ``Observer.predictions_read``. What is shown goes on growing when nothing is told any more."""
        if until_s is None:
            self._prediction_lag_s.clear()
        else:
            lag = self._prediction_lag_s.labels(topic)
            lag.set_function(lambda: max(0.0, time.time() - self._clock_behind_s() - until_s))

    def asked(self, cluster: str, outcome: str, took_s: float) -> None:
        """See ``Observer.asked``."""
        self.left_alone("source", cluster, outcome == "open")
        if outcome != "open":
            self._query_s.labels(cluster).observe(took_s)
        if outcome not in ("ok", "early"):
            self._query_errors.labels(cluster, outcome).inc()

    def tried(self, kind: str, outcome: str, took_s: float) -> None:
        """See ``Observer.tried``."""
        self._tries.labels(kind, outcome).inc()
        self._try_s.labels(kind).observe(took_s)

    def left_alone(self, part: str, cluster: str, is_open: bool) -> None:
        """See ``Observer.left_alone``."""
        self._breaker.labels(part, cluster).set(is_open)

    def part(self, what: str) -> AbstractContextManager[None]:
        """A span inside the one that is open now; nothing where none is."""
        return self._tracer.part(what)

    # --- the store, as ``observed_store`` sees it ---------------------------------------------------------------------

    def stored(self, call: str, reason: str, took_s: float) -> None:
        """One call of the store; ``reason`` of its failure (``unavailable``, ``conflict``, ``other``), or empty."""
        self._store_s.labels(call).observe(took_s)
        if reason:
            self._store_errors.labels(call, reason).inc()

    def committed(self, changes: Sequence[Change], now: datetime, grace_s: float) -> None:
        """What a commit holds is now true: its windows are judged and its decisions are made."""
        for change in changes:
            for _, window in change.windows:
                self._window_lag_s.observe(max(0.0, (now - window.end).total_seconds() - grace_s))
            for order in change.orders:
                if isinstance(order, Publish):
                    decision, mode = order.content["decision"], order.content["mode"]
                    self._decisions.labels(decision, mode).inc()


class CountedGauges(Collector):
    """Gauges of what is counted in the database, shown by the one replica that counted last and while it is fresh."""

    def __init__(self) -> None:
        self._latest: Counted | None = None
        self._at_s = 0.0

    def show(self, counted: Counted | None) -> None:
        """These numbers from now on; None: another replica shows them."""
        self._latest = counted
        self._at_s = time.monotonic()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families; without samples where there is nothing fresh to show."""
        counted = self._latest if time.monotonic() - self._at_s < COUNTED_FOR_S else None

        def age_s(since: datetime | None) -> float:
            return max(0.0, (counted.at - since).total_seconds()) if counted and since else 0.0

        owed = GaugeMetricFamily("serinus_owed_instructions", "Instructions owed by lane.", labels=["lane"])
        oldest = GaugeMetricFamily("serinus_owed_oldest_seconds", "Age of the oldest owed by lane.", labels=["lane"])
        rollouts = GaugeMetricFamily("serinus_rollouts", "Rollouts by phase.", labels=["phase"])
        overdue = GaugeMetricFamily("serinus_windows_overdue", "Windows that can be judged and are not yet.")
        since = GaugeMetricFamily("serinus_windows_overdue_oldest_seconds", "How long the oldest of them can be.")
        if counted is not None:
            for lane, (owed_n, owed_since) in counted.owed.items():
                owed.add_metric([lane.value], owed_n)
                oldest.add_metric([lane.value], age_s(owed_since))
            for phase in Phase:
                rollouts.add_metric([phase.value], counted.rollouts.get(phase, 0))
            overdue.add_metric([], counted.overdue_n)
            since.add_metric([], age_s(counted.overdue_since))
        yield from (owed, oldest, rollouts, overdue, since)


class RetentionMetrics:
    """What is deleted and exported. Implements ``storage.retention.Told``; only the replica that does it counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = Counter("serinus_pruned_rows_total", "Rows deleted for their age.", ["kind"], registry=registry)
        self._exported = Counter("serinus_exported_rollouts_total", "Rollouts exported to files.", registry=registry)
        self._fails = Gauge(
            "serinus_export_failing", "1 while nothing is deleted because the export fails.", registry=registry
        )
        self._looked_at = Gauge(
            "serinus_retention_last_run_timestamp_seconds", "End of the last whole run.", registry=registry
        )
        self._oldest_at = Gauge(
            "serinus_oldest_kept_timestamp_seconds", "Time of the oldest row kept.", ["kind"], registry=registry
        )

    def pruned(self, kind: str, rows_n: int) -> None:
        """See ``Told.pruned``."""
        self._rows.labels(kind).inc(rows_n)

    def exported(self, rollouts_n: int) -> None:
        """See ``Told.exported``."""
        self._exported.inc(rollouts_n)

    def export_fails(self, fails: bool) -> None:
        """See ``Told.export_fails``."""
        self._fails.set(fails)

    def looked(self, at: datetime, oldest: Mapping[str, float]) -> None:
        """See ``Told.looked``."""
        self._looked_at.set(at.timestamp())
        for kind, at_s in oldest.items():
            self._oldest_at.labels(kind).set(at_s)


class _Silence(Collector):
    def __init__(self, beats: Heartbeats) -> None:
        self._beats = beats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("serinus_loop_silent_seconds", "Since a loop last went round.", labels=["loop"])
        for loop, silent_s in self._beats.silent_s().items():
            family.add_metric([loop], silent_s)
        yield family
