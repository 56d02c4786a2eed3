"""Prediction records: bytes of a topic to what is counted, or why not. Pure and total.

A record is one JSON object. What says whose prediction it is:

    service, namespace   Kubernetes names (required)
    version              the version that answered, as the target's labels name it (required)
    time                 seconds since 1970, or RFC 3339 with a zone (required)
    request_id           text or number; the same for both answers of a mirrored request (pairs need it)
    cluster              where it ran; the consumer's own cluster when absent
    model                where one service holds several models

and what was predicted, one or more of

    class                text, whole number or boolean
    top                  labels, the likeliest first, at most 20
    scores               {label: score} or [score, ...], each from 0 to 1: gives the class, its score and the top labels
    score                a number from 0 to 1; null: not a number
    value                any number (regression); null: not a number
    distance             a number that sums up an embedding, such as its distance to a centroid
    embedding            up to 4,096 numbers; its distance to a frozen centroid is counted

at the top level for a model with one output, or by output in ``outputs``: {"label": {"class": "cat"}, ...}, at most
16. Keys that are not named here are left alone. No schema registry is needed.

A prediction is looked at in *views*. A record counts once in each, because the statistics take records for their
units: of the top labels, one is drawn by the request's id.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.model.names import DNS_LABEL, DNS_NAME, LABEL_VALUE
from service.predictions.binning import NOT_A_NUMBER, Category, cell_of_score, cell_of_value

MOST_BYTES: Final = 128 * 1024
"""A larger record is no prediction; an embedding of 4,096 numbers fits."""

MOST_OUTPUTS: Final = 16
MOST_TOP: Final = 20
MOST_SCORES: Final = 5000
MOST_NUMBERS: Final = 4096
CLASS_CHARS: Final = 100
TOP_OF_SCORES: Final = 5
"""Labels that scores give to the view of the top labels."""

EARLIEST_S: Final = 1e9
"""Times before 2001 are no times of predictions: most likely another unit."""

AHEAD_S: Final = 60.0
"""A record may be so far ahead of this machine's clock."""


class View(StrEnum):
    """How a prediction is looked at."""

    CLASS = "class"
    TOP = "top"
    SCORE = "score"
    VALUE = "value"
    DISTANCE = "distance"
    PAIR = "pair"
    """Classes of both versions for one mirrored request (``pairing``)."""
    SAMPLE = "sample"
    """Some whole embeddings, for the classifier that learns to tell the arms apart (``learned``)."""


def _whole(pattern: str) -> str:
    """For the engine here, to which ``$`` also fits before a line break at the end: names that the store refuses."""
    return pattern.removesuffix("$") + r"\Z"


_Name = Annotated[str, Meta(pattern=_whole(DNS_LABEL), max_length=63)]
_Class: TypeAlias = Annotated[str, Meta(min_length=1, max_length=CLASS_CHARS)] | int | bool
_Number: TypeAlias = float | None
_Score: TypeAlias = Annotated[float, Meta(ge=0, le=1)] | None
_Scores: TypeAlias = (
    Annotated[dict[Annotated[str, Meta(min_length=1, max_length=CLASS_CHARS)], _Score], Meta(max_length=MOST_SCORES)]
    | Annotated[list[_Score], Meta(max_length=MOST_SCORES)]
)


class _Output(msgspec.Struct, rename={"class_": "class"}):
    class_: _Class | UnsetType = UNSET
    top: Annotated[list[_Class], Meta(min_length=1, max_length=MOST_TOP)] | UnsetType = UNSET
    scores: _Scores | UnsetType = UNSET
    score: _Score | UnsetType = UNSET
    value: _Number | UnsetType = UNSET
    distance: _Number | UnsetType = UNSET
    embedding: Annotated[list[float], Meta(min_length=1, max_length=MOST_NUMBERS)] | UnsetType = UNSET


class _Record(_Output, kw_only=True):
    service: _Name
    namespace: _Name
    version: Annotated[str, Meta(pattern=_whole(LABEL_VALUE), max_length=128)]
    time: float | Annotated[datetime, Meta(tz=True)]
    cluster: Annotated[str, Meta(pattern=_whole(DNS_NAME), max_length=253)] = ""
    model: Annotated[str, Meta(max_length=CLASS_CHARS)] = ""
    request_id: Annotated[str, Meta(max_length=256)] | int = ""
    outputs: Annotated[dict[_Name, _Output], Meta(max_length=MOST_OUTPUTS)] = {}


_DECODER = msgspec.json.Decoder(_Record)

Counted: TypeAlias = tuple[str, View, Category]
"""(output, view, category); the output is empty for a model with one."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One record, ready to be counted."""

    cluster: str
    """Empty: the consumer's own."""
    namespace: str
    service: str
    model: str
    version: str
    request_id: str
    """Empty: none was given."""
    time_s: float
    counted: tuple[Counted, ...]
    embeddings: tuple[tuple[str, list[float]], ...] = ()
    """(output, numbers), which a centroid turns into a distance."""


@dataclass(frozen=True, slots=True)
class Poison:
    """What cannot be counted: ``code`` for counting, ``reason`` for people, without the record's own text."""

    code: str
    reason: str


def decode(value: bytes | None, *, now_s: float) -> Prediction | Poison:
    """The prediction that a record holds. Never raises, whatever the bytes."""
    if not value:
        return Poison("empty", "the record has no value")
    if len(value) > MOST_BYTES:
        return Poison("too_large", f"the record has {len(value)} bytes; at most {MOST_BYTES} are read")
    try:
        record = _DECODER.decode(value)
    except msgspec.ValidationError as error:
        return Poison("schema", f"the record is not as documented: {error}"[:300])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return Poison("json", "the record is no JSON object in UTF-8")
    time_s = record.time if isinstance(record.time, float) else record.time.timestamp()
    if not EARLIEST_S <= time_s <= now_s + AHEAD_S:
        return Poison("time", f"time is {time_s:.0f} s since 1970, and now it is {now_s:.0f}; is it another unit?")
    request_id = record.request_id if isinstance(record.request_id, str) else str(record.request_id)
    counted: list[Counted] = []
    embeddings: list[tuple[str, list[float]]] = []
    draw = -1
    for name, output in (("", record), *record.outputs.items()):
        if output.class_ is not UNSET:
            counted.append((name, View.CLASS, _text(output.class_)))
        top = output.top
        if output.scores is not UNSET:
            ranked = _ranked(output.scores)
            if ranked is None:
                return Poison("scores", "scores holds no number")
            if output.class_ is UNSET:
                counted.append((name, View.CLASS, ranked[0][0]))
            if output.score is UNSET:
                counted.append((name, View.SCORE, _score(ranked[0][1])))
            if top is UNSET:
                top = [label for label, _ in ranked]
        if top is not UNSET:
            if output.class_ is UNSET and output.scores is UNSET:
                counted.append((name, View.CLASS, _text(top[0])))
            if draw < 0:
                draw = zlib.crc32(request_id.encode() if request_id else value)
            counted.append((name, View.TOP, _text(top[draw % len(top)])))
        if output.score is not UNSET:
            counted.append((name, View.SCORE, _score(output.score)))
        if output.value is not UNSET:
            counted.append((name, View.VALUE, _number(output.value)))
        if output.distance is not UNSET:
            counted.append((name, View.DISTANCE, _number(output.distance)))
        if output.embedding is not UNSET:
            embeddings.append((name, output.embedding))
    if not counted and not embeddings:
        return Poison("nothing", "the record holds no class, top, scores, score, value, distance or embedding")
    return Prediction(
        record.cluster,
        record.namespace,
        record.service,
        record.model,
        record.version,
        request_id,
        time_s,
        tuple(counted),
        tuple(embeddings),
    )


def _ranked(scores: dict[str, float | None] | list[float | None]) -> list[tuple[str, float]] | None:
    """The best labels of scores with their scores; None where there is no number. Ties keep their order."""
    items = scores.items() if isinstance(scores, dict) else ((str(i), score) for i, score in enumerate(scores))
    known = [(label, score) for label, score in items if score is not None]
    if not known:
        return None
    return sorted(known, key=lambda one: -one[1])[:TOP_OF_SCORES]


def _text(label: str | int | bool) -> str:
    if isinstance(label, str):
        return label
    return str(label).lower()[:CLASS_CHARS]


def _score(score: float | None) -> Category:
    return NOT_A_NUMBER if score is None or not math.isfinite(score) else cell_of_score(score)


def _number(number: float | None) -> Category:
    return NOT_A_NUMBER if number is None or not math.isfinite(number) else cell_of_value(number)
