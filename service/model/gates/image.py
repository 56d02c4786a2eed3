"""The image gate's values: which changes between two images fail a release, and where the images are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from service.model.gates.report import event_names_no_registry
from service.model.value import Value

ImageTemplate = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9._/:@+${}-]+$")]
"""An image reference that may hold ``${service}``, ``${namespace}``, ``${stable_version}``, ``${canary_version}``."""


class Risk(StrEnum):
    """What a change from one image to another is known to bring. Each has its sentence and source in
    ``preflight.image.risks``."""

    FRAMEWORK_CHANGED = "framework_changed"
    TENSORFLOW_OLDER = "tensorflow_older"
    TENSORFLOW_OPS = "tensorflow_ops"
    KERAS_2_TO_3 = "keras_2_to_3"
    ESTIMATOR_REMOVED = "estimator_removed"
    CUDA_MAJOR = "cuda_major"
    CUDA_GONE = "cuda_gone"
    CUDNN_MAJOR = "cudnn_major"
    NUMPY_2 = "numpy_2"
    NUMPY_MINOR = "numpy_minor"
    PYTHON_MINOR = "python_minor"
    ENVIRONMENT = "environment"
    BASE_SYSTEM = "base_system"
    BECAME_ROOT = "became_root"
    ENTRYPOINT = "entrypoint"
    TAG_DISAGREES = "tag_disagrees"


class ImageGate(Value):
    """Policy: look at both images, tell what changed, fail for the risks that are listed."""

    gate: Literal["image"] = "image"
    fail_on: tuple[Risk, ...] = ()
    """Risks that fail the gate. None by default: a change of framework is why one releases, so it is told only."""
    within_s: float = Field(default=30.0, gt=0, le=110)
    """Longest time for reading one image, in seconds."""


class ImageSubject(Value):
    """Target: the images of both arms."""

    canary: ImageTemplate
    """For example ``registry.example/ml/ranker:${canary_version}``. An event that names a digest of the same
    repository is believed about it; one that names another repository is told and not read."""
    stable: ImageTemplate
    """For example ``registry.example/ml/ranker:${stable_version}``."""
    platform: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+/[a-z0-9]+(/[a-z0-9]+)?$", max_length=40)] = (
        "linux/amd64"
    )
    """What the nodes are, as ``os/architecture`` or ``os/architecture/variant``; picks from a multi-arch index."""

    @model_validator(mode="after")
    def _no_version_in_the_host(self) -> Self:
        for image in (self.canary, self.stable):
            event_names_no_registry(image)
        return self
