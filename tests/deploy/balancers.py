"""The balancers of docs/deployment.md, each with the configuration that stands there, on ports of the test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.guide import examples
from tests.support.paths import ROOT

GUIDE = ROOT / "docs" / "deployment.md"
_MODULES = Path("/usr/lib/apache2/modules")
_APACHE_MODULES = (
    "mpm_event", "authz_core", "slotmem_shm", "watchdog", "proxy", "proxy_http", "proxy_balancer", "proxy_hcheck",
    "lbmethod_byrequests", "lbmethod_bybusyness",
)  # fmt: skip


def _nginx(snippet: str, folder: Path) -> tuple[str, list[str]]:
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root root; " if os.geteuid() == 0 else ""
    head = f"{user}daemon off; pid {folder}/pid; worker_processes 1; error_log stderr; events {{}}\n"
    text = f"{head}http {{ access_log off; {paths}{snippet} }}"
    return text, ["nginx", "-p", str(folder), "-c", str(folder / "config")]


def _haproxy(snippet: str, folder: Path) -> tuple[str, list[str]]:
    return snippet, ["haproxy", "-db", "-f", str(folder / "config")]


def _caddy(snippet: str, folder: Path) -> tuple[str, list[str]]:
    text = f"{{\n admin off\n storage file_system {folder}/caddy\n}}\n{snippet}"
    return text, ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "config")]


def _apache(snippet: str, folder: Path) -> tuple[str, list[str]]:
    files = {name: _MODULES / f"mod_{name}.so" for name in _APACHE_MODULES}
    modules = "".join(f"LoadModule {name}_module {file}\n" for name, file in files.items() if file.exists())
    listen = snippet.split("<VirtualHost ")[1].split(">")[0]
    text = (
        f"ServerRoot {folder}\nServerName test\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\n"
        f"ErrorLog /dev/stderr\nMutex posixsem\nUser nobody\nGroup nogroup\n{modules}Listen {listen}\n{snippet}"
    )
    return text, ["apache2", "-DFOREGROUND", "-f", str(folder / "config")]


class Balancer(NamedTuple):
    """A balancer of the guide.

    Attributes:
        program: the program that must be installed.
        language: the language of its fence in the guide.
        wrap: returns a complete configuration and the command for a snippet.
        quicker: replacements in the snippet that make health checks more frequent, for the tests.
        frees_unstreamed: whether an abandoned request ends if it does not stream.
    """

    program: str
    language: str
    wrap: Callable[[str, Path], tuple[str, list[str]]]
    quicker: tuple[tuple[str, str], ...]
    frees_unstreamed: bool = True


BALANCERS = (
    Balancer("nginx", "nginx", _nginx, (("fail_timeout=2s", "fail_timeout=1s"),)),
    Balancer("haproxy", "haproxy", _haproxy, (("inter 2s", "inter 100ms"),)),
    Balancer("caddy", "caddy", _caddy, (("health_interval 2s", "health_interval 100ms"),)),
    Balancer("apache2", "apache", _apache, (("hcinterval=2 ", "hcinterval=200ms "),), frees_unstreamed=False),
)


def snippet_of(balancer: Balancer) -> str:
    """Its configuration in the guide."""
    (found,) = [e.text for e in examples(GUIDE) if e.language == balancer.language and e.how == "run by tests/deploy"]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(balancer: Balancer, ports: tuple[int, int], folder: Path) -> Iterator[str]:
    """The balancer in front of two servers; yields its URL."""
    if shutil.which(balancer.program) is None:
        pytest.skip(f"{balancer.program} is not installed")
    folder.chmod(0o755)
    port = free_port()
    text = snippet_of(balancer)
    replaced = (*balancer.quicker, *zip((":8000", ":8001", ":8002"), (f":{p}" for p in (port, *ports)), strict=True))
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    text, command = balancer.wrap(text, folder)
    (folder / "config").write_text(text)
    log = folder / "log"
    with log.open("wb") as file:
        environ = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder)}
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environ)
    try:
        _wait_for(port, process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"it does not listen:\n{log.read_text(errors='replace')}")
