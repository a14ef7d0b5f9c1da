"""A real server in a process of its own, for tests that speak HTTP to it."""

from __future__ import annotations

import contextlib
import re
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from server.run_module import module_command
from tests.support.paths import ROOT

_LISTENING = re.compile(r"listening on (https?://\S+)")
# Tests make certificates of their own.
_ANY_CERTIFICATE = ssl.create_default_context()
_ANY_CERTIFICATE.check_hostname = False
_ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


class Server:
    """A server at a URL, wherever it runs."""

    url: str

    def has_ended(self) -> bool:
        raise NotImplementedError

    def log(self) -> str:
        return ""

    def status(self, path: str) -> int:
        """HTTP status of a GET; 0 where nobody listens."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10, context=_ANY_CERTIFICATE) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def get(self, path: str) -> str:
        """Body of a GET that is answered."""
        with urllib.request.urlopen(self.url + path, timeout=10, context=_ANY_CERTIFICATE) as response:
            text: str = response.read().decode()
        return text

    def wait_ready(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while self.status("/ready") != 200:
            if self.has_ended() or time.monotonic() > deadline:
                raise RuntimeError(f"the server is not ready:\n{self.log()}")
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        lines = self.get("/metrics").splitlines()
        values = [line.rsplit(" ", 1)[1] for line in lines if re.match(rf"{re.escape(name)}[ {{]", line)]
        return sum(map(float, values))

    def wait_idle(self, timeout_s: float = 5) -> None:
        """Waits until the engine holds no sequence and every block is free or cached."""
        deadline = time.monotonic() + timeout_s
        while True:
            busy = {
                name: self.metric(name)
                for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
            }
            if not any(busy.values()):
                return
            assert time.monotonic() < deadline, f"still busy: {busy}"
            time.sleep(0.02)


class ServerProcess(Server):
    """`python -m server serve`, on a port the system chose."""

    def __init__(
        self,
        model: Path | str,
        log_file: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            self.process = subprocess.Popen(
                module_command("server", "serve", str(model), "--port", "0", "--drain-delay-s", "0", *flags),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
            )
        self.url = self._wait_for_url()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            match = _LISTENING.search(self.log())
            if match:
                return match.group(1)
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            time.sleep(0.02)
        self.kill()
        raise TimeoutError(f"the server does not listen:\n{self.log()}")

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def engine_pid(self) -> int:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "model.loop.process" in child.cmdline():
                    return int(child.pid)
        raise RuntimeError("no engine process")

    def terminate(self, timeout_s: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running_server(
    model: Path | str, log_file: Path, *flags: str, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> Iterator[ServerProcess]:
    """A server that is ready; ended by its process id afterwards."""
    server = ServerProcess(model, log_file, *flags, env=env, cwd=cwd)
    try:
        server.wait_ready()
        yield server
        if server.process.poll() is None:
            server.terminate()
    finally:
        server.kill()
