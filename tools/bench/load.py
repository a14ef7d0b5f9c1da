"""Sends requests, at a fixed concurrency or at given times, and records the outcome of each.

reply.py parses replies, report.py computes figures.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.api_address import parse_address
from tools.bench.http import BodySink, Connection, Disconnected, ProtocolError, ResponseParser, request_bytes
from tools.bench.reply import Record, ReplyTimer, RequestError, error_message, load_object

# Servers close idle connections after a few seconds, perhaps just as a request is on its way. Failed requests are never
# sent again, as that would hide failures, so connections are reused only for a shorter time than that.
MAX_IDLE_S = 1.0


class Client:
    """Sends requests to one server over reused connections.

    Args:
        base_url: /v1 is added if it has no path.
        timeout_s: limit of one whole request.

    Attributes:
            prefix: path of the API, usually /v1.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        url = parse_address(base_url)
        self._url = url
        self.prefix = url.path.rstrip("/") or "/v1"
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "*/*", "User-Agent": "qwen-server-bench"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._idle: list[tuple[Connection, float]] = []

    async def get(self, path: str) -> dict[str, Any]:
        """Gets a JSON object.

        Raises:
            RequestError: the server did not answer with one.
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
        """Sends a request and fills in its record, also if it fails. Only cancellation raises.

        Args:
            path: the path below `prefix`.
            origin: `time.perf_counter()` from which latencies count.
            stream: whether the body asks for a stream.
        """
        timer = ReplyTimer(record, origin, stream=stream)
        request = request_bytes("POST", self._url, self.prefix + path, self._headers, body)
        response = await self._guarded(request, record, timer.take)
        if response is not None:
            try:
                timer.finish(response)
            except RequestError as error:
                record.error, record.detail = error.kind, error.detail
        record.duration = time.perf_counter() - origin

    async def _guarded(self, request: bytes, record: Record, sink: BodySink) -> ResponseParser | None:
        """Runs the exchange; a failure is written into the record."""
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
    """The outcome of one level of load.

    Attributes:
        records: one for each request that ended.
        num_unfinished: requests that were begun but cut off by an interrupt.
        duration: seconds from the first request to the last end.
        client_cpu_s: CPU time that this process used.
    """

    records: list[Record] = field(default_factory=list)
    num_unfinished: int = 0
    duration: float = 0.0
    client_cpu_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """The requests of one level.

    Attributes:
        path: the endpoint's path below the API prefix.
        bodies: one for each request.
        stream: whether the bodies ask for streams.
        concurrency: number of requests at a time; None to send at `arrivals` instead.
        arrivals: when each request is due, in seconds from the start.
        max_duration_s: no request is begun after this time.
    """

    path: str
    bodies: Sequence[bytes]
    stream: bool = True
    concurrency: int | None = None
    arrivals: Sequence[float] = ()
    max_duration_s: float | None = None


async def run_level(client: Client, load: Load, level: Level) -> None:
    """Sends a load and fills in the level as requests end; the level is valid even if this is cancelled."""
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
