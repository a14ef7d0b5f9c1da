"""The whole server and its engine on threads of the test's process, started as by `serve` with flags.

All but the two processes is real: HTTP, the wire between server and engine, the checkpoint, the kernels. It starts in
a third of a second of CPU where two processes take three, most of which they import what is here already. For servers
that a test needs its own flags for, and that nobody kills.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.contract.messages import decode_to_engine
from model.loop.connection import Connection, ConnectionClosed
from model.loop.process import run
from server.__main__ import build_parser
from server.config.sources import load_settings
from server.conversion.defaults import GenerationDefaults
from server.engine import supervisor
from server.engine.client import EngineClient
from server.engine.process import EngineProcess
from server.serve import draining_server
from server.startup import find_adapters, inspect_checkpoint
from tests.support.server_process import Server

_MODULE = "in this process"


class _NoStderr(asyncio.BaseTransport):
    """Nothing is read from it."""

    def close(self) -> None:
        pass


class EngineThread(EngineProcess):
    """An engine on a thread."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self._thread = threading.Thread(target=_run_engine, args=(theirs,), name="engine", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return os.getpid()

    async def open_stderr(self) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
        reader = asyncio.StreamReader()
        reader.feed_eof()
        return reader, _NoStderr()

    async def wait(self) -> int:
        await asyncio.to_thread(self._thread.join)
        return 0

    def send_signal(self, number: signal.Signals) -> None:
        """A thread ends by itself, once its socket is closed."""

    def discard(self) -> None:
        self.socket.close()
        self._thread.join()


def _start_engine(module: str) -> EngineProcess:
    return EngineThread() if module == _MODULE else EngineProcess(module)


supervisor.EngineProcess = _start_engine  # type: ignore[attr-defined,misc]


def _run_engine(sock: socket.socket) -> None:
    with sock, contextlib.suppress(ConnectionClosed):
        run(Connection(sock, decode_to_engine))


class InProcessServer(Server):
    """A server on threads.

    Args:
        model: a checkpoint's folder.
        flags: of `serve`.
        env: its variables.
    """

    def __init__(self, model: Path | str, *flags: str, env: Mapping[str, str] | None = None) -> None:
        words = ["serve", str(model), "--port", "0", "--drain-delay-s", "0", *flags]
        given: dict[str, Any] = vars(build_parser().parse_args(words))
        del given["command"]
        settings = load_settings(given, env or {})
        checkpoint = Path(model)
        self._fatal: list[str] = []
        self._engine = engine = EngineClient(
            settings.engine_config(checkpoint),
            module=_MODULE,
            timeout_s=settings.engine_timeout_s,
            on_fatal=self._fatal.append,
            adapters=find_adapters(settings),
        )
        tls = settings.tls()
        self._server = draining_server(
            settings,
            inspect_checkpoint(checkpoint, settings),
            GenerationDefaults.from_folder(checkpoint),
            engine,
            settings.credentials(),
            tls,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'' if tls is None else 's'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            asyncio.run(self._server.serve([self._listener]))

    def has_ended(self) -> bool:
        return bool(self._fatal) or not self._thread.is_alive()

    def log(self) -> str:
        return "\n".join(self._fatal)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._server.handle_exit(number, None)

    def lose_engine(self) -> None:
        """The engine is gone, as after a crash; the next one is another."""
        link: Any = self._engine._supervisor._link
        self._server._loop.call_soon_threadsafe(link._transport.abort)  # type: ignore[union-attr]

    def join(self, timeout_s: float) -> None:
        """Waits until it has ended by itself."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()

    def end(self) -> None:
        if self._thread.is_alive():
            self.signal(signal.SIGINT)
        self._thread.join()


@contextlib.contextmanager
def in_process_server(
    model: Path | str, *flags: str, env: Mapping[str, str] | None = None
) -> Iterator[InProcessServer]:
    """A server that is ready; it has ended afterwards."""
    server = InProcessServer(model, *flags, env=env)
    try:
        server.wait_ready()
        yield server
    finally:
        server.end()
