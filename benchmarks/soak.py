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

from benchmarks.soak_faults import kill_rounds, overload
from benchmarks.soak_hostile import hostile
from benchmarks.soak_malformed import malformed
from benchmarks.soak_memory import soak
from benchmarks.soak_server import SoakServer, soak_server
from benchmarks.soak_tenants import flags as tenant_flags
from benchmarks.soak_tenants import tenants

Figures = dict[str, Any]

MAX_WAIT_FOR_AN_ERROR_S = 5.0
MAX_AWAY_S = 10.0
MAX_GROWTH = 0.02
MAX_FD_GROWTH = 2
MAX_LATENCY_RATIO = 1.5
MAX_REFUSAL_MS = 50.0
MAX_GAP_S = 1.0
MAX_KEPT_MIB = 400
MAX_FIRST_TOKEN_MS = 2000.0
MIN_SHARE = 0.45


def broken_promises(part: str, figures: Figures) -> list[str]:
    """Returns what a part's figures should not be.

    Args:
        part: its name.
        figures: what it gave.
    """
    promises: dict[str, bool] = {"no descriptors leak": figures["fds"][1] <= figures["fds"][0] + MAX_FD_GROWTH}
    match part:
        case "kill":
            promises |= {
                "every request ends readably": not figures["problems"],
                "every request ends": figures["complete"] + figures["told_of_an_error"]
                == figures["rounds"] * figures["streams"],
                "errors come at once": figures["longest_wait_for_an_error_s"] <= MAX_WAIT_FOR_AN_ERROR_S,
                "it is back soon": figures["longest_away_s"] <= MAX_AWAY_S,
                "each kill is one restart": figures["restarts"] == figures["rounds"],
            }
        case "overload":
            calm, storm = figures["inter_token_p99_ms"]
            promises |= {
                "all are admitted or refused": not figures["other"],
                "the admitted are served": not figures["admitted_incomplete"],
                "the refused are told when to come back": not figures["refused_without_retry_after"],
                "refusing is quick": (figures["refusal_median_ms"] or 0) < MAX_REFUSAL_MS,
                "the admitted are served as fast": storm <= MAX_LATENCY_RATIO * calm,
            }
        case "malformed":
            promises |= {
                "no 5xx": not figures["server_errors"],
                "no traceback": not figures["tracebacks"],
                "no restart": not figures["restarts"],
            }
        case "hostile":
            promises |= {
                "nothing keeps a loop": not any(kind["blocked"] for kind in figures["kinds"].values()),
                "no stream stops": all(kind["longest_stream_gap_s"] < MAX_GAP_S for kind in figures["kinds"].values()),
                "/health answers": all(kind["longest_health_s"] < MAX_GAP_S for kind in figures["kinds"].values()),
                "the server does not keep what it took": figures["kept_mib"] < MAX_KEPT_MIB,
                "no traceback": not figures["tracebacks"],
                "no restart": not figures["restarts"],
            }
        case "memory":
            promises |= {
                "all succeed": not figures["problems"],
                "the server does not grow": figures["server_growth"] <= MAX_GROWTH,
                "the engine does not grow": figures["engine_growth"] <= MAX_GROWTH,
            }
        case "tenants":
            waits = {name: load["first_token_worst_ms"] for name, load in figures["loads"].items()}
            promises |= {
                "every probe is answered": not any(load["unanswered"] for load in figures["loads"].values()),
                "first tokens come soon": max(waits.values()) <= MAX_FIRST_TOKEN_MS,
                "who wants as much gets as much": MIN_SHARE
                <= (figures["share_where_both_want_all"] or 0)
                <= 1 - MIN_SHARE,
            }
    return [promise for promise, holds in promises.items() if not holds]


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
