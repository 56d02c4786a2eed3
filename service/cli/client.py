"""The HTTP client of the command: one call, and errors that say what was asked, of whom, and what to do next."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from pathlib import Path
from typing import Any

from service.bodies import start_of

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT_S = 15.0
MAX_ANSWER_BYTES = 32 * 1024 * 1024


class ApiError(Exception):
    """The service did not do what was asked. ``status`` is 0 when it did not answer at all."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """Asks one Serinus over HTTP."""

    def __init__(self, url: str | None = None, token_file: Path | None = None) -> None:
        self.url = (url or os.environ.get("SERINUS_URL") or DEFAULT_URL).rstrip("/")
        self._token = _token(token_file)

    def get(self, path: str, **query: str | None) -> Any:
        """GET below /api/v1; the JSON answer."""
        return self._ask("GET", path, query={k: v for k, v in query.items() if v is not None})

    def send(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """POST or PUT below /api/v1; the JSON answer. A repeat after a lost answer has the effect of once."""
        return self._ask(method, path, body=body)

    def _ask(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: dict[str, Any] | None = None
    ) -> Any:
        status, text = asyncio.run(self._fetch(method, f"{self.url}/api/v1{path}", query or {}, body))
        try:
            answer = json.loads(text)
        except ValueError:
            raise ApiError(f"{self.url} answered {status} with something that is not Serinus'", status) from None
        if status >= 400:
            hint = "; set SERINUS_TOKEN or SERINUS_TOKEN_FILE" if status == 401 else ""
            raise ApiError(f"{answer.get('detail', text[:200])}{hint}", status)
        return answer

    async def _fetch(
        self, method: str, url: str, query: dict[str, str], body: dict[str, Any] | None
    ) -> tuple[int, str]:
        import aiohttp

        headers = {"Idempotency-Key": str(uuid.uuid4())} if body is not None else {}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, url, params=query, json=body, headers=headers) as response,
            ):
                raw = await start_of(response, MAX_ANSWER_BYTES)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(
                f"no answer from Serinus at {self.url}: {error or type(error).__name__}. "
                "Is it running? Another address: --url or SERINUS_URL"
            ) from None
        if len(raw) > MAX_ANSWER_BYTES:
            raise ApiError(f"{url} answers with more than {MAX_ANSWER_BYTES:,} bytes; ask for less", status)
        return status, raw.decode("utf-8", "replace")


def _token(token_file: Path | None) -> str:
    file = token_file or (Path(f) if (f := os.environ.get("SERINUS_TOKEN_FILE")) else None)
    if file is None:
        return os.environ.get("SERINUS_TOKEN", "")
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(f"cannot read the token file {file}: {error}") from None
