"""Keys that share a server: no key can stop, starve or read another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SMALL
from tests.support.in_process_server import InProcessServer, in_process_server

LIMITS = {
    "--max-model-len": "2048",
    "--max-num-seqs": "4",
    "--max-queue-requests": "8",
    "--max-tokens-per-minute": "1000",
}
NAMES = ("anne", "ben", "carl", "dora", "emil")


@pytest.fixture(scope="module")
def shared(demo_checkpoint: Path) -> Iterator[InProcessServer]:
    keys = [flag for name in NAMES for flag in ("--api-key", name)]
    limits = [word for flag in LIMITS.items() for word in flag]
    with in_process_server(demo_checkpoint, *SMALL, *keys, *limits) as server:
        yield server


@pytest.fixture
async def http(shared: InProcessServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=shared.url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        yield client


async def complete(http: httpx.AsyncClient, key: str, prompt: str, **fields: Any) -> httpx.Response:
    body = {"model": "Qwen", "prompt": prompt, "max_tokens": 4, "ignore_eos": True, **fields}
    return await http.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})


async def test_nobody_learns_from_the_cache_what_another_key_sent(http: httpx.AsyncClient) -> None:
    async def num_cached(key: str, **fields: Any) -> int:
        reply = await complete(http, key, "a secret that is long enough for some blocks of the cache " * 2, **fields)
        return int(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert await num_cached("anne") == 0
    assert await num_cached("anne") > 80
    assert await num_cached("ben") == 0
    assert await num_cached("ben") > 80
    assert await num_cached("anne", cache_salt="x") == 0
    assert await num_cached("anne", cache_salt="y") == 0
    assert await num_cached("anne", cache_salt="x") > 80
    assert await num_cached("ben", cache_salt="x") == 0


@pytest.mark.parametrize("salt", ["", "x" * 1025, 5])
async def test_a_salt_that_is_none(http: httpx.AsyncClient, salt: object) -> None:
    reply = await complete(http, "anne", "hi", cache_salt=salt)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "cache_salt")


async def test_a_reply_is_charged_while_it_runs(http: httpx.AsyncClient) -> None:
    body = {"prompt": "x" * 900, "n": 3, "max_tokens": 1000, "ignore_eos": True, "stream": True}
    statuses = []
    async with http.stream("POST", "/v1/completions", json=body, headers={"Authorization": "Bearer carl"}) as reply:
        num_chunks = 0
        async for line in reply.aiter_lines():
            num_chunks += line.startswith("data: {")
            if line and num_chunks % 5 == 1:
                statuses.append((await complete(http, "carl", "hi")).status_code)
                if statuses[-1] != 200:
                    break
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert (await complete(http, "anne", "hi")).status_code == 200


async def test_a_newcomer_is_served_beside_one_who_wants_everything(
    shared: InProcessServer, http: httpx.AsyncClient
) -> None:
    greedy: list[asyncio.Task[httpx.Response]] = []
    try:
        for metric, number in (("vllm:num_requests_running", 4), ("vllm:num_requests_waiting", 8)):
            greedy += [asyncio.create_task(complete(http, "dora", "hi", max_tokens=1900)) for _ in range(number)]
            async with asyncio.timeout(30):
                while shared.metric(metric) < number:
                    await asyncio.sleep(0.01)
        refused = await complete(http, "dora", "one more")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_overloaded")
        assert not any(task.done() for task in greedy)
        for _ in range(3):
            reply = await complete(http, "emil", "hi", priority=9)
            assert reply.status_code == 200
        assert not any(task.done() for task in greedy), "the newcomer waited for them"
    finally:
        for task in greedy:
            task.cancel()
        await asyncio.gather(*greedy, return_exceptions=True)
