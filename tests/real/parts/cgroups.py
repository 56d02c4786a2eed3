"""Control groups as a kubelet and a container runtime lay them out, under a root of our own that goes with its maker.

Both hierarchies are known: version 1, where each controller has a tree, and version 2, which has one. What belongs to
version 2 follows the kernel's documentation and is not run where the tests run.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
PERIOD_US = 100_000
"""Of the CPU's quota, as the kubelet sets it by default."""
GONE_WITHIN_S = 20.0


class NoCgroups(RuntimeError):
    """This user may make none here; the message says what was refused."""


def unified() -> bool:
    """Whether this machine has version 2 alone."""
    return (MOUNTED / "cgroup.controllers").exists()


class Cgroups:
    """Groups by their name from the root, such as ``/serinus-1f/kubepods``; everything below one root is ours."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._trees = [MOUNTED] if unified() else [MOUNTED / one for one in CONTROLLERS]

    def make(self, name: str) -> None:
        """A group and those above it."""
        for tree in self._trees:
            at = tree
            for part in name.strip("/").split("/"):
                if unified():
                    (at / "cgroup.subtree_control").write_text("+cpu +memory +pids")
                at = at / part
                at.mkdir(exist_ok=True)

    def limit(self, name: str, cpus: float | None, memory_bytes: int | None) -> None:
        """So many CPUs and so much memory at most for all processes of a group; None for what it has no limit of."""
        if cpus is not None:
            quota_us = round(cpus * PERIOD_US)
            if unified():
                self._file(name, "cpu", "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
            else:
                self._file(name, "cpu", "cpu.cfs_quota_us").write_text(str(quota_us))
        if memory_bytes is not None:
            file = "memory.max" if unified() else "memory.limit_in_bytes"
            self._file(name, "memory", file).write_text(str(memory_bytes))

    def entrances(self, name: str) -> list[str]:
        """Files in which a process writes its id to enter the group."""
        return [str(tree / name.strip("/") / "cgroup.procs") for tree in self._trees]

    def cpu_s(self, name: str) -> float:
        """CPU that the group has used."""
        if unified():
            lines = self._file(name, "cpu", "cpu.stat").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec")) / 1e6
        return int(self._file(name, "cpuacct", "cpuacct.usage").read_text()) / 1e9

    def remove(self, name: str) -> None:
        """End the processes of a group and of those below it, and remove them."""
        deadline = time.monotonic() + GONE_WITHIN_S
        for tree in self._trees:
            folders = [Path(folder) for folder, _, _ in os.walk(tree / name.strip("/"), topdown=False)]
            for folder in folders:
                while folder.exists():
                    for pid in (folder / "cgroup.procs").read_text().split():
                        with suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
                    try:
                        folder.rmdir()
                    except OSError:
                        # Those that were killed have not left yet.
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.01)

    def _file(self, name: str, controller: str, file: str) -> Path:
        return (MOUNTED if unified() else MOUNTED / controller) / name.strip("/") / file


@contextmanager
def own_cgroups() -> Iterator[Cgroups]:
    """A root of one's own, removed with all below it; raises NoCgroups where this user may make none."""
    groups = Cgroups(f"/serinus-{secrets.token_hex(4)}")
    try:
        try:
            groups.make(groups.root)
        except OSError as refused:
            raise NoCgroups(f"no cgroups can be made here: {refused}") from refused
        yield groups
    finally:
        groups.remove(groups.root)
