"""Decoding: every form to one event, everything else to a dead letter, and nothing ever raises."""

from __future__ import annotations

import copy
import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from service.events.decode import MAX_VALUE_BYTES, DeadLetter, Ignored, Record, decode
from service.events.sending import message
from service.model.stimulus import DeploymentEvent, EventKind
from tests.conformance import conformance

AT = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)
STRUCTURED = ("content-type", b"application/cloudevents+json; charset=UTF-8")


def sent(**changes: Any) -> Record:
    given: dict[str, Any] = {
        "kind": "upgraded",
        "namespace": "ml-prod",
        "service": "ranker",
        "at": AT,
        "version": "2.4.0",
        "stable_version": "2.3.1",
        "event_id": "e-1",
    }
    made = message(**(given | changes))
    return Record(made.value, made.headers, 1_700_000_000_000)


def body_of(record: Record) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(record.value or b"{}")
    return body


def binary(record: Record) -> Record:
    envelope = body_of(record)
    data = envelope.pop("data")
    headers = [(f"ce_{k}", str(v).encode()) for k, v in envelope.items() if k != "datacontenttype"]
    return Record(json.dumps(data).encode(), [*headers, ("content-type", b"application/json")], 1)


def bare(record: Record) -> Record:
    return Record(json.dumps(body_of(record)["data"]).encode(), (), 1)


@pytest.mark.parametrize("form", [lambda r: r, binary, bare])
def test_every_form_of_a_cdevent_gives_the_same_event(form: Any) -> None:
    event = decode(form(sent(policy="quick", weight=5)))
    assert isinstance(event, DeploymentEvent)
    assert (event.id, event.kind, event.namespace, event.service) == ("e-1", EventKind.UPGRADED, "ml-prod", "ranker")
    assert (event.version, event.stable_version, event.policy) == ("2.4.0", "2.3.1", "quick")
    assert event.first_weight_percent == 5
    assert event.at == AT


def test_the_plain_form_takes_its_time_and_id_from_the_record_when_it_has_none() -> None:
    value = json.dumps({"event": "service.deployed", "namespace": "ml", "service": "x", "version": "2"}).encode()
    one, two = (decode(Record(value, (), 1_700_000_000_000)) for _ in range(2))
    assert isinstance(one, DeploymentEvent)
    assert one == two
    assert one.at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert one.id.startswith("sha256-")


@pytest.mark.parametrize("kind", ["deployed", "upgraded", "rolledback", "removed", "published"])
def test_the_public_examples_are_read(kind: str) -> None:
    example = json.loads((conformance("cdevents/examples") / f"service_{kind}.json").read_text())
    example["subject"]["id"] = "ml-prod/ranker"
    read = decode(Record(json.dumps(example).encode()))
    assert isinstance(read, Ignored if kind == "published" else DeploymentEvent)


def test_a_version_comes_from_the_tag_or_a_short_digest_of_the_artifact() -> None:
    body = body_of(sent())["data"]
    del body["customData"]
    for purl, version in (
        ("pkg:oci/r@sha256%3A0b31b1c02ff458ad9b7b81cb?tag=2.13.0-gpu-jupyter", "2.13.0-gpu-jupyter"),
        ("pkg:oci/r@sha256%3A0b31b1c02ff458ad9b7b81cb", "sha256-0b31b1c02ff4"),
        ("pkg:pypi/r@1.2", "1.2"),
        ("r:1.2", None),
    ):
        body["subject"]["content"]["artifactId"] = purl
        event = decode(Record(json.dumps(body).encode()))
        assert isinstance(event, DeploymentEvent)
        assert event.version == version


def changed(path: list[str], value: Any) -> Record:
    body = body_of(sent())
    inside = body
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return Record(json.dumps(body).encode(), (STRUCTURED,), 1)


LETTERS = {
    "tombstone": (Record(None, ()), "tombstone"),
    "bad JSON": (Record(b"{", (STRUCTURED,)), "bad-json"),
    "not an object": (Record(b"[1]", ()), "bad-json"),
    "not UTF-8": (Record(b"\xff\xfe", ()), "bad-encoding"),
    "10 MB": (Record(b"x" * 10_000_000, ()), "too-large"),
    "just too large": (Record(b"x" * (MAX_VALUE_BYTES + 1), ()), "too-large"),
    "too deep": (Record(b"[" * 5000 + b"]" * 5000, ()), "too-deep"),
    "nothing known": (Record(b"{}", ()), "unknown-form"),
    "avro": (Record(b"{}", (("content-type", b"application/cloudevents+avro"),)), "unknown-format"),
    "duplicate header": (Record(sent().value, (STRUCTURED, STRUCTURED)), "duplicate-header"),
    "unknown type": (changed(["type"], "com.example.thing"), "unknown-type"),
    "unknown major": (changed(["data", "context", "type"], "dev.cdevents.service.upgraded.1.0.0"), "unknown-version"),
    "namespace is no label": (changed(["data", "subject", "id"], "Ml_Prod/ranker"), "invalid"),
    "path in the name": (changed(["data", "subject", "id"], "ml/../etc"), "invalid"),
    "PromQL in the version": (changed(["data", "customData", "canary", "canaryVersion"], '"} or vector(1)'), "invalid"),
    "wrong type": (changed(["data", "customData", "canary", "initialWeight"], "5"), "invalid"),
    "weight 0": (changed(["data", "customData", "canary", "initialWeight"], 0), "invalid"),
    "time without zone": (changed(["data", "context", "timestamp"], "2026-11-24T03:00:00"), "invalid"),
    "unknown plain key": (
        Record(b'{"event":"service.removed","namespace":"a","service":"b","verison":"1"}', ()),
        "invalid",
    ),
}


@pytest.mark.parametrize("name", LETTERS)
def test_what_cannot_be_read_is_a_dead_letter_with_its_reason(name: str) -> None:
    record, code = LETTERS[name]
    letter = decode(record)
    assert isinstance(letter, DeadLetter)
    assert letter.code == code, letter.reason
    assert letter.reason
    assert "\n" not in letter.reason


def test_an_envelope_without_id_is_a_dead_letter() -> None:
    body = body_of(sent())
    del body["id"]
    assert isinstance(decode(Record(json.dumps(body).encode(), (STRUCTURED,))), DeadLetter)


def test_other_cdevents_are_known_and_start_nothing() -> None:
    assert isinstance(decode(changed(["type"], "dev.cdevents.environment.created.0.3.0")), Ignored)


def mutations(n: int) -> Any:
    """Seeded mutations of bytes and of structure."""
    rng = random.Random(20261124)
    bases = [sent(), binary(sent()), bare(sent())]
    junk = [None, True, -1, 1e308, "", "\x00", "é" * 300, [], {}, [[]], "a/b/c", "2026-13-40T00:00:00Z", {"$ref": "#"}]
    for i in range(n):
        base = bases[i % len(bases)]
        value = bytearray(base.value or b"")
        headers = list(base.headers)
        if i % 2:
            for _ in range(rng.randrange(1, 6)):
                match rng.randrange(3):
                    case 0 if value:
                        value[rng.randrange(len(value))] = rng.randrange(256)
                    case 1 if value:
                        at = rng.randrange(len(value))
                        del value[at : at + rng.randrange(1, 20)]
                    case _:
                        value[rng.randrange(len(value) + 1) : 0] = rng.randbytes(rng.randrange(1, 9))
        else:
            body = copy.deepcopy(json.loads(bytes(value)))
            inside: Any = body
            while isinstance(inside, dict) and inside:
                key = rng.choice(list(inside))
                if rng.random() < 0.4 or not isinstance(inside[key], dict):
                    if rng.random() < 0.3:
                        del inside[key]
                    else:
                        inside[key] = rng.choice(junk)
                    break
                inside = inside[key]
            value = bytearray(json.dumps(body).encode())
        if rng.random() < 0.1 and headers:
            name, content = headers[rng.randrange(len(headers))]
            headers.append((name, rng.choice([content, b"", b"\xff", rng.randbytes(8)])))
        yield Record(bytes(value), headers, rng.choice([0, -5, 1_700_000_000_000, 2**62]))


def test_a_hundred_thousand_mutated_events_raise_nothing_and_each_has_an_answer() -> None:
    counts = {DeploymentEvent: 0, DeadLetter: 0, Ignored: 0}
    for record in mutations(100_000):
        counts[type(decode(record))] += 1
    assert sum(counts.values()) == 100_000
    assert counts[DeploymentEvent] > 1000
    assert counts[DeadLetter] > 1000


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("form", [lambda r: r, binary])
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), ""),
        ("01" + TRACE[2:], ""),
        ("00-" + "0" * 32 + TRACE[35:], ""),
        (TRACE + "\n", ""),
        ("", ""),
    ],
)
def test_the_senders_trace_is_kept_and_a_broken_one_stops_no_event(form: Any, given: str, kept: str) -> None:
    record = sent()
    record = Record(json.dumps(body_of(record) | {"traceparent": given}).encode(), record.headers, 1)
    event = decode(form(record))
    assert isinstance(event, DeploymentEvent)
    assert event.traceparent == kept
