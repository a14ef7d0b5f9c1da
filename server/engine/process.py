"""The engine's process: how it is started, told of its death, and made to end. Knows nothing of what is said to it.

It may be started before anything else of the server is imported: it imports torch meanwhile, on another core, until it
is told what to load. So this module imports little, and asyncio only for those who run it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from model.contract.errors import ConfigError
from server.run_module import module_command

if TYPE_CHECKING:
    import asyncio

ENGINE_MODULE = "model.loop.process"

_SOCKET_BUFFER_BYTES = 1 << 20
_MAX_DESCRIPTORS = 1 << 16
_MIN_DESCRIPTORS = 64
_ENGINE_ENV = {
    # Reusing freed memory instead of returning it to the kernel: a fresh 8 MB allocation costs 5 ms of page faults.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    # oneDNN, and torch on top of it, keep code for each shape met, 1024 of each kind of operation: a CPU engine would
    # grow by hundreds of megabytes over thousands of requests. With 32 it is flat, and as fast.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
    "LRU_CACHE_CAPACITY": "32",
}
_SECRET_ENV_PREFIX = "QWEN_SERVER_API_"


class EngineProcess:
    """A process that runs `MODULE --fd N`, with the other end of a socket here.

    Args:
        module: its entry point.

    Attributes:
        socket: our end of the connection. The process ends when it is closed.

    Raises:
        OSError: there are no descriptors or no memory for it.
    """

    def __init__(self, module: str = ENGINE_MODULE) -> None:
        self.socket, theirs = socket.socketpair()
        try:
            with theirs:
                for end in (self.socket, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
                self._process = subprocess.Popen(
                    module_command(module, "--fd", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=child_environment(os.environ),
                    start_new_session=True,  # Ctrl-C is ours: the engine ends when we have drained
                )
        except BaseException:
            self.socket.close()
            raise
        self._exit: asyncio.Future[int] | None = None

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    async def open_stderr(self) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
        """Returns what reads its standard error, and what is to be closed in the end."""
        import asyncio

        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stderr)
        return reader, transport

    async def wait(self) -> int:
        """Returns the exit status, once there is one; negative for a signal."""
        import asyncio

        if self._exit is None:
            loop = asyncio.get_running_loop()
            self._exit = loop.create_future()
            threading.Thread(target=self._await_exit, args=(loop, self._exit), name="engine exit", daemon=True).start()
        return await asyncio.shield(self._exit)

    def _await_exit(self, loop: asyncio.AbstractEventLoop, exit: asyncio.Future[int]) -> None:
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(exit.set_result, status)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def discard(self) -> None:
        """Ends it at once."""
        self.socket.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a process that was started in vain."""
        if self._process.poll() is None:
            self.discard()


def open_standard_files() -> None:
    """Opens what was closed (`>&-`): a socket in its place would be written to, and libuv aborts."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: ours without the keys, and with an allocator that keeps its memory."""
    child = {key: value for key, value in environ.items() if not key.startswith(_SECRET_ENV_PREFIX)}
    for key, value in _ENGINE_ENV.items():
        child.setdefault(key, value)
    return child


def allow_many_descriptors() -> None:
    """Raises the usual limit of 1024 descriptors, meant for programs that use select(), here and in what is started.

    Raises:
        ConfigError: there may not be enough of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_DESCRIPTORS:
        raise ConfigError(
            f"only {hard} files may be open at a time (ulimit -n); the server needs {_MIN_DESCRIPTORS}, and one more a"
            " client"
        )
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
