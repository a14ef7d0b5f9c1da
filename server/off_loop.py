"""Work whose size a request chooses, done on threads: the event loop is everybody's.

What belongs to a small request is done at once, which is faster than a thread. The rest waits for one of two pools, so
that very large requests keep only each other waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.request_context import body_bytes_var

# Up to here all of a request's work takes a millisecond or two.
SMALL_BYTES = 8192
# From here on it may be a second.
HUGE_BYTES = 1 << 18
_NUM_LARGE_THREADS = 2

T = TypeVar("T")


class OffLoop:
    """Runs work off the event loop where it may be long."""

    def __init__(self) -> None:
        self._large = ThreadPoolExecutor(_NUM_LARGE_THREADS, thread_name_prefix="large")
        self._huge = ThreadPoolExecutor(1, thread_name_prefix="huge")

    async def run(self, work: Callable[[], T]) -> T:
        """Returns what comes of some work for the request being served.

        Args:
            work: touches nothing that others change.
        """
        num_bytes = body_bytes_var.get()
        if num_bytes <= SMALL_BYTES:
            return work()
        pool = self._huge if num_bytes > HUGE_BYTES else self._large
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def close(self) -> None:
        """Begins nothing more."""
        for pool in (self._large, self._huge):
            pool.shutdown(wait=False, cancel_futures=True)
