"""Limits of a request and of a key, on a server where they are small."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import SMALL
from tests.support.in_process_server import in_process_server

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


def of_key(url: str, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


async def test_limits(demo_checkpoint: Path) -> None:
    keys = ("--api-key", "alpha", "--api-key", "beta", "--api-key", "gamma", "--max-requests-per-minute", "14")
    limits = ("--max-request-tokens", "3000", "--max-queue-tokens", "500", "--max-num-seqs", "1")
    with in_process_server(demo_checkpoint, *SMALL, *keys, *limits) as server:
        url = server.url
        async with of_key(url, "alpha") as alpha, of_key(url, "beta") as beta, of_key(url, "gamma") as gamma:
            await check_sizes(alpha)
            await check_rate(alpha, beta)
            await check_queue_of_tokens(gamma)


async def check_sizes(http: httpx.AsyncClient) -> None:
    """Ten requests, all refused with a word on what to change."""
    wrong: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"n": 100, "max_tokens": 31}, "n", ", and 100 choices of up to 31"),
        ({"max_tokens": 3001}, "max_tokens", "A request may ask for 3000"),
        ({"messages": HI * 5000}, "messages", "at most 4096 items"),
        ({"stop": ["x"] * 17}, "stop", "at most 16 stop strings"),
        ({"stop": "x" * 1025}, "stop", "at most 1024 characters"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids", "at most 256 items"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "at most 1024 items"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 513}, "tools", "at most 512 items"),
        ({"structured_outputs": {"regex": "a" * 300_000}}, "structured_outputs", "reasonable length"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs", "at most 1024 texts"),
    )
    for wishes, param, words in wrong:
        response = await http.post(CHAT, json={"messages": HI, **wishes})
        assert response.status_code == 400, (param, response.text)
        error = response.json()["error"]
        assert error["param"] == param
        assert words in error["message"]


async def check_rate(alpha: httpx.AsyncClient, beta: httpx.AsyncClient) -> None:
    """Of fourteen requests a minute ten are used up already."""
    body = {"messages": HI, "max_tokens": 1}
    statuses = [(await alpha.post(CHAT, json=body)).status_code for _ in range(4)]
    assert statuses == [200] * 4
    while (response := await alpha.post(CHAT, json=body)).status_code == 200:
        pass  # the minute went on meanwhile
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(response.headers["retry-after"]) <= 5
    assert (await alpha.get("/v1/models")).status_code == 200
    assert (await beta.post(CHAT, json=body)).status_code == 200


async def check_queue_of_tokens(http: httpx.AsyncClient) -> None:
    """One request runs; 500 tokens may wait behind it."""
    long = {"messages": [{"role": "user", "content": "word " * 60}], "ignore_eos": True}
    first = asyncio.create_task(http.post(CHAT, json={**long, "max_tokens": 2500}))
    await asyncio.sleep(0.5)
    others = [asyncio.create_task(http.post(CHAT, json={**long, "max_tokens": 1})) for _ in range(5)]
    await asyncio.sleep(0.5)
    first.cancel()
    responses = await asyncio.gather(*others)
    statuses = sorted(response.status_code for response in responses)
    assert statuses[0] == 200, "what waits alone may be longer"
    assert statuses[-1] == 429
    refused = next(response for response in responses if response.status_code == 429)
    assert "prompt tokens are waiting" in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "server_overloaded"
    assert int(refused.headers["retry-after"]) >= 1
