"""What tests and benchmarks need of the machine: a port that stays free, and what a process of ours has used."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

HOST = "127.0.0.1"

_given: set[int] = set()


def free_port() -> int:
    """A port of loopback that nobody listens on and that is given once.

    It lies below the ephemeral range (32768 and up), so that no outgoing connection takes it while the server that it
    is meant for is down.
    """
    for _ in range(2000):
        port = random.SystemRandom().randrange(15000, 32000)  # a test may have seeded the other one
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no free port found")


def end(process: subprocess.Popen[bytes], within_s: float = 20.0) -> None:
    """End a process of ours: asked first, killed when it has not ended in time; one that has ended is left alone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str, process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Wait until a GET of ``url`` succeeds; False where the process ends before, or the time is over."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            time.sleep(0.05)
    return False


def status_kb(pid: int, name: str) -> int:
    """A number of /proc/PID/status, such as VmRSS (resident now), VmHWM (resident at most) or Threads."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in the status of process {pid}")


def rss_mib(pid: int) -> float:
    """Resident memory now."""
    return status_kb(pid, "VmRSS") / 1024


def peak_rss_mib(pid: int) -> float:
    """The most memory that was ever resident."""
    return status_kb(pid, "VmHWM") / 1024


def cpu_s(pid: int) -> float:
    """Processor time used so far, without that of children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
