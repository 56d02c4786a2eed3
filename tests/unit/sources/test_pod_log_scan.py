"""A log in pieces: counted as if it had come whole, without being kept."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from service.model.lines import LinePattern
from service.sources import lines
from service.sources.pod_logs import LINE_BYTES, Scan, Search

TOLD = lines.kinds(
    (
        LinePattern(name="bad", any_of=("^bad thing '(?P<subject>[^']+)'",)),
        LinePattern(name="worse", any_of=("much worse",)),
    )
)
AT = "2026-11-26T08:00:0{}.5Z "
SPAN = (1_795_680_002.0, 1_795_680_008.0)


def search(**more: float) -> Search:
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
