"""The wish to stop, which loops look at before they take on more.

A loop that sees it returns instead of claiming; what it has claimed already it finishes, and is cancelled only when
that takes too long. So an effect that was begun is also settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Stopping:
    """Asked once: finish what is under way. Asked twice: stop at once.

    begun : called the first time, whoever asks: a signal, or a part that has failed
    """

    def __init__(self, begun: Callable[[], None] = lambda: None) -> None:
        self._begun = begun
        self._asked = asyncio.Event()
        self._urgent = asyncio.Event()

    def ask(self) -> None:
        """Somebody wants the service to end; the second time they do not want to wait."""
        if self._asked.is_set():
            self._urgent.set()
            return
        self._asked.set()
        self._begun()

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
