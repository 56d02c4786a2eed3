"""Logins for registries, from the text of a ``.dockerconfigjson``, the form of Kubernetes' pull secrets. Pure.

Credential helpers named in such a file are programs, and no program is run here.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Self

from pydantic import SecretStr

from service.preflight.image.reference import DOCKER_HUB, ImageReference

MAX_ENTRIES_N = 1000


@dataclass(frozen=True, slots=True)
class Login:
    """A user of a registry. The password is shown nowhere."""

    username: str
    password: SecretStr

    @property
    def basic(self) -> str:
        """The value of a Basic Authorization header. Never for a log or a sentence."""
        both = f"{self.username}:{self.password.get_secret_value()}"
        return f"Basic {base64.b64encode(both.encode()).decode()}"


class Credentials:
    """Logins by registry, or by registry and the beginning of a repository; the longest that fits is taken."""

    def __init__(self, logins: Mapping[str, Login] | None = None) -> None:
        self._logins = {_place(key): login for key, login in (logins or {}).items()}

    @classmethod
    def from_docker_config(cls, text: str | SecretStr) -> Self:
        """From ``{"auths": {"registry": {"auth": base64 of user:password}}}``.

        Raises ValueError that names the entry and never what it holds. Entries with an identity token alone are
        refused too: they need a flow that is not spoken here.
        """
        try:
            given: Any = json.loads(text.get_secret_value() if isinstance(text, SecretStr) else text)
            entries = given["auths"]
            if not isinstance(entries, dict) or len(entries) > MAX_ENTRIES_N:
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError("the registry logins are no dockerconfigjson with a mapping 'auths'") from None
        return cls({key: _login(key, entry) for key, entry in entries.items()})

    def of(self, reference: ImageReference) -> Login | None:
        """The login for a reference's repository, None for an anonymous one."""
        fitting = [key for key in self._logins if _fits(key, reference)]
        return self._logins[max(fitting, key=len)] if fitting else None


def _login(key: str, entry: Any) -> Login:
    try:
        if entry.get("auth"):
            username, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
            if not colon:
                raise ValueError
        else:
            username, password = entry["username"], entry["password"]
        if not (isinstance(username, str) and isinstance(password, str) and username):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error):
        raise ValueError(
            f"the registry login {key[:100]!r} holds neither 'auth' nor 'username' and 'password'"
        ) from None
    return Login(username, SecretStr(password))


def _place(key: str) -> str:
    """``https://index.docker.io/v1/`` is how Docker writes its own registry; the others are a host and maybe a path."""
    place = key.split("://")[-1].strip("/").lower()
    for suffix in ("/v1", "/v2"):
        place = place.removesuffix(suffix)
    host, slash, path = place.partition("/")
    return (DOCKER_HUB if host in ("index.docker.io", "registry-1.docker.io") else host) + slash + path


def _fits(key: str, reference: ImageReference) -> bool:
    """As the kubelet does: ``*`` stands for one label of the host, a path for its beginning."""
    host, _, path = key.partition("/")
    labels, asked = host.split("."), reference.registry.lower().split(".")
    if len(labels) != len(asked) or not all(fnmatchcase(a, b) for a, b in zip(asked, labels, strict=True)):
        return False
    return not path or f"{reference.repository}/".startswith(f"{path}/")
