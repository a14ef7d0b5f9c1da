"""`qwen-server doctor` finds the checkpoint's numbers and hands them to the process that needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import main
from tests.support.paths import ROOT


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been started."""
    commands: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda path, words: commands.append(words))
    return commands


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize(
    ("words", "layers", "shape", "is_given"),
    [
        ([], 32, "in the shapes of qwen-7b", False),
        (["qwen-14b-int4"], 40, "in the shapes of qwen-14b-int4", True),
        (["demo/checkpoint", "--json", "--device", "cpu"], 6, "in the shapes of demo/checkpoint", True),
    ],
)
def test_what_is_started(
    words: list[str], layers: int, shape: str, is_given: bool, started: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    with pytest.raises(TypeError):  # what would have replaced this process returned
        main(["doctor", *words])
    (command,) = started
    assert "tools.doctor" in command
    assert "-P" in command
    config = json.loads(flag(command, "--config"))
    assert (config["num_layers"], flag(command, "--shape")) == (layers, shape)
    assert ("--given" in command, "--json" in command) == (is_given, "--json" in words)
    assert flag(command, "--device") == ("cpu" if words[1:] else "auto")


def test_a_checkpoint_that_is_not_there(capsys: pytest.CaptureFixture[str], started: list[list[str]]) -> None:
    assert main(["doctor", "/nowhere/at all"]) == 1
    assert "/nowhere/at all: no such folder" in capsys.readouterr().err
    assert not started


def test_on_this_machine(tmp_path: Path) -> None:
    """The whole command, from another folder."""
    command = [sys.executable, "-P", str(ROOT / "server" / "run_module.py"), "server", "doctor"]
    command += [str(ROOT / "demo" / "checkpoint"), "--device", "cpu", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    report = json.loads(result.stdout)
    assert result.returncode == int(any(advice["is_problem"] for advice in report["advice"]))
    assert report["device"] == "cpu"
    assert report["kernels"]
    assert report["weights_bytes"] > 0
    assert not result.stderr
