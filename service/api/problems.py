"""Errors as RFC 9457 problem documents, for every answer that is one."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from service.ring.ports import Refused, Unavailable

logger = logging.getLogger(__name__)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Problem(Exception):
    """An error with its document."""

    def __init__(self, status: int, title: str, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}


@web.middleware
async def as_problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn whatever went wrong into a problem document, and put the security headers on every answer."""
    try:
        response = await handler(request)
    except Problem as problem:
        response = _answer(problem)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = _answer(Problem(error.status, error.reason, f"{request.method} {request.path}: {error.reason}"))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
    except Unavailable as error:
        response = _answer(Problem(503, "Service Unavailable", str(error)))
        response.headers["Retry-After"] = "5"
    except Refused as error:
        response = _answer(Problem(409, "Conflict", str(error)))
    response.headers.update(HEADERS)
    return response


def _answer(problem: Problem) -> web.Response:
    return web.Response(
        status=problem.status,
        body=json.dumps(problem.body, default=str).encode(),
        content_type="application/problem+json",
    )
