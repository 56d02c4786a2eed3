"""The contract of the registry client, on a registry of our own and on real ones, and what registries do wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.preflight.image.credentials import Credentials
from service.preflight.image.manifest import Malformed, NoSuchPlatform
from service.preflight.image.reference import ImageReference
from service.preflight.image.registry import MAX_MANIFEST_BYTES, NotFound, Registry
from service.preflight.outside import Allowed, NotAllowed, Outside, TooLarge
from service.ring.ports import PortError, Refused, Unavailable
from tests.contract.registry.serving import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    TOKEN,
    LoopbackRegistry,
    Pusher,
    digest,
    fails,
    hang,
    redirect,
    sends,
    served,
)
from tests.real.parts.registry import (
    PASSWORD,
    USER,
    DistributionRegistry,
    GoRegistry,
    distribution,
    with_referrers,
)

SARIF = "application/sarif+json"
REPOSITORY = "ml/ranker"


@dataclass
class Place:
    """A registry with what a test needs to fill and to read it."""

    host: str
    push: Pusher
    credentials: Credentials
    referrers: bool

    @asynccontextmanager
    async def read(self, timeout_s: float = 10.0) -> AsyncIterator[Registry]:
        async with Outside(Allowed.listed([f"http://{self.host}"])) as outside:
            yield Registry(outside, self.credentials, timeout_s=timeout_s)

    def named(self, key: str) -> ImageReference:
        return ImageReference.parse(f"{self.host}/{REPOSITORY}{key}")


def logins(host: str, user: str = USER, password: str = PASSWORD) -> Credentials:
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    return Credentials.from_docker_config(json.dumps({"auths": {host: {"auth": auth}}}))


@pytest.fixture(
    params=[
        "loopback",
        "loopback with basic auth",
        "loopback with tokens",
        "loopback without referrers",
        pytest.param("distribution", marks=pytest.mark.real),
        pytest.param("distribution with basic auth", marks=pytest.mark.real),
        pytest.param("go-containerregistry", marks=pytest.mark.real),
    ]
)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    kind = str(request.param)
    basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    if kind.startswith("loopback"):
        auth = "basic" if "basic" in kind else "token" if "tokens" in kind else ""
        ours = LoopbackRegistry(auth)
        ours.referrers_api = "without" not in kind
        async with served(ours):
            authorization = {"": "", "basic": basic, "token": f"Bearer {TOKEN}"}[auth]
            yield Place(ours.host, Pusher(ours.host, authorization), logins(ours.host), ours.referrers_api)
    elif kind.startswith("distribution"):
        with_login = "basic" in kind
        real = DistributionRegistry(distribution(), tmp_path / "registry", basic=with_login)
        try:
            yield Place(
                real.host,
                Pusher(real.host, basic if with_login else ""),
                logins(real.host) if with_login else Credentials(),
                False,
            )
        finally:
            real.stop()
    else:
        in_memory = GoRegistry(with_referrers())
        try:
            yield Place(in_memory.host, Pusher(in_memory.host), Credentials(), True)
        finally:
            in_memory.stop()


# --- what every registry does ---


async def test_an_image_tells_its_user_environment_labels_history_and_layers(place: Place) -> None:
    described = await place.push.image(
        REPOSITORY,
        "2.13.0-gpu-jupyter",
        config={
            "User": "1000:1000",
            "Env": ["CUDA_VERSION=11.8.0", "EMPTY=", "A=b=c"],
            "Labels": {"maintainer": "ml"},
            "Entrypoint": ["/serve"],
            "Cmd": ["--port", "8501"],
        },
        history=("FROM base", "RUN pip install tensorflow==2.13.0"),
        layers=(b"base", b"own", b"base"),
    )
    async with place.read() as registry:
        image = await registry.image(place.named(":2.13.0-gpu-jupyter"), "linux/amd64")
        pinned = await registry.image(place.named(f"@{described['digest']}"), "linux/amd64")
    assert image.digest == described["digest"] == pinned.digest
    assert image.index_digest is None
    assert (image.platform, image.user, image.created) == ("linux/amd64", "1000:1000", "2026-11-01T00:00:00Z")
    assert image.environment == {"CUDA_VERSION": "11.8.0", "EMPTY": "", "A": "b=c"}
    assert image.labels == {"maintainer": "ml"}
    assert image.start == ("/serve", "--port", "8501")
    assert image.history == ("FROM base", "RUN pip install tensorflow==2.13.0")
    assert [layer.digest for layer in image.layers] == [digest(b"base"), digest(b"own"), digest(b"base")]
    assert image.size_bytes == 7  # a layer that comes twice is fetched once


async def test_a_multi_arch_index_gives_the_platform_that_was_asked_for(place: Place) -> None:
    amd = await place.push.image(REPOSITORY, "", config={"User": "amd"})
    arm = await place.push.image(REPOSITORY, "", config={"User": "arm"}, platform="linux/arm64")
    signed = {**arm, "platform": {"os": "unknown", "architecture": "unknown"}}
    index = await place.push.index(REPOSITORY, "multi", amd, arm, signed)
    async with place.read() as registry:
        for platform, described in (("linux/amd64", amd), ("linux/arm64", arm)):
            image = await registry.image(place.named(":multi"), platform)
            assert (image.digest, image.index_digest) == (described["digest"], index["digest"])
            assert image.user == platform.removeprefix("linux/")[:3]
        with pytest.raises(NoSuchPlatform, match=r"not built for windows/amd64; it is for linux/amd64, linux/arm64$"):
            await registry.image(place.named(":multi"), "windows/amd64")


async def test_an_image_without_index_of_another_platform_is_said_to_be_so(place: Place) -> None:
    await place.push.image(REPOSITORY, "arm", platform="linux/arm64")
    async with place.read() as registry:
        with pytest.raises(NoSuchPlatform, match="is built for linux/arm64, not for linux/amd64"):
            await registry.image(place.named(":arm"), "linux/amd64")


async def test_an_image_that_is_not_there_is_not_found(place: Place) -> None:
    await place.push.image(REPOSITORY, "there")
    async with place.read() as registry:
        for key in (":missing", "@sha256:" + "0" * 64):
            with pytest.raises(NotFound, match="answers 404") as caught:
                await registry.image(place.named(key), "linux/amd64")
            assert "\x1b" not in str(caught.value)


async def test_what_is_attached_to_an_image_is_found_by_its_type(place: Place) -> None:
    subject = await place.push.image(REPOSITORY, "1")
    report = await place.push.attached(REPOSITORY, subject, SARIF, b'{"runs": []}')
    other = await place.push.attached(REPOSITORY, subject, "application/vnd.example.signature", b"signed")
    if not place.referrers:
        # What a client that pushes does for such a registry: an index under a tag made of the digest.
        await place.push.index(
            REPOSITORY,
            subject["digest"].replace(":", "-"),
            {**report, "artifactType": SARIF},
            {**other, "artifactType": "application/vnd.example.signature"},
        )
    reference = place.named(f"@{subject['digest']}")
    async with place.read() as registry:
        (found,) = await registry.referrers(reference, SARIF)
        assert (found.digest, found.artifact_type) == (report["digest"], SARIF)
        assert len(await registry.referrers(reference)) == 2
        content = await registry.manifest(reference.at(found.digest))
        (layer,) = content.document.layers  # type: ignore[union-attr]
        assert await registry.blob(reference, layer, limit_bytes=100) == b'{"runs": []}'
        with pytest.raises(TooLarge, match="has 12 bytes; at most 11"):
            await registry.blob(reference, layer, limit_bytes=11)


async def test_the_newest_report_is_found_at_the_image_and_at_its_index(place: Place) -> None:
    amd = await place.push.image(REPOSITORY, "")
    index = await place.push.index(REPOSITORY, "multi", amd)
    reports = [
        (amd, await place.push.attached(REPOSITORY, amd, SARIF, b"undated")),
        (amd, await place.push.attached(REPOSITORY, amd, SARIF, b"old", "2026-11-01T00:00:00Z")),
        (index, await place.push.attached(REPOSITORY, index, SARIF, b"new", "2026-11-20T00:00:00+01:00")),
    ]
    if not place.referrers:
        for subject in (amd, index):
            theirs = [report for of, report in reports if of is subject]
            await place.push.index(REPOSITORY, subject["digest"].replace(":", "-"), *theirs)
    async with place.read() as registry:
        found = await registry.attached(place.named(":multi"), SARIF, "linux/amd64", limit_bytes=100)
        assert found.body == b"new"
        assert found.created == datetime(2026, 11, 19, 23, tzinfo=UTC)
        with pytest.raises(TooLarge):
            await registry.attached(place.named(":multi"), SARIF, "linux/amd64", limit_bytes=2)
        with pytest.raises(NotFound, match="nothing of type"):
            await registry.attached(place.named(":multi"), "application/json", "linux/amd64", limit_bytes=100)


async def test_nothing_attached_is_an_empty_answer(place: Place) -> None:
    subject = await place.push.image(REPOSITORY, "1")
    async with place.read() as registry:
        assert await registry.referrers(place.named(f"@{subject['digest']}")) == ()


# --- logins ---


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_a_wrong_login_is_refused_without_the_password_in_the_message(auth: str) -> None:
    async with served(LoopbackRegistry(auth)) as ours, Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        reference = ImageReference.parse(f"{ours.host}/a:1")
        with pytest.raises(Refused, match="not open to the login that is set") as caught:
            await Registry(outside, logins(ours.host, password="s3cr3t")).image(reference, "linux/amd64")
        story = _whole_story(caught.value)
        assert "s3cr3t" not in story
        assert base64.b64encode(b"anna:s3cr3t").decode() not in story
        with pytest.raises(Refused, match=r"wants a login|not open to anybody without a login"):
            await Registry(outside).image(reference, "linux/amd64")


async def test_a_token_is_asked_for_once_and_with_the_right_to_pull_only() -> None:
    async with served(LoopbackRegistry("token")) as ours, Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        await Pusher(ours.host, f"Bearer {TOKEN}").image("ml/a", "1")
        ours.asked.clear()
        await Registry(outside, logins(ours.host)).image(ImageReference.parse(f"{ours.host}/ml/a:1"), "linux/amd64")
    tokens = [(path, header) for path, header in ours.asked if path.startswith("/token")]
    assert tokens == [("/token?a=b&scope=repository:ml/a:pull&service=here,+%22there%22", ours.basic)]
    assert [header for path, header in ours.asked if not path.startswith("/token")] == [
        None,
        f"Bearer {TOKEN}",
        f"Bearer {TOKEN}",
    ]


async def test_a_token_that_the_registry_does_not_take_is_not_asked_for_again_and_again() -> None:
    async with served(LoopbackRegistry("token")) as ours, Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        ours.faults["/token"] = sends(b'{"token": "another"}')
        with pytest.raises(Refused, match="answers 401"):
            await Registry(outside, logins(ours.host)).image(ImageReference.parse(f"{ours.host}/a:1"), "linux/amd64")
    assert [path.partition("?")[0] for path, _ in ours.asked] == ["/v2/a/manifests/1", "/token", "/v2/a/manifests/1"]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"[]",
        b'{"token": 7}',
        b'{"token": ""}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b"[" * 60_000,
        b'{"token": "\xff"}',
    ],
)
async def test_a_token_that_is_none_is_refused(sent: bytes) -> None:
    async with served(LoopbackRegistry("token")) as ours, Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        ours.faults["/token"] = sends(sent)
        with pytest.raises(Malformed, match="sent no token"):
            await Registry(outside).image(ImageReference.parse(f"{ours.host}/a:1"), "linux/amd64")


@pytest.mark.parametrize(
    ("challenge", "error"),
    [
        ('Bearer realm="http://169.254.169.254/token"', NotAllowed),
        ('Bearer realm="https://169.254.169.254/token"', NotAllowed),
        ('Bearer realm="https://10.0.0.1/token"', NotAllowed),
        ('Bearer realm="file:///etc/passwd"', NotAllowed),
        ('Bearer realm="http://[::bad"', Malformed),
        ("Bearer", Malformed),
        ("Negotiate", Refused),
        ("", Refused),
        ("Bearer " + 'realm="' * 1000, PortError),
    ],
)
async def test_a_login_is_never_taken_to_where_a_challenge_wants_it_inside(
    challenge: str, error: type[Exception]
) -> None:
    async with served(LoopbackRegistry()) as ours, Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        ours.faults["/manifests/1"] = fails(401, WWW_Authenticate=challenge)
        with pytest.raises(error):
            await Registry(outside, logins(ours.host)).image(ImageReference.parse(f"{ours.host}/a:1"), "linux/amd64")
    assert all(header is None for _, header in ours.asked)


async def test_blobs_on_another_host_are_fetched_without_the_login() -> None:
    async with served(LoopbackRegistry()) as store, served(LoopbackRegistry("basic")) as ours:
        pusher = Pusher(ours.host, ours.basic)
        await pusher.image("a", "1", config={"User": "me"})
        await Pusher(store.host).image("a", "1", config={"User": "me"})
        config = next(key for key in store._blobs if store._blobs[key].startswith(b'{"os"'))
        store.asked.clear()
        ours.faults[f"/blobs/{config}"] = redirect(f"http://{store.host}/v2/a/blobs/{config}?sig=1")
        async with Outside(Allowed.listed([f"http://{ours.host}", f"http://{store.host}"])) as outside:
            image = await Registry(outside, logins(ours.host)).image(
                ImageReference.parse(f"{ours.host}/a:1"), "linux/amd64"
            )
    assert image.user == "me"
    assert store.asked == [(f"/v2/a/blobs/{config}?sig=1", None)]


async def test_a_host_that_the_registry_only_redirects_to_names_no_token_server_for_its_login() -> None:
    async with (
        served(LoopbackRegistry()) as thief,
        served(LoopbackRegistry()) as store,
        served(LoopbackRegistry("basic")) as ours,
    ):
        ours.faults["/manifests/1"] = redirect(f"http://{store.host}/v2/a/manifests/1")
        store.faults["/manifests/1"] = fails(401, WWW_Authenticate=f'Bearer realm="http://{thief.host}/token"')
        listed = [f"http://{one.host}" for one in (ours, store, thief)]
        async with Outside(Allowed.listed(listed)) as outside:
            with pytest.raises(Refused, match="answers 401"):
                await Registry(outside, logins(ours.host)).image(
                    ImageReference.parse(f"{ours.host}/a:1"), "linux/amd64"
                )
    assert thief.asked == []


# --- what registries do wrong ---


@pytest.fixture
async def ours() -> AsyncIterator[LoopbackRegistry]:
    async with served(LoopbackRegistry()) as registry:
        await Pusher(registry.host).image("a", "1")
        yield registry


async def _read(ours: LoopbackRegistry, key: str = ":1", timeout_s: float = 10.0) -> Any:
    async with Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        registry = Registry(outside, timeout_s=timeout_s)
        return await registry.image(ImageReference.parse(f"{ours.host}/a{key}"), "linux/amd64")


async def test_a_registry_that_hangs_is_left_after_the_time_that_was_given(ours: LoopbackRegistry) -> None:
    ours.faults["/manifests/1"] = hang
    with pytest.raises(Unavailable, match=r"within 0\.2 s"):
        await _read(ours, timeout_s=0.2)


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data/", "https://169.254.169.254/", "//10.0.0.1/"]
)
async def test_a_redirect_to_an_address_inside_is_not_followed(ours: LoopbackRegistry, target: str) -> None:
    ours.faults["/manifests/1"] = redirect(target)
    with pytest.raises(NotAllowed):
        await _read(ours)


async def test_a_huge_manifest_is_cut(ours: LoopbackRegistry) -> None:
    ours.faults["/manifests/1"] = sends(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(TooLarge, match=str(MAX_MANIFEST_BYTES)):
        await _read(ours)


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unavailable), (503, Unavailable), (429, Unavailable), (403, Refused), (418, Refused)]
)
async def test_a_status_says_whether_it_helps_to_ask_again(
    ours: LoopbackRegistry, status: int, error: type[Exception]
) -> None:
    ours.faults["/manifests/1"] = fails(status, Retry_After="7")
    with pytest.raises(error, match=f"answers {status}") as caught:
        await _read(ours)
    if status == 429:
        assert caught.value.retry_after_s == 7  # type: ignore[attr-defined]


async def test_content_with_another_digest_is_not_taken(ours: LoopbackRegistry) -> None:
    kind, body = ours._manifests["a", "1"]
    ours.faults[f"/manifests/{digest(body)}"] = sends(body + b" ", Content_Type=kind)
    with pytest.raises(Malformed, match="with digest"):
        await _read(ours, f"@{digest(body)}")
    ours.faults["/manifests/1"] = sends(body + b" ", Docker_Content_Digest=digest(body))
    with pytest.raises(Malformed, match="with digest"):
        await _read(ours)
    config = json.loads(body)["config"]
    ours.faults = {f"/blobs/{config['digest']}": sends(b"x" * config["size"])}
    with pytest.raises(Malformed, match="another blob"):
        await _read(ours)
    ours.faults = {f"/blobs/{config['digest']}": sends(b"x" * (config["size"] + 1))}
    with pytest.raises(TooLarge):
        await _read(ours)


def _manifest(**changes: Any) -> bytes:
    config = {"mediaType": OCI_CONFIG, "digest": "sha256:" + "0" * 64, "size": 2}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], **changes}
    ).encode()


def _descriptor(**changes: Any) -> dict[str, Any]:
    return {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 2, **changes}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff\xfe",
        b"null",
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b"{}",
        b'{"schemaVersion": 1, "fsLayers": []}',
        _manifest(manifests=[]),
        _manifest(config="x"),
        _manifest(config=_descriptor(size=-1)),
        _manifest(config=_descriptor(size=2**60)),
        _manifest(config=_descriptor(digest="sha256:../../etc/passwd")),
        _manifest(config=_descriptor(digest="sha256:" + "0" * 64 + "\n")),
        _manifest(layers=[_descriptor()] * 3000),
        _manifest(config=_descriptor(mediaType="application/vnd.cncf.helm.config.v1+json")),
    ],
    ids=range(16),
)  # fmt: skip
async def test_a_manifest_that_is_none_is_refused(ours: LoopbackRegistry, body: bytes) -> None:
    ours.faults["/manifests/1"] = sends(body)
    with pytest.raises(Malformed) as caught:
        await _read(ours)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "config",
    [
        b"[]",
        b"{" * 100_000,
        b'{"os": 7}',
        b'{"os": "linux", "architecture": "amd64", "config": {"Env": [7]}}',
        b'{"os": "linux", "architecture": "amd64", "history": [' + b"{}," * 3000 + b"{}]}",
        b"{}",
    ],
    ids=range(6),
)
async def test_a_configuration_that_is_none_is_refused(ours: LoopbackRegistry, config: bytes) -> None:
    described = {"mediaType": OCI_CONFIG, **await Pusher(ours.host).blob("a", config)}
    ours.faults["/manifests/1"] = sends(_manifest(config=described))
    with pytest.raises((Malformed, NoSuchPlatform)):
        await _read(ours)


async def test_nulls_that_builders_write_are_read_as_nothing(ours: LoopbackRegistry) -> None:
    config = b'{"os":"linux","architecture":"amd64","history":null,"config":{"Env":null,"Labels":null,"Cmd":null}}'
    described = {"mediaType": OCI_CONFIG, **await Pusher(ours.host).blob("a", config)}
    ours.faults["/manifests/1"] = sends(_manifest(config=described))
    image = await _read(ours)
    assert (image.environment, image.labels, image.history, image.start) == ({}, {}, (), ())


async def test_an_index_of_indexes_is_refused_before_it_is_followed_further(ours: LoopbackRegistry) -> None:
    inner = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    entry = {**_descriptor(digest=digest(inner), size=len(inner)), "platform": {"os": "linux", "architecture": "amd64"}}
    ours.faults[f"/manifests/{digest(inner)}"] = sends(inner)
    ours.faults["/manifests/1"] = sends(json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    with pytest.raises(Malformed, match="index of indexes"):
        await _read(ours)


@pytest.mark.parametrize(
    "link",
    ['<http://169.254.169.254/>; rel="next"', '</v2/other/referrers/x>; rel="next"', '<//10.0.0.1/>; rel="next"'],
)
async def test_a_next_page_elsewhere_is_not_asked_for(ours: LoopbackRegistry, link: str) -> None:
    subject = "sha256:" + "0" * 64
    page = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    ours.faults[f"/referrers/{subject}"] = sends(page, Link=link)
    async with Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        with pytest.raises(Malformed, match="outside of the repository"):
            await Registry(outside).referrers(ImageReference.parse(f"{ours.host}/a@{subject}"))


async def test_pages_of_referrers_are_followed_and_end(ours: LoopbackRegistry) -> None:
    subject = "sha256:" + "0" * 64
    asked = 0

    async def pages(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        body = {"schemaVersion": 2, "manifests": [_descriptor(artifactType=SARIF)]}
        link = f'</v2/a/referrers/{subject}?last={asked}>; rel="next"'
        return web.json_response(body, headers={"Link": link})

    ours.faults[f"/referrers/{subject}"] = pages
    async with Outside(Allowed.listed([f"http://{ours.host}"])) as outside:
        found = await Registry(outside).referrers(ImageReference.parse(f"{ours.host}/a@{subject}"), SARIF)
    assert len(found) == asked == 10


async def test_a_registry_inside_is_read_only_where_it_is_listed(ours: LoopbackRegistry) -> None:
    ours.asked.clear()
    async with Outside() as outside:
        with pytest.raises(NotAllowed, match="among the allowed hosts"):
            await Registry(outside).image(ImageReference.parse(f"{ours.host}/a:1"), "linux/amd64")
    assert ours.asked == []


def _whole_story(error: BaseException) -> str:
    def each(one: BaseException | None) -> Iterator[str]:
        while one is not None:
            yield f"{one} {one!r}"
            one = one.__cause__ or one.__context__

    return " ".join(each(error))
