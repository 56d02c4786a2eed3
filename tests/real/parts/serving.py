"""Model servers of real TensorFlow, each version's in its own Python. ``serving_program`` says how far they are like
TensorFlow Serving, whose own binary is in no package index that the tests use."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.processes import end, free_port
from tests.real.parts.tensorflow import ENVIRONMENTS, QUIET

PROGRAM = Path(__file__).parent / "serving_program.py"
NAME = "ranker"
READY_WITHIN_S = 180.0


class ModelServer:
    """Serves the newest version below a folder; ``start`` returns at once, for the wait is what a cold start is."""

    def __init__(self, version: str, models: Path, *, environment: Mapping[str, str] = {}) -> None:
        """``version`` is a name in ENVIRONMENTS; ``models`` holds folders named by numbers."""
        self._python = ENVIRONMENTS[version].python()
        self._models = models
        self._environment = environment
        self._port = free_port()
        self._log = models / f"serving-{self._port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers once the model is loaded."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of the process that holds TensorFlow."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that it has said."""
        return self._log.read_text("utf-8", "replace")

    def start(self) -> ModelServer:
        """Start it. Isolated (-I): beside the program lies a module that is called tensorflow too."""
        arguments = (f"--model_name={NAME}", f"--model_base_path={self._models}", f"--rest_api_port={self._port}")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-I", str(PROGRAM), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "HOME": os.environ.get("HOME", "/"),
                    **QUIET,
                    **self._environment,
                },
            )
        return self

    def wait(self) -> ModelServer:
        """Wait until it answers; raises RuntimeError with its last log lines when it does not."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/v1/models/{NAME}", timeout=5):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the model server does not answer:\n{self.log[-2000:]}")

    def ended(self, within_s: float = READY_WITHIN_S) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process is not None
        return self._process.wait(within_s)

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            end(process)
