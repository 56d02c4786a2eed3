"""A real Apache Kafka 4.x broker (KRaft, combined controller+broker) for tests.

Needs a folder of jars (see pom.xml) and a Java 17+ `java`; standard library only.

    with KafkaBroker(lib_dir="kafka-lib") as b:
        ... bootstrap_servers=b.bootstrap ...
        b.kill(); b.restart()          # data is kept
"""

from __future__ import annotations

import atexit
import base64
import functools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.processes import free_port, rss_mib

HOST = "127.0.0.1"


class BrokerError(RuntimeError):
    pass


def kafka_uuid() -> str:
    """22 characters, URL-safe base64 of a uuid4, not starting with '-' (argparse4j)."""
    while True:
        s = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not s.startswith("-"):
            return s


def _read_exact(s: socket.socket, n: int) -> bytes:
    buf = b""
    while len(buf) < n:
        part = s.recv(n - len(buf))
        if not part:
            raise ConnectionError("closed")
        buf += part
    return buf


def metadata_brokers(port: int, timeout: float = 1.0) -> tuple[list[int], int]:
    """(ids of the live brokers, controller id) by a raw Metadata v1 request."""
    client = b"probe"
    body = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    with socket.create_connection((HOST, port), timeout=timeout) as s:
        s.settimeout(timeout)
        s.sendall(struct.pack(">i", len(body)) + body)
        (size,) = struct.unpack(">i", _read_exact(s, 4))
        r = _read_exact(s, size)
    pos = 4  # correlation id
    (n,) = struct.unpack_from(">i", r, pos)
    pos += 4
    ids = []
    for _ in range(n):
        node, hl = struct.unpack_from(">ih", r, pos)
        pos += 6 + hl + 4
        (rl,) = struct.unpack_from(">h", r, pos)
        pos += 2 + max(rl, 0)
        ids.append(node)
    (controller,) = struct.unpack_from(">i", r, pos)
    return ids, controller


@functools.lru_cache(None)
def java_major(java: str) -> int:
    r = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    m = re.search(r'version "(\d+)', r.stderr + r.stdout)
    return int(m.group(1)) if m else 0


class KafkaBroker:
    """One node. For several, make the nodes with KafkaBroker.cluster(n, ...)."""

    def __init__(
        self,
        lib_dir: str | os.PathLike,
        work_dir: str | os.PathLike | None = None,
        *,
        java: str | None = None,
        heap: str = "256m",
        node_id: int = 1,
        cluster_id: str | None = None,
        port: int | None = None,
        controller_port: int | None = None,
        voters: str | None = None,  # "1@127.0.0.1:p1,2@..."; None: a single node
        replication: int = 1,
        min_isr: int = 1,
        extra_listeners: Mapping[str, str] | None = None,  # name -> security protocol
        props: Mapping[str, object] | None = None,  # last word on any property
        format_args: Sequence[str] = (),  # e.g. ["--add-scram", "SCRAM-SHA-512=[...]"]
        session_timeout_ms: int = 2000,  # a killed broker comes back after this (Kafka: 9000)
        cds: str | os.PathLike | None = None,  # class archive: used where it is, else made at stop()
        jvm_args: Sequence[str] = (),
        log_level: str = "info",
        start_timeout: float = 60.0,
    ):
        self.lib_dir = Path(lib_dir).resolve()
        if not list(self.lib_dir.glob("kafka_2.13-*.jar")):
            raise BrokerError(f"no kafka_2.13 jar in {self.lib_dir}")
        self._own_dir = work_dir is None
        self.work_dir = Path(work_dir or tempfile.mkdtemp(prefix="kafka-broker-")).resolve()
        self.work_dir.mkdir(parents=True, exist_ok=True)
        home = os.environ.get("JAVA_HOME")
        self.java = java or shutil.which("java") or (home and f"{home}/bin/java")
        if not self.java:
            raise BrokerError("no java found")
        self.heap = heap
        self.node_id = node_id
        self.cluster_id = cluster_id or kafka_uuid()
        self.port = port or free_port()
        self.controller_port = controller_port or free_port()
        self.voters = voters or f"{node_id}@{HOST}:{self.controller_port}"
        self.expect_brokers = 1
        self.replication, self.min_isr = replication, min_isr
        self.extra = {n: (proto, free_port()) for n, proto in (extra_listeners or {}).items()}
        self.user_props = dict(props or {})
        self.format_args = list(format_args)
        self.session_timeout_ms = session_timeout_ms
        self.cds = Path(cds).resolve() if cds else None
        self._cds_new: Path | None = None
        self.jvm_args = list(jvm_args)
        self.log_level = log_level
        self.start_timeout = start_timeout
        self.data_dir = self.work_dir / "data"
        self.config = self.work_dir / "server.properties"
        self.log_file = self.work_dir / "broker.log"
        self.proc: subprocess.Popen | None = None
        self.timings: dict[str, float] = {}

    # -- facts -------------------------------------------------------------
    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self.port}"

    def listener(self, name: str) -> str:
        return f"{HOST}:{self.extra[name][1]}"

    @property
    def pid(self) -> int | None:
        return self.proc.pid if self.proc else None

    @property
    def alive(self) -> bool:
        return self.proc is not None and self.proc.poll() is None

    def rss_mib(self) -> float:
        return rss_mib(self.pid)

    def log_tail(self, n: int = 30) -> str:
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-n:])
        except OSError:
            return ""

    # -- configuration -----------------------------------------------------
    def properties(self) -> dict[str, object]:
        names = {"PLAINTEXT": ("PLAINTEXT", self.port), **self.extra}
        adv = ",".join(f"{n}://{HOST}:{p}" for n, (_, p) in names.items())
        protos = ",".join(f"{n}:{proto}" for n, (proto, _) in names.items())
        p: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.node_id,
            "controller.quorum.voters": self.voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{adv},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": adv,
            "listener.security.protocol.map": f"{protos},CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.data_dir,
            "auto.create.topics.enable": "false",
            "num.partitions": 1,
            "default.replication.factor": self.replication,
            "min.insync.replicas": self.min_isr,
            "offsets.topic.replication.factor": self.replication,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": self.replication,
            "transaction.state.log.min.isr": self.min_isr,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": self.replication,
            "share.coordinator.state.topic.min.isr": self.min_isr,
            "share.coordinator.state.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            # small and fast on a shared machine
            "num.network.threads": 2,
            "num.io.threads": 2,
            "background.threads": 2,
            "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,  # default 128 MiB of heap
            "log.segment.bytes": 64 * 1024 * 1024,
            # a killed broker is fenced, and can register again, after this (default 9000)
            "broker.session.timeout.ms": self.session_timeout_ms,
            "broker.heartbeat.interval.ms": max(100, self.session_timeout_ms // 8),
        }
        p.update(self.user_props)
        return p

    def _java(self, extra: Sequence[str] = ()) -> list[str]:
        return [
            self.java,
            f"-Xmx{self.heap}",
            "-Xms64m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Djava.awt.headless=true",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=" + self.log_level,
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
            "-Dlog4j2.StatusLogger.level=OFF",
            # Java 24+ warns otherwise (native libraries of lz4, zstd, snappy; Unsafe)
            *(
                ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]
                if java_major(self.java) >= 24
                else []
            ),
            *extra,
            "-cp",
            f"{self.lib_dir}/*",
        ]

    def _cds_args(self) -> list[str]:
        """Class data sharing (Java 17+) or an AOT cache (Java 25+): 1 to 2 s less to start.
        An archive fits one java and one lib folder; another java ignores it."""
        if not self.cds:
            return []
        aot = java_major(self.java) >= 25
        if self.cds.exists():
            return [f"-XX:{'AOTCache' if aot else 'SharedArchiveFile'}={self.cds}"]
        self._cds_new = self.work_dir / "new.jsa"
        quiet = [] if aot else ["-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        return [f"-XX:{'AOTCacheOutput' if aot else 'ArchiveClassesAtExit'}={self._cds_new}", *quiet]

    # -- life --------------------------------------------------------------
    _formatted: dict[tuple, dict[str, bytes]] = {}  # what StorageTool wrote

    def format(self) -> None:
        """Once per data folder (skipped where it is formatted already). StorageTool runs
        once per Python process: with static voters the checkpoint it writes holds neither
        ids nor ports, so later folders get a copy and their own meta.properties."""
        self.config.write_text("".join(f"{k}={v}\n" for k, v in self.properties().items()))
        if (self.data_dir / "meta.properties").exists():
            return
        t = time.monotonic()
        key = (str(self.lib_dir), self.java, *self.format_args)
        if key in self._formatted:
            for name, data in self._formatted[key].items():
                path = self.data_dir / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            (self.data_dir / "meta.properties").write_text(
                f"version=1\nnode.id={self.node_id}\ncluster.id={self.cluster_id}\ndirectory.id={kafka_uuid()}\n"
            )
            self.timings["format"] = time.monotonic() - t
            return
        r = subprocess.run(
            [
                *self._java(),
                "kafka.tools.StorageTool",
                "format",
                "--config",
                str(self.config),
                "--cluster-id",
                self.cluster_id,
                *self.format_args,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.start_timeout,
        )
        self.timings["format"] = time.monotonic() - t
        if r.returncode:
            raise BrokerError(f"format failed ({r.returncode}):\n{r.stdout[-3000:]}")
        dynamic = {"--standalone", "-s", "--initial-controllers", "-I"}
        if not dynamic & set(self.format_args):
            # 4.0 to 4.3: bootstrap.checkpoint; 4.4: __cluster_metadata-0/0...0.checkpoint
            self._formatted[key] = {
                str(p.relative_to(self.data_dir)): p.read_bytes()
                for p in self.data_dir.rglob("*")
                if p.is_file() and p.name not in ("meta.properties", ".lock")
            }

    def launch(self) -> None:
        """Start the process and return at once (for clusters); then wait_ready()."""
        if self.alive:
            raise BrokerError("already running")
        self.format()
        self._t0 = time.monotonic()
        with open(self.log_file, "ab") as out:
            self.proc = subprocess.Popen(
                [*self._java([*self._cds_args(), *self.jvm_args]), "kafka.Kafka", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.work_dir,
                start_new_session=True,
            )
        atexit.register(self.kill)

    def wait_ready(self, brokers: int | None = None) -> None:
        """Until a Metadata answer lists this broker (it is unfenced) and enough others."""
        want = brokers or self.expect_brokers
        deadline = time.monotonic() + self.start_timeout
        while time.monotonic() < deadline:
            if not self.alive:
                raise BrokerError(f"broker ended with {self.proc.returncode}:\n{self.log_tail()}")
            try:
                ids, controller = metadata_brokers(self.port)
                if self.node_id in ids and len(ids) >= want and controller >= 0:
                    self.timings["ready"] = time.monotonic() - self._t0
                    return
            except OSError:
                pass
            time.sleep(0.05)
        tail = self.log_tail()
        self.kill()
        raise BrokerError(f"broker not ready in {self.start_timeout}s:\n{tail}")

    def start(self) -> KafkaBroker:
        self.launch()
        self.wait_ready()
        return self

    def stop(self, timeout: float = 20.0) -> int | None:
        """SIGTERM: controlled shutdown (exit status 143); SIGKILL after timeout."""
        if not self.alive:
            return self.proc.returncode if self.proc else None
        t = time.monotonic()
        self.proc.send_signal(signal.SIGTERM)
        try:
            rc = self.proc.wait(timeout)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            rc = self.proc.wait()
        else:
            if self._cds_new and self._cds_new.exists():
                self.cds.parent.mkdir(parents=True, exist_ok=True)
                part = self.cds.with_name(f"{self.cds.name}.{os.getpid()}.part")
                shutil.copyfile(self._cds_new, part)
                os.replace(part, self.cds)
                self._cds_new.unlink()
        self._cds_new = None
        self.timings["stop"] = time.monotonic() - t
        return rc

    def kill(self) -> None:
        """SIGKILL; the data folder is kept."""
        if self.alive:
            self.proc.kill()
            self.proc.wait()

    def pause(self) -> None:
        """SIGSTOP: the port still accepts, nothing answers (a hung broker)."""
        self.proc.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.proc.send_signal(signal.SIGCONT)

    def restart(self) -> KafkaBroker:
        """Start again on the same ports and data (stops first where it runs)."""
        self.stop()
        return self.start()

    def cleanup(self) -> None:
        self.kill()
        atexit.unregister(self.kill)
        if self._own_dir:
            shutil.rmtree(self.work_dir, ignore_errors=True)

    @classmethod
    def cluster(cls, n: int, lib_dir: Path, work_dir: Path) -> list[KafkaBroker]:
        """``n`` combined nodes, not started; three or more keep three copies and ask two for every write."""
        cluster_id = kafka_uuid()
        ports = [free_port() for _ in range(n)]
        voters = ",".join(f"{i + 1}@{HOST}:{port}" for i, port in enumerate(ports))
        return [
            cls(
                lib_dir,
                work_dir / f"node{i + 1}",
                node_id=i + 1,
                cluster_id=cluster_id,
                controller_port=port,
                voters=voters,
                replication=min(3, n),
                min_isr=2 if n >= 3 else 1,
            )
            for i, port in enumerate(ports)
        ]

    @staticmethod
    def start_cluster(nodes: Sequence[KafkaBroker]) -> None:
        """Start them together, and wait until every one of them knows all."""
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait_ready(len(nodes))

    def __enter__(self) -> KafkaBroker:
        try:
            return self.start()
        except BaseException:
            self.cleanup()
            raise

    def __exit__(self, *exc) -> None:
        self.stop(10)
        self.cleanup()
