"""Ill-treats a server and writes down how it bore it: `python -m benchmarks.soak MODEL [PART ...]`.

Parts: `kill` (the engine is killed while streams are open), `overload`, `malformed` (requests), `hostile` (legal ones
that cost as much as they can), `memory` (a soak of mixed ones) and `tenants` (one asks for all it may, another for five
tokens). Each starts a server of its own. The exit status is 0 when all that a part promises held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks.soak.faults import kill_rounds, overload
from benchmarks.soak.hostile import hostile
from benchmarks.soak.malformed import malformed
from benchmarks.soak.memory import soak
from benchmarks.soak.promises import Figures, broken_promises
from benchmarks.soak.server import SoakServer, soak_server
from benchmarks.soak.tenants import flags as tenant_flags
from benchmarks.soak.tenants import tenants


def _parts(
    arguments: argparse.Namespace,
) -> dict[str, tuple[list[str], Callable[[SoakServer], Coroutine[Any, Any, Figures]]]]:
    concurrency = str(arguments.concurrency)
    return {
        "kill": ([], lambda s: kill_rounds(s, rounds=arguments.rounds, streams=arguments.streams)),
        "overload": (
            ["--max-num-seqs", concurrency, "--max-queue-requests", concurrency],
            lambda s: overload(s, concurrency=arguments.concurrency, seconds=arguments.seconds),
        ),
        "malformed": ([], lambda s: malformed(s, requests=arguments.malformed)),
        "hostile": ([], lambda s: hostile(s, repeated_y=arguments.repeated_y, patience_s=arguments.patience)),
        # The pool's pages are taken as blocks are first written: a small one is full before growth is looked at.
        "memory": (
            ["--kv-cache-memory", "256MiB"],
            lambda s: soak(s, requests=arguments.requests, first=arguments.first),
        ),
        "tenants": (tenant_flags(), lambda s: tenants(s, seconds=arguments.tenant_seconds)),
    }


def main(argv: list[str] | None = None) -> int:
    """The command.

    Args:
        argv: without the program's name; None takes the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("part", nargs="*", help="kill, overload, malformed, hostile, memory, tenants (default: all)")
    parser.add_argument("--rounds", type=int, default=20, help="kills of the engine")
    parser.add_argument("--streams", type=int, default=64, help="open at each kill")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at a time that are the capacity")
    parser.add_argument("--malformed", type=int, default=2000, help="malformed requests")
    parser.add_argument("--repeated-y", type=int, help="a token of several Ys (the demo checkpoint's 2120)")
    parser.add_argument("--patience", type=float, default=20, help="seconds until a hostile client leaves")
    parser.add_argument("--requests", type=int, default=100_000, help="of the memory soak")
    parser.add_argument("--first", type=int, default=5000, help="after so many of them memory should stay as it is")
    parser.add_argument("--tenant-seconds", type=float, default=10, help="of each load of the greedy tenant")
    parser.add_argument("--flag", action="append", default=[], help="a flag for the server, such as --flag=--threads=1")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args(argv)
    parts = _parts(arguments)
    chosen = arguments.part or list(parts)
    unknown = set(chosen) - set(parts)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    results: dict[str, Figures] = {}
    for part in chosen:
        flags, run = parts[part]
        with (
            tempfile.TemporaryDirectory() as folder,
            soak_server(arguments.model, Path(folder) / "log", *flags, *arguments.flag) as server,
        ):
            figures = asyncio.run(run(server))
        figures["broken_promises"] = broken_promises(part, figures)
        results[part] = figures
        print(f"{part}: {json.dumps(figures, indent=2)}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(figures["broken_promises"] for figures in results.values()))


if __name__ == "__main__":
    sys.exit(main())
