"""Runs a benchmark level by level. Whatever ends it early, the figures so far are kept."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.version import server_version
from tools.bench.lengths import Lengths
from tools.bench.load import Level, run_level
from tools.bench.machine import hardware
from tools.bench.plan import BenchmarkError, Target, find_target, make_workload, plan_levels
from tools.bench.progress import shown
from tools.bench.report import Figures, add_ratios, label, raw, summarise
from tools.bench.workload import Workload

_NOT_PARAMETERS = ("api_key", "json", "raw", "plot", "compare", "command")


class Benchmark:
    """Runs the levels that arguments ask for.

    Args:
        say: prints a line.

    Attributes:
        levels: the figures of each level that ended or was cut off.
        server: address, model and version of the server; empty until they are known.
        workload: None until it is known.
        is_interrupted: Ctrl-C was pressed.
    """

    def __init__(self, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._arguments = arguments
        self._say = say
        self.levels: list[Figures] = []
        self.server: Figures = {}
        self.workload: Workload | None = None
        self.is_interrupted = False

    async def run(self) -> None:
        """Runs all levels. The first Ctrl-C ends the run without an exception; a second one raises KeyboardInterrupt.

        Raises:
            BenchmarkError: there is nothing to measure.
        """
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            loop.remove_signal_handler(signal.SIGINT)
            self.is_interrupted = True
            task.cancel()

        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
            loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            target = await find_target(self._arguments)
            try:
                await self._measure(target)
            finally:
                target.client.close()
        except asyncio.CancelledError:
            if not self.is_interrupted:
                raise
            task.uncancel()
        finally:
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.remove_signal_handler(signal.SIGINT)

    async def _measure(self, target: Target) -> None:
        self.server = {"base_url": self._arguments.base_url, "model": target.model, "version": target.version}
        version = f", version {target.version}" if target.version else ""
        self._say(f"{self._arguments.base_url}: {target.model}{version}")
        self.workload = await make_workload(self._arguments, target)
        for name, warmup, load in plan_levels(self._arguments, self.workload):
            if warmup is not None:
                warm = Level()
                async with shown(f"{label(name)}, warm-up", warm, len(warmup.bodies)):
                    await run_level(target.client, warmup, warm)
                _check_warmup(warm)
            level = Level()
            try:
                async with shown(label(name), level, len(load.bodies)):
                    await run_level(target.client, load, level)
            finally:
                self._add(summarise(level, name), level)

    def _add(self, figures: Figures, level: Level) -> None:
        if self._arguments.raw:
            figures["requests"] = raw(level)
        self.levels.append(figures)
        add_ratios(self.levels)
        failed = f", {figures['failed']} failed" if figures["failed"] else ""
        rate = figures["output_tokens_per_s"]
        self._say(f"{label(figures)}: {figures['completed']} requests{failed}, {rate:.1f} output tokens/s")

    def document(self) -> Figures:
        """Returns the document that --json writes."""
        parameters = {
            name: _plain(value) for name, value in vars(self._arguments).items() if name not in _NOT_PARAMETERS
        }
        if self.workload is not None:
            parameters["model"] = self.workload.model
            parameters["prompt_kind"] = self.workload.prompt_kind
            parameters["tokens_per_word"] = self.workload.scale.per_word
        return {
            "benchmark": "serving",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": server_version().commit or "",
            "hardware": hardware(),
            "server": self.server,
            "parameters": parameters,
            "interrupted": self.is_interrupted,
            "levels": self.levels,
        }


def _check_warmup(warm: Level) -> None:
    failed = [record for record in warm.records if record.error is not None]
    if failed and len(failed) == len(warm.records):
        detail = f": {failed[0].detail}" if failed[0].detail else ""
        raise BenchmarkError(f"every warm-up request failed: {failed[0].error}{detail}")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return ":".join(map(str, value))
    return str(value) if isinstance(value, Lengths | Path) else value
