"""A client that goes away frees its place in the engine, in every phase of its request."""

from __future__ import annotations

import asyncio
import random
import socket
import time

import pytest

from tests.support.readable_requests import HI
from tests.support.server_process import ServerProcess
from tests.support.wire import raw_request


def post(server: ServerProcess, path: str, body: dict[str, object]) -> socket.socket:
    """Sends a request on a bare connection and does not wait."""
    connection = socket.create_connection(address(server))
    connection.sendall(raw_request(path, body))
    return connection


def address(server: ServerProcess) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def endless(stream: bool) -> dict[str, object]:
    return {"messages": HI, "stream": stream, "ignore_eos": True, "max_tokens": 1900}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_decoding(server: ServerProcess, stream: bool) -> None:
    before = server.metric("vllm:request_success_total")
    with post(server, "/v1/chat/completions", endless(stream)):
        deadline = time.monotonic() + 5
        while server.metric("vllm:num_requests_running") < 1:
            assert time.monotonic() < deadline
    left = time.monotonic()
    server.wait_idle()
    assert time.monotonic() - left < 2
    assert server.metric("vllm:request_success_total") == before + 1
    assert "reason=abort" in server.log()


def test_a_reset_connection(server: ServerProcess) -> None:
    connection = post(server, "/v1/chat/completions", endless(True))
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
    server.wait_idle()


async def test_many_clients_that_vanish_at_random_moments(server: ServerProcess) -> None:
    rng = random.Random(1)

    async def vanish() -> None:
        _, writer = await asyncio.open_connection(*address(server))
        body = {**endless(rng.random() < 0.5), "n": rng.choice((1, 1, 3)), "max_tokens": rng.choice((4, 500, 1900))}
        data = raw_request("/v1/chat/completions", body)
        writer.write(data[: rng.choice((len(data), len(data), len(data) - 5))])
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.8)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(vanish() for _ in range(100)))
    await asyncio.to_thread(server.wait_idle, 10)


def test_a_slow_reader_holds_nobody_up(server: ServerProcess) -> None:
    with post(server, "/v1/chat/completions", {**endless(True), "n": 8}):
        started = time.monotonic()
        with post(server, "/v1/chat/completions", {"messages": HI, "max_tokens": 4}) as other:
            other.settimeout(20)
            assert other.recv(12) == b"HTTP/1.1 200"
        assert time.monotonic() - started < 10
    server.wait_idle(10)
