"""An OpenAI-compatible server of a few lines that answers as its script says, well or badly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

Writer = asyncio.StreamWriter
# Answers a request: (its number, from 0; its body; where to write). What it leaves open is closed by False.
Script = Callable[[int, dict[str, Any], Writer], Awaitable[bool]]


def head(status: int = 200, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *headers, "", ""]).encode()


def event(data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": finish_reason}
    return event({"choices": [choice], "usage": None})


def usage(num_prompt: int, num_output: int, num_cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": num_cached}
    return {"prompt_tokens": num_prompt, "completion_tokens": num_output, "prompt_tokens_details": details}


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def fixed(status: int, body: object) -> bytes:
    data = json.dumps(body).encode()
    return head(status, "content-type: application/json", f"content-length: {len(data)}") + data


async def stream(writer: Writer, *events: bytes, pause_s: float = 0.0) -> bool:
    """Sends events, each in a chunk and a packet of its own."""
    writer.write(head(200, "content-type: text/event-stream", "transfer-encoding: chunked"))
    for data in events:
        writer.write(chunked(data))
        await writer.drain()
        await asyncio.sleep(pause_s)
    writer.write(b"0\r\n\r\n")
    return True


def good_events(num_prompt: int = 5, num_output: int = 4) -> list[bytes]:
    """Who speaks, four tokens in three events, how it ended, usage, the end."""
    last = event({"choices": [], "usage": usage(num_prompt, num_output)})
    return [chunk(""), chunk("a"), chunk("bc"), chunk("d"), chunk("", "length"), last, event("[DONE]")]


async def good(number: int, body: dict[str, Any], writer: Writer) -> bool:
    if body.get("stream"):
        return await stream(writer, *good_events(), pause_s=0.001)
    choice = {"index": 0, "message": {"content": "abcd"}, "text": "abcd", "finish_reason": "length"}
    writer.write(fixed(200, {"choices": [choice], "usage": usage(5, 4, 2)}))
    return True


class FakeServer:
    """Runs in a thread of its own.

    Attributes:
        url: without a path.
        bodies: of the POST requests, in the order of arrival.
        headers: of the last request, names in lower case.
        num_connections: accepted.
        max_running: most POST requests under way together.
    """

    def __init__(self, script: Script = good) -> None:
        self.script = script
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.num_connections = 0
        self.max_running = 0
        self._running = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.num_connections += 1
        # Cancelled at the end, where a client keeps its connection.
        ended = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*ended), contextlib.closing(writer):
            while await self._answer(reader, writer):
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: Writer) -> bool:
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(self.headers.get("content-length", 0)))
        path = request.split()[1]
        if path == "/v1/models":
            writer.write(fixed(200, {"data": [{"id": "fake"}]}))
        elif path == "/version":
            writer.write(fixed(200, {"version": "1.2.3"}))
        elif path in ("/v1/chat/completions", "/v1/completions"):
            return await self._generate(json.loads(body), writer)
        else:
            writer.write(fixed(404, {"error": {"message": f"no {path}"}}))
        return True

    async def _generate(self, body: dict[str, Any], writer: Writer) -> bool:
        number = len(self.bodies)
        self.bodies.append(body)
        self._running += 1
        self.max_running = max(self.max_running, self._running)
        try:
            return await self.script(number, body, writer)
        finally:
            self._running -= 1


@contextlib.contextmanager
def fake_server(script: Script = good) -> Iterator[FakeServer]:
    """A server that listens; its thread has ended afterwards."""
    server = FakeServer(script)
    started, ended = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        listener = await asyncio.start_server(server._serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        started.set()
        async with listener:
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(5)
        yield server
    finally:
        loops[0].call_soon_threadsafe(ended.set)
        thread.join(5)
