"""Prediction records: the consumer that counts them and the readers of their windows, where a topic is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.app.clock import SystemClock
from service.events.connection import Connection
from service.model.preset import MetricsPreset
from service.predictions.consumer import COMMIT_S, POLL_S, PredictionConsumer
from service.predictions.counting import Counting
from service.predictions.learned import KerasLearner, LearnedSource
from service.predictions.pairs import PairsSource
from service.predictions.source import RecordsSource
from service.ring.ports import Source
from service.ring.seen import Observer
from service.ring.stopping import Stopping
from service.settings import Settings, SettingsError
from service.storage.database import Database
from service.storage.predictions import SqlPredictions


@dataclass(frozen=True, slots=True)
class Predictions:
    """consumer : None where no topic is set. readers : by the kind of series that they read."""

    consumer: PredictionConsumer | None
    readers: Mapping[str, Source]
    learner: KerasLearner | None = None
    """To be closed."""


def complete_after_s(settings: Settings) -> float:
    """How long after its end a window's records are counted; 0 where none are read. Windows are judged no sooner."""
    if not settings.predictions.topic:
        return 0.0
    return settings.predictions.lateness_s + POLL_S + 2 * COMMIT_S


def predictions_of(
    settings: Settings,
    connection: Connection,
    database: Database,
    presets: Mapping[str, MetricsPreset],
    *,
    clock: SystemClock,
    seen: Observer,
    stopping: Stopping,
) -> Predictions:
    """What the settings ask for. Raises SettingsError where records could not be told to be of one cluster."""
    wanted, clusters = settings.predictions, settings.all_clusters()
    if not wanted.topic:
        return Predictions(None, {})
    cluster = wanted.cluster or (next(iter(clusters)) if len(clusters) == 1 else None)
    if cluster not in clusters:
        raise SettingsError(
            f"predictions.cluster must name the cluster of records that name none; known: {', '.join(clusters)}"
        )
    store = SqlPredictions(database)
    counting = Counting(
        store,
        clock,
        topic=wanted.topic,
        cluster=cluster,
        lateness_s=wanted.lateness_s,
        waiting_n=wanted.waiting,
        samples=wanted.learn,
    )
    consumer = PredictionConsumer(
        connection.arguments(),
        topic=wanted.topic,
        group=wanted.group,
        counting=counting,
        store=store,
        clock=clock,
        seen=seen,
        stopping=stopping,
    )
    readers: dict[str, Source] = {
        "prediction_records": RecordsSource(store, presets, topic=wanted.topic, clock=clock),
        "prediction_pairs": PairsSource(store, presets, topic=wanted.topic, clock=clock),
    }
    if not wanted.learn:
        return Predictions(consumer, readers)
    learner = KerasLearner()
    readers["prediction_learned"] = LearnedSource(store, presets, learner, topic=wanted.topic, clock=clock)
    return Predictions(consumer, readers, learner)
