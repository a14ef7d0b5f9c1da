"""How many lines of each caller are in the engine at a time: callers with batches share the slots by weight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.gates.callers import Caller, CallerCounts

# All lines in the engine together, unless one alone is longer.
_MAX_BYTES = 32 << 20


class Slots:
    """Places for `num_slots` lines of all callers together."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._held = CallerCounts()
        self._num_bytes = 0
        self._callers = CallerCounts()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def sharing(self, caller: Caller) -> AsyncIterator[None]:
        """Gives a caller a share of the slots for as long as the context lasts."""
        try:
            with self._callers.one_more(caller):
                yield
        finally:
            async with self._changed:
                self._changed.notify_all()

    async def take(self, caller: Caller, num_bytes: int) -> None:
        """Waits for a slot for a line of a caller who has a share."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_room(caller, num_bytes))
            self._held.change(caller, 1)
            self._num_bytes += num_bytes

    async def give_back(self, caller: Caller, num_bytes: int) -> None:
        """Frees a slot."""
        async with self._changed:
            self._held.change(caller, -1)
            self._num_bytes -= num_bytes
            self._changed.notify_all()

    def _has_room(self, caller: Caller, num_bytes: int) -> bool:
        num_held = self._held.total()
        share = max(1, self._num_slots * caller.weight // sum(other.weight for other in self._callers))
        is_small_enough = not num_held or self._num_bytes + num_bytes <= _MAX_BYTES
        return num_held < self._num_slots and self._held[caller] < share and is_small_enough
