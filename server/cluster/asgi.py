"""A request run in another process: scope and body go there at once, messages come back in batches as they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message, Scope

# The keys of a scope that are sent; the others hold objects of the server that made it.
_SENT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_ADDRESSES = ("client", "server")
# So much of a reply may be unread before the app has to wait; uvicorn's limit is of this order.
_MAX_UNREAD_BYTES = 256 << 10


def to_send(scope: Scope) -> dict[str, Any]:
    """Returns what another process needs of a scope, in plain data."""
    sent = {name: scope[name] for name in _SENT if name in scope}
    sent["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return sent | {name: tuple(scope[name]) for name in _ADDRESSES if scope.get(name)}


async def run_asgi(
    app: ASGIApp, scope: dict[str, Any], body: bytes, *, send_timeout_s: float
) -> AsyncIterator[list[Message]]:
    """Runs an app for one request. While its messages are not taken, it has to wait, as behind a slow client.

    Args:
        scope: what `to_send` returned.
        body: the whole body.
        send_timeout_s: how long a reply may be left unread.

    Yields:
        Messages that the app has sent since the last time. When nobody takes them any more, the app is told that the
        client has left.

    Raises:
        TimeoutError: the reply was left unread for too long, and has ended early.
    """
    has_left = asyncio.Event()
    news, has_room = asyncio.Event(), asyncio.Event()
    unread: list[Message] = []
    bodies = [{"type": "http.request", "body": body, "more_body": False}]
    num_unread_bytes, is_slow = 0, False

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal num_unread_bytes, is_slow
        if has_left.is_set():
            return
        unread.append(message)
        num_unread_bytes += len(message.get("body", b""))
        news.set()
        if num_unread_bytes > _MAX_UNREAD_BYTES:
            has_room.clear()
            try:
                await asyncio.wait_for(has_room.wait(), send_timeout_s)
            except TimeoutError:
                is_slow = True
                has_left.set()

    running = asyncio.ensure_future(app({**scope, "state": {}}, receive, send))
    running.add_done_callback(lambda _: news.set())
    try:
        while not running.done() or unread:
            await news.wait()
            news.clear()
            if unread:
                messages, unread[:], num_unread_bytes = list(unread), [], 0
                has_room.set()
                yield messages
        await running  # a failure of the app is one here too
        if is_slow:
            raise TimeoutError(f"nobody has read the reply for {send_timeout_s:g} s")
    finally:
        has_left.set()
        has_room.set()
        if not running.done():
            await asyncio.wait([running], timeout=5.0)
            running.cancel()
