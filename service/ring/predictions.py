"""What counting prediction records needs of a store: counts and the offset that they reach, in one transaction.

Kept by the service itself and not by the broker, so that a record is counted exactly once: a batch's counts are there
if and only if the partition's offset stands behind it. A consumer that was cut off and goes on (a zombie) finds the
partition at another revision and writes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.model.names import ServiceKey

NOT_BEGUN = -1
"""Offset of a partition of which nothing has been read yet."""

GONE = -2
"""Offset of a partition that the topic had once and has no more. Its row stays, so that a consumer that still takes
the partition for its own finds another revision."""


@dataclass(frozen=True, slots=True)
class PartitionState:
    """How far one partition of the topic is counted."""

    topic: str
    partition: int
    revision: int = 0
    next_offset: int = NOT_BEGUN
    watermark_s: float = 0.0
    """Every record up to this time is counted, or will be refused as late: windows up to it change no more."""
    seen_at_s: float = 0.0
    """When its consumer last wrote."""
    lost_until_s: float = 0.0
    """Records from ``lost_from_s`` up to this time may have been deleted by the broker before they were read."""
    lost_from_s: float = 0.0
    counted_n: int = 0
    late_n: int = 0
    poison_n: int = 0
    refused_n: int = 0
    """Of services beyond the bound of how many are counted."""


@dataclass(frozen=True, slots=True)
class ServiceCounts:
    """What one batch counted of one service in ``(from_s, until_s]``; ``body`` is ``predictions.tally``'s."""

    service: ServiceKey
    from_s: float
    until_s: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Advance:
    """One partition's step: valid only while the store holds ``was``."""

    was: PartitionState
    now: PartitionState


@dataclass(frozen=True, slots=True)
class Reference:
    """Something frozen: the bins of a rollout's metric, or the centroid of a service's output."""

    owner: str
    name: str
    body: bytes


class PredictionStore(Protocol):
    """Where counts are kept. Any method may raise Unavailable; nothing is then half done, though it may be done."""

    async def begin(self, topic: str, partitions: Collection[int]) -> Mapping[int, PartitionState]:
        """The states of these partitions, made where there are none."""

    async def advance(self, steps: Sequence[Advance], counts: Sequence[ServiceCounts]) -> None:
        """All steps, of one topic, and what they counted in one transaction. Raises Conflict where one ``was`` no
        longer holds."""

    async def partitions(self, topic: str) -> Sequence[PartitionState]:
        """All partitions that were ever begun."""

    async def counts(
        self, topic: str, services: Collection[ServiceKey], from_s: float, until_s: float, *, limit: int
    ) -> Mapping[ServiceKey, Sequence[bytes]]:
        """Bodies of counts that reach into ``(from_s, until_s]``; of each service the newest ``limit`` at most."""

    async def references(self, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], bytes]:
        """Those (owner, name) that are frozen."""

    async def freeze(self, references: Sequence[Reference], at_s: float) -> Mapping[tuple[str, str], bytes]:
        """Freeze these where nothing is frozen yet; what is frozen then, by whomever."""

    async def replace(self, reference: Reference, was: bytes | None, at_s: float) -> None:
        """Keep a body that changes from window to window, if ``was`` is what is kept (None: nothing is). Raises
        Conflict where it is not."""

    async def prune(self, before_s: float, *, limit: int) -> int:
        """Delete counts that end before then, at most ``limit`` of them; how many were deleted."""
