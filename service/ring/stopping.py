"""The wish to stop, which loops look at before they take on more.

A loop that sees it returns instead of claiming; what it has claimed already it finishes, and is cancelled only when
that takes too long. So an effect that was begun is also settled.
"""

from __future__ import annotations

import asyncio


class Stopping:
    """Asked once: finish what is under way. Asked twice: stop at once."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._urgent = asyncio.Event()

    def ask(self) -> None:
        """Somebody wants the service to end; the second time they do not want to wait."""
        if self._asked.is_set():
            self._urgent.set()
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether nothing new is to be taken on."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Until it is asked."""
        await self._asked.wait()

    async def wait_urgent(self) -> None:
        """Until it is asked a second time."""
        await self._urgent.wait()
