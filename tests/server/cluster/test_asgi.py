"""A request that is run in another process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from server.cluster.asgi import run_asgi, to_send

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "POST",
    "path": "/x",
    "query_string": b"",
    "headers": [[b"a", b"b"]],
    "client": ["1.2.3.4", 5],
    "app": object(),
    "state": {"not": "sent"},
}


async def test_a_request_comes_through_with_its_reply() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)
        body = (await receive())["body"]
        await PlainTextResponse(body.decode().upper())(scope, receive, send)

    batches = [batch async for batch in run_asgi(app, to_send(SCOPE), b"hello", send_timeout_s=9)]
    messages = [message for batch in batches for message in batch]
    assert messages[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in messages) == b"HELLO"
    assert seen["client"] == ("1.2.3.4", 5) and seen["headers"] == [(b"a", b"b")]
    assert seen["state"] == {} and "app" not in seen


async def test_who_stops_listening_is_seen_to_leave() -> None:
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def endless() -> Any:
            while True:
                yield b"x"
                await asyncio.sleep(0)

        await receive()
        try:
            await StreamingResponse(endless())(scope, receive, send)
        finally:
            left.set()

    answer = run_asgi(app, to_send(SCOPE), b"", send_timeout_s=9)
    first: list[Message] = await anext(answer)
    assert first[0]["type"] == "http.response.start"
    await answer.aclose()  # type: ignore[attr-defined]
    assert left.is_set()


async def test_a_failure_of_the_app_is_one_of_the_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _ = [batch async for batch in run_asgi(app, to_send(SCOPE), b"", send_timeout_s=9)]


PIECE: Message = {"type": "http.response.body", "body": b"x" * 1000, "more_body": True}


async def test_the_app_waits_for_who_does_not_read() -> None:
    num_sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_sent
        while num_sent < 2000:
            await send(PIECE)
            num_sent += 1

    answer = run_asgi(app, to_send(SCOPE), b"", send_timeout_s=9)
    num_read = len(await anext(answer))
    for _ in range(100):
        await asyncio.sleep(0)
    assert num_read <= num_sent < 1000
    assert num_read + sum([len(batch) async for batch in answer]) == num_sent == 2000


async def test_who_does_not_read_for_long_has_left() -> None:
    has_ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            await send(PIECE)
            await asyncio.sleep(0)
        has_ended.set()

    answer = run_asgi(app, to_send(SCOPE), b"", send_timeout_s=0.001)
    await anext(answer)
    await has_ended.wait()
    with pytest.raises(TimeoutError, match="nobody has read the reply"):
        _ = [batch async for batch in answer]
