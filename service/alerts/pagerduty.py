"""PagerDuty's Events API v2: trigger and resolve incidents, note changes. The routing key is never shown.

The client library of PagerDuty is synchronous and repeats without bound on 429, so the two calls are made here.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from typing import Any

import aiohttp
from pydantic import SecretStr

from service.bodies import start_of
from service.model.instruction import Page, PageAction
from service.ring.ports import Clock, Refused, Unavailable

logger = logging.getLogger(__name__)

CALLS_PER_MINUTE = 120
"""PagerDuty's limit for one integration key; past it every call of the key fails."""

NOTES_PER_MINUTE = 30
"""Of these calls, changes that wake nobody may take so many; the others are kept for pages."""

NEVER = (400, 413)
"""Answers to the page itself. Every other one speaks of the key, the address or what lies between, which a person can
put right while the page is owed."""

TO_DO = {
    401: "see whether the routing key (pagerduty.routing_key_file) was changed or withdrawn",
    403: "see whether the routing key (pagerduty.routing_key_file) was changed or withdrawn",
    404: "see whether pagerduty.url is the address of the Events API",
    407: "the proxy on the way wants a login; let it pass calls to pagerduty.url",
}
TO_DO_ELSE = "see whether pagerduty.url and the proxy on the way to it are right"

MAX_PAYLOAD_BYTES = 512 * 1024
MAX_ANSWER_BYTES = 64 * 1024


class PagerDutyPager:
    """Implements ``ring.ports.Pager``."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        routing_key: SecretStr,
        clock: Clock,
        *,
        url: str = "https://events.pagerduty.com",
        timeout_s: float = 10.0,
        client_url: str = "",
    ) -> None:
        self._session = session
        self._routing_key = routing_key
        self._clock = clock
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._client_url = client_url
        self._calls: deque[tuple[float, bool]] = deque()
        """The last minute's calls: when, and whether it was a note."""

    async def send(self, page: Page) -> None:
        """See ``Pager.send``."""
        self._count_call(note=page.action is PageAction.CHANGE)
        path, body = payload(page, client_url=self._client_url)
        body["routing_key"] = self._routing_key.get_secret_value()
        data = json.dumps(body).encode()
        if len(data) > MAX_PAYLOAD_BYTES:
            raise Refused(f"the page has {len(data)} bytes; PagerDuty takes {MAX_PAYLOAD_BYTES}")
        try:
            async with self._session.post(
                f"{self._url}{path}",
                data=data,
                headers={"Content-Type": "application/json"},
                timeout=self._timeout,
                # The page of a proxy that wants a login answers 200, and has paged nobody.
                allow_redirects=False,
            ) as response:
                status, retry_after = response.status, response.headers.get("Retry-After")
                said = (await start_of(response, MAX_ANSWER_BYTES)).decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"PagerDuty does not answer: {error or type(error).__name__}") from error
        if status in (200, 202):
            return
        if status == 429 or status >= 500:
            raise Unavailable(f"PagerDuty answers {status}", retry_after_s=_seconds(retry_after, status))
        if status in NEVER:
            raise Refused(f"PagerDuty takes no such page ({status}): {_errors(said)}")
        raise Unavailable(
            f"PagerDuty answers {status}: {_errors(said)}; the page stays owed: {TO_DO.get(status, TO_DO_ELSE)}",
            retry_after_s=_seconds(retry_after, status),
        )

    def _count_call(self, *, note: bool) -> None:
        """Keep below the limit here, so that a storm of ours never locks the key for others."""
        now_s = self._clock.now().timestamp()
        while self._calls and self._calls[0][0] <= now_s - 60:
            self._calls.popleft()
        notes_s = [at_s for at_s, was_note in self._calls if was_note]
        if len(self._calls) >= CALLS_PER_MINUTE:
            wait_s = self._calls[0][0] + 60 - now_s
            raise Unavailable(f"{CALLS_PER_MINUTE} pages were sent in the last minute", retry_after_s=wait_s)
        if note and len(notes_s) >= NOTES_PER_MINUTE:
            wait_s = notes_s[0] + 60 - now_s
            raise Unavailable(f"{NOTES_PER_MINUTE} notes were sent in the last minute", retry_after_s=wait_s)
        self._calls.append((now_s, note))


class NobodyPaged:
    """Stands in where no routing key is set: says once that pages go nowhere, and keeps each in the log."""

    async def send(self, page: Page) -> None:
        """Log the page."""
        logger.warning(
            "no routing key is set, nobody is paged: %s",
            page.summary,
            extra={"action": "page_unsent", "rollout": page.rollout, "page": page.action.value},
        )


def payload(page: Page, *, client_url: str = "") -> tuple[str, dict[str, Any]]:
    """(path, body without the routing key) for one page."""
    at = page.at.isoformat(timespec="milliseconds")
    source = f"serinus {page.service}"
    links = [{"href": f"{client_url}/api/v1/rollouts/{page.rollout}", "text": "Rollout"}] if client_url else []
    if page.action is PageAction.CHANGE:
        body: dict[str, Any] = {
            "payload": {"summary": page.summary, "source": source, "timestamp": at, "custom_details": page.details},
            "links": links,
        }
        return "/v2/change/enqueue", body
    body = {"event_action": page.action.value, "dedup_key": page.dedup_key}
    if page.action is PageAction.TRIGGER:
        body |= {
            "payload": {
                "summary": page.summary,
                "source": source,
                "severity": page.severity.value,
                "timestamp": at,
                "component": page.service.name,
                "group": page.service.namespace,
                "class": "canary",
                "custom_details": page.details,
            },
            "client": "Serinus",
            "links": links,
        }
        if client_url:
            body["client_url"] = client_url
    return "/v2/enqueue", body


def _seconds(retry_after: str | None, status: int) -> float | None:
    try:
        return max(0.0, min(600.0, float(retry_after or "")))
    except ValueError:
        return 30.0 if status == 429 else None


def _errors(said: str) -> str:
    try:
        answer = json.loads(said)
        return "; ".join(str(e) for e in answer.get("errors", [answer.get("message", "")]))[:500]
    except (ValueError, AttributeError, TypeError):
        return said[:200]
