"""Who asks: bearer tokens with a role. Tokens are kept as digests and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from service.ring.ports import Refused


class Role(StrEnum):
    """What a token may do: look, or also order."""

    VIEWER = "viewer"
    OPERATOR = "operator"


class Token(BaseModel):
    """One line of the tokens file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    role: Role
    token: SecretStr = Field(min_length=16)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the journal will name them."""

    name: str
    role: Role


class Auth:
    """Knows callers by their bearer token. Without tokens everyone on loopback is an operator."""

    def __init__(self, tokens: Iterable[Token] | None) -> None:
        self._known = (
            None if tokens is None else [(_digest(t.token.get_secret_value()), Caller(t.name, t.role)) for t in tokens]
        )

    def caller(self, authorization: str | None) -> Caller | None:
        """The caller behind an Authorization header; None when it names nobody."""
        if self._known is None:
            return Caller("local", Role.OPERATOR)
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return None
        given = _digest(token.strip())
        found = None
        for known, caller in self._known:
            # All are compared, so that the time taken tells nothing of which one fits.
            if hmac.compare_digest(known, given):
                found = caller
        return found


def read_tokens(file: Path) -> list[Token]:
    """The tokens of a YAML file; Refused when it cannot be used. The message never holds a token."""
    try:
        given = yaml.safe_load(file.read_text("utf-8"))
        return TypeAdapter(list[Token]).validate_python(given)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Refused(f"cannot read the tokens file {file}: {type(error).__name__}") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['type']}" for f in error.errors(include_input=False))
        raise Refused(
            f"tokens file {file}: expected a list of name, role, token (16 or more characters): {faults}"
        ) from None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
