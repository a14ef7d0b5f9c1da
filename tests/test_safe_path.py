"""Nothing that lies in the working folder is ever executed, by whichever process of ours."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from server.__main__ import build_parser
from server.cli.command_line import command_names
from server.run_module import module_command
from tests.conftest import SMALL
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess, running_server

OURS = ("server", "model", "prompts", "demo", "benchmarks", "tests", "docs")
TRAINING = ("finetune", "merge")  # the first takes ten seconds to import what it trains with
SILENT = ("batch", "quantize", "convert", "finetune", "merge", "export")  # they speak on stderr
# What starts one of our modules and is not module_command: Python would look into the working folder first.
_BARE = re.compile(rf"""sys\.executable, ["']-m["'], ["'](?:{"|".join(OURS)})\b""")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    """A checkpoint in whose folder lie modules of every name that can be imported; each leaves a trace and fails."""
    folder = tmp_path_factory.mktemp("hostile")
    for file in demo_checkpoint.iterdir():
        shutil.copy(file, folder)
    trace = str(folder / "executed")
    trap = f"open({trace!r}, 'a').write(__name__ + '\\n')\nraise SystemExit('executed ' + __name__)\n"
    names = {*sys.stdlib_module_names, *importlib.metadata.packages_distributions(), *OURS}
    for name in names:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(trap)
    for name in OURS:
        (folder / name).mkdir()
        for module in ("__init__", "__main__", "engine_process", "grammar_worker", "quantize"):
            (folder / name / f"{module}.py").write_text(trap)
    return folder


def executed(folder: Path) -> str:
    trace = folder / "executed"
    return trace.read_text() if trace.exists() else ""


def run(folder: Path, module: str, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        module_command(module, *words), cwd=folder, input=stdin, capture_output=True, text=True, timeout=120
    )
    assert not executed(folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_server_its_engine_and_its_grammar_worker(hostile: Path, tmp_path: Path) -> None:
    with running_server(".", tmp_path / "log", *SMALL, cwd=hostile) as server:
        body = {
            "messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 1}}},
        }
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
        assert json.loads(reply.json()["choices"][0]["message"]["content"]) == 1
    assert not executed(hostile)


def test_the_chat_with_a_server_of_its_own(hostile: Path) -> None:
    assert run(hostile, "server", "chat", ".", "--set", "max_tokens=2 min_tokens=2", "--", *SMALL, stdin="Hello")


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_other_commands(training: bool, hostile: Path, tmp_path: Path, server: ServerProcess) -> None:
    suite = str(ROOT / "demo" / "suites" / "chat.jsonl")
    little = ("--num-samples", "2", "--sample-length", "32", "--threads", "1", "--device", "cpu")
    body = {"prompt": "Hi", "max_tokens": 1}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    (tmp_path / "in").write_text(json.dumps(line))
    data = tmp_path / "data.json"
    data.write_text(json.dumps({"messages": [{"role": "assistant", "content": "Hello."}]}))
    words = {
        "check-config": ["."],
        "batch": [str(tmp_path / "in"), str(tmp_path / "out"), "--base-url", server.url],
        "memory": ["."],
        "bench": ["--base-url", server.url, "--num-requests", "1", "--max-tokens", "1"],
        "eval": ["chat", "--base-url", f"{server.url}/v1", "--suite", suite, "--limit", "1"],
        "quantize": [".", str(tmp_path / "int8"), "--bits", "8", *little],
        "convert": [".", str(tmp_path / "qwen2"), "--to", "qwen2"],
        "finetune": [".", str(data), str(tmp_path / "tuned"), "--max-steps", "1", "--threads", "1", "--device", "cpu"],
        "merge": [".", str(tmp_path / "tuned"), str(tmp_path / "merged")],
        "export": [".", str(tmp_path / "out.gguf")],
        "perplexity": [".", "--lengths", "8", "--num-pieces", "1", "--threads", "1", "--device", "cpu"],
        "doctor": [".", "--device", "cpu", "--json"],
        "completion": ["bash"],
    }
    assert {"serve", "chat", *words} == set(command_names(build_parser())), "each command is started here"
    chosen = [command for command in words if (command in TRAINING) == training]
    lines = [[command, *words[command]] for command in chosen]
    printed = json.loads(run(hostile, "tests.support.run_commands", stdin=json.dumps(lines)))
    assert {command for command, text in zip(chosen, printed, strict=True) if not text} == {*chosen} & {*SILENT}


def test_the_trap_works(hostile: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(hostile, folder)
    done = subprocess.run([sys.executable, "-c", "import tiktoken"], cwd=folder, capture_output=True, text=True)
    assert "executed tiktoken" in done.stderr
    assert executed(hostile) == "tiktoken\n"
    (hostile / "executed").unlink()


def test_every_process_of_ours_is_started_by_module_command() -> None:
    files = [path for name in OURS for path in (ROOT / name).rglob("*.py")]
    assert not [str(path) for path in files if _BARE.search(re.sub(r"\s+", " ", path.read_text(encoding="utf-8")))]
