"""`qwen-server bench`: load on any OpenAI-compatible server, at fixed concurrency or with random arrivals.

`qwen-server bench --base-url http://127.0.0.1:8000 --concurrency 1 4 16 64 --ignore-eos` prints a table; `--json FILE`
also writes them to a file, with the machine, the server's version, the commit and all parameters. The figures:

- *time to first token*: from when a request is sent (or was due, with --request-rate) to the first event that
  carries tokens. Events without tokens (role, usage) do not count.
- *between token events*: the gap between two such events; a server may put several tokens into one event.
- *per output token*: the time from the first such event to the last, divided by the server's token count minus one.
- Output tokens are the server's count (usage). Throughput is their number divided by the time from the first request
  to the last end; failed requests add time but no tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from model.contract.errors import ConfigError
from tools.bench.benchmark import Benchmark
from tools.bench.compare import comparison, read_figures
from tools.bench.plan import BenchmarkError
from tools.bench.report import table
from tools.output_file import check_writable

_INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and prints the figures.

    Returns:
        The exit status: 0 if all levels ran and at least one request completed.
    """
    try:
        if arguments.compare is not None:
            return _compare(arguments)
        _check_outputs(arguments)
    except (ConfigError, ValueError, OSError) as error:
        return _complain(error)
    if arguments.api_key is None:
        arguments.api_key = os.environ.get("OPENAI_API_KEY")
    benchmark = Benchmark(arguments, _say)
    failed = False
    try:
        asyncio.run(benchmark.run())
    except BenchmarkError as error:
        _complain(error)
        failed = True
    if benchmark.levels:
        _say(f"\n{table(benchmark.levels)}")
        try:
            _write(arguments, benchmark)
        except OSError as error:
            _complain(error)
            failed = True
    if benchmark.is_interrupted:
        return _INTERRUPTED
    return 0 if not failed and any(level["completed"] for level in benchmark.levels) else 1


def _compare(arguments: argparse.Namespace) -> int:
    paths: list[Path] = arguments.compare
    before, after = map(read_figures, paths)
    _say(f"first: {paths[0]}, second: {paths[1]}\n")
    _say(comparison(before, after))
    if arguments.plot is not None:
        from tools.bench.plots import check_plotting, draw

        check_plotting(arguments.plot)
        draw(arguments.plot, [(path.stem, document) for path, document in zip(paths, (before, after), strict=True)])
        _say(f"\nwrote {arguments.plot}")
    return 0


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Checks before a long run that its figures can be written."""
    for path in (arguments.json, arguments.plot):
        if path is not None:
            check_writable(path)
    if arguments.plot is not None:
        from tools.bench.plots import check_plotting

        check_plotting(arguments.plot)


def _write(arguments: argparse.Namespace, benchmark: Benchmark) -> None:
    document = benchmark.document()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.plot is not None:
        from tools.bench.plots import draw

        draw(arguments.plot, [("", document)])
        _say(f"\nwrote {arguments.plot}")


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(error: Exception) -> int:
    print(f"qwen-server bench: {error}", file=sys.stderr)
    return 1
