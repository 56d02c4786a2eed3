"""The learned detector: what it is trained on and judged by, and a worker process that may hang, die or be absent."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.model.names import RolloutId
from service.model.observation import ArmValues, Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.predictions.learned import KerasLearner, LearnedSource, Rows
from service.ring.ports import Unavailable
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.unit.predictions.kafka import START_S, TOPIC, Client, Clock, Topic
from tests.unit.predictions.test_exactly_once import PLACE, consumer

PRESET = MetricsPreset.model_validate({"name": "p", "metrics": {"told-apart": {"kind": "prediction_learned"}}})
BEGIN_S = START_S - START_S % 60

WORKER = """
import json, struct, sys
source, sink = sys.stdin.buffer, sys.stdout.buffer
while line := source.readline():
    asked = json.loads(line)
    source.read(4 * asked["dims"] * (asked["canary"] + asked["stable"] + asked["new"]))
    HOW
"""
ANSWERS = """sink.write(json.dumps({"said": asked["new"]}).encode() + b"\\n")
    sink.write(struct.pack(f"<{asked['new']}f", *[asked["seed"] / 10] * asked["new"])); sink.flush()"""


class Means:
    """Learns the direction from one mean to the other."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    async def say(self, canary: Rows, stable: Rows, new: Rows, *, seed: int) -> Rows:
        self.asked.append((len(canary), len(stable), len(new)))
        towards = canary.mean(0) - stable.mean(0)
        return np.tanh(3 * (new - stable.mean(0)) @ towards).astype(np.float32)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield SqlPredictions(opened)
    await opened.close()


async def counted(store: SqlPredictions, windows_n: int, shift: float) -> Clock:
    """Embeddings of both versions, 60 a minute each, counted; the canary's differ in one of five directions."""
    clock, topic, stopping, chance = Clock(), Topic(1), Stopping(), random.Random(1)
    for n in range(60 * windows_n):
        for version, by in (("v1", 0.0), ("v2", shift)):
            numbers = [chance.gauss(by * (d == 0), 1.0) for d in range(5)]
            topic.put(0, BEGIN_S + n + 0.25, version=version, embedding=numbers)
    clock.now_s = BEGIN_S + 60 * windows_n + 5
    client = Client(topic, clock, [0], most=40)
    one = consumer(store, clock, client, stopping=stopping, lateness_s=1.0, commit_s=0.1, samples=True)
    task = asyncio.ensure_future(one.run())
    while max((state.watermark_s for state in await store.partitions(TOPIC)), default=0) < BEGIN_S + 60 * windows_n:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    return clock


async def read(source: LearnedSource, n: int) -> Reading:
    end_s = BEGIN_S + 60 * n
    query = WindowQuery(RolloutId("r-1"), "default", PLACE, ("told-apart",), end_s - 60, end_s)
    return (await source.collect([query]))[0][0]


def evidence(reading: Reading) -> float:
    assert isinstance(reading.counts, ArmValues)
    return reading.counts.canary or 0.0


async def test_versions_that_differ_are_told_apart_and_each_window_is_bet_on_once(store: SqlPredictions) -> None:
    clock, learner = await counted(store, 6, shift=1.0), Means()
    source = LearnedSource(store, {"p": PRESET}, learner, topic=TOPIC, clock=clock)
    first = await read(source, 1)
    assert (first.availability, first.counts) == (Availability.FEW, None)
    assert "50 embeddings of each version, so far there are 0" in first.detail
    said = [await read(source, n) for n in range(2, 7)]
    assert evidence(said[-1]) > 4.6
    # Trained only on windows before the one that is judged.
    assert learner.asked[0] == (60, 60, 120)
    assert [new for _, _, new in learner.asked] == [120] * 5
    again = await read(source, 6)
    assert (again, len(learner.asked)) == (said[-1], 5)


async def test_versions_that_are_alike_are_not(store: SqlPredictions) -> None:
    clock = await counted(store, 6, shift=0.0)
    source = LearnedSource(store, {"p": PRESET}, Means(), topic=TOPIC, clock=clock)
    said = [await read(source, n) for n in range(2, 7)]
    assert max(evidence(one) for one in said) < 3.0


async def test_without_an_answer_the_window_is_away_and_says_what_to_do(store: SqlPredictions) -> None:
    clock = await counted(store, 3, shift=0.0)
    learner = KerasLearner((sys.executable, "-c", "raise SystemExit(3)"))
    source = LearnedSource(store, {"p": PRESET}, learner, topic=TOPIC, clock=clock)
    found = await read(source, 2)
    assert (found.availability, "is the extra `tensorflow` installed?" in found.detail) == (Availability.AWAY, True)
    assert evidence(await read(LearnedSource(store, {"p": PRESET}, Means(), topic=TOPIC, clock=clock), 2)) is not None


async def ask(learner: KerasLearner, seed: int) -> list[float]:
    rows = np.zeros((3, 2), dtype=np.float32)
    return [round(float(x), 3) for x in await learner.say(rows, rows, rows, seed=seed)]


async def test_one_process_answers_one_question_after_the_other_and_a_new_one_comes_after_a_death() -> None:
    learner = KerasLearner((sys.executable, "-c", WORKER.replace("HOW", ANSWERS)))
    assert await asyncio.gather(ask(learner, 1), ask(learner, 2)) == [[0.1] * 3, [0.2] * 3]
    assert learner._process is not None
    first = learner._process.pid
    learner._process.kill()
    await learner._process.wait()
    assert await ask(learner, 3) == [0.3] * 3
    assert learner._process.pid != first
    await learner.close()


@pytest.mark.parametrize("how", ["import time; time.sleep(600)", "sink.write(b'nonsense\\n'); sink.flush()", "break"])
async def test_a_process_that_hangs_lies_or_dies_is_ended(how: str) -> None:
    learner = KerasLearner((sys.executable, "-c", WORKER.replace("HOW", how)), answer_s=1.0)
    with pytest.raises(Unavailable, match="gave no answer"):
        await ask(learner, 1)
    assert learner._process is None


async def test_what_could_not_be_trained_is_said_and_the_process_lives_on() -> None:
    fails = """sink.write(b'{"failed": "ValueError: too few"}\\n'); sink.flush()"""
    learner = KerasLearner((sys.executable, "-c", WORKER.replace("HOW", fails)))
    for _ in range(2):
        with pytest.raises(Unavailable, match="could not train: ValueError: too few"):
            await ask(learner, 1)
    assert learner._process is not None
    await learner.close()


def keras_python() -> str:
    """An interpreter that has TensorFlow."""
    from tests.real.parts import building

    found: Any = sorted(building.CACHE.glob("tensorflow-2.*/bin/python"))
    if not found:
        pytest.skip("no environment with TensorFlow; make test-real builds them")
    return str(found[-1])


@pytest.mark.real
async def test_keras_tells_apart_what_differs_and_says_the_same_for_the_same_seed() -> None:
    from service.predictions import keras_worker

    learner = KerasLearner((keras_python(), keras_worker.__file__), answer_s=120.0)
    chance = np.random.default_rng(1)
    canary, stable, new = (chance.normal(size=(300, 8)).astype(np.float32) for _ in range(3))
    # A difference that no single direction shows: the canary's lie on a ring.
    canary *= 1.8
    new[150:] *= 1.8
    said = await learner.say(canary, stable, new, seed=1)
    again = await learner.say(canary, stable, new, seed=1)
    await learner.close()
    assert said[150:].mean() > said[:150].mean() + 0.5
    assert (said == again).all()
