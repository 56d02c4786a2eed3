"""Serinus' own metrics. Never labelled by rollout, service or pod: their number must not grow with use."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class OwnMetrics:
    """The instruments, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        build = Gauge("serinus_build_info", "1, labelled by version.", ["version"], registry=self.registry)
        build.labels(version=version).set(1)
        self.window_lag_s = Histogram(
            "serinus_window_lag_seconds",
            "From a window's end to its verdict.",
            buckets=(1, 2, 5, 10, 20, 30, 60, 120, 300, 900, 3600),
            registry=self.registry,
        )
        self.events = Counter(
            "serinus_events_total", "Event bus records by outcome.", ["outcome"], registry=self.registry
        )
        self.instructions = Counter(
            "serinus_instructions_total", "Tries of owed instructions.", ["type", "outcome"], registry=self.registry
        )
        self.rollouts = Gauge("serinus_rollouts", "Rollouts by phase.", ["phase"], registry=self.registry)
        self.owed = Gauge("serinus_owed_instructions", "Instructions owed by lane.", ["lane"], registry=self.registry)
        self.owed_age_s = Gauge(
            "serinus_owed_oldest_seconds",
            "Age of the oldest owed instruction by lane.",
            ["lane"],
            registry=self.registry,
        )
