"""A node: pods that are processes in cgroups of their own, and the kubelet's own code that tells of them.

What prints /metrics/cadvisor is the kubelet's HTTP server with the kubelet's cAdvisor (tests/real/kube/kubelet). There
is no container runtime: cgroups are made here as the kubelet and containerd lay them out (cgroup driver cgroupfs), and
of a container's image and labels cAdvisor hears what this says.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import answers, free_port
from tests.real.parts.building import kubelet
from tests.real.parts.cgroups import Cgroups, own_cgroups

NAMESPACE = "ml-serving"
HOUSEKEEPING_S = 1
"""How often cAdvisor measures; the kubelet's default is 10 s, and up to 15 s where little changes."""
READY_WITHIN_S = 60.0
WORK = """
import os, signal, sys, threading, time

held_mib, busy_share = int(sys.argv[1]), float(sys.argv[2])
# Its cgroup is not there yet.
if not sys.stdin.readline():
    sys.exit(3)
for entrance in sys.argv[3:]:
    with open(entrance, "w") as file:
        file.write(str(os.getpid()))
# The parent holds the other end of a pipe: when it dies, by whatever means, so does this.
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(3)), daemon=True).start()


def hoard(*_):
    # A child that takes more memory than the group may have: the kernel kills it, the dearest by its score.
    child = os.fork()
    if child == 0:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        taken = [b"x" * (1 << 20) for _ in range(4096)]
        os._exit(len(taken) % 256)
    os.waitpid(child, 0)


signal.signal(signal.SIGUSR1, hoard)
held = b"x" * (held_mib << 20)
print("works", flush=True)
while True:
    began = time.monotonic()
    until = time.process_time() + 0.1 * busy_share
    while time.process_time() < until:
        pass
    time.sleep(max(0.1 - (time.monotonic() - began), 0))
"""
"""What a container does: hold memory, use a share of one CPU, and on SIGUSR1 run out of memory once."""


@dataclass(frozen=True, slots=True)
class Container:
    """What one container of a pod holds, does, and may."""

    name: str
    held_mib: int
    busy_share: float = 0.0
    cpus: float | None = None
    """None for no limit; the same for memory."""
    memory_bytes: int | None = None


SANDBOX = Container("", 0)
"""Holds a pod's network; it has no name."""


@dataclass(slots=True)
class Pod:
    """Its containers, and the sandbox that every pod has."""

    name: str
    containers: Sequence[Container]
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    ids: dict[str, str] = field(default_factory=dict)
    """The present container's id, by name."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By name as well."""

    @property
    def told(self) -> dict[str, Any]:
        """What the runtime knows."""
        images = {"": "registry.k8s.io/pause:3.10.1"}
        return {
            "Namespace": NAMESPACE,
            "Name": self.name,
            "UID": self.uid,
            "Containers": [
                {
                    "ID": container_id,
                    "Name": name,
                    "Image": images.get(name, f"docker.io/library/{name}:1"),
                    "Pid": self.processes[name].pid,
                }
                for name, container_id in self.ids.items()
            ],
        }


class Node:
    """Pods and a kubelet. ``url`` is where it answers."""

    def __init__(self, folder: Path, groups: Cgroups) -> None:
        self._folder, self.groups = folder, groups
        self._pods: list[Pod] = []
        self._kubelet: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{free_port()}"

    def run(self, pod: Pod) -> None:
        """Start a pod."""
        self._pods.append(pod)
        self.groups.make(self.group(pod))
        cpus = [one.cpus for one in pod.containers if one.cpus is not None]
        memory = [one.memory_bytes for one in pod.containers if one.memory_bytes is not None]
        # As the kubelet does: the pod as a whole has limits where all its containers have.
        self.groups.limit(
            self.group(pod),
            sum(cpus) if len(cpus) == len(pod.containers) else None,
            sum(memory) if len(memory) == len(pod.containers) else None,
        )
        for one in (SANDBOX, *pod.containers):
            self._contain(pod, one)

    def replace(self, pod: Pod, name: str) -> None:
        """As after a crash: a container's process ends, its cgroup goes, and a new container takes its place."""
        gone = self.group(pod, name)
        _end(pod.processes.pop(name))
        del pod.ids[name]
        self.groups.remove(gone)
        self._contain(pod, next(one for one in pod.containers if one.name == name))

    def run_out_of_memory(self, pod: Pod, name: str) -> None:
        """A child of the container's process takes too much, and the kernel kills it."""
        pod.processes[name].send_signal(signal.SIGUSR1)

    def group(self, pod: Pod, container: str | None = None) -> str:
        """The cgroup of a pod, or of one of its containers."""
        of_pod = f"{self.groups.root}/kubepods/burstable/pod{pod.uid}"
        return of_pod if container is None else f"{of_pod}/{pod.ids[container]}"

    def cpu_s(self, pod: Pod) -> float:
        """What the pod's containers have used by the kernel's own count, without the sandbox."""
        return sum(self.groups.cpu_s(self.group(pod, one.name)) for one in pod.containers)

    def text(self) -> str:
        """What the kubelet prints now."""
        with urllib.request.urlopen(f"http://{self.address}/metrics/cadvisor", timeout=30) as answer:
            return str(answer.read().decode())

    def start(self) -> None:
        """Start the kubelet and wait until it answers."""
        with (self._folder / "kubelet.log").open("ab") as log:
            self._kubelet = subprocess.Popen(
                [
                    str(kubelet()),
                    f"--pods={self._folder / 'pods.json'}",
                    f"--cgroup-root={self.groups.root}",
                    f"--root-dir={self._folder}",
                    f"--listen={self.address}",
                    f"--housekeeping_interval={HOUSEKEEPING_S}s",
                ],
                # Held open: it ends when we do.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        if not answers(f"http://{self.address}/healthz", self._kubelet, READY_WITHIN_S):
            raise RuntimeError(f"the kubelet does not answer:\n{(self._folder / 'kubelet.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End the kubelet and all pods."""
        for process in (*([self._kubelet] if self._kubelet else ()), *self._processes()):
            _end(process)

    def _processes(self) -> Iterator[subprocess.Popen[bytes]]:
        return (process for pod in self._pods for process in pod.processes.values())

    def _contain(self, pod: Pod, container: Container) -> None:
        pod.ids[container.name] = secrets.token_hex(32)
        group = self.group(pod, container.name)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", WORK, str(container.held_mib), str(container.busy_share),
             *self.groups.entrances(group)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        pod.processes[container.name] = process
        # The runtime knows a container before there is its cgroup.
        self._tell()
        self.groups.make(group)
        self.groups.limit(group, container.cpus, container.memory_bytes)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise RuntimeError(f"a process of pod {pod.name!r} ended with {process.wait()} before it worked")

    def _tell(self) -> None:
        part = self._folder / "pods.part"
        part.write_text(json.dumps([pod.told for pod in self._pods]))
        part.rename(self._folder / "pods.json")


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.kill()


@contextmanager
def node() -> Iterator[Node]:
    """A node that leaves nothing behind; raises NoCgroups where this user may make none."""
    # The path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="kubelet-") as folder, own_cgroups() as groups:
        made = Node(Path(folder), groups)
        try:
            yield made
        finally:
            made.stop()
