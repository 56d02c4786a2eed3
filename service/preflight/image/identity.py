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
from service.preflight.image.evidence import (
    BARE,
    CUDA,
    CUDNN,
    FRAMEWORKS,
    KERAS,
    NAMES,
    NGC,
    NUMPY,
    SERVING,
    TAG,
    TENSORFLOW,
    TRITON,
    Evidence,
    evidence_of,
    evidence_of_tag,
    tidy,
)
from service.preflight.image.manifest import Descriptor, Image
from service.preflight.image.reference import ImageReference
from service.preflight.report import readable

REVISION = "org.opencontainers.image.revision"


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


def numbers(version: str) -> tables.Release:
    """``2.13.0rc1`` is (2, 13, 0); empty where it begins with no number."""
    match = re.match(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,5}", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def identify(image: Image) -> Identity:
    """Everything that an image tells of itself."""
    evidence = evidence_of(image)
    accelerated = (
        any(e.name == CUDA for e in evidence)
        or "NVIDIA_VISIBLE_DEVICES" in image.environment
        # TensorFlow's package brings CUDA itself when it is asked for so.
        or any("tensorflow[and-cuda]" in step for step in image.history)
    )
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
        revision=readable(image.labels.get(REVISION, ""), 60),
        start=image.start,
        environment=image.environment,
        layers=image.layers,
    )


def from_name(reference: ImageReference) -> Identity:
    """What the tag alone says, for when the registry cannot be read."""
    found = _best(list(evidence_of_tag(reference)))
    return Identity(reference, _completed(found, reference, accelerated=False, legacy_keras=None))


def _best(evidence: list[Evidence]) -> dict[str, Seen]:
    """The strongest of each name; of equal ones the last. A version that is none is passed over."""
    found: dict[str, tuple[tuple[int, int], Seen]] = {}
    for one in evidence:
        value = tidy(one)
        weight = (one.rank, one.order)
        if (value or one.rank == BARE) and (one.name not in found or weight >= found[one.name][0]):
            found[one.name] = weight, Seen(value or "version not known", one.where, exact=bool(value))
    return {name: seen for name, (_, seen) in found.items()}


def _disagreements(evidence: list[Evidence], found: Mapping[str, Seen]) -> Iterator[str]:
    for one in evidence:
        seen = found.get(one.name)
        if one.rank != TAG or seen is None or not seen.exact or seen.where == one.where:
            continue
        told, real = numbers(tidy(one)), seen.numbers
        shared_n = min(len(told), len(real))
        if told[:shared_n] != real[:shared_n]:
            yield f"the tag says {one.name} {tidy(one)}, but {seen.where} says {seen.value}"


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
