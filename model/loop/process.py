"""The engine as a process of its own: reads messages from a socket, steps, writes what happened.

Started by the server as `python -m model.loop.process --fd N` with one end of a socket pair. The first frame is an
`EngineConfig`; then messages of model/contract/messages both ways. It ends when it is told to, or when the other
end closes: an engine without a server is of no use to anyone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

import orjson

from model.contract.engine_config import EngineConfig, LoadAdapter
from model.contract.errors import RestartNeededError, StartupError
from model.contract.framing import FrameSplitter, FramingError
from model.contract.log_text import with_indented_lines
from model.contract.messages import (
    Abort,
    AddRequest,
    EngineFailed,
    FromEngine,
    LoadProgress,
    Ping,
    Shutdown,
    ToEngine,
    UnloadAdapter,
    decode_to_engine,
    encode,
)

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.5
_RECEIVE_BYTES = 1 << 20

_PR_SET_PDEATHSIG = 1


Message = TypeVar("Message")


class ConnectionClosed(Exception):
    """The other end went away."""


class Connection(Generic[Message]):
    """Framed messages over a stream socket.

    Args:
        sock: connected; owned from here on.
        decode: reads what the other end writes.
    """

    def __init__(self, sock: socket.socket, decode: Callable[[bytes], Message]) -> None:
        self._socket = sock
        self._poller = select.poll()  # not select(): a server with many clients hands down a descriptor above 1023
        self._poller.register(sock, select.POLLIN)
        self._splitter = FrameSplitter()
        self._decode = decode
        self._messages: list[Message] = []

    def receive(self) -> Message:
        """Waits for one message.

        Raises:
            ConnectionClosed: the other end went away.
        """
        while not self._messages:
            self._read()
        return self._messages.pop(0)

    def receive_all(self, *, block: bool) -> list[Message]:
        """Returns all messages that have arrived, after waiting for one if `block` is set.

        Raises:
            ConnectionClosed: the other end went away.
        """
        try:
            while block and not self._messages:
                self._read()
            while self._poller.poll(0):
                self._read()
        except ConnectionClosed:
            if not self._messages:  # else what came before the end counts, and the next call tells of it
                raise
        messages, self._messages = self._messages, []
        return messages

    def wait(self, timeout_s: float | None = None) -> None:
        """Returns when something has arrived, or after the timeout."""
        if not self._messages:
            self._poller.poll(None if timeout_s is None else timeout_s * 1000)

    def send(self, message: ToEngine | FromEngine) -> None:
        """Writes one message, waiting while the other end is behind.

        Raises:
            ConnectionClosed: the other end went away.
        """
        try:
            self._socket.sendall(encode(message))
        except OSError as e:
            raise ConnectionClosed from e

    def _read(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as e:
            raise ConnectionClosed from e
        if not data:
            raise ConnectionClosed
        try:
            payloads = self._splitter.push(data)
        except FramingError as e:
            raise ConnectionClosed from e
        self._messages += map(self._decode, payloads)


def run(connection: Connection[ToEngine]) -> int:
    """Loads the checkpoint and steps until told to end.

    Returns:
        The exit status of the process.
    """
    config = connection.receive()
    assert isinstance(config, EngineConfig)
    _configure_logging(config)
    last_progress = 0.0

    def report_progress(loaded_bytes: int, total_bytes: int) -> None:
        nonlocal last_progress
        if time.monotonic() - last_progress >= _PROGRESS_INTERVAL_S:
            last_progress = time.monotonic()
            connection.send(LoadProgress(loaded_bytes, total_bytes))

    try:
        from model.loop.engine import Engine  # torch: imported once the pipe stands, so that its failure is reported

        engine = Engine(config, report_progress)
    except ConnectionClosed:
        raise
    except StartupError as e:
        connection.send(EngineFailed(str(e), is_startup_error=True))
        return 1
    except RestartNeededError as e:
        connection.send(EngineFailed(str(e), is_startup_error=False, wants_restart=True))
        return 1
    except Exception as e:
        logger.error("the engine failed to start:\n%s", traceback.format_exc())
        connection.send(EngineFailed(f"the engine failed to start: {_one_line(e)}", is_startup_error=False))
        return 1
    connection.send(engine.ready)
    watchdog = engine.watchdog
    watchdog.start()
    try:
        while True:
            watchdog.begin()
            with watchdog.excused():
                waiting_s = engine.waiting_s()
                if waiting_s is not None:
                    connection.wait(waiting_s)
                elif not engine.has_work():
                    connection.wait()
            for message in connection.receive_all(block=not engine.has_work()):
                match message:
                    case AddRequest():
                        engine.add_request(message)
                    case LoadAdapter():
                        engine.load_adapter(message)
                    case UnloadAdapter(adapter_id):
                        engine.unload_adapter(adapter_id)
                    case Abort(seq_ids):
                        engine.abort(seq_ids)
                    case Ping():
                        pass
                    case Shutdown():
                        return 0
            for news in engine.take_adapter_news():
                connection.send(news)
            # Also after a lone abort or ping: the step is empty then, but tells the other side the new state.
            connection.send(engine.step())
            watchdog.end()
    except ConnectionClosed:
        raise
    except Exception as e:
        logger.error("the engine failed:\n%s", traceback.format_exc())
        connection.send(EngineFailed(f"the engine failed: {_one_line(e)}", is_startup_error=False))
        return 1


class _JsonFormatter(logging.Formatter):
    """One JSON object a line, in the shape of the server's own."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object as text."""
        entry: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": "engine",
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


class _TextFormatter(logging.Formatter):
    """A line, and indented what follows of a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        return with_indented_lines(super().format(record))


def _configure_logging(config: EngineConfig) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = _TextFormatter("%(asctime)s %(levelname)s engine: %(message)s")
    handler.setFormatter(_JsonFormatter() if config.log_format == "json" else text)
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _die_with_the_server() -> None:
    """Asks the kernel to end this process when its server is gone: in a step that hangs, the socket is not read."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """The process's entry point."""
    parser = argparse.ArgumentParser(description="The engine process; started by qwen-server, not by hand.")
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of a connected socket")
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole process group; when to end is the server's decision, told through the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_the_server()
    faulthandler.enable()  # the last words of a crash, which the server repeats
    faulthandler.register(signal.SIGUSR1)  # sent before a hung engine is ended, so that the log says where it hung
    connection = Connection(socket.socket(fileno=arguments.fd), decode_to_engine)
    try:
        status = run(connection)
    except ConnectionClosed:
        status = 0
    sys.stderr.flush()
    # Not sys.exit: tearing down torch's threads takes seconds and can hang after a device fault.
    os._exit(status)


if __name__ == "__main__":
    main()
