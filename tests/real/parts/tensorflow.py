"""Real TensorFlow, several versions side by side, each in a virtual environment of its own.

The wheels come to about 200 MB a version and 1.2 GB unpacked. NumPy and Keras are those that came with each when it was
new, because they are part of what an upgrade changes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from tests.real.parts.environments import Environment

ENVIRONMENTS = {
    "2.12": Environment(
        "tensorflow-2.12.0", ("tensorflow-cpu==2.12.0", "keras==2.12.0", "numpy==1.23.5", "setuptools<81")
    ),
    "2.13": Environment(
        "tensorflow-2.13.0", ("tensorflow-cpu==2.13.0", "keras==2.13.1", "numpy==1.24.3", "setuptools<81")
    ),
    "newest": Environment("tensorflow-2.21.0", ("tensorflow-cpu==2.21.0", "keras==3.15.1", "numpy==2.4.6")),
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
