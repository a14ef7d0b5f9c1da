"""Sends many short requests of all kinds, some abandoned half-way; the server's memory must not grow."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from benchmarks.soak.client import CHAT_PATH, Ending, SoakClient
from benchmarks.soak.server import Footprint, SoakServer, changes

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"unit": {"enum": ["c", "f"]}}, "required": ["unit"]},
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def mixed_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Returns the route and the body of a request of a random kind."""
    words = " ".join(rng.choice(("red", "green", "blue", "ten", "twenty")) for _ in range(rng.randint(1, 60)))
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 12), "stream": rng.random() < 0.5}
    kind = rng.choice(("chat", "chat", "chat", "text", "choices", "logprobs", "stop", "tool", "schema", "penalties"))
    if kind == "text":
        return "/v1/completions", {**body, "prompt": words}
    body["messages"] = [{"role": "user", "content": words}]
    match kind:
        case "choices":
            body["n"] = 3
        case "logprobs":
            body |= {"logprobs": True, "top_logprobs": 5}
        case "stop":
            body["stop"] = ["a", "the end"]
        case "tool":
            body |= {"tools": [_TOOL], "tool_choice": "required", "max_tokens": 60}
        case "schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
        case "penalties":
            body |= {"frequency_penalty": 0.5, "repetition_penalty": 1.1, "seed": rng.randrange(100)}
    return CHAT_PATH, body


async def soak(
    server: SoakServer, *, requests: int, first: int, concurrency: int = 16, cancelled: float = 0.1, seed: int = 0
) -> dict[str, Any]:
    """Sends mixed requests and compares the memory at the end with that after the first of them.

    Args:
        server: ready and idle.
        requests: total number.
        first: after so many requests the memory should no longer grow.
        concurrency: requests at a time.
        cancelled: share of requests whose client leaves half-way.
    """
    rng = random.Random(seed)
    client = SoakClient(server.url)
    started = time.perf_counter()
    problems: dict[str, int] = {}
    num_left = 0

    async def worker(numbers: list[int]) -> None:
        nonlocal num_left
        while numbers:
            numbers.pop()
            path, body = mixed_request(rng)
            leaves = rng.random() < cancelled
            ending = await client.send(body, path=path, leave_after_s=rng.random() * 0.1 if leaves else None)
            num_left += leaves
            trouble = None if leaves else _trouble(ending)
            if trouble:
                problems[trouble] = problems.get(trouble, 0) + 1

    async def part(count: int) -> Footprint:
        numbers = list(range(count))
        await asyncio.gather(*(worker(numbers) for _ in range(concurrency)))
        client.close()
        return await asyncio.to_thread(server.settled_footprint)

    before = await part(first)
    after = await part(requests - first)
    return {
        "requests": requests,
        "cancelled": num_left,
        "problems": problems,
        "requests_per_s": round(requests / (time.perf_counter() - started), 1),
        **changes(before, after),
        "server_growth": round(after.server_bytes / before.server_bytes - 1, 4),
        "engine_growth": round(after.engine_bytes / before.engine_bytes - 1, 4),
    }


def _trouble(ending: Ending) -> str | None:
    if ending.problem:
        return ending.problem[:200]
    return None if ending.is_complete else f"{ending.status} {ending.error_code}"
