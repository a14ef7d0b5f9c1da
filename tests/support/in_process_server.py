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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.contract.engine_config import EngineConfig
from model.contract.messages import FromEngine, Shutdown, ToEngine, decode_to_engine, encode
from model.loop.connection import Connection, ConnectionClosed
from model.loop.process import run
from server.__main__ import build_parser
from server.conversion.defaults import GenerationDefaults
from server.engine import supervisor
from server.engine.client import EngineClient
from server.engine.link import EngineLink, FrameReader
from server.serve import draining_server, find_adapters, look_at
from server.settings_sources import load_settings
from tests.support.server_process import Server

_MODULE = "in this process"


class ThreadLink(EngineLink):
    """An engine on a thread; others are processes as ever."""

    def __init__(self, thread: threading.Thread, transport: asyncio.Transport, closed: asyncio.Event) -> None:
        self._thread = thread
        self._transport = transport
        self.closed = closed

    @classmethod
    async def spawn(cls, config: EngineConfig, on_message: Callable[[FromEngine], None], *, module: str) -> EngineLink:
        if module != _MODULE:
            return await EngineLink.spawn(config, on_message, module=module)
        ours, theirs = socket.socketpair()
        closed = asyncio.Event()
        ours.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: FrameReader(on_message, lambda error: closed.set()), sock=ours
        )
        thread = threading.Thread(target=_run_engine, args=(theirs,), name="engine", daemon=True)
        thread.start()
        transport.write(encode(config))
        return cls(thread, transport, closed)

    @property
    def pid(self) -> int:
        return os.getpid()

    def send(self, message: ToEngine) -> None:
        if not self._transport.is_closing():
            self._transport.write(encode(message))

    async def reap(self) -> str:
        await self.stop()
        return "it ended"

    async def stop(self, grace_s: float = 0) -> None:
        self.send(Shutdown())
        await self.closed.wait()
        self._transport.close()
        await asyncio.to_thread(self._thread.join)

    async def kill(self) -> None:
        raise AssertionError("the engine is silent")


supervisor.EngineLink = ThreadLink  # type: ignore[misc]


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
            look_at(checkpoint, settings),
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
