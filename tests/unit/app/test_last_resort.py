"""The last resort: a stop that hangs is ended, whatever began it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from service.app import run as app
from service.app.supervisor import run_until
from service.ring.ports import Unavailable
from service.ring.stopping import Stopping


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set instead of ending the process."""
    event = threading.Event()
    monkeypatch.setattr(app, "_give_up", event.set)
    monkeypatch.setattr(app.logs, "set_up", lambda _: None)
    return event


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "serinus.yaml"
    file.write_text(f"""
mode: observe
config_dir: {tmp_path}
kafka: {{bootstrap_servers: "127.0.0.1:1"}}
database: {{url: "sqlite:///{tmp_path}/s.db"}}
api: {{host: 127.0.0.1, port: 0, auth: "off"}}
stop_within: 1s
""")
    return file


async def _hang(event: threading.Event) -> None:
    # Bounded, so that a service without a last resort fails this test instead of hanging it.
    if not await asyncio.to_thread(event.wait, 20):
        raise AssertionError("nobody ended the stop that hangs")


def test_a_failed_root_task_and_a_closing_step_that_hangs_end_the_process(
    given_up: threading.Event, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise ValueError("a bug")

    async def run(settings: Any, stopping: Stopping) -> None:
        try:
            await run_until(stopping, {"fails": fails()}, stop_s=settings.stop_s)
        finally:
            await _hang(given_up)

    monkeypatch.setattr(app, "run", run)
    with pytest.raises(ValueError, match="a bug"):
        app.serve(config)


def test_a_start_that_fails_and_a_closing_step_that_hangs_end_the_process(
    given_up: threading.Event, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs:
        async def close(self) -> None:
            await _hang(given_up)

    async def open_store(*_: object, **__: object) -> Hangs:
        return Hangs()

    def fails(*_: object, **__: object) -> None:
        raise Unavailable("as told")

    monkeypatch.setattr(app, "open_store", open_store)
    monkeypatch.setattr(app, "observed", fails)
    assert app.serve(config) == 1
