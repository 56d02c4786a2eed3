"""Asking an interpreter: what it says is checked, and whatever it does it ends."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.preflight.saved_model import runtime
from service.preflight.saved_model.runtime import NoAnswer, Script, asked, read_dump, run

GOOD: dict[str, Any] = {
    "format": 1,
    "versions": {"TensorFlow": "2.13.0"},
    "graph_version_n": 1482,
    "gpu_build": False,
    "ops": {"Relu": {"attrs": {}, "inputs": ["$T"], "outputs": ["$T"], "removed_n": 0}},
    "kernels": {"Relu": [{"device": "CPU", "label": "", "only": {"T": ["float"]}}]},
}


def shell(path: Path, script: str) -> Path:
    """A program that stands for an interpreter."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def test_what_an_interpreter_says_is_taken(tmp_path: Path):
    says = shell(tmp_path / "python", f"echo noise >&2; echo '{json.dumps(GOOD)}'")
    assert await asked(says) == GOOD


async def test_it_is_told_nothing_of_our_environment_and_works_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SERINUS_TOKEN", "secret")
    says = shell(tmp_path / "python", "env; ls -A; pwd")
    said = await run(says, Script("pass"), within_s=30, environment={"LD_LIBRARY_PATH": "/cuda"})
    text = said.decode()
    assert "secret" not in text
    assert "LD_LIBRARY_PATH=/cuda" in text
    assert "CUDA_VISIBLE_DEVICES=\n" in text
    home = text.rstrip().rsplit("\n", 1)[-1]
    assert f"HOME={home}" in text
    assert not os.path.exists(home)


async def test_one_that_hangs_is_ended_with_its_children(tmp_path: Path):
    mark = tmp_path / "child"
    hangs = shell(tmp_path / "python", f"sleep 600 & echo $! > {mark}; wait")
    with pytest.raises(NoAnswer, match=r"did not say within 0.5 s"):
        await asked(hangs, within_s=0.5)
    child = int(mark.read_text())
    deadline = time.monotonic() + 10
    while _lives(child) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_cancelling_ends_it_too(tmp_path: Path):
    mark = tmp_path / "self"
    task = asyncio.create_task(asked(shell(tmp_path / "python", f"echo $$ > {mark}; exec sleep 600")))
    while not mark.exists() or not mark.read_text():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _lives(int(mark.read_text()))


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("echo 'ModuleNotFoundError: No module named tensorflow' >&2; exit 1", "ended with 1: ModuleNotFoundError"),
        ("kill -SEGV $$", "ended with -11"),
        ("echo '{}'", "has another form"),
        ("echo '[[[['", "has another form"),
        ("echo '\"\\377'", "has another form"),
    ],
)
async def test_one_that_fails_or_says_something_else_is_told(tmp_path: Path, script: str, what: str):
    with pytest.raises(NoAnswer, match=what) as told:
        await asked(shell(tmp_path / "python", script))
    assert told.value.to_do


async def test_what_an_interpreter_says_before_it_ends_reaches_no_terminal_as_a_command(tmp_path: Path):
    fails = shell(tmp_path / "python", r"printf 'bad\033]0;title\007' >&2; exit 1")
    with pytest.raises(NoAnswer) as told:
        await asked(fails)
    assert str(told.value).isprintable()


async def test_one_that_talks_without_end_is_read_to_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runtime, "MAX_DUMP_BYTES", 1000)
    with pytest.raises(NoAnswer, match="ended with 0"):
        await asked(shell(tmp_path / "python", "head -c 3000000 /dev/zero"))


async def test_one_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(NoAnswer, match=r"starting the candidate's Python .* failed: No such file"):
        await asked(tmp_path / "nothing")


async def test_an_interpreter_without_tensorflow_is_told_by_the_real_script():
    with pytest.raises(NoAnswer, match="No module named"):
        await asked(Path(sys.executable), imports=["there_is_no_such_module"])


def test_a_dump_is_read_and_held_to_its_form(tmp_path: Path):
    path = tmp_path / "runtime.json"
    path.write_text(json.dumps(GOOD))
    assert read_dump(path) == GOOD
    for broken, what in (
        (GOOD | {"format": 2}, "has the format 2"),
        (GOOD | {"ops": {}}, "with 0 ops"),
        (GOOD | {"kernels": {"Relu": [{"device": 3}]}}, "has another form"),
        ("[" * 50_000, "has another form"),
    ):
        path.write_text(broken if isinstance(broken, str) else json.dumps(broken))
        with pytest.raises(NoAnswer, match=what):
            read_dump(path)
    with pytest.raises(NoAnswer, match="cannot be opened"):
        read_dump(tmp_path / "nothing")
