"""Has a candidate's own Python say what its TensorFlow has registered, or reads what it said earlier.

The interpreter is named by the operator, never by an event or a model. It gets no environment of ours, so no secrets,
runs in an empty folder without user packages, and is ended with all its children when its time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from service.preflight.report import readable
from service.preflight.saved_model.check import Runtime
from service.preflight.saved_model.wire import FileSource, Unreadable

FORMAT = 1
MAX_DUMP_BYTES = 64 << 20
"""TensorFlow 2.21 says 1.5 MB."""
MAX_NOISE_BYTES = 64 << 10
WITHIN_S = 180.0
"""Importing TensorFlow takes 3 to 15 s, on a cold disk more."""

QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Asks for no GPU: kernels are listed without one."""


class NoAnswer(Exception):
    """The runtime could not be asked. ``to_do`` says what a person can do about it."""

    def __init__(self, sentence: str, to_do: str) -> None:
        super().__init__(sentence)
        self.to_do = to_do


@dataclass(frozen=True, slots=True)
class Script:
    """Source that runs in a candidate's Python."""

    source: str

    @classmethod
    def dumping(cls, imports: Sequence[str] = ()) -> Script:
        """Writes the Runtime to standard output. ``imports``: modules that register further ops."""
        return cls(f"{own_source('inside')}\n\ndump({list(imports)!r})\n")


def own_source(module: str) -> str:
    """The text of a module of this room that also runs elsewhere."""
    return resources.files("service.preflight.saved_model").joinpath(f"{module}.py").read_text(encoding="utf-8")


async def asked(
    python: Path, *, imports: Sequence[str] = (), within_s: float = WITHIN_S, environment: Mapping[str, str] = {}
) -> Runtime:
    """What the TensorFlow of an interpreter has registered.

    environment : further variables for it, such as LD_LIBRARY_PATH of a CUDA build
    Raises NoAnswer when it does not start, ends badly, says something else or takes longer. Safe to repeat and cancel.
    """
    said = await run(python, Script.dumping(imports), within_s=within_s, environment=environment)
    return _decoded(said, f"{python}")


async def run(python: Path, script: Script, *, within_s: float, environment: Mapping[str, str] = {}) -> bytes:
    """What a script wrote to standard output in ``python``; raises NoAnswer as ``asked`` does."""
    with tempfile.TemporaryDirectory(prefix="serinus-preflight-", ignore_cleanup_errors=True) as folder:
        own = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, **QUIET, **environment}
        try:
            process = await asyncio.create_subprocess_exec(
                str(python),
                "-I",
                "-c",
                script.source,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env=own,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise NoAnswer(
                f"starting the candidate's Python {python} failed: {getattr(error, 'strerror', None) or error}",
                "Name an interpreter with the candidate's TensorFlow, or a file that `serinus preflight runtime` wrote",
            ) from error
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                said = group.create_task(_read(process.stdout, MAX_DUMP_BYTES + 1), name="preflight-runtime-says")
                noise = group.create_task(_tail(process.stderr), name="preflight-runtime-noise")
                group.create_task(process.wait(), name="preflight-runtime-ends")
        except TimeoutError as error:
            raise NoAnswer(
                f"the candidate's Python {python} did not say within {within_s:g} s what its TensorFlow has registered",
                "Look whether `import tensorflow` ends there, or write a file with `serinus preflight runtime`",
            ) from error
        finally:
            # Also whatever it started: the session is its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode or len(said.result()) > MAX_DUMP_BYTES:
        last = next((line for line in reversed(noise.result().splitlines()) if line.strip()), "it said nothing")
        raise NoAnswer(
            f"the candidate's Python {python} ended with {process.returncode}: {readable(last)}",
            "Look whether `import tensorflow` works with that interpreter",
        )
    return said.result()


async def _read(stream: asyncio.StreamReader, limit_bytes: int) -> bytes:
    """The beginning of a stream; the rest is read and dropped, so that the writer does not wait for ever."""
    kept = bytearray()
    while chunk := await stream.read(1 << 16):
        kept += chunk[: limit_bytes - len(kept)]
    return bytes(kept)


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while chunk := await stream.read(1 << 14):
        kept = (kept + chunk)[-MAX_NOISE_BYTES:]
    return kept.decode(errors="replace")


def read_dump(path: Path) -> Runtime:
    """What `serinus preflight runtime` wrote. Raises NoAnswer for anything else."""
    to_do = "Write it anew with `serinus preflight runtime`"
    try:
        with FileSource(path, limit_bytes=MAX_DUMP_BYTES) as source:
            content = source.at(0, source.size_bytes)
    except Unreadable as error:
        raise NoAnswer(f"reading the candidate's ops and kernels failed: {error}", to_do) from error
    return _decoded(content, path.name)


def _decoded(content: bytes, name: str) -> Runtime:
    try:
        runtime = msgspec.json.decode(content, type=Runtime)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswer(
            f"what {name} says of its TensorFlow has another form: {str(error)[:200]}",
            "Write it with the `serinus preflight runtime` of this version",
        ) from error
    if runtime["format"] != FORMAT or not runtime["ops"] or not runtime["kernels"]:
        raise NoAnswer(
            f"what {name} says of its TensorFlow has the format {runtime['format']} with {len(runtime['ops'])} ops",
            f"Write it with the `serinus preflight runtime` of this version, which reads format {FORMAT}",
        )
    return runtime
