"""The file of recorded requests: JSON lines, one request each, the same form for all three protocols.

    {"id": "r-1", "path": "/v1/models/ranker:predict", "body": {"instances": [[1.0, 2.0]]}}
    {"id": "r-2", "path": "/v2/models/ranker/infer", "body": {"inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}}          (on one line)
    {"id": "r-3", "path": "/score", "body": {"user": "u7"}, "headers": {"X-Tenant": "a"}}

``path`` is what follows the server's address. ``body`` is sent as JSON; without one the request is a GET, or what
``method`` says. ``id`` names the request in reports; without it the line's number does. Empty lines are passed over.

To record: let the client, a gateway or the model server's own request log write path and body of every n-th request
for a day, so that rare kinds of requests are in it too; keep a few hundred, and take out what identifies people. A
path without a version (``/v1/models/ranker:predict``) suits versions that serve different model versions. Requests
must be safe to repeat: each is sent twice to either side. Headers that carry credentials are refused, because the file
is configuration and no place for secrets.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.model.gates.golden import Protocol

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_REQUESTS = 10_000
MAX_HEADERS = 20

_SEGMENT = r"[A-Za-z0-9._~:@!$&'()*+,;=-]+"
# No percent signs before the query: an encoded dot or slash would be a way out that the check below does not see.
_PATH = re.compile(rf"(/{_SEGMENT})+(\?[A-Za-z0-9._~:@!$&'()*+,;=/%-]*)?")
_TENSORFLOW_SERVING = re.compile(r"(/v1/models/[^/:]+(?:/(?:versions|labels)/[^/:]+)?):(?:predict|classify|regress)")
_KSERVE_V2 = re.compile(r"(/v2/models/[^/]+(?:/versions/[^/]+)?)/infer")
_ID = re.compile(r"[A-Za-z0-9._:/@+-]{1,64}")
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,1000}")
_KEYS = {"id", "method", "path", "body", "headers"}
_SECRET = {"authorization", "cookie", "proxy-authorization"}
_CONNECTION = {
    "accept-encoding", "connection", "content-encoding", "content-length", "expect", "host", "keep-alive", "te",
    "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip


class RequestsError(ValueError):
    """The file of requests cannot be used. The message names the file, the line and what to change."""


@dataclass(frozen=True, slots=True)
class GoldenRequest:
    """One recorded request, checked for form."""

    id: str
    path: str
    protocol: Protocol
    method: str = "POST"
    body: bytes = b""
    """JSON; empty for a request without a body."""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def ready_path(self) -> str | None:
        """Where its server says whether the model is ready; None where the protocol knows no such place."""
        match self.protocol:
            case Protocol.TENSORFLOW_SERVING if found := _TENSORFLOW_SERVING.fullmatch(self.path):
                return found[1]
            case Protocol.KSERVE_V2 if found := _KSERVE_V2.fullmatch(self.path):
                return f"{found[1]}/ready"
            case _:
                return None


def read(file: Path, protocol: Protocol | None = None, *, below: Path | None = None) -> tuple[GoldenRequest, ...]:
    """All requests of a file, at least one; raises RequestsError.

    protocol : of all requests; None: each path tells
    below : the file must lie in this folder, symbolic links followed
    """
    name = file if below is None else file.relative_to(below)
    what = f"the golden requests {name}"
    try:
        real = file.resolve(strict=True)
        if below is not None and not real.is_relative_to(below.resolve(strict=True)):
            raise RequestsError(f"{what} lead out of the folder of golden requests; keep the file there")
        # Not to wait for a writer where somebody put a pipe.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RequestsError(f"{what} are no regular file")
            given = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise RequestsError(f"cannot read {what}: {why}; record some, one JSON object a line") from None
    if len(given) > MAX_FILE_BYTES:
        raise RequestsError(f"{what} are larger than {MAX_FILE_BYTES // 1024**2} MiB; keep fewer")
    found: list[GoldenRequest] = []
    for number, line in _lines(given):
        if len(found) == MAX_REQUESTS:
            raise RequestsError(f"{what} are more than {MAX_REQUESTS:,}; keep fewer")
        found.append(_request(line, number, protocol, f"{what}, line {number}"))
    if not found:
        raise RequestsError(f"{what} are empty; record some, one JSON object a line")
    if len({one.id for one in found}) < len(found):
        raise RequestsError(f"two of {what} have the same id; number them")
    return tuple(found)


def _lines(given: bytes) -> Iterator[tuple[int, bytes]]:
    start, number = 0, 0
    while start < len(given):
        end = given.find(b"\n", start)
        end = len(given) if end < 0 else end
        number += 1
        if line := given[start:end].strip():
            yield number, line
        start = end + 1


def _request(line: bytes, number: int, protocol: Protocol | None, where: str) -> GoldenRequest:
    if len(line) > MAX_LINE_BYTES:
        raise RequestsError(f"{where}: longer than {MAX_LINE_BYTES // 1024**2} MiB")
    try:
        given = json.loads(line)
        body = json.dumps(given["body"], separators=(",", ":")).encode() if "body" in given else b""
    except (ValueError, RecursionError, TypeError):
        raise RequestsError(f"{where}: no JSON object; write one request a line") from None
    if not isinstance(given, dict):
        raise RequestsError(f"{where}: no JSON object; write one request a line")
    if unknown := sorted(set(given) - _KEYS):
        raise RequestsError(f"{where}: unknown key {unknown[0][:40]!r}; known: {', '.join(sorted(_KEYS))}")
    path = given.get("path")
    if not isinstance(path, str) or len(path) > 2000 or not _PATH.fullmatch(path) or _climbs(path):
        raise RequestsError(
            f"{where}: 'path' must be what follows the server's address, such as /v1/models/ranker:predict"
        )
    method = given.get("method", "POST" if body else "GET")
    if method not in ("GET", "POST", "PUT"):
        raise RequestsError(f"{where}: 'method' must be GET, POST or PUT")
    name = given.get("id", f"line-{number}")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise RequestsError(f"{where}: 'id' must be 1 to 64 letters, digits and . _ : / @ + -")
    return GoldenRequest(
        name, path, protocol or _told_by(path), method, body, _headers(given.get("headers", {}), where)
    )


def _climbs(path: str) -> bool:
    return any(part in (".", "..") for part in path.partition("?")[0].split("/"))


def _told_by(path: str) -> Protocol:
    if _TENSORFLOW_SERVING.fullmatch(path):
        return Protocol.TENSORFLOW_SERVING
    return Protocol.KSERVE_V2 if _KSERVE_V2.fullmatch(path) else Protocol.HTTP_JSON


def _headers(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, dict) or len(given) > MAX_HEADERS:
        raise RequestsError(f"{where}: 'headers' must be an object with at most {MAX_HEADERS} texts")
    for name, value in given.items():
        if not _HEADER.fullmatch(name) or not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            raise RequestsError(f"{where}: 'headers' must hold names and printable ASCII texts")
        if name.lower() in _SECRET:
            raise RequestsError(f"{where}: the header {name} carries credentials; a file of requests must hold none")
        if name.lower() in _CONNECTION:
            raise RequestsError(f"{where}: the header {name} belongs to the connection; leave it out")
    return given
