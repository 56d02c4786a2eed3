"""Faults planted in the product, to show that the simulation would notice them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from service.actuators import istio
from service.actuators.virtual_service import FENCE, Edit, Wanted, edit
from service.ring.store import Due, Owed
from service.rollout import intake, starting
from service.storage.store import SqlStore
from tests.simulation.kafka import Client

FENCING = "fencing off"
OFFSETS = "offset first"
LEASES = "leases ignored"
WITHDRAWALS = "versions ignored"
LOOKS = "looks alike"

CAUGHT_BY: Mapping[str, frozenset[str]] = {
    FENCING: frozenset({"fence", "one direction"}),
    OFFSETS: frozenset({"events"}),
    LEASES: frozenset({"lease"}),
    WITHDRAWALS: frozenset({"withdrawals"}),
    LOOKS: frozenset({"looks"}),
}
"""Each mutant with the invariants that it breaks."""


@contextmanager
def planted(mutant: str) -> Iterator[None]:
    """Plant what lies in the product's functions; the other mutants are classes that a replica is wired with."""
    with ExitStack() as undone:
        for where, name, planted_there in _PLANTED.get(mutant, ()):
            undone.enter_context(mock.patch.object(where, name, planted_there))
        yield


def _unfenced(virtual_service: Mapping[str, Any], wanted: Wanted) -> Edit:
    """The edit, blind to the number that stands on the object."""
    blind = copy.deepcopy(dict(virtual_service))
    (blind["metadata"].get("annotations") or {}).pop(FENCE, None)
    return edit(blind, wanted)


_PLANTED: Mapping[str, Sequence[tuple[Any, str, Any]]] = {
    FENCING: [(istio, "edit", _unfenced)],
    WITHDRAWALS: [(intake, "_withdrawn", lambda *_: None)],
    LOOKS: [(starting, "_outdated", lambda *_: False)],
}


class _Unleased(SqlStore):
    """Hands everything to everybody: a lease of no length."""

    async def owed(self, *args: Any, **given: Any) -> Sequence[Owed]:
        return await super().owed(*args, **(given | {"lease_s": 0.0}))

    async def due(self, *args: Any, **given: Any) -> Sequence[Due]:
        return await super().due(*args, **(given | {"lease_s": 0.0}))


class _Hasty(Client):
    """Commits the offsets of what it has fetched before anybody has seen it."""

    async def getmany(self, *args: Any, **given: Any) -> Any:
        records = await super().getmany(*args, **given)
        if records:
            await super().commit({partition: listed[-1].offset + 1 for partition, listed in records.items()})
        return records


def store(mutant: str) -> type[SqlStore]:
    """The store that replicas are wired with."""
    return _Unleased if mutant == LEASES else SqlStore


def client(mutant: str) -> type[Client]:
    """The consumer's client that replicas are wired with."""
    return _Hasty if mutant == OFFSETS else Client
