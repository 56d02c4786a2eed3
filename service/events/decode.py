"""Decoding: one Kafka record to a deployment event, a dead letter, or something known that starts nothing.

Pure and total: the same record always gives the same answer, and no record raises.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cloudevents.core.bindings.common import get_event_factory_for_version
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from cloudevents.core.exceptions import BaseCloudEventException
from pydantic import ValidationError

from service.events.forms import CDEvent, PlainEvent
from service.model.stimulus import DeploymentEvent, EventKind
from service.model.trace import read_traceparent
from service.model.value import from_epoch_s

MAX_VALUE_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024

ENVELOPE = ("id", "source", "specversion", "type")
"""Attributes that a CloudEvent must bring; the library would make up some of them."""

_TYPE = re.compile(r"dev\.cdevents\.service\.(deployed|upgraded|rolledback|removed|published)\.(\d+)\.\d+\.\d+(-\S+)?")
_OTHER_CDEVENT = re.compile(r"dev\.cdevents(x)?\.\S+")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The record cannot be read: a short code for machines, and a sentence for people."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """The record is a known event that starts nothing here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record, as much of it as decoding needs."""

    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    timestamp_ms: int = 0


class _Unreadable(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.letter = DeadLetter(code, reason)


def decode(record: Record) -> DeploymentEvent | DeadLetter | Ignored:
    """What the record says. Never raises."""
    try:
        return _decode(record)
    except _Unreadable as unreadable:
        return unreadable.letter
    except ValidationError as error:
        return DeadLetter("invalid", _brief(error))
    except BaseCloudEventException as error:
        return DeadLetter("no-cloudevent", f"not a valid CloudEvent: {_one_line(error)}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        # The library's parser raises these on malformed envelopes; whatever it is, the record is to blame.
        return DeadLetter("unreadable", f"cannot be read: {type(error).__name__}: {_one_line(error)}")


def _decode(record: Record) -> DeploymentEvent | DeadLetter | Ignored:
    if record.value is None:
        return DeadLetter("tombstone", "the record has no value (a tombstone), so it names no event")
    if len(record.value) > MAX_VALUE_BYTES:
        return DeadLetter("too-large", f"the value has {len(record.value)} bytes; at most {MAX_VALUE_BYTES} are read")
    headers = _headers(record.headers)
    content_type = headers.get("content-type", b"").decode("utf-8", "replace").lower()
    if content_type.startswith("application/cloudevents"):
        if "json" not in content_type:
            return DeadLetter("unknown-format", f"CloudEvents format {content_type[:80]!r} is not read; use +json")
        return _structured(_json(record.value))
    if any(name.startswith("ce_") for name in headers):
        missing = [name for name in ENVELOPE if not headers.get(f"ce_{name}")]
        if missing:
            return DeadLetter("no-cloudevent", f"not a valid CloudEvent: no header ce_{missing[0]}")
        data = _json(record.value) if record.value else None
        kind, trace = (headers.get(name, b"").decode("utf-8", "replace") for name in ("ce_type", "ce_traceparent"))

        def check() -> None:
            from_kafka_event(KafkaMessage(headers=dict(headers), key=None, value=record.value or b""))

        return _from_cloudevent(check, data, kind, trace)
    body = _json(record.value)
    if "specversion" in body and "data" in body:
        # A structured CloudEvent whose sender forgot the content type.
        return _structured(body)
    if "context" in body:
        return _from_cdevent(body)
    if "event" in body:
        return _from_plain(body, record)
    return DeadLetter("unknown-form", "neither a CloudEvent, a CDEvent (context, subject) nor the plain form (event)")


def _structured(envelope: Mapping[str, Any]) -> DeploymentEvent | DeadLetter | Ignored:
    missing = [name for name in ENVELOPE if not envelope.get(name)]
    if missing:
        return DeadLetter("no-cloudevent", f"not a valid CloudEvent: no attribute {missing[0]!r}")

    def check() -> None:
        # The library's own reader would parse the same bytes a second time.
        attributes = {name: value for name, value in envelope.items() if name not in ("data", "data_base64")}
        if "time" in attributes:
            attributes["time"] = datetime.fromisoformat(attributes["time"])
        get_event_factory_for_version(envelope["specversion"])(attributes, envelope.get("data"))

    kind, trace = _text(envelope.get("type")), envelope.get("traceparent")
    return _from_cloudevent(check, envelope.get("data"), kind, trace)


def _headers(listed: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    if len(listed) > MAX_HEADERS or sum(len(k) + len(v or b"") for k, v in listed) > MAX_HEADER_BYTES:
        raise _Unreadable("too-large", f"the record has {len(listed)} headers or too many bytes in them")
    out: dict[str, bytes] = {}
    for name, value in listed:
        key = name.lower()
        if key in out and (key == "content-type" or key.startswith("ce_")):
            raise _Unreadable("duplicate-header", f"header {key[:80]!r} is there twice, so it has no one meaning")
        out[key] = value or b""
    return out


def _json(value: bytes) -> dict[str, Any]:
    if _depth(value) > MAX_DEPTH:
        raise _Unreadable("too-deep", f"the JSON is nested deeper than {MAX_DEPTH}")
    try:
        body = json.loads(value.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Unreadable("bad-encoding", "the value is not UTF-8") from None
    except ValueError as error:
        raise _Unreadable("bad-json", f"the value is not JSON: {_one_line(error)}") from None
    if not isinstance(body, dict):
        raise _Unreadable("bad-json", f"the value is a JSON {type(body).__name__}, not an object")
    return body


def _depth(value: bytes) -> int:
    """An upper bound of the nesting, without parsing, 0 where it cannot exceed the limit. Brackets in strings count,
    which only errs to the safe side."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for byte in re.findall(rb"[\[\]{}]", value):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _from_cloudevent(
    check: Callable[[], None], data: Any, event_type: str, traceparent: object
) -> DeploymentEvent | DeadLetter | Ignored:
    """Let the library check the envelope, then read the CDEvent inside it."""
    kind = _TYPE.fullmatch(event_type)
    if kind is None:
        if _OTHER_CDEVENT.fullmatch(event_type):
            return Ignored(f"{event_type[:120]} starts nothing here")
        return DeadLetter("unknown-type", f"event type {event_type[:120]!r} is not known")
    check()
    if not isinstance(data, dict):
        return DeadLetter("invalid", "the CloudEvent's data is no CDEvent object")
    read = _from_cdevent(data)
    if isinstance(read, DeploymentEvent):
        return read.model_copy(update={"traceparent": read_traceparent(traceparent)})
    return read


def _from_cdevent(body: Mapping[str, Any]) -> DeploymentEvent | DeadLetter | Ignored:
    event = CDEvent.model_validate(body)
    kind = _TYPE.fullmatch(event.context.type)
    if kind is None:
        if _OTHER_CDEVENT.fullmatch(event.context.type):
            return Ignored(f"{event.context.type[:120]} starts nothing here")
        return DeadLetter("unknown-type", f"event type {event.context.type[:120]!r} is not known")
    if kind[2] != "0":
        return DeadLetter("unknown-version", f"{event.context.type[:120]} has major version {kind[2]}; 0.x is read")
    if kind[1] == "published":
        return Ignored("service.published starts nothing here")
    canary = event.custom_data.canary
    namespace, _, name = event.subject.id.rpartition("/")
    namespace = namespace or canary.namespace or ""
    if not namespace:
        return DeadLetter(
            "invalid", "subject.id names no namespace: write namespace/name, or customData.canary.namespace"
        )
    artifact = event.subject.content.artifact_id or ""
    return DeploymentEvent(
        id=event.context.id,
        at=event.context.timestamp,
        source=event.context.source,
        kind=EventKind(kind[1]),
        environment=event.subject.content.environment.id if event.subject.content.environment else "",
        namespace=namespace,
        service=name,
        version=canary.canary_version or _version_of(artifact),
        stable_version=canary.stable_version,
        artifact=artifact,
        policy=canary.policy or canary.strategy,
        first_weight_percent=canary.initial_weight,
        chain_id=event.context.chain_id or "",
    )


def _version_of(purl: str) -> str | None:
    """The tag, the version, or a short digest of a package URL such as ``pkg:oci/app@sha256%3A0b31...?tag=2.4.0``."""
    if not purl.startswith("pkg:"):
        return None
    parts = urlsplit(purl)
    tag = parse_qs(parts.query).get("tag", [""])[0]
    if tag:
        return tag
    version = unquote(parts.path.partition("@")[2])
    if not version:
        return None
    algorithm, colon, digest = version.partition(":")
    return f"{algorithm}-{digest[:12]}" if colon else version


def _from_plain(body: Mapping[str, Any], record: Record) -> DeploymentEvent:
    event = PlainEvent.model_validate(body)
    at: datetime = event.time or from_epoch_s(min(max(record.timestamp_ms, 0), 4_102_444_800_000) / 1000)
    return DeploymentEvent(
        id=event.id or "sha256-" + hashlib.sha256(record.value or b"").hexdigest(),
        at=at,
        source=event.source,
        kind=EventKind(event.event.removeprefix("service.")),
        environment=event.environment,
        namespace=event.namespace,
        service=event.service,
        version=event.version,
        stable_version=event.stable_version,
        artifact=event.artifact,
        policy=event.policy,
        first_weight_percent=event.weight,
    )


def _text(given: object) -> str:
    return given if isinstance(given, str) else ""


def _brief(error: ValidationError) -> str:
    faults = [
        f"{'.'.join(str(p) for p in f['loc'])}: {f['msg']}"
        for f in error.errors(include_url=False, include_input=False)
    ]
    return _one_line("; ".join(faults[:5]))


def _one_line(what: object) -> str:
    return " ".join(str(what).split())[:500]
