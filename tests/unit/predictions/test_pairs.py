"""Mirrored requests: joined once in bounded memory, and judged pair by pair for a policy's guards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.names import RolloutId
from service.model.observation import ArmValues, Availability, Reading, WindowQuery
from service.model.preset import MetricsPreset
from service.predictions.pairing import SEPARATOR, WITHIN_S, Joiner, Pair
from service.predictions.pairs import PairsSource
from service.ring.stopping import Stopping
from service.storage.opening import open_store
from service.storage.predictions import SqlPredictions
from tests.unit.predictions.kafka import START_S, TOPIC, Client, Clock, Topic
from tests.unit.predictions.test_exactly_once import PLACE, consumer

SERVICE = ("default", "ml", "tf-model")
PRESET = MetricsPreset.model_validate(
    {
        "name": "p",
        "metrics": {
            "shift": {"kind": "prediction_pairs", "tolerated": 0.02},
            "disagreement": {"kind": "prediction_pairs", "gives": "disagreement", "tolerated": 0.02},
        },
    }
)


def add(joiner: Joiner, n: int, version: str, label: str = "a", at_s: float = 0.0) -> list[Pair]:
    return joiner.add(SERVICE, "", f"r{n}", version, at_s, (("", label),))


def test_two_answers_make_one_pair_whichever_comes_first() -> None:
    joiner = Joiner(10)
    assert add(joiner, 1, "v2", "b") == []
    wanted = Pair("", f"v1{SEPARATOR}v2", f"a{SEPARATOR}b")
    assert add(joiner, 1, "v1", "a", at_s=3.0) == [wanted]
    assert add(joiner, 2, "v1", "a") == []
    assert add(joiner, 2, "v2", "b") == [wanted]
    assert len(joiner) == 0


def test_an_answer_that_comes_twice_pairs_with_nothing_and_keeps_its_place() -> None:
    joiner = Joiner(10)
    assert add(joiner, 1, "v1") == add(joiner, 1, "v1") == []
    assert len(add(joiner, 1, "v2")) == 1
    assert add(joiner, 1, "v2") == []


def test_halves_wait_within_bounds_of_time_and_number() -> None:
    joiner = Joiner(3)
    for n in range(5):
        add(joiner, n, "v1")
    assert (len(joiner), joiner.unpaired_n) == (3, 2)
    assert add(joiner, 0, "v2") == []
    assert add(joiner, 4, "v2", at_s=WITHIN_S + 1) == []
    add(joiner, 9, "v1", at_s=3 * WITHIN_S)
    assert len(joiner) == 1


def test_only_outputs_that_both_answers_have_make_pairs() -> None:
    joiner = Joiner(3)
    joiner.add(SERVICE, "", "r", "v1", 0.0, (("label", "a"), ("rank", "x"), ("odd", f"a{SEPARATOR}b")))
    found = joiner.add(SERVICE, "", "r", "v2", 0.0, (("label", "a"), ("odd", "a"), ("more", "z")))
    assert [pair.output for pair in found] == ["label"]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlPredictions]:
    opened = await open_store(f"sqlite:///{tmp_path / 's.db'}")
    yield SqlPredictions(opened)
    await opened.close()


async def told(store: SqlPredictions, *, forth: float, back: float, windows_n: int = 10) -> list[list[Reading]]:
    """Readings of ten windows of 60 mirrored requests; of those that stable puts in ``a`` (``b``), the canary puts
    the share ``forth`` (``back``) into the other class."""
    clock, topic, stopping, chance = Clock(), Topic(2), Stopping(), random.Random(1)
    begin_s = START_S - START_S % 60
    for n in range(60 * windows_n):
        at_s, label = begin_s + n + 0.5, chance.choice("ab")
        other = {"a": "b", "b": "a"}[label] if chance.random() < {"a": forth, "b": back}[label] else label
        for version, said in (("v1", label), ("v2", other)):
            topic.put(n % 2, at_s, version=version, request_id=f"r{n}", **{"class": said})
    clock.now_s = begin_s + 60 * windows_n + 5
    one = consumer(store, clock, Client(topic, clock, [0, 1]), stopping=stopping, lateness_s=1.0, waiting_n=1000)
    task = asyncio.ensure_future(one.run())
    while min((one.watermark_s for one in await store.partitions(TOPIC)), default=0.0) < begin_s + 60 * windows_n:
        await asyncio.sleep(0)
    stopping.ask()
    await task
    source = PairsSource(store, {"p": PRESET}, topic=TOPIC, clock=clock)
    out = []
    for n in range(1, windows_n + 1):
        end_s = begin_s + 60 * n
        query = WindowQuery(RolloutId("r-1"), "default", PLACE, ("shift", "disagreement"), end_s - 60, end_s)
        out.append(list((await source.collect([query]))[0]))
        assert list((await source.collect([query]))[0]) == out[-1]
    return out


def evidence(readings: list[list[Reading]]) -> list[float]:
    values = [one[0].counts for one in readings]
    assert all(isinstance(value, ArmValues) for value in values)
    return [value.canary for value in values if isinstance(value, ArmValues) and value.canary is not None]


async def test_a_shift_of_five_points_is_found_within_a_few_windows_and_the_rate_is_told(
    store: SqlPredictions,
) -> None:
    found = await told(store, forth=0.12, back=0.02)
    assert max(evidence(found)) > 4.6
    rate = found[-1][1].counts
    assert isinstance(rate, ArmValues)
    assert 0.05 < (rate.canary or 0) < 0.09
    assert rate.stable == 0.02
    assert "of 600 pairs differ so far" in found[-1][1].detail


async def test_answers_that_differ_no_more_than_tolerated_either_way_are_no_evidence(store: SqlPredictions) -> None:
    assert max(evidence(await told(store, forth=0.015, back=0.015))) < 4.6


async def test_without_pairs_there_is_nothing_to_compare(store: SqlPredictions) -> None:
    ((shift, _), *_) = await told(store, forth=0.0, back=0.0, windows_n=1)
    assert shift.availability is Availability.ENOUGH
    end_s = START_S - START_S % 60 - 60
    source = PairsSource(store, {"p": PRESET}, topic=TOPIC, clock=Clock())
    query = WindowQuery(RolloutId("r-2"), "default", PLACE, ("shift", "nope"), end_s - 60, end_s)
    ((empty, unknown),) = await source.collect([query])
    assert (empty.availability, "same request_id" in empty.detail) == (Availability.NO_SERIES, True)
    assert "no prediction pairs named 'nope'" in unknown.detail
