"""Real TensorFlow, several versions side by side, each in a virtual environment of its own.

Nothing here imports TensorFlow: the tests start programs with an environment's ``python()``. The wheels come to about
200 MB a version and 1.2 GB unpacked; uv's cache is linked to, so that a second checkout costs little.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.real.parts.building import PartMissing, made_of, run

PYTHON = "3.11"
"""The one Python that has wheels of all the versions."""


@dataclass(frozen=True)
class Environment:
    """One TensorFlow with what came with it when it was new: NumPy and Keras are part of what an upgrade changes."""

    requirements: tuple[str, ...]

    def python(self) -> Path:
        """The environment's interpreter; made on first use, which takes a minute or two."""
        content = "\n".join((PYTHON, *self.requirements)).encode()
        version = self.requirements[0].partition("==")[2]
        return made_of(f"tensorflow-{version}", content, self._make) / "bin" / "python"

    def _make(self, folder: Path) -> None:
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if uv is None:
            raise PartMissing("real TensorFlow needs uv; run `make setup`")
        # Relocatable: the folder gets its name only when all of it is there.
        run([uv, "venv", "--quiet", "--relocatable", "--clear", "--python", PYTHON, str(folder)])
        run([uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *self.requirements])


ENVIRONMENTS = {
    "2.12": Environment(("tensorflow-cpu==2.12.0", "keras==2.12.0", "numpy==1.23.5", "setuptools<81")),
    "2.13": Environment(("tensorflow-cpu==2.13.0", "keras==2.13.1", "numpy==1.24.3", "setuptools<81")),
    "newest": Environment(("tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy==2.4.6")),
}
"""By the name that the tests use."""

QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
}
"""Environment of a TensorFlow that takes one core and says only errors."""


def run_in(
    version: str, code: str, *arguments: str, environment: Mapping[str, str] = {}, timeout_s: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run Python source with the TensorFlow called ``version``, one thread wide; a failure is in the exit status."""
    return subprocess.run(
        [str(ENVIRONMENTS[version].python()), "-c", code, *arguments],
        env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/"), **QUIET, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
