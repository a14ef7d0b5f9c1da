"""A request run in another process: scope and body go there at once, messages come back in batches as they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Of a scope; the rest are objects of the server that made it.
_SENT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
_ADDRESSES = ("client", "server")


def to_send(scope: Scope) -> dict[str, Any]:
    """Returns what another process needs of a scope, in plain data."""
    sent = {name: scope[name] for name in _SENT if name in scope}
    sent["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    return sent | {name: tuple(scope[name]) for name in _ADDRESSES if scope.get(name)}


async def run_asgi(app: ASGIApp, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
    """Runs an app for one request.

    Args:
        app: to run.
        scope: of `to_send`.
        body: whole.

    Yields:
        Messages that the app sent since the last time. When nobody takes them any more, the app is told that the
        client has left.
    """
    has_left = asyncio.Event()
    news = asyncio.Event()
    sent: list[Message] = []
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        news.set()

    running = asyncio.create_task(_run(app, {**scope, "state": {}}, receive, send))
    running.add_done_callback(lambda _: news.set())
    try:
        while not running.done() or sent:
            await news.wait()
            news.clear()
            if sent:
                messages, sent[:] = list(sent), []
                yield messages
        await running  # a failure of the app is one here too
    finally:
        has_left.set()
        if not running.done():
            await asyncio.wait([running], timeout=5.0)
            running.cancel()


async def _run(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
