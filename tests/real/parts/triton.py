"""NVIDIA's own Triton Inference Server, from the wheel of PyTriton: the binary and its Python backend, on a CPU.

The wheel is 55 MB; what PyTriton itself needs is left out, for the server is started as it is in its container. Of the
backends there is only Python's.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.processes import free_port
from tests.real.parts.building import PartMissing, debian, run
from tests.real.parts.environments import PACKAGES, PYTHON, Environment
from tests.real.parts.serving import NAME, HttpServer

SERVER = PACKAGES / "pytriton" / "tritonserver"


class TritonEnvironment(Environment):
    """With the program that runs models in this Python where the backend looks for it."""

    def make(self, folder: Path) -> None:
        """Fill the folder."""
        super().make(folder)
        root, name = folder / SERVER, "triton_python_backend_stub"
        stub = shutil.copy(root / "python_backend_stubs" / PYTHON / name, root / "backends" / "python" / name)
        found = run(["env", f"LD_LIBRARY_PATH={libraries()}", "ldd", str(stub)])
        missing = [line.split()[0] for line in found.splitlines() if line.endswith("not found")]
        if missing:
            raise PartMissing(f"Triton's models in Python need {', '.join(missing)}")


def libraries() -> Path:
    """The folder of the library that programs load a Python from; not every machine has it."""
    package = f"libpython{PYTHON}"
    return debian(package, f"Debian's {package}") / "usr" / "lib" / f"{platform.machine()}-linux-gnu"


ENVIRONMENT = TritonEnvironment("triton-2.51.0", ("nvidia-pytriton==0.7.0", "numpy==1.26.4"), alone=True)
MODELS = Path(__file__).parents[1] / "models"
TENSORS = """
backend: "python"
max_batch_size: 8
input [{name: "x" data_type: TYPE_FP32 dims: [4]}]
output [{name: "scores" data_type: TYPE_FP32 dims: [3]}, {name: "label" data_type: %s dims: [1]}]
"""


class TritonServer(HttpServer):
    """Serves ``models/ranker.py`` over REST; ``change`` is what a release did to it."""

    def __init__(
        self, folder: Path, change: str = "none", *, config: str = "", environment: Mapping[str, str] = {}
    ) -> None:
        """``folder`` becomes a repository of models; ``config`` is added to the model's."""
        port = free_port()
        self._metrics_port = free_port()
        root = ENVIRONMENT.folder / SERVER
        model = folder / f"models-{port}" / NAME
        (model / "1").mkdir(parents=True)
        shutil.copy(MODELS / "ranker.py", model / "1" / "ranker.py")
        shutil.copy(Path(__file__).parent / "triton_model.py", model / "1" / "model.py")
        (model / "config.pbtxt").write_text(
            TENSORS % ("TYPE_INT32" if change == "int32-label" else "TYPE_INT64") + config
        )
        command = (
            str(root / "bin" / "tritonserver"), f"--model-repository={model.parent}",
            f"--backend-directory={root / 'backends'}", "--http-address=127.0.0.1", f"--http-port={port}",
            "--metrics-address=127.0.0.1", f"--metrics-port={self._metrics_port}", "--allow-grpc=false",
            "--allow-gpu-metrics=false", "--metrics-config=histogram_latencies=true", "--http-thread-count=2",
            "--backend-config=python,shm-default-byte-size=1048576",
        )  # fmt: skip
        super().__init__(
            command,
            port=port,
            ready=f"/v2/models/{NAME}/ready",
            folder=folder,
            environment={"RANKER_CHANGE": change, "LD_LIBRARY_PATH": str(libraries()), **environment},
            search=(ENVIRONMENT.folder / "bin",),
        )

    @property
    def metrics_url(self) -> str:
        """A port of their own."""
        return f"http://127.0.0.1:{self._metrics_port}"
