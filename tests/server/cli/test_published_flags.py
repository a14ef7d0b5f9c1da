"""The published scripts' command lines, and a checkpoint where a command would stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import __main__ as command
from server.cli.published_flags import translate

LINES = {
    "-c Qwen/Qwen-1_8B-Chat": "serve Qwen/Qwen-1_8B-Chat",
    "--checkpoint-path /models/a": "serve /models/a",
    "-c '/my models/a' --server-port 8001": "serve '/my models/a' --port 8001",
    "--server-name 0.0.0.0": "serve Qwen/Qwen-7B-Chat --host 0.0.0.0",
    "serve /models/a --server-name=0.0.0.0": "serve /models/a --host 0.0.0.0",
    "serve -c a --cpu-only --api-auth u:p": "serve a --device cpu --api-auth u:p",
    "-c a --disable-gc": "serve a (--disable-gc has nothing to do here)",
    "-c a --share --inbrowser": "serve a (--share, --inbrowser have nothing to do here)",
    "serve --max-model-len 4096 /models/a --cpu-only": "serve --max-model-len 4096 /models/a --device cpu",
}


@pytest.mark.parametrize("line", LINES)
def test_a_published_command_line_is_translated(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    assert command.main(shlex.split(line)) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("qwen-server: ") and "\n" not in said
    assert said.endswith(f"of the published scripts; use: qwen-server {LINES[line]}")


@pytest.mark.parametrize("line", ["serve /models/a --port 8001", "chat -c a", "--help", "", "quantize a b --bits 4"])
def test_other_command_lines_are_left_alone(line: str) -> None:
    assert translate(line.split()) is None


def test_what_the_translation_says_can_be_parsed() -> None:
    for translation in LINES.values():
        words = translation.partition(" (")[0].replace("'", "").replace("/my models", "/models").split()
        command.build_parser().parse_args(words)


def test_a_checkpoint_in_a_command_s_place_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = []
    monkeypatch.setattr(command, "_serve", lambda arguments: served.append(arguments.model) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in (str(tmp_path), "me/tiny", "model"):
        assert command.main([name, "--port", "0"]) == 0
    assert served == [str(tmp_path), "me/tiny", "model"]
    with pytest.raises(SystemExit):
        command.main(["sever"])
    assert "invalid choice: 'sever'" in capsys.readouterr().err
