"""Where versions stand in an image: build steps, environment, labels, tag, entry point. Pure.

Everything read here was written by others, so each pattern is bounded and only so much of the text is searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from service.preflight.image.manifest import Image
from service.preflight.image.reference import ImageReference

TENSORFLOW, SERVING, PYTORCH, TRITON = "TensorFlow", "TensorFlow Serving", "PyTorch", "Triton"
NGC, KERAS, CUDA, CUDNN, PYTHON, NUMPY, SYSTEM = "NGC release", "Keras", "CUDA", "cuDNN", "Python", "NumPy", "System"
NAMES = (TENSORFLOW, SERVING, PYTORCH, TRITON, NGC, KERAS, CUDA, CUDNN, PYTHON, NUMPY, SYSTEM)
"""In the order in which they are shown."""
FRAMEWORKS = (SERVING, TRITON, TENSORFLOW, PYTORCH)
"""The first that is found names the image: a server before the library inside it."""

STEP, ENVIRONMENT, LABEL, BASE, TAG, BARE = 5, 4, 3, 2, 1, 0
"""Ranks of evidence, the strongest first; the last says that something is there and not which version."""

MAX_STEPS_N = 200
MAX_STEP_CHARACTERS_N = 8000
"""The last steps, and the beginning of each, are looked through; builders write far less."""


_VERSION = r"[0-9]{1,4}(?:\.[0-9]{1,6}){0,3}(?:\.?(?:a|b|rc)[0-9]{1,3})?"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One value as it stands in an image."""

    name: str
    """One of ``NAMES``."""
    value: str
    """As written; ``tidy`` gives the version in it."""
    where: str
    rank: int
    order: int = 0
    """Of two of the same rank the higher counts, and of equal ones the later."""


def evidence_of(image: Image) -> list[Evidence]:
    """Everything that an image says of versions, weak and strong."""
    return [
        *_from_steps(image.history),
        *_from_environment(image.environment),
        *_from_labels(image.labels),
        *evidence_of_tag(image.reference),
        *_from_start(image.start),
    ]


def evidence_of_tag(reference: ImageReference) -> Iterator[Evidence]:
    """What the tag alone says."""
    yield from _from_reference(reference, TAG, f"tag {reference.tag}")


_ENVIRONMENT = {
    "TENSORFLOW_VERSION": TENSORFLOW,
    "TF_VERSION": TENSORFLOW,
    "TF_SERVING_VERSION": SERVING,
    "PYTORCH_VERSION": PYTORCH,
    "TORCH_VERSION": PYTORCH,
    "TRITON_SERVER_VERSION": TRITON,
    "NVIDIA_TENSORFLOW_VERSION": NGC,
    "NVIDIA_PYTORCH_VERSION": NGC,
    "NVIDIA_TRITON_SERVER_VERSION": NGC,
    "KERAS_VERSION": KERAS,
    "CUDA": CUDA,
    "CUDA_VERSION": CUDA,
    "CUDNN_VERSION": CUDNN,
    "NV_CUDNN_VERSION": CUDNN,
    "PYTHON_VERSION": PYTHON,
    "NUMPY_VERSION": NUMPY,
}
"""Variables that NVIDIA's, TensorFlow's, PyTorch's and Python's own images set, in their Dockerfiles' words."""

_LABELS = {
    "com.nvidia.tensorflow.version": TENSORFLOW,
    "com.nvidia.pytorch.version": PYTORCH,
    "com.nvidia.tritonserver.version": TRITON,
    "com.nvidia.cuda.version": CUDA,
    "com.nvidia.cudnn.version": CUDNN,
    "tensorflow_serving_github_branchtag": SERVING,
}

_BASE_NAME = "org.opencontainers.image.base.name"
_SYSTEM_NAME, _SYSTEM_VERSION = "org.opencontainers.image.ref.name", "org.opencontainers.image.version"
"""Ubuntu's images say here what they are, and images built on them inherit it: the version is the system's."""
_SYSTEMS = ("ubuntu", "debian", "rockylinux", "almalinux", "ubi8", "ubi9")

_STEPS = tuple(
    (name, word, re.compile(pattern, re.ASCII))
    for name, word, pattern in (
        (
            TENSORFLOW,
            "tensorflow",
            rf"(?<![\w.-])tensorflow(?:[-_](?:cpu|gpu|intel|cpu[-_]aws))?(?:\[[\w,-]{{0,40}}\])?={{1,2}}({_VERSION})",
        ),
        (PYTORCH, "torch", rf"(?<![\w.-])torch={{1,2}}({_VERSION})"),
        (KERAS, "keras", rf"(?<![\w.-])keras={{1,2}}({_VERSION})"),
        (NUMPY, "numpy", rf"(?<![\w.-])numpy={{1,2}}({_VERSION})"),
        (CUDNN, "libcudnn", rf"libcudnn\d{{1,2}}[\w-]{{0,20}}=({_VERSION})-\d"),
        (
            CUDA,
            "cuda-",
            r"(?<![\w.])cuda-(?:cudart|libraries|runtime|command-line-tools|nvrtc)-(\d{1,2}-\d{1,2})(?!\w)",
        ),
        (PYTHON, "python3.", r"(?<![\w./-])python(3\.\d{1,2})(?![\w.])"),
    )
)
"""What a build step installs: the name, a word without which there is no need to search, the pattern."""

_BUILD_ARGUMENT = re.compile(r"(?<!\w)([A-Z][A-Z0-9_]{2,40})=([\w.+=\[\]-]{1,80})", re.ASCII)
_PYTHON_PATH = re.compile(r"/python(3\.\d{1,2})/(?:dist|site)-packages", re.ASCII)
_NGC_RELEASE = re.compile(r"(\d\d\.(?:0[1-9]|1[0-2]))(?!\d)", re.ASCII)


def _from_steps(history: tuple[str, ...]) -> Iterator[Evidence]:
    first = max(0, len(history) - MAX_STEPS_N)
    for number, step in enumerate(history[first:], start=first + 1):
        text = step[:MAX_STEP_CHARACTERS_N]
        where = f"build step {number}"
        for name, word, pattern in _STEPS:
            for match in pattern.finditer(text) if word in text else ():
                yield Evidence(name, match[1].replace("-", "."), where, STEP, number)
        if "|" in text[:200] or text.startswith(("ARG ", "/bin/sh -c #(nop)  ARG")):
            for match in _BUILD_ARGUMENT.finditer(text[:4000]):
                named = _ENVIRONMENT.get(match[1])
                value = match[2].removeprefix("python").removeprefix("=")
                if named is not None and re.match(_VERSION, value):
                    yield Evidence(named, value, f"{where}, argument {match[1]}", STEP, number)


def _from_environment(environment: Mapping[str, str]) -> Iterator[Evidence]:
    for variable, name in _ENVIRONMENT.items():
        if variable in environment:
            yield Evidence(name, environment[variable], f"environment {variable}", ENVIRONMENT, 1)
    for variable in ("NV_CUDA_LIB_VERSION", "NV_CUDA_CUDART_VERSION"):
        if variable in environment:
            # The package's third number is not CUDA's.
            value = ".".join(environment[variable].split(".")[:2])
            yield Evidence(CUDA, value, f"environment {variable}", ENVIRONMENT)
    for variable in ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH"):
        if match := _PYTHON_PATH.search(environment.get(variable, "")[:MAX_STEP_CHARACTERS_N]):
            yield Evidence(PYTHON, match[1], f"environment {variable}", ENVIRONMENT)


def _from_labels(labels: Mapping[str, str]) -> Iterator[Evidence]:
    for label, name in _LABELS.items():
        if label in labels:
            yield Evidence(name, labels[label].removeprefix("r"), f"label {label}", LABEL)
    system = labels.get(_SYSTEM_NAME, "").lower()
    if system in _SYSTEMS and re.fullmatch(r"[\w.]{1,20}", labels.get(_SYSTEM_VERSION, "")):
        yield Evidence(SYSTEM, f"{system} {labels[_SYSTEM_VERSION]}", f"label {_SYSTEM_VERSION}", LABEL)
    try:
        base = ImageReference.parse(labels[_BASE_NAME])
    except (KeyError, ValueError):
        return
    yield from _from_reference(base, BASE, f"its base image {base}")


def _from_start(start: tuple[str, ...]) -> Iterator[Evidence]:
    """A server that is started is there, whatever its version."""
    text = " ".join(start)[:2000]
    for program, name in (
        ("tensorflow_model_server", SERVING),
        ("tf_serving_entrypoint", SERVING),
        ("tritonserver", TRITON),
    ):
        if program in text:
            yield Evidence(name, "", "its entry point", BARE)


_PART_VALUES = (
    (CUDA, re.compile(r"cuda([0-9]{1,2}(?:\.[0-9]{1,2}){0,2})")),
    (CUDNN, re.compile(r"cudnn([0-9]{1,2}(?:\.[0-9]{1,2}){0,3})")),
    (PYTHON, re.compile(r"py(?:thon)?(3\.[0-9]{1,2})")),
    (TENSORFLOW, re.compile(r"(?:tf|tensorflow)([0-9]{1,2}\.[0-9]{1,2}(?:\.[0-9]{1,2})?)")),
    (PYTORCH, re.compile(r"(?:torch|pytorch|pyt)([0-9]{1,2}\.[0-9]{1,2}(?:\.[0-9]{1,2})?)")),
)
_TENSORFLOW_PARTS = {"gpu", "jupyter", "devel", "latest", "nightly", "rocm", "custom", "op"}
_NGC_PARTS = {"tf1", "tf2", "py3", "pyt", "python", "vllm", "trtllm", "igpu", "min", "sdk"}


def _from_reference(reference: ImageReference, rank: int, where: str) -> Iterator[Evidence]:
    """What the tag says. A bare number is a framework's version only where the name or the tag's form says whose: a
    service called ``ranker:2.13.0`` is its own version 2.13.0."""
    if not reference.tag:
        return
    last = reference.repository.rpartition("/")[2]
    words = set(re.split(r"[._-]+", last))
    parts = reference.tag.lower().split("-")
    for part in parts:
        for name, pattern in _PART_VALUES:
            if match := pattern.fullmatch(part):
                yield Evidence(name, match[1], where, rank)
        if match := re.fullmatch(r"py3([0-9]{1,2})", part):
            yield Evidence(PYTHON, f"3.{match[1]}", where, rank)
        if match := re.fullmatch(r"cu([0-9]{2})([0-9])", part):
            yield Evidence(CUDA, f"{match[1]}.{match[2]}", where, rank)
    monthly = _NGC_RELEASE.fullmatch(parts[0])
    if monthly and (reference.repository.startswith("nvidia/") or _NGC_PARTS & set(parts[1:])):
        yield Evidence(NGC, monthly[1], where, rank)
        return
    version = re.fullmatch(_VERSION, parts[0])
    if version is None or parts[0].count(".") < 1:
        return
    if "serving" in words or "tfserving" in words:
        yield Evidence(SERVING, parts[0], where, rank)
    elif {"tensorflow", "tf"} & words or ("jupyter" in parts[1:] and set(parts[1:]) <= _TENSORFLOW_PARTS):
        yield Evidence(TENSORFLOW, parts[0], where, rank)
    elif {"pytorch", "torch"} & words:
        yield Evidence(PYTORCH, parts[0], where, rank)


def tidy(evidence: Evidence) -> str:
    """The version alone: ``8.9.6.50-1`` and ``2.16.1+nv24.8`` without what follows; empty for what is none."""
    if evidence.name == SYSTEM:
        return evidence.value
    if evidence.name == NGC:
        monthly = _NGC_RELEASE.match(evidence.value)
        return monthly[1] if monthly else ""
    match = re.match(_VERSION, evidence.value)
    if match is None:
        return ""
    # NVIDIA writes a build number behind CUDA's three.
    return ".".join(match[0].split(".")[:3]) if evidence.name == CUDA else match[0]
