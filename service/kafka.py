"""A member of a consumer group, for as long as the process runs and whatever becomes of the brokers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from service.ring.ports import Clock
from service.ring.stopping import Stopping

logger = logging.getLogger(__name__)

RETRY_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses before the next try; the last one again and again."""

ASK_EVERY_S: Final = 10.0
"""A member without partitions asks so often whether the brokers are there."""

SILENT_S: Final = 60.0
"""A client that hears nothing of its brokers for so long is made anew."""

MEMBER: Final[Mapping[str, Any]] = {
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "max_poll_interval_ms": 600_000,
    "session_timeout_ms": 10_000,
    "heartbeat_interval_ms": 1_000,
    "metadata_max_age_ms": 10_000,
}
"""What every consumer of ours is to its group."""


def pause_s(tries: int) -> float:
    """The pause after so many failed tries in a row before this one."""
    return RETRY_S[min(tries, len(RETRY_S) - 1)]


def older(at: datetime | None, now: datetime, seconds: float) -> bool:
    """Whether a moment lies further back than that, or never was."""
    return at is None or (now - at).total_seconds() > seconds


async def stay(
    make: Callable[[], AIOKafkaConsumer],
    consume: Callable[[AIOKafkaConsumer], Awaitable[None]],
    *,
    ended: Callable[[], None],
    turned: Callable[[], None],
    what: str,
    action: str,
    clock: Clock,
    stopping: Stopping,
    survives: tuple[type[Exception], ...] = (KafkaError, OSError),
) -> None:
    """Join and consume until a stop is asked, then leave the group. A lost broker is tried again and again.

    ended : called whenever a client is given up, before it leaves; turned : called before one is made
    what, action : for the log; survives : what is no reason to end
    """
    tries = 0
    while not stopping.asked:
        turned()
        consumer = make()
        try:
            await consumer.start()
            tries = 0
            await consume(consumer)
        except survives as error:
            wait_s = pause_s(tries)
            tries += 1
            logger.warning("%s: %r; trying again in %s s", what, error, wait_s, extra={"action": action})
            await clock.sleep(wait_s)
        finally:
            ended()
            await _left(consumer)


async def _left(consumer: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(5):
            await consumer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        logger.info("consumer did not leave its group: %r", error, extra={"action": "leave_failed"})
