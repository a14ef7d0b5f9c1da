"""The command line: errors are one line with a suggestion, and shells complete commands and flags."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server import __main__ as command
from server.cli.command_line import SHELLS, command_names, completion


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "serve --max-model-length 4",
            "qwen-server serve: does not know --max-model-length; did you mean --max-model-len?",
        ),
        ("serve --prot=9", "does not know --prot=9; did you mean --port?"),
        ("serve m --kv-cache-memroy 1GB --sed 3", "did you mean --kv-cache-memory --seed?"),
        ("chat --sytem x", "qwen-server chat: does not know --sytem; did you mean --system?"),
        ("bench --cocurrency 3", "did you mean --concurrency?"),
        ("memory m --jsno", "did you mean --json?"),
        ("quantize a b --bits 4 --actorder", "did you mean --act-order?"),
        ("check-config --prot 1", "did you mean --port?"),
        ("sever m", "invalid choice: 'sever'"),
        ("sever m", "did you mean serve?"),
        ("eval tool --base-url x", "did you mean tools?"),
        ("completion fsh", "did you mean fish?"),
        ("--verison", "qwen-server: does not know --verison; did you mean --version?"),
        ("serve a b", "does not know b; see qwen-server serve --help"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(line.split())
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert words in said.err
    assert said.err.startswith("qwen-server") and said.err.count("\n") == 1
    assert said.out == ""


def test_alone_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: qwen-server")
    assert all(name in shown for name in command_names(command.build_parser()))


def test_a_folder_of_a_command_s_name_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("tools.chat.command.run", lambda arguments: asked.append(arguments.checkpoint) or 0)
    for name in command_names(command.build_parser()):
        (tmp_path / name).mkdir()
    assert command.main(["chat", "serve"]) == 0
    assert asked == ["serve"]


def complete(shell: str, folder: Path, *words: str) -> set[str]:
    """What the shell offers for the last of some words."""
    script = folder / f"script.{shell}"
    script.write_text(completion(command.build_parser(), shell))
    if shell == "fish":
        ask = f"source {script}; complete -C '{' '.join(words)}'"
    else:
        start = "autoload -U +X compinit && compinit -u\n" if shell == "zsh" else ""
        array = " ".join(f"'{word}'" for word in words)
        keys = "setopt ksharrays; " if shell == "zsh" else ""
        ask = (
            f"{start}source {script}; {keys}COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _qwen_server;"
            ' printf "%s\\n" "${COMPREPLY[@]}"'
        )
    done = subprocess.run([shell, "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    offered = {line.partition("\t")[0] for line in done.stdout.splitlines()}
    return {word for word in offered if word.startswith(words[-1])}  # zsh leaves that to the caller


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete_commands_flags_and_values(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert set(command_names(command.build_parser())) <= complete(shell, tmp_path, "qwen-server", "")
    assert complete(shell, tmp_path, "qwen-server", "qu") == {"quantize"}
    assert complete(shell, tmp_path, "qwen-server", "serve", "--kv-cache-d") == {"--kv-cache-dtype"}
    assert complete(shell, tmp_path, "qwen-server", "serve", "--kv-cache-dtype", "i") == {"int8"}
    assert complete(shell, tmp_path, "qwen-server", "eval", "to") >= {"tools"}
