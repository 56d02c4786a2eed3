"""Image references as people and events write them, pure: ``tensorflow/serving:2.13.0-gpu``, private names with
ports, digests, package URLs. The grammar is that of the distribution project; docker.io is what a bare name means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import parse_qsl, unquote

MAX_CHARACTERS_N = 1024
DOCKER_HUB = "docker.io"

_HOST = re.compile(
    r"^(?:\[[0-9a-fA-F:]+\]|[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*)"
    r"(?::[0-9]{1,5})?$"
)
_PART = re.compile(r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$")
_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
_DIGEST = re.compile(r"^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """Where an image is and which one of its repository it is; at least one of tag and digest is given."""

    registry: str
    """``host`` or ``host:port``."""
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The reference that a person, a manifest or an event wrote. Raises ValueError that says what is wrong."""
        if not text or len(text) > MAX_CHARACTERS_N:
            raise ValueError(f"an image reference has 1 to {MAX_CHARACTERS_N} characters, found {len(text)}")
        return cls._from_package_url(text) if text.startswith("pkg:") else cls._from_name(text)

    @classmethod
    def _from_name(cls, text: str) -> Self:
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise ValueError(f"image reference {text!r}: what follows @ is no sha256 or sha512 digest")
        first, slash, others = rest.partition("/")
        # A first part is a host only when it could not be a repository's: Docker's rule.
        if slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first):
            registry, path = first, others
        else:
            registry, path = DOCKER_HUB, rest
        if registry == "index.docker.io":
            registry = DOCKER_HUB
        repository, colon, tag = path.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise ValueError(f"image reference {text!r}: {tag!r} is no tag")
        if registry == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        return cls(registry, repository, tag or None, digest or None)._checked(text)

    @classmethod
    def _from_package_url(cls, text: str) -> Self:
        """``pkg:oci/NAME@DIGEST?repository_url=HOST/PATH/NAME&tag=TAG`` and ``pkg:docker/SPACE/NAME@TAG``."""
        head, _, query = text.removeprefix("pkg:").partition("#")[0].partition("?")
        kind, _, path = head.partition("/")
        path, _, version = path.rpartition("@") if "@" in path else (path, "", "")
        name, version = unquote(path).strip("/"), unquote(version)
        qualifiers = dict(parse_qsl(query, max_num_fields=20))
        url = qualifiers.get("repository_url", "").removeprefix("https://").strip("/")
        if kind == "oci":
            if not url:
                raise ValueError(f"package URL {text!r} names no repository_url, so its registry is not known")
            # The specification puts the name into repository_url; some senders leave it out.
            whole = url if url.rpartition("/")[2].lower() == name.lower() else f"{url}/{name}"
        elif kind == "docker":
            whole = f"{url}/{name}" if url else name
        else:
            raise ValueError(f"package URL {text!r} is of type {kind!r}; images are of type oci or docker")
        reference = cls._from_name(whole)
        digest = version if _DIGEST.fullmatch(version) else None
        tag = qualifiers.get("tag") or (version if version and not digest else None)
        return replace(reference, tag=tag or (None if digest else reference.tag), digest=digest)._checked(text)

    def _checked(self, text: str) -> Self:
        port = self.registry.rpartition(":")[2] if not self.registry.endswith("]") and ":" in self.registry else "1"
        if not _HOST.fullmatch(self.registry) or not 1 <= int(port) <= 65535:
            raise ValueError(f"image reference {text!r}: {self.registry!r} is no host or host:port")
        if len(self.repository) > 255 or not all(_PART.fullmatch(part) for part in self.repository.split("/")):
            raise ValueError(f"image reference {text!r}: {self.repository!r} is no repository (lower-case parts)")
        if self.tag is not None and not _TAG.fullmatch(self.tag):
            raise ValueError(f"image reference {text!r}: {self.tag!r} is no tag")
        return self if self.tag or self.digest else replace(self, tag="latest")

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def key(self) -> str:
        """What the registry is asked for: the digest where there is one, for a tag beside it may have moved."""
        return self.digest or self.tag or ""

    @property
    def api_host(self) -> str:
        """The host that answers for the registry's name."""
        return "registry-1.docker.io" if self.registry == DOCKER_HUB else self.registry

    def at(self, digest: str) -> Self:
        """The same repository's content of this digest."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"
