"""One engine process and the socket to it: spawn, frames out, frames in, end.

Knows framing and processes; not requests, restarts or HTTP (see engine_client).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping

from model.engine_config import EngineConfig
from model.messages import FRAME_HEADER, MAX_FRAME_BYTES, FromEngine, Shutdown, ToEngine, decode, encode

logger = logging.getLogger(__name__)

_SOCKET_BUFFER_BYTES = 1 << 20
_EXIT_GRACE_S = 5.0

# Reusing freed memory instead of returning it to the kernel: a fresh 8 MB allocation costs 5 ms of page faults.
_ALLOCATOR_ENV = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_SECRET_ENV_PREFIX = "QWEN_SERVER_API_"


class FrameReader(asyncio.Protocol):
    """Cuts what arrives into frames and hands each decoded message on.

    Args:
        on_message: called in the order of arrival.
        on_close: called once, with what went wrong or None.
    """

    def __init__(self, on_message: Callable[[FromEngine], None], on_close: Callable[[Exception | None], None]) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._buffer = bytearray()
        self._transport: asyncio.BaseTransport | None = None
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport to be able to close it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decodes the frames that are complete."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= FRAME_HEADER.size:
                (length,) = FRAME_HEADER.unpack_from(buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                end = start + FRAME_HEADER.size + length
                if len(buffer) < end:
                    break
                message = decode(bytes(memoryview(buffer)[start + FRAME_HEADER.size : end]))
                start = end
                self._on_message(message)  # type: ignore[arg-type]  # an engine only sends FromEngine
        except Exception as error:  # a broken frame: nothing after it can be trusted
            logger.exception("cannot read a message of the engine")
            self._error = error
            buffer.clear()
            if self._transport is not None:
                self._transport.close()
            return
        if start:
            del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports the end once."""
        self._on_close(self._error or exc)


class EngineLink:
    """A running engine process. Make one with `spawn`; it is used once.

    Attributes:
        closed: done when the socket has closed, whatever the reason.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, transport: asyncio.Transport, closed: asyncio.Event
    ) -> None:
        self._process = process
        self._transport = transport
        self.closed = closed

    @classmethod
    async def spawn(cls, config: EngineConfig, on_message: Callable[[FromEngine], None], *, module: str) -> EngineLink:
        """Starts `python -m MODULE --fd N` and sends it its configuration.

        Args:
            config: sent as the first frame.
            on_message: receives every message of the engine, on the event loop.
            module: the engine's entry point.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", module, "--fd", str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=child_environment(os.environ),
                    start_new_session=True,  # Ctrl-C is ours: the engine ends when we have drained
                )  # fmt: skip
            closed = asyncio.Event()
            ours.setblocking(False)
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: FrameReader(on_message, lambda error: closed.set()), sock=ours
            )
        except BaseException:
            ours.close()  # the engine, should it run already, sees this and ends
            raise
        payload = config.to_json()
        transport.write(FRAME_HEADER.pack(len(payload)) + payload)
        return cls(process, transport, closed)

    @property
    def pid(self) -> int:
        """Of the engine process."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queues a message; never blocks, and does nothing once the socket is closing.

        What is queued is bounded by admission: prompts are small beside what computing them costs.
        """
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    async def wait(self) -> int:
        """Waits for the socket to close, then makes sure the process is gone.

        Returns:
            The exit status, negative for a signal.
        """
        await self.closed.wait()
        return await self._reap()

    async def stop(self) -> None:
        """Ends the process: asks, then insists."""
        self.send(Shutdown())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_GRACE_S):
                await self.closed.wait()
        await self._reap()

    async def kill(self) -> None:
        """Ends a process that no longer answers."""
        self._signal(kill=True)
        await self._reap()

    async def _reap(self) -> int:
        self._transport.close()
        for kill in (False, True):
            try:
                async with asyncio.timeout(_EXIT_GRACE_S):
                    return await self._process.wait()
            except TimeoutError:
                self._signal(kill=kill)
        return await self._process.wait()

    def _signal(self, *, kill: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if kill:
                self._process.kill()
            else:
                self._process.terminate()


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: ours without the keys, and with an allocator that keeps its memory."""
    child = {key: value for key, value in environ.items() if not key.startswith(_SECRET_ENV_PREFIX)}
    for key, value in _ALLOCATOR_ENV.items():
        child.setdefault(key, value)
    return child
