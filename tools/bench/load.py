"""Sends requests, at a fixed concurrency or at given times, and records what became of each.

What is in a reply is for reply to know, what the figures mean for report.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult

from tools.api_address import parse_address
from tools.bench.http import BodySink, Connection, request_bytes
from tools.bench.reply import Record, ReplyTimer, RequestError, error_message, load_object
from tools.bench.wire import Disconnected, ProtocolError, ResponseParser

# Servers close connections that were idle for a few seconds, perhaps just as a request is on its way. A request without
# an answer is a failure here and never sent again (that would hide it), so connections are not kept for that long.
MAX_IDLE_S = 1.0


class Client:
    """Sends to one server over connections that are kept while they are in use.

    Args:
        base_url: with or without a path; without one, /v1 is meant.
        api_key: sent as a bearer token.
        timeout_s: the longest a request may take.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        url = parse_address(base_url)
        self._url: SplitResult = url
        self._path = url.path.rstrip("/") or "/v1"
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "qwen-server-bench"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._idle: list[tuple[Connection, float]] = []

    @property
    def root(self) -> str:
        """Path of what is not under /v1."""
        return self._path.removesuffix("/v1")

    @property
    def prefix(self) -> str:
        """Path of the API."""
        return self._path

    async def get(self, path: str) -> dict[str, Any]:
        """Returns a JSON object.

        Raises:
            RequestError: there is none.
        """
        record, body = Record(0.0), bytearray()
        request = request_bytes("GET", self._url, path, self._headers, b"")
        response = await self._guarded(request, record, lambda status, data, now: body.extend(data))
        if response is None:
            raise RequestError(record.error or "", record.detail)
        if response.status != 200:
            raise RequestError(f"http {response.status}", error_message(bytes(body)))
        return load_object(bytes(body))

    async def send(self, path: str, body: bytes, record: Record, origin: float, *, stream: bool) -> None:
        """Sends a request and fills in its record; fails only by being cancelled.

        Args:
            path: below the prefix.
            record: filled in.
            origin: `time.perf_counter()` from which to measure.
            stream: the body asks for events.
        """
        timer = ReplyTimer(record, origin, stream=stream)
        request = request_bytes("POST", self._url, self._path + path, self._headers, body)
        response = await self._guarded(request, record, timer.take)
        if response is not None:
            try:
                timer.finish(response)
            except RequestError as error:
                record.error, record.detail = error.kind, error.detail
        record.duration = time.perf_counter() - origin

    async def _guarded(self, request: bytes, record: Record, sink: BodySink) -> ResponseParser | None:
        """Exchanges; what goes wrong is noted in the record."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(request, sink)
        except TimeoutError:
            record.error, record.detail = "timeout", f"not complete after {self._timeout_s:g} s"
        except RequestError as error:
            record.error, record.detail = error.kind, error.detail
        except Disconnected as error:
            record.error, record.detail = "disconnected", str(error)
        except ProtocolError as error:
            record.error, record.detail = "bad reply", str(error)
        except ConnectionRefusedError:
            record.error, record.detail = "connection refused", ""
        except ssl.SSLError as error:
            record.error, record.detail = "tls", str(error.reason or error)
        except OSError as error:
            record.error, record.detail = "cannot connect", error.strerror or str(error)
        return None

    async def _exchange(self, request: bytes, sink: BodySink) -> ResponseParser:
        connection = self._take_idle() or await Connection.open(self._url, self._tls)
        response = await connection.exchange(request, sink)
        if connection.usable:
            self._idle.append((connection, time.perf_counter()))
        return response

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, since = self._idle.pop()
            if connection.usable and time.perf_counter() - since < MAX_IDLE_S:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        """Closes idle connections."""
        while self._idle:
            self._idle.pop()[0].close()


@dataclass
class Level:
    """A run under one condition.

    Attributes:
        records: of the requests that have ended.
        num_unfinished: begun, then cut off by an interrupt.
        duration: from the first request to the last end.
        client_cpu_s: CPU time this process used.
    """

    records: list[Record] = field(default_factory=list)
    num_unfinished: int = 0
    duration: float = 0.0
    client_cpu_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send.

    Attributes:
        path: of the endpoint.
        bodies: one a request.
        stream: they ask for events.
        concurrency: requests at a time; None goes by `arrivals`.
        arrivals: when each is due, in seconds.
        max_duration_s: after it no more are begun.
    """

    path: str
    bodies: Sequence[bytes]
    stream: bool = True
    concurrency: int | None = None
    arrivals: Sequence[float] = ()
    max_duration_s: float | None = None


async def run_level(client: Client, load: Load, level: Level) -> None:
    """Sends a load.

    Args:
        client: to the server.
        load: what to send.
        level: filled in as requests end, and complete also when this is cancelled.
    """
    cpu = time.process_time()
    origin = time.perf_counter()
    end = origin + (load.max_duration_s or float("inf"))

    async def send(body: bytes, due: float) -> None:
        record = Record(due - origin)
        level.num_unfinished += 1
        await client.send(load.path, body, record, due, stream=load.stream)
        level.num_unfinished -= 1
        level.records.append(record)

    async def work(queue: list[bytes]) -> None:
        while queue and time.perf_counter() < end:
            await send(queue.pop(), time.perf_counter())

    try:
        async with asyncio.TaskGroup() as group:
            if load.concurrency is not None:
                queue = list(reversed(load.bodies))
                for _ in range(load.concurrency):
                    group.create_task(work(queue))
            else:
                for body, arrival in zip(load.bodies, load.arrivals, strict=True):
                    due = origin + arrival
                    if due > end:
                        break
                    await asyncio.sleep(due - time.perf_counter())
                    group.create_task(send(body, due))
    finally:
        level.duration = max((r.started + r.duration for r in level.records), default=0.0)
        level.client_cpu_s = time.process_time() - cpu
