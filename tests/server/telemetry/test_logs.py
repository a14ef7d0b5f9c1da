"""The format of log lines."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from model.loop.child_process import _TextFormatter
from server.__main__ import main
from server.telemetry.logs import JsonFormatter, TextFormatter
from tests.support.paths import ROOT
from tests.support.server_process import ServerProcess


def record(**fields: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "server.x", "levelname": "INFO", "msg": "prompt"})
    made.fields = fields
    return made


def test_a_value_stays_on_the_line_and_does_not_command_the_terminal() -> None:
    forged = "hi\n2026-01-01 00:00:00,000 WARNING server.auth [req-1] let in \x1b[2J\u2028\x85"
    line = TextFormatter().format(record(text=forged, count=3))
    assert line.splitlines() == [line]
    assert "\x1b" not in line
    assert line.endswith(" count=3")
    assert json.loads(JsonFormatter().format(record(text=forged)))["text"] == forged


@pytest.mark.parametrize(
    "break_", ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\x1b[2K", "\x9b2K", "\x7f", "\u202e"]
)
def test_neither_does_a_message_nor_a_traceback(break_: str) -> None:
    """A path, say, or the name of a field that nobody knows: both come from outside before any key was asked for."""
    forged = f"/{break_}2026-01-01 00:00:00,000 INFO server.generation [req-1] finished"
    made = record()
    made.msg, made.args = "GET %s 404", (forged,)
    (line,) = TextFormatter().format(made).splitlines()
    assert break_[0] not in line
    try:
        raise ValueError(forged)
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    _, *others = TextFormatter().format(made).splitlines()
    assert others
    assert all(other.startswith("    ") for other in others)
    assert all(line.isprintable() for line in others)
    engines = _TextFormatter("%(asctime)s %(levelname)s engine: %(message)s").format(made).splitlines()
    assert all(other.startswith("    ") for other in engines[1:])


def test_no_path_forges_a_line(server: ServerProcess) -> None:
    for path in ("/%0a2026-01-01 00:00:00,000 forged by a path", "/%1b[2Kforged by an escape", "/v1/%0d%0aforged"):
        httpx.get(server.url + path)
    lines = [line for line in server.log().split("\n") if "forged" in line]
    assert len(lines) == 3
    assert all(line.isprintable() and line[:2] == "20" and " server.gates.middleware [" in line for line in lines)


def test_a_value_that_can_be_printed_is_as_it_was() -> None:
    assert TextFormatter().format(record(text="你好, Zoë")).endswith(" prompt text=你好, Zoë")


@pytest.mark.parametrize("where", ["flag", "variable", "file", "nowhere"])
def test_settings_that_stop_a_start_are_told_in_the_form_of_the_log(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["serve", "m", "--port", "many"]
    if where == "flag":
        words += ["--log-format", "json"]
    elif where == "variable":
        monkeypatch.setenv("QWEN_SERVER_LOG_FORMAT", "json")
    elif where == "file":
        (tmp_path / "settings.yaml").write_text("log-format: json\n")
        words += ["--config", str(tmp_path / "settings.yaml")]
    assert main(words) == 1
    line = capsys.readouterr().err
    if where == "nowhere":
        assert line.startswith("qwen-server: --port: ")
    else:
        assert json.loads(line)["message"].startswith("--port: ")
        assert json.loads(line)["level"] == "critical"


def test_whoever_reads_json_gets_nothing_else() -> None:
    code = "import warnings, server.telemetry.logs as l; l.configure_logging('info', 'json'); warnings.warn('w'); 1 / 0"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    warned, ended = map(json.loads, result.stderr.splitlines())
    assert "UserWarning: w" in warned["message"]
    assert (ended["message"], result.returncode) == ("unexpected end: division by zero", 1)
    assert "ZeroDivisionError" in ended["traceback"]
