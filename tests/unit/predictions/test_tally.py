"""Counts of a batch: slots that windows are made of, bytes that are read back, and a bound on classes."""

from __future__ import annotations

import pytest

from service.predictions.binning import OTHER
from service.predictions.tally import MOST_CLASSES, Tally, from_bytes, slot_of, slots_of

SERVICE = ("default", "ml", "tf-model")


def test_a_slot_belongs_to_the_moments_up_to_its_end() -> None:
    assert [slot_of(at) for at in (10.0, 10.001, 10.5, 10.501)] == [20, 21, 21, 22]
    assert slots_of(10.0, 11.0) == range(21, 23)
    assert slot_of(10.0) not in slots_of(10.0, 11.0)  # type: ignore[operator]
    assert slot_of(11.0) in slots_of(10.0, 11.0)  # type: ignore[operator]


def test_a_window_whose_edges_lie_within_slots_cannot_be_summed() -> None:
    assert slots_of(10.25, 70.25) is None


def test_counts_are_read_back_as_they_were_added() -> None:
    tally = Tally()
    for slot, category in ((21, "cat"), (21, "cat"), (22, 7)):
        tally.add(SERVICE, ("m", "v1", "", "class", slot), category)
    ((service, first, last, body),) = tally.bodies()
    assert (service, first, last, tally.cells_n) == (SERVICE, 21, 22, 2)
    assert from_bytes(body) == [("m", "v1", "", "class", 21, {"cat": 2}), ("m", "v1", "", "class", 22, {7: 1})]
    with pytest.raises(ValueError, match="kept counts are not readable"):
        from_bytes(b"\xc1")


def test_of_too_many_classes_the_most_frequent_of_both_arms_together_are_kept() -> None:
    tally = Tally()
    for n in range(MOST_CLASSES + 500):
        for _ in range(1 + (n < 10)):
            tally.add(SERVICE, ("", "v1", "", "class", 1), f"c{n}")
    for n in (1400, 1400, 1450):
        tally.add(SERVICE, ("", "v2", "", "class", 1), f"c{n}")
    for n in range(3000):
        tally.add(SERVICE, ("", "v1", "", "value", 1), n)
    ((_, _, _, body),) = tally.bodies()
    stable, canary, numbers = (one[5] for one in from_bytes(body))
    assert len(stable | canary) == MOST_CLASSES + 1
    assert sum(stable.values()) == MOST_CLASSES + 510
    assert canary == {"c1400": 2, "c1450": 1}
    assert "c1400" in stable
    assert stable[OTHER] > 1
    assert len(numbers) == 3000
