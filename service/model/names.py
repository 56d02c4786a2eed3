"""Names of things: services, arms, rollouts. Names come from events, so each has a form that it must keep.

A name that passed here is safe as data in a query, a path or a log line, never as a part of their grammar.
"""

from __future__ import annotations

import base64
import hashlib
from enum import StrEnum
from typing import Annotated, NewType

from pydantic import StringConstraints

from service.model.value import Value

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_VALUE = r"^[A-Za-z0-9]([-A-Za-z0-9_.+]*[A-Za-z0-9])?$"

DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL, max_length=63)]
"""An RFC 1123 label, the form of a Kubernetes namespace or service name."""

DnsName = Annotated[str, StringConstraints(pattern=DNS_NAME, max_length=253)]
"""Labels joined by dots, the form of a host or of most Kubernetes object names."""

Version = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=128)]
"""A version or an image tag, such as ``2.13.0-gpu-jupyter``: the form of a Kubernetes label value, up to 128 long."""

SeriesName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$", max_length=200)]
"""A metric's name in a Prometheus store."""

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=100)]
"""A label's name there, or in a log store."""

RolloutId = NewType("RolloutId", str)


class Arm(StrEnum):
    """The two sides of a comparison."""

    STABLE = "stable"
    CANARY = "canary"


class Mode(StrEnum):
    """How far Serinus may go: only tell, ask before each move, or act."""

    OBSERVE = "observe"
    RECOMMEND = "recommend"
    ENFORCE = "enforce"

    @property
    def reach(self) -> int:
        """0, 1 or 2; the narrower of two modes is the one with the smaller reach."""
        return {"observe": 0, "recommend": 1, "enforce": 2}[self.value]


class ServiceKey(Value):
    """A service is known by its cluster, its namespace and its name."""

    cluster: DnsName
    namespace: DnsLabel
    name: DnsLabel

    def __str__(self) -> str:
        return f"{self.cluster}/{self.namespace}/{self.name}"

    @property
    def bus_key(self) -> str:
        """The Kafka key under which events and decisions of this service keep their order."""
        return f"{self.namespace}/{self.name}"


def rollout_id(service: ServiceKey, source: str, event_id: str) -> RolloutId:
    """The id of the rollout that an event starts: a digest, so that a redelivered event names the same rollout."""
    digest = hashlib.sha256(f"{service}\n{source}\n{event_id}".encode()).digest()
    return RolloutId("r-" + base64.b32encode(digest).decode().lower()[:10])
