"""Warns when one thing blocks a loop that all requests share, and says where.

A legal request may cost its sender, never the others: what a request can make long has a budget and runs elsewhere.
The watchdog shows where that was forgotten. A thread looks at the loop from outside, because a blocked loop cannot say
so itself. It knows threads and clocks, not what the loop does.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parents[2])
_NOBODY = "-"
_NOWHERE = "a place that nobody saw"


class Watchdog:
    """Watches one thread, which makes all calls.

    Blocked time counts only as far as the process was computing: on a busy machine every loop stands still now and
    then.

    Args:
        name: what the warning calls the loop.
        limit_s: the longest that one thing may take.
        for_whom: returns the id of the request being served; called from another thread.

    Attributes:
        longest_s: the longest time blocked so far.
        num_blocked: how often the limit was passed.
    """

    def __init__(self, name: str, limit_s: float, for_whom: Callable[[], str] = lambda: _NOBODY) -> None:
        self._name = name
        self._limit_s = limit_s
        self._for_whom = for_whom
        self._thread_id = threading.get_ident()
        self._due: float | None = None
        self._cpu_s = 0.0
        self._seen: Counter[tuple[str, str]] = Counter()
        self._stopped = threading.Event()
        self.longest_s = 0.0
        self.num_blocked = 0

    def start(self) -> None:
        """Starts the thread that finds out where the loop is."""
        self._thread_id = threading.get_ident()
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Ends that thread."""
        self._stopped.set()

    def begin(self, allowed_s: float = 0.0) -> None:
        """Marks where one thing begins.

        Args:
            allowed_s: time that it may take beyond the limit, because it waits or is meant to take long.
        """
        self._seen = Counter()
        self._cpu_s = time.process_time()
        self._due = time.monotonic() + allowed_s + self._limit_s

    def end(self) -> None:
        """Marks where it ends, and warns if it took too long."""
        if self._due is None:
            return
        late_s = time.monotonic() - self._due + self._limit_s
        self._due = None
        blocked_s = min(late_s, time.process_time() - self._cpu_s)
        self.longest_s = max(self.longest_s, blocked_s)
        if blocked_s > self._limit_s:
            self.num_blocked += 1
            seen = self._seen.most_common(1)
            request_id, where = seen[0][0] if seen else (_NOBODY, _NOWHERE)
            logger.warning("request %s kept %s busy for %.2f s in %s", request_id, self._name, blocked_s, where)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Leaves out what runs within: neither its time nor its CPU time counts."""
        if self._due is None:
            yield
            return
        left_s, cpu_s = self._due - time.monotonic(), time.process_time() - self._cpu_s
        self._due = None
        try:
            yield
        finally:
            self._cpu_s = time.process_time() - cpu_s
            self._due = time.monotonic() + left_s

    def _look(self) -> None:
        while not self._stopped.wait(self._limit_s / 4):
            due, seen = self._due, self._seen
            if due is not None and time.monotonic() > due - self._limit_s / 2:
                frame = sys._current_frames().get(self._thread_id)
                seen[self._for_whom(), describe(frame)] += 1


def describe(frame: FrameType | None) -> str:
    """Says where a thread is: our innermost function, and the function of others that it calls."""
    innermost = frame
    while frame is not None and not frame.f_code.co_filename.startswith(_ROOT):
        frame = frame.f_back
    if innermost is None:
        return _NOWHERE
    if frame is None or frame is innermost:
        return _name(innermost)
    return f"{_name(frame)} ({_name(innermost)})"


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename.removeprefix(_ROOT + '/')}:{code.co_firstlineno} {code.co_name}"
