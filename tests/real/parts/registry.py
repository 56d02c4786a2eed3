"""Two real registries on loopback: the distribution project's, with basic auth, and one in memory with referrers."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

from tests.processes import end, free_port
from tests.real.parts.building import ROOT, debian, made, run, tool

SOURCES = ROOT / "tests" / "real" / "registry"
READY_WITHIN_S = 30.0
USER, PASSWORD = "anna", "word"
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuQDoL5Sa/TtfS/XN4AY/jgq.HBbO1BTu\n"
"""bcrypt of ``word`` at the lowest cost; the salt is the alphabet."""


def distribution() -> Path:
    """The distribution project's registry: SERINUS_TEST_REGISTRY, or Debian's package unpacked."""
    named = os.environ.get("SERINUS_TEST_REGISTRY")
    if named:
        return Path(named)
    return debian("docker-registry", "docker-registry of Debian, or one named by SERINUS_TEST_REGISTRY") / (
        "usr/bin/docker-registry"
    )


def with_referrers() -> Path:
    """A registry in memory with the referrers API, which the distribution project's lacks. Builds in seconds."""

    def build(folder: Path) -> None:
        run(
            [tool("go", "Go 1.26 or newer"), "build", "-trimpath", "-o", str(folder / "testregistry"), "."], cwd=SOURCES
        )

    return made("registry", sorted(SOURCES.iterdir()), build) / "testregistry"


class DistributionRegistry:
    """The distribution project's registry, storing files below ``folder``."""

    def __init__(self, binary: Path, folder: Path, *, basic: bool) -> None:
        self.host = f"127.0.0.1:{free_port()}"
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "store")}},
            "http": {"addr": self.host},
        }
        if basic:
            (folder / "htpasswd").write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "here", "path": str(folder / "htpasswd")}}
        (folder / "config.yml").write_text(yaml.safe_dump(config))
        with (folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary), "serve", str(folder / "config.yml")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            _ready(f"http://{self.host}/v2/", self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it."""
        _end(self._process)


class GoRegistry:
    """A registry in memory with the referrers API; ends with the test process."""

    def __init__(self, binary: Path) -> None:
        self._process = subprocess.Popen(
            [str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        self.host = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def stop(self) -> None:
        """End it."""
        _end(self._process)


def _ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"no registry answers at {url} (exit {process.poll()})")


def _end(process: subprocess.Popen[bytes]) -> None:
    end(process, 10)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
