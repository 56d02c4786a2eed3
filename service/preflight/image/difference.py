"""What changed between the images of two arms, and what that is known to bring. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.model.gates.image import Risk
from service.preflight.image import tables
from service.preflight.image.evidence import CUDA, CUDNN, KERAS, NAMES, NUMPY, PYTHON, SYSTEM, TENSORFLOW
from service.preflight.image.identity import Identity, Seen
from service.preflight.image.risks import KNOWN
from service.preflight.report import readable

SETTINGS = (
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_DETERMINISTIC_OPS",
    "TF_CUDNN_DETERMINISTIC",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
    "TF_FORCE_GPU_ALLOW_GROWTH",
    "TF_GPU_ALLOCATOR",
    "TF_USE_LEGACY_KERAS",
    "TF_NUM_INTEROP_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "OMP_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
)
"""Variables that change numbers, memory or speed, whose values are shown. Of all others only the names are."""


@dataclass(frozen=True, slots=True)
class Change:
    """One name of ``identity.NAMES`` of both arms; None where an image does not tell it."""

    name: str
    stable: Seen | None
    canary: Seen | None

    def __str__(self) -> str:
        """``2.12.0 -> 2.13.0``, or the one value of both, told as exactly as either image does."""
        old, new = (seen.value if seen else "not known" for seen in (self.stable, self.canary))
        if self._alike:
            return max(old, new, key=len)
        return f"{old} -> {new}"

    @property
    def differs(self) -> bool:
        """Whether the images are known to differ; unknown on a side is no difference."""
        return self.stable is not None and self.canary is not None and not self._alike

    @property
    def _alike(self) -> bool:
        """The same, or the same as far as the shorter one goes: 11.8 and 11.8.0."""
        if self.stable is None or self.canary is None:
            return False
        if self.stable.value == self.canary.value:
            return True
        short, long = sorted((self.stable.numbers, self.canary.numbers), key=len)
        return 0 < len(short) < len(long) and long[: len(short)] == short


@dataclass(frozen=True, slots=True)
class Concern:
    """A risk that this change carries."""

    risk: Risk
    sentence: str

    @property
    def to_do(self) -> str:
        """What a person can do about it."""
        return KNOWN[self.risk].to_do

    @property
    def source(self) -> str:
        """Where it is said."""
        return KNOWN[self.risk].source


@dataclass(frozen=True, slots=True)
class Difference:
    """All of it; ``concerns`` in the order of ``Risk``."""

    same_image: bool
    changes: tuple[Change, ...]
    """Every name that either image tells."""
    concerns: tuple[Concern, ...]
    undecided: tuple[Risk, ...]
    """Risks that can be neither named nor ruled out, because an image does not tell what is needed."""
    shared_layers_n: int
    new_bytes: int
    """What a node fetches that already has stable's layers."""
    environment_changed: tuple[str, ...]
    """Names of variables that came, went or changed. Never values: they may be secrets."""


def compare(stable: Identity, canary: Identity) -> Difference:
    """What changes when traffic goes from ``stable`` to ``canary``."""
    changes = {
        name: Change(name, stable.found.get(name), canary.found.get(name))
        for name in NAMES
        if name in stable.found or name in canary.found
    }
    concerns = sorted(_concerns(stable, canary, changes), key=lambda concern: list(Risk).index(concern.risk))
    named = {concern.risk for concern in concerns}
    same_image = bool(stable.digest) and stable.digest == canary.digest
    # Where an image tells of no framework at all, that it tells of no NumPy either means nothing.
    silent = not same_image and not (stable.framework and canary.framework)
    have = {layer.digest for layer in stable.layers}
    sizes = {layer.digest: layer.size for layer in canary.layers}
    old, new = stable.environment, canary.environment
    return Difference(
        same_image=same_image,
        changes=tuple(changes.values()),
        concerns=tuple(concerns),
        undecided=tuple(risk for risk in Risk if risk not in named and _is_open(risk, changes, silent=silent)),
        shared_layers_n=len(have & sizes.keys()),
        new_bytes=sum(size for digest, size in sizes.items() if digest not in have),
        environment_changed=tuple(sorted(name for name in {*old, *new} if old.get(name) != new.get(name))),
    )


def _is_open(risk: Risk, changes: dict[str, Change], *, silent: bool) -> bool:
    """Whether an exact value is missing that the risk depends on. Where neither image has TensorFlow or NumPy at all
    the question does not come up, unless one is silent about what it is."""
    needs = KNOWN[risk].needs
    change = changes.get(needs)
    if change is None and silent and needs in (TENSORFLOW, KERAS, NUMPY, PYTHON):
        return True
    if change is None or (risk is Risk.NUMPY_2 and _stays_below_2(change.canary)):
        return False
    return any(seen is None or not seen.exact for seen in (change.stable, change.canary))


def _stays_below_2(numpy: Seen | None) -> bool:
    """Whether a version or a table's range rules NumPy 2 out."""
    if numpy is None:
        return False
    return numpy.numbers < (2,) if numpy.exact else any(bound in numpy.value for bound in ("<2", "<1", "<=1"))


def _concerns(stable: Identity, canary: Identity, changes: dict[str, Change]) -> Iterator[Concern]:
    if stable.framework and canary.framework and stable.framework != canary.framework:
        yield _concern(Risk.FRAMEWORK_CHANGED, f"{stable.framework} -> {canary.framework}")
    yield from _tensorflow(changes.get(TENSORFLOW))
    if (keras := _numbers(changes.get(KERAS))) and keras[0][0] < 3 <= keras[1][0]:
        yield _concern(Risk.KERAS_2_TO_3, f"Keras {changes[KERAS]}")
    yield from _cuda(changes.get(CUDA))
    if (cudnn := _numbers(changes.get(CUDNN))) and cudnn[0][0] != cudnn[1][0]:
        yield _concern(Risk.CUDNN_MAJOR, f"cuDNN {changes[CUDNN]}")
    yield from _numpy(changes.get(NUMPY))
    if (python := _numbers(changes.get(PYTHON), least_n=2)) and python[0][:2] != python[1][:2]:
        yield _concern(Risk.PYTHON_MINOR, f"Python {changes[PYTHON]}")
    settings = [
        f"{name} {_shown(stable, name)} -> {_shown(canary, name)}"
        for name in SETTINGS
        if stable.environment.get(name) != canary.environment.get(name)
    ]
    if settings:
        yield _concern(Risk.ENVIRONMENT, ", ".join(settings))
    system = changes.get(SYSTEM)
    if system is not None and system.differs:
        yield _concern(Risk.BASE_SYSTEM, f"{system}")
    if canary.runs_as_root and not stable.runs_as_root:
        yield _concern(Risk.BECAME_ROOT, f"user {stable.user} -> {canary.user or 'root, for none is set'}")
    if stable.start != canary.start:
        yield _concern(Risk.ENTRYPOINT, "the entry point or its arguments changed")
    for sentence in canary.disagreements:
        yield _concern(Risk.TAG_DISAGREES, sentence)


def _tensorflow(change: Change | None) -> Iterator[Concern]:
    versions = _numbers(change, least_n=2)
    if not versions or change is None:
        return
    old, new = versions[0][:2], versions[1][:2]
    if new < old:
        yield _concern(Risk.TENSORFLOW_OLDER, f"TensorFlow {change}")
    if old != new:
        counted = tables.TENSORFLOW_OPS.get((old, new))
        counts = " ({} ops gone, {} new, {} changed)".format(*counted) if counted else ""
        yield _concern(Risk.TENSORFLOW_OPS, f"TensorFlow {change}{counts}")
    if old < tables.KERAS_3_SINCE <= new:
        yield _concern(Risk.ESTIMATOR_REMOVED, f"TensorFlow {change}")


def _cuda(change: Change | None) -> Iterator[Concern]:
    if change is None:
        return
    if change.stable is not None and change.canary is None:
        yield _concern(Risk.CUDA_GONE, f"CUDA {change.stable.value} -> none found")
    versions = _numbers(change)
    if versions and versions[0][0] != versions[1][0]:
        floor = tables.CUDA_DRIVER_FLOOR.get(versions[1][0])
        needs = f", which needs a driver of at least {floor}" if floor else ""
        yield _concern(Risk.CUDA_MAJOR, f"CUDA {change}{needs}")


def _numpy(change: Change | None) -> Iterator[Concern]:
    versions = _numbers(change, least_n=2)
    if versions:
        old, new = versions
        if old[0] < 2 <= new[0]:
            yield _concern(Risk.NUMPY_2, f"NumPy {change}")
        elif old[:2] != new[:2]:
            yield _concern(Risk.NUMPY_MINOR, f"NumPy {change}")
    elif change is not None and change.differs:
        # Two ranges that differ: pip takes the newest that is allowed, so it is likely that the versions do too.
        yield _concern(Risk.NUMPY_MINOR, f"NumPy may change: {change}")


def _numbers(change: Change | None, *, least_n: int = 1) -> tuple[tables.Release, tables.Release] | None:
    """Both versions, where both are known exactly and to at least so many numbers."""
    if change is None or change.stable is None or change.canary is None:
        return None
    old, new = change.stable.numbers, change.canary.numbers
    return (old, new) if min(len(old), len(new)) >= least_n else None


def _concern(risk: Risk, what: str) -> Concern:
    return Concern(risk, f"{what}: {KNOWN[risk].brings}")


def _shown(identity: Identity, name: str) -> str:
    value = identity.environment.get(name)
    return "not set" if value is None else readable(value, 40)
