"""Starts a server as a child process, and watches it from outside: descriptors, memory, metrics, its engine.

The other files of the soak decide what is done to the server.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from server.run_module import module_command

_LISTENING = re.compile(r"listening on (http://\S+)")
_ENGINE_MODULE = "model.loop.process"


class Footprint(NamedTuple):
    """What the server's processes hold at some time.

    Attributes:
        server_fds: open descriptors of the HTTP process.
        server_bytes: resident memory of the HTTP process.
        engine_bytes: resident memory of the engine; 0 while there is none.
    """

    server_fds: int
    server_bytes: int
    engine_bytes: int


def changes(before: Footprint, after: Footprint) -> dict[str, list[float]]:
    """Returns descriptors and memory (MiB) before and after something, for figures."""
    return {
        "fds": [before.server_fds, after.server_fds],
        "server_mib": [round(before.server_bytes / 2**20, 2), round(after.server_bytes / 2**20, 2)],
        "engine_mib": [round(before.engine_bytes / 2**20, 2), round(after.engine_bytes / 2**20, 2)],
    }


class SoakServer:
    """`python -m server serve` as a child process.

    Args:
        model: folder or hub id of the checkpoint.
        log_file: receives the server's log.
        flags: further flags of `serve`.
    """

    def __init__(self, model: str, log_file: Path, *flags: str) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            self.process = subprocess.Popen(
                module_command("server", "serve", model, "--port", "0", "--drain-delay-s", "0", *flags),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.url = urlsplit(self._wait_for_url())

    def log(self) -> str:
        """All that the server has logged."""
        return self.log_file.read_text(errors="replace")

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            match = _LISTENING.search(self.log())
            if match:
                return match.group(1)
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the server does not listen:\n{self.log()[-4000:]}")

    def get(self, path: str, timeout_s: float = 30) -> tuple[int, str]:
        """Status and body of a GET; status 0 where nobody listens."""
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def wait_ready(self, timeout_s: float = 120) -> float:
        """Waits until requests are served; returns the seconds that took."""
        started = time.monotonic()
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None or time.monotonic() > started + timeout_s:
                raise RuntimeError(f"the server is not ready:\n{self.log()[-4000:]}")
            time.sleep(0.02)
        return time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        """All metrics, each summed over its labels."""
        values: dict[str, float] = {}
        for line in self.get("/metrics")[1].splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                values[name] = values.get(name, 0.0) + float(value)
        return values

    def wait_idle(self, timeout_s: float = 30) -> float:
        """Waits until nothing runs, nothing waits and every block is free; returns the seconds that took."""
        started = time.monotonic()
        while True:
            now = self.metrics()
            busy = now.get("vllm:num_requests_running", 1) + now.get("vllm:num_requests_waiting", 1)
            if not busy and now["qwen:kv_cache_blocks_free"] == now["qwen:kv_cache_blocks"]:
                return time.monotonic() - started
            if time.monotonic() > started + timeout_s:
                raise RuntimeError(f"the server is not idle: {now}")
            time.sleep(0.02)

    def engine(self) -> psutil.Process:
        """The engine's process.

        Raises:
            RuntimeError: there is none now.
        """
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if _ENGINE_MODULE in child.cmdline():
                    return child
        raise RuntimeError("no engine process")

    def footprint(self) -> Footprint:
        """What the processes hold now."""
        server = psutil.Process(self.process.pid)
        try:
            engine_bytes = self.engine().memory_info().rss
        except (RuntimeError, psutil.Error):
            engine_bytes = 0
        return Footprint(server.num_fds(), server.memory_info().rss, engine_bytes)

    def settled_footprint(self) -> Footprint:
        """Returns the footprint once the server is idle and closed connections are gone."""
        self.wait_idle()
        last = self.footprint()
        for _ in range(40):
            time.sleep(0.05)
            now = self.footprint()
            if now.server_fds == last.server_fds:
                return now
            last = now
        return last

    def kill(self) -> None:
        """Kills the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def soak_server(model: str, log_file: Path, *flags: str) -> Iterator[SoakServer]:
    """Yields a server that is ready; see `SoakServer` for the arguments."""
    server = SoakServer(model, log_file, *flags)
    try:
        server.wait_ready()
        yield server
        if server.process.poll() is None:
            server.process.terminate()
            server.process.wait(60)
    finally:
        server.kill()
