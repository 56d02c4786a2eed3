"""What registries say of images, for the gates that need it beside their own work: digests, user, attached reports.

Only images that a target or a Deployment names get here, so that logins are used for no one else's.
"""

from __future__ import annotations

from collections.abc import Callable

from service.preflight.image.credentials import Credentials
from service.preflight.image.reference import ImageReference
from service.preflight.image.registry import Registry
from service.preflight.outside import Outside
from service.preflight.report import readable
from service.preflight.security.sources import Attached, KnownImage
from service.preflight.threads import in_thread
from service.ring.ports import Refused


class RegistryImages:
    """Implements ``security.sources.Images``. One for the whole service; holds no state between looks.

    logins : reads the operator's logins, at every look, because some registries' are renewed twice a day
    """

    def __init__(self, outside: Outside, logins: Callable[[], Credentials] = Credentials) -> None:
        self._outside = outside
        self._logins = logins

    async def known(self, reference: str, platform: str) -> KnownImage:
        """See ``Images.known``."""
        registry = Registry(self._outside, await in_thread(self._logins))
        image = await registry.image(_parsed(reference), platform)
        digests = (image.digest, image.index_digest, image.config_digest)
        return KnownImage(frozenset(digest for digest in digests if digest), image.user)

    async def attached(self, reference: str, platform: str, media_type: str, *, limit_bytes: int) -> Attached:
        """See ``Images.attached``."""
        registry = Registry(self._outside, await in_thread(self._logins))
        found = await registry.attached(_parsed(reference), media_type, platform, limit_bytes=limit_bytes)
        return Attached(found.body, found.created)


def _parsed(reference: str) -> ImageReference:
    try:
        return ImageReference.parse(reference)
    except ValueError as error:
        raise Refused(readable(str(error))) from error
