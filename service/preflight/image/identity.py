"""Who an image is: framework, CUDA, cuDNN, Python, NumPy, user, system, each with where it was read. Pure.

Read from the tag, labels, environment and build steps. What was done last counts most: a build step, then the
environment, then labels, then a name in a label, then the tag; what follows from another version by a table comes last
and says so. An image that says nothing of something leaves it "not known", which is not the same as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from service.preflight.image import tables
from service.preflight.image.manifest import Descriptor, Image
from service.preflight.image.reference import ImageReference
from service.preflight.outside import readable

TENSORFLOW, SERVING, PYTORCH, TRITON = "TensorFlow", "TensorFlow Serving", "PyTorch", "Triton"
NGC, KERAS, CUDA, CUDNN, PYTHON, NUMPY, SYSTEM = "NGC release", "Keras", "CUDA", "cuDNN", "Python", "NumPy", "System"
NAMES = (TENSORFLOW, SERVING, PYTORCH, TRITON, NGC, KERAS, CUDA, CUDNN, PYTHON, NUMPY, SYSTEM)
"""In the order in which they are shown."""
FRAMEWORKS = (SERVING, TRITON, TENSORFLOW, PYTORCH)
"""The first that is found names the image: a server before the library inside it."""

MAX_STEPS_N = 200
MAX_STEP_CHARACTERS_N = 8000
"""The last steps, and the beginning of each, are looked through; builders write far less."""

STEP, ENVIRONMENT, LABEL, BASE, TAG = 5, 4, 3, 2, 1
"""Ranks of evidence, the strongest first."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One value and where it was read."""

    value: str
    where: str
    exact: bool = True
    """False for a range or for what a table only allows."""

    @property
    def numbers(self) -> tables.Release:
        """The version's numbers; empty for a range."""
        return numbers(self.value) if self.exact else ()


@dataclass(frozen=True, slots=True)
class Identity:
    """What an image was found to be."""

    reference: ImageReference
    found: Mapping[str, Seen]
    """By the names of ``NAMES``; what is missing is not known."""
    disagreements: tuple[str, ...] = ()
    """Where the tag says something else than the image: one sentence each."""
    digest: str = ""
    platform: str = ""
    user: str = ""
    created: str = ""
    """When it was built, in the builder's words."""
    revision: str = ""
    """The commit that it was built from, where its label says so."""
    start: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """All of it, for comparing. Values may be secrets: only names and the settings of ``difference`` are shown."""
    layers: tuple[Descriptor, ...] = ()

    @property
    def framework(self) -> str:
        """The framework or server that the image is for; empty when not known."""
        return next((name for name in FRAMEWORKS if name in self.found), "")

    @property
    def runs_as_root(self) -> bool:
        """Whether its own user is root, which a pod's security context may still change."""
        return self.user.partition(":")[0] in ("", "0", "root")

    @property
    def size_bytes(self) -> int:
        """Packed, each layer once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())

    def value(self, name: str) -> str:
        """The value of one of ``NAMES``, or "not known"."""
        return self.found[name].value if name in self.found else "not known"


@dataclass(frozen=True, slots=True)
class _Evidence:
    name: str
    value: str
    where: str
    rank: int
    order: int = 0


def numbers(version: str) -> tables.Release:
    """``2.13.0rc1`` is (2, 13, 0); empty where it begins with no number."""
    match = re.match(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,5}", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def identify(image: Image) -> Identity:
    """Everything that an image tells of itself."""
    evidence = [
        *_from_steps(image.history),
        *_from_environment(image.environment),
        *_from_labels(image.labels),
        *_from_reference(image.reference, TAG, f"tag {image.reference.tag}"),
        *_from_start(image.start),
    ]
    accelerated = any(e.name == CUDA for e in evidence) or "NVIDIA_VISIBLE_DEVICES" in image.environment
    legacy_keras = image.environment.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true")
    found = _best(evidence)
    return Identity(
        reference=image.reference,
        found=_completed(found, image.reference, accelerated=accelerated, legacy_keras=legacy_keras),
        disagreements=tuple(_disagreements(evidence, found)),
        digest=image.digest,
        platform=image.platform,
        user=readable(image.user, 60),
        created=readable(image.created, 40),
        revision=readable(image.labels.get(_REVISION, ""), 60),
        start=image.start,
        environment=image.environment,
        layers=image.layers,
    )


def from_name(reference: ImageReference) -> Identity:
    """What the tag alone says, for when the registry cannot be read."""
    evidence = list(_from_reference(reference, TAG, f"tag {reference.tag}"))
    return Identity(reference, _completed(_best(evidence), reference, accelerated=False, legacy_keras=None))


# --- where versions stand ---

_VERSION = r"[0-9]{1,4}(?:\.[0-9]{1,6}){0,3}(?:\.?(?:a|b|rc)[0-9]{1,3})?"

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

_REVISION = "org.opencontainers.image.revision"
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


def _from_steps(history: tuple[str, ...]) -> Iterator[_Evidence]:
    first = max(0, len(history) - MAX_STEPS_N)
    for number, step in enumerate(history[first:], start=first + 1):
        text = step[:MAX_STEP_CHARACTERS_N]
        where = f"build step {number}"
        for name, word, pattern in _STEPS:
            for match in pattern.finditer(text) if word in text else ():
                yield _Evidence(name, match[1].replace("-", "."), where, STEP, number)
        if "|" in text[:200] or text.startswith(("ARG ", "/bin/sh -c #(nop)  ARG")):
            for match in _BUILD_ARGUMENT.finditer(text[:4000]):
                named = _ENVIRONMENT.get(match[1])
                value = match[2].removeprefix("python").removeprefix("=")
                if named is not None and re.match(_VERSION, value):
                    yield _Evidence(named, value, f"{where}, argument {match[1]}", STEP, number)


def _from_environment(environment: Mapping[str, str]) -> Iterator[_Evidence]:
    for variable, name in _ENVIRONMENT.items():
        if variable in environment:
            yield _Evidence(name, environment[variable], f"environment {variable}", ENVIRONMENT, 1)
    for variable in ("NV_CUDA_LIB_VERSION", "NV_CUDA_CUDART_VERSION"):
        if variable in environment:
            # The package's third number is not CUDA's.
            value = ".".join(environment[variable].split(".")[:2])
            yield _Evidence(CUDA, value, f"environment {variable}", ENVIRONMENT)
    for variable in ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH"):
        if match := _PYTHON_PATH.search(environment.get(variable, "")[:MAX_STEP_CHARACTERS_N]):
            yield _Evidence(PYTHON, match[1], f"environment {variable}", ENVIRONMENT)


def _from_labels(labels: Mapping[str, str]) -> Iterator[_Evidence]:
    for label, name in _LABELS.items():
        if label in labels:
            yield _Evidence(name, labels[label].removeprefix("r"), f"label {label}", LABEL)
    system = labels.get(_SYSTEM_NAME, "").lower()
    if system in _SYSTEMS and re.fullmatch(r"[\w.]{1,20}", labels.get(_SYSTEM_VERSION, "")):
        yield _Evidence(SYSTEM, f"{system} {labels[_SYSTEM_VERSION]}", f"label {_SYSTEM_VERSION}", LABEL)
    try:
        base = ImageReference.parse(labels[_BASE_NAME])
    except (KeyError, ValueError):
        return
    yield from _from_reference(base, BASE, f"its base image {base}")


def _from_start(start: tuple[str, ...]) -> Iterator[_Evidence]:
    """A server that is started is there, whatever its version."""
    text = " ".join(start)[:2000]
    for program, name in (
        ("tensorflow_model_server", SERVING),
        ("tf_serving_entrypoint", SERVING),
        ("tritonserver", TRITON),
    ):
        if program in text:
            yield _Evidence(name, "", "its entry point", 0)


_PART_VALUES = (
    (CUDA, re.compile(r"cuda([0-9]{1,2}(?:\.[0-9]{1,2}){0,2})")),
    (CUDNN, re.compile(r"cudnn([0-9]{1,2}(?:\.[0-9]{1,2}){0,3})")),
    (PYTHON, re.compile(r"py(?:thon)?(3\.[0-9]{1,2})")),
    (TENSORFLOW, re.compile(r"(?:tf|tensorflow)([0-9]{1,2}\.[0-9]{1,2}(?:\.[0-9]{1,2})?)")),
    (PYTORCH, re.compile(r"(?:torch|pytorch|pyt)([0-9]{1,2}\.[0-9]{1,2}(?:\.[0-9]{1,2})?)")),
)
_TENSORFLOW_PARTS = {"gpu", "jupyter", "devel", "latest", "nightly", "rocm", "custom", "op"}
_NGC_PARTS = {"tf1", "tf2", "py3", "pyt", "python", "vllm", "trtllm", "igpu", "min", "sdk"}


def _from_reference(reference: ImageReference, rank: int, where: str) -> Iterator[_Evidence]:
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
                yield _Evidence(name, match[1], where, rank)
        if match := re.fullmatch(r"py3([0-9]{1,2})", part):
            yield _Evidence(PYTHON, f"3.{match[1]}", where, rank)
        if match := re.fullmatch(r"cu([0-9]{2})([0-9])", part):
            yield _Evidence(CUDA, f"{match[1]}.{match[2]}", where, rank)
    monthly = _NGC_RELEASE.fullmatch(parts[0])
    if monthly and (reference.repository.startswith("nvidia/") or _NGC_PARTS & set(parts[1:])):
        yield _Evidence(NGC, monthly[1], where, rank)
        return
    version = re.fullmatch(_VERSION, parts[0])
    if version is None or parts[0].count(".") < 1:
        return
    if "serving" in words or "tfserving" in words:
        yield _Evidence(SERVING, parts[0], where, rank)
    elif {"tensorflow", "tf"} & words or ("jupyter" in parts[1:] and set(parts[1:]) <= _TENSORFLOW_PARTS):
        yield _Evidence(TENSORFLOW, parts[0], where, rank)
    elif {"pytorch", "torch"} & words:
        yield _Evidence(PYTORCH, parts[0], where, rank)


# --- weighing ---


def _best(evidence: list[_Evidence]) -> dict[str, Seen]:
    """The strongest of each name; of equal ones the last. A version that is none is passed over."""
    found: dict[str, tuple[tuple[int, int], Seen]] = {}
    for one in evidence:
        value = _tidy(one)
        weight = (one.rank, one.order)
        if (value or one.rank == 0) and (one.name not in found or weight >= found[one.name][0]):
            found[one.name] = weight, Seen(value or "version not known", one.where, exact=bool(value))
    return {name: seen for name, (_, seen) in found.items()}


def _tidy(evidence: _Evidence) -> str:
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


def _disagreements(evidence: list[_Evidence], found: Mapping[str, Seen]) -> Iterator[str]:
    for one in evidence:
        seen = found.get(one.name)
        if one.rank != TAG or seen is None or not seen.exact or seen.where == one.where:
            continue
        told, real = numbers(_tidy(one)), seen.numbers
        shared_n = min(len(told), len(real))
        if told[:shared_n] != real[:shared_n]:
            yield f"the tag says {one.name} {_tidy(one)}, but {seen.where} says {seen.value}"


def _completed(
    found: dict[str, Seen], reference: ImageReference, *, accelerated: bool, legacy_keras: bool | None
) -> dict[str, Seen]:
    """With what follows from the versions that were found, in the order in which they are shown.

    legacy_keras : whether the environment asks for Keras 2; None where it was not read
    """
    if TENSORFLOW not in found and NGC in found and _is_ngc_tensorflow(reference):
        release = found[NGC].value
        if release in tables.NGC_TENSORFLOW:
            found[TENSORFLOW] = Seen(
                tables.NGC_TENSORFLOW[release], f"NGC release {release} ({tables.NGC_TENSORFLOW_SOURCE})"
            )
    if CUDA not in found and NGC in found and reference.repository.rpartition("/")[2] == "tritonserver":
        release = found[NGC].value
        if release in tables.NGC_TRITON_CUDA:
            found[CUDA] = Seen(
                tables.NGC_TRITON_CUDA[release], f"NGC release {release} ({tables.NGC_TRITON_CUDA_SOURCE})"
            )
    if TENSORFLOW not in found and SERVING in found and found[SERVING].exact:
        minor = ".".join(found[SERVING].value.split(".")[:2])
        found[TENSORFLOW] = Seen(minor, f"TensorFlow Serving {minor}, which is built on it")
    tensorflow = found.get(TENSORFLOW)
    minor_version = tensorflow.numbers[:2] if tensorflow is not None else ()
    if tensorflow is not None and len(minor_version) == 2:
        build = tables.TENSORFLOW_BUILDS.get(minor_version)
        asks_gpu = accelerated or "gpu" in (reference.tag or "").split("-")
        if build is not None and asks_gpu and NGC not in found:
            for name, value in ((CUDA, build.cuda), (CUDNN, build.cudnn)):
                found.setdefault(
                    name,
                    Seen(value, f"TensorFlow {tensorflow.value}, built with it ({tables.TENSORFLOW_BUILDS_SOURCE})"),
                )
        if SERVING not in found and TRITON not in found:
            _complete_python_side(found, tensorflow, minor_version, legacy_keras=legacy_keras)
    return {name: found[name] for name in NAMES if name in found}


def _complete_python_side(
    found: dict[str, Seen], tensorflow: Seen, minor_version: tables.Release, *, legacy_keras: bool | None
) -> None:
    """NumPy and Keras, which come with TensorFlow's package. The servers hold neither; NVIDIA builds its own."""
    if NUMPY not in found and NGC not in found and minor_version in tables.TENSORFLOW_NUMPY:
        found[NUMPY] = Seen(
            tables.TENSORFLOW_NUMPY[minor_version],
            f"TensorFlow {tensorflow.value}, which allows it ({tables.TENSORFLOW_NUMPY_SOURCE})",
            exact=False,
        )
    if legacy_keras:
        found[KERAS] = Seen("2", "environment TF_USE_LEGACY_KERAS")
    elif KERAS not in found and (legacy_keras is False or minor_version < tables.KERAS_3_SINCE):
        keras_3 = minor_version >= tables.KERAS_3_SINCE
        found[KERAS] = Seen(
            "3" if keras_3 else "2", f"TensorFlow {tensorflow.value}, which brings it ({tables.KERAS_3_SOURCE})"
        )


def _is_ngc_tensorflow(reference: ImageReference) -> bool:
    return reference.repository.rpartition("/")[2] == "tensorflow" or "tf2" in (reference.tag or "").split("-")
