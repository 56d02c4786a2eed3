"""A registry on loopback that follows the OCI distribution specification as far as the client goes, and can misbehave.

Content is put in through the same API as into a real registry, so that one contract serves all of them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
TOKEN = "t0ken"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


class LoopbackRegistry:
    """``auth`` is "", "basic" or "token"; ``faults`` answer instead for paths that end with their key."""

    def __init__(self, auth: str = "", user: str = "anna", password: str = "word") -> None:
        self.auth = auth
        self.basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.faults: dict[str, Handler] = {}
        self.asked: list[tuple[str, str | None]] = []
        """Paths with queries, and the Authorization that came with them."""
        self.referrers_api = True
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.host = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path_qs, request.headers.get("Authorization")))
        for end, fault in self.faults.items():
            if request.path.endswith(end):
                return await fault(request)
        if request.path == "/token":
            if request.headers.get("Authorization") != self.basic:
                return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
            return web.json_response({"token": TOKEN, "expires_in": 60})
        wanted = {"": None, "basic": self.basic, "token": f"Bearer {TOKEN}"}[self.auth]
        if wanted is not None and request.headers.get("Authorization") != wanted:
            service = 'service="here, \\"there\\"",scope="repository:x:pull"'
            challenge = (
                'Basic realm="here"'
                if self.auth == "basic"
                else f'Bearer realm="http://{self.host}/token?a=b",{service}'
            )
            return web.json_response(
                {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
                status=401,
                headers={"WWW-Authenticate": challenge},
            )
        name, what, key = self._path(request.path)
        match request.method, what:
            case "POST", "blobs":
                return web.Response(status=202, headers={"Location": f"/v2/{name}/blobs/uploads/1"})
            case "PUT", "blobs":
                self._blobs[request.query["digest"]] = await request.read()
                return web.Response(status=201)
            case "PUT", "manifests":
                body = await request.read()
                for known in {key, digest(body)}:
                    self._manifests[name, known] = (request.content_type, body)
                return web.Response(status=201)
            case "GET", "manifests" if (name, key) in self._manifests:
                kind, body = self._manifests[name, key]
                return web.Response(body=body, headers={"Content-Type": kind, "Docker-Content-Digest": digest(body)})
            case "GET", "blobs" if key in self._blobs:
                return web.Response(body=self._blobs[key])
            case "GET", "referrers" if self.referrers_api:
                return web.json_response({"schemaVersion": 2, "manifests": self._referrers(name, key)})
        return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown\x1b[2J"}]}, status=404)

    def _path(self, path: str) -> tuple[str, str, str]:
        parts = path.removeprefix("/v2/").split("/")
        at = max(i for i, part in enumerate(parts) if part in ("manifests", "blobs", "referrers"))
        return "/".join(parts[:at]), parts[at], "/".join(parts[at + 1 :])

    def _referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        found = []
        for (repository, key), (kind, body) in self._manifests.items():
            document = json.loads(body)
            if (
                repository == name
                and key.startswith("sha256:")
                and document.get("subject", {}).get("digest") == subject
            ):
                artifact = document.get("artifactType") or document["config"]["mediaType"]
                descriptor = {"mediaType": kind, "digest": key, "size": len(body), "artifactType": artifact}
                found.append({**descriptor, "annotations": document.get("annotations", {})})
        return found


@asynccontextmanager
async def served(registry: LoopbackRegistry) -> AsyncIterator[LoopbackRegistry]:
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", registry.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    registry.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield registry
    finally:
        await runner.cleanup()


class Pusher:
    """Puts content into any registry through its API."""

    def __init__(self, host: str, authorization: str = "") -> None:
        self._base = f"http://{host}/v2"
        self._headers = {"Authorization": authorization} if authorization else {}

    async def blob(self, repository: str, body: bytes) -> dict[str, Any]:
        """A blob; its descriptor without media type."""
        async with aiohttp.ClientSession(headers=self._headers) as session:
            async with session.post(f"{self._base}/{repository}/blobs/uploads/") as begun:
                assert begun.status == 202, await begun.text()
                place = begun.url.join(URL(begun.headers["Location"]))
            async with session.put(
                place.update_query(digest=digest(body)), data=body, headers={"Content-Type": "application/octet-stream"}
            ) as done:
                assert done.status == 201, await done.text()
        return {"digest": digest(body), "size": len(body)}

    async def manifest(self, repository: str, key: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """A manifest or index under a tag, or under its digest for an empty key; its descriptor."""
        body = json.dumps(document).encode()
        async with (
            aiohttp.ClientSession(headers=self._headers) as session,
            session.put(
                f"{self._base}/{repository}/manifests/{key or digest(body)}",
                data=body,
                headers={"Content-Type": document["mediaType"]},
            ) as done,
        ):
            assert done.status == 201, await done.text()
        return {"mediaType": document["mediaType"], "digest": digest(body), "size": len(body)}

    async def image(
        self,
        repository: str,
        key: str,
        *,
        config: Mapping[str, Any] | None = None,
        history: tuple[str, ...] = (),
        layers: tuple[bytes, ...] = (b"base", b"own"),
        platform: str = "linux/amd64",
    ) -> dict[str, Any]:
        """An image; its descriptor with its platform."""
        os, architecture = platform.split("/")
        body = {
            "os": os,
            "architecture": architecture,
            "created": "2026-11-01T00:00:00Z",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            "history": [{"created_by": step} for step in history],
        }
        described = await self.blob(repository, json.dumps(body).encode())
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **described},
            "layers": [{"mediaType": LAYER, **await self.blob(repository, layer)} for layer in layers],
        }
        descriptor = await self.manifest(repository, key, document)
        return {**descriptor, "platform": {"os": os, "architecture": architecture}}

    async def index(self, repository: str, tag: str, *manifests: Mapping[str, Any]) -> dict[str, Any]:
        """A multi-arch index; its descriptor."""
        return await self.manifest(
            repository, tag, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(manifests)}
        )

    async def attached(
        self, repository: str, subject: Mapping[str, Any], kind: str, report: bytes, created: str = ""
    ) -> dict[str, Any]:
        """An artifact that refers to ``subject``; its descriptor, with its annotations and type."""
        annotations = {"org.opencontainers.image.created": created} if created else {}
        empty = await self.blob(repository, b"{}")
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", **empty},
            "layers": [{"mediaType": kind, **await self.blob(repository, report)}],
            "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
            "annotations": annotations,
        }
        descriptor = await self.manifest(repository, "", document)
        return {**descriptor, "artifactType": kind, "annotations": annotations}


async def hang(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


def redirect(target: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": target})

    return answer


def sends(body: bytes, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers={key.replace("_", "-"): value for key, value in headers.items()})

    return answer


def fails(status: int, **headers: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={key.replace("_", "-"): value for key, value in headers.items()})

    return answer
