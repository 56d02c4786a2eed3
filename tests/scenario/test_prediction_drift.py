"""From records on the topic to a rollback: counted, read as windows, judged, and stepped, on the real database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.analysis.tick import Tick
from service.model.catalog import Catalog
from service.model.preset import MetricsPreset
from service.model.rollout import Phase, RolloutState
from service.predictions.consumer import PredictionConsumer
from service.predictions.counting import Counting
from service.predictions.pairs import PairsSource
from service.predictions.source import RecordsSource
from service.ring.door import Door
from service.ring.ports import Source
from service.ring.stopping import Stopping
from service.sources.routed import RoutedSource
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.contract.store.stories import keep
from tests.stories import Story, place, policy
from tests.unit.predictions.kafka import TOPIC, Client, Clock, Topic

LABELS = {"service": "tf-model-service"}
PLACE = place(metrics="records", stable_labels={**LABELS, "version": "v1"}, canary_labels={**LABELS, "version": "v2"})
WINDOWS_N = 8


def tells(shift: float, chance: random.Random, version: str) -> dict[str, Any]:
    """What a model with two outputs says: of the label, ``shift`` of the canary's go from a to b."""
    label = chance.choices("abc", (0.5, 0.3, 0.2))[0]
    if version == "v2" and label == "a" and chance.random() < shift / 0.5:
        label = "b"
    return {"outputs": {"label": {"class": label}, "topic": {"class": chance.choice("xyz")}}}


async def after(tmp_path: Path, metrics: Mapping[str, Any], rules: dict[str, Any], shift: float) -> RolloutState:
    """The rollout after eight windows of 60 canary and 240 stable predictions each; a third of stable's requests are
    mirrored."""
    preset = MetricsPreset.model_validate({"name": "records", "metrics": metrics})
    story = Story(policy=policy(**rules), place=PLACE).progressing()
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    await keep(opened, story)
    assert story.state.windows_from is not None
    clock, topic, chance, first_s = Clock(), Topic(3), random.Random(7), story.state.windows_from.timestamp()
    for n in range(WINDOWS_N * 300):
        at_s, version = first_s + (n + 0.5) / 5, "v2" if n % 5 == 0 else "v1"
        said = tells(shift, chance, version)
        request = f"r{n // 5}" if n % 5 < 2 else f"own-{n}"
        topic.put(
            n // 5 % 3, at_s, service="tf-model-service", namespace="ml-serving", version=version, request_id=request,
            **said,
        )  # fmt: skip
    clock.now_s = first_s + WINDOWS_N * 60 + 5
    kept, stopping = SqlPredictions(opened), Stopping()
    counting = Counting(kept, clock, topic=TOPIC, cluster="default", lateness_s=2.0, waiting_n=1000)
    client = Client(topic, clock, range(3), most=200)
    one = PredictionConsumer(
        {}, topic=TOPIC, group="g", counting=counting, store=kept, clock=clock, stopping=stopping,
        client=lambda *names, **arguments: client,
    )  # fmt: skip
    task = asyncio.ensure_future(one.run())
    end_s = first_s + WINDOWS_N * 60
    while min((state.watermark_s for state in await kept.partitions(TOPIC)), default=0.0) < end_s:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    readers: dict[str, Source] = {
        "prediction_records": RecordsSource(kept, {"records": preset}, topic=TOPIC, clock=clock),
        "prediction_pairs": PairsSource(kept, {"records": preset}, topic=TOPIC, clock=clock),
    }
    records = readers["prediction_records"]
    source = RoutedSource({"records": preset}, records, readers, deadline_s=30)
    tick = Tick(opened, Door(opened, Catalog(), clock), source, clock, grace_s=10)
    clock.now_s = max(clock.now_s, end_s + 20)
    for _ in range(WINDOWS_N):
        await tick.turn()
        clock.now_s += 1
    state = (await opened.load([story.state.id]))[story.state.id]
    await opened.close()
    return state


OUTPUTS = {f"predictions-{name}": {"kind": "prediction_records", "output": name} for name in ("label", "topic")}
BY_OUTPUT = {"metrics": [{"name": name, "kind": "predictions"} for name in OUTPUTS], "guards": []}


@pytest.mark.parametrize(("shift", "phase"), [(0.3, Phase.ROLLING_BACK), (0.0, Phase.PROGRESSING)])
async def test_a_shift_in_one_output_rolls_back_and_a_good_release_goes_on(
    tmp_path: Path, shift: float, phase: Phase
) -> None:
    state = await after(tmp_path, OUTPUTS, BY_OUTPUT, shift)
    assert state.phase is phase
    label, topic = state.evidence
    assert {one.availability.value for one in (label, topic)} == {"enough"}
    assert (topic.log_e or 0) < 3
    assert ((label.log_e or 0) > 3) == (shift > 0)


@pytest.mark.parametrize(("shift", "phase"), [(0.5, Phase.ROLLING_BACK), (0.0, Phase.PROGRESSING)])
async def test_a_guard_on_pairs_rolls_back_when_mirrored_answers_shift(
    tmp_path: Path, shift: float, phase: Phase
) -> None:
    rules = {
        "metrics": [
            {"name": "predictions", "kind": "predictions"},
            {"name": "shift", "kind": "value", "required": False},
        ],
        "guards": [{"name": "pairs", "metric": "shift", "above": 4.6, "windows": 1, "on_breach": "rollback"}],
    }
    metrics = {
        "predictions": {"kind": "prediction_records", "output": "topic"},
        "shift": {"kind": "prediction_pairs", "output": "label", "tolerated": 0.9},
    }
    state = await after(tmp_path, metrics, rules, shift)
    assert state.phase is phase
    assert ("shift over 4.60" in state.reason) == (shift > 0)
