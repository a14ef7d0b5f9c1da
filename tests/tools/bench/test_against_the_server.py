"""`qwen-server bench` as people run it: against the real server, its files compared and drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.run_module import module_command
from tests.support.bench_command import main
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def figures(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of a few short requests."""
    path = tmp_path_factory.mktemp("bench") / "first.json"
    command = ["--base-url", server.url, "--concurrency", "1", "3", "--num-requests", "6", "--ignore-eos"]
    command += ["--prompt-tokens", "lognormal:40:0.5:90", "--max-tokens", "4:8", "--json", str(path)]
    code = module_command("server", "bench", *command, "--plot", str(path.with_suffix(".png")))
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "concurrency 3  " in done.stdout and "p90" in done.stdout
    return path


def test_figures_are_those_of_the_server(figures: Path) -> None:
    document = json.loads(figures.read_text())
    assert document["parameters"]["prompt_tokens"] == "lognormal:40:0.5:90"
    assert [level["concurrency"] for level in document["levels"]] == [1, 3]
    for level in document["levels"]:
        assert (level["completed"], level["failed"], level["tokens_counted_by"]) == (6, 0, "usage")
        assert 4 * 6 <= level["output_tokens"] <= 8 * 6
        assert level["latency"]["ttft_s"]["count"] == 6
    assert figures.with_suffix(".png").read_bytes().startswith(PNG)


def test_the_command_never_loads_tensors() -> None:
    code = "import sys, tools.bench.command; print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_arrivals_from_a_file_against_the_server(server: ServerProcess, tmp_path: Path) -> None:
    requests, path = tmp_path / "requests.jsonl", tmp_path / "figures.json"
    bodies = [{"messages": [{"role": "user", "content": text}], "max_tokens": 3} for text in ("a", "b")]
    bodies.append({"messages": [], "max_tokens": 3})
    requests.write_text("\n".join(map(json.dumps, bodies)))
    command = ["--base-url", server.url, "--request-rate", "40", "--requests", str(requests), "--json", str(path)]
    assert main(command) == 0
    (level,) = json.loads(path.read_text())["levels"]
    assert (level["completed"], level["failed"]) == (2, 1)
    assert "messages" in level["errors"]["http 400"]["first"]


def _doubled(path: Path, **changes: Any) -> Path:
    document = json.loads(path.read_text())
    for level in document["levels"]:
        level["output_tokens_per_s"] *= 2
    document["parameters"] |= changes
    other = path.with_name("second.json")
    other.write_text(json.dumps(document))
    return other


def test_compare(figures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = _doubled(figures)
    picture = tmp_path / "both.png"
    assert main(["--compare", str(figures), str(other), "--plot", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "Not the same" not in shown
    assert shown.count("+100.0%") == 2
    assert "time to first token, p99, ms" in shown
    assert picture.read_bytes().startswith(PNG)


def test_compare_says_what_was_not_the_same(figures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _doubled(figures, max_tokens="128", base_url="http://elsewhere")
    assert main(["--compare", str(figures), str(other)]) == 0
    assert "Not the same requests: max_tokens '4:8' and '128'." in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", '{"benchmark": "serving"}', '{"benchmark": "serving", "levels": [{}]}'])
def test_compare_refuses_other_files(
    figures: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert main(["--compare", str(figures), str(path)]) == 1
    assert f"qwen-server bench: {path}: " in capsys.readouterr().err


def test_compare_needs_a_level_in_both(figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(figures.read_text())
    document["levels"] = [{**document["levels"][0], "concurrency": 7}]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    assert main(["--compare", str(figures), str(path)]) == 1
    assert "no level in common: concurrency 1, concurrency 3; and concurrency 7" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--json", "--plot"])
def test_what_cannot_be_written_is_found_before_the_run(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "x.png"
    assert main(["--base-url", "http://127.0.0.1:9", flag, str(path)]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"qwen-server bench: {path}: cannot be written; name a file in a folder that exists")
    assert errors.count("\n") == 1
    assert main(["--base-url", "http://127.0.0.1:9", "--plot", str(tmp_path / "x.txt")]) == 1
    assert "name a .png" in capsys.readouterr().err


def test_plots_without_matplotlib_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--plot", str(tmp_path / "x.png")]) == 1
    assert "pip install 'qwen-server[bench]'" in capsys.readouterr().err


def test_a_bar_is_shown_on_a_terminal(server: ServerProcess) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = module_command("server", "bench", "--base-url", server.url, "--num-requests", "3")
    process = subprocess.Popen(
        [*command, "--max-tokens", "4"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    seen = b""
    while b"running" not in seen:
        seen += os.read(leader, 4096)
    output, _ = process.communicate(timeout=200)
    os.close(leader)
    assert process.returncode == 0
    assert b"running" not in output
