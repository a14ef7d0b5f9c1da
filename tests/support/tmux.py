"""A program on a real terminal: typed at and looked at through tmux."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

from tests.support.paths import ROOT


class Terminal:
    """One window of a tmux server of its own.

    Args:
        command: run in it; its exit status is shown at its end.
        env: added to the environment.
        size: columns and rows.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], size: tuple[int, int]) -> None:
        # Of its own, and short: the path of a socket has little room, and an ending tmux may still hold another.
        self._folder = tempfile.TemporaryDirectory(prefix="tmux-")
        self._tmux = ["tmux", "-S", f"{self._folder.name}/socket", "-f", "/dev/null"]
        shown = f"{shlex.join(command)}; echo exit status $?; exec sleep 600"
        columns, rows = size
        self._run("new-session", "-d", "-x", str(columns), "-y", str(rows), shown, env={**os.environ, **env})

    def _run(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        done = subprocess.run([*self._tmux, *words], cwd=ROOT, capture_output=True, text=True, env=env, check=True)
        return done.stdout

    def type(self, *keys: str) -> None:
        """Presses keys; what is no key's name is typed as it is."""
        self._run("send-keys", *keys)

    def screen(self) -> str:
        """What can be seen."""
        return self._run("capture-pane", "-p")

    def colored_screen(self) -> str:
        """What can be seen, with the escape sequences of its colours."""
        return self._run("capture-pane", "-p", "-e")

    def history(self) -> str:
        """What can be seen, and what was scrolled away; wrapped lines joined."""
        return self._run("capture-pane", "-p", "-J", "-S", "-")

    def wait(self, wanted: str | Callable[[str], bool], timeout_s: float = 30) -> str:
        """Waits until something is to be seen; returns all that is."""
        deadline = time.monotonic() + timeout_s
        while True:
            text = self.history()
            if wanted in text if isinstance(wanted, str) else wanted(text):
                return text
            assert time.monotonic() < deadline, f"never seen: {wanted!r}\n{text}"
            time.sleep(0.03)

    def child_pid(self) -> int:
        """Of the program."""
        shell = self._run("list-panes", "-F", "#{pane_pid}").strip()
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", shell], capture_output=True, text=True, check=True)
        return int(found.stdout.split()[0])

    def end(self) -> None:
        """Ends the program and tmux."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")
        self._folder.cleanup()


@contextlib.contextmanager
def terminal(command: Sequence[str], *, size: tuple[int, int] = (90, 24), **env: str) -> Iterator[Terminal]:
    """A terminal that runs a command; skips the test where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    window = Terminal(command, {"PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **env}, size)
    try:
        yield window
    finally:
        window.end()
