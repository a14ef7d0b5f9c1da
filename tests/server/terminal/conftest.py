"""Chats against scripted servers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server_process import ROOT
from tests.support.tmux import Terminal, terminal

CHAT = (sys.executable, "-m", "server", "chat")
Open = Callable[..., contextlib.AbstractContextManager[Terminal]]
Piped = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def chat(tmp_path: Path) -> Open:
    """Opens a chat on a terminal."""

    @contextlib.contextmanager
    def open_chat(*arguments: str, **options: str) -> Iterator[Terminal]:
        options = {"XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(tmp_path), **options}
        with terminal(tmp_path, [*CHAT, *arguments], **options) as window:  # type: ignore[arg-type]
            yield window

    return open_chat


@pytest.fixture
def piped(tmp_path: Path) -> Piped:
    """Runs a chat between two pipes."""

    def run(question: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
        return subprocess.run(
            [*CHAT, *arguments],
            cwd=ROOT,
            input=question,
            capture_output=True,
            text=True,
            timeout=60,
            env={**plain, "XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(tmp_path), **env},
        )

    return run
