"""Logs: fixed keys first, what is handled on every line, and outside names as data."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.app import logs
from service.ring.seen import UNSEEN, About
from service.settings import LogSettings
from tests.stories import SERVICE

Lines = Callable[..., Callable[[], str]]
logger = logging.getLogger("service.test")
ABOUT = About("r-1", SERVICE, "e-1", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", 7)


@pytest.fixture
def into() -> Iterator[Lines]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("service").level)

    def set_up(**settings: Any) -> Callable[[], str]:
        stream = io.StringIO()
        logs.set_up(LogSettings(**settings), stream)
        return stream.getvalue

    yield set_up
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("service").setLevel(before[2])


def test_the_keys_come_first_in_their_order_and_only_where_they_apply(into: Lines) -> None:
    written = into()
    with UNSEEN.handling("set_weights", ABOUT):
        logger.info("inside", extra={"action": "tried"})
    logger.info("outside")
    inside, outside = (json.loads(line) for line in written().splitlines())
    assert list(inside) == [
        "ts", "level", "event", "logger", "trace_id", "cluster", "namespace", "service", "rollout", "event_id",
        "action", "owed",
    ]  # fmt: skip
    assert list(outside) == ["ts", "level", "event", "logger"]


def test_what_a_line_says_itself_goes_before_what_is_handled(into: Lines) -> None:
    written = into()
    with UNSEEN.handling("windows", ABOUT):
        logger.info("another", extra={"rollout": "r-2"})
    assert json.loads(written())["rollout"] == "r-2"


async def test_tasks_side_by_side_keep_their_own_keys(into: Lines) -> None:
    written = into()

    async def work(rollout: str) -> None:
        with UNSEEN.handling("page", About(rollout)):
            await asyncio.sleep(0)
            logger.info("from %s", rollout)

    await asyncio.gather(*(work(f"r-{n}") for n in range(20)))
    for line in map(json.loads, written().splitlines()):
        assert line["event"] == f"from {line['rollout']}"


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("name", ["%s%d{0}", "a\nts=now level=error", "\x1b[2J\x1b[31mred", "\u202e", '"}{"'])
def test_a_name_from_outside_is_one_lines_data_whatever_it_holds(into: Lines, form: str, name: str) -> None:
    written = into(format=form)
    logger.warning("dead letter: %s", name, extra={"action": "dead_letter", "source": name})
    (line,) = written().splitlines()
    assert "\x1b[2J" not in line
    assert "\u202e" not in line
    if form == "json":
        assert json.loads(line)["event"] == f"dead letter: {name}"
    else:
        assert "dead letter" in line


def test_debug_means_the_services_own_lines(into: Lines) -> None:
    written = into(level="debug")
    logger.debug("ours")
    logging.getLogger("aiosqlite").debug("executing %s", "a whole statement")
    assert [json.loads(line)["event"] for line in written().splitlines()] == ["ours"]


def test_an_exception_is_told_with_its_place(into: Lines) -> None:
    written = into()
    try:
        raise ValueError("as told")
    except ValueError:
        logger.exception("failed")
    assert "ValueError: as told" in json.loads(written())["exception"]
