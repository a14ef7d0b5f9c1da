"""docs/deployment.md against the programs it is about: streams, leaving clients, large bodies, and rolling restarts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.balancers import BALANCERS, Balancer, running
from tests.support.light_server import ECHO, LightServer
from tests.support.server_process import ServerProcess

NUM_CLIENTS = 6
DRAIN_DELAY_S = 3.0
ENDLESS = {"prompt": "a", "max_tokens": 1900, "ignore_eos": True}

# A minute and a half where all four are installed: `python -m pytest -m slow tests/deploy`.
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("balancer", BALANCERS, ids=lambda balancer: balancer.program)]


@pytest.fixture
def url(balancer: Balancer, server: ServerProcess, tmp_path: Path) -> AsyncIterator[str]:
    """The balancer in front of the shared server, twice."""
    port = int(server.url.rsplit(":", 1)[1])
    with running(balancer, (port, port), tmp_path) as url:
        yield url


async def idle(server: ServerProcess) -> None:
    await asyncio.to_thread(server.wait_idle, 60)


async def test_streams_are_passed_on_as_they_come(url: str, balancer: Balancer, server: ServerProcess) -> None:
    """And a client that leaves one frees its place."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        async with http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as stream:
            assert stream.status_code == 200
            lines = stream.aiter_lines()
            assert (await anext(lines)).startswith("data: {")
            running = await asyncio.to_thread(server.metric, "vllm:num_requests_running")
            assert running == 1, "its first line is here long before its last"
            made = await asyncio.to_thread(server.metric, "vllm:generation_tokens_total")
        await idle(server)
        assert await asyncio.to_thread(server.metric, "vllm:generation_tokens_total") - made < 1900


async def test_requests_that_are_abandoned(url: str, balancer: Balancer, server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        before = await asyncio.to_thread(server.metric, "vllm:generation_tokens_total")
        request = asyncio.create_task(http.post("/v1/completions", json={**ENDLESS, "max_tokens": 400}))
        while await asyncio.to_thread(server.metric, "vllm:num_requests_running") < 1:
            await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await idle(server)
        made = await asyncio.to_thread(server.metric, "vllm:generation_tokens_total") - before
        assert (made < 400) == balancer.frees_unstreamed


async def test_large_bodies_and_pages(url: str, balancer: Balancer) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        long = await http.post("/v1/completions", json={"prompt": "a" * (2 << 20)})
        assert long.json()["error"]["code"] == "context_length_exceeded"
        too_large = await http.post("/v1/completions", json={"prompt": "a" * (5 << 20)})
        assert too_large.status_code == 413
        assert too_large.json()["error"]["code"] == "request_too_large"
        prefix = "/qwen" if balancer.program == "nginx" else ""
        for path in ("/", "/docs", "/openapi.json", "/web/docs.js"):
            assert (await http.get(prefix + path)).status_code == 200


def num_served(server: LightServer) -> float:
    return server.metric("http_requests_total", handler="/v1/completions", method="POST", status="200")


async def until_served(server: LightServer, failed: list[str]) -> None:
    async with asyncio.timeout(30):
        while num_served(server) < NUM_CLIENTS:
            assert not failed
            await asyncio.sleep(0.02)


async def test_a_rolling_restart_loses_no_request(balancer: Balancer, demo_checkpoint: Path, tmp_path: Path) -> None:
    servers = [LightServer(demo_checkpoint, tmp_path, drain_delay_s=DRAIN_DELAY_S) for _ in range(2)]
    failed: list[str] = []
    try:
        for server in servers:
            await server.ready()
        with running(balancer, (servers[0].port, servers[1].port), tmp_path) as url:
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:

                async def client() -> None:
                    while not failed:
                        try:
                            response = await http.post("/v1/completions", json=ECHO)
                        except httpx.TransportError as error:
                            failed.append(repr(error))
                        else:
                            if response.status_code != 200:
                                failed.append(response.text)
                        await asyncio.sleep(0.02)  # the checks come through the same loop

                clients = [asyncio.create_task(client()) for _ in range(NUM_CLIENTS)]
                try:
                    for server in servers:
                        await until_served(server, failed)
                    for index, old in enumerate(servers):
                        old.signal()
                        await old.ended()
                        servers[index] = LightServer(demo_checkpoint, tmp_path, old.port, drain_delay_s=DRAIN_DELAY_S)
                        await until_served(servers[index], failed)
                finally:
                    for task in clients:
                        task.cancel()
                    await asyncio.gather(*clients, return_exceptions=True)
    finally:
        for server in servers:
            server.signal(signal.SIGINT)
            await server.ended()
    assert not failed
