"""Sends a request and records how it ended. Nothing here raises because of what a server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult

import orjson

from tools.bench.http import Connection, Disconnected, ProtocolError, request_bytes

CHAT_PATH = "/v1/chat/completions"
_HEADERS = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Ending:
    """How a request ended.

    Attributes:
        status: HTTP status; 0 without a reply.
        error_code: code of the error object that ended the request, or None.
        is_complete: the whole reply arrived.
        problem: what is wrong with the reply itself (no status, no JSON, a stream that just stops), or None.
        retry_after: the header's value, or None.
        started: `time.perf_counter()` when the request was sent.
        ended: `time.perf_counter()` at its end.
        token_times: `time.perf_counter()` of each event with content.
        text: the content of a streamed chat.
    """

    status: int = 0
    error_code: str | None = None
    is_complete: bool = False
    problem: str | None = None
    retry_after: str | None = None
    started: float = 0.0
    ended: float = 0.0
    token_times: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.started


class SoakClient:
    """Sends requests, each on an idle connection or a new one."""

    def __init__(self, url: SplitResult, key: str | None = None) -> None:
        self._url = url
        self._headers = _HEADERS if key is None else {**_HEADERS, "Authorization": f"Bearer {key}"}
        self._idle: list[Connection] = []

    def close(self) -> None:
        """Closes the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle = []

    async def send(
        self,
        body: dict[str, Any],
        *,
        path: str = CHAT_PATH,
        leave_after_s: float | None = None,
        on_events: Callable[[int], None] | None = None,
    ) -> Ending:
        """Sends a request and reads its reply to the end.

        Args:
            leave_after_s: close the connection after this time.
            on_events: called with the number of events whenever some arrive.
        """
        ending = Ending(started=time.perf_counter())
        data = bytearray()
        is_stream = bool(body.get("stream"))

        def take(status: int, piece: bytes, now: float) -> None:
            data.extend(piece)
            if is_stream and b"data: {" in piece:
                ending.token_times.append(now)
                if on_events is not None:
                    on_events(piece.count(b"data: {"))

        try:
            async with asyncio.timeout(leave_after_s):
                await self._exchange(orjson.dumps(body), path, take, ending)
        except TimeoutError:
            ending.problem = None if leave_after_s is not None else "timed out"
        except (OSError, Disconnected, ProtocolError) as error:
            ending.problem = f"{type(error).__name__}: {error}"
        ending.ended = time.perf_counter()
        if ending.status and ending.problem is None:
            _read_end(ending, bytes(data), is_stream and ending.status == 200)
        return ending

    async def _exchange(self, body: bytes, path: str, take: Any, ending: Ending) -> None:
        connection = self._idle.pop() if self._idle else None
        if connection is None or not connection.usable:
            connection = await Connection.open(self._url, None)
        ending.started = time.perf_counter()
        response = await connection.exchange(request_bytes("POST", self._url, path, self._headers, body), take)
        ending.status = response.status
        ending.retry_after = response.headers.get("retry-after")
        if connection.usable:
            self._idle.append(connection)


def _read_end(ending: Ending, data: bytes, is_stream: bool) -> None:
    """Checks a reply that has ended."""
    try:
        if is_stream:
            events = [e.removeprefix(b"data: ") for e in data.split(b"\n\n") if e.startswith(b"data: ")]
            if events and events[-1] == b"[DONE]":
                ending.is_complete = True
                ending.text = "".join(_content(orjson.loads(event)) for event in events[:-1])
                return
            last = orjson.loads(events[-1]) if events else {}
        else:
            last = orjson.loads(data)
            ending.is_complete = ending.status == 200
        error = last.get("error")
        if error is not None:
            ending.error_code = str(error["code"])
            if set(error) != {"message", "type", "param", "code"}:
                ending.problem = f"an error of another shape: {error}"
        elif not ending.is_complete:
            ending.problem = "neither the end of the reply nor an error"
    except (ValueError, KeyError, AttributeError, TypeError) as error_:
        ending.problem = f"a reply that cannot be read: {error_!r} in {data[-200:]!r}"


def _content(chunk: dict[str, Any]) -> str:
    return "".join(choice.get("delta", {}).get("content") or "" for choice in chunk["choices"])
