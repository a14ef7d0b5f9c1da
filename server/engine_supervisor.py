"""Keeps an engine process running: starts it, watches it load, notices its death, starts it again.

Knows processes and states; what runs in the engine is the client's business (engine_client).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from model.engine_config import EngineConfig
from model.messages import EngineFailed, EngineReady, FromEngine, LoadProgress, StepOutputs, ToEngine
from server.engine_link import EngineLink

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 5
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 15.0
_STABLE_AFTER_S = 60.0  # an engine that served this long has its earlier failures forgotten
_PROGRESS_LOG_INTERVAL_S = 5.0


class EngineState(StrEnum):
    """What the engine can do for a request now."""

    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    DRAINING = "draining"
    DEAD = "dead"


class _Death(NamedTuple):
    message: str
    is_startup_error: bool
    served_s: float


class EngineSupervisor:
    """Owns the engine process.

    Args:
        config: of the engine.
        on_step: receives what each step did.
        on_death: told that the process ended, with all that was in it.
        on_fatal: told the one-line reason when the engine cannot be brought (back) to life.
        start_timeout_s: the longest silence while it loads.
        module: its entry point (another one in tests).

    Attributes:
        state: anything but DRAINING, which is the client's.
        ready: what the engine said when it last became ready; None before the first time.
        num_restarts: since the start.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_step: Callable[[StepOutputs], None],
        on_death: Callable[[], None],
        on_fatal: Callable[[str], None] | None,
        start_timeout_s: float,
        module: str,
    ) -> None:
        self._config = config
        self._on_step = on_step
        self._on_death = on_death
        self._on_fatal = on_fatal
        self._start_timeout_s = start_timeout_s
        self._module = module
        self._link: EngineLink | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed: EngineFailed | None = None
        self._became_ready: float | None = None
        self._last_sign_of_life = 0.0
        self._last_progress_log = 0.0
        self.state = EngineState.LOADING
        self.ready: EngineReady | None = None
        self.num_restarts = 0

    def start(self) -> None:
        """Spawns the engine and returns at once."""
        self._task = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def stop(self) -> None:
        """Ends the engine, for good."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        link, self._link = self._link, None
        if link is not None:
            await link.stop()
        self.state = EngineState.DEAD

    def send(self, message: ToEngine) -> None:
        """Sends a message to the engine that runs now, if any does."""
        if self._link is not None:
            self._link.send(message)

    @property
    def pid(self) -> int | None:
        """Of the engine process that runs now."""
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
            death = await self._run_once()
            if death.served_s > _STABLE_AFTER_S:
                failures = 0
            failures += 1
            if death.is_startup_error or self.ready is None or failures > MAX_FAILURES_IN_A_ROW:
                self._give_up(death.message)
                return
            self.state = EngineState.RECOVERING
            self._on_death()
            backoff_s = min(_FIRST_BACKOFF_S * 2 ** (failures - 1), _MAX_BACKOFF_S)
            logger.error("%s; starting the engine again in %.2f s (failure %d)", death.message, backoff_s, failures)
            await asyncio.sleep(backoff_s)
            self.num_restarts += 1

    def _give_up(self, reason: str) -> None:
        logger.error("the engine is gone for good: %s", reason)
        self.state = EngineState.DEAD
        self._on_death()
        if self._on_fatal is not None:
            self._on_fatal(reason)

    async def _run_once(self) -> _Death:
        """Runs one engine process from its birth to its end."""
        self._failed = None
        self._became_ready = None
        self._last_sign_of_life = self._last_progress_log = time.monotonic()
        link = self._link = await EngineLink.spawn(self._config, self._on_message, module=self._module)
        logger.info("engine process %d started", link.pid)
        watch = asyncio.create_task(self._kill_if_silent(link))
        try:
            status = await link.wait()
        finally:
            watch.cancel()
        self._link = None
        became_ready, failed = self._became_ready, self._failed
        return _Death(
            message=failed.message if failed else f"the engine process ended unexpectedly ({_exit_reason(status)})",
            is_startup_error=failed is not None and failed.is_startup_error,
            served_s=0.0 if became_ready is None else time.monotonic() - became_ready,
        )

    async def _kill_if_silent(self, link: EngineLink) -> None:
        while self._became_ready is None:
            left_s = self._last_sign_of_life + self._start_timeout_s - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            reason = f"the engine gave no sign of life for {self._start_timeout_s:g} s while loading"
            self._failed = EngineFailed(f"{reason} (--engine-start-timeout-s)", False)
            await link.kill()
            return

    def _on_message(self, message: FromEngine) -> None:
        match message:
            case StepOutputs():
                self._on_step(message)
            case EngineReady():
                self.ready = message
                self._became_ready = time.monotonic()
                self.state = EngineState.READY
                logger.info("engine ready", extra={"fields": message._asdict()})
            case EngineFailed():
                self._failed = message
            case LoadProgress(loaded_bytes, total_bytes):
                self._last_sign_of_life = time.monotonic()
                if self._last_sign_of_life - self._last_progress_log > _PROGRESS_LOG_INTERVAL_S:
                    self._last_progress_log = self._last_sign_of_life
                    share = 100 * loaded_bytes / max(1, total_bytes)
                    logger.info("loading the checkpoint: %.0f%% of %.1f GB", share, total_bytes / 1e9)


def _exit_reason(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
