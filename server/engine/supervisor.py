"""Keeps an engine process running: starts it, watches it, notices its death or silence, starts it again.

Knows processes and states, not requests: those are the client's (`server/engine/client.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from enum import StrEnum

import msgspec

from model.contract.engine_config import EngineConfig
from model.contract.messages import (
    AdapterLoaded,
    EngineFailed,
    EngineReady,
    FromEngine,
    LoadProgress,
    Ping,
    StepOutputs,
    ToEngine,
)
from server.engine.link import EngineLink
from server.engine.process import EngineProcess

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 5
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 15.0
# Longer than any step: a chunk of a large model takes a second on a GPU, and minutes on a CPU.
_DEFAULT_TIMEOUT_S = {"cuda": 60.0, "cpu": 600.0}
_MIN_WATCH_INTERVAL_S, _MAX_WATCH_INTERVAL_S = 0.02, 5.0
_PROGRESS_LOG_INTERVAL_S = 5.0


class EngineState(StrEnum):
    """What the engine can do for a request now."""

    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    DRAINING = "draining"
    DEAD = "dead"


class EngineSupervisor:
    """Owns the engine process.

    Args:
        config: returns the configuration of an engine that starts.
        on_adapter: called with the outcome of loading an adapter.
        on_step: called with the outputs of each step.
        on_ready: called each time the engine begins to serve.
        on_lost: called as soon as the process is gone, with all that was in it.
        on_fatal: called with a one-line reason when the engine cannot be brought (back) to life.
        start_timeout_s: the longest silence while it loads.
        timeout_s: the longest silence after that; None chooses by the device.
        module: the engine's entry point (another one in tests).
        first_process: an engine that was started already.

    Attributes:
        state: never DRAINING, which only the client knows.
        ready: the engine's last `EngineReady`; None before the first.
        num_restarts: restarts since the server started.
    """

    def __init__(
        self,
        config: Callable[[], EngineConfig],
        *,
        on_adapter: Callable[[AdapterLoaded], None],
        on_step: Callable[[StepOutputs], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[], None],
        on_fatal: Callable[[str], None],
        start_timeout_s: float,
        timeout_s: float | None,
        module: str,
        first_process: EngineProcess | None = None,
    ) -> None:
        self._config = config
        self._on_adapter = on_adapter
        self._on_step = on_step
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_fatal = on_fatal
        self._start_timeout_s = start_timeout_s
        self._timeout_s = timeout_s
        self._module = module
        self._first_process = first_process
        self._link: EngineLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed: EngineFailed | None = None
        self._is_ready = False
        self._has_worked = False
        self._num_messages = 0
        self._last_progress_log = 0.0
        self.state = EngineState.LOADING
        self.ready: EngineReady | None = None
        self.num_restarts = 0

    def start(self) -> None:
        """Spawns the engine and returns at once."""
        self._task = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def stop(self, *, now: bool = False) -> None:
        """Ends the engine, for good.

        Args:
            now: do not wait for its step to end.
        """
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        link, self._link = self._link, None
        if link is not None:
            await (link.stop(0) if now else link.stop())
        self.state = EngineState.DEAD

    def send(self, message: ToEngine) -> None:
        """Sends a message to the engine that runs now, if any does."""
        if self._link is not None:
            self._link.send(message)

    @property
    def pid(self) -> int | None:
        """The id of the engine process that runs now."""
        return None if self._link is None else self._link.pid

    async def _supervise(self) -> None:
        try:
            await self._keep_alive()
        except Exception as error:
            logger.exception("engine supervision failed")
            self._give_up(f"cannot run the engine process: {error}")

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            failed = await self._run_once()
            failures = 1 if self._has_worked else failures + 1
            if failed.is_startup_error or (self.ready is None and not failed.wants_restart):
                self._give_up(failed.message)
                return
            if failures > MAX_FAILURES_IN_A_ROW:
                self._give_up(f"{failed.message}; that was failure {failures} in a row")
                return
            backoff_s = min(_FIRST_BACKOFF_S * 2 ** (failures - 1), _MAX_BACKOFF_S)
            logger.error("%s; starting the engine again in %.2f s (failure %d)", failed.message, backoff_s, failures)
            await asyncio.sleep(backoff_s)
            self.num_restarts += 1

    def _give_up(self, reason: str) -> None:
        logger.error("the engine is gone for good: %s", reason)
        self.state = EngineState.DEAD
        self._on_fatal(reason)

    async def _run_once(self) -> EngineFailed:
        """Runs one engine process from its birth to its end; returns why it ended."""
        self._failed = None
        self._is_ready = self._has_worked = False
        self._last_progress_log = time.monotonic()
        try:
            process, self._first_process = self._first_process or EngineProcess(self._module), None
            link = self._link = await EngineLink.open(process, self._config(), self._on_message)
        except OSError as error:  # no descriptors or no memory: a moment later there may be
            return EngineFailed(f"cannot start the engine process: {error}", is_startup_error=False)
        logger.info("engine process %d started", link.pid)
        watch = asyncio.create_task(self._end_if_silent(link), name="engine watch")
        try:
            await link.closed.wait()
            # Whoever waits for the engine is told now, not when the kernel has cleared the process away.
            if self.state is EngineState.READY:
                self.state = EngineState.RECOVERING
            self._on_lost()
            reason = await link.reap()
        finally:
            watch.cancel()
        self._link = None
        return self._failed or EngineFailed(f"the engine process ended unexpectedly ({reason})", is_startup_error=False)

    async def _end_if_silent(self, link: EngineLink) -> None:
        """Ends an engine that says nothing for too long, be it that it hangs or that it was stopped.

        An engine between two steps answers a ping, so silence is a step that does not end. Time in which this
        process was itself stopped does not count.
        """
        silent_s = 0.0
        is_pinged = False
        shortest_s = min(self._start_timeout_s, self._timeout_s or min(_DEFAULT_TIMEOUT_S.values()))
        interval_s = min(max(shortest_s / 20, _MIN_WATCH_INTERVAL_S), _MAX_WATCH_INTERVAL_S)
        while True:
            timeout_s, was_ready, num_messages = self._silence_limit_s(), self._is_ready, self._num_messages
            started = time.monotonic()
            await asyncio.sleep(interval_s)
            if self._num_messages != num_messages or self._is_ready != was_ready:
                silent_s, is_pinged = 0.0, False
                continue
            silent_s += min(time.monotonic() - started, 2 * interval_s)
            if self._is_ready and not is_pinged:
                link.send(Ping())
                is_pinged = True
            if silent_s >= timeout_s:
                break
        if self._is_ready:
            reason = f"the engine hung: it said nothing for {timeout_s:g} s (--engine-timeout-s)"
        else:
            reason = f"the engine gave no sign of life for {timeout_s:g} s while loading (--engine-start-timeout-s)"
        self._failed = EngineFailed(reason, False)
        await link.kill()

    def _silence_limit_s(self) -> float:
        if not self._is_ready or self.ready is None:
            return self._start_timeout_s
        if self._timeout_s is not None:
            return self._timeout_s
        return _DEFAULT_TIMEOUT_S.get(self.ready.device.partition(":")[0], _DEFAULT_TIMEOUT_S["cpu"])

    def _on_message(self, message: FromEngine) -> None:
        self._num_messages += 1
        match message:
            case StepOutputs():
                self._has_worked = self._has_worked or any(output.token_ids for output in message.outputs)
                self._on_step(message)
            case AdapterLoaded():
                self._on_adapter(message)
            case EngineReady():
                self.ready = message
                self._is_ready = True
                self.state = EngineState.READY
                logger.info("engine ready", extra={"fields": msgspec.structs.asdict(message)})
                self._on_ready()
            case EngineFailed():
                self._failed = message
            case LoadProgress(loaded_bytes, total_bytes):
                now = time.monotonic()
                if now - self._last_progress_log > _PROGRESS_LOG_INTERVAL_S:
                    self._last_progress_log = now
                    share = 100 * loaded_bytes / max(1, total_bytes)
                    logger.info("loading the checkpoint: %.0f%% of %.1f GB", share, total_bytes / 1e9)
