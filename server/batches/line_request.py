"""Sends the requests of lines to the server's own routes, which answer as over the wire.

They pass no gates: no key is checked and no queue refuses them, for their caller has been let in with the batch.
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
from server.engine.open_requests import MAX_ATTEMPTS
from server.gates.callers import Caller
from server.off_loop import begin_request
from server.wire.errors import server_error

_LATER = frozenset({429, 503})
_ENGINE_POLL_S = 0.2


class LineClient:
    """Sends lines' requests until they are answered; one that engines die of is tried on MAX_ATTEMPTS engines.

    Args:
        app: has the generating routes.
    """

    def __init__(self, app: FastAPI, engine: EngineClient) -> None:
        self._app = app
        self._engine = engine

    async def ask(self, path: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
        """Returns status and body of the answer; while the engine is not ready, waits instead of answering 503."""
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
        """Waits until the engine takes requests."""
        while True:
            try:
                self._engine.require_open()
                return
            except EngineUnavailableError:
                await asyncio.sleep(_ENGINE_POLL_S)


async def ask_once(app: FastAPI, path: str, body: bytes, caller: Caller) -> tuple[int, bytes]:
    """Posts a JSON body and returns status and body of the answer."""
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

    begin_request(caller)
    try:
        await app(scope, receive, send)
    except Exception:  # the app has logged it, and answered in text
        error = server_error()
        return error.status_code, error.response().body  # type: ignore[return-value]
    return status, b"".join(parts)
