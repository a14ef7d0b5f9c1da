"""Kills the engine again and again, and sends far more load than the server can carry."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from benchmarks.soak.client import Ending, SoakClient
from benchmarks.soak.server import SoakServer, changes
from tools.bench.report import percentile

Figures = dict[str, Any]


def _chat(seed: int, **wishes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me about number {seed}."}]
    return {"messages": messages, "seed": seed, "ignore_eos": True, **wishes}


async def kill_rounds(
    server: SoakServer, *, rounds: int, streams: int, max_tokens: int = 200, seed: int = 0
) -> Figures:
    """Kills the engine with -9 at a random moment while streams are open, round after round.

    Args:
        rounds: how many kills.
        streams: requests open at each kill; every eighth is not streamed.
        max_tokens: length of the longest reply.

    Returns:
        How the requests ended and when, how long the server was away, and what it holds before and after.
    """
    rng = random.Random(seed)
    client = SoakClient(server.url)
    endings: list[Ending] = []
    after_kill: list[float] = []
    complete_after: list[float] = []
    away_s: list[float] = []
    footprints = []
    for _ in range(rounds):
        bodies = [
            _chat(i, stream=bool(i % 8), max_tokens=rng.randint(1, rng.choice((8, max_tokens)))) for i in range(streams)
        ]
        tasks = [asyncio.create_task(client.send(body)) for body in bodies]
        await asyncio.sleep(rng.random() * rng.choice((0.1, 1.5)))  # often before many have a token
        engine = await asyncio.to_thread(server.engine)
        engine.kill()
        killed = time.perf_counter()
        away = asyncio.create_task(asyncio.to_thread(_wait_until_back, server, killed))
        done = await asyncio.gather(*tasks)
        endings += done
        after_kill += [ending.ended - killed for ending in done if ending.error_code is not None]
        complete_after += [e.ended - killed for e in done if e.is_complete and e.ended > killed]
        away_s.append(await away)
        client.close()
        footprints.append(await asyncio.to_thread(server.settled_footprint))
    # The first rounds fill caches; the rest must not add to that.
    first = footprints[min(1, rounds - 1)]
    last = footprints[-1]
    return {
        "rounds": rounds,
        "streams": streams,
        "complete": sum(ending.is_complete for ending in endings),
        "complete_after_a_restart": len(complete_after),
        "told_of_an_error": sum(ending.error_code is not None for ending in endings),
        "problems": sorted({ending.problem for ending in endings if ending.problem}),
        "error_codes": sorted({ending.error_code for ending in endings if ending.error_code}),
        "longest_wait_for_an_error_s": round(max(after_kill, default=0.0), 3),
        "longest_wait_for_a_reply_s": round(max(complete_after, default=0.0), 3),
        "longest_away_s": round(max(away_s), 3),
        "restarts": server.metrics()["qwen:engine_restarts_total"],
        **changes(first, last),
    }


def _wait_until_back(server: SoakServer, killed: float) -> float:
    """Waits until /ready has answered 503 and then 200; returns the seconds since the kill."""
    deadline = time.perf_counter() + 2
    while server.get("/ready")[0] == 200 and time.perf_counter() < deadline:
        time.sleep(0.01)
    server.wait_ready()
    return time.perf_counter() - killed


async def overload(
    server: SoakServer, *, concurrency: int, seconds: float, factor: float = 10, max_tokens: int = 48
) -> Figures:
    """Measures the capacity in requests a second, then sends `factor` times as many.

    Args:
        server: ready and idle, with `--max-num-seqs` of this concurrency and a short queue.
        concurrency: requests at a time that use all of the server's capacity.
        seconds: duration of the overload; the capacity is measured for a third of it.
        factor: load in multiples of the capacity.
    """
    client = SoakClient(server.url)
    before = await asyncio.to_thread(server.settled_footprint)
    calm = await _closed_loop(client, concurrency, max(2.0, seconds / 3), max_tokens)
    capacity = len(calm) / (max(e.ended for e in calm) - min(e.started for e in calm))
    storm = await _open_loop(client, capacity * factor, seconds, max_tokens)
    client.close()
    idle_after_s = await asyncio.to_thread(server.wait_idle, 60)
    after = await asyncio.to_thread(server.settled_footprint)
    admitted = [e for e in storm if e.status == 200]
    refused = [e for e in storm if e.status == 429]
    calm_gaps, storm_gaps = _gaps(calm), _gaps(admitted)
    return {
        "capacity_requests_per_s": round(capacity, 2),
        "sent": len(storm),
        "admitted": len(admitted),
        "refused": len(refused),
        "other": sorted({str(e.problem or e.status) for e in storm if e.status not in (200, 429)}),
        "admitted_incomplete": sum(not e.is_complete for e in admitted),
        "refused_without_retry_after": sum(not (e.retry_after or "").isdecimal() for e in refused),
        "refusal_median_ms": round(1e3 * percentile(sorted(e.seconds for e in refused), 50), 1) if refused else None,
        "inter_token_p99_ms": [round(1e3 * percentile(gaps, 99), 1) for gaps in (calm_gaps, storm_gaps) if gaps],
        "idle_after_s": round(idle_after_s, 3),
        **changes(before, after),
    }


async def _closed_loop(client: SoakClient, concurrency: int, seconds: float, max_tokens: int) -> list[Ending]:
    end = time.perf_counter() + seconds
    endings: list[Ending] = []

    async def one_after_another(number: int) -> None:
        while time.perf_counter() < end:
            endings.append(await client.send(_chat(number, stream=True, max_tokens=max_tokens)))

    await asyncio.gather(*(one_after_another(i) for i in range(concurrency)))
    return endings


async def _open_loop(client: SoakClient, rate: float, seconds: float, max_tokens: int) -> list[Ending]:
    rng = random.Random(1)
    tasks = []
    started = time.perf_counter()
    due = started
    number = 0
    while due < started + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(client.send(_chat(number % 64, stream=True, max_tokens=max_tokens))))
        number += 1
        due += rng.expovariate(rate)
    return list(await asyncio.gather(*tasks))


def _gaps(endings: list[Ending]) -> list[float]:
    return sorted(b - a for e in endings for a, b in zip(e.token_times[1:], e.token_times[2:], strict=False))
