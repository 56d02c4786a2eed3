"""From sums that the store made to readings, for those windows of which it says that the sums are exact. Pure.

What the sums mean, and when they are exact, stands with the question (``promql.sums``). A window for which anything is
missing or odd gets no reading here; its raw samples say what there is, so there is one place that finds words for it.
"""

from __future__ import annotations

from collections import defaultdict

from service.model.names import Arm
from service.model.observation import Reading
from service.model.preset import LatencySeries, ScoreSeries
from service.sources import promql
from service.sources.answer import Answer
from service.sources.counter import Growth
from service.sources.plan import Ask, Batch, Slot
from service.sources.reading import of_growth


def read_sums(batch: Batch, answer: Answer) -> tuple[dict[Slot, Reading], list[Ask]]:
    """The readings of a summed batch, and the asks that must be read raw."""
    if answer.warning or answer.native_n:
        return {}, list(batch.asks)
    keys = batch.keys
    grown: dict[tuple[str, ...], list[Growth]] = defaultdict(list)
    sound: dict[tuple[str, ...], float] = {}
    for labels, value in answer.numbers:
        group = tuple([labels.get(key, "") for key in keys])
        if labels.get(promql.ASK_LABEL) == promql.SOUND:
            sound[group] = value
        # Written so that NaN fails.
        elif 0 <= value < promql.EXACT_BELOW and value == int(value):
            grown[group].append(Growth(labels, int(value)))
    buckets = isinstance(batch.what, LatencySeries | ScoreSeries)
    out: dict[Slot, Reading] = {}
    raw: list[Ask] = []
    for ask in batch.asks:
        canary, stable = (tuple([ask.labels[arm][key] for key in keys]) for arm in (Arm.CANARY, Arm.STABLE))
        if all(group in sound and (not buckets or sound[group] == len(grown[group])) for group in (canary, stable)):
            out[ask.slot] = of_growth(ask.metric, batch.what, grown[canary], grown[stable])
        else:
            raw.append(ask)
    return out, raw
