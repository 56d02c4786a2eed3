"""What is known of releases beside what an image says itself: small tables, each with its source. Pure.

What is not in a table is not known; nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass

Release = tuple[int, ...]
"""A version's numbers: ``(2, 13, 0)``."""


@dataclass(frozen=True, slots=True)
class Build:
    """What a TensorFlow minor version was built and tested with."""

    cuda: str
    cudnn: str


TENSORFLOW_BUILDS: dict[Release, Build] = {
    (2, 8): Build("11.2", "8.1"),
    (2, 9): Build("11.2", "8.1"),
    (2, 10): Build("11.2", "8.1"),
    (2, 11): Build("11.2", "8.1"),
    (2, 12): Build("11.8", "8.6"),
    (2, 13): Build("11.8", "8.6"),
    (2, 14): Build("11.8", "8.7"),
    (2, 15): Build("12.2", "8.9"),
    (2, 16): Build("12.3", "8.9"),
    (2, 17): Build("12.3", "8.9"),
    (2, 18): Build("12.5", "9.3"),
}
TENSORFLOW_BUILDS_SOURCE = "tensorflow.org/install/source, tested build configurations"

TENSORFLOW_NUMPY: dict[Release, str] = {
    (2, 12): ">=1.22,<1.24",
    (2, 13): ">=1.22,<=1.24.3",
    (2, 14): ">=1.23.5",
    (2, 15): ">=1.23.5,<2.0.0",
    (2, 16): ">=1.23.5,<2.0.0",
    (2, 17): ">=1.23.5,<2.0.0",
    (2, 18): ">=1.26.0,<2.1.0",
    (2, 19): ">=1.26.0,<2.2.0",
    (2, 20): ">=1.26.0",
    (2, 21): ">=1.26.0",
}
TENSORFLOW_NUMPY_SOURCE = "the package's requirements"
"""Of tensorflow-cpu 2.12.0 to 2.21.0; on Python 3.12 those of 2.16 and 2.17 begin at 1.26.0."""

TENSORFLOW_OPS: dict[tuple[Release, Release], tuple[int, int, int]] = {
    ((2, 12), (2, 13)): (0, 12, 28),
    ((2, 13), (2, 16)): (2, 36, 76),
    ((2, 16), (2, 21)): (15, 39, 37),
}
"""Registered ops that are gone, new and changed from one minor version to another."""
TENSORFLOW_OPS_SOURCE = "counted in the CPU packages 2.12.0, 2.13.0, 2.16.2 and 2.21.0"

NGC_TENSORFLOW: dict[str, str] = {
    "23.12": "2.14.0",
    "24.02": "2.15.0",
}
"""NVIDIA's monthly images by their release, as projects that cite NVIDIA's release notes give them. Of others nothing
was found that could be cited; the images say it themselves in TENSORFLOW_VERSION."""
NGC_TENSORFLOW_SOURCE = "projects citing NVIDIA's TensorFlow release notes"

NGC_TRITON_CUDA: dict[str, str] = {
    "22.06": "11.7",
    "22.08": "11.7",
    "23.08": "12.2.1",
    "24.01": "12.3.2",
    "24.02": "12.3.2",
    "24.03": "12.4.0",
    "24.06": "12.5.0",
    "24.08": "12.6",
    "25.03": "12.8.1",
    "26.06": "13.3.0",
}
NGC_TRITON_CUDA_SOURCE = "NVIDIA's Triton Inference Server release notes"

CUDA_DRIVER_FLOOR: dict[int, int] = {11: 450, 12: 525, 13: 580}
"""The oldest driver branch that runs a major version of CUDA (minor version compatibility)."""
CUDA_DRIVER_SOURCE = "docs.nvidia.com/deploy/cuda-compatibility"

KERAS_3_SINCE: Release = (2, 16)
KERAS_3_SOURCE = "release notes of TensorFlow 2.16.1"
