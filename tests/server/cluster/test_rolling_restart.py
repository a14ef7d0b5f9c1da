"""Servers that are replaced one after the other under load: clients behind a balancer lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.light_server import ECHO, LightServer, light_server

NUM_CLIENTS = 6
CHECK_INTERVAL_S = 0.05


class Balancer:
    """Sends requests in turn to the servers that said they are ready when they were last asked. It never retries."""

    def __init__(self, http: httpx.AsyncClient, urls: list[str]) -> None:
        self._http = http
        self._urls = urls
        self._healthy: list[str] = []
        self._num_sent = 0
        self.refused: list[str] = []
        self.served = dict.fromkeys(urls, 0)
        self.under_way = dict.fromkeys(urls, 0)

    async def check(self) -> None:
        while True:
            self._healthy = [url for url in self._urls if await self.is_ready(url)]
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def is_ready(self, url: str) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return (await self._http.get(f"{url}/ready")).status_code == 200
        return False

    def pick(self) -> str:
        self._num_sent += 1
        return self._healthy[self._num_sent % len(self._healthy)]

    async def send(self) -> None:
        url = self.pick()
        self.under_way[url] += 1
        try:
            response = await self._http.post(f"{url}/v1/completions", json=ECHO)
            if response.status_code != 200:
                self.refused.append(response.text)
        except httpx.TransportError as error:
            self.refused.append(repr(error))
        finally:
            self.under_way[url] -= 1
        self.served[url] += 1

    async def until_used(self, url: str, used: bool) -> None:
        """Waits until a server is asked, or until it is not, and what it was asked has been answered."""
        async with asyncio.timeout(60):
            while (url in self._healthy) != used or (self.under_way[url] and not used):
                await asyncio.sleep(CHECK_INTERVAL_S)


@contextlib.contextmanager
def background(*tasks: asyncio.Task[None]) -> Iterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def test_a_rolling_restart_loses_no_request(demo_checkpoint: Path, tmp_path: Path) -> None:
    def start(port: int = 0) -> LightServer:
        server = LightServer(demo_checkpoint, tmp_path, port, drain_delay_s=600)
        server.wait_until_noticed()
        return server

    servers = [start(), start()]
    async with httpx.AsyncClient(timeout=60) as http:
        balancer = Balancer(http, [server.url for server in servers])

        async def client() -> None:
            while not balancer.refused:
                await balancer.send()

        with background(asyncio.create_task(balancer.check())):
            for server in servers:
                await balancer.until_used(server.url, True)
            with background(*(asyncio.create_task(client()) for _ in range(NUM_CLIENTS))):
                for index, old in enumerate(servers):
                    old.signal()
                    await balancer.until_used(old.url, False)
                    old.noticed.set()
                    await old.ended()
                    served = balancer.served[old.url]
                    servers[index] = start(old.port)
                    await balancer.until_used(old.url, True)
                    async with asyncio.timeout(60):
                        while balancer.served[old.url] < served + NUM_CLIENTS and not balancer.refused:
                            await asyncio.sleep(CHECK_INTERVAL_S)
    for server in servers:
        server.signal(signal.SIGINT)
        await server.ended()
    assert not balancer.refused
    assert all(balancer.served.values())


@pytest.fixture
async def draining(demo_checkpoint: Path, tmp_path: Path) -> AsyncIterator[LightServer]:
    """A server whose drain delay does not end by itself."""
    async with light_server(demo_checkpoint, tmp_path, drain_delay_s=600) as server:
        yield server


async def test_requests_are_served_until_balancers_have_noticed(draining: LightServer) -> None:
    async with httpx.AsyncClient(base_url=draining.url, timeout=20) as http:
        assert "connection" not in (await http.get("/ready")).headers
        draining.signal()
        while (ready := await http.get("/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        assert ready.json()["error"]["code"] == "engine_unavailable"
        served = await http.post("/v1/completions", json=ECHO)
        assert served.status_code == 200
        async with http.stream("POST", "/v1/completions", json={**ECHO, "stream": True}) as stream:
            lines = [line async for line in stream.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        health = await http.get("/health")
        assert health.json() == {"status": "draining"}
        # Clients that keep their connections, through whatever balances connections, come to another server.
        assert [reply.headers["connection"] for reply in (ready, served, stream, health)] == ["close"] * 4


async def test_ctrl_c_does_not_wait_for_a_balancer(draining: LightServer) -> None:
    """What came in before is served, also if its body was still on its way."""
    async with httpx.AsyncClient(base_url=draining.url, timeout=20) as http:
        reader, writer = await asyncio.open_connection("127.0.0.1", draining.port)
        body = json.dumps(ECHO).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body[:5])
        await http.get("/health")  # by now it has been read
        draining.signal(signal.SIGINT)
        while (refused := await http.post("/v1/completions", json=ECHO)).status_code == 200:
            await asyncio.sleep(0.01)
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert "retry-after" in refused.headers
        metrics = (await http.get("/metrics")).text
        assert 'qwen:requests_rejected_total{code="engine_unavailable",model_name="Qwen"} 1.0' in metrics
        writer.write(body[5:])
        reply = await asyncio.wait_for(reader.read(), 20)  # to the end: the connection is closed
        writer.close()
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in reply
    await draining.ended()
