"""Deployment events as a tool would send them: for `serinus send-event`, the demo and tests."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime

from service.events.publisher import CONTENT_TYPE


@dataclass(frozen=True, slots=True)
class Message:
    """One Kafka record."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


def message(
    *,
    kind: str,
    namespace: str,
    service: str,
    at: datetime,
    version: str | None = None,
    stable_version: str | None = None,
    policy: str | None = None,
    weight: int | None = None,
    environment: str = "default",
    event_id: str | None = None,
    source: str = "/serinus/send-event",
) -> Message:
    """A structured CloudEvent with a CDEvents 0.5.1 body. ``kind`` is deployed, upgraded, rolledback or removed."""
    event_id = event_id or str(uuid.uuid4())
    event_type = f"dev.cdevents.service.{kind}.0.3.0"
    moment = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    given = {"stableVersion": stable_version, "canaryVersion": version, "policy": policy, "initialWeight": weight}
    canary = {name: value for name, value in given.items() if value is not None}
    content: dict[str, object] = {"environment": {"id": environment}}
    if kind != "removed":
        content["artifactId"] = f"pkg:oci/{service}" + (f"?tag={version}" if version else "")
    data = {
        "context": {"specversion": "0.5.1", "id": event_id, "source": source, "type": event_type, "timestamp": moment},
        "subject": {"id": f"{namespace}/{service}", "source": source, "content": content},
        "customDataContentType": "application/json",
        "customData": {"canary": canary},
    }
    key = f"{namespace}/{service}"
    envelope = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": event_type,
        "subject": key,
        "time": moment,
        "datacontenttype": "application/json",
        "partitionkey": key,
        "data": data,
    }
    return Message(key.encode(), json.dumps(envelope).encode(), (("content-type", CONTENT_TYPE),))
