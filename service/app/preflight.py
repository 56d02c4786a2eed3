"""What the gates before any traffic reach the outside with, from the settings."""

from __future__ import annotations

import ssl

from service.preflight.image.credentials import Credentials
from service.preflight.outside import Allowed, Outside
from service.ring.ports import Refused
from service.settings import PreflightSettings, SettingsError, read_secret


def outside_of(settings: PreflightSettings) -> Outside:
    """The client for addresses that others wrote; use as ``async with``. Raises SettingsError for an unusable CA."""
    tls = None
    if settings.ca_file is not None:
        try:
            tls = ssl.create_default_context()
            tls.load_verify_locations(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"preflight.ca_file {settings.ca_file} cannot be used: {error}") from error
    return Outside(Allowed.listed(settings.allowed_hosts), tls=tls)


def registry_logins_of(settings: PreflightSettings) -> Credentials:
    """The logins for registries as the file holds them now; none without a file.

    Raises Refused, which shows no login: the file may be mended while the service runs.
    """
    try:
        text = read_secret(settings.registry_logins_file)
        return Credentials() if text is None else Credentials.from_docker_config(text)
    except (SettingsError, ValueError) as error:
        raise Refused(f"preflight.registry_logins_file {settings.registry_logins_file}: {error}") from error
