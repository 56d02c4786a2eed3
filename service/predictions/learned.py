"""The learned detector: can a classifier that was trained on past windows tell this window's arms apart?

For embeddings, whose every direction may matter. A worker process trains a small Keras model (``keras_worker``) on
what both versions have sent up to the window's start, in the hour before it; the window's own embeddings are then bet
on (``analyzers.learned``). A window enters a rollout's bets once, as with ``pairs``; one that the worker could not do
in time is AWAY and enters never, which costs evidence and no promise.
"""

from __future__ import annotations

import array
import asyncio
import base64
import binascii
import contextlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from analyzers.learned import LearnedEvidence, bet
from service.model.names import Arm
from service.model.observation import ArmValues, Availability, Reading
from service.model.preset import MetricsPreset, PredictionLearned
from service.predictions.asking import MOST_BODIES, Ask, Slot, TopicSource, away
from service.predictions.decode import View
from service.predictions.source import HISTORY_S
from service.predictions.tally import from_bytes, slots_of
from service.ring.ports import Clock, PortError, Unavailable
from service.ring.predictions import PredictionStore, Reference

logger = logging.getLogger(__name__)

Rows: TypeAlias = NDArray[np.float32]

LEAST_N: Final = 50
"""Embeddings of each arm before a classifier is trained."""

MOST_N: Final = 4_000
"""Embeddings of each arm that it is trained on, the newest."""

ANSWER_S: Final = 30.0
"""The first answer has TensorFlow's import in it; the others take about two seconds."""


class Learner(Protocol):
    """Something that learns to tell two sets of rows apart."""

    async def say(self, canary: Rows, stable: Rows, new: Rows, *, seed: int) -> Rows:
        """(n,) between -1 (like stable) and 1 (like the canary) for each new row. Raises Unavailable."""


class KerasLearner:
    """Asks the worker process, which is started with the first question and ended when it does not answer."""

    def __init__(self, command: Sequence[str] = (), *, answer_s: float = ANSWER_S) -> None:
        self._command = command or (sys.executable, str(Path(__file__).with_name("keras_worker.py")))
        self._answer_s = answer_s
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def say(self, canary: Rows, stable: Rows, new: Rows, *, seed: int) -> Rows:
        """See ``Learner.say``."""
        head = {"canary": len(canary), "stable": len(stable), "new": len(new), "dims": new.shape[1], "seed": seed}
        body = b"".join(np.ascontiguousarray(rows, dtype="<f4").tobytes() for rows in (canary, stable, new))
        async with self._asking:
            try:
                async with asyncio.timeout(self._answer_s):
                    return await self._ask(json.dumps(head).encode() + b"\n" + body)
            except (TimeoutError, OSError, ValueError, KeyError, TypeError, asyncio.IncompleteReadError) as error:
                await self.close()
                raise Unavailable(
                    f"the learned detector's process gave no answer ({type(error).__name__}); is the extra "
                    "`tensorflow` installed?"
                ) from error
            except asyncio.CancelledError:
                # In the middle of an answer, which the next question would take for its own.
                await self.close()
                raise

    async def _ask(self, question: bytes) -> Rows:
        if self._process is None or self._process.returncode is not None:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        sink.write(question)
        await sink.drain()
        answer = json.loads(await source.readline())
        if "failed" in answer:
            raise Unavailable(f"the learned detector could not train: {str(answer['failed'])[:300]}")
        return np.frombuffer(await source.readexactly(4 * int(answer["said"])), "<f4")

    async def close(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    """What is kept of one rollout's metric."""

    end_s: float
    wealth: tuple[float, ...]
    windows: int


_Ask: TypeAlias = Ask[PredictionLearned]


class LearnedSource(TopicSource[PredictionLearned]):
    """Reads metrics of kind ``prediction_learned``: one training a rollout and window, for the few services whose
    embeddings matter."""

    kind = PredictionLearned
    called = "learned detector"

    def __init__(
        self,
        store: PredictionStore,
        presets: Mapping[str, MetricsPreset],
        learner: Learner,
        *,
        topic: str,
        clock: Clock,
    ) -> None:
        super().__init__(store, presets, topic=topic, clock=clock)
        self._learner = learner

    async def _read(
        self, by_window: Mapping[tuple[float, float], Sequence[_Ask]], readings: dict[Slot, Reading]
    ) -> None:
        for ask in [ask for listed in by_window.values() for ask in listed]:
            try:
                readings[ask.slot] = await self._judged(ask)
            except PortError as error:
                readings[ask.slot] = away(ask.metric, error)

    async def _judged(self, ask: _Ask) -> Reading:
        now_s = self._clock.now().timestamp()
        key = (ask.rollout, f"learned of {ask.what.model or '*'}/{ask.what.output}"[:130])
        was = (await self._store.references([key])).get(key)
        kept = _Kept(0.0, LearnedEvidence().wealth, 0) if was is None else msgspec.msgpack.decode(was, type=_Kept)
        evidence = LearnedEvidence(kept.wealth, kept.windows)
        if ask.end_s > kept.end_s:
            found = await self._embeddings(ask)
            if isinstance(found, Reading):
                return found
            past, now = found
            new = np.concatenate([now[Arm.CANARY], now[Arm.STABLE]])
            said = await self._learner.say(past[Arm.CANARY], past[Arm.STABLE], new, seed=kept.windows)
            canary_n = len(now[Arm.CANARY])
            evidence = bet(evidence, said[:canary_n], said[canary_n:])
            body = msgspec.msgpack.encode(_Kept(ask.end_s, evidence.wealth, evidence.windows))
            await self._store.replace(Reference(*key, body), was, now_s)
        detail = f"bet on in {evidence.windows} windows"
        return Reading(ask.metric, Availability.ENOUGH, ArmValues(evidence.log_evidence, None), detail)

    async def _embeddings(self, ask: _Ask) -> tuple[dict[Arm, Rows], dict[Arm, Rows]] | Reading:
        """Embeddings by arm of the hour before the window, and of the window; or what is missing."""
        begin_s = ask.end_s - HISTORY_S
        bodies = await self._store.counts(self._topic, [ask.service], begin_s, ask.end_s, limit=MOST_BODIES)
        now_slots, past_slots = slots_of(ask.start_s, ask.end_s), slots_of(begin_s, ask.start_s)
        assert now_slots is not None
        assert past_slots is not None
        past, now = await asyncio.to_thread(_parted, ask, bodies.get(ask.service, ()), past_slots, now_slots)
        for arm in Arm:
            if not len(past[arm]) and not len(now[arm]):
                why = f"no embeddings of version {ask.versions[arm]!r} ({arm}) of {ask.service} were kept"
                return Reading(ask.metric, Availability.NO_SERIES, None, why)
        fewest = min(len(past[arm]) for arm in Arm)
        if fewest < LEAST_N or not all(len(now[arm]) for arm in Arm):
            why = f"a classifier is trained on {LEAST_N} embeddings of each version, so far there are {fewest}"
            return Reading(ask.metric, Availability.FEW, None, why)
        return past, now


def _parted(
    ask: _Ask, bodies: Sequence[bytes], past_slots: range, now_slots: range
) -> tuple[dict[Arm, Rows], dict[Arm, Rows]]:
    """Embeddings by arm, before the window and in it. Those of another length than stable's newest are left out."""
    listed: dict[tuple[bool, Arm], list[tuple[int, bytes]]] = {(new, arm): [] for new in (False, True) for arm in Arm}
    by_version = {version: arm for arm, version in ask.versions.items()}
    for body in bodies:
        for model, version, output, view, slot, counts in from_bytes(body):
            if (output, view) != (ask.what.output, View.SAMPLE) or version not in by_version:
                continue
            if ask.what.model in ("", model) and (slot in past_slots or slot in now_slots):
                rows = listed[slot in now_slots, by_version[version]]
                for sample in counts:
                    with contextlib.suppress(ValueError, binascii.Error):
                        rows.append((slot, base64.b85decode(str(sample))))
    for rows in listed.values():
        rows.sort(reverse=True)
    stable = listed[True, Arm.STABLE] or listed[False, Arm.STABLE]
    size = len(stable[0][1]) if stable else 0
    arrays = {
        key: np.array(
            [array.array("f", row) for _, row in rows if len(row) == size][:MOST_N], dtype=np.float32
        ).reshape(-1, max(size // 4, 1))
        for key, rows in listed.items()
    }
    return {arm: arrays[False, arm] for arm in Arm}, {arm: arrays[True, arm] for arm in Arm}
