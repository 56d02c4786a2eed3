"""Threads of the gates' own.

A folder on a network that hangs keeps a thread for as long as it hangs. With the loop's threads, which names are looked
up and windows are judged in, a few such looks would stop everything else.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

THREADS_N = 16
"""When all of them hang, further looks wait, are cut off, and so could not look."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_THREADS = ThreadPoolExecutor(THREADS_N, thread_name_prefix="preflight")


async def in_thread(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As ``asyncio.to_thread``, in one of the gates' threads."""
    context = contextvars.copy_context()
    work = functools.partial(context.run, call, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
