"""The replies that go on without their clients, by id and owner, and how much of them is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from server.detached.event_log import EventLog
from server.gates.callers import Caller, CallerCounts
from server.wire.errors import server_overloaded

logger = logging.getLogger(__name__)

# Not yet over, of one caller.
MAX_RUNS_PER_CALLER = 64
MAX_EVENT_BYTES = 8 << 20  # of one reply
MAX_EVENT_BYTES_IN_ALL = 128 << 20
_RETRY_AFTER_S = 10


@dataclass(eq=False, slots=True)
class Run:
    """One reply.

    Attributes:
        state: the reply so far, which the code that runs it shows to others.
        is_cancelled: its owner does not want it any more.
        is_ending: it is over and being stored, which is not interrupted.
    """

    id: str
    caller: Caller
    log: EventLog
    state: Mapping[str, Any] = field(default_factory=dict)
    is_cancelled: bool = False
    is_ending: bool = False
    task: asyncio.Task[None] | None = None

    async def cancel(self) -> None:
        """Cancels the task, unless it is about to end by itself, and waits for its end."""
        self.is_cancelled = True
        if self.task is not None:
            await asyncio.sleep(0)  # a task that has not begun cannot tell that it was cancelled
            if not self.is_ending:
                self.task.cancel()
            await asyncio.wait([self.task])


class Runs:
    """All replies that go on without their clients."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._running = CallerCounts()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._num_bytes = 0

    def get(self, caller: Caller, id: str) -> Run | None:
        """Returns a reply of a caller; None where there is none."""
        run = self._runs.get(id)
        return run if run is not None and run.caller.owner == caller.owner else None

    @contextmanager
    def room(self, caller: Caller, limit: float = MAX_RUNS_PER_CALLER) -> Iterator[None]:
        """Counts a reply of a caller, from before anything is done for it until it is over.

        Raises:
            ApiError: 429, `limit` of the caller's replies have not ended.
        """
        if self._running[caller] >= limit:
            raise server_overloaded(
                f"{limit} of your replies go on in the background already; please try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        with self._running.one_more(caller):
            yield

    def start(
        self,
        id: str,
        caller: Caller,
        work: Callable[[Run], Coroutine[Any, Any, None]],
        *,
        inside: ExitStack,
        keep_s: float = 0.0,
        shows_numbers: bool = False,
    ) -> Run:
        """Begins a reply.

        Args:
            work: writes the reply into the run's log.
            inside: holds its `room`, and is closed when it is over.
            keep_s: how long its events are kept after that.
            shows_numbers: as for `EventLog`.
        """
        run = Run(id, caller, EventLog(self._take, shows_numbers=shows_numbers))
        self._runs[id] = run
        run.task = asyncio.create_task(_logged(work(run)), name=id)
        run.task.add_done_callback(lambda task: self._over(run, inside, keep_s))
        return run

    def _over(self, run: Run, inside: ExitStack, keep_s: float) -> None:
        run.log.end()
        inside.close()
        if keep_s and not run.is_cancelled:
            self._timers[run.id] = asyncio.get_running_loop().call_later(keep_s, self._forget, run.id)
        else:
            self._forget(run.id)

    def _forget(self, id: str) -> None:
        run = self._runs.pop(id, None)
        if run is not None:
            self._num_bytes -= run.log.num_bytes
        timer = self._timers.pop(id, None)
        if timer is not None:
            timer.cancel()

    def _take(self, log: EventLog, num_bytes: int) -> bool:
        """Makes room for a log to grow, by forgetting replies that ended first; returns whether there is room."""
        while self._num_bytes + num_bytes > MAX_EVENT_BYTES_IN_ALL and self._timers:
            self._forget(next(iter(self._timers)))
        has_room = (
            log.num_bytes + num_bytes <= MAX_EVENT_BYTES and self._num_bytes + num_bytes <= MAX_EVENT_BYTES_IN_ALL
        )
        self._num_bytes += num_bytes if has_room else -log.num_bytes
        return has_room

    async def end(self, run: Run) -> None:
        """Ends a reply that its owner does not want any more, and forgets it."""
        await run.cancel()
        self._forget(run.id)

    async def stop(self) -> None:
        """Ends all that run."""
        tasks = [run.task for run in self._runs.values() if run.task is not None and not run.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for id in list(self._timers):
            self._forget(id)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        logger.exception("a reply in the background broke")
