"""The model gate: can the candidate's TensorFlow load and run this model, for the clients of the stable one?"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from service.model.gates.report import event_names_no_registry
from service.model.names import DnsLabel
from service.model.value import Value

ModelPath = Annotated[
    str,
    StringConstraints(
        max_length=500, pattern=r"^[A-Za-z0-9_${}][A-Za-z0-9._${}+=-]*(/[A-Za-z0-9_${}][A-Za-z0-9._${}+=-]*)*$"
    ),
]
"""A folder or file below the folder of models: relative, no part begins with a dot. May hold ``${service}`` and the
other names of a target's templates."""

PythonPath = Annotated[str, StringConstraints(max_length=500, pattern=r"^/[A-Za-z0-9._${}+/-]+$")]
"""An absolute path, named by the operator. May hold templates."""

ImageReference = Annotated[str, StringConstraints(max_length=500, pattern=r"^[A-Za-z0-9][A-Za-z0-9._${}/:@+-]*$")]
"""An image, as a pod's container names it. May hold templates: ``registry.example/serving:${canary_version}``."""

Module = Annotated[
    str, StringConstraints(max_length=200, pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")
]

Tag = Annotated[str, StringConstraints(min_length=1, max_length=100)]

Quantity = Annotated[str, StringConstraints(max_length=20, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|Ki|Mi|Gi)?$")]
"""A Kubernetes quantity: ``500m``, ``2Gi``."""

MAX_LOOK_S = 590
"""For one look at all; the outbox's lane cuts it off after ten minutes."""


class Device(StrEnum):
    """Where the model is to run."""

    CPU = "CPU"
    GPU = "GPU"


class Entry(StrEnum):
    """Where clients enter a model."""

    SIGNATURES = "signatures"  # as TensorFlow Serving, Triton and KServe do
    FUNCTIONS = "functions"  # any function of the saved object, as Python that loads it can


class ModelGate(Value):
    """What is asked of a model."""

    gate: Literal["model"] = "model"
    device: Device = Device.CPU
    entry: Entry = Entry.SIGNATURES
    """Which functions must have kernels: those that clients can reach."""
    signatures: bool = True
    """Stable's signatures must be kept; where the subject names no stable model, there is nothing to compare."""
    data: bool = True
    """Read the checkpoint's data and hold it against its checksums: 2 GB take a few seconds and the disk's time."""


class RuntimeJob(Value):
    """A Kubernetes Job that asks the candidate's TensorFlow in its own image, which must have a Python with it."""

    image: ImageReference
    """Named by the operator: an event must not choose what runs in the cluster."""
    namespace: DnsLabel
    python: Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9._/-]+$")] = "python3"
    pull_secret: DnsLabel | None = None
    runtime_class: DnsLabel | None = None
    """For example gvisor."""
    user_id: int = Field(default=65532, ge=1, le=2**31 - 1)
    cpu: Quantity = "1"
    memory: Quantity = "2Gi"
    """Importing TensorFlow takes some 500 MB."""
    within_s: int = Field(default=300, ge=10, le=540)
    """For pulling the image, importing and answering."""

    @property
    def longest_s(self) -> int:
        """So many seconds are waited for an answer: a little longer than the cluster lets the Job run."""
        return self.within_s + 30

    @model_validator(mode="after")
    def _no_version_in_the_host(self) -> Self:
        event_names_no_registry(self.image)
        return self


class ModelSubject(Value):
    """Where the models are, and where the candidate's TensorFlow can be asked: exactly one of the three."""

    path: ModelPath
    """The candidate's: a SavedModel's folder, a checkpoint without ``.index``, a ``.keras`` or other file."""
    stable_path: ModelPath | None = None
    """What stable serves. None where an upgrade of the image keeps the model: there is nothing to compare."""
    tags: Annotated[tuple[Tag, ...], Field(max_length=10)] = ("serve",)
    """Of the graph that is loaded."""
    imports: Annotated[tuple[Module, ...], Field(max_length=20)] = ()
    """Modules that register further ops, as far as the server has them: ``tensorflow_text``."""
    python: PythonPath | None = None
    """An interpreter with the candidate's TensorFlow."""
    dump: ModelPath | None = None
    """A file that ``serinus preflight runtime`` wrote, below the folder of models."""
    job: RuntimeJob | None = None
    python_within_s: float = Field(default=180.0, gt=0, le=540)
    within_s: float = Field(default=240.0, gt=0, le=540)
    """For reading and checking the model's files. Together with what asking may take at most 590 s, since a look is cut
    off after ten minutes."""

    @model_validator(mode="after")
    def _one_runtime(self) -> Self:
        if sum(one is not None for one in (self.python, self.dump, self.job)) != 1:
            raise ValueError("the candidate's TensorFlow is asked by exactly one of python, dump, job")
        asking_s = (
            self.python_within_s if self.python is not None else self.job.longest_s if self.job is not None else 0
        )
        if self.within_s + asking_s > MAX_LOOK_S:
            raise ValueError(
                f"reading may take {self.within_s:g} s and asking {asking_s:g} s; together at most {MAX_LOOK_S} s, "
                f"since a look is cut off after ten minutes"
            )
        return self
