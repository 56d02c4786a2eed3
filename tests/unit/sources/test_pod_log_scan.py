"""A log in pieces: counted as if it had come whole, without being kept."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

import pytest

from service.model.lines import LinePattern
from service.model.observation import LineCounts
from service.sources import lines
from service.sources.pod_logs import LINE_BYTES, MOST_KINDS, Scan, Search

TOLD = lines.kinds(
    (
        LinePattern(name="bad", any_of=("^bad thing '(?P<subject>[^']+)'",)),
        LinePattern(name="worse", any_of=("much worse",)),
    )
)
AT = "2026-11-26T08:00:0{}.5Z "
SPAN = (1_795_680_002.0, 1_795_680_008.0)


def search(**more: object) -> Search:
    return Search(TOLD, SPAN, **more)  # type: ignore[arg-type]


def counts(scan: Scan) -> dict[str, int]:
    return dict(scan.found.inside)


@pytest.mark.parametrize("seed", range(20))
def test_wherever_the_pieces_are_cut_the_same_lines_are_counted(seed: int) -> None:
    chance = random.Random(seed)
    said = ["bad thing 'Öp'", "bad thing 'b'", "it is much worse", "good", "x" * 20_000, "it was a bad thing 'c'", ""]
    log = "\n".join(AT.format(chance.randrange(10)) + chance.choice(said) for _ in range(300)).encode()
    whole = Scan(search(before_s=2.0))
    whole.take(log)
    whole.end()
    parts = Scan(search(before_s=2.0))
    while log:
        n = chance.choice((1, 3, 50, 5_000, 40_000))
        parts.take(log[:n])
        log = log[n:]
    parts.end()
    assert (parts.found.inside, parts.found.before) == (whole.found.inside, whole.found.before)
    assert set(whole.found.inside) == {"bad Öp", "bad b", "worse"}
    assert whole.found.before


def test_a_line_counts_by_its_own_time_and_the_windows_start_is_the_one_befores() -> None:
    scan = Scan(Search(TOLD, (1_795_680_002.5, 1_795_680_004.5), 1.0))
    scan.take("".join(f"{AT.format(n)}bad thing 'at {n}'\n" for n in range(8)).encode())
    assert set(scan.found.inside) == {"bad at 3", "bad at 4"}
    assert set(scan.found.before) == {"bad at 2"}


def test_a_log_of_any_length_and_a_line_without_an_end_take_little_memory() -> None:
    piece = (AT.format(5) + "x" * 100 + "\n").encode() * 2_000
    endless = b"y" * len(piece)
    scan = Scan(search())
    tracemalloc.start()
    try:
        for _ in range(40):
            scan.take(piece)
        for _ in range(40):
            scan.take(endless)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scan.read_bytes > 18_000_000
    assert peak_bytes < 20 * len(piece) + LINE_BYTES < 5_000_000


def test_a_search_for_what_the_canary_has_is_over_once_each_kind_was_seen_in_its_time() -> None:
    wanted = Search(TOLD, SPAN, 1.0, {"bad a", "worse"})
    scan = Scan(wanted)
    scan.take(f"{AT.format(0)}much worse\n{AT.format(5)}bad thing 'b'\n{AT.format(5)}bad thing 'a'\n".encode())
    assert not wanted.done, "a line from before the time that is looked at says nothing"
    scan.take(f"{AT.format(1)}much worse\n{AT.format(2)}much worse\n".encode())
    assert wanted.done
    assert not search().done


def test_kinds_beyond_the_bound_are_counted_together_on_both_arms() -> None:
    """What a line is about is the candidate's own text, so it may write as many kinds as it writes lines."""
    log = "".join(f"{AT.format(5)}bad thing '{n}'\n" for n in range(MOST_KINDS + 500)).encode()
    canary = Scan(search())
    canary.take(log)
    assert len(canary.found.inside) == MOST_KINDS + 1
    assert canary.found.inside[lines.OTHERS] == 500
    wanted = search(kinds=set(canary.found.inside))
    stable = Scan(wanted)
    stable.take(log)
    assert stable.found.inside == canary.found.inside
    assert wanted.done
    reading = lines.counted("m", canary.found.inside, stable.found.inside, Counter(), before="for 1 h")
    assert isinstance(reading.counts, LineCounts)
    assert len(set(reading.counts.names)) == len(reading.counts.names) == lines.MOST_NAMES + 1
    assert sum(reading.counts.canary) == MOST_KINDS + 500
    assert not any(reading.counts.only_on_canary())


def test_of_stable_only_what_the_canary_has_is_kept() -> None:
    scan = Scan(search(kinds={"worse"}))
    scan.take(f"{AT.format(5)}bad thing 'a'\n{AT.format(5)}much worse\n".encode())
    assert counts(scan) == {"worse": 1}
