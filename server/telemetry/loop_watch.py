"""Watches the event loop, and tells Prometheus for how long one task or step blocked it or the engine's loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model.contract.messages import EngineStats
from model.contract.watchdog import Watchdog
from server.gates.request_context import NO_REQUEST, request_id_var

# Whatever blocks the loop for longer is felt in every stream.
MAX_BLOCKED_S = 0.25
_BEAT_S = 0.05


class EventLoopWatchdog(Watchdog):
    """Watches the event loop in which its context is entered."""

    def __init__(self) -> None:
        super().__init__("the event loop", MAX_BLOCKED_S, self._current_request)
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watches for as long as the context lasts."""
        self._loop = asyncio.get_running_loop()
        self.start()
        beating = asyncio.create_task(self._beat(), name="watchdog")
        try:
            yield
        finally:
            beating.cancel()
            self.stop()

    async def _beat(self) -> None:
        while True:
            self.begin(_BEAT_S)
            await asyncio.sleep(_BEAT_S)
            self.end()

    def _current_request(self) -> str:
        task = asyncio.current_task(self._loop)
        if task is None:
            return NO_REQUEST
        # From Python 3.12 on its context holds the id; before that its name does, where `name_task` set it.
        context: Mapping[Any, Any] = getattr(task, "get_context", dict)()
        return str(context.get(request_id_var, task.get_name()))


class LoopCollector(Collector):
    """Collects how often and for how long the event loop and the engine's loop were blocked."""

    def __init__(self, watchdog: Watchdog, read_stats: Callable[[], EngineStats]) -> None:
        self._watchdog = watchdog
        self._read_stats = read_stats

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of both loops."""
        stats = self._read_stats()
        longest = GaugeMetricFamily(
            "qwen:loop_blocked_seconds_max", "Longest time that one thing kept a loop.", labels=["loop"]
        )
        longest.add_metric(["http"], self._watchdog.longest_s)
        longest.add_metric(["engine"], stats.longest_blocked_s)
        yield longest
        count = CounterMetricFamily(
            "qwen:loop_blocked", "Times that one thing kept a loop for longer than it may.", labels=["loop"]
        )
        count.add_metric(["http"], self._watchdog.num_blocked)
        count.add_metric(["engine"], stats.num_blocked_total)
        yield count
