"""What a registry keeps of an image, decoded and checked: index, manifest, configuration. Pure.

The media types are those of OCI and of Docker's schema 2; unknown fields are passed over, as the specification asks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from service.preflight.image.reference import ImageReference
from service.preflight.report import readable
from service.ring.ports import Refused

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")

MAX_ENTRIES_N = 2000
"""Platforms of an index, layers of a manifest, steps of a history. Builders stop far below."""

Digest = Annotated[str, msgspec.Meta(pattern=r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")]
SizeBytes = Annotated[int, msgspec.Meta(ge=0, le=2**50)]


class Malformed(Refused):
    """What the registry sent is not what it should be. The message says what it was and what is wrong."""


class NoSuchPlatform(Refused):
    """The image exists, but not for the platform that was asked for."""


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def serves(self, asked: str) -> bool:
        """Whether this is the platform ``os/architecture[/variant]``; one asked without variant takes any."""
        return str(self) == asked or f"{self.os}/{self.architecture}" == asked


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A pointer to content: its digest is the proof of what comes."""

    digest: Digest
    size: SizeBytes
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image or an artifact: a configuration and layers."""

    config: Descriptor
    layers: list[Descriptor] = []
    media_type: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """One image for several platforms, or a list of referrers."""

    manifests: list[Descriptor] | None
    media_type: str = ""


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    labels: dict[str, str | None] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None


class _Step(msgspec.Struct, frozen=True):
    created_by: str | None = None


class _Config(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str | None = None
    created: str | None = None
    config: _Process | None = None
    history: list[_Step] | None = None


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    """Just enough to tell what a document is."""

    schema_version: int = 0
    manifests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    config: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Image:
    """What the registry tells of one image on one platform."""

    reference: ImageReference
    digest: str
    """Of the manifest for the platform."""
    index_digest: str | None
    """Of the multi-arch index, where there is one; it is what a deployment pins."""
    config_digest: str
    """Of the configuration, which Docker calls the image's id."""
    platform: str
    created: str
    user: str
    environment: dict[str, str]
    labels: dict[str, str]
    start: tuple[str, ...]
    """Entry point and command."""
    history: tuple[str, ...]
    """The build's steps, oldest first."""
    layers: tuple[Descriptor, ...]

    @property
    def size_bytes(self) -> int:
        """What a node fetches that has none of its layers: packed sizes, each layer counted once."""
        return sum({layer.digest: layer.size for layer in self.layers}.values())


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def decoded(body: bytes, kind: type[_Struct], what: str) -> _Struct:
    """``body`` as one of the structs here. Raises Malformed."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{what} cannot be read: {readable(str(error))}") from error


def index_or_manifest(body: bytes, what: str) -> Index | Manifest:
    """Which of the two a document is follows from its fields, for media types are set wrongly by some registries.

    Raises Malformed, also for a document that could be read as both: two readers would see two images.
    """
    kind = decoded(body, _Kind, what)
    is_index, is_manifest = kind.manifests is not msgspec.UNSET, kind.config is not msgspec.UNSET
    if kind.schema_version == 1:
        raise Malformed(f"{what} is of the outdated schema 1; push the image again with a current tool")
    if is_index == is_manifest:
        raise Malformed(f"{what} is {'both index and manifest' if is_index else 'neither index nor manifest'}")
    found: Index | Manifest = decoded(body, Index, what) if is_index else decoded(body, Manifest, what)
    entries_n = len(found.manifests or ()) if isinstance(found, Index) else len(found.layers)
    if entries_n > MAX_ENTRIES_N:
        raise Malformed(f"{what} has {entries_n} entries; at most {MAX_ENTRIES_N} are read")
    return found


def for_platform(index: Index, asked: str, what: str) -> Descriptor:
    """The entry for ``os/architecture[/variant]``, the first where several fit. Raises NoSuchPlatform."""
    offered = [(m.platform or Platform(), m) for m in index.manifests or ()]
    for platform, descriptor in offered:
        if str(platform) == asked:
            return descriptor
    for platform, descriptor in offered:
        if platform.serves(asked):
            return descriptor
    names = sorted({str(p) for p, _ in offered if p.os and p.os != "unknown"})
    raise NoSuchPlatform(f"{what} is not built for {asked}; it is for {readable(', '.join(names)) or 'nothing'}")


def image(
    reference: ImageReference, digest: str, index_digest: str | None, manifest: Manifest, config: bytes, asked: str
) -> Image:
    """The image of a manifest and its configuration blob. Raises Malformed or NoSuchPlatform."""
    what = f"the configuration of {reference}"
    found = decoded(config, _Config, what)
    platform = Platform(found.os, found.architecture, found.variant or "")
    if not platform.serves(asked):
        raise NoSuchPlatform(f"{reference} is built for {readable(str(platform)) or 'nothing'}, not for {asked}")
    steps = found.history or []
    if len(steps) > MAX_ENTRIES_N:
        raise Malformed(f"{what} has {len(steps)} steps of history; at most {MAX_ENTRIES_N} are read")
    process = found.config or _Process()
    return Image(
        reference=reference,
        digest=digest,
        index_digest=index_digest,
        config_digest=manifest.config.digest,
        platform=str(platform),
        created=found.created or "",
        user=process.user or "",
        environment=dict(_pair(line) for line in process.env or ()),
        labels={key: value or "" for key, value in (process.labels or {}).items()},
        start=(*(process.entrypoint or ()), *(process.cmd or ())),
        history=tuple(step.created_by or "" for step in steps),
        layers=tuple(manifest.layers),
    )


def digest_of(body: bytes, like: str = "sha256:") -> str:
    """The digest of content, by the algorithm that ``like`` begins with."""
    algorithm = "sha512" if like.startswith("sha512:") else "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    return name, value
