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
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.processes import end, free_port
from tests.real.parts.building import kubelet
from tests.real.parts.cgroups import Cgroups, own_cgroups

NAMESPACE = "ml-serving"
CONTAINER = "serving"
HOUSEKEEPING_S = 1
"""How often cAdvisor measures; the kubelet's default is 10 s, and up to 15 s where little changes."""
READY_WITHIN_S = 60.0
WORK = """
import os, signal, sys, threading, time

held_mib, busy_share = int(sys.argv[1]), float(sys.argv[2])
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
    until = time.process_time() + 0.02 * busy_share
    while time.process_time() < until:
        pass
    time.sleep(max(0.02 - (time.monotonic() - began), 0) if busy_share < 1 else 0)
"""
"""What a container does: hold memory, use a share of one CPU, and on SIGUSR1 run out of memory once."""


@dataclass(slots=True)
class Pod:
    """Of one container and, as every pod has, the sandbox that holds its network."""

    name: str
    held_mib: int
    busy_share: float
    cpus: float | None
    """None for no limits, of memory neither."""
    memory_bytes: int
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    containers: list[dict[str, Any]] = field(default_factory=list)
    """As the runtime tells of them."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def serving(self) -> subprocess.Popen[bytes]:
        """The container's process."""
        return self.processes[-1]


class Node:
    """Pods and a kubelet. ``url`` is where it answers."""

    def __init__(self, folder: Path, groups: Cgroups) -> None:
        self._folder, self.groups = folder, groups
        self._pods: list[Pod] = []
        self._kubelet: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{free_port()}"

    def run(self, pod: Pod) -> Pod:
        """Start a pod."""
        self._pods.append(pod)
        self.groups.make(self.group(pod))
        if pod.cpus is not None:
            # As the kubelet does where all containers have limits.
            self.groups.limit(self.group(pod), pod.cpus, pod.memory_bytes)
        self._contain(pod, "", "registry.k8s.io/pause:3.10.1", 0, 0.0)
        self._serve(pod)
        return pod

    def replace_container(self, pod: Pod) -> None:
        """As after a crash: its process ends, its cgroup goes, and a new container takes its place in the pod."""
        gone = pod.containers.pop()
        end(pod.processes.pop())
        self.groups.remove(self.group(pod, gone["ID"]))
        self._serve(pod)

    def run_out_of_memory(self, pod: Pod) -> None:
        """A child of the container's process takes too much, and the kernel kills it."""
        pod.serving.send_signal(signal.SIGUSR1)

    def group(self, pod: Pod, container_id: str = "") -> str:
        """The cgroup of a pod, or of one of its containers."""
        of_pod = f"{self.groups.root}/kubepods/burstable/pod{pod.uid}"
        return f"{of_pod}/{container_id}" if container_id else of_pod

    def cpu_s(self, pod: Pod) -> float:
        """What the pod's container has used by the kernel's own count."""
        return self.groups.cpu_s(self.group(pod, pod.containers[-1]["ID"]))

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
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline and self._kubelet.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{self.address}/healthz", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"the kubelet does not answer:\n{(self._folder / 'kubelet.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End the kubelet and all pods."""
        if self._kubelet is not None:
            end(self._kubelet)
        for process in (one for pod in self._pods for one in pod.processes):
            process.kill()
            process.wait()

    def _serve(self, pod: Pod) -> None:
        self._contain(pod, CONTAINER, "docker.io/library/ranker:1", pod.held_mib, pod.busy_share)

    def _contain(self, pod: Pod, name: str, image: str, held_mib: int, busy_share: float) -> None:
        container_id = secrets.token_hex(32)
        group = self.group(pod, container_id)
        command = [sys.executable, "-I", "-S", "-c", WORK, str(held_mib), str(busy_share)]
        process = subprocess.Popen(
            [*command, *self.groups.entrances(group)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        pod.processes.append(process)
        pod.containers.append({"ID": container_id, "Name": name, "Image": image, "Pid": process.pid})
        # The runtime knows a container before there is its cgroup.
        self._tell()
        self.groups.make(group)
        if name and pod.cpus is not None:
            self.groups.limit(group, pod.cpus, pod.memory_bytes)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        if not process.stdout.readline():
            raise RuntimeError(f"the process of pod {pod.name!r} ended with {process.wait()} before it worked")

    def _tell(self) -> None:
        told = [
            {"Namespace": NAMESPACE, "Name": one.name, "UID": one.uid, "Containers": one.containers}
            for one in self._pods
        ]
        part = self._folder / "pods.part"
        part.write_text(json.dumps(told))
        part.rename(self._folder / "pods.json")


@contextmanager
def node() -> Iterator[Node]:
    """A node that leaves nothing behind; raises OSError where this user may make no cgroups."""
    # The path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="kubelet-") as folder, own_cgroups() as groups:
        made = Node(Path(folder), groups)
        try:
            yield made
        finally:
            made.stop()
