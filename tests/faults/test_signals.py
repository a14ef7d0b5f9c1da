"""Processes that are stopped, ended and killed at bad moments: no promise is broken, and no process stays behind."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

import httpx
import psutil
import pytest

from benchmarks.soak.client import SoakClient
from tests.faults.conftest import StartServer

HI = [{"role": "user", "content": "hi"}]
SHORT = {"messages": HI, "max_tokens": 6, "ignore_eos": True, "seed": 5, "temperature": 1.0, "return_token_ids": True}
ENDLESS = {"messages": HI, "max_tokens": 1900, "ignore_eos": True}


async def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_hang_and_a_death_before_the_first_token(start_server: StartServer) -> None:
    """The client sees a delay and the same reply; then the same while the server drains."""
    server = start_server("--engine-timeout-s", "1.5", "--shutdown-timeout-s", "60")
    async with httpx.AsyncClient(base_url=server.url.geturl(), timeout=60) as http:

        async def ids() -> list[int]:
            response = await http.post("/v1/chat/completions", json=SHORT)
            assert response.status_code == 200, response.text
            ids: list[int] = response.json()["choices"][0]["token_ids"]
            return ids

        expected = await ids()
        engine = server.engine()
        engine.suspend()
        hung = asyncio.create_task(ids())
        statuses = set()
        while not hung.done():
            started = time.monotonic()
            statuses.add((await http.get("/ready")).status_code)
            assert time.monotonic() - started < 1, "the HTTP process does not wait for the engine"
            await asyncio.sleep(0.02)
        assert await hung == expected
        assert statuses == {200, 503}
        assert not engine.is_running()
        assert "the engine hung: it said nothing for 1.5 s" in server.log()

        engine = server.engine()
        engine.suspend()
        waiting = asyncio.create_task(ids())
        await asyncio.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: server.get("/ready")[0] == 503)
        engine.kill()
        assert await waiting == expected
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert "Traceback" not in server.log()


async def test_a_second_signal_does_not_wait_for_a_stopped_engine(start_server: StartServer) -> None:
    server = start_server()
    client = SoakClient(server.url)
    stream = asyncio.create_task(client.send({**ENDLESS, "stream": True}))
    await until(lambda: server.metrics()["vllm:num_requests_running"] == 1)
    engine = server.engine()
    engine.suspend()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    ended = time.monotonic()
    assert (await stream).error_code == "engine_unavailable"
    client.close()
    assert await asyncio.to_thread(server.process.wait, 10) == 0
    assert time.monotonic() - ended < 4
    assert not engine.is_running()
    assert "Traceback" not in server.log()


async def test_an_engine_does_not_outlive_its_server(start_server: StartServer) -> None:
    """Not even one that is stopped and reads no pipe; nor does a child of the server's."""
    server = start_server()
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) >= 2
    server.engine().suspend()
    server.kill()
    await until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 10)


async def test_a_signal_while_the_checkpoint_loads(start_server: StartServer) -> None:
    server = start_server()
    server.engine().kill()
    await until(lambda: server.get("/ready")[0] == 503)
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait, 10) == 0


@pytest.mark.slow
async def test_an_engine_that_cannot_stay_alive_ends_the_server_with_the_reason(start_server: StartServer) -> None:
    server = start_server()
    seen: set[int] = set()
    deadline = time.monotonic() + 120
    while server.process.poll() is None:
        assert time.monotonic() < deadline
        try:
            engine = server.engine()
        except (RuntimeError, psutil.Error):
            await asyncio.sleep(0.02)
            continue
        if engine.pid not in seen:
            seen.add(engine.pid)
            engine.kill()
        await asyncio.sleep(0.02)
    assert server.process.returncode == 1
    last = server.log().strip().splitlines()[-1]
    assert last.startswith("qwen-server: the engine process ended unexpectedly (SIGKILL")
    assert last.endswith("that was failure 6 in a row")
