"""Logins for registries: which one is taken, and that none is shown."""

from __future__ import annotations

import base64
import json

import pytest

from service.preflight.image.credentials import Credentials
from service.preflight.image.reference import ImageReference


def config(**entries: str) -> str:
    return json.dumps(
        {"auths": {k: {"auth": base64.b64encode(f"{v}:pw-{v}".encode()).decode()} for k, v in entries.items()}}
    )


@pytest.mark.parametrize(
    ("image", "user"),
    [
        ("tensorflow/tensorflow:2.13.0", "hub"),
        ("r.example:5000/ml/ranker", "port"),
        ("r.example/ml/ranker", "host"),
        ("r.example/ml/secret/ranker", "path"),
        ("r.example/ml/secrets/ranker", "host"),
        ("a.cloud.example/x", "star"),
        ("a.b.cloud.example/x", None),
        ("other.example/x", None),
        ("r.example.evil.example/x", None),
    ],
)
def test_the_longest_entry_that_fits_is_taken(image: str, user: str | None) -> None:
    credentials = Credentials.from_docker_config(
        config(
            **{
                "https://index.docker.io/v1/": "hub",
                "r.example:5000": "port",
                "https://r.example/v2/": "host",
                "r.example/ml/secret": "path",
                "*.cloud.example": "star",
            }
        )
    )
    login = credentials.of(ImageReference.parse(image))
    assert (login.username if login else None) == user
    if login:
        assert login.password.get_secret_value() == f"pw-{user}"
        assert (
            "pw-"
            not in f"{login} {login!r} {credentials!r} {vars(credentials) if hasattr(credentials, '__dict__') else ''}"
        )


def test_user_and_password_may_stand_beside_each_other() -> None:
    credentials = Credentials.from_docker_config('{"auths": {"r.example": {"username": "anna", "password": "a:b"}}}')
    login = credentials.of(ImageReference.parse("r.example/x"))
    assert login is not None
    assert base64.b64decode(login.basic.removeprefix("Basic ")) == b"anna:a:b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"auths": []}',
        '{"auths": {"r": {"auth": "s3cr3t"}}}',
        '{"auths": {"r": {"auth": "czNjcjN0"}}}',
        '{"auths": {"r": {"identitytoken": "s3cr3t"}}}',
        '{"auths": {"r": {"username": "s3cr3t", "password": 7}}}',
        '{"auths": {"r": "s3cr3t"}}',
        "[" * 100_000,
    ],
)
def test_what_holds_no_login_is_refused_without_showing_what_it_holds(text: str) -> None:
    with pytest.raises(ValueError, match="registry login") as caught:
        Credentials.from_docker_config(text)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__suppress_context__
