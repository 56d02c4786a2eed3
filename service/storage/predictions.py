"""Counts of prediction records beside the offsets that they reach, in the service's own database.

A partition's row carries a revision, and a step names the one that it was made from: two consumers that both take a
partition for theirs can so never both count one record. Bodies of counts are only ever added; they go by age.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from service.model.names import ServiceKey
from service.ring.predictions import Advance, PartitionState, Reference, ServiceCounts
from service.ring.store import Conflict
from service.storage import tables as t
from service.storage.database import Database, chunks, one_of

REFERENCES_KEPT_S = 90 * 86400.0
"""Frozen bins of rollouts go after this; those of services stay, one row an output."""

_P, _C, _R = t.prediction_partitions, t.prediction_counts, t.prediction_references
_FIELDS = tuple(field.name for field in dataclasses.fields(PartitionState))


class SqlPredictions:
    """Implements ``ring.predictions.PredictionStore`` on the service's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, topic: str, partitions: Collection[int]) -> Mapping[int, PartitionState]:
        """See ``PredictionStore.begin``."""
        rows = [dataclasses.asdict(PartitionState(topic, partition)) for partition in sorted(partitions)]
        query = sa.select(_P).where(_P.c.topic == topic, _P.c.partition.in_(partitions))
        async with self._database.writing("begin partitions of predictions") as connection:
            if rows:
                await connection.execute(self._database.insert_into(_P).values(rows).on_conflict_do_nothing())
            found = [_state(row) for row in await connection.execute(query)]
        return {state.partition: state for state in found}

    async def advance(self, steps: Sequence[Advance], counts: Sequence[ServiceCounts]) -> None:
        """See ``PredictionStore.advance``."""
        async with self._database.writing("keep counts of predictions") as connection:
            # In one order for all, so that two replicas never wait for each other.
            for step in sorted(steps, key=lambda one: (one.was.topic, one.was.partition)):
                held = (_P.c.topic == step.was.topic, _P.c.partition == step.was.partition)
                values = {name: getattr(step.now, name) for name in _FIELDS if name not in ("topic", "partition")}
                changed = await connection.execute(
                    _P.update().where(*held, _P.c.revision == step.was.revision).values(values)
                )
                if changed.rowcount != 1:
                    raise Conflict(
                        f"partition {step.was.partition} of {step.was.topic} was read at revision {step.was.revision}; "
                        "another consumer has gone on with it"
                    )
            rows = [
                {
                    "topic": steps[0].now.topic, "cluster": one.service.cluster, "namespace": one.service.namespace,
                    "service": one.service.name, "from_s": one.from_s, "until_s": one.until_s, "body": one.body,
                }
                for one in counts
            ]  # fmt: skip
            if rows:
                await connection.execute(_C.insert(), rows)

    async def partitions(self, topic: str) -> Sequence[PartitionState]:
        """See ``PredictionStore.partitions``."""
        query = sa.select(_P).where(_P.c.topic == topic).order_by(_P.c.partition)
        return [_state(row) for row in await self._database.read("read partitions of predictions", query)]

    async def counts(
        self, topic: str, services: Collection[ServiceKey], from_s: float, until_s: float, *, limit: int
    ) -> Mapping[ServiceKey, Sequence[bytes]]:
        """See ``PredictionStore.counts``."""
        out: dict[ServiceKey, list[bytes]] = defaultdict(list)
        keys = sorted({(one.cluster, one.namespace, one.name) for one in services})
        newest = sa.func.row_number().over(
            partition_by=(_C.c.cluster, _C.c.namespace, _C.c.service), order_by=(_C.c.until_s.desc(), _C.c.id.desc())
        )
        for part in chunks(keys):
            within = (
                sa.select(_C.c.cluster, _C.c.namespace, _C.c.service, _C.c.body, newest.label("place"))
                .where(
                    _C.c.topic == topic,
                    one_of((_C.c.cluster, _C.c.namespace, _C.c.service), part),
                    _C.c.until_s > from_s,
                    _C.c.from_s < until_s,
                )
                .subquery()
            )
            query = sa.select(within).where(within.c.place <= limit)
            for row in await self._database.read("read counts of predictions", query):
                key = ServiceKey(cluster=row.cluster, namespace=row.namespace, name=row.service)
                out[key].append(bytes(row.body))
        return out

    async def references(self, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], bytes]:
        """See ``PredictionStore.references``."""
        out: dict[tuple[str, str], bytes] = {}
        for part in chunks(sorted(set(keys))):
            query = sa.select(_R).where(one_of((_R.c.owner, _R.c.name), part))
            for row in await self._database.read("read references of predictions", query):
                out[row.owner, row.name] = bytes(row.body)
        return out

    async def freeze(self, references: Sequence[Reference], at_s: float) -> Mapping[tuple[str, str], bytes]:
        """See ``PredictionStore.freeze``."""
        rows = [{"owner": one.owner, "name": one.name, "body": one.body, "at": at_s} for one in references]
        if rows:
            async with self._database.writing("freeze references of predictions") as connection:
                await connection.execute(self._database.insert_into(_R).values(rows).on_conflict_do_nothing())
        return await self.references([(one.owner, one.name) for one in references])

    async def replace(self, reference: Reference, was: bytes | None, at_s: float) -> None:
        """See ``PredictionStore.replace``."""
        key = {"owner": reference.owner, "name": reference.name}
        held = (_R.c.owner == reference.owner, _R.c.name == reference.name, _R.c.body == was)
        async with self._database.writing("keep a reference of predictions") as connection:
            if was is None:
                made = (
                    self._database.insert_into(_R).values(**key, body=reference.body, at=at_s).on_conflict_do_nothing()
                )
            else:
                made = _R.update().where(*held).values(body=reference.body, at=at_s)
            if (await connection.execute(made)).rowcount != 1:
                raise Conflict(f"{reference.name} of {reference.owner} was changed by another replica meanwhile")

    async def prune(self, before_s: float, *, limit: int) -> int:
        """See ``PredictionStore.prune``."""
        oldest = sa.select(_C.c.id).where(_C.c.until_s < before_s).order_by(_C.c.until_s).limit(limit)
        # An owner with a slash is a service, whose cluster may be called "r-eu".
        of_rollouts = _R.c.owner.like("r-%") & _R.c.owner.not_like("%/%")
        ended = (_R.c.at < before_s - REFERENCES_KEPT_S) & of_rollouts
        counts_n, _ = await self._database.write(
            "delete old counts of predictions", [_C.delete().where(_C.c.id.in_(oldest)), _R.delete().where(ended)]
        )
        return counts_n


def _state(row: Any) -> PartitionState:
    return PartitionState(**{name: getattr(row, name) for name in _FIELDS})
