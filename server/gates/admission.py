"""Decides whether a request may wait for the engine, and says when a refused one may try again.

The queue is bounded in requests and in prompt tokens. A request is looked at twice: when its headers are there, by the
size of its body, so that a full server spends nothing on it; and when its prompt is known, exactly.

One caller alone may fill the queue. When it is full, a caller who has less than their share of it is still let in, so
with k callers at most 1 + 1/2 + ... + 1/k times the bound waits.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from model.contract.errors import EngineUnavailableError
from server.engine.client import EngineClient
from server.gates.callers import Caller, CallerCounts, Waiting
from server.telemetry.metrics import Metrics
from server.wire.errors import ENGINE_UNAVAILABLE, server_overloaded

_RATE_WINDOW_S = 60.0
_RETRY_AFTER_UNKNOWN_S = 5


class StartRate:
    """How fast requests have come to their first token in the last minute."""

    def __init__(self) -> None:
        self._starts: deque[tuple[float, int]] = deque(maxlen=512)

    def note(self, num_tokens: int) -> None:
        """Counts a request of `num_tokens` prompt tokens that started now."""
        self._starts.append((time.monotonic(), num_tokens))

    def seconds_for(self, num_requests: int, num_tokens: int) -> float | None:
        """Returns in how many seconds so many will have started; None where nothing has in the last minute."""
        now = time.monotonic()
        while self._starts and now - self._starts[0][0] > _RATE_WINDOW_S:
            self._starts.popleft()
        if not self._starts:
            return None
        seconds = max(now - self._starts[0][0], 0.1)
        return seconds * max(num_requests / len(self._starts), num_tokens / max(1, sum(n for _, n in self._starts)))


class Admission:
    """Bounds the queue.

    Args:
        max_queue_requests: most requests that may wait for a first token, shared by callers.
        max_queue_tokens: most prompt tokens that may wait; a request that would wait alone is always let in.

    Attributes:
        num_inside: generating requests that were let in and have not been answered to the last byte.
    """

    def __init__(
        self, engine: EngineClient, metrics: Metrics, *, max_queue_requests: int, max_queue_tokens: int
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._max_queue_requests = max_queue_requests
        self._max_queue_tokens = max_queue_tokens
        self._preparing = CallerCounts()
        self.num_inside = 0
        self._rate = StartRate()
        engine.on_start(self._rate.note)

    @contextmanager
    def enter(self, caller: Caller, num_tokens: int) -> Iterator[None]:
        """Lets a new request in; once in, it is served also if the server begins to drain.

        Args:
            num_tokens: prompt tokens, or a lower bound.

        Raises:
            EngineUnavailableError: the server drains, or the engine would not serve it now.
            ApiError: 429, too much waits already.
        """
        try:
            self._engine.require_open()
            self.check(caller, num_tokens)
        except EngineUnavailableError:
            self._metrics.count_rejected(ENGINE_UNAVAILABLE)
            raise
        self.num_inside += 1
        try:
            yield
        finally:
            self.num_inside -= 1

    def check(self, caller: Caller, num_tokens: int) -> None:
        """Returns if another request of `num_tokens` prompt tokens may wait.

        Raises:
            ApiError: 429, too much waits already.
        """
        line = self._engine.waiting
        num_waiting = line.total.num_requests + self._preparing.total()
        num_waiting_tokens = line.total.num_tokens
        own = line.by_caller.get(caller, Waiting())
        share = caller.weight / sum(c.weight for c in {*line.by_caller, *self._preparing, caller})
        if num_waiting >= self._max_queue_requests:
            num_own = own.num_requests + self._preparing[caller]
            if num_own + 1 > share * self._max_queue_requests:
                self._refuse(f"{num_waiting} requests are waiting already", num_waiting, num_waiting_tokens)
        if num_waiting_tokens and num_waiting_tokens + num_tokens > self._max_queue_tokens:
            if own.num_tokens + num_tokens > share * self._max_queue_tokens:
                self._refuse(f"{num_waiting_tokens} prompt tokens are waiting already", num_waiting, num_waiting_tokens)

    def _refuse(self, what: str, num_waiting: int, num_tokens: int) -> None:
        # When half of the queue has started there is room, also for the others who are told the same.
        seconds = self._rate.seconds_for(math.ceil(num_waiting / 2), num_tokens // 2)
        error = server_overloaded(
            f"{what}; please try again later.",
            retry_after_s=_RETRY_AFTER_UNKNOWN_S if seconds is None else math.ceil(seconds),
        )
        self._metrics.count_rejected(error.code or "")
        raise error

    @contextmanager
    def reserve(self, caller: Caller) -> Iterator[None]:
        """Holds a place in the queue while a request is read and encoded.

        Raises:
            EngineUnavailableError: the engine would not serve it now.
            ApiError: 429, too much waits already.
        """
        self._engine.require_ready()
        self.check(caller, 0)
        with self._preparing.one_more(caller):
            yield

    def check_prompt(self, caller: Caller, num_tokens: int) -> None:
        """Checks a request that has a place again, now that its prompt is known.

        Raises:
            ApiError: 429, too many tokens wait already.
        """
        self._preparing.change(caller, -1)  # it must not stand in its own way
        try:
            self.check(caller, num_tokens)
        finally:
            self._preparing.change(caller, 1)
