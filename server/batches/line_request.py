"""Asks the server itself what a line asks: the routes answer it as they would over the wire, without the gates.

Where there is no wire, no queue refuses it and no key is checked; its caller has been let in with the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI
from starlette.types import Message

from model.contract.errors import EngineUnavailableError
from server.engine.client import EngineClient
from server.engine.unstarted import MAX_ATTEMPTS
from server.gates.callers import Caller, caller_var
from server.wire.errors import server_error

_LATER = frozenset({429, 503})
_ENGINE_POLL_S = 0.2


class LineClient:
    """Asks what lines ask, of the last of some engines where they die of it.

    Args:
        app: with the generating routes.
        engine: that does them in the end.
    """

    def __init__(self, app: FastAPI, engine: EngineClient) -> None:
        self._app = app
        self._engine = engine

    async def ask(self, path: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        """Returns status and body of the answer, which is never that the engine is not there now.

        Args:
            path: of a generating route.
            body: JSON.
            caller: whose request it is.
        """
        num_lost = 0
        while True:
            num_restarts = self._engine.num_restarts
            status, reply = await ask_once(self._app, path, body, caller)
            if status not in _LATER:
                return status, reply
            await asyncio.sleep(_ENGINE_POLL_S)
            await self.engine_ready()
            num_lost += self._engine.num_restarts != num_restarts
            if num_lost >= MAX_ATTEMPTS:
                return status, reply

    async def engine_ready(self) -> None:
        """Returns when the engine takes requests."""
        while True:
            try:
                self._engine.require_open()
                return
            except EngineUnavailableError:
                await asyncio.sleep(_ENGINE_POLL_S)


async def ask_once(app: FastAPI, path: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
    """Returns status and body of the answer.

    Args:
        app: with the generating routes.
        path: of one of them.
        body: JSON.
        caller: whose request it is.
    """
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "state": {"caller": caller, "arrived": time.monotonic(), "is_background": True},
    }
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, parts = 0, list[bytes]()

    async def receive() -> Message:
        if not messages:
            await asyncio.get_running_loop().create_future()  # this client never leaves
        return messages.pop()

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    caller_var.set(caller)
    try:
        await app(scope, receive, send)
    except Exception:  # the app has logged it, and answered in text
        error = server_error()
        return error.status_code, error.response().body  # type: ignore[return-value]
    return status, b"".join(parts)
