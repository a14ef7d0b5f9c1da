"""Chats against scripted servers."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.__main__ import main
from server.run_module import module_command
from tests.support.tmux import Terminal, terminal

CHAT = tuple(module_command("server", "chat"))
Open = Callable[..., contextlib.AbstractContextManager[Terminal]]
Piped = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def chat(tmp_path: Path) -> Open:
    """Opens a chat on a terminal."""

    @contextlib.contextmanager
    def open_chat(*arguments: str, **options: str) -> Iterator[Terminal]:
        options = {"XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(tmp_path), **options}
        with terminal([*CHAT, *arguments], **options) as window:  # type: ignore[arg-type]
            yield window

    return open_chat


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piped:
    """Runs a chat with a question on its standard input; in this process, which is quick."""

    def run(question: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        for name in list(os.environ):
            if name.startswith("OPENAI_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(question.encode())))
        capsys.readouterr()
        status = main(["chat", *arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(["chat", *arguments], status, out, err)

    return run
