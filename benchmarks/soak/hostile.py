"""Sends legal requests that cost as much as possible, one kind after another, beside a stream and probes of /health.

Such a request may take long; what counts is how long others wait meanwhile: the longest gap of the stream, the longest
wait for /health, and how often the server reports that something blocked a loop. The attacker is a process of its own
(`python -m benchmarks.soak.hostile URL KIND PATIENCE_S [TOKEN]`), so that it does not slow down the watchers.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import string
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

import orjson

from benchmarks.soak.server import SoakServer
from tools.bench.http import Connection, Disconnected, ProtocolError, request_bytes

Figures = dict[str, Any]

_HEADERS = {"Content-Type": "application/json"}
_PROBE_INTERVAL_S = 0.02
_CALM_S = 0.5
AMBIGUOUS_GRAMMAR = 'start: e\ne: e e e | e e | "Y" | "YY"'


@dataclass(frozen=True, slots=True)
class Attack:
    """An expensive request.

    Attributes:
        copies: how many are sent at the same time.
        is_unfinished: the last byte of each is never sent.
    """

    path: str
    body: dict[str, Any]
    copies: int = 1
    is_unfinished: bool = False


def attacks(repeated_y: int | None) -> dict[str, Attack]:
    """Returns the attacks by name.

    Args:
        repeated_y: the id of a token of several Ys, which makes the grammar's case worse; None without one.
    """
    letters = random.Random(0).choices(string.ascii_lowercase, k=16 * 1024)
    stops = ["".join(letters[i : i + 1024]) for i in range(0, len(letters), 1024)]
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    grammar: dict[str, Any] = {
        **chat,
        "max_tokens": 600,
        "structured_outputs": {"grammar": AMBIGUOUS_GRAMMAR},
        "logit_bias": {} if repeated_y is None else {str(repeated_y): 100},
    }
    calls = [{"id": "a", "function": {"name": "f"}}] * 512
    called = [{"role": "assistant", "tool_calls": calls}] * 224 + [{"role": "user", "content": "hi"}]
    long_call = {"id": "a", "function": {"name": "f", "arguments": "x" * 900}}
    long_calls = [{"role": "assistant", "tool_calls": [long_call] * 512}] * 8 + called[-1:]
    tools = [{"type": "function", "function": {"name": f"f{i}", "description": "a b " * 8000}} for i in range(128)]
    return {
        "16 stops of 1,024 letters, 1,000 prompts": Attack(
            "/v1/completions", {"prompt": ["a"] * 1000, "max_tokens": 1, "stop": stops}
        ),
        "the same, n = 128": Attack("/v1/chat/completions", {**chat, "n": 128, "stop": stops}),
        "4 of them, 1,000 prompts": Attack(
            "/v1/completions", {"prompt": ["a"] * 1000, "max_tokens": 1, "stop": stops[:4]}
        ),
        "256 biases, 2,048 prompts": Attack(
            "/v1/completions",
            {"prompt": ["a"] * 2048, "max_tokens": 1, "logit_bias": {str(i): 1 for i in range(256)}},
        ),
        "ambiguous grammar, n = 1": Attack("/v1/chat/completions", grammar),
        "ambiguous grammar, n = 128": Attack("/v1/chat/completions", {**grammar, "n": 128}),
        "224 messages of 512 calls": Attack("/v1/chat/completions", {"messages": called, "max_tokens": 1}),
        "the same to /tokenize": Attack("/tokenize", {"messages": called}),
        "4,096 calls of 900 bytes to /tokenize": Attack("/tokenize", {"messages": long_calls}),
        "4 MB of tools": Attack("/v1/chat/completions", {**chat, "tools": tools}),
        "2 M ids to /detokenize": Attack("/detokenize", {"tokens": [1] * 2_000_000}),
        "64 texts of 4 MB to /tokenize": Attack("/tokenize", {"prompt": "a b " * 1_000_000}, copies=64),
        "n = 128, 250 tokens, 20 alternatives": Attack(
            "/v1/chat/completions",
            {**chat, "n": 128, "max_tokens": 250, "logprobs": True, "top_logprobs": 20, "ignore_eos": True},
        ),
        "n = 128, 190 tokens, 20 alternatives": Attack(
            "/v1/chat/completions",
            {**chat, "n": 128, "max_tokens": 190, "logprobs": True, "top_logprobs": 20, "ignore_eos": True},
        ),
        "150 unfinished bodies of 4.1 MB": Attack(
            "/v1/chat/completions",
            {**chat, "user": "u" * 4_100_000},
            copies=150,
            is_unfinished=True,
        ),
    }


@dataclass(slots=True)
class _Watch:
    """What honest clients saw during an attack.

    Attributes:
        stream_gaps_s: gaps between the events of a stream.
        health_s: response times of /health.
    """

    stream_gaps_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)


@contextlib.asynccontextmanager
async def _watching(url: SplitResult, max_model_len: int) -> AsyncIterator[_Watch]:
    watch = _Watch()
    tasks = [asyncio.create_task(_stream(url, watch, max_model_len)), asyncio.create_task(_probe(url, watch))]
    await asyncio.sleep(_CALM_S)
    watch.stream_gaps_s.clear()
    watch.health_s.clear()
    try:
        yield watch
        await asyncio.sleep(_CALM_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stream(url: SplitResult, watch: _Watch, max_model_len: int) -> None:
    # As long as the context allows: a stream that begins anew in between waits in the queue like everybody.
    length = max_model_len * 3 // 4
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": length, "ignore_eos": True, "stream": True}
    last: float | None = None

    def take(status: int, piece: bytes, now: float) -> None:
        nonlocal last
        if status == 200 and b"data: {" in piece:
            if last is not None:
                watch.stream_gaps_s.append(now - last)
            last = now

    try:
        while True:
            await _exchange(url, "POST", "/v1/chat/completions", orjson.dumps(body), take)
    finally:
        if last is not None:
            watch.stream_gaps_s.append(time.perf_counter() - last)  # it may be waiting still


async def _probe(url: SplitResult, watch: _Watch) -> None:
    while True:
        started = time.perf_counter()
        try:
            await _exchange(url, "GET", "/health", b"", lambda *_: None)
        finally:
            watch.health_s.append(time.perf_counter() - started)
        await asyncio.sleep(_PROBE_INTERVAL_S)


async def _exchange(url: SplitResult, method: str, path: str, body: bytes, take: Any) -> int:
    connection = await Connection.open(url, None)
    try:
        response = await connection.exchange(request_bytes(method, url, path, _HEADERS, body), take)
        return response.status
    finally:
        connection.close()


async def _send(url: SplitResult, attack: Attack, body: bytes, sizes: list[int]) -> str:
    """Sends one copy of an attack; returns its status, or how else it ended."""
    try:
        if not attack.is_unfinished:
            return str(
                await _exchange(url, "POST", attack.path, body, lambda status, piece, now: sizes.append(len(piece)))
            )
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            writer.write(request_bytes("POST", url, attack.path, _HEADERS, body)[:-1])
            return (await reader.readline()).decode().split()[1]
        finally:
            writer.transport.abort()
    except (OSError, Disconnected, ProtocolError, IndexError) as error:
        return type(error).__name__


async def launch(url: SplitResult, attack: Attack, patience_s: float) -> Figures:
    """Sends an attack and waits for its end, at most `patience_s`."""
    body = orjson.dumps(attack.body)
    sizes: list[int] = []
    started = time.perf_counter()
    tasks = [asyncio.create_task(_send(url, attack, body, sizes)) for _ in range(attack.copies)]
    await asyncio.wait(tasks, timeout=patience_s)
    seconds = time.perf_counter() - started
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    endings = ["left" if task.cancelled() else task.result() for task in tasks]
    return {
        "request_bytes": len(body),
        "endings": {ending: endings.count(ending) for ending in sorted(set(endings))},
        "seconds": round(seconds, 2),
        "reply_bytes": sum(sizes),
    }


async def _watch_attack(server: SoakServer, name: str, patience_s: float, repeated_y: int | None) -> Figures:
    command = [sys.executable, "-m", __spec__.name, server.url.geturl(), name, str(patience_s)]
    before = peak = server.footprint().server_bytes
    blocked = server.metrics()["qwen:loop_blocked_total"]
    max_model_len = orjson.loads(server.get("/v1/models")[1])["data"][0]["max_model_len"]
    async with _watching(server.url, max_model_len) as watch:
        attacker = await asyncio.create_subprocess_exec(
            *command, *([] if repeated_y is None else [str(repeated_y)]), stdout=asyncio.subprocess.PIPE
        )
        told = asyncio.create_task(attacker.communicate())
        while not told.done():
            await asyncio.wait([told], timeout=0.1)
            peak = max(peak, (await asyncio.to_thread(server.footprint)).server_bytes)
    await asyncio.to_thread(server.wait_idle, 120)
    return {
        **orjson.loads((await told)[0]),
        "longest_stream_gap_s": round(max(watch.stream_gaps_s, default=0.0), 3),
        "longest_health_s": round(max(watch.health_s, default=0.0), 3),
        "blocked": server.metrics()["qwen:loop_blocked_total"] - blocked,
        "server_mib": [round(size / 2**20) for size in (before, peak, server.footprint().server_bytes)],
    }


async def hostile(server: SoakServer, *, repeated_y: int | None = None, patience_s: float = 20.0) -> Figures:
    """Sends each attack, and watches an honest stream and /health beside it.

    Args:
        server: ready and idle.
        repeated_y: see `attacks`.
        patience_s: an attacker leaves after this time.
    """
    before = await asyncio.to_thread(server.settled_footprint)
    kinds = {name: await _watch_attack(server, name, patience_s, repeated_y) for name in attacks(None)}
    after = await asyncio.to_thread(server.settled_footprint)
    return {
        "kinds": kinds,
        "kept_mib": round((after.server_bytes - before.server_bytes) / 2**20),
        "warnings": [line for line in server.log().splitlines() if " kept " in line],
        "tracebacks": server.log().count("Traceback"),
        "restarts": server.metrics()["qwen:engine_restarts_total"],
        "fds": [before.server_fds, after.server_fds],
    }


def _attack(url: str, name: str, patience_s: str, repeated_y: str = "") -> None:
    attack = attacks(int(repeated_y) if repeated_y else None)[name]
    print(orjson.dumps(asyncio.run(launch(urlsplit(url), attack, float(patience_s)))).decode())


if __name__ == "__main__":
    _attack(*sys.argv[1:])
