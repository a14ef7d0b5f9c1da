"""Runs work whose size a request chooses on threads, so that it does not block the event loop for all others.

Work for a small request is done at once, which is faster than a thread. The rest waits for one of two pools, so that
very large requests keep only each other waiting. In both, callers take turns, and later pieces of a request go before
the first pieces of the caller's next one.
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

from server.gates.callers import Caller, caller_var
from server.gates.request_context import body_bytes_var

# Up to here all of a request's work takes a millisecond or two.
SMALL_BYTES = 8192
# From here on it may be a second.
HUGE_BYTES = 1 << 18
_NUM_LARGE_THREADS = 2
# So many callers' turns are remembered before those that have passed are dropped.
_MAX_TURNS = 1024

T = TypeVar("T")
# A time that advances with the turns that are taken, and a number for those of the same time.
Turn = tuple[float, int]


class FairPool:
    """Threads for which callers take turns: one who asks for much waits for those who ask for little, not they for it.

    This is start-time fair queueing: a caller's next turn is 1/weight after the last one, and no earlier than the turn
    that was taken last.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._due: list[tuple[Turn, int, Future[Any], Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._next_turns: dict[Caller, float] = {}

    def next_turn(self, caller: Caller) -> Turn:
        """Returns the turn of a caller's next request."""
        with self._lock:
            start = max(self._now, self._next_turns.get(caller, 0.0))
            if len(self._next_turns) >= _MAX_TURNS:
                self._next_turns = {other: time for other, time in self._next_turns.items() if time > self._now}
            self._next_turns[caller] = start + 1 / caller.weight
            return start, next(self._numbers)

    def submit(self, turn: Turn, work: Callable[[], T]) -> Future[T]:
        """Has a thread do some work when it is its turn; cancelled before that, it is not done."""
        future: Future[T] = Future()
        with self._lock:
            heapq.heappush(self._due, (turn, next(self._numbers), future, work))
        self._executor.submit(self._do_next)
        return future

    def _do_next(self) -> None:
        with self._lock:
            (start, _), _, future, work = heapq.heappop(self._due)
            self._now = max(self._now, start)
        if not future.set_running_or_notify_cancel():
            return  # its client has left
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    def close(self) -> None:
        """Begins nothing more; what has not begun is cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for _, _, future, _ in self._due:
                future.cancel()


# The turn of the request being served, in the pool that its size chooses.
_turn_var: ContextVar[Turn | None] = ContextVar("off_loop_turn", default=None)


def begin_request(caller: Caller) -> None:
    """Has work that follows be done for a new request of `caller`, whose body has not been read.

    A request may find the variables of another one: asyncio calls a connection in the context of whoever resumed it, so
    that the next request would keep the turn of the last one, and so would the lines of a batch that of their batch.
    """
    caller_var.set(caller)
    body_bytes_var.set(0)
    _turn_var.set(None)


class OffLoop:
    """Runs work off the event loop where it may be long."""

    def __init__(self) -> None:
        self._large = FairPool(_NUM_LARGE_THREADS, "large")
        self._huge = FairPool(1, "huge")

    async def run(self, work: Callable[[], T]) -> T:
        """Returns the result of work for the request being served; it must not touch what others change."""
        num_bytes = body_bytes_var.get()
        if num_bytes <= SMALL_BYTES:
            return work()
        pool = self._huge if num_bytes > HUGE_BYTES else self._large
        turn = _turn_var.get()
        if turn is None:
            turn = pool.next_turn(caller_var.get())
            _turn_var.set(turn)
        return await asyncio.wrap_future(pool.submit(turn, work))

    def close(self) -> None:
        """Begins nothing more."""
        self._large.close()
        self._huge.close()
