"""What the rooms tell of their own work: one small port, so that none of them knows Prometheus, logs or traces.

Everything here is cheap, returns at once and never raises. ``Unseen`` is the default of every room: it only puts the
keys of what is handled on the log lines that are written meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from structlog.contextvars import bound_contextvars

from service.model.instruction import Instruction
from service.model.names import ServiceKey
from service.model.rollout import RolloutState
from service.model.stimulus import DeploymentEvent
from service.model.trace import made_traceparent, trace_id_of


@dataclass(frozen=True, slots=True)
class About:
    """What is handled: the keys that every log line and span of it carries. Outside names are values here, never text
    of a message."""

    rollout: str = ""
    service: ServiceKey | None = None
    event_id: str = ""
    """The deployment event with which it began."""
    traceparent: str = ""
    owed: int | None = None
    """The outbox's id of an instruction."""

    @classmethod
    def event(cls, event: DeploymentEvent) -> About:
        """A deployment event, before its rollout is known."""
        return cls(event_id=event.id, traceparent=event.traceparent or made_traceparent(event.source, event.id))

    @classmethod
    def order(cls, order: Instruction, owed: int | None = None) -> About:
        """An owed instruction."""
        return cls(order.rollout, order.service, order.trigger_id, order.traceparent, owed)

    @classmethod
    def state(cls, state: RolloutState) -> About:
        """A rollout."""
        return cls(state.id, state.service, state.event_id, state.traceparent)

    def keys(self) -> dict[str, str | int]:
        """As log keys; what is not known is left out."""
        given: dict[str, str | int | None] = {
            "trace_id": trace_id_of(self.traceparent),
            "rollout": self.rollout,
            "cluster": self.service.cluster if self.service else "",
            "namespace": self.service.namespace if self.service else "",
            "service": self.service.name if self.service else "",
            "event_id": self.event_id,
            "owed": self.owed,
        }
        return {key: value for key, value in given.items() if value not in ("", None)}


ANYTHING = About()
"""Work that is of no one rollout: a chunk of windows, a batch of events."""


class Observer(Protocol):
    """What is measured. Every text is one of a few fixed words or a name that the settings give (a cluster, a topic),
    never an outside name."""

    def turned(self, loop: str) -> None:
        """``loop`` has gone round once more, whatever came of it; to be called in its retry path as well."""

    def handling(self, what: str, about: About = ANYTHING) -> AbstractContextManager[None]:
        """While inside, log lines carry ``about`` and a span named ``what`` is open."""

    def phase(self, phase: str) -> AbstractContextManager[None]:
        """A phase of the tick (claim, collect, judge, commit): its duration is measured and a span is open."""

    def event(self, outcome: str, lag_s: float) -> None:
        """One record of the event bus is done with: ``taken``, ``ignored`` or ``dead_letter``, ``lag_s`` after it was
        put on the bus."""

    def behind(self, records_n: int) -> None:
        """Records of our partitions that wait to be read."""

    def predictions(self, topic: str, outcome: str, records_n: int) -> None:
        """So many prediction records are done with, and that is committed: ``counted``, ``late``, ``refused`` (of a
        service beyond the bound of how many are counted) or ``poison``."""

    def poison(self, topic: str, reason: str, records_n: int) -> None:
        """So many of them could not be counted; why, in a word (``json``, ``schema``, ``time``)."""

    def predictions_read(self, topic: str, until_s: float | None) -> None:
        """All records of our partitions with times up to this one, in seconds since 1970, have been read; None: no
        partition is ours."""

    def asked(self, cluster: str, outcome: str, took_s: float) -> None:
        """One question to a cluster's metric store: ``ok``, or in a word why there is no whole answer (``timeout``,
        ``away``); ``early`` where the window is not over there, ``open`` where a breaker kept it from being asked."""

    def tried(self, kind: str, outcome: str, took_s: float) -> None:
        """One try of an owed instruction: ``done``, ``not_yet``, ``unavailable`` or ``refused``."""

    def left_alone(self, part: str, cluster: str, is_open: bool) -> None:
        """Whether the breaker of a lane (``part``) is open; said again and again is no harm."""


class Unseen:
    """Measures nothing. Implements ``Observer``."""

    def turned(self, loop: str) -> None:
        """See ``Observer.turned``."""

    @contextmanager
    def handling(self, what: str, about: About = ANYTHING) -> Iterator[None]:
        """See ``Observer.handling``."""
        with bound_contextvars(**about.keys()):
            yield

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """See ``Observer.phase``."""
        yield

    def event(self, outcome: str, lag_s: float) -> None:
        """See ``Observer.event``."""

    def behind(self, records_n: int) -> None:
        """See ``Observer.behind``."""

    def predictions(self, topic: str, outcome: str, records_n: int) -> None:
        """See ``Observer.predictions``."""

    def poison(self, topic: str, reason: str, records_n: int) -> None:
        """See ``Observer.poison``."""

    def predictions_read(self, topic: str, until_s: float | None) -> None:
        """See ``Observer.predictions_read``."""

    def asked(self, cluster: str, outcome: str, took_s: float) -> None:
        """See ``Observer.asked``."""

    def tried(self, kind: str, outcome: str, took_s: float) -> None:
        """See ``Observer.tried``."""

    def left_alone(self, part: str, cluster: str, is_open: bool) -> None:
        """See ``Observer.left_alone``."""


UNSEEN: Observer = Unseen()
