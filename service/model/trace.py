"""The one id that a release has through the whole ring: a W3C traceparent, kept with everything that is owed.

A sender's own is continued. An event that brings none is given one that follows from its source and id, so that a
redelivered event, another replica and a replay all name the same trace, with tracing switched on or off.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from pydantic import StringConstraints

_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Traceparent = Annotated[str, StringConstraints(pattern=r"^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$")]
"""``00-<trace id>-<parent id>-<flags>``, or empty where there is none (values from before it was kept)."""


def read_traceparent(text: object) -> str:
    """``text`` where it is a traceparent of version 00, else an empty text: a broken one must not stop an event."""
    return text if isinstance(text, str) and _FORM.fullmatch(text) else ""


def made_traceparent(source: str, event_id: str) -> str:
    """The traceparent of an event that brought none. Its flags leave open whether it is sampled."""
    trace_id = hashlib.sha256(f"{source}\n{event_id}".encode()).hexdigest()[:32]
    return f"00-{trace_id}-{_parent_of(trace_id)}-00"


def is_made(traceparent: str) -> bool:
    """Whether it came from ``made_traceparent``: only then is the parent id the digest of the trace id."""
    return traceparent[36:52] == _parent_of(trace_id_of(traceparent))


def trace_id_of(traceparent: str) -> str:
    """The trace id, 32 hexadecimal digits; empty for an empty traceparent."""
    return traceparent[3:35]


def _parent_of(trace_id: str) -> str:
    return hashlib.sha256(trace_id.encode()).hexdigest()[:16]
