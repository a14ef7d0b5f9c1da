"""One engine process and the socket to it: frames out, frames in, end.

Knows framing; not requests, restarts or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import Callable

import msgspec

from model.contract.engine_config import EngineConfig
from model.contract.framing import FrameSplitter, FramingError
from model.contract.log_text import describe_exit
from model.contract.messages import FromEngine, Shutdown, ToEngine, decode_from_engine, encode
from server.engine.process import EngineProcess

logger = logging.getLogger(__name__)

_EXIT_GRACE_S = 2.0
_LAST_WORDS_S = 0.3  # for a hung engine to write down where it hangs
_MAX_TAIL_BYTES = 8192

# How the lines of the engine's own log begin, as text and as JSON.
_LOG_LINE = re.compile(r'\d{4}-\d\d-\d\d \S+ [A-Z]+ engine: |\{"time":')


class FrameReader(asyncio.Protocol):
    """Cuts what arrives into frames and hands each decoded message on.

    Args:
        on_message: called with each message, in the order of arrival.
        on_close: called once, with what went wrong or None.
    """

    def __init__(self, on_message: Callable[[FromEngine], None], on_close: Callable[[Exception | None], None]) -> None:
        self._on_message = on_message
        self._on_close = on_close
        self._splitter = FrameSplitter()
        self._transport: asyncio.BaseTransport | None = None
        self._error: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport to be able to close it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decodes the messages that are complete."""
        try:
            messages = [decode_from_engine(payload) for payload in self._splitter.push(data)]
        except (FramingError, msgspec.MsgspecError) as error:  # nothing after it can be trusted
            logger.exception("cannot read a message of the engine")
            self._error = error
            if self._transport is not None:
                self._transport.close()
            return
        for message in messages:
            try:
                self._on_message(message)
            except Exception:  # a fault of ours: the engine has said nothing wrong
                logger.exception("a message of the engine was not dealt with")

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports the end once."""
        self._on_close(self._error or exc)


class StderrRelay:
    """Passes on what an engine writes to its standard error, and remembers the end of it."""

    def __init__(self, stream: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._tail = b""
        self._task = asyncio.create_task(self._relay(stream), name="engine stderr")

    async def _relay(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(1 << 16):
            self._tail = (self._tail + data)[-_MAX_TAIL_BYTES:]
            while data:
                try:
                    data = data[os.write(2, data) :]
                except OSError:  # nobody reads ours; the engine must not wait for that
                    break

    def close(self) -> None:
        """Reads no more: what the engine started may live on and hold the other end."""
        self._transport.close()

    async def last_words(self) -> str | None:
        """The last line that is not from our own log: what a crash leaves behind. To be called after the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._task
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not _LOG_LINE.match(line)]
        telling = [line for line in lines if line.startswith("Fatal Python error")] or lines
        return telling[-1] if telling else None


class EngineLink:
    """A running engine process. Make one with `open`; it is used once.

    Attributes:
        closed: done when the socket has closed, whatever the reason.
    """

    def __init__(
        self,
        process: EngineProcess,
        transport: asyncio.Transport,
        closed: asyncio.Event,
        stderr: StderrRelay,
    ) -> None:
        self._process = process
        self._transport = transport
        self._stderr = stderr
        self.closed = closed

    @classmethod
    async def open(
        cls, process: EngineProcess, config: EngineConfig, on_message: Callable[[FromEngine], None]
    ) -> EngineLink:
        """Tells a process its configuration.

        Args:
            process: a process that was just started; it is ended should this fail.
            on_message: called with every message of the engine, on the event loop.
        """
        closed = asyncio.Event()
        with contextlib.ExitStack() as unless_open:
            unless_open.callback(process.discard)
            process.socket.setblocking(False)
            stderr, stderr_transport = await process.open_stderr()
            unless_open.callback(stderr_transport.close)
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: FrameReader(on_message, lambda error: closed.set()), sock=process.socket
            )
            unless_open.pop_all()
        transport.write(encode(config))
        return cls(process, transport, closed, StderrRelay(stderr, stderr_transport))

    @property
    def pid(self) -> int:
        """The engine process's id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queues a message; never blocks, and does nothing once the socket is closing.

        What is queued is bounded by admission: prompts are small beside what computing them costs.
        """
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    async def reap(self) -> str:
        """Makes sure that a process whose socket has closed is gone.

        Returns:
            How it ended, with the last line it wrote.
        """
        status = await self._end(_EXIT_GRACE_S)
        reason = describe_exit(status)
        last_words = await self._stderr.last_words()
        self._stderr.close()
        return f"{reason}: {last_words[:300]}" if last_words else reason

    async def stop(self, grace_s: float = _EXIT_GRACE_S) -> None:
        """Ends the process: asks, then insists.

        Args:
            grace_s: how long it may take to follow.
        """
        self.send(Shutdown())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.closed.wait()
                await self._process.wait()
        await self._end(0)
        self._stderr.close()

    async def kill(self) -> None:
        """Ends a process that no longer answers, after it had a moment to write down where it hangs."""
        self._process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(_LAST_WORDS_S)
        await self._end(0)

    async def _end(self, grace_s: float) -> int:
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                return await self._process.wait()
        self._process.send_signal(signal.SIGKILL)  # the one that a stopped process obeys too
        return await self._process.wait()
