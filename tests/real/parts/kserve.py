"""KServe's own model server, from its package, around a model of NumPy. 300 MB, installed in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.processes import free_port
from tests.real.parts.environments import Environment
from tests.real.parts.serving import NAME, HttpServer

ENVIRONMENT = Environment(
    "kserve-0.21.0",
    (
        "kserve==0.21.0", "fastapi==0.165.0", "starlette==1.10.0", "uvicorn==0.54.0", "pydantic==2.14.4",
        "orjson==3.13.0", "prometheus-client==0.26.0", "numpy==2.4.6",
    ),
)  # fmt: skip
PROGRAM = Path(__file__).parent / "kserve_program.py"


class KServeServer(HttpServer):
    """Serves ``models/ranker.py`` over REST, v1 and v2; ``change`` is what a release did to it."""

    def __init__(self, folder: Path, change: str = "none", *, environment: Mapping[str, str] = {}) -> None:
        port = free_port()
        command = (str(ENVIRONMENT.python()), "-I", str(PROGRAM), f"--http_port={port}", f"--model_name={NAME}")
        super().__init__(
            (*command, "--enable_grpc=false"),
            port=port,
            ready=f"/v2/models/{NAME}/ready",
            folder=folder,
            environment={"RANKER_CHANGE": change, **environment},
        )
