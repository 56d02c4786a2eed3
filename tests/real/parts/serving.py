"""Model servers, each in a Python of its own. ``serving_program`` says how far the one of TensorFlow is like TensorFlow
Serving, whose own binary is in no package index that the tests use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, TypeVar

from tests.processes import answers, end, free_port
from tests.real.parts.tensorflow import ENVIRONMENTS, QUIET

PROGRAM = Path(__file__).parent / "serving_program.py"
NAME = "ranker"
READY_WITHIN_S = 180.0


class HttpServer:
    """A program that answers HTTP on loopback; ``start`` returns at once, for the wait is what a cold start is."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        ready: str,
        folder: Path,
        environment: Mapping[str, str] = {},
        search: Sequence[Path] = (),
    ) -> None:
        """``ready`` is the path that answers with 200 once it serves; its log is kept in ``folder``.

        search : folders before those of PATH
        """
        self._command = command
        self._port = port
        self._ready = ready
        self._environment = environment
        self._search = search
        self._log = folder / f"serving-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers once the model is loaded."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def metrics_url(self) -> str:
        """Where its metrics are, without their path."""
        return self.url

    @property
    def pid(self) -> int:
        """Of the process that holds the model."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that it has said."""
        return self._log.read_text("utf-8", "replace")

    def start(self) -> Self:
        """Start it."""
        path = os.pathsep.join([*map(str, self._search), os.environ.get("PATH", "")])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **QUIET, **self._environment},
            )
        return self

    def wait(self, within_s: float = READY_WITHIN_S) -> Self:
        """Wait until it answers; raises RuntimeError with its last log lines when it does not."""
        assert self._process is not None
        if answers(f"{self.url}{self._ready}", self._process, within_s):
            return self
        self.stop()
        raise RuntimeError(f"{self._command[0]} does not answer:\n{self.log[-2000:]}")

    def ended(self, within_s: float = READY_WITHIN_S) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(within_s)

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            end(process)


class ModelServer(HttpServer):
    """TensorFlow's; serves the newest version below a folder."""

    def __init__(self, version: str, models: Path, *, environment: Mapping[str, str] = {}) -> None:
        """``version`` is a name in ENVIRONMENTS; ``models`` holds folders named by numbers."""
        port = free_port()
        # Isolated (-I): beside the program lies a module that is called tensorflow too.
        command = (str(ENVIRONMENTS[version].python()), "-I", str(PROGRAM), f"--model_name={NAME}")
        super().__init__(
            (*command, f"--model_base_path={models}", f"--rest_api_port={port}"),
            port=port,
            ready=f"/v1/models/{NAME}",
            folder=models,
            environment=environment,
        )


S = TypeVar("S", bound=HttpServer)


@contextmanager
def running(*servers: S) -> Iterator[tuple[S, ...]]:
    """Start all of them, and end all of them."""
    with ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        yield servers
