"""Embeddings to one number each: the distance to a centroid that is frozen once a service has sent enough of them.

The centroid is the mean of the first ``GATHERED_N`` embeddings of whichever version sends so many first, which for a
service that is up is its stable one. It stays for good: the comparison holds for any fixed point, and a point near
stable's middle shows most. What came before it was frozen is not counted in this view.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.predictions.binning import NOT_A_NUMBER, Category, cell_of_value, distance
from service.predictions.tally import Service
from service.ring.predictions import PredictionStore, Reference

GATHERED_N: Final = 256
MOST_CENTROIDS: Final = 500
"""Services' outputs whose embeddings are followed; of 4,096 numbers each they would take 65 MB."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """One record's embedding of one output."""

    service: Service
    output: str
    version: str
    numbers: Sequence[float]


@dataclass(slots=True)
class _Mean:
    total: list[float]
    n: int = 1


class Centroids:
    """The centroids of all services, read from the store where they are frozen there already."""

    def __init__(self, store: PredictionStore) -> None:
        self._store = store
        self._frozen: dict[tuple[Service, str], array.array[float]] = {}
        self._gathered: dict[tuple[Service, str], dict[str, _Mean]] = {}

    async def cells(self, embeddings: Sequence[Embedding], now_s: float) -> list[Category | None]:
        """The cell of each embedding's distance; None where there is no centroid yet."""
        await self._look({(one.service, one.output) for one in embeddings})
        out: list[Category | None] = []
        for one in embeddings:
            centroid = self._frozen.get((one.service, one.output))
            if centroid is not None:
                far = distance(one.numbers, centroid)
                out.append(NOT_A_NUMBER if far != far else cell_of_value(far))
                continue
            out.append(None)
            if self._gather(one):
                await self._freeze(one, now_s)
        return out

    async def _look(self, keys: set[tuple[Service, str]]) -> None:
        """Get what is frozen of services that are seen for the first time."""
        fresh = [key for key in keys if key not in self._frozen and key not in self._gathered]
        fresh = fresh[: max(0, MOST_CENTROIDS - len(self._frozen) - len(self._gathered))]
        if not fresh:
            return
        names = {(_owner(service), output): (service, output) for service, output in fresh}
        kept = await self._store.references(names)
        for name, key in names.items():
            if name in kept:
                self._frozen[key] = _numbers(kept[name])
            else:
                self._gathered[key] = {}

    def _gather(self, one: Embedding) -> bool:
        """Take one more into the mean of its version; whether there are enough now."""
        means = self._gathered.get((one.service, one.output))
        if means is None:
            return False
        mean = means.get(one.version)
        if mean is None or len(mean.total) != len(one.numbers):
            if len(means) >= 4:
                means.clear()
            means[one.version] = _Mean(list(one.numbers))
            return False
        mean.total = [a + b for a, b in zip(mean.total, one.numbers, strict=True)]
        mean.n += 1
        return mean.n >= GATHERED_N

    async def _freeze(self, one: Embedding, now_s: float) -> None:
        mean = self._gathered[one.service, one.output][one.version]
        body = array.array("d", [total / mean.n for total in mean.total]).tobytes()
        name = (_owner(one.service), one.output)
        kept = await self._store.freeze([Reference(*name, body)], now_s)
        self._frozen[one.service, one.output] = _numbers(kept[name])
        del self._gathered[one.service, one.output]


def _owner(service: Service) -> str:
    return "/".join(service)


def _numbers(body: bytes) -> array.array[float]:
    numbers = array.array("d")
    numbers.frombytes(body)
    return numbers
