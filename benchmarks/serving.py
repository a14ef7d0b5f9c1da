"""Load on any OpenAI-compatible server: throughput and latencies at fixed concurrency, or with random arrivals.

`python -m benchmarks.serving --base-url http://127.0.0.1:8000 --concurrency 1 4 16 64 --ignore-eos` prints a table;
`--json FILE` keeps the figures with the machine, the server's version, the commit and all parameters. What they mean:

- *time to first token* runs from when a request is sent (or was due, with --request-rate) to the first event that
  carries tokens. Events without any (who speaks, usage) do not count.
- *between token events* is the gap between such events; a server may put several tokens into one. *per output token*
  is free of that: first event to last, divided by the tokens the server says it made, less one.
- Output tokens are the server's own count (usage). Throughput is theirs over the time from the first request to the
  last end; failed requests add time, but no tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving_load import Level, run_level
from benchmarks.serving_plan import BenchmarkError, Target, find_target, make_workload, plan_levels
from benchmarks.serving_report import Figures, add_ratios, commit, hardware, label, raw, summarise, table
from benchmarks.serving_workload import CHAT, PATHS, Lengths, Workload

_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", help="of the server; /v1 is added to one without a path")
    add("--model", help="name to ask for (default: the first the server lists)")
    add("--api-key", help="sent as a bearer token")
    add("--endpoint", choices=sorted(PATHS), default=CHAT, help="(default: chat)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=_positive_int, nargs="+", metavar="N", help="requests at a time")
    how.add_argument("--request-rate", type=_positive_float, nargs="+", metavar="R", help="Poisson arrivals a second")
    add("--num-requests", type=_positive_int, metavar="N", help="at each level (default: 4 a stream, at least 8)")
    add("--max-duration-s", type=_positive_float, metavar="S", help="begin no more requests after this time")
    add("--warmup", type=int, metavar="N", help="short requests before each level (default: one a stream)")
    add("--timeout-s", type=_positive_float, default=600.0, metavar="S", help="for one request (600)")
    add("--prompt-tokens", type=_lengths, default=Lengths(64, 64), metavar="N|LO:HI", help="fixed or uniform (64)")
    add("--prompt-kind", choices=("ids", "words"), help="of completions (default: ids; chat is always words)")
    add(
        "--token-ids",
        type=_lengths,
        default=Lengths(33, 255),
        metavar="LO:HI",
        help="that prompts are made of (33:255)",
    )
    add("--shared-prefix-tokens", type=int, default=0, metavar="N", help="before each prompt, the same for all")
    add("--max-tokens", type=_lengths, default=Lengths(64, 64), metavar="N|LO:HI", help="fixed or uniform (64)")
    add("--ignore-eos", action="store_true", help="ask for exactly --max-tokens")
    add("--temperature", type=float, default=0.0)
    add("--extra-body", type=_json_object, metavar="JSON", help='added to each request, as {"top_p": 0.9}')
    add("--requests", type=Path, metavar="FILE", help="JSONL of request bodies to send instead")
    add("--seed", type=int, default=0, help="of lengths, arrivals and sampling")
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help="ask for server-sent events")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    add("--raw", action="store_true", help="with the numbers of each request")


def _positive_int(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _positive_float(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def _lengths(text: str) -> Lengths:
    try:
        return Lengths.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor LO:HI, from 1") from error


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


class Run:
    """A benchmark under way: its figures so far are there whatever ends it.

    Args:
        arguments: of the command.

    Attributes:
        levels: figures of those that have ended, or were cut off.
        server: what was measured; empty before it is known.
        workload: what was sent, or None.
        is_interrupted: by Ctrl-C.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.levels: list[Figures] = []
        self.server: Figures = {}
        self.workload: Workload | None = None
        self.is_interrupted = False

    async def run(self) -> None:
        """Runs all levels. Ctrl-C ends it early, without an exception; a second one is not held back.

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
        print(f"{self._arguments.base_url}: {target.model}{version}", flush=True)
        self.workload = await make_workload(self._arguments, target)
        for name, warmup, load in plan_levels(self._arguments, self.workload):
            if warmup is not None:
                warm = Level()
                await run_level(target.client, warmup, warm)
                _check_warmup(warm)
            level = Level()
            try:
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
        print(f"{label(figures)}: {figures['completed']} requests{failed}, {rate:.1f} output tokens/s", flush=True)

    def document(self) -> Figures:
        """Returns everything, for --json."""
        hidden = ("api_key", "json", "raw", "command")
        parameters = {name: _plain(value) for name, value in vars(self._arguments).items() if name not in hidden}
        if self.workload is not None:
            parameters["model"] = self.workload.model
            parameters["prompt_kind"] = self.workload.prompt_kind
            parameters["tokens_per_word"] = self.workload.scale.per_word
        return {
            "benchmark": "serving",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": commit(),
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
    return str(value) if isinstance(value, Lengths | Path) else value


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and prints what it measured.

    Args:
        arguments: as `add_arguments` defines them.

    Returns:
        The exit status: 0 if all levels ran and at least one request completed.
    """
    benchmark = Run(arguments)
    failed = False
    try:
        asyncio.run(benchmark.run())
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        failed = True
    if benchmark.levels:
        print(f"\n{table(benchmark.levels)}", flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(benchmark.document(), indent=1) + "\n")
    if benchmark.is_interrupted:
        return _INTERRUPTED
    return 0 if not failed and any(level["completed"] for level in benchmark.levels) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command on its own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description="Load on an OpenAI-compatible server."
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
