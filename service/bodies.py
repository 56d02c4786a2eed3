"""Reads answers of HTTP servers within bounds; the one place that does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The command's help must not wait for it.
    import aiohttp

PIECE_BYTES = 1 << 16


async def start_of(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body where it has at most ``max_bytes``; of a larger one ``max_bytes + 1``, the rest unread.

    So a result longer than ``max_bytes`` says that there is more. Raises what aiohttp raises. ``content.read(n)``
    would not do: it gives what has come so far.
    """
    body = bytearray()
    async for piece in response.content.iter_chunked(PIECE_BYTES):
        body += piece
        if len(body) > max_bytes:
            response.close()
            del body[max_bytes + 1 :]
            break
    return bytes(body)
