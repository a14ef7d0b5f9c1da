"""The events of a reply, kept so that a client can go on reading where its connection was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from server.wire.errors import ApiError

# Most events that are sent together to a reader who is behind.
_MAX_EVENTS_TOGETHER = 256
_END = b"\n\n"


class EventLog:
    """Events, numbered from 0, while they are written and after.

    Args:
        take: asks for room for so many bytes more. Where there is none, all events are dropped: a part is of no use.
        shows_numbers: give each event its number as the `id` that browsers send back.

    Attributes:
        events: all events; none where they became too many.
        num_bytes: bytes of the events that are kept.
        is_over: no more events will come.
    """

    def __init__(self, take: Callable[[EventLog, int], bool], *, shows_numbers: bool = False) -> None:
        self._take = take
        self._shows_numbers = shows_numbers
        self.events: list[bytes] = []
        self._place = 0  # number of the next event that is written, which may be a repetition
        self._num_events = 0  # written, also where they are not kept
        self._news: set[asyncio.Future[None]] = set()
        self.num_bytes = 0
        self._num_readers = 0
        self._left_at = time.monotonic()
        self.is_over = False
        self._is_dropped = False

    @property
    def idle_s(self) -> float:
        """Seconds since the last reader left; 0 while there is one."""
        return 0.0 if self._num_readers else time.monotonic() - self._left_at

    def write(self, data: bytes) -> None:
        """Adds events, or compares those that are repeated after `rewind`.

        Raises:
            RepeatedOtherwiseError: a repeated event differs from the first one.
        """
        for event in data.split(_END)[:-1]:
            self._write(event + _END)
        self._wake()

    def _write(self, event: bytes) -> None:
        number, self._place = self._place, self._place + 1
        self._num_events = max(self._num_events, self._place)
        if self._shows_numbers:
            event = b"id: %d\n" % number + event
        if number < len(self.events):
            if self.events[number] != event:
                raise RepeatedOtherwiseError
        elif not self._is_dropped:
            self.events.append(event)
            if self._take(self, len(event)):
                self.num_bytes += len(event)
            else:
                self._is_dropped, self.events, self.num_bytes = True, [], 0

    def rewind(self) -> None:
        """Takes the next events for repetitions of the first ones."""
        self._place = 0

    def forward(self) -> None:
        """Takes the next events for new ones, however many were repeated."""
        self._place = max(self._place, self._num_events)

    def end(self) -> None:
        """Notes that no more events will come."""
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, set()
        for future in news:
            if not future.done():
                future.set_result(None)

    def require_kept(self) -> None:
        """Returns if the events are kept; asked before a reply begins that reads them.

        Raises:
            ApiError: they are not kept any more.
        """
        if self._is_dropped:
            raise events_are_gone()

    async def follow(self, start: int, failure: Callable[[ApiError, int], bytes]) -> AsyncGenerator[bytes, None]:
        """Yields events until the last one.

        Args:
            start: number of the first event.
            failure: makes the last event, with its number, of a stream whose events are not kept any more.
        """
        self._num_readers += 1
        try:
            while True:
                if self._is_dropped:
                    yield failure(events_are_gone(), start)
                    return
                if batch := self.events[start : start + _MAX_EVENTS_TOGETHER]:
                    start += len(batch)
                    yield b"".join(batch)
                elif self.is_over:
                    return
                else:
                    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._news.add(future)
                    await future
        finally:
            self._num_readers -= 1
            self._left_at = time.monotonic()


class RepeatedOtherwiseError(Exception):
    """A reply that was generated again differs from the first one."""


def events_are_gone() -> ApiError:
    """Returns the 400 for a stream that cannot be taken up again."""
    return ApiError(
        400,
        "The events of this reply are not kept any more; ask for the reply without 'stream'.",
        code="events_not_kept",
        param="stream",
    )
