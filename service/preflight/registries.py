"""What registries say of images, for the gates that need it beside their own work: digests, user, attached reports.

Only images that a target or a Deployment names get here, so that logins are used for no one else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from service.preflight.image.credentials import Credentials
from service.preflight.image.manifest import Descriptor, Manifest
from service.preflight.image.reference import ImageReference
from service.preflight.image.registry import Registry
from service.preflight.outside import Outside, readable
from service.preflight.security.reports import moment_of
from service.preflight.security.sources import Attached, KnownImage
from service.ring.ports import Refused

CREATED = "org.opencontainers.image.created"
MAX_ATTACHED_N = 10
"""Of more artifacts of one type only the last are looked at."""


class RegistryImages:
    """Implements ``security.sources.Images``. One for the whole service; holds no state between looks."""

    def __init__(self, outside: Outside, credentials: Credentials | None = None) -> None:
        self._outside = outside
        self._credentials = credentials

    async def known(self, reference: str, platform: str) -> KnownImage:
        """See ``Images.known``."""
        registry = Registry(self._outside, self._credentials)
        asked = _parsed(reference)
        image = await registry.image(asked, platform)
        # A scan before the push knows the image only by its configuration.
        manifest = (await registry.manifest(asked.at(image.digest))).document
        config = manifest.config.digest if isinstance(manifest, Manifest) else None
        return KnownImage(frozenset(filter(None, (image.digest, image.index_digest, config))), image.user)

    async def attached(self, reference: str, platform: str, media_type: str, *, limit_bytes: int) -> Attached:
        """See ``Images.attached``. To an index and to one of its images alike something may be attached."""
        registry = Registry(self._outside, self._credentials)
        asked = _parsed(reference)
        image = await registry.image(asked, platform)
        found: list[Descriptor] = []
        for digest in filter(None, (image.digest, image.index_digest)):
            found += await registry.referrers(asked.at(digest), media_type)
        if not found:
            raise Refused(f"nothing of type {media_type} is attached to {asked}")
        # Registries should list what an artifact's manifest says of its time; not all do, so the manifests are read.
        last = sorted(found, key=lambda one: _created(one.annotations))[-MAX_ATTACHED_N:]
        manifests = [(await registry.manifest(asked.at(one.digest))).document for one in last]
        artifacts = [one for one in manifests if isinstance(one, Manifest) and len(one.layers) == 1]
        if not artifacts:
            raise Refused(f"what is attached to {asked} as {media_type} does not hold exactly one report")
        newest = max(artifacts, key=lambda one: _created(one.annotations))
        body = await registry.blob(asked, newest.layers[0], limit_bytes=limit_bytes)
        return Attached(body, moment_of((newest.annotations or {}).get(CREATED)))


def _created(annotations: Mapping[str, str] | None) -> datetime:
    """When it was made; what does not say is older than what does."""
    return moment_of((annotations or {}).get(CREATED)) or datetime.min.replace(tzinfo=UTC)


def _parsed(reference: str) -> ImageReference:
    try:
        return ImageReference.parse(reference)
    except ValueError as error:
        raise Refused(readable(str(error))) from error
