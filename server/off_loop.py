"""Runs work whose size a request chooses on threads, so that it does not block the event loop for all others.

What belongs to a small request is done at once, which is faster than a thread. The rest waits for one of two pools, so
that very large requests keep only each other waiting. In both, what came first is finished first: pieces of one request
do not wait behind the first pieces of those after it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

from server.gates.request_context import body_bytes_var

# Up to here all of a request's work takes a millisecond or two.
SMALL_BYTES = 8192
# From here on it may be a second.
HUGE_BYTES = 1 << 18
_NUM_LARGE_THREADS = 2

T = TypeVar("T")

# Numbers requests in the order in which they first wanted something done.
_number_var: ContextVar[int | None] = ContextVar("off_loop_number", default=None)


class _Pool:
    """Threads that take the work of whoever came first.

    Args:
        num_threads: there are.
        name: of them.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self.executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._due: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        self._pieces = itertools.count()

    def submit(self, number: int, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            heapq.heappush(self._due, (number, next(self._pieces), future, work))
        self.executor.submit(self._do_next)
        return future

    def _do_next(self) -> None:
        with self._lock:
            _, _, future, work = heapq.heappop(self._due)
        if not future.set_running_or_notify_cancel():
            return  # its client has left
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


class OffLoop:
    """Runs work off the event loop where it may be long."""

    def __init__(self) -> None:
        self._large = _Pool(_NUM_LARGE_THREADS, "large")
        self._huge = _Pool(1, "huge")
        self._numbers = itertools.count()

    async def run(self, work: Callable[[], T]) -> T:
        """Returns what comes of some work for the request being served.

        Args:
            work: touches nothing that others change.
        """
        num_bytes = body_bytes_var.get()
        if num_bytes <= SMALL_BYTES:
            return work()
        number = _number_var.get()
        if number is None:
            number = next(self._numbers)
            _number_var.set(number)
        pool = self._huge if num_bytes > HUGE_BYTES else self._large
        return await asyncio.wrap_future(pool.submit(number, work))

    def close(self) -> None:
        """Begins nothing more."""
        for pool in (self._large, self._huge):
            pool.executor.shutdown(wait=False, cancel_futures=True)
