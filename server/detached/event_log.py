"""The events of a reply, kept so that a lost connection can go on where it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

from server.wire.errors import ApiError

# Sent together to one who is behind.
_MAX_EVENTS_TOGETHER = 256
_END = b"\n\n"


class EventLog:
    """Events, numbered from 0, while they are written and after.

    Args:
        take: asks for room for so many bytes more. Where there is none, nothing is kept: half a reply is of no use.
        shows_numbers: give each event its number as the `id` that browsers send back.

    Attributes:
        num_bytes: kept.
        is_over: no more will come.
    """

    def __init__(self, take: Callable[[EventLog, int], bool], *, shows_numbers: bool = False) -> None:
        self._take = take
        self._shows_numbers = shows_numbers
        self._events: list[bytes] = []
        self._place = 0  # of the next event, behind the end unless it is written again
        self._num_events = 0  # also where they are not kept
        self._news: set[asyncio.Future[None]] = set()
        self.num_bytes = 0
        self._num_readers = 0
        self._left_at = time.monotonic()
        self.is_over = False
        self._is_dropped = False

    @property
    def events(self) -> list[bytes]:
        """All there are; none where they became too many."""
        return self._events

    @property
    def idle_s(self) -> float:
        """How long nobody has followed it."""
        return 0.0 if self._num_readers else time.monotonic() - self._left_at

    def write(self, data: bytes) -> None:
        """Takes events.

        Raises:
            RepeatedOtherwiseError: what is written again is not what was there.
        """
        for event in data.split(_END)[:-1]:
            self._write(event + _END)
        self._wake()

    def _write(self, event: bytes) -> None:
        number, self._place = self._place, self._place + 1
        self._num_events = max(self._num_events, self._place)
        if self._shows_numbers:
            event = b"id: %d\n" % number + event
        if number < len(self._events):
            if self._events[number] != event:
                raise RepeatedOtherwiseError
        elif not self._is_dropped:
            self._events.append(event)
            if self._take(self, len(event)):
                self.num_bytes += len(event)
            else:
                self._is_dropped, self._events, self.num_bytes = True, [], 0

    def rewind(self) -> None:
        """Has what follows written over what is there, which it must equal."""
        self._place = 0

    def forward(self) -> None:
        """Has what follows written at the end, whatever was written again before."""
        self._place = max(self._place, self._num_events)

    def end(self) -> None:
        """Says that no more will come."""
        self.is_over = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, set()
        for future in news:
            if not future.done():
                future.set_result(None)

    def require_kept(self) -> None:
        """Returns if it can be followed, which is asked before a reply begins.

        Raises:
            ApiError: its events are not kept any more.
        """
        if self._is_dropped:
            raise events_are_gone()

    async def follow(self, start: int, failure: Callable[[ApiError, int], bytes]) -> AsyncGenerator[bytes, None]:
        """Yields events from one on, until the last.

        Args:
            start: number of the first.
            failure: writes the event, with its number, that a follower's stream ends with where the events are not
                kept any more.
        """
        self._num_readers += 1
        try:
            while True:
                if self._is_dropped:
                    yield failure(events_are_gone(), start)
                    return
                if batch := self._events[start : start + _MAX_EVENTS_TOGETHER]:
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
    """What was generated again is not what it was."""


def events_are_gone() -> ApiError:
    """Says that a stream cannot be taken up."""
    return ApiError(
        400,
        "The events of this reply are not kept any more; ask for the reply without 'stream'.",
        code="events_not_kept",
        param="stream",
    )
