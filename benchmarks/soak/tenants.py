"""Two tenants of one server: one asks for all it may; how are the other's short requests served, and its share?"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection
from typing import Any

from benchmarks.soak.client import Ending, SoakClient
from benchmarks.soak.server import SoakServer
from tools.bench.report import percentile

Figures = dict[str, Any]
Body = dict[str, Any]

COMPLETIONS = "/v1/completions"
KEYS = ("greedy", "modest")
# A short request, like that of an impatient person.
PROBE = {"prompt": "Hi, are you there?", "max_tokens": 5, "ignore_eos": True, "stream": True}
_PAUSE_S = 0.2


def flags() -> list[str]:
    """Returns the server's flags: a key for each tenant."""
    return [word for key in KEYS for word in ("--api-key", key)]


def loads(scale: float) -> dict[str, list[Body]]:
    """Returns the greedy tenant's loads by name; `scale` multiplies the numbers of requests, choices and prompts."""
    stream = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    many, some, n = max(1, int(300 * scale)), max(1, int(600 * scale)), max(1, int(128 * scale))
    texts = [f"{number} " + "and so on and on " * 300 for number in range(some)]
    return {
        "nothing": [],
        "streams": [{**stream, "seed": number} for number in range(many)],
        "choices": [{**stream, "n": n, "seed": number} for number in range(2)],
        "prompts": [{"prompt": texts, "max_tokens": 5, "ignore_eos": True, "stream": True}],
        "urgent": [{**stream, "seed": number, "priority": -1} for number in range(many)],
    }


async def tenants(server: SoakServer, *, seconds: float, scale: float = 1.0, only: Collection[str] = ()) -> Figures:
    """Measures the modest tenant's short requests beside each load of the greedy one, then both with the same load.

    Args:
        server: started with `flags()`, ready and idle.
        seconds: duration of each load.
        scale: see `loads`.
        only: names of loads to run; empty for all.

    Returns:
        For each load the modest tenant's times to the first token, and its share of tokens with equal loads.
    """
    greedy, modest = (SoakClient(server.url, key=key) for key in KEYS)
    figures: Figures = {"loads": {}}
    footprints = []
    for name, bodies in loads(scale).items():
        if only and name not in only:
            continue
        tasks = [asyncio.create_task(greedy.send(body, path=COMPLETIONS)) for body in bodies]
        await asyncio.sleep(min(2.0, seconds / 4) if bodies else 0)
        figures["loads"][name] = await _probe(modest, seconds) | {"greedy_had_ended": sum(t.done() for t in tasks)}
        await _cancel(tasks)
        footprints.append(await asyncio.to_thread(server.settled_footprint))
    figures["share_where_both_want_all"] = await _share(greedy, modest, seconds, scale)
    for client in (greedy, modest):
        client.close()
    last = await asyncio.to_thread(server.settled_footprint)
    return figures | {"fds": [footprints[0].server_fds, last.server_fds]}


async def _probe(client: SoakClient, seconds: float) -> Figures:
    endings: list[Ending] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        # A request without any answer is ended, and counts as having waited until then.
        endings.append(await client.send(PROBE, path=COMPLETIONS, leave_after_s=max(10.0, 2 * seconds)))
        await asyncio.sleep(_PAUSE_S)
    waits = [(e.token_times[0] if e.token_times else e.ended) - e.started for e in endings]
    gaps = [b - a for e in endings for a, b in itertools.pairwise(e.token_times)]
    return {
        "probes": len(endings),
        "unanswered": sum(not ending.is_complete for ending in endings),
        "refused": sum(ending.status == 429 for ending in endings),
        "first_token_median_ms": round(1000 * percentile(waits, 50), 1),
        "first_token_worst_ms": round(1000 * max(waits), 1),
        "longest_gap_ms": round(1000 * max(gaps, default=0.0), 1),
    }


async def _share(greedy: SoakClient, modest: SoakClient, seconds: float, scale: float) -> float | None:
    """Returns the modest tenant's share of the tokens when it sends the same load, a little later."""
    tasks: list[asyncio.Task[Ending]] = []
    counts = [0, 0]

    def count(which: int) -> Any:
        def take(num_events: int) -> None:
            counts[which] += num_events

        return take

    try:
        for which, client in enumerate((greedy, modest)):
            for body in loads(scale)["streams"]:
                body = {**body, "return_token_ids": True}
                tasks.append(asyncio.create_task(client.send(body, path=COMPLETIONS, on_events=count(which))))
            await asyncio.sleep(min(2.0, seconds / 4))
        before = counts.copy()
        await asyncio.sleep(seconds)
        greedy_tokens, modest_tokens = counts[0] - before[0], counts[1] - before[1]
    finally:
        await _cancel(tasks)
    total = greedy_tokens + modest_tokens
    return round(modest_tokens / total, 3) if total else None


async def _cancel(tasks: list[asyncio.Task[Ending]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
